"""Differences of tables whose source goes on changing: a row counts that stays different.

Bronze is as of its last load or batch, so that a comparison with the source also finds what has
changed since. Such a table is brought up to date and compared again. A row is different for good if
it was different each time, and Bronze has had the same of it each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bronze import stopping
from bronze.verify.comparison import Comparison
from bronze.verify.results import VerifiedTable
from bronze.verify.rows.row_diff import Identity

LOOKS = 3
Refresh = Callable[[Sequence[str]], None]
"""Brings tables (``schema.table``) up to date, at least to the moment of the call."""


def confirmed(
    first: Sequence[Comparison],
    refresh: Refresh,
    compare: Callable[[Sequence[str]], Sequence[Comparison]],
) -> list[VerifiedTable]:
    """The results of comparisons, without rows that differ only until the table is up to date.

    Args:
        first: the comparisons of all tables.
        refresh: brings tables up to date; a table that cannot be stays as it is.
        compare: compares tables with the source as it is now; given their labels.
    """
    results = {found.result.target: found.result for found in first}
    latest = {found.result.target: found for found in first if found.may_be_behind}
    lasting: dict[str, set[Identity] | None] = {
        target: found.rows if found.has_all_rows else None for target, found in latest.items()
    }
    for _ in range(LOOKS - 1):
        if not latest or stopping.is_requested():
            break
        labels = [found.result.table for found in latest.values()]
        refresh(labels)
        after = {found.result.target: found for found in compare(labels)}
        for target in list(latest):
            found = after.get(target, latest[target])
            results[target], lasting[target] = _narrowed(found, lasting[target])
            if results[target].status == "equal" or not found.may_be_behind:
                del latest[target]
            else:
                latest[target] = found
    return [results[found.result.target] for found in first]


def _narrowed(
    found: Comparison, before: set[Identity] | None
) -> tuple[VerifiedTable, set[Identity] | None]:
    """The result of another look, and the rows that have differed at each look so far; None if
    there are too many to tell.
    """
    if not found.may_be_behind or not found.has_all_rows:
        return found.result, None
    if before is None:
        return found.result, found.rows
    lasting = found.rows & before
    if lasting:
        return found.result, lasting
    result = replace(found.result, status="equal", missing=0, extra=0, different=0, rows=())
    return result, lasting
