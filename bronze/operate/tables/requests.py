"""What operators ask of tables: to pause and resume them, to run them now, to close breakers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bronze.config.settings import Settings
from bronze.delta import log, store
from bronze.delta.log import State
from bronze.errors import BronzeError, ConfigError
from bronze.governance.tables.controls import Action, ControlRecord
from bronze.operate import controls
from bronze.operate.history import History
from bronze.operate.tables import catalog
from bronze.operate.tables.catalog import ServedTable
from bronze.operate.view import TableLike


@dataclass(frozen=True)
class TableRequests:
    """What is asked of one table: the ``pause`` in force, when it was last to run ``now``, and when
    its breaker was last to be closed.
    """

    pause: ControlRecord | None = None
    now: datetime | None = None
    reset: datetime | None = None


def of_tables(
    tables: Iterable[TableLike], records: Iterable[ControlRecord], now: datetime
) -> dict[str, TableRequests]:
    """What is asked of tables, by the keys of those of which something is."""
    by_subject: dict[str, list[ControlRecord]] = {}
    for record in records:
        by_subject.setdefault(record.subject, []).append(record)
    found = {}
    for table in tables if by_subject else ():
        about = [r for name in dict.fromkeys(table.names) for r in by_subject.get(name, ())]
        if about:
            about.sort(key=lambda record: (record.requested, record.control_id))
            found[table.key] = _asked(about, now)
    return found


def _asked(records: Iterable[ControlRecord], now: datetime) -> TableRequests:
    """What is asked of a table, by the requests about it in their order."""
    pause, asked, reset = None, None, None
    for record in records:
        if record.action == "pause":
            pause = record
        elif record.action == "resume":
            pause = None
        elif record.action == "now":
            asked = record.requested
        elif record.action == "reset":
            reset = record.requested
    if pause and pause.until and pause.until <= now:
        pause = None
    return TableRequests(pause, asked, reset)


def latest_state(settings: Settings, known: State | None) -> State | None:
    """The table of requests as it is now, None if there is none; to know by one request to the
    store whether there is anything new.

    Args:
        settings: the config.
        known: what the last call has returned.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    place = controls.place(settings)
    if known is not None:
        return log.refresh(known)
    return log.read(place) if store.listing(place, "_delta_log") else None


def request(
    settings: Settings,
    action: Action,
    tables: Sequence[str],
    *,
    until: datetime | None = None,
    reason: str = "",
) -> list[ControlRecord]:
    """Asks something of tables, with a record of each in the audit log.

    Args:
        settings: the config.
        action: what is asked.
        tables: their names.
        until: when a pause ends, if it does.
        reason: why.

    Raises:
        ConfigError: there is no such table, or the end of a pause is not in the future.
        LakeError, LakeUnreachable: it cannot be written.
    """
    if until is not None and until <= datetime.now(UTC):
        raise ConfigError(f"The pause would have ended at {until.isoformat()} already.")
    if action == "pause" and not reason.strip():
        raise ConfigError("A pause needs a reason.", hint="Say it with --reason.")
    known = known_tables(settings)
    chosen = [catalog.named(known, name) for name in tables]
    if action == "now":
        for table in chosen:
            if table.is_streamed:
                raise ConfigError(
                    f"Table {table.label} is streamed: its changes are applied all the time.",
                    hint="`bronze now` is for tables of the other patterns.",
                )
    return [
        controls.request(settings, action, key, until=until, reason=reason)
        for key in dict.fromkeys(table.key for table in chosen)
    ]


def known_tables(settings: Settings) -> list[ServedTable]:
    """The tables of all sources, from their catalogs; of those that cannot be reached, the tables
    that the lake knows.

    Raises:
        ConfigError: a schema of the config does not exist.
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    tables: list[ServedTable] = []
    known: tuple[ServedTable, ...] | None = None
    for source in settings.source:
        try:
            tables += catalog.listed(settings, source)
        except ConfigError:
            raise
        except BronzeError:
            if known is None:
                history = History(settings)
                history.refresh()
                names = [(table.source, table.label) for table in history.tables.values()]
                known = catalog.recorded(settings, names)
            tables += [table for table in known if table.source == source]
    return tables
