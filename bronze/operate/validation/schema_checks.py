"""Whether each table can be loaded by its column contract, and is stored as it was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bronze.api.check import CheckReport
from bronze.config.settings import Settings
from bronze.errors import BronzeError
from bronze.operate.validation.results import CheckResult, Measure, faults
from bronze.operate.view import TableView
from bronze.printable import count
from bronze.verify import verify
from bronze.verify.results import VerifiedTable

_FITS = "every column of the source fits its Bronze column, and a run would have no problem"


def contract(
    checked: CheckReport | BronzeError, tables: Sequence[TableView]
) -> Iterator[CheckResult]:
    """Whether a run could load each table now, by `bronze check`."""
    measure = Measure("schema", "column contract", "faults", "at most", 0)
    if isinstance(checked, BronzeError):
        yield from (measure.unknown(table.target, checked) for table in tables)
        return
    for missing in checked.missing:
        yield measure.result("", 1, missing.message, missing.hint)
    reports = {report.target: report for report in checked.tables}
    for table in tables:
        report = reports.get(table.target)
        if report is None:
            yield measure.unknown(table.target, f"The source has no table {table.table} now.")
            continue
        problem = report.problem
        text, hint = (problem.message, problem.hint) if problem else (_FITS, "")
        yield measure.result(table.target, int(problem is not None), text, hint)


def at_rest(
    settings: Settings, tables: Sequence[TableView], names: Sequence[str]
) -> Iterator[CheckResult]:
    """Whether files and rows of each table are as they were written, by `bronze verify --at-rest`;
    ``names`` are those that were asked for.
    """
    measure = Measure("schema", "stored as written", "faults", "at most", 0)
    targets = [table.target for table in tables]
    try:
        result = verify.verify(settings, names, at_rest=True)
    except BronzeError as error:
        yield from (measure.unknown(target, error) for target in targets)
        return
    verified = {table.target: table for table in result.tables}
    for target in targets:
        found = verified.get(target)
        if found is None:
            yield measure.unknown(target, "There is no Bronze table yet.")
        elif found.error:
            yield measure.result(target, 1, found.error.message, found.error.hint)
        else:
            yield _result(found)


def _result(table: VerifiedTable) -> CheckResult:
    texts = [f"{file.file} {file.what}" for file in table.files]
    texts += (
        [f"{count(table.altered, 'row is', 'rows are')} not as bronze wrote them"]
        if table.altered
        else []
    )
    texts += [*table.columns, *table.foreign]
    return faults(
        "schema",
        "stored as written",
        table.target,
        texts,
        f"{count(table.bronze_rows, 'row')} in {count(table.bronze_files, 'file')} with the right"
        " hashes",
        "`bronze verify --repair` compares with the source and reloads what differs.",
    )
