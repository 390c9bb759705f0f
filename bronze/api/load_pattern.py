"""How a table is loaded, as `bronze check` reports it: pattern, cursor, deletes, key, schedule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from bronze.config.sections.tables import TableSettings
from bronze.config.settings import Settings
from bronze.model.stamp import IngestionMethod
from bronze.postgres.catalog.survey import Survey
from bronze.postgres.copy.incremental import XMIN
from bronze.printable import count
from bronze.tables.selection import Target

_READS: Mapping[IngestionMethod, str] = {
    "full_refresh": "each run reads all rows, and merges those that differ",
    "batch": "each run reads and merges the rows that may have changed since the last one",
    "micro_batch": "each run reads and merges the rows that may have changed since the last one",
    "streaming": "one copy of all rows, then changes from PostgreSQL's write-ahead log",
}
_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_OF_THE_CLOCK = re.compile(r"\d:\d\d|^\S+ \S+ \S+ \S+ \S+$")


@dataclass(frozen=True)
class LoadPattern:
    """How a table is loaded.

    ``reads`` says which rows a run reads, ``cursor`` is the column that shows which may have
    changed ("xmin" is PostgreSQL's own; "": the pattern has none) and ``cursor_note`` why it is
    that one. ``deletes`` says what becomes of rows that the source has deleted, ``key_note`` where
    the key is from. ``schedule`` is when the service has it due, ``sla`` is in seconds, None where
    the config has none. ``proposal`` is the pattern that `bronze init` would propose, where the
    config names none and it is another one.
    """

    pattern: IngestionMethod
    reads: str
    cursor: str
    cursor_note: str
    deletes: str
    key_note: str
    schedule: str
    sla: int | None
    priority: int
    proposal: str


def load_pattern(settings: Settings, target: Target, surveyed: Survey) -> LoadPattern:
    """How a table is loaded, by the config, its defaults and the survey of the source."""
    own = target.settings
    cursor = own.cursor if own.pattern in ("batch", "micro_batch") else ""
    return LoadPattern(
        pattern=own.pattern,
        reads=_READS[own.pattern],
        cursor=cursor,
        cursor_note=_cursor_note(own, surveyed) if cursor else "",
        deletes=_deletes(own),
        key_note=_key_note(target),
        schedule=_schedule(settings, own),
        sla=own.sla,
        priority=own.priority,
        proposal=_proposal(own, surveyed),
    )


def _cursor_note(own: TableSettings, surveyed: Survey) -> str:
    if own.cursor == XMIN:
        origin = "of the config" if "cursor" in own.model_fields_set else "the default"
        return f"{origin}; the transaction that wrote a row, so that no change is missed"
    parts = ["of the config"]
    for known in surveyed.cursors:
        if known.column == own.cursor:
            parts.append(
                "by its name it changes with each update"
                if known.sees == "updates"
                else "by its name it changes with inserts alone"
            )
            parts += [] if known.indexed else ["not indexed"]
    for attribute in surveyed.relation.attributes:
        if attribute.name == own.cursor and not attribute.not_null:
            parts.append("may be NULL")
    if own.overlap is not None:
        parts.append(f"overlap of {_span(own.overlap)}")
    return "; ".join(parts)


def _deletes(own: TableSettings) -> str:
    if own.deletes == "ignore":
        return "not looked for"
    if own.history:
        becomes = "their last version is closed"
    else:
        becomes = "marked as DELETED" if own.on_delete == "mark" else "removed"
    often = f", looked for every {_span(own.deletes)}" if isinstance(own.deletes, int) else ""
    return f"{becomes}{often}"


def _key_note(target: Target) -> str:
    relation, key = target.relation, target.key
    if not key:
        return relation.keyless
    origin = "of the config, " if target.settings.key else ""
    if relation.enforces(key):
        return f"{origin}unique in PostgreSQL"
    if relation.enforces_at_last(key):
        return f"{origin}unique in PostgreSQL when a transaction commits"
    return f"{origin}which PostgreSQL does not enforce to be unique"


def _schedule(settings: Settings, own: TableSettings) -> str:
    schedule = settings.schedule_of(own)
    is_of_the_clock = _OF_THE_CLOCK.search(schedule.text)
    return f"{schedule.text} {schedule.zone}" if is_of_the_clock else schedule.text


def _proposal(own: TableSettings, surveyed: Survey) -> str:
    if "pattern" in own.model_fields_set or surveyed.pattern == own.pattern:
        return ""
    cursor = f" with the cursor {surveyed.cursor}" if surveyed.cursor else ""
    return f"{surveyed.pattern}{cursor}: {surveyed.reason}"


def _span(seconds: int) -> str:
    """A time as the config may have it: "90 seconds", "1 hour"."""
    unit, name = next(one for one in _UNITS if seconds % one[0] == 0)
    return count(seconds // unit, name)
