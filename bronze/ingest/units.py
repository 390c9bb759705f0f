"""Units of work: how a table's rows are divided among workers, within the memory of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import errors as pg

from bronze.config.settings import RunSettings, Settings
from bronze.delta.commit import Shape
from bronze.delta.log import State
from bronze.delta.partition import source_of
from bronze.errors import BronzeError, TableRefused
from bronze.model.columns import Column, RowKey
from bronze.model.locations import Origin
from bronze.model.stamp import Stamp
from bronze.model.units import Enrichment, Known, Unit, Weighing
from bronze.postgres import statement
from bronze.postgres.connection.connect import Connection, explain
from bronze.postgres.copy import row_sizes, splits
from bronze.postgres.copy.snapshot import Snapshot
from bronze.postgres.copy.splits import Slice
from bronze.rows.metadata import COMMITTED
from bronze.tables import evolution
from bronze.tables.evolution import Settled
from bronze.tables.selection import Target

# Measured: what the process takes with all its libraries, what a reader takes for the rows that
# it is hashing and encoding, and how many bytes a slice takes for each of its bytes on disk.
_BASE = 320 * 10**6
_READER = 24 * 10**6
# Now and then all readers are at their most: so many as have this much room beside the libraries.
_LIBRARIES = 150 * 10**6
_MOST = 190 * 10**6
_GROWTH = 4
_SLICE = 12 * 2**20
_FILE = 128 * 2**20
_UNITS_PER_READER = 3
# Measured: how many times its bytes a row of large values takes at most, on its way from the source
# or the stream into a file, and from one file into another; and a change while it is received.
COPIES = 16
_RECEIVED = 5
_LEAST_CHANGE = 4 * 2**20
# Rows to merge that take no more than this are given back as they are, which saves a file: and all
# units of a table together give back no more than there is room for.
_MOST_FEW = 4 * 2**20
_LEAST_FEW = 2**16
# Keys alone take so much less room than rows.
_KEYS_GROWTH = 4
# A fingerprint, and whether it was seen: by the worker, and here.
_KNOWN_ROW = 10
# A version of a row, while the last ones are found.
_VERSION = 100
# The key and hash of a row that is named, while both sides are held against each other.
_NAMED_ROW = 300


@dataclass(frozen=True)
class Assignment:
    """One table of a run: what all its units have in common."""

    target: Target
    held: Snapshot
    origin: Origin
    stamp: Stamp
    settings: Settings
    readers: int

    @property
    def run(self) -> RunSettings:
        """How the run works."""
        return self.settings.run


def asked(given: Assignment, question: Any) -> Any:
    """Asks in the snapshot's own transaction, which an error must not end."""
    holder: Connection = given.held.holder
    try:
        holder.execute("SAVEPOINT plan")
        answer = question(holder)
        holder.execute("RELEASE SAVEPOINT plan")
    except psycopg.Error as error:
        mine: BronzeError = explain(error, given.origin, given.target.label)
        if not mine.retry:
            holder.execute("ROLLBACK TO SAVEPOINT plan; RELEASE SAVEPOINT plan")
        raise mine from error
    return answer


def of_rows(
    given: Assignment,
    settled: Settled,
    shape: Shape,
    key: RowKey,
    where: str,
    against: State | None,
    inline: bool,
    enrichment: Enrichment,
    doubting: bool = False,
) -> list[Unit]:
    """The units that read the rows for which ``where`` is true; with ``doubting`` the rows of the
    Bronze table have to be as they were written.
    """
    run, relation = given.run, given.target.relation
    known: list[Known | None] = [None]
    memory = run.memory
    if against is not None:
        known = list(_known(given, shape, key.names, (), against))
        if doubting:
            form = evolution.form(against.columns, against.properties, against.partition)
            known = [replace(one, form=form) for one in known if one]
        memory = _beside_known(run.memory)
    groups = grouped(given, memory, key.source_names)
    table = statement.quoted(relation.schema, relation.name)
    columns = settled.columns
    first = _unit(given, settled, shape, key, columns, statement.select(columns, table))
    weighing = weighed(given, columns, key)
    return [
        replace(
            first,
            number=number * len(groups) + i,
            slices=tuple(_both(part.where, where) for part in group),
            estimate=sum(part.size for part in group),
            known=share,
            inline=inline,
            few=few(run, len(known) * len(groups)),
            # Without a key rows cannot be compared one by one, but all of them at once.
            summed=not key.columns,
            weighing=weighing,
            enrichment=enrichment,
        )
        for number, share in enumerate(known)
        for i, group in enumerate(groups)
    ]


def few(run: RunSettings, units: int) -> int:
    """The bytes of rows that each of so many units may give back as they are."""
    return max(_LEAST_FEW, min(_MOST_FEW, _room(run) // 2 // max(units, 1)))


def weighed(given: Assignment, columns: Sequence[Column], key: RowKey) -> Weighing | None:
    """How the rows of a table are weighed before they are read, None where they need not be."""
    held, relation = given.held, given.target.relation
    names = [column.name for column in columns if column.name]
    weight = row_sizes.weight(relation, names)
    if not (weight and splits.paged(relation, held.version) and held.name):
        return None
    if not asked(given, lambda holder: row_sizes.needed(holder, relation, names)):
        return None
    hidden = any(column.protect for column in key.columns)
    by = () if hidden else key.columns
    told = [f"{statement.literal(column.name)}::text, {column.text}" for column in by]
    return Weighing(
        table=statement.quoted(relation.schema, relation.name),
        weight=weight,
        key=f"json_build_object({', '.join(told)})::text" if told else "'at ' || ctid::text",
        size=min(_SLICE, heaviest(given.run, given.readers)),
        heaviest=heaviest(given.run, given.readers),
        copies=COPIES,
        # A run that has enough for the row has enough for other readers beside it.
        rest=rest(given.run.workers),
    )


def heaviest(run: RunSettings, readers: int) -> int:
    """How many bytes a row's values may have; one such row at a time is taken."""
    return max(_LEAST_CHANGE, (run.memory - rest(readers)) // COPIES)


def largest_change(run: RunSettings, readers: int) -> int:
    """How many bytes a change in the stream may have, as another one may be on its way."""
    return max(_LEAST_CHANGE, (run.memory - rest(readers)) // (COPIES + _RECEIVED))


def rest(readers: int) -> int:
    """The bytes that are taken beside a large row, with so many readers."""
    return _LIBRARIES + (readers - 1) * _MOST


def grouped(given: Assignment, memory: int, key: Sequence[str]) -> list[list[Slice]]:
    """The slices of a table, in groups that are work for one reader each. ``key`` are the source's
    names.
    """
    whole = splits.size_of(given.target.relation)
    per_slice, _ = _sizes(whole, memory, given.readers)
    parts = _slices(given, per_slice, key)
    _, per_file = _sizes(sum(part.size for part in parts), memory, given.readers)
    return splits.packed(parts, per_file)


def of_keys(
    given: Assignment,
    settled: Settled,
    shape: Shape,
    key: RowKey,
    state: State,
    start: int,
    enrichment: Enrichment,
) -> list[Unit]:
    """The units that only see which keys are still there."""
    relation = given.target.relation
    columns = key.columns
    per_slice, per_file = _sizes(
        splits.size_of(relation), _beside_known(given.run.memory), given.readers
    )
    parts = _slices(given, per_slice * _KEYS_GROWTH, key.source_names)
    groups = splits.packed(parts, per_file * _KEYS_GROWTH)
    table = statement.quoted(relation.schema, relation.name)
    first = _unit(given, settled, shape, key, columns, statement.select(columns, table))
    return [
        replace(
            first,
            number=start + number * len(groups) + i,
            slices=tuple(part.where for part in group),
            estimate=sum(part.size for part in group) // _KEYS_GROWTH,
            known=share,
            keys_only=True,
            enrichment=enrichment,
        )
        for number, share in enumerate(_known(given, shape, key.names, key.names, state))
        for i, group in enumerate(groups)
    ]


def _unit(
    given: Assignment,
    settled: Settled,
    shape: Shape,
    key: RowKey,
    columns: tuple[Column, ...],
    query: str,
) -> Unit:
    return Unit(
        number=0,
        table=given.target.label,
        origin=given.origin,
        session=given.held.session(given.origin),
        query=query,
        slices=(),
        columns=columns,
        key=key,
        stats=shape.stats,
        stamp=given.stamp,
        place=given.target.place,
        estimate=0,
        base=settled.base,
        dates_of=source_of(shape.partition) if shape.partition else None,
        history=given.target.settings.history,
        streamed=COMMITTED in dict(shape.columns),
    )


def _both(one: str, other: str) -> str:
    return one if other == splits.WHOLE else f"{one} AND {other}"


def _known(
    given: Assignment, shape: Shape, key: tuple[str, ...], by: tuple[str, ...], state: State
) -> list[Known]:
    """What the table is known by, in as many shares as the memory asks for."""
    rows = sum(max(file.rows, 0) for file in state.files)
    room = _room(given.run)
    history = given.target.settings.history
    if history:
        fitting_history(given, rows)
    shares = 1 if history else max(1, -(-rows * _KNOWN_ROW // room))
    # Other digits in each run: what two rows share by chance in one, they do not in the next.
    offset = int(given.stamp.batch_id[-1], 16)
    whole = Known(
        place=given.target.place,
        version=state.version,
        files=state.files,
        layout=shape.columns,
        key=by,
        offset=offset,
        shares=shares,
        versions=key if history else (),
    )
    return [replace(whole, share=share) for share in range(shares)]


def _room(run: RunSettings) -> int:
    """The bytes that what is known of a table may take."""
    return (run.memory - _BASE) // 4


def fitting(given: Assignment, state: State | None) -> None:
    """Makes sure, as far as sizes tell, that a table can be taken within the memory.

    Raises:
        TableRefused: its history has too many versions, or it is too large for one statement where
            only one is of one moment.
    """
    if given.held.name is None:
        _whole(given)
    if state is not None and given.target.settings.history:
        fitting_history(given, sum(max(file.rows, 0) for file in state.files))


def fitting_history(given: Assignment, rows: int) -> None:
    """Makes sure that the last ones of so many versions can be found within the memory.

    Raises:
        TableRefused: they are too many.
    """
    if rows * _VERSION > _room(given.run):
        raise TableRefused(
            f"The history {given.target.name} has {rows:,} versions, too many for the memory.",
            hint=f"Raise [run] memory: it takes about {rows * _VERSION * 4 // 10**6} MB more.",
            table=given.target.label,
        )


def shares(run: RunSettings, rows: int) -> int:
    """In how many rounds so many rows are named, within the memory."""
    return max(1, -(-rows * _NAMED_ROW // _room(run)))


def _beside_known(memory: int) -> int:
    return memory - (memory - _BASE) // 2


def readers(run: RunSettings, slots: int) -> int:
    """How many units may run at once: as many as the workers, the source and the memory allow."""
    fitting = (run.memory - _LIBRARIES) // _MOST
    return max(1, min(run.workers, slots, fitting))


def each(run: RunSettings) -> int:
    """The bytes that one of the tasks may take which rewrite files."""
    return (run.memory - _BASE) // readers(run, run.workers)


def _sizes(whole: int, memory: int, readers: int) -> tuple[int, int]:
    """The bytes of the source in a slice and in a file, for a table of ``whole`` bytes.

    All files are alike, and their number is a multiple of the readers', so that no reader is left
    without work at the end.
    """
    each = (memory - _BASE) // readers - _READER
    largest = max(2**20, min(_SLICE, each // _GROWTH))
    if whole <= largest:
        return largest, _FILE
    rounds = max(_UNITS_PER_READER, -(-whole // (_FILE * readers)))
    per_file = -(-whole // (rounds * readers))
    per_slice = -(-per_file // -(-per_file // largest))
    # Pages do not divide evenly: a little more room keeps the last one out of a file of its own.
    return per_slice, per_file + per_slice // 2


def _slices(given: Assignment, size: int, key: Sequence[str]) -> list[Slice]:
    held, relation = given.held, given.target.relation
    if held.name is None:
        return [_whole(given)]

    def split(holder: Connection) -> list[Slice]:
        return splits.slices(holder, relation, held.version, size, key)

    try:
        return list(asked(given, split))
    except TableRefused as error:
        if error.sqlstate not in _NO_BOUNDS:
            raise
        return [Slice(splits.WHOLE, size)]


# A type without an order, such as json; or bounds whose texts cannot be had.
_NO_BOUNDS = (
    pg.UndefinedFunction.sqlstate,
    pg.UndefinedObject.sqlstate,
    pg.CharacterNotInRepertoire.sqlstate,
    pg.UntranslatableCharacter.sqlstate,
)


def _whole(given: Assignment) -> Slice:
    # Without a shared snapshot only one statement sees one state.
    relation, memory = given.target.relation, given.run.memory // given.readers
    size = splits.size_of(relation)
    if size * _GROWTH > memory:
        raise TableRefused(
            f"Table {relation.label} is too large to be read by one statement, which"
            ' consistency = "per-table" asks for.',
            hint=f"Raise [run] memory: it takes about {size * _GROWTH // 10**6} MB for a worker.",
            table=relation.label,
        )
    return Slice(splits.WHOLE, size)
