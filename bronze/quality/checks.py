"""The figures of a table's rows: how many break each rule, and whether the limits are met."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from bronze.config.sections.quality import QualitySettings
from bronze.governance import writer
from bronze.governance.tables import quality as quality_table
from bronze.governance.tables.quality import Figure, TableFigures
from bronze.model.locations import Place
from bronze.model.quality import BEST_SCORE, QualityRules, QualityTotals, ResolvedRule
from bronze.printable import count

SCORE, QUARANTINED, FRESHNESS, NULLS = "score", "quarantined", "freshness", "null_share"
_SEVERE = ("high", "critical")
_MAX_NAMES = 3


def figures(
    quality: QualityRules, totals: QualityTotals, demanded: QualitySettings, age: float
) -> tuple[Figure, ...]:
    """A figure for each rule and each check of a table.

    Args:
        quality: the rules.
        totals: the counts of rows by rule.
        demanded: the limits of the table as a whole.
        age: seconds since the moment of the source that the rows are of.
    """
    rules = [_rule_figure(criterion, totals, i) for i, criterion in enumerate(quality.criteria)]
    return (
        *rules,
        *_null_figures(quality, totals, demanded),
        _duplicates_figure(quality, totals, demanded),
        *_table_figures(totals, demanded, age),
    )


def _rule_figure(criterion: ResolvedRule, totals: QualityTotals, number: int) -> Figure:
    checked: int | None = totals.rows
    failed: int | None = totals.failed[number] if totals.failed else 0
    if criterion.evaluation == "counted":
        checked, failed = criterion.counted
    elif criterion.evaluation == "none":
        checked = failed = None
    share = passed = None
    allowed = criterion.allow
    if checked is not None and failed is not None:
        share = failed / max(checked, 1)
        met = share <= criterion.allow
        allowed, passed = _limit(criterion.allow, met, failed, criterion.allow_rows, checked)
    return Figure(
        rule=criterion.name,
        kind=criterion.kind,
        column=", ".join(criterion.columns),
        severity=criterion.severity,
        origin=criterion.origin,
        evaluation=criterion.evaluation,
        checked=checked,
        failed=failed,
        measured=share,
        allowed=allowed,
        passed=passed,
        examples=totals.examples[number] if totals.examples else (),
    )


def _null_figures(
    quality: QualityRules, totals: QualityTotals, demanded: QualitySettings
) -> Iterator[Figure]:
    """The share of NULLs in the table, and in each column."""
    rows = totals.rows
    nulls = dict(zip((source for source, _ in quality.names), totals.nulls, strict=False))
    cells, empty = rows * len(quality.names), sum(nulls.values())
    share = empty / cells if cells else 0.0
    allowed = passed = None
    if demanded.null_share is not None:
        # The number of rows that may fail is of each column.
        worst, met = max(nulls.values(), default=0), share < demanded.null_share
        allowed, passed = _limit(demanded.null_share, met, worst, demanded.allow_rows, rows)
    yield Figure(
        NULLS, "check", checked=cells, failed=empty, measured=share, allowed=allowed, passed=passed
    )
    for name, empty in nulls.items():
        share = empty / max(rows, 1)
        yield Figure(NULLS, "check", name, checked=rows, failed=empty, measured=share)


def _table_figures(
    totals: QualityTotals, demanded: QualitySettings, age: float
) -> Iterator[Figure]:
    """Schema compliance, freshness, the average score and the quarantined rows."""
    rows, refused = totals.rows, totals.refused
    compliant, least = (rows - refused) / rows if rows else 1.0, demanded.schema_compliance
    few, passed = _limit(0.0, compliant >= least, refused, demanded.allow_rows, rows)
    yield Figure(
        "schema_compliance",
        "check",
        checked=rows,
        failed=refused,
        measured=compliant,
        allowed=min(least, 1 - few),
        passed=passed,
    )
    yield Figure(
        FRESHNESS,
        "check",
        measured=age,
        allowed=float(demanded.freshness),
        passed=age < demanded.freshness,
    )
    average = totals.total / rows if rows else float(BEST_SCORE)
    yield Figure(SCORE, "check", checked=rows, failed=totals.flawed, measured=average)
    yield Figure(QUARANTINED, "check", checked=rows, failed=totals.quarantined)


def _limit(
    share: float, met: bool, failed: int, allow_rows: int, checked: int
) -> tuple[float, bool]:
    """The share of the checked rows that may fail, and whether it is not exceeded.

    Args:
        share: the share that may fail by the config.
        met: whether no more than that share fails (or less, where the limit excludes it).
        failed: how many rows fail.
        allow_rows: how many rows may fail whatever their share is.
        checked: how many rows there are.
    """
    return max(share, min(allow_rows / max(checked, 1), 1.0)), met or failed <= allow_rows


def _duplicates_figure(
    quality: QualityRules, totals: QualityTotals, demanded: QualitySettings
) -> Figure:
    """Rows beyond the first of each key or, without a key, beyond the first equal row."""
    checked, failed, evaluation = totals.rows, 0, "proven"
    if quality.distinct:
        prints = np.sort(np.frombuffer(b"".join(totals.prints), np.uint64))
        # Equal rows have equal fingerprints, so that a sample of all fingerprints is enough.
        repeated = int(np.count_nonzero(prints[1:] == prints[:-1])) * quality.distinct
        failed = min(repeated, checked)
        evaluation = "rows" if quality.distinct == 1 else "estimated"
    share = failed / max(checked, 1)
    met = share < demanded.duplicates
    allowed, passed = _limit(demanded.duplicates, met, failed, demanded.allow_rows, checked)
    return Figure(
        "duplicates",
        "check",
        evaluation=evaluation,
        checked=checked,
        failed=failed,
        measured=share,
        allowed=allowed,
        passed=passed,
    )


def reasons_to_refuse(figures: Sequence[Figure]) -> str:
    """Why these rows must not be written, "" if they may: checks that are not met, and rules of
    severity high or critical that more rows break than allowed.

    Freshness is not one of the checks: refusing late rows would not make the table fresher.
    """
    unmet = [
        figure
        for figure in figures
        if figure.passed is False
        and figure.rule != FRESHNESS
        and (figure.origin == "check" or figure.severity in _SEVERE)
    ]
    reasons = [_reason(figure, figures) for figure in unmet[:_MAX_NAMES]]
    if len(unmet) > _MAX_NAMES:
        reasons.append(f"and {len(unmet) - _MAX_NAMES} more")
    return "; ".join(reasons)


def example_notes(figures: Sequence[Figure]) -> tuple[str, ...]:
    """A note for each rule that is not met, with keys of rows that break it."""
    return tuple(
        f"the rule {figure.rule!r} is broken by rows such as {', '.join(figure.examples)}"
        for figure in figures
        if figure.passed is False and figure.examples
    )


def columns_with_most_nulls(figures: Sequence[Figure]) -> str:
    """The columns with the most NULLs, and their numbers of NULLs."""
    columns = [f for f in figures if f.rule == NULLS and f.column and f.failed]
    columns.sort(key=lambda figure: (-(figure.failed or 0), figure.column))
    listed = [f"{f.column} ({f.failed:,} of {f.checked:,})" for f in columns[:_MAX_NAMES]]
    if len(columns) > _MAX_NAMES:
        listed.append(f"and {len(columns) - _MAX_NAMES} more")
    return ", ".join(listed)


def _reason(figure: Figure, figures: Sequence[Figure]) -> str:
    is_one = figure.failed == 1
    rows = f"{figure.failed:,} of {count(figure.checked or 0, 'row')}"
    if figure.kind != "check":
        return f"{rows} {'breaks' if is_one else 'break'} the rule {figure.rule!r}"
    if figure.rule == "schema_compliance":
        return f"{rows} {'has' if is_one else 'have'} values that Delta cannot store"
    if figure.rule == "duplicates":
        what = "is a duplicate" if is_one else "are duplicates"
        return f"{rows} {what}, not below {figure.allowed:.2%}"
    nulls = f"{figure.failed:,} of {count(figure.checked or 0, 'value')}"
    return (
        f"{nulls} {'is' if is_one else 'are'} NULL, not below {figure.allowed:.2%}, most of them in"
        f" {columns_with_most_nulls(figures)}"
    )


def record_figures(place: Place, graded: Iterable[TableFigures]) -> None:
    """Appends the figures of tables to ``governance.quality`` at ``place``.

    Raises:
        LakeError, LakeUnreachable: they cannot be written.
    """
    tables = list(graded)
    if not tables:
        return
    batch = tables[-1].stamp.batch_id
    writer.append_rows(place, quality_table.COLUMNS, quality_table.frame(tables), batch)
