"""Netting: what happened to a table within a batch becomes one change for each key.

The last change of a key counts, where PostgreSQL keeps it unique at any moment; where rows may
share one for a while, `bronze.cdc.replica_identity` tells which of them has it at the end. A value
that the stream left out, as it is large and did not change, is taken from an earlier change of the
same row, else from the table, even where the row had another key then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze import portion
from bronze.anomaly.detection import scored
from bronze.cdc import replica_identity
from bronze.cdc.replica_identity import LINE, PART, Rows
from bronze.cdc.row_changes import UPSERT, Part
from bronze.delta import files, partition
from bronze.delta.write import lookup
from bronze.delta.write.changes import Changes
from bronze.errors import Mismatch, TableRefused
from bronze.ingest import key_text
from bronze.ingest.enrich import enrich
from bronze.ingest.worker import rejected_values
from bronze.model.columns import Column, Kind, RowKey
from bronze.model.files import DataFile, Stored
from bronze.model.locations import Place
from bronze.model.stamp import Stamp
from bronze.model.units import DELETED, NONE_GIVEN, NOTHING_FOUND, Enrichment, Findings, Rejected
from bronze.postgres.copy import read
from bronze.postgres.replication import text_values
from bronze.postgres.replication.batch import Gathered
from bronze.postgres.replication.text_values import Text
from bronze.protection import protect

# What is more than this is put into files on its way into the table.
_IN_MEMORY = 32 * 2**20

Key = tuple[str, ...]


@dataclass(frozen=True)
class Net:
    """What is to be netted.

    Attributes:
        table: the table's label.
        gathered: its changes.
        floor: transactions before this position are in the table already.
        columns: the table's contract; ``texts`` are those of them that the stream has.
        row_key: what tells rows apart at the end of a transaction.
        identity: the names of the columns that tell rows apart at any moment: the key, where
            PostgreSQL keeps it unique; else others, the key among them.
        any_bytes: whether a text may be bytes that are no UTF-8.
        stored: the table's files, with ``layout`` its columns, to look unchanged values up.
    """

    table: str
    gathered: Gathered = field(repr=False)
    floor: int
    columns: tuple[Column, ...]
    texts: tuple[Text, ...]
    row_key: RowKey
    identity: tuple[str, ...]
    place: Place
    stored: tuple[Stored, ...] = field(repr=False)
    layout: tuple[tuple[str, Kind], ...]
    stats: tuple[str, ...]
    stamp: Stamp
    base: int
    dates_of: str | None = None
    enrichment: Enrichment = NONE_GIVEN
    any_bytes: bool = False

    @property
    def key(self) -> tuple[str, ...]:
        """The names of the key's columns in the source."""
        return self.row_key.source_names


@dataclass(frozen=True)
class Netted:
    """One change for each key: rows as they are now, and the keys of rows that are gone.

    ``emptied`` says that all other rows are gone, too; ``read`` counts the changes that came.
    """

    changes: tuple[Changes, ...] = field(repr=False)
    deletes: tuple[Changes, ...] = field(repr=False)
    emptied: bool
    rejected: tuple[Rejected, ...]
    read: int
    findings: Findings = NOTHING_FOUND

    @property
    def empty(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.changes or self.deletes or self.emptied)


def net(job: Net) -> Netted:
    """Nets a table's changes.

    Raises:
        Mismatch: the stream is not what it has to be, or rows share a key at the end; the table
            has to be compared.
        TableRefused: a row has no key.
        LakeError, LakeUnreachable: changes cannot be put into files, or looked up.
    """
    pieces = range(len(job.gathered.pieces))
    parts = [Part(job.gathered, i, job.floor, job.any_bytes) for i in pieces]
    last = _last(job, parts)
    gone = last.filter(~pl.col(UPSERT)).select(job.key)
    frames: list[pl.DataFrame] = []
    rejected: list[Rejected] = []
    changes: list[Changes] = []
    findings = NOTHING_FOUND
    for rows, refused, found in _rows(job, parts, last.filter(UPSERT)):
        findings += found
        records = rejected_values(rows, refused, job.row_key.names)
        rejected += protect.rejections(records, job.enrichment.protection)
        if frames and portion.size_of(frames) + portion.size(rows) > _IN_MEMORY:
            changes += _staged(job, frames)
            frames = []
        frames.append(rows)
        del rows
    changes += [pl.concat(frames)] if frames else []
    emptied = _emptied(job)
    return Netted(
        tuple(changes),
        _deletes(job, gone) if gone.height and not emptied else (),
        emptied,
        tuple(rejected),
        sum(part.count for part in parts),
        findings,
    )


def _emptied(job: Net) -> bool:
    return job.gathered.emptied is not None and job.gathered.emptied >= job.floor


def _keys(job: Net) -> list[Text]:
    named = {text.name: text for text in job.texts}
    return [named[name] for name in job.key]


def _staged(job: Net, frames: Sequence[pl.DataFrame]) -> list[DataFile]:
    # Keys alone have not all columns that the table has statistics of.
    stats = [name for name in job.stats if all(name in frame.columns for frame in frames)]
    file = files.write(frames, job.place, job.stamp.batch_id, stats)
    return [file] if file else []


def _deletes(job: Net, gone: pl.DataFrame) -> tuple[Changes, ...]:
    keys = _stored_keys(job, gone)
    if portion.size(keys) > _IN_MEMORY:
        return tuple(_staged(job, [keys]))
    return (keys,)


def _stored_keys(job: Net, keys: pl.DataFrame) -> pl.DataFrame:
    """Keys as the stream has them, as the table has them."""
    clear, rejected = text_values.typed(keys.select(job.key), _keys(job))
    protection = job.enrichment.protection
    rows = protect.values(clear, protection)
    told = key_text.with_text(rows, clear, rejected, job.row_key, protection)
    return told.select(job.row_key.names)


def _last(job: Net, parts: Sequence[Part]) -> pl.DataFrame:
    """What becomes of each key: `UPSERT`, and where the row stands that it has: `PART`, `LINE`."""
    if not parts:
        return pl.DataFrame(schema={**dict.fromkeys(job.key, pl.String), **_EVENT})
    if job.identity != job.key:
        return _by_rows(job, parts)
    events = pl.concat([part.events(job.key) for part in parts])
    _refuse_missing(job, events)
    return events.unique(job.key, keep="last", maintain_order=True)


_EVENT = {UPSERT: pl.Boolean, PART: pl.Int32, LINE: pl.Int64}


def _refuse_missing(job: Net, rows: pl.DataFrame) -> None:
    if any(rows[name].null_count() for name in job.key):
        raise TableRefused(
            f"A row of table {job.table} has no value in its key {', '.join(job.key)}.",
            hint="Name columns that are unique and never NULL as its key.",
            table=job.table,
        )


# Rows that may share a key for a while


def _by_rows(job: Net, parts: Sequence[Part]) -> pl.DataFrame:
    moves = pl.concat([part.moves(job.identity, job.key) for part in parts])
    _refuse_missing(job, moves)
    found = replica_identity.netted(moves, job.key)
    _refuse_shared(job, found)
    left = found.went.join(found.came, on=job.key, how="anti")
    frames = [
        found.came.with_columns(pl.lit(True).alias(UPSERT)),
        left.with_columns(pl.lit(False).alias(UPSERT)),
    ]
    return pl.concat(frames, how="diagonal").select(*job.key, *_EVENT)


def _refuse_shared(job: Net, found: Rows) -> None:
    """Counts the rows of each key: one at most, of which the table has those that were there.

    Raises:
        Mismatch
    """
    came, went = _stored_keys(job, found.came), _stored_keys(job, found.went)
    key = came.columns
    there = went.head(0)
    if not _emptied(job):
        names = pl.concat([came, went]).unique()
        live = pl.col("record_status").ne_missing(DELETED)
        held = lookup.found(job.place, job.stored, job.layout, names, ["record_status"])
        there = pl.concat([there, *(rows.filter(live).select(key) for rows in held)])
    new = came.join(went, on=key, how="anti", nulls_equal=True)
    again = new.join(there, on=key, how="semi", nulls_equal=True).height
    shared = came.is_duplicated().any() or again
    if shared or went.is_duplicated().any() or there.is_duplicated().any():
        raise Mismatch(
            f"Rows of table {job.table} share the key {', '.join(job.key)}.",
            hint="All its rows are compared with the source.",
            table=job.table,
        )
    if went.join(there, on=key, how="anti", nulls_equal=True).height:
        raise Mismatch(
            f"The table has not all rows of {job.table} that have changed by the stream.",
            hint="All its rows are compared with the source.",
            table=job.table,
        )


def _rows(
    job: Net, parts: Sequence[Part], last: pl.DataFrame
) -> Iterator[tuple[pl.DataFrame, pl.Series, Findings]]:
    """The Bronze rows of the last changes, their rejected values, and what was found out."""
    missing = _missing(job, parts, last)
    for part in parts:
        lines = last.filter(pl.col(PART) == part.number)[LINE].to_numpy()
        if not len(lines):
            continue
        found = part.changes
        raw = found.new.select([text.name for text in job.texts])[lines]
        mine = {place: value for place, value in missing.items() if place[0] == part.number}
        typed = text_values.typed(_patched(raw, lines, parts, mine), job.texts)
        del found, raw
        for rows, rejected, some in _looked_up(job, *typed, lines, mine):
            yield _made(job, part, rows, rejected, some)


def _made(
    job: Net, part: Part, rows: pl.DataFrame, rejected: pl.Series, lines: npt.NDArray[np.int64]
) -> tuple[pl.DataFrame, pl.Series, Findings]:
    """The Bronze rows of some changes of a piece."""
    whole = _whole(rows, job.columns)
    made, findings = enrich(whole, rejected, job.stamp, job.base, job.enrichment)
    protection = job.enrichment.protection
    made = key_text.with_text(made, whole, rejected, job.row_key, protection)
    if job.enrichment.watch:
        made, outliers = scored(made, job.enrichment.watch, job.row_key.names, job.stamp)
        findings += Findings(outliers)
    made = portion.beside(portion.plain(made), [part.committed(lines)])
    made = partition.dated(made, job.dates_of) if job.dates_of else made
    return made, rejected, findings


def _whole(rows: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
    """The rows with the columns that the table has and the source has not."""
    present = set(rows.columns)
    found = [
        rows[c.target]
        if c.target in present
        else pl.Series(c.target, [None], read.dtype(c.kind)).new_from_index(0, rows.height)
        for c in columns
    ]
    return pl.DataFrame(found, height=rows.height)


# What the stream left out


class Spot(NamedTuple):
    """A value of a change: ``column`` is its name in the source."""

    part: int
    stream: int
    column: str


def _missing(job: Net, parts: Sequence[Part], last: pl.DataFrame) -> Mapping[Spot, Spot | Key]:
    """Where the values are that the last changes leave out: in another change, or in the table
    under a key.
    """
    open_columns = {part.number: part.open for part in parts}
    wanted: list[Spot] = []
    for number, columns in open_columns.items():
        lines = last.filter(pl.col(PART) == number)[LINE].to_numpy()
        for name, flags in columns:
            wanted += [Spot(number, int(stream), name) for stream in lines[flags[lines]]]
    if not wanted:
        return {}
    if job.identity != job.key and set(parts[0].names) <= set(job.identity):
        raise _unknown(job, wanted[0].column)
    keyed = [job.identity.index(name) for name in job.key]
    origins: dict[Spot, Spot | Key] = {}
    current: dict[tuple[str, ...], dict[str, Spot | Key]] = {}
    names = {name for _, _, name in wanted}
    for part in parts:
        flagged = {name: flags for name, flags in open_columns[part.number] if name in names}
        before: tuple[int, tuple[str, ...]] | None = None
        moving: dict[str, Spot | Key] = {}
        for *row, upsert, _, stream in part.events(job.identity).iter_rows():
            at = tuple(row)
            if not upsert:
                # If it is a change of identity, its second half comes next.
                before = (stream, at)
                moving = current.pop(at, {})
                continue
            left = before is not None and before[0] == stream
            known = moving if left else current.get(at, {})
            first = before[1] if left and before else at
            origin = tuple(first[i] for i in keyed)
            story: dict[str, Spot | Key] = {}
            for name in names:
                if name in flagged and flagged[name][stream]:
                    story[name] = origins[Spot(part.number, stream, name)] = known.get(name, origin)
                else:
                    story[name] = Spot(part.number, stream, name)
            current[at] = story
    return {spot: origins[spot] for spot in wanted}


def _patched(
    raw: pl.DataFrame,
    lines: npt.NDArray[np.int64],
    parts: Sequence[Part],
    missing: Mapping[Spot, Spot | Key],
) -> pl.DataFrame:
    """The texts with the values that stand in other changes."""
    rows = {int(stream): row for row, stream in enumerate(lines)}
    # A part that lies in a file is read whenever it is asked.
    wanted: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for (_, stream, name), origin in missing.items():
        if isinstance(origin, Spot):
            columns = wanted.setdefault(origin.part, {})
            columns.setdefault(name, []).append((rows[stream], origin.stream))
    for part, columns in wanted.items():
        new = parts[part].changes.new
        for name, places in columns.items():
            at, there = zip(*places, strict=True)
            raw = raw.with_columns(raw[name].scatter(at, new[name].gather(list(there))))
    return raw


def _looked_up(
    job: Net,
    rows: pl.DataFrame,
    rejected: pl.Series,
    lines: npt.NDArray[np.int64],
    missing: Mapping[Spot, Spot | Key],
) -> Iterator[tuple[pl.DataFrame, pl.Series, npt.NDArray[np.int64]]]:
    """The rows with the values that are in the table, a few at a time as these may be large; with
    their rejected values, and their lines.
    """
    targets = {text.name: text.target for text in job.texts}
    places = {int(stream): row for row, stream in enumerate(lines)}
    # What a row lacks is under one key, as it has had one at a time.
    under: dict[int, Key] = {}
    lacking: dict[str, set[int]] = {}
    for (_, stream, name), origin in missing.items():
        if not isinstance(origin, Spot):
            under[places[stream]] = origin
            lacking.setdefault(name, set()).add(places[stream])
    complete = np.setdiff1d(np.arange(rows.height), list(under))
    if len(complete):
        alone = len(complete) == rows.height
        yield (rows, rejected, lines) if alone else _some(rows, rejected, lines, complete)
    if not under:
        return
    raw = pl.DataFrame(list(under.values()), schema=dict.fromkeys(job.key, pl.String), orient="row")
    keys = _stored_keys(job, raw).with_columns(pl.Series(_ROW, list(under), pl.Int64))
    key = [name for name in keys.columns if name != _ROW]
    columns = [targets[name] for name in lacking]
    left = set(under)
    for held in lookup.found(job.place, job.stored, job.layout, keys.select(key).unique(), columns):
        # A join copies values: they are found by their number.
        numbered = held.select(key).with_row_index(_HELD)
        there = portion.joined(keys, numbered, key, "inner")
        at, of = there[_ROW].to_numpy(), there[_HELD].to_numpy()
        whole, refused, some = _some(rows, rejected, lines, at)
        for name, lack in lacking.items():
            mine = np.flatnonzero(np.isin(at, list(lack)))
            values = held[targets[name]].gather(of[mine])
            # A value that is large is no NULL: where the table has one, it was rejected.
            if values.null_count():
                raise _unknown(job, name)
            target = targets[name]
            values = _clear(job, target, values, rows.schema[target])
            whole.replace_column(
                whole.get_column_index(target), whole[target].scatter(mine, values)
            )
        if len(left - set(at.tolist())) != len(left) - len(at):
            raise _unknown(job, next(iter(lacking)))
        left -= set(at.tolist())
        yield whole, refused, some
    if left:
        raise _unknown(job, next(name for name, lack in lacking.items() if lack & left))


_ROW, _HELD = "\0row", "\0held"


def _some(
    rows: pl.DataFrame, rejected: pl.Series, lines: npt.NDArray[np.int64], at: npt.NDArray[np.int64]
) -> tuple[pl.DataFrame, pl.Series, npt.NDArray[np.int64]]:
    return rows[at], rejected.gather(at), lines[at]


def _unknown(job: Net, name: str) -> Mismatch:
    return Mismatch(
        f"The table has not all values of column {name} of {job.table} that the stream left out.",
        hint="All its rows are compared with the source.",
        table=job.table,
    )


def _clear(job: Net, target: str, stored: pl.Series, kind: pl.DataType) -> pl.Series:
    """The values of a column as they were before they were protected."""
    protection = job.enrichment.protection
    for column in protection.columns if protection else ():
        if column.column == target and protection:
            if column.protect.method not in protect.REVEALED:
                raise Mismatch(
                    f"The stream left out values of column {column.name} of {job.table}, of which"
                    f" the table has only what {column.protect.method} made of them.",
                    hint="All its rows are compared with the source. Where that happens often:"
                    f" ALTER TABLE {job.table} REPLICA IDENTITY FULL.",
                    table=job.table,
                )
            return protect.revealed(stored, column, protection.masters, kind)
    return stored
