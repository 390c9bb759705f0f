"""What the tables of a lake know of its audit log, by which the log is verified.

Every table in the lake is read, in whatever schema; see `bronze.delta.audit_mark`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import audit_mark, log, properties, store
from bronze.delta.audit_mark import Known
from bronze.errors import BronzeError
from bronze.model.locations import TableName
from bronze.printable import count

_MAX_NAMES = 5


@dataclass(frozen=True)
class Testimony:
    """What a lake's tables know.

    ``tables`` are the Bronze tables that were read, ``governance_tables`` the other tables of
    ``governance``; ``known`` is which record each table knows of, by the table's name;
    ``unreadable`` are tables that could not be read, with the reason.
    """

    tables: tuple[str, ...] = ()
    governance_tables: tuple[str, ...] = ()
    known: tuple[tuple[str, Known], ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()

    def vouching(self, log_id: str) -> dict[str, int]:
        """The tables that know of a record of a log, with the record's number."""
        return {name: known.sequence for name, known in self.known if known.log == log_id}

    @property
    def unbound(self) -> tuple[str, ...]:
        """The tables that know of no log, as no release that names records has written them."""
        bound = {name for name, _ in self.known}
        return tuple(name for name in self.tables if name not in bound)


def testimony_of(settings: Settings, audit_log: str) -> Testimony:
    """Reads all tables of the lake except the log, whose name in ``governance`` is ``audit_log``.

    Raises:
        LakeError, LakeUnreachable: the lake cannot be listed.
    """
    tables, governance_tables, unreadable = [], [], []
    known: list[tuple[str, Known]] = []
    for schema in store.folders(settings.place("", "")):
        folders = store.folders(settings.place(schema, ""))
        if schema == GOVERNANCE:
            folders = [folder for folder in folders if folder != audit_log]
        readings = log.reads([settings.place(schema, folder) for folder in folders])
        for folder, reading in zip(folders, readings, strict=True):
            name = TableName(schema, folder).label
            try:
                state = reading()
                if state is None:
                    continue
                if schema == GOVERNANCE:
                    governance_tables.append(name)
                elif {properties.TABLE, properties.AUDIT_LOGS} & set(state.properties):
                    tables.append(name)
                    known += [(name, record) for record in audit_mark.known_records(state)]
            except BronzeError as error:
                unreadable.append((name, error.message))
    return Testimony(tuple(tables), tuple(governance_tables), tuple(known), tuple(unreadable))


def faults(
    testimony: Testimony, log_id: str, hashes: Mapping[int, str], last: int
) -> Iterator[str]:
    """Where the tables contradict a log, in words.

    Args:
        testimony: what the tables know.
        log_id: the log's id, "" if it has none.
        hashes: the hashes of its records, by number.
        last: the number of the last record.
    """
    for name, reason in testimony.unreadable:
        yield f"table {name} could not be asked which records it knows of: {reason.rstrip('.')}"
    others: dict[str, list[str]] = {}
    for name, known in testimony.known:
        if known.log != log_id:
            others.setdefault(known.log, []).append(name)
        elif known.sequence > last:
            yield (
                f"table {name} knows of record {known.sequence}, and the log ends with record"
                f" {last}: the newest records were taken away"
            )
        elif not known.agrees(hashes.get(known.sequence, "")):
            yield f"record {known.sequence} is not the one that table {name} knows of"
    for other, names in others.items():
        verb = "was" if len(names) == 1 else "were"
        yield (
            f"{_list_names(names)} {verb} written under another audit"
            f" log, {other}: that log was deleted or replaced, or the tables were copied here"
        )


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"table{'' if len(names) == 1 else 's'} {', '.join(names[:_MAX_NAMES])}{more}"


def absence(testimony: Testimony, where: str) -> str:
    """What it means that there is no log, or one without records."""
    if testimony.tables or testimony.governance_tables:
        return (
            f"there is no record at {where}, beside"
            f" {count(len(testimony.tables), 'Bronze table')} and"
            f" {count(len(testimony.governance_tables), 'governance table')}: the log was deleted,"
            " emptied or never written"
        )
    return (
        f"there is no record at {where}, and no table in the lake: no command has ever written to"
        " it"
    )


def notes(
    testimony: Testimony, log_id: str, last: int, sealed: bool, escrowed: int = 0
) -> Iterator[str]:
    """What is not proven of a log without faults, in sentences.

    Args:
        testimony: what the tables know.
        log_id: the log's id, "" if it has none.
        last: the number of the last record.
        sealed: whether the config has a key.
        escrowed: the number of the newest record with a head in escrow.
    """
    known = max(testimony.vouching(log_id).values(), default=0)
    if not log_id:
        yield (
            "This log was begun before logs had an id: nothing proves that it is this lake's own."
            " The next command that records something gives it an id."
        )
    if testimony.unbound:
        yield (
            f"{len(testimony.unbound)} of {len(testimony.tables)} Bronze tables were last written"
            " before tables named records of the log, and prove nothing about it until their next"
            f" run: {', '.join(testimony.unbound[:_MAX_NAMES])}"
            f"{' …' if len(testimony.unbound) > _MAX_NAMES else '.'}"
        )
    if max(known, escrowed) < last:
        yield (
            f"Tables know of records up to {known}; only a head kept elsewhere ([audit] escrow, or"
            f" --head) proves that none is missing after record {last}."
        )
    if not sealed:
        yield (
            "The config has no [audit] key: whoever can write to the whole lake could rewrite both"
            " log and tables."
        )
