"""How a table's rows fared, held against what is demanded of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from bronze.config.quality import QualitySettings
from bronze.governance import writer
from bronze.governance.tables import quality as book
from bronze.governance.tables.quality import Figure, Graded
from bronze.model.locations import Place
from bronze.model.quality import BEST_SCORE, QualityRules, QualityTotals, ResolvedRule

SCORE, QUARANTINED, FRESHNESS, NULLS = "score", "quarantined", "freshness", "null_share"
_SEVERE = ("high", "critical")
_NAMED = 3


def figures(
    quality: QualityRules, found: QualityTotals, demanded: QualitySettings, age: float
) -> tuple[Figure, ...]:
    """A figure for each rule and each check of a table.

    Args:
        quality: what the rows were held against.
        found: how they fared.
        demanded: what is demanded of the table as a whole.
        age: how old the source's state is that they are of, in seconds.
    """
    rules = [_rule(criterion, found, i) for i, criterion in enumerate(quality.criteria)]
    return (*rules, *_checks(quality, found, demanded, age))


def _rule(criterion: ResolvedRule, found: QualityTotals, number: int) -> Figure:
    checked: int | None = found.rows
    failed: int | None = found.failed[number] if found.failed else 0
    if criterion.evaluation == "counted":
        checked, failed = criterion.counted
    elif criterion.evaluation == "none":
        checked = failed = None
    share = passed = None
    allowed = criterion.allow
    if checked is not None and failed is not None:
        share = failed / max(checked, 1)
        met, few = share <= criterion.allow, criterion.allow_rows
        allowed, passed = _judged(criterion.allow, met, failed, few, checked)
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
        examples=found.examples[number] if found.examples else (),
    )


def _checks(
    quality: QualityRules, found: QualityTotals, demanded: QualitySettings, age: float
) -> Iterator[Figure]:
    rows = found.rows
    nulls = dict(zip((source for source, _ in quality.names), found.nulls, strict=False))
    cells, empty = rows * len(quality.names), sum(nulls.values())
    most, few = demanded.null_share, demanded.allow_rows
    share = empty / cells if cells else 0.0
    allowed = passed = None
    if most is not None:
        # So few rows may be without a value in each of the columns.
        worst = max(nulls.values(), default=0)
        allowed, passed = _judged(most, share < most, worst, few, rows)
    yield Figure(
        NULLS, "check", checked=cells, failed=empty, measured=share, allowed=allowed, passed=passed
    )
    for name, count in nulls.items():
        share = count / max(rows, 1)
        yield Figure(NULLS, "check", name, checked=rows, failed=count, measured=share)
    yield _duplicates(quality, found, demanded)
    compliant, least = (rows - found.refused) / rows if rows else 1.0, demanded.schema_compliance
    refused, passed = _judged(0.0, compliant >= least, found.refused, few, rows)
    yield Figure(
        "schema_compliance",
        "check",
        checked=rows,
        failed=found.refused,
        measured=compliant,
        allowed=min(least, 1 - refused),
        passed=passed,
    )
    yield Figure(
        FRESHNESS,
        "check",
        measured=age,
        allowed=float(demanded.freshness),
        passed=age < demanded.freshness,
    )
    average = found.total / rows if rows else float(BEST_SCORE)
    yield Figure(SCORE, "check", checked=rows, failed=found.flawed, measured=average)
    yield Figure(QUARANTINED, "check", checked=rows, failed=found.quarantined)


def _judged(limit: float, met: bool, failed: int, few: int, checked: int) -> tuple[float, bool]:
    """The share of the checked rows that may fail, and whether no more do.

    Args:
        limit: the share that may.
        met: whether no more than that share fails, or less where it is to be less.
        failed: how many rows fail.
        few: how many rows may, whatever their share is.
        checked: how many rows there are.
    """
    return max(limit, min(few / max(checked, 1), 1.0)), met or failed <= few


def _duplicates(quality: QualityRules, found: QualityTotals, demanded: QualitySettings) -> Figure:
    """Rows beyond the first of each key, or, without one, beyond the first that is the same."""
    if not quality.distinct:
        return _doubles(found.rows, 0, demanded, "proven")
    prints = np.sort(np.frombuffer(b"".join(found.prints), np.uint64))
    # The same rows have the same fingerprint, so a share of all fingerprints tells of all.
    again = int(np.count_nonzero(prints[1:] == prints[:-1])) * quality.distinct
    how = "rows" if quality.distinct == 1 else "estimated"
    return _doubles(found.rows, min(again, found.rows), demanded, how)


def _doubles(checked: int, failed: int, demanded: QualitySettings, evaluation: str) -> Figure:
    share = failed / max(checked, 1)
    # None at all is below every limit.
    met = share < demanded.duplicates
    allowed, passed = _judged(demanded.duplicates, met, failed, demanded.allow_rows, checked)
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


def against(figures: Sequence[Figure]) -> str:
    """What speaks against landing these rows, "" if nothing does: checks that are not met, and
    rules of severity high or critical that more rows break than may.

    Freshness is none of it: what took long to read would be no fresher for being left out.
    """
    bad = [
        figure
        for figure in figures
        if figure.passed is False
        and figure.rule != FRESHNESS
        and (figure.origin == "check" or figure.severity in _SEVERE)
    ]
    said = [_said(figure, figures) for figure in bad[:_NAMED]]
    if len(bad) > _NAMED:
        said.append(f"and {len(bad) - _NAMED} more")
    return "; ".join(said)


def emptiest(figures: Sequence[Figure]) -> str:
    """The columns with the most NULLs, with how many of their values are."""
    columns = [f for f in figures if f.rule == NULLS and f.column and f.failed]
    columns.sort(key=lambda figure: (-(figure.failed or 0), figure.column))
    said = [f"{f.column} ({f.failed:,} of {f.checked:,})" for f in columns[:_NAMED]]
    left = len(columns) - _NAMED
    return ", ".join([*said, *([f"and {left} more"] if left > 0 else [])])


def _said(figure: Figure, figures: Sequence[Figure]) -> str:
    what = f"{figure.failed:,} of {figure.checked:,}"
    if figure.kind != "check":
        return f"{what} rows break the rule {figure.rule!r}"
    if figure.rule == "schema_compliance":
        return f"{what} rows have values that Delta cannot hold"
    if figure.rule == "duplicates":
        return f"{what} rows are duplicates, not below {figure.allowed:.2%}"
    return (
        f"{what} values are NULL, not below {figure.allowed:.2%}, most of them in"
        f" {emptiest(figures)}"
    )


def enter(place: Place, graded: Iterable[Graded]) -> None:
    """Enters how tables fared into the book at ``place``.

    Raises:
        LakeError, LakeUnreachable: it cannot be written.
    """
    tables = list(graded)
    if not tables:
        return
    batch = tables[-1].stamp.batch_id
    writer.append_rows(place, book.COLUMNS, book.frame(tables), batch)
