"""Netting: what happened to a table within a batch becomes one change for each key.

The last change of a key counts. A value that the stream left out, as it is large and did not
change, is taken from an earlier change of the same row, else from the table, even where the row
had another key then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import polars.selectors as cs

from bronze.enrich import key_text, protect
from bronze.enrich.anomaly import scored
from bronze.enrich.enrichment import enriched
from bronze.enrich.stamp import COMMITTED
from bronze.errors import Mismatch, TableRefused
from bronze.model import (
    NONE_GIVEN,
    NOTHING_FOUND,
    Column,
    DataFile,
    Enrichment,
    Findings,
    Kind,
    Place,
    Rejected,
    RowKey,
    Stamp,
    Stored,
)
from bronze.source import pgoutput, read, texts
from bronze.source.batch import Gathered, Piece
from bronze.source.texts import Text
from bronze.table import files, lookup, partition
from bronze.table.changes import Changes
from bronze.work import rejections

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
        row_key: what tells rows apart.
        any_bytes: whether a text may be bytes that are no UTF-8.
        stored: the table's files, with ``layout`` its columns, to look unchanged values up.
    """

    table: str
    gathered: Gathered = field(repr=False)
    floor: int
    columns: tuple[Column, ...]
    texts: tuple[Text, ...]
    row_key: RowKey
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
        Mismatch: the stream is not what it has to be; the table has to be compared.
        TableRefused: a row has no key.
        LakeError, LakeUnreachable: changes cannot be put into files, or looked up.
    """
    parts = [_Part(job, number, piece) for number, piece in enumerate(job.gathered.pieces)]
    last = _last(job, parts)
    gone = last.filter(~pl.col("upsert")).select(job.key)
    frames: list[pl.DataFrame] = []
    rejected: list[Rejected] = []
    changes: list[Changes] = []
    findings = NOTHING_FOUND
    for rows, refused, found in _rows(job, parts, last.filter("upsert")):
        findings += found
        records = rejections(rows, refused, job.row_key.names)
        rejected += protect.rejections(records, job.enrichment.protection)
        frames.append(rows)
        if sum(frame.estimated_size() for frame in frames) > _IN_MEMORY:
            changes += _staged(job, frames)
            frames = []
    changes += [pl.concat(frames)] if frames else []
    emptied = job.gathered.emptied is not None and job.gathered.emptied >= job.floor
    return Netted(
        tuple(changes),
        _deletes(job, gone) if gone.height and not emptied else (),
        emptied,
        tuple(rejected),
        sum(part.count for part in parts),
        findings,
    )


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
    if keys.estimated_size() > _IN_MEMORY:
        return tuple(_staged(job, [keys]))
    return (keys,)


def _stored_keys(job: Net, keys: pl.DataFrame) -> pl.DataFrame:
    """Keys as the stream has them, as the table has them."""
    clear, rejected = texts.typed(keys, _keys(job))
    protection = job.enrichment.protection
    rows = protect.values(clear, protection)
    told = key_text.with_text(rows, clear, rejected, job.row_key, protection)
    return told.select(job.row_key.names)


class _Part:
    """One piece of the changes, taken apart."""

    def __init__(self, job: Net, number: int, piece: Piece) -> None:
        self._job, self._piece, self.number = job, piece, number
        self._kept: pgoutput.Changes | None = None

    @cached_property
    def names(self) -> list[str]:
        return [name for name, _, _ in self._job.gathered.described.columns]

    @property
    def changes(self) -> pgoutput.Changes:
        """The changes; those that lie in a file are not kept in memory."""
        if self._kept is not None:
            return self._kept
        piece, any_bytes = self._piece, self._job.any_bytes
        found = pgoutput.changes(piece.read(), piece.lengths, self.names, any_bytes)
        found = _completed(found)
        if self._piece.path is None:
            self._kept = found
        return found

    @cached_property
    def transactions(self) -> npt.NDArray[np.int64]:
        """For each change the number of its transaction."""
        starts = np.array([start for start, _, _ in self._piece.marks], np.int64)
        return np.searchsorted(starts, np.arange(len(self._piece.lengths)), side="right") - 1

    @cached_property
    def new(self) -> npt.NDArray[np.bool_]:
        """Which changes are not in the table yet."""
        positions = np.array([position for _, position, _ in self._piece.marks], np.int64)
        fresh: npt.NDArray[np.bool_] = positions[self.transactions] >= self._job.floor
        return fresh

    @property
    def count(self) -> int:
        """How many these are."""
        return int(self.new.sum())

    def committed(self, lines: npt.NDArray[np.int64]) -> pl.Series:
        """When the transactions of some changes were committed."""
        times = np.array([time for _, _, time in self._piece.marks], np.int64)
        moments = pl.Series(COMMITTED, times[self.transactions[lines]])
        return moments.cast(pl.Datetime("us", "UTC"))

    def events(self) -> pl.DataFrame:
        """What happens to which key: the key, ``upsert``, and where it stands: ``part``, ``line``.

        A row that gets another key goes under the old one, and comes under the new one.
        """
        found, key = self.changes, list(self._job.key)
        deleted = pl.Series(found.kinds == pgoutput.DELETE)
        old, new = found.old.select(key), found.new.select(key)
        both = pl.DataFrame(
            [new[name].zip_with(~deleted, old[name]).alias(name) for name in key]
        ).with_columns(upsert=~deleted)
        both = both.with_row_index("line").filter(pl.Series(self.new))
        moved = found.keyed & (found.kinds == pgoutput.UPDATE) & self.new
        if moved.any():
            other = np.zeros(len(moved), np.bool_)
            for name in key:
                other |= old[name].ne_missing(new[name]).to_numpy()
            left = old.with_columns(upsert=False).with_row_index("line")
            left = left.filter(pl.Series(moved & other))
            both = pl.concat([left, both.select(left.columns)]).sort("line", maintain_order=True)
        return both.select(
            *key, "upsert", pl.lit(self.number).alias("part"), pl.col("line").cast(pl.Int64)
        )


def _completed(found: pgoutput.Changes) -> pgoutput.Changes:
    """The changes with what the old row tells of unchanged values."""
    columns: list[pl.Series] = []
    unchanged: list[npt.NDArray[np.bool_] | None] = []
    for series, flags in zip(found.new.get_columns(), found.unchanged, strict=True):
        if flags is None:
            columns.append(series)
            unchanged.append(None)
            continue
        old = found.old[series.name]
        columns.append(series.zip_with(~pl.Series(flags), old))
        left = flags & old.is_null().to_numpy()
        unchanged.append(left if left.any() else None)
    new = pl.DataFrame(columns) if columns else found.new
    return pgoutput.Changes(found.kinds, new, tuple(unchanged), found.old, found.keyed)


def _last(job: Net, parts: Sequence[_Part]) -> pl.DataFrame:
    """The last event of each key."""
    key = list(job.key)
    if not parts:
        return pl.DataFrame(schema={**dict.fromkeys(key, pl.String), **_EVENT})
    events = pl.concat([part.events() for part in parts])
    if any(events[name].null_count() for name in key):
        raise TableRefused(
            f"A row of table {job.table} has no value in its key {', '.join(key)}.",
            hint="Name columns that are unique and never NULL as its key.",
            table=job.table,
        )
    return events.unique(key, keep="last", maintain_order=True)


_EVENT = {"upsert": pl.Boolean, "part": pl.Int32, "line": pl.Int64}


def _rows(
    job: Net, parts: Sequence[_Part], last: pl.DataFrame
) -> Iterator[tuple[pl.DataFrame, pl.Series, Findings]]:
    """The Bronze rows of the last changes, their rejected values, and what was found out."""
    missing = _missing(job, parts, last)
    for part in parts:
        lines = last.filter(pl.col("part") == part.number)["line"].to_numpy()
        if not len(lines):
            continue
        found = part.changes
        raw = found.new.select([text.name for text in job.texts])[lines]
        mine = {place: value for place, value in missing.items() if place[0] == part.number}
        rows, rejected = texts.typed(_patched(raw, lines, parts, mine), job.texts)
        rows = _looked_up(job, rows, lines, mine)
        whole = _whole(rows, job.columns)
        made, findings = enriched(whole, rejected, job.stamp, job.base, job.enrichment)
        protection = job.enrichment.protection
        made = key_text.with_text(made, whole, rejected, job.row_key, protection)
        if job.enrichment.watch:
            key = job.row_key.names
            made, outliers = scored(made, job.enrichment.watch, key, job.stamp)
            findings += Findings(outliers)
        made = made.with_columns(cs.enum().cast(pl.String), part.committed(lines))
        made = partition.dated(made, job.dates_of) if job.dates_of else made
        yield made, rejected, findings


def _whole(rows: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
    """The rows with the columns that the table has and the source has not."""
    present = set(rows.columns)
    return rows.select(
        pl.col(c.target)
        if c.target in present
        else pl.lit(None, read.dtype(c.kind)).alias(c.target)
        for c in columns
    )


# What the stream left out


class Spot(NamedTuple):
    """A value of a change: ``column`` is its name in the source."""

    part: int
    line: int
    column: str


def _missing(job: Net, parts: Sequence[_Part], last: pl.DataFrame) -> Mapping[Spot, Spot | Key]:
    """Where the values are that the last changes leave out: in another change, or in the table
    under a key.
    """
    open_columns = {
        part.number: [
            (name, flags)
            for name, flags in zip(part.names, part.changes.unchanged, strict=True)
            if flags is not None
        ]
        for part in parts
    }
    wanted: list[Spot] = []
    for number, columns in open_columns.items():
        lines = last.filter(pl.col("part") == number)["line"].to_numpy()
        for name, flags in columns:
            wanted += [Spot(number, int(line), name) for line in lines[flags[lines]]]
    if not wanted:
        return {}
    origins: dict[Spot, Spot | Key] = {}
    current: dict[Key, dict[str, Spot | Key]] = {}
    names = {name for _, _, name in wanted}
    for part in parts:
        flagged = {name: flags for name, flags in open_columns[part.number] if name in names}
        before: tuple[int, Key] | None = None
        moving: dict[str, Spot | Key] = {}
        for *key, upsert, _, line in part.events().iter_rows():
            at = tuple(key)
            if not upsert:
                # If it is a change of key, its second half comes next.
                before = (line, at)
                moving = current.pop(at, {})
                continue
            left = before is not None and before[0] == line
            known = moving if left else current.get(at, {})
            origin = before[1] if left and before else at
            story: dict[str, Spot | Key] = {}
            for name in names:
                if name in flagged and flagged[name][line]:
                    story[name] = origins[Spot(part.number, line, name)] = known.get(name, origin)
                else:
                    story[name] = Spot(part.number, line, name)
            current[at] = story
    return {spot: origins[spot] for spot in wanted}


def _patched(
    raw: pl.DataFrame,
    lines: npt.NDArray[np.int64],
    parts: Sequence[_Part],
    missing: Mapping[Spot, Spot | Key],
) -> pl.DataFrame:
    """The texts with the values that stand in other changes."""
    rows = {int(line): row for row, line in enumerate(lines)}
    # A part that lies in a file is read whenever it is asked.
    wanted: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for (_, line, name), origin in missing.items():
        if isinstance(origin, Spot):
            columns = wanted.setdefault(origin.part, {})
            columns.setdefault(name, []).append((rows[line], origin.line))
    for part, columns in wanted.items():
        new = parts[part].changes.new
        for name, places in columns.items():
            at, there = zip(*places, strict=True)
            raw = raw.with_columns(raw[name].scatter(at, new[name].gather(list(there))))
    return raw


def _looked_up(
    job: Net,
    rows: pl.DataFrame,
    lines: npt.NDArray[np.int64],
    missing: Mapping[Spot, Spot | Key],
) -> pl.DataFrame:
    """The rows with the values that are in the table."""
    targets = {text.name: text.target for text in job.texts}
    places = {int(line): row for row, line in enumerate(lines)}
    for name in {name for _, _, name in missing}:
        asked = [
            (places[line], origin)
            for (_, line, column), origin in missing.items()
            if column == name and not isinstance(origin, Spot)
        ]
        if not asked:
            continue
        raw = pl.DataFrame(
            [origin for _, origin in asked], schema=dict.fromkeys(job.key, pl.String), orient="row"
        )
        keys = _stored_keys(job, raw)
        target = targets[name]
        held = lookup.values(job.place, job.stored, job.layout, keys.unique(), [target])
        key = keys.columns
        found = keys.join(
            held.rename({target: "\0value"}),
            on=key,
            how="left",
            maintain_order="left",
            nulls_equal=True,
        )
        # A value that is large is no NULL: where the table has one, it was rejected.
        if found.height != len(asked) or found["\0value"].null_count():
            raise Mismatch(
                f"The table has not all values of column {name} of {job.table} that the stream"
                " left out.",
                hint="All its rows are compared with the source.",
                table=job.table,
            )
        at = pl.Series([row for row, _ in asked], dtype=pl.UInt32)
        values = _clear(job, target, found["\0value"], rows.schema[target])
        rows = rows.with_columns(rows[target].scatter(at, values))
    return rows


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
