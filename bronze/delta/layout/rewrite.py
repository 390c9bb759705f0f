"""Rewriting: writes the rows of some files to new files, in the order of a curve or as they are.

What fits into the memory of one job is read, sorted and written by one job (`write`). Anything
larger is sorted outside of memory first: `spread` sorts as many rows as fit and writes them to a
temporary file, with a row group for each range of the curve; then a job for each output file reads
its ranges from the temporary files.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from bronze import portion
from bronze.delta import file_names, files, store
from bronze.delta.layout.hilbert import Fence, Numbers, Scale, along, fence, keys, scales, split
from bronze.errors import Mismatch
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Place
from bronze.printable import count

# The rows of a group that are sampled for its scales, and those that are measured; how many row
# groups of a file are read for that.
_SAMPLE = 100_000
_WEIGHED = 1_000
_LOOKS = 8
# Row groups of large rows have few rows: at least this many rows of a file are read.
_LOOKED_AT = 50_000
# A job has a third of its memory for rows: sorting copies them, and sizes are estimates.
_ROOM = 3
# The values, and the bytes, of a row group of an output file.
_GROUP_VALUES = 1_200_000
_GROUP_BYTES = 12 * 2**20


@dataclass(frozen=True)
class Order:
    """The order to rewrite files of one partition, as about ``count`` files.

    ``by`` are the columns of the curve; without any, rows keep their order. ``layout`` has no
    partition column. ``batch_id`` names the new files, ``cluster`` (the clustering and the
    cluster) too. ``memory`` is what each job may take, in bytes.
    """

    number: int
    place: Place
    files: tuple[StoredFile, ...]
    layout: tuple[tuple[str, DeltaType], ...]
    by: tuple[str, ...]
    stats: tuple[str, ...]
    batch_id: str
    cluster: tuple[str, str] | None
    count: int
    memory: int


@dataclass(frozen=True)
class Made:
    """The result of an order: its new files, with as many ``rows`` as were read."""

    order: Order
    files: tuple[WrittenFile, ...]
    rows: int


@dataclass(frozen=True)
class Surveyed:
    """The size of a file: its rows, the bytes of a row in memory, and a sample of the rows."""

    number: int
    path: str
    rows: int
    width: float
    sample: Any = field(repr=False)


@dataclass(frozen=True)
class Look:
    """The job to survey one file by every ``step``-th row."""

    order: Order
    file: StoredFile
    step: int


@dataclass(frozen=True)
class Spread:
    """The job to sort some files of an order into ranges of the curve."""

    order: Order
    files: tuple[StoredFile, ...]
    by: tuple[Scale, ...]
    fence: Fence


@dataclass(frozen=True)
class Spill:
    """A temporary file; ``ranges`` has the range of the curve of each of its row groups."""

    file: WrittenFile
    ranges: tuple[int, ...]


@dataclass(frozen=True)
class Spilled:
    """The result of a `Spread`: how many rows it read, and its temporary files."""

    number: int
    read: int
    spills: tuple[Spill, ...]


Source = tuple[StoredFile | WrittenFile, tuple[int, ...] | None]
"""A file and some of its row groups; None means all."""


@dataclass(frozen=True)
class Write:
    """The job to write ``count`` files of an order.

    Each of ``piles`` fits into memory; it is sorted, and its rows follow those of the previous
    one.
    """

    order: Order
    piles: tuple[tuple[Source, ...], ...]
    by: tuple[Scale, ...] = ()
    count: int = 1


@dataclass(frozen=True)
class Written:
    """The result of a `Write`: how many rows it read, and the files it wrote."""

    number: int
    read: int
    files: tuple[WrittenFile, ...]


@dataclass
class _Progress:
    """The progress of an order, with a ``fence`` if it does not fit into the memory of a job."""

    order: Order
    by: tuple[Scale, ...] = ()
    fence: Fence | None = None
    bunches: tuple[tuple[StoredFile, ...], ...] = ()
    spilled: tuple[Spilled, ...] = ()


Steps = Generator[tuple[Callable[[Any], Any], Sequence[Any]], list[Any], list[Made]]


def steps(orders: Sequence[Order]) -> Steps:
    """Yields functions with their jobs, gets their results in any order, and returns the new files.

    Raises:
        Mismatch: the rows of an order that were written are not as many as those that were read.
        LakeError, LakeUnreachable: a file cannot be read or written.
    """
    looks = [look for order in orders if order.by for look in _looks(order)]
    seen = (yield survey, looks) if looks else []
    started = [_progress(order, [s for s in seen if s.number == order.number]) for order in orders]
    spreads = [job for progress in started for job in _spreads(progress)]
    spilled: list[Spilled] = []
    written: list[Written] = []
    try:
        spilled = (yield spread, spreads) if spreads else []
        for progress in started:
            progress.spilled = tuple(s for s in spilled if s.number == progress.order.number)
        written = yield write, [job for progress in started for job in _writes(progress)]
        return [_order_result(progress, written) for progress in started]
    except BaseException:
        discard(orders[0].place, [file for one in written for file in one.files])
        raise
    finally:
        discard(orders[0].place, [spill.file for one in spilled for spill in one.spills])


def discard(place: Place, unwanted: Iterable[WrittenFile]) -> None:
    """Deletes files that were not committed."""
    store.delete(place, [file.path for file in unwanted])


def _looks(order: Order) -> list[Look]:
    step = max(1, sum(max(file.rows, 0) for file in order.files) // _SAMPLE)
    return [Look(order, file, step) for file in order.files]


def survey(job: Look) -> Surveyed:
    """Surveys a file by a few of its row groups."""
    order = job.order
    parquet = files.open_parquet(order.place, job.file)
    footer = parquet.metadata
    looks = max(_LOOKS, _LOOKED_AT * footer.num_row_groups // max(1, footer.num_rows))
    groups = range(0, footer.num_row_groups, -(-footer.num_row_groups // looks) or 1)
    step = -(-job.step * len(groups) // max(1, footer.num_row_groups))
    layout = [(name, kind) for name, kind in order.layout if name in order.by]
    schema = pl.DataFrame(files.conform(pa.table({}), layout, {}, 0))
    parts = files.parts(parquet, layout, None, groups, dict(job.file.partition))
    sample = pl.concat([schema, *(pl.DataFrame(table)[::step] for _, table in parts)])
    size = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    first = footer.row_group(0).total_byte_size // footer.row_group(0).num_rows if size else 1
    weighed = max(1, min(_WEIGHED, _GROUP_BYTES // max(first, 1)))
    head = next(parquet.iter_batches(weighed, use_threads=False), None)
    width = max(size / max(1, footer.num_rows), head.nbytes / head.num_rows if head else 0)
    return Surveyed(order.number, job.file.path, footer.num_rows, width, sample)


def _progress(order: Order, seen: Sequence[Surveyed]) -> _Progress:
    if not order.by:
        return _Progress(order)
    sample = pl.concat([one.sample for one in seen])
    by = scales(sample, order.by)
    room = order.memory / _ROOM
    sizes = {one.path: one.rows * one.width for one in seen}
    size = sum(sizes.values())
    if size <= room:
        return _Progress(order, by)
    piles = max(1, int(-(-size // (room * order.count))))
    bunches: list[list[StoredFile]] = [[]]
    for file in order.files:
        if bunches[-1] and sum(sizes[f.path] for f in bunches[-1]) + sizes[file.path] > room:
            bunches.append([])
        bunches[-1].append(file)
    cut = fence(keys(sample, by), order.count * piles)
    return _Progress(order, by, cut, tuple(map(tuple, bunches)))


def _spreads(progress: _Progress) -> list[Spread]:
    if progress.fence is None:
        return []
    return [
        Spread(progress.order, bunch, progress.by, progress.fence) for bunch in progress.bunches
    ]


def _writes(progress: _Progress) -> list[Write]:
    order, cut = progress.order, progress.fence
    if cut is None:
        pile = tuple((file, None) for file in order.files)
        return [Write(order, (pile,), progress.by, order.count if progress.by else 1)]
    piles: list[list[Source]] = [[] for _ in range(cut.ranges)]
    for spill in (spill for one in progress.spilled for spill in one.spills):
        for group, number in enumerate(spill.ranges):
            piles[number].append((spill.file, (group,)))
    step = cut.ranges // order.count
    jobs = (tuple(map(tuple, piles[i : i + step])) for i in range(0, cut.ranges, step))
    return [Write(order, job, progress.by) for job in jobs]


def spread(job: Spread) -> Spilled:
    """Sorts files into ranges of the curve, as many rows at a time as fit into the memory.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read or written.
    """
    order, read = job.order, 0
    spills: list[Spill] = []
    room = order.memory / _ROOM
    try:
        for table in _regroup_tables(_tables(order, [(f, None) for f in job.files]), None, room):
            read += table.num_rows
            spills.append(_spill(job, pl.DataFrame(table)))
    except BaseException:
        discard(order.place, [spill.file for spill in spills])
        raise
    return Spilled(order.number, read, tuple(spills))


def _spill(job: Spread, frame: pl.DataFrame) -> Spill:
    rows, found = along(frame, job.by)
    starts = split(found, job.fence)
    ranges: list[int] = []

    def groups() -> Iterator[pa.Table]:
        for number in range(job.fence.ranges):
            few = rows[starts[number] : starts[number + 1]]
            for part in files.groups(files.arrow(frame[few])) if len(few) else ():
                ranges.append(number)
                yield part

    file = files.write(groups(), job.order.place, job.order.batch_id, ())
    if file is None:
        raise ValueError("there is nothing to spill")
    return Spill(file, tuple(ranges))


def write(job: Write) -> Written:
    """Writes files of an order.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read or written.
    """
    order, tally = job.order, [0]
    made: list[WrittenFile] = []
    name = (
        file_names.cluster_name(order.batch_id, *order.cluster) if order.cluster else order.batch_id
    )
    try:
        for frames in _outputs(job, tally):
            file = files.write(frames, order.place, name, order.stats, order.files[0].partition)
            if file is not None:
                made.append(file)
    except BaseException:
        discard(order.place, made)
        raise
    return Written(order.number, tally[0], tuple(made))


def _outputs(job: Write, tally: list[int]) -> Iterator[Iterator[pl.DataFrame | pa.Table]]:
    """The row groups of each file; the rows that were read for them are added to ``tally``."""
    if not job.by:
        size = portion.rows(_GROUP_VALUES, len(job.order.layout))
        tables = _count_rows(_tables(job.order, [s for pile in job.piles for s in pile]), tally)
        yield _regroup_tables(tables, size, _GROUP_BYTES)
    elif job.count == 1:
        yield (
            frame
            for pile in job.piles
            for frame in row_groups(*_sort_pile(job, pile, tally), len(job.order.layout))
        )
    else:
        frame, rows = _sort_pile(job, job.piles[0], tally)
        for part in np.array_split(rows, job.count):
            yield row_groups(frame, part, len(job.order.layout))


def _sort_pile(
    job: Write, pile: Sequence[Source], tally: list[int]
) -> tuple[pl.DataFrame, Numbers]:
    tables = list(_count_rows(_tables(job.order, pile), tally))
    if not tables:
        return pl.DataFrame(), np.empty(0, np.int64)
    frame = pl.concat([pl.DataFrame(table) for table in tables])
    return frame, along(frame, job.by)[0]


def row_groups(frame: pl.DataFrame, rows: Numbers, columns: int) -> Iterator[pl.DataFrame]:
    """The row groups of a file with these ``rows`` of a frame, in their order."""
    if not len(rows):
        return
    mean = portion.size(frame) / frame.height
    size = max(1, min(portion.rows(_GROUP_VALUES, columns), int(_GROUP_BYTES / max(mean, 1))))
    for start in range(0, len(rows), size):
        yield frame[rows[start : start + size]]


def _tables(order: Order, pile: Iterable[Source]) -> Iterator[pa.Table]:
    for file, groups in pile:
        parquet = files.open_parquet(order.place, file)
        constants = dict(file.partition)
        for _, table in files.parts(parquet, order.layout, None, groups, constants):
            yield table


def _count_rows(tables: Iterable[pa.Table], tally: list[int]) -> Iterator[pa.Table]:
    for table in tables:
        tally[0] += table.num_rows
        yield table


def _regroup_tables(
    tables: Iterable[pa.Table], rows: int | None, size: float
) -> Iterator[pa.Table]:
    """Tables joined until they have ``rows`` rows or ``size`` bytes."""
    held: list[pa.Table] = []
    height, weight = 0, 0
    for table in tables:
        if not table.num_rows:
            continue
        if held and weight + table.nbytes > size:
            yield pa.concat_tables(held)
            held, height, weight = [], 0, 0
        held.append(table)
        height, weight = height + table.num_rows, weight + table.nbytes
        if (rows is not None and height >= rows) or weight >= size:
            yield pa.concat_tables(held)
            held, height, weight = [], 0, 0
    if held:
        yield pa.concat_tables(held)


def _order_result(progress: _Progress, written: Sequence[Written]) -> Made:
    """The result of an order.

    Raises:
        Mismatch: rows were lost or duplicated.
    """
    order = progress.order
    mine = [one for one in written if one.number == order.number]
    made = tuple(file for one in mine for file in one.files)
    counts = {sum(one.read for one in mine), sum(file.rows for file in made)}
    if progress.fence is not None:
        spills = [spill for one in progress.spilled for spill in one.spills]
        counts |= {sum(one.read for one in progress.spilled), sum(s.file.rows for s in spills)}
    if all(file.rows >= 0 for file in order.files):
        counts.add(sum(file.rows for file in order.files))
    if len(counts) > 1:
        raise Mismatch(
            f"Rewriting {count(len(order.files), 'file')} of the table at {order.place.url} would"
            f" have changed the number of rows: {', '.join(map(str, sorted(counts)))}.",
            hint="Nothing was changed. If it happens again, verify the table.",
        )
    return Made(order, made, counts.pop())
