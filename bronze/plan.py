"""What a run does with one table: how its rows are found, read and compared, in units of work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import psycopg
from psycopg import errors as pg

from bronze import drift, prepare
from bronze.config import RunSettings
from bronze.drift import Settled
from bronze.enrich.stamp import METADATA
from bronze.errors import BronzeError, TableRefused
from bronze.model import Column, Known, Origin, Stamp, Unit
from bronze.prepare import Target
from bronze.source import increment, slices, statement
from bronze.source.catalog import Relation
from bronze.source.connect import Connection, explain
from bronze.source.slices import Slice
from bronze.source.snapshot import Snapshot
from bronze.table import log
from bronze.table.commit import Position, Shape, transaction
from bronze.table.log import State
from bronze.table.statistics import SAFE

# Measured: what the process takes with all its libraries, what a reader takes for the rows that
# it is hashing and encoding, and how many bytes a slice takes for each of its bytes on disk.
_BASE = 320 * 10**6
_READER = 24 * 10**6
_GROWTH = 4
_SLICE = 12 * 2**20
_FILE = 128 * 2**20
_UNITS_PER_READER = 3
# Keys alone take so much less room than rows.
_KEYS_GROWTH = 4
# A fingerprint, and whether it was seen: by the worker, and here.
_KNOWN_ROW = 10

Mode = Literal["load", "compare", "changes"]
"""How rows become the table's: all of them replace what is there; all are held against it and
only differences land; or only those are read that may have changed."""


@dataclass(frozen=True)
class Plan:
    """What a run does with one table.

    ``key`` are target names, none where rows cannot be told apart. ``state`` is the Bronze table
    as it was found, ``reached`` the position that it is to hold.
    """

    target: Target
    mode: Mode
    settled: Settled
    key: tuple[str, ...]
    shape: Shape
    state: State | None
    reached: Position
    units: tuple[Unit, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Frame:
    """What all units of a table have in common, and the means to make them."""

    target: Target
    held: Snapshot
    origin: Origin
    stamp: Stamp
    run: RunSettings
    readers: int

    def mark(self, name: str) -> str:
        """The name of a mark of this very table (another one may get its name, not its oid)."""
        return f"{self.target.relation.oid}/{name}"

    def marked(self, state: State | None, name: str) -> int | None:
        """The value of a mark in the Bronze table."""
        if state is None:
            return None
        return state.position(f"{transaction(self.held.timeline)}/{self.mark(name)}")


def plan_table(
    target: Target, held: Snapshot, origin: Origin, stamp: Stamp, run: RunSettings, readers: int
) -> Plan:
    """The plan of one table.

    Raises:
        TableRefused: the table cannot be read, or its columns cannot be held.
        SourceError: the snapshot's connection failed.
        LakeError: the Bronze table is none that we can write.
    """
    frame = _Frame(target, held, origin, stamp, run, readers)
    found = prepare.columns(target)
    state = log.read(target.place)
    if state is None:
        settled = Settled(found, len(found))
    else:
        state.writable()
        _same_table(target, state)
        settled = drift.settled(found, state.columns, state.properties, target.relation)
    key, notes = _key(frame, settled)
    shape = _shape(frame, settled, key)
    mode, where, why = _mode(frame, state, settled, key)
    marks, looking = _marks(frame, state, mode)
    units = _units(frame, settled, shape, key, mode, where, state)
    if looking and mode == "changes" and state is not None:
        units += _key_units(frame, settled, shape, key, state, len(units))
    reached = Position(held.timeline, held.position, tuple(marks))
    return Plan(
        target, mode, settled, key, shape, state, reached, tuple(units), settled.notes + notes + why
    )


def _same_table(target: Target, state: State) -> None:
    """Two tables of the source must not take turns in one Bronze table."""
    known = state.properties
    names = {known.get(drift.TABLE, target.label), known.get(drift.OID, "")}
    if not names & {target.label, str(target.relation.oid)}:
        raise TableRefused(
            f"The Bronze table {target.name} holds {known[drift.TABLE]}, not {target.label}.",
            hint="Give this one another target, or move that Bronze table away.",
            table=target.label,
        )


def _key(frame: _Frame, settled: Settled) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The key's target names, and why there is none where the source has one.

    Raises:
        TableRefused: rows of the source share a key, or have none.
    """
    target = frame.target
    relation = target.relation
    names = tuple(target.settings.key or relation.key)
    columns = [column for name in names for column in settled.columns if column.name == name]
    if not columns:
        return (), ()
    table = statement.quoted(relation.schema, relation.name)
    rejecting = " OR ".join(f"({c.reject}) IS TRUE" for c in columns if c.reject)
    lists = [c.name for c in columns if c.kind.name == "array"]
    if lists:
        return (), (f"column {lists[0]} of the key is an array: rows cannot be told apart by it",)
    if rejecting and _true(frame, f"SELECT EXISTS (SELECT FROM {table} WHERE {rejecting})"):  # noqa: S608
        said = "the key has values that Delta cannot hold: rows cannot be told apart by it"
        return (), (said,)
    if _enforced(relation, names):
        return tuple(c.target for c in columns), ()
    quoted = [statement.quoted(name) for name in names]
    missing = " OR ".join(f"{name} IS NULL" for name in quoted)
    checks = {
        "no value in": f"SELECT EXISTS (SELECT FROM {table} WHERE {missing})",  # noqa: S608
        "the same value of": f"SELECT EXISTS (SELECT FROM {table} GROUP BY {', '.join(quoted)}"  # noqa: S608
        " HAVING count(*) > 1)",
    }
    for what, query in checks.items():
        if _true(frame, query):
            raise TableRefused(
                f"Rows of table {target.label} have {what} the key {', '.join(names)}.",
                hint="Name columns that are unique and never NULL:"
                f" [tables.{prepare.toml(relation.name)}] key = […]",
                table=target.label,
            )
    return tuple(c.target for c in columns), ()


def _enforced(relation: Relation, names: Sequence[str]) -> bool:
    """Whether PostgreSQL itself sees to it that the key is unique; heirs have keys of their own."""
    alone = relation.kind == "partitioned" or (
        relation.kind == "table" and len(relation.heaps) == 1
    )
    return alone and bool(relation.key) and set(relation.key) <= set(names)


def _true(frame: _Frame, query: str) -> bool:
    row: Any = _asked(frame, lambda holder: holder.execute(query).fetchone())
    return bool(row[0])


def _asked(frame: _Frame, question: Any) -> Any:
    """Asks in the snapshot's own transaction, which an error must not end."""
    holder: Connection = frame.held.holder
    try:
        holder.execute("SAVEPOINT plan")
        answer = question(holder)
        holder.execute("RELEASE SAVEPOINT plan")
    except psycopg.Error as error:
        mine: BronzeError = explain(error, frame.origin, frame.target.label)
        if not mine.retry:
            holder.execute("ROLLBACK TO SAVEPOINT plan; RELEASE SAVEPOINT plan")
        raise mine from error
    return answer


def _shape(frame: _Frame, settled: Settled, key: tuple[str, ...]) -> Shape:
    target = frame.target
    layout = (*((column.target, column.kind) for column in settled.columns), *METADATA)
    wanted = {*key, *(_cursor(target, settled) or ())}
    stats = tuple(name for name, kind in layout if name in wanted and kind.name in SAFE)
    notes = {
        drift.SOURCE: target.source,
        drift.TABLE: target.label,
        drift.OID: str(target.relation.oid),
        drift.KEY: json.dumps(key),
        drift.BASE: str(settled.base),
        drift.NUMBERS: drift.numbers(settled.columns, target.relation),
    }
    return Shape(layout, stats, notes=tuple(notes.items()))


def _cursor(target: Target, settled: Settled) -> tuple[str, ...] | None:
    name = target.settings.cursor
    if target.settings.pattern == "full_refresh" or name == increment.XMIN:
        return None
    return tuple(column.target for column in settled.columns if column.name == name)


def _mode(
    frame: _Frame, state: State | None, settled: Settled, key: tuple[str, ...]
) -> tuple[Mode, str, tuple[str, ...]]:
    """How the table is taken, the condition for changes, and what to say about it."""
    own, relation = frame.target.settings, frame.target.relation
    if own.pattern == "full_refresh":
        return ("load" if state is None or not key else "compare"), slices.WHOLE, ()
    if not key:
        raise TableRefused(
            f'Table {relation.label} has no key, which the pattern "{own.pattern}" needs.',
            hint="Name columns that are unique and never NULL:"
            f' [tables.{prepare.toml(relation.name)}] key = […]; or use pattern = "full_refresh".',
            table=relation.label,
        )
    refused = unfit(relation, own.cursor, own.overlap, frame.held.since.visible)
    if refused:
        raise refused
    if state is None:
        return "load", slices.WHOLE, ()
    why = _why_all(frame, state, settled, key)
    if why:
        return "compare", slices.WHOLE, (f"all rows are compared: {why}",)
    where = _where(frame, state)
    if where is None:
        return "compare", slices.WHOLE, ("all rows are compared: the last run was too long ago",)
    return "changes", where, ()


def _why_all(frame: _Frame, state: State, settled: Settled, key: tuple[str, ...]) -> str:
    """Why changes alone would not do."""
    known = state.properties
    if settled.notes:
        return "its columns have changed"
    if known.get(drift.OID) != str(frame.target.relation.oid):
        return "the table was made anew in the source"
    if known.get(drift.KEY) != json.dumps(key):
        return "its key has changed"
    if frame.marked(state, _mark_name(frame.target)) is None:
        return "the Bronze table has no position to go on from"
    return ""


def _mark_name(target: Target) -> str:
    name = target.settings.cursor
    return name if name == increment.XMIN else f"cursor/{name}"


def _where(frame: _Frame, state: State) -> str | None:
    own = frame.target.settings
    mark = frame.marked(state, _mark_name(frame.target))
    if mark is None:
        return None
    if own.cursor == increment.XMIN:
        return increment.by_xmin(mark, frame.held)
    kind = _type_of(frame.target.relation, own.cursor)
    return increment.by_cursor(own.cursor, kind, mark, frame.held.since.zone)


def _type_of(relation: Relation, column: str) -> str:
    return next((a.type.name for a in relation.attributes if a.name == column), "")


def unfit(
    relation: Relation, cursor: str, overlap: int | None, visible: bool
) -> TableRefused | None:
    """Why a table cannot be taken by this cursor, None where it can.

    Args:
        relation: the source's table.
        cursor: "xmin", or a column.
        overlap: seconds, None where the config gives none.
        visible: whether the role is shown since when others' transactions are open.
    """

    def refused(message: str, hint: str) -> TableRefused:
        return TableRefused(message, hint=hint, table=relation.label)

    if cursor == increment.XMIN:
        if relation.kind in ("view", "foreign table"):
            return refused(
                f"{relation.label} is a {relation.kind}, whose rows have no xmin.",
                'Name a timestamp column as cursor, or use pattern = "full_refresh".',
            )
        return None
    kind = _type_of(relation, cursor)
    if kind not in increment.CURSORS:
        what = f"is of type {kind}" if kind else "is not there"
        return refused(
            f"The cursor {cursor} of table {relation.label} {what}; it has to be a column of type"
            f" {', '.join(increment.CURSORS)}.",
            'Leave cursor out: "xmin" needs no column.',
        )
    if overlap is None and kind in increment.ZONELESS:
        return refused(
            f"The cursor {cursor} of table {relation.label} has no time zone, so nobody can tell"
            " which of its values are earlier than a transaction that is still open.",
            'Give an overlap, such as "1h", that is longer than your transactions; or leave cursor'
            " out.",
        )
    if overlap is None and not visible:
        return refused(
            f"The cursor {cursor} of table {relation.label} needs to know since when transactions"
            " are open, which the role may not see.",
            'GRANT pg_read_all_stats to it; or give an overlap, such as "1h", that is longer than'
            " your transactions.",
        )
    return None


def _marks(frame: _Frame, state: State | None, mode: Mode) -> tuple[list[tuple[str, int]], bool]:
    """The marks to leave, and whether vanished rows are to be looked for."""
    own, since = frame.target.settings, frame.held.since
    marks = [(frame.mark(increment.XMIN), frame.held.horizon)]
    if own.pattern == "full_refresh":
        return marks, True
    if own.cursor != increment.XMIN:
        name = _mark_name(frame.target)
        mark = increment.watermark(since, own.overlap, frame.marked(state, name))
        marks += [] if mark is None else [(frame.mark(name), mark)]
    now = int(frame.stamp.loaded_at.timestamp())
    looked = frame.marked(state, "deletes")
    due = own.deletes == "detect" or (
        isinstance(own.deletes, int) and (looked is None or now - looked >= own.deletes)
    )
    if due or mode != "changes":
        marks.append((frame.mark("deletes"), now))
    return marks, due


def _units(
    frame: _Frame,
    settled: Settled,
    shape: Shape,
    key: tuple[str, ...],
    mode: Mode,
    where: str,
    state: State | None,
) -> list[Unit]:
    """The units that read rows."""
    run, relation = frame.run, frame.target.relation
    known: list[Known | None] = [None]
    memory = run.memory
    if mode == "compare" and state is not None:
        known = list(_known(frame, shape, (), state))
        memory = _beside_known(run.memory)
    per_slice, _ = _sizes(slices.size_of(relation), memory, frame.readers)
    parts = _slices(frame, per_slice, key)
    _, per_file = _sizes(sum(part.size for part in parts), memory, frame.readers)
    groups = slices.packed(parts, per_file)
    table = statement.quoted(relation.schema, relation.name)
    columns = settled.columns
    first = _unit(frame, settled, shape, key, columns, statement.select(columns, table))
    return [
        replace(
            first,
            number=number * len(groups) + i,
            slices=tuple(_both(part.where, where) for part in group),
            estimate=sum(part.size for part in group),
            known=share,
            inline=mode != "load",
        )
        for number, share in enumerate(known)
        for i, group in enumerate(groups)
    ]


def _key_units(
    frame: _Frame,
    settled: Settled,
    shape: Shape,
    key: tuple[str, ...],
    state: State,
    start: int,
) -> list[Unit]:
    """The units that only see which keys are still there."""
    relation = frame.target.relation
    columns = tuple(column for name in key for column in settled.columns if column.target == name)
    per_slice, per_file = _sizes(
        slices.size_of(relation), _beside_known(frame.run.memory), frame.readers
    )
    names = [column.name for column in columns]
    parts = _slices(frame, per_slice * _KEYS_GROWTH, names)
    groups = slices.packed(parts, per_file * _KEYS_GROWTH)
    table = statement.quoted(relation.schema, relation.name)
    first = _unit(frame, settled, shape, key, columns, statement.select(columns, table))
    return [
        replace(
            first,
            number=start + number * len(groups) + i,
            slices=tuple(part.where for part in group),
            estimate=sum(part.size for part in group) // _KEYS_GROWTH,
            known=share,
            keys_only=True,
        )
        for number, share in enumerate(_known(frame, shape, key, state))
        for i, group in enumerate(groups)
    ]


def _unit(
    frame: _Frame,
    settled: Settled,
    shape: Shape,
    key: tuple[str, ...],
    columns: tuple[Column, ...],
    query: str,
) -> Unit:
    return Unit(
        number=0,
        table=frame.target.label,
        origin=frame.origin,
        session=frame.held.session(frame.origin),
        query=query,
        slices=(),
        columns=columns,
        key=key,
        stats=shape.stats,
        stamp=frame.stamp,
        place=frame.target.place,
        estimate=0,
        base=settled.base,
    )


def _both(one: str, other: str) -> str:
    return one if other == slices.WHOLE else f"{one} AND {other}"


def _known(frame: _Frame, shape: Shape, key: tuple[str, ...], state: State) -> list[Known]:
    """What the table is known by, in as many shares as the memory asks for."""
    rows = sum(max(file.rows, 0) for file in state.files)
    shares = max(1, -(-rows * _KNOWN_ROW // ((frame.run.memory - _BASE) // 4)))
    # Other digits in each run: what two rows share by chance in one, they do not in the next.
    offset = int(frame.stamp.batch_id[-1], 16)
    layout = tuple(shape.columns)
    whole = Known(frame.target.place, state.version, state.files, layout, key, offset, 0, shares)
    return [replace(whole, share=share) for share in range(shares)]


def _beside_known(memory: int) -> int:
    return memory - (memory - _BASE) // 2


def readers(run: RunSettings, slots: int) -> int:
    """How many units may run at once: as many as the workers, the source and the memory allow."""
    fitting = (run.memory - _BASE) // (2 * _READER)
    return max(1, min(run.workers, slots, fitting))


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


def _slices(frame: _Frame, size: int, key: Sequence[str]) -> list[Slice]:
    held, relation = frame.held, frame.target.relation
    if held.name is None:
        return [_whole(frame)]

    def split(holder: Connection) -> list[Slice]:
        return slices.slices(holder, relation, held.version, size, key)

    try:
        return list(_asked(frame, split))
    except TableRefused as error:
        if error.sqlstate not in _NO_ORDER:
            raise
        # A key of a type without an order, such as json, cannot be split.
        return [Slice(slices.WHOLE, size)]


_NO_ORDER = (pg.UndefinedFunction.sqlstate, pg.UndefinedObject.sqlstate)


def _whole(frame: _Frame) -> Slice:
    # Without a shared snapshot only one statement sees one state.
    relation, memory = frame.target.relation, frame.run.memory // frame.readers
    size = slices.size_of(relation)
    if size * _GROWTH > memory:
        raise TableRefused(
            f"Table {relation.label} is too large to be read by one statement, which"
            ' consistency = "per-table" asks for.',
            hint=f"Raise [run] memory: it takes about {size * _GROWTH // 10**6} MB for a worker.",
            table=relation.label,
        )
    return Slice(slices.WHOLE, size)
