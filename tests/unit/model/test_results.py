"""Results: their exit codes, and how they show themselves."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bronze import errors
from bronze.errors import BronzeError
from bronze.governance.audit_proof import AuditReport
from bronze.governance.tables.audit_log import AuditRecord
from bronze.governance.tables.quality import Figure
from bronze.model.results import EXIT_CODES, Failure, RunResult, TableResult, exit_code
from bronze.quality.report import QualityReport, Run, TableQuality

BAD = Failure("TableRefused", "It <b>cannot</b> be read.", "")
AWAY = Failure("SourceUnreachable", "It is away.", "")
LOST = Failure("LakeUnreachable", "It is away.", "")


@pytest.mark.parametrize(
    ("failures", "unrecorded", "code"),
    [
        ([], None, 0),
        ([None, None], None, 0),
        ([None], BAD, 1),
        ([None, AWAY], None, 1),
        ([AWAY, LOST], None, 3),
        ([AWAY], BAD, 3),
        ([AWAY, BAD], None, 1),
    ],
)
def test_an_exit_code_says_what_became_of_all_tables(
    failures: list[Failure | None], unrecorded: Failure | None, code: int
) -> None:
    """3 only where nothing but an unreachable side stopped every table."""
    assert exit_code(failures, unrecorded) == code


def test_every_exit_code_is_of_an_error() -> None:
    """The kinds with a code of their own are classes of errors, and raise with it."""
    for kind, code in EXIT_CODES.items():
        error: BronzeError = getattr(errors, kind)("It failed.")
        assert error.exit_code == exit_code([error.failure()]) or code == 2
        assert error.exit_code == code
    assert errors.TableRefused("No.").exit_code == 1


def test_a_result_shows_itself_in_a_line_and_a_notebook() -> None:
    """Counts by status; in HTML the figures that there are, with what is in them escaped."""
    tables = (
        TableResult("public.a", "bronze.bz_a", "landed", inserted=3),
        TableResult("public.b", "bronze.bz_b", "failed", error=BAD),
    )
    result = RunResult("b", 1, 1.0, tables)
    assert repr(result) == "<RunResult: 2 tables, 1 landed, 1 failed, exit code 1>"
    html = result._repr_html_()
    assert "<th>inserted</th>" in html
    assert "<th>deleted</th>" not in html
    assert "It &lt;b&gt;cannot&lt;/b&gt; be read." in html


def test_an_audit_report_shows_its_records() -> None:
    """The line counts records, not tables; the notebook has a row for each."""
    record = AuditRecord(
        7, datetime(2026, 5, 1, tzinfo=UTC), "me", "", "here", "run", "<t>", "failed", "{}", "", "1"
    )
    report = AuditReport((record,), 7, "", tables=3, problems=("record 2 is missing",))
    assert repr(report) == "<AuditReport: 1 records, exit code 1>"
    html = report._repr_html_()
    assert "<td>7</td>" in html
    assert "<td>&lt;t&gt;</td>" in html
    assert "<th>identity</th>" not in html
    assert repr(AuditReport((), 0, "")) == "<AuditReport: exit code 0>"


def test_a_quality_report_shows_its_newest_figures() -> None:
    """A row for each table with the rules that it does not meet, and for one without figures."""
    newest = Run("b", datetime(2026, 5, 1, tzinfo=UTC), "load", True, 1200, 99.5, 7, 3, 1)
    rule = Figure("a<b", "range", passed=False)
    table = TableQuality("public.t", "bronze.bz_t", (newest, newest), (rule,), 12.0, 60)
    report = QualityReport((table,), ("bronze.bz_u",))
    assert repr(report) == "<QualityReport: 1 tables, exit code 1>"
    html = report._repr_html_()
    assert html.count("<tr>") == 3
    for cell in ("1200", "99.5", "a&lt;b", "bronze.bz_u", "no figures"):
        assert f"<td>{cell}</td>" in html, cell
