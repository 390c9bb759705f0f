"""Whether the process has too little of something to begin more work of low priority."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from bronze.operate.tables.catalog import ServedTable
from bronze.operate.view import Resources, StreamFacts

_MEMORY_SHARE = 0.9
_LEAST_FREE = 10**9
_LEAST_FREE_SHARE = 0.01


def pressure(
    resources: Resources | None,
    streams: Iterable[tuple[StreamFacts, Iterable[ServedTable]]],
    now: datetime,
) -> str:
    """Why no run of low priority begins, "" if nothing speaks against it.

    Args:
        resources: what was measured last.
        streams: each stream with the tables that it follows.
        now: the time.
    """
    if resources and resources.memory > _MEMORY_SHARE * resources.memory_limit:
        return f"the process takes more than {_MEMORY_SHARE:.0%} of its memory"
    if resources and resources.disk_free is not None:
        least = min(_LEAST_FREE, _LEAST_FREE_SHARE * (resources.disk_total or 0))
        if resources.disk_free < least:
            return "the disk of the lake is nearly full"
    for facts, tables in streams:
        slas = [table.settings.sla for table in tables if table.settings.sla]
        # One that is down is not helped by waiting.
        if (
            slas
            and facts.as_of
            and not facts.error
            and (now - facts.as_of).total_seconds() > min(slas) / 2
        ):
            return f"the stream of {facts.source} has less than half of its time left"
    return ""
