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
from bronze.model.units import NOTHING_FOUND, Findings, Known, Rejected, Unit, Written
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
    """Reads a unit's slices, and keeps its rows, or those of them that the table does not hold.

    A connection that is cut is made anew and the unit begun again; nothing of it was visible.

    Raises:
        SourceError, LakeError
    """
    tally = _UnitTotals(unit, _KnownRowFilter(unit.known) if unit.known else None)
    frames = _bronze_rows(unit, tally)
    few: list[pl.DataFrame] = []
    written: tuple[DataFile, ...] = ()
    if unit.keys_only:
        for _ in frames:
            pass
    else:
        few = _first_frames(frames, unit.few) if unit.inline else []
        if portion.size_of(few) >= unit.few or not unit.inline:
            written = _write_files(unit, chain(_popped(few), frames))
    return Written(
        unit.number,
        tally.rows,
        written,
        portion.plain(pl.concat(few)) if few else None,
        tuple(tally.rejected),
        tally.seen(),
        tally.sum,
        tally.findings,
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
        return files.data(unit.place, unit.stamp.batch_id, unit.stats, values)

    # What is still to be merged is no part of the table yet, nor of a partition.
    date = partition.column_of(unit.dates_of) if unit.dates_of and not unit.inline else None
    return partition.write(frames, new, date)


@dataclass
class _KnownRowFilter:
    """Holds back the rows that a table has already, and notes which of its own were seen."""

    known: Known

    def __post_init__(self) -> None:
        self._held: Fingerprints = known_rows.known(self.known)
        self._places = np.zeros(len(self._held), np.bool_)

    def new(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows that the table does not hold."""
        prints = known_rows.fingerprints(self.known, rows)
        there, places = known_rows.seen(self._held, prints)
        self._places[places] = True
        return rows.filter(pl.Series(~there & known_rows.shared(self.known, prints)))

    def seen(self) -> bytes:
        """The mask of what was seen."""
        return np.packbits(self._places).tobytes()


@dataclass
class _UnitTotals:
    """What is counted while rows pass by."""

    unit: Unit
    sieve: _KnownRowFilter | None
    rows: int = 0
    sum: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    findings: Findings = NOTHING_FOUND

    def passed(self, read_slice: tuple[pl.DataFrame, pl.Series]) -> pl.DataFrame:
        """The Bronze rows of one part that was read."""
        rows, rejected = read_slice
        unit = self.unit
        self.rows += rows.height
        if unit.keys_only:
            kept = protect.values(rows, unit.enrichment.protection)
            kept = key_text.with_text(kept, rows, rejected, unit.key, unit.enrichment.protection)
            return self.sieve.new(kept) if self.sieve else kept
        made, findings = enrich(rows, rejected, unit.stamp, unit.base, unit.enrichment)
        made = key_text.with_text(made, rows, rejected, unit.key, unit.enrichment.protection)
        # What is read several times, for as many shares of the table, is told once.
        if unit.known is None or unit.known.share == 0:
            self.findings += findings
        if rejected.null_count() < len(rejected):
            made = portion.beside(made, [rejected.alias(_REJECTED)])
        if unit.summed and made.height:
            self.sum = fingerprint.added(self.sum, fingerprint.total(made["row_hash"]))
        if unit.history:
            made = portion.beside(made, [_constant(history.KIND, "insert", pl.String(), made)])
        if unit.streamed:
            moments = _constant(COMMITTED, None, pl.Datetime("us", "UTC"), made)
            made = portion.beside(made, [moments])
        if unit.dates_of:
            made = partition.dated(made, unit.dates_of)
        if self.sieve:
            made = self.sieve.new(made)
        if unit.enrichment.watch:
            # The rows that the table holds have their scores.
            made, outliers = scored(made, unit.enrichment.watch, unit.key.names, unit.stamp)
            self.findings += Findings(outliers)
        if _REJECTED in made.columns:
            found = rejected_values(made, made[_REJECTED], unit.key.names or _NAMED)
            self.rejected += protect.rejections(found, unit.enrichment.protection)
            made = made.drop(_REJECTED)
        return made

    def seen(self) -> bytes:
        """The mask of what was seen of the table's own."""
        return self.sieve.seen() if self.sieve else b""


_REJECTED = "\0rejected"
# By what the records of a row without a key name it.
_NAMED = ("row_hash",)


def _constant(name: str, value: str | None, kind: pl.DataType, like: pl.DataFrame) -> pl.Series:
    return pl.Series(name, [value], kind).new_from_index(0, like.height)


# A row that is larger than a slice takes the room of several: one of them is there at a time.
_alone = threading.Lock()


def _bronze_rows(unit: Unit, tally: _UnitTotals) -> Iterator[pl.DataFrame]:
    # Unlike a loop, map keeps no slice while the next one is read.
    return map(tally.passed, _source_rows(unit))


def _source_rows(unit: Unit) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
    if unit.weighing is None:
        yield from _read(unit, unit.slices)
        return
    found = row_sizes.parts(unit.origin, unit.session, unit.weighing, unit.slices, unit.table)
    for heavy, parts in groupby(found, lambda part: part.heavy):
        wheres = [part.where for part in parts]
        if not heavy:
            yield from _read(unit, wheres)
            continue
        for where in wheres:
            with _alone:
                yield from _read(unit, [where])
                portion.release()


def _read(unit: Unit, wheres: Sequence[str]) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
    return read.rows(
        unit.origin,
        unit.session,
        unit.query,
        wheres,
        unit.columns,
        unit.table,
        guarded=unit.enrichment.protection is not None,
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
