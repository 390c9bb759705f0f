"""What a worker does: read → enrich → files, and merge changes into files.

A task does not depend on other tasks, so that it can run in a thread, in a process or on another
machine, and can run twice. A worker only caches the fingerprints that rows are compared with.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from operator import itemgetter

import numpy as np
import polars as pl
import tenacity

from bronze import portion
from bronze.anomaly import samples
from bronze.anomaly.detection import score_rows
from bronze.anomaly.samples import Trained, Training
from bronze.delta import file_names, files, partition
from bronze.delta.write import clustered, history, merge
from bronze.delta.write.merge_job import Merge, Merged
from bronze.errors import SourceUnreachable
from bronze.ingest.enrich import enrich
from bronze.model.files import WrittenFile
from bronze.model.units import (
    NO_FINDINGS,
    Enrichment,
    Findings,
    KnownRows,
    RejectedValue,
    SourceRead,
    Unit,
    UnitResult,
)
from bronze.postgres import statement
from bronze.postgres.copy import reader, row_sizes
from bronze.protection import key_text, protect
from bronze.rows import fingerprint
from bronze.rows.fingerprint import Fingerprints
from bronze.rows.metadata import COMMIT_TIMESTAMP
from bronze.tables import known_rows

_TRIES = 4
_MAX_DELAY_S = 8.0


# A task that reads from the source is repeated after a lost connection.
_AFTER_LOSS = tenacity.Retrying(
    retry=tenacity.retry_if_exception_type(SourceUnreachable),
    stop=tenacity.stop_after_attempt(_TRIES),
    wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=_MAX_DELAY_S),
    reraise=True,
)


@_AFTER_LOSS.wraps
def train_model(task: Training) -> Trained:
    """Trains an anomaly model, see `bronze.anomaly.samples.train`.

    Raises:
        SourceError, LakeError
    """
    return samples.train(task)


@_AFTER_LOSS.wraps
def read_unit(unit: Unit) -> UnitResult:
    """Reads the rows of a unit, and keeps them, or only those that the table does not hold.

    When the connection is lost, the unit starts again: nothing of it is visible yet.

    Raises:
        SourceError, LakeError
    """
    totals = _UnitTotals(unit, _KnownRowFilter(unit.known) if unit.known else None)
    kept: list[pl.DataFrame] = []
    written: tuple[WrittenFile, ...] = ()
    with closing(_source_rows(unit.read, unit.rows.enrichment)) as rows:
        # Unlike a loop, map holds no frame while the next one is read.
        frames = map(totals.bronze_rows, rows)
        if unit.kind == "keys":
            for _ in frames:
                pass
        elif unit.kind == "load":
            written = _write_files(unit, frames)
        else:
            kept = _first_frames(frames, unit.few)
            if portion.size_of(kept) >= unit.few:
                written = _write_files(unit, chain(_popped(kept), frames))
    return UnitResult(
        unit.number,
        totals.rows,
        written,
        portion.without_enums(pl.concat(kept)) if kept else None,
        tuple(totals.rejected),
        totals.seen(),
        totals.sum,
        totals.findings,
    )


def _first_frames(frames: Iterator[pl.DataFrame], size: int) -> list[pl.DataFrame]:
    """The first frames that have rows, until they have ``size`` bytes."""
    first: list[pl.DataFrame] = []
    for frame in frames:
        first += [frame] if frame.height else []
        if portion.size_of(first) >= size:
            break
    return first


def _write_files(unit: Unit, frames: Iterator[pl.DataFrame]) -> tuple[WrittenFile, ...]:
    into = unit.rows.into
    if unit.clustering:
        return clustered.write(frames, into, unit.clustering, unit.estimate)

    def new(values: file_names.Partition) -> files.Output:
        return files.data(into.place, into.stamp.batch_id, into.stats, values)

    # Changes are staged in a file, and get to their partitions by the merge.
    dates_of = into.dates_of if unit.kind == "load" else None
    date = partition.column_of(dates_of) if dates_of else None
    return partition.write(frames, new, date)


@dataclass
class _KnownRowFilter:
    """Drops rows that a table already holds, and records which of the table's rows were seen."""

    known: KnownRows

    def __post_init__(self) -> None:
        self._fingerprints: Fingerprints = known_rows.index_of(self.known)
        self._seen = np.zeros(len(self._fingerprints), np.bool_)

    def new_rows(self, rows: pl.DataFrame) -> pl.Series:
        """Which rows the table does not hold, by the columns that are compared."""
        prints = known_rows.fingerprints(self.known, rows)
        there, places = known_rows.match_fingerprints(self._fingerprints, prints)
        self._seen[places] = True
        return pl.Series(~there & known_rows.in_share(self.known, prints))

    def new_rows_of(self, hashes: pl.Series) -> pl.Series:
        """Which rows the table does not hold, by their row hashes."""
        return self.new_rows(hashes.to_frame("row_hash"))

    def seen(self) -> bytes:
        """A bit for each fingerprint of the table: whether a row had it."""
        return np.packbits(self._seen).tobytes()


@dataclass
class _UnitTotals:
    """Turns rows of the source into Bronze rows, and adds up what the unit reports of them."""

    unit: Unit
    filter: _KnownRowFilter | None
    rows: int = 0
    sum: int = 0
    rejected: list[RejectedValue] = field(default_factory=list)
    findings: Findings = NO_FINDINGS

    def bronze_rows(self, part: tuple[pl.DataFrame, pl.Series]) -> pl.DataFrame:
        """The Bronze rows of one part: rows as read, and their rejected values."""
        rows, rejected = part
        self.rows += rows.height
        if self.unit.kind == "keys":
            return self._keys(rows, rejected)
        bronze_rows = self._enriched(rows, rejected)
        # A frame without columns would get a row by adding one.
        if not bronze_rows.width:
            return bronze_rows
        return self._without_rejected(self._with_scores(bronze_rows))

    def _keys(self, rows: pl.DataFrame, rejected: pl.Series) -> pl.DataFrame:
        protection, key = self.unit.rows.enrichment.protection, self.unit.rows.key
        keys = protect.protect_rows(rows, protection)
        keys = key_text.add_key_text(keys, rows, rejected, key, protection)
        return keys.filter(self.filter.new_rows(keys)) if self.filter else keys

    def _enriched(self, rows: pl.DataFrame, rejected: pl.Series) -> pl.DataFrame:
        how = self.unit.rows
        keep = self.filter.new_rows_of if self.filter else None
        known = self.findings.profile
        enriched = enrich(rows, rejected, how.into.stamp, how.base, how.enrichment, keep, known)
        if self.unit.sums_rows and rows.height:
            self.sum = fingerprint.sum_of_totals(self.sum, fingerprint.total(enriched.hashes))
        if self.unit.counts_rows:
            self.findings += enriched.findings
        if not enriched.rows.width:
            return enriched.rows
        bronze_rows = key_text.add_key_text(
            enriched.rows, enriched.clear, enriched.rejected, how.key, how.enrichment.protection
        )
        if enriched.rejected.null_count() < len(enriched.rejected):
            bronze_rows = portion.with_columns(bronze_rows, [enriched.rejected.alias(_REJECTED)])
        if how.history:
            bronze_rows = portion.with_columns(
                bronze_rows, [_constant(history.KIND, "insert", pl.String(), bronze_rows)]
            )
        if how.streamed:
            commit_times = _constant(COMMIT_TIMESTAMP, None, pl.Datetime("us", "UTC"), bronze_rows)
            bronze_rows = portion.with_columns(bronze_rows, [commit_times])
        dates_of = how.into.dates_of
        return partition.dated(bronze_rows, dates_of) if dates_of else bronze_rows

    def _with_scores(self, rows: pl.DataFrame) -> pl.DataFrame:
        # Only after the filter, as rows that the table holds have their scores.
        how = self.unit.rows
        if how.enrichment.watch is None:
            return rows
        rows, outliers = score_rows(rows, how.enrichment.watch, how.key.names, how.into.stamp)
        self.findings += Findings(outliers)
        return rows

    def _without_rejected(self, rows: pl.DataFrame) -> pl.DataFrame:
        if _REJECTED not in rows.columns:
            return rows
        how = self.unit.rows
        key = how.key.names or _KEYLESS_NAMES
        records = rejected_values(rows, rows[_REJECTED], key)
        self.rejected += protect.protect_rejected(records, how.enrichment.protection)
        return rows.drop(_REJECTED)

    def seen(self) -> bytes:
        """A bit for each fingerprint of the table: whether a row had it."""
        return self.filter.seen() if self.filter else b""


_REJECTED = "\0rejected"
# The columns that identify a row without a key in records of rejected values.
_KEYLESS_NAMES = ("row_hash",)


def _constant(name: str, value: str | None, kind: pl.DataType, like: pl.DataFrame) -> pl.Series:
    return pl.Series(name, [value], kind).new_from_index(0, like.height)


# A row that is larger than a split takes the memory of several: one of them is read at a time.
_large_row_lock = threading.Lock()


def _source_rows(
    source: SourceRead, enrichment: Enrichment
) -> Generator[tuple[pl.DataFrame, pl.Series], None, None]:
    guarded = enrichment.protection is not None
    for heap, group in groupby(source.splits, itemgetter(0)):
        conditions = [condition for _, condition in group]
        of_heap = _of_heap(source, heap) if heap else source
        yield from _divided_rows(of_heap, conditions, guarded)


def _of_heap(source: SourceRead, heap: str) -> SourceRead:
    """What reads a partition by itself."""
    limits = replace(source.row_sizes, table=heap) if source.row_sizes else None
    return replace(source, query=statement.select(source.columns, heap), row_sizes=limits)


def _divided_rows(
    source: SourceRead, splits: Sequence[str], guarded: bool
) -> Generator[tuple[pl.DataFrame, pl.Series], None, None]:
    if source.row_sizes is None:
        yield from _read(source, splits, guarded)
        return
    parts = row_sizes.divide_splits(
        source.origin, source.session, source.row_sizes, splits, source.table
    )
    for heavy, group in groupby(parts, lambda part: part.heavy):
        conditions = [part.where for part in group]
        if not heavy:
            yield from _read(source, conditions, guarded)
            continue
        for condition in conditions:
            with _large_row_lock:
                yield from _read(source, [condition], guarded)
                portion.release()


def _read(
    source: SourceRead, conditions: Sequence[str], guarded: bool
) -> Generator[tuple[pl.DataFrame, pl.Series], None, None]:
    return reader.reader_of(source.origin)(
        source.origin,
        source.session,
        source.query,
        conditions,
        source.columns,
        source.table,
        guarded=guarded,
    )


def _popped(frames: list[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The frames, each removed from the list, so that its memory can be freed."""
    while frames:
        yield frames.pop(0)


def rejected_values(
    rows: pl.DataFrame, rejected: pl.Series, key: Sequence[str]
) -> Iterator[RejectedValue]:
    """The records of rejected values; ``rejected`` is as in `bronze.postgres.statement`."""
    has_rejected = rejected.is_not_null()
    affected = rows.filter(has_rejected)
    keys = affected.select(key).rows(named=True) if key else [{}] * affected.height
    for values, lines in zip(keys, rejected.filter(has_rejected), strict=True):
        row_key = json.dumps(values, default=str, ensure_ascii=False)
        for line in lines.removesuffix("\n").split("\n"):
            column, text = json.loads(line)
            yield RejectedValue(column, row_key, text)


@dataclass(frozen=True)
class FileMerge:
    """A file to merge changes into; ``missing`` has fingerprints of rows that the source lacks."""

    job: Merge
    missing: tuple[tuple[KnownRows, Fingerprints], ...] = field(repr=False)


def merge_file(task: FileMerge) -> Merged:
    """Merges changes into one file.

    Raises:
        LakeError
    """
    job = task.job
    rows = [
        known_rows.positions(known, job.file, fingerprints)
        for known, fingerprints in task.missing
        if len(fingerprints)
    ]
    return merge.merge(replace(job, gone=np.sort(np.concatenate(rows))) if rows else job)
