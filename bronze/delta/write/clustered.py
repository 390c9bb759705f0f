"""Writes the rows of a load as clustered files, once: a scratch file puts them in order first.

The rows of a unit do not fit into its memory. As many as fit are divided into ranges of the Hilbert
curve (`bronze.delta.layout.hilbert`) and appended to a scratch file on the worker's own disk. When
all rows have been read, each range is read back, sorted and written to the table. The ranges come
from the first rows, so a caller has to read its rows in an order in which these are a sample.

The scratch file has no name where the system allows that (`tempfile.TemporaryFile`): nothing of it
is left after the process has ended, however it ended.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import IO
from uuid import uuid4

import numpy as np
import polars as pl

from bronze import portion, stopping
from bronze.delta import file_names, files
from bronze.delta.files import Output
from bronze.delta.layout import file_groups, rewrite
from bronze.delta.layout.hilbert import Fence, Scale, fence, keys, order, scales
from bronze.errors import LakeError, Mismatch
from bronze.model.files import WrittenFile
from bronze.model.locations import Destination
from bronze.model.units import Clustering
from bronze.printable import count

# The rows of the first chunk from which the ranges are made.
_SAMPLE = 100_000
# How many chunks fit into the memory: one is kept, one is being joined from its parts, and one is
# for what polars takes to sort it.
_ROOM = 3
# A range of the curve is a part of a file. In memory rows take at most _GROWTH times their size in
# PostgreSQL, and _EXPANSION times their size in the scratch file (measured).
_FEWEST_RANGES = 32
_MOST_RANGES = 1_024
_GROWTH = 4
_EXPANSION = 4
# Each filter reads about the square root of the files of a cluster: fewer would skip next to none.
_FEWEST_FILES = 4
# Measured: the size of a row in a Parquet file, as a part of its size in the scratch file.
_SHRINKAGE = 0.45
_KEY = "\0place"


def write(
    frames: Iterable[pl.DataFrame], into: Destination, how: Clustering, estimate: int
) -> tuple[WrittenFile, ...]:
    """Writes the rows of all frames as the files of one cluster.

    Args:
        frames: rows of the table, the first ones a sample of all.
        into: the table.
        how: the clustering.
        estimate: about how many bytes the rows have in the source.

    Raises:
        LakeError: the folder of scratch files is full.
        LakeUnreachable: the files cannot be written.
        Mismatch: not as many rows were written as there were; no file is left.
    """
    spec = file_groups.clustering_id(how.by)
    name = file_names.cluster_name(into.stamp.batch_id, spec, uuid4().hex[:8])
    made: list[WrittenFile] = []
    try:
        with _scratch() as scratch:
            spill = _Spill(scratch, how, estimate)
            for _ in map(spill.add, frames):
                pass
            spill.finish()
            for groups in spill.outputs(len(into.columns)):
                output = files.data(into.place, name, into.stats)
                made += _write(output, groups)
            _check_rows(into, spill.rows, made)
    except BaseException:
        rewrite.discard(into.place, made)
        raise
    return tuple(made)


def _write(output: Output, groups: Iterator[pl.DataFrame]) -> list[WrittenFile]:
    with output:
        # Unlike a loop, map keeps no frame while the next one is made.
        for _ in map(output.add, groups):
            pass
    return [output.file] if output.file else []


def _check_rows(into: Destination, rows: int, made: Iterable[WrittenFile]) -> None:
    written = sum(file.rows for file in made)
    if written != rows:
        raise Mismatch(
            f"{count(rows, 'row was', 'rows were')} read for the table at {into.place.url},"
            f" and {written:,} written.",
            hint="Nothing was committed. Run again; if the error comes again, report it as a bug.",
        )


@contextmanager
def _scratch() -> Generator[IO[bytes], None, None]:
    """A scratch file.

    Raises:
        LakeError: it cannot be created.
    """
    try:
        file = tempfile.TemporaryFile(prefix="bronze-")  # noqa: SIM115 - closed below
    except OSError as error:
        raise _scratch_error(error) from None
    try:
        yield file
    finally:
        # Where the disk is full, a rest that cannot be written is reported again.
        with suppress(OSError):
            file.close()


def _scratch_error(error: OSError) -> LakeError:
    return LakeError(
        f"Rows cannot be sorted in a scratch file: {error.strerror or type(error).__name__}.",
        hint="Set TMPDIR to a folder with more space, or remove cluster_by.",
    )


@dataclass
class _Spill:
    """The rows of a unit in a scratch file, by range of the curve. A piece is one range of one
    chunk: its place in the file, and its length.
    """

    scratch: IO[bytes]
    how: Clustering
    estimate: int
    rows: int = 0
    _by: tuple[Scale, ...] = ()
    _fence: Fence | None = None
    _pieces: list[list[tuple[int, int]]] = field(default_factory=list)
    _size: int = 0
    _kept: list[pl.DataFrame] = field(default_factory=list)
    _kept_size: int = 0

    @property
    def _room(self) -> int:
        return self.how.memory // _ROOM

    def add(self, frame: pl.DataFrame) -> None:
        """Adds rows."""
        if not frame.height:
            return
        self.rows += frame.height
        self._kept.append(frame)
        self._kept_size += portion.size(frame)
        if self._kept_size >= self._room:
            self.finish()

    def finish(self) -> None:
        """Writes the rows that are still in memory."""
        stopping.check()
        if not self._kept:
            return
        chunk = pl.concat(self._kept, rechunk=True)
        self._kept, self._kept_size = [], 0
        cut = self._fence or self._ranges_of(chunk)
        places = keys(chunk, self._by)
        ranges = np.searchsorted(cut.keys, places, "right").astype(np.uint16)
        rows = np.argsort(ranges, kind="stable")
        starts = np.searchsorted(ranges[rows], np.arange(cut.ranges + 1))
        chunk = portion.with_columns(chunk, [pl.Series(_KEY, places)])
        for number in np.flatnonzero(np.diff(starts)):
            self._append(int(number), chunk[rows[starts[number] : starts[number + 1]]])

    def _ranges_of(self, sample: pl.DataFrame) -> Fence:
        """The ranges of the curve, from a sample of the rows."""
        count = -(-self.estimate * _GROWTH // max(self._room, 1))
        sample = sample[:: max(1, sample.height // _SAMPLE)]
        self._by = scales(sample, self.how.by)
        ranges = min(max(count, _FEWEST_RANGES), _MOST_RANGES)
        self._fence = fence(keys(sample, self._by), ranges)
        self._pieces = [[] for _ in range(ranges)]
        return self._fence

    def _append(self, number: int, rows: pl.DataFrame) -> None:
        piece = BytesIO()
        rows.write_ipc(piece, compression="lz4")
        try:
            self.scratch.write(piece.getbuffer())
            self.scratch.flush()
        except OSError as error:
            raise _scratch_error(error) from None
        self._pieces[number].append((self._size, piece.tell()))
        self._size += piece.tell()

    def outputs(self, columns: int) -> Iterator[Iterator[pl.DataFrame]]:
        """The row groups of each file, along the curve."""
        count = len(self._pieces)
        size = self._size * _SHRINKAGE
        wanted = min(count, max(_FEWEST_FILES, round(size / self.how.file_size)))
        for number in range(wanted):
            first, last = count * number // wanted, count * (number + 1) // wanted
            yield self._groups(range(first, last), columns)

    def _groups(self, ranges: Iterable[int], columns: int) -> Iterator[pl.DataFrame]:
        for pile in (pile for number in ranges for pile in self._piles(number)):
            frames = [self._read(*piece) for piece in pile]
            frame = pl.concat(frames, rechunk=True)
            frames.clear()
            rows = order(frame[_KEY].to_numpy(), frame, self._by)
            yield from rewrite.row_groups(frame.drop(_KEY), rows, columns)

    def _piles(self, number: int) -> Iterator[list[tuple[int, int]]]:
        """The pieces of a range: all at once, or as many as fit where it is larger than the
        sample said.
        """
        pieces = self._pieces[number]
        if not pieces:
            return
        size = sum(length for _, length in pieces) * _EXPANSION
        piles = min(len(pieces), max(1, -(-size // max(self._room, 1))))
        for pile in range(piles):
            yield pieces[pile::piles]

    def _read(self, start: int, length: int) -> pl.DataFrame:
        self.scratch.seek(start)
        return pl.read_ipc(BytesIO(self.scratch.read(length)))
