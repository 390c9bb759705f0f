"""What a worker does: read → enrich → files, and the rewriting of files.

It knows nothing of other tasks and keeps nothing but what it read of a table to compare with, so
it runs in a thread, a process or on another machine alike, and may run twice.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby

import numpy as np
import polars as pl
import tenacity

from bronze import portion
from bronze.anomaly.detection import scored
from bronze.delta import files, partition
from bronze.delta.write import history, merge
from bronze.errors import SourceUnreachable
from bronze.ingest import key_text
from bronze.ingest.enrich import enrich
from bronze.model.files import DataFile
from bronze.model.units import (
    NOTHING_FOUND,
    Enrichment,
    Findings,
    Known,
    Rejected,
    SourceRead,
    Unit,
    Written,
)
from bronze.postgres.copy import read, row_sizes
from bronze.protection import protect
from bronze.rows import fingerprint
from bronze.rows.fingerprint import Fingerprints
from bronze.rows.metadata import COMMITTED
from bronze.tables import known_rows

_TRIES = 4
_MAX_DELAY = 8.0


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(SourceUnreachable),
    stop=tenacity.stop_after_attempt(_TRIES),
    wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=_MAX_DELAY),
    reraise=True,
)
def read_unit(unit: Unit) -> Written:
    """Reads the rows of a unit and keeps them, or those of them that the table does not hold.

    When the connection is cut, the unit begins again: nothing of it was visible.

    Raises:
        SourceError, LakeError
    """
    totals = _UnitTotals(unit, _KnownRowFilter(unit.known) if unit.known else None)
    # Unlike a loop, map keeps no frame while the next one is read.
    frames = map(totals.bronze_rows, _source_rows(unit.read, unit.rows.enrichment))
    few: list[pl.DataFrame] = []
    written: tuple[DataFile, ...] = ()
    if unit.kind == "keys":
        for _ in frames:
            pass
    elif unit.kind == "load":
        written = _write_files(unit, frames)
    else:
        few = _first_frames(frames, unit.few)
        if portion.size_of(few) >= unit.few:
            written = _write_files(unit, chain(_popped(few), frames))
    return Written(
        unit.number,
        totals.rows,
        written,
        portion.plain(pl.concat(few)) if few else None,
        tuple(totals.rejected),
        totals.seen(),
        totals.sum,
        totals.findings,
    )


def _first_frames(frames: Iterator[pl.DataFrame], few: int) -> list[pl.DataFrame]:
    """The first frames that have rows, until these have ``few`` bytes."""
    found: list[pl.DataFrame] = []
    for frame in frames:
        found += [frame] if frame.height else []
        if portion.size_of(found) >= few:
            break
    return found


def _write_files(unit: Unit, frames: Iterator[pl.DataFrame]) -> tuple[DataFile, ...]:
    def new(values: files.Partition) -> files.Output:
        return files.data(unit.place, unit.rows.stamp.batch_id, unit.stats, values)

    # What is still to be merged is no part of the table yet, nor of a partition.
    dates_of = unit.rows.dates_of if unit.kind == "load" else None
    date = partition.column_of(dates_of) if dates_of else None
    return partition.write(frames, new, date)


@dataclass
class _KnownRowFilter:
    """Drops rows that a table already holds, and notes which of the table's rows were seen."""

    known: Known

    def __post_init__(self) -> None:
        self._held: Fingerprints = known_rows.known(self.known)
        self._seen = np.zeros(len(self._held), np.bool_)

    def new_rows(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows that the table does not hold."""
        prints = known_rows.fingerprints(self.known, rows)
        there, places = known_rows.seen(self._held, prints)
        self._seen[places] = True
        return rows.filter(pl.Series(~there & known_rows.shared(self.known, prints)))

    def seen(self) -> bytes:
        """A bit for each fingerprint of the table: whether a row had it."""
        return np.packbits(self._seen).tobytes()


@dataclass
class _UnitTotals:
    """Turns rows of the source into Bronze rows, and counts on the way."""

    unit: Unit
    filter: _KnownRowFilter | None
    rows: int = 0
    sum: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    findings: Findings = NOTHING_FOUND

    def bronze_rows(self, part: tuple[pl.DataFrame, pl.Series]) -> pl.DataFrame:
        """The Bronze rows of one part that was read: its rows, and their rejected values."""
        rows, rejected = part
        self.rows += rows.height
        if self.unit.kind == "keys":
            return self._keys(rows, rejected)
        made = self._enriched(rows, rejected)
        if self.filter:
            made = self.filter.new_rows(made)
        return self._without_rejected(self._scored(made))

    def _keys(self, rows: pl.DataFrame, rejected: pl.Series) -> pl.DataFrame:
        protection, key = self.unit.rows.enrichment.protection, self.unit.rows.key
        keys = protect.values(rows, protection)
        keys = key_text.with_text(keys, rows, rejected, key, protection)
        return self.filter.new_rows(keys) if self.filter else keys

    def _enriched(self, rows: pl.DataFrame, rejected: pl.Series) -> pl.DataFrame:
        how = self.unit.rows
        made, findings = enrich(rows, rejected, how.stamp, how.base, how.enrichment)
        made = key_text.with_text(made, rows, rejected, how.key, how.enrichment.protection)
        if self.unit.counts_rows:
            self.findings += findings
        if rejected.null_count() < len(rejected):
            made = portion.beside(made, [rejected.alias(_REJECTED)])
        if self.unit.sums_rows and made.height:
            self.sum = fingerprint.added(self.sum, fingerprint.total(made["row_hash"]))
        if how.history:
            made = portion.beside(made, [_constant(history.KIND, "insert", pl.String(), made)])
        if how.streamed:
            moments = _constant(COMMITTED, None, pl.Datetime("us", "UTC"), made)
            made = portion.beside(made, [moments])
        return partition.dated(made, how.dates_of) if how.dates_of else made

    def _scored(self, rows: pl.DataFrame) -> pl.DataFrame:
        # After the filter: the rows that the table holds have their scores.
        how = self.unit.rows
        if how.enrichment.watch is None:
            return rows
        rows, outliers = scored(rows, how.enrichment.watch, how.key.names, how.stamp)
        self.findings += Findings(outliers)
        return rows

    def _without_rejected(self, rows: pl.DataFrame) -> pl.DataFrame:
        if _REJECTED not in rows.columns:
            return rows
        how = self.unit.rows
        found = rejected_values(rows, rows[_REJECTED], how.key.names or _NAMED)
        self.rejected += protect.rejections(found, how.enrichment.protection)
        return rows.drop(_REJECTED)

    def seen(self) -> bytes:
        """A bit for each fingerprint of the table: whether a row had it."""
        return self.filter.seen() if self.filter else b""


_REJECTED = "\0rejected"
# By what the records of a row without a key name it.
_NAMED = ("row_hash",)


def _constant(name: str, value: str | None, kind: pl.DataType, like: pl.DataFrame) -> pl.Series:
    return pl.Series(name, [value], kind).new_from_index(0, like.height)


# A row that is larger than a split takes the room of several: one of them is read at a time.
_alone = threading.Lock()


def _source_rows(
    source: SourceRead, enrichment: Enrichment
) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
    guarded = enrichment.protection is not None
    if source.row_sizes is None:
        yield from _read(source, source.splits, guarded)
        return
    parts = row_sizes.parts(
        source.origin, source.session, source.row_sizes, source.splits, source.table
    )
    for heavy, same in groupby(parts, lambda part: part.heavy):
        conditions = [part.where for part in same]
        if not heavy:
            yield from _read(source, conditions, guarded)
            continue
        for condition in conditions:
            with _alone:
                yield from _read(source, [condition], guarded)
                portion.release()


def _read(
    source: SourceRead, conditions: Sequence[str], guarded: bool
) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
    return read.rows(
        source.origin,
        source.session,
        source.query,
        conditions,
        source.columns,
        source.table,
        guarded=guarded,
    )


def _popped(frames: list[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The frames, none of which is kept."""
    while frames:
        yield frames.pop(0)


def rejected_values(
    rows: pl.DataFrame, rejected: pl.Series, key: Sequence[str]
) -> Iterator[Rejected]:
    """The records of rejected values, which are as in `bronze.postgres.statement`."""
    where = rejected.is_not_null()
    kept = rows.filter(where)
    keys = kept.select(key).rows(named=True) if key else [{}] * kept.height
    for values, lines in zip(keys, rejected.filter(where), strict=True):
        written = json.dumps(values, default=str, ensure_ascii=False)
        for line in lines.removesuffix("\n").split("\n"):
            column, text = json.loads(line)
            yield Rejected(column, written, text)


@dataclass(frozen=True)
class FileMerge:
    """A file to merge into, and the fingerprints of the table's rows that have vanished."""

    job: merge.Merge
    gone: tuple[tuple[Known, Fingerprints], ...] = field(repr=False)


def merge_file(task: FileMerge) -> merge.Merged:
    """Merges changes into one file.

    Raises:
        LakeError
    """
    job = task.job
    rows = [known_rows.positions(known, job.file, gone) for known, gone in task.gone if len(gone)]
    return merge.merge(replace(job, gone=np.sort(np.concatenate(rows))) if rows else job)
