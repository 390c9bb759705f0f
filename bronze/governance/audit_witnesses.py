"""What the tables of a lake say of its audit log: which of its records they know of.

Every table in the lake is asked, whatever schema it lies in; see `bronze.delta.audit_mark`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import audit_mark, log, properties, store
from bronze.delta.audit_mark import Known
from bronze.errors import BronzeError

_NAMED = 5


@dataclass(frozen=True)
class Testimony:
    """What a lake's tables say.

    ``tables`` are the Bronze tables that were asked, ``books`` the tables of ``governance`` beside
    the log; ``known`` is what each table knows, by name; what could not be asked is in ``silent``,
    with the reason.
    """

    tables: tuple[str, ...] = ()
    books: tuple[str, ...] = ()
    known: tuple[tuple[str, Known], ...] = ()
    silent: tuple[tuple[str, str], ...] = ()

    def vouching(self, of: str) -> dict[str, int]:
        """The tables that know a record of one log, and its number."""
        return {name: known.sequence for name, known in self.known if known.log == of}

    @property
    def unbound(self) -> tuple[str, ...]:
        """The tables that know of no log: they were last written before tables named records."""
        bound = {name for name, _ in self.known}
        return tuple(name for name in self.tables if name not in bound)


def testimony_of(settings: Settings, own: str) -> Testimony:
    """Asks all tables of the lake but the log itself, whose name in ``governance`` is ``own``.

    Raises:
        LakeError, LakeUnreachable: the lake cannot be listed.
    """
    tables, books, silent = [], [], []
    known: list[tuple[str, Known]] = []
    for schema in store.folders(settings.place("", "")):
        for folder in store.folders(settings.place(schema, "")):
            name = f"{schema}.{folder}"
            if schema == GOVERNANCE and folder == own:
                continue
            try:
                state = log.read(settings.place(schema, folder))
                if state is None:
                    continue
                if schema == GOVERNANCE:
                    books.append(name)
                elif {properties.TABLE, properties.AUDIT_LOGS} & set(state.properties):
                    tables.append(name)
                    known += [(name, one) for one in audit_mark.known_records(state)]
            except BronzeError as error:
                silent.append((name, error.message))
    return Testimony(tuple(tables), tuple(books), tuple(known), tuple(silent))


def faults(told: Testimony, own: str, hashes: Mapping[int, str], last: int) -> Iterator[str]:
    """What the tables say against a log, in words.

    Args:
        told: what they say.
        own: the log's id, "" where it has none.
        hashes: its records' hashes, by number.
        last: the number of the last one.
    """
    for name, reason in told.silent:
        yield f"table {name} could not be asked which records it knows of: {reason.rstrip('.')}"
    others: dict[str, list[str]] = {}
    for name, known in told.known:
        if known.log != own:
            others.setdefault(known.log, []).append(name)
        elif known.sequence > last:
            yield (
                f"table {name} knows of record {known.sequence}, and the log ends with record"
                f" {last}: the newest records were taken away"
            )
        elif not known.agrees(hashes.get(known.sequence, "")):
            yield f"record {known.sequence} is not the one that table {name} knows of"
    for other, names in others.items():
        yield (
            f"{_listed(names)} {'was' if len(names) == 1 else 'were'} written under another audit"
            f" log, {other}: that log was deleted or replaced, or the tables were copied here"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"table{'' if len(names) == 1 else 's'} {', '.join(names[:_NAMED])}{more}"


def absence(told: Testimony, where: str) -> str:
    """What it means that there is no log, or one without records."""
    if told.tables or told.books:
        return (
            f"there is no record at {where}, beside {len(told.tables)} Bronze tables and"
            f" {len(told.books)} of governance: the log was deleted, emptied or never written"
        )
    return f"there is no record at {where}, and no table in the lake: nothing was ever done there"


def notes(told: Testimony, own: str, last: int, keyed: bool) -> Iterator[str]:
    """What cannot be proven of a log in which no fault was found, in sentences."""
    vouching = told.vouching(own)
    known = max(vouching.values(), default=0)
    if not own:
        yield (
            "This log was begun before logs had an id: that it is this lake's own is not proven."
            " The next command that records something gives it one."
        )
    if told.unbound:
        yield (
            f"{len(told.unbound)} of {len(told.tables)} Bronze tables were last written before"
            " tables named records of the log, and prove nothing of it; their next run changes"
            f" that: {', '.join(told.unbound[:_NAMED])}"
            f"{' …' if len(told.unbound) > _NAMED else '.'}"
        )
    if known < last:
        yield (
            f"Tables know of records up to {known}; that none is missing after record {last} is"
            " proven by a head kept elsewhere alone (--head)."
        )
    if not keyed:
        yield (
            "The config has no [audit] key: whoever can write all of the lake could make log and"
            " tables anew."
        )
