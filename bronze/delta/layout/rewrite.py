"""Rewriting: the rows of some files are written anew, in the order of a curve or as they are.

What fits in one
job's memory is read, sorted and written by one job (`write`). What does not is sorted outside of
memory first: `spread` sorts as many rows as fit and writes them to a file that nobody sees, a row
group for each range of the curve; then each output file is a job that takes its ranges from there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from bronze import portion
from bronze.delta import files, store
from bronze.delta.layout.hilbert import Fence, Numbers, Scale, along, fence, keys, scales, split
from bronze.errors import Mismatch
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Place

# Of a group's rows so many are looked at to draw its scales, and these many to learn their size.
_SAMPLE = 100_000
_WEIGHED = 1_000
_LOOKS = 8
# Row groups of large rows have few of them: so many rows of a file are looked at, at least.
_LOOKED_AT = 50_000
# What a job holds at once is a part of its memory: sorting copies, and sizes are estimates.
_ROOM = 3
# As many values make a row group of an output file, or as many bytes.
_GROUP_VALUES = 1_200_000
_GROUP_BYTES = 12 * 2**20


@dataclass(frozen=True)
class Order:
    """Files of one partition that are to be written anew, as about ``count`` files.

    ``by`` are the columns of the curve; without any, rows stay as they come. ``layout`` has no
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
    """What became of an order: ``rows`` were read and written again."""

    order: Order
    files: tuple[WrittenFile, ...]
    rows: int


@dataclass(frozen=True)
class Surveyed:
    """What a file holds: its rows, the bytes that one takes in memory, and a sample of them."""

    number: int
    path: str
    rows: int
    width: float
    sample: Any = field(repr=False)


@dataclass(frozen=True)
class Look:
    """The job to survey one file: to see every ``step``-th row of it."""

    order: Order
    file: StoredFile
    step: int


@dataclass(frozen=True)
class Spread:
    """The job to sort some of an order's files into ranges of the curve."""

    order: Order
    files: tuple[StoredFile, ...]
    by: tuple[Scale, ...]
    fence: Fence


@dataclass(frozen=True)
class Spill:
    """A file in between: ``ranges`` tells for each of its row groups the range that it is of."""

    file: WrittenFile
    ranges: tuple[int, ...]


@dataclass(frozen=True)
class Spilled:
    """What one `Spread` read, and where it is now."""

    number: int
    read: int
    spills: tuple[Spill, ...]


Source = tuple[StoredFile | WrittenFile, tuple[int, ...] | None]
"""A file and those of its row groups that are meant; None means all."""


@dataclass(frozen=True)
class Write:
    """The job to write ``count`` files of an order.

    Each of ``piles`` fits in memory; it is sorted, and follows the one before it.
    """

    order: Order
    piles: tuple[tuple[Source, ...], ...]
    by: tuple[Scale, ...] = ()
    count: int = 1


@dataclass(frozen=True)
class Written:
    """What one `Write` read and wrote."""

    number: int
    read: int
    files: tuple[WrittenFile, ...]


@dataclass
class _Course:
    """How far an order is; ``fence`` is there if it does not fit in one job's memory."""

    order: Order
    by: tuple[Scale, ...] = ()
    fence: Fence | None = None
    bunches: tuple[tuple[StoredFile, ...], ...] = ()
    spilled: tuple[Spilled, ...] = ()


Steps = Generator[tuple[Callable[[Any], Any], Sequence[Any]], list[Any], list[Made]]


def steps(orders: Sequence[Order]) -> Steps:
    """Yields functions with their jobs, is sent their results in any order; returns what was made.

    Raises:
        Mismatch: an order's rows that were read are not those that were written.
        LakeError, LakeUnreachable: a file cannot be read or written.
    """
    looks = [look for order in orders if order.by for look in _looks(order)]
    seen = (yield survey, looks) if looks else []
    courses = [_course(order, [s for s in seen if s.number == order.number]) for order in orders]
    spreads = [job for course in courses for job in _spreads(course)]
    spilled: list[Spilled] = []
    written: list[Written] = []
    try:
        spilled = (yield spread, spreads) if spreads else []
        for course in courses:
            course.spilled = tuple(s for s in spilled if s.number == course.order.number)
        written = yield write, [job for course in courses for job in _writes(course)]
        return [_made(course, written) for course in courses]
    except BaseException:
        discard(orders[0].place, [file for one in written for file in one.files])
        raise
    finally:
        discard(orders[0].place, [spill.file for one in spilled for spill in one.spills])


def discard(place: Place, unwanted: Iterable[WrittenFile]) -> None:
    """Deletes files that nobody sees."""
    store.delete(place, [file.path for file in unwanted])


def _looks(order: Order) -> list[Look]:
    step = max(1, sum(max(file.rows, 0) for file in order.files) // _SAMPLE)
    return [Look(order, file, step) for file in order.files]


def survey(job: Look) -> Surveyed:
    """Does one job: looks at a few row groups of a file."""
    order = job.order
    parquet = files.opened(order.place, job.file)
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


def _course(order: Order, seen: Sequence[Surveyed]) -> _Course:
    if not order.by:
        return _Course(order)
    sample = pl.concat([one.sample for one in seen])
    by = scales(sample, order.by)
    room = order.memory / _ROOM
    sizes = {one.path: one.rows * one.width for one in seen}
    size = sum(sizes.values())
    if size <= room:
        return _Course(order, by)
    piles = max(1, int(-(-size // (room * order.count))))
    bunches: list[list[StoredFile]] = [[]]
    for file in order.files:
        if bunches[-1] and sum(sizes[f.path] for f in bunches[-1]) + sizes[file.path] > room:
            bunches.append([])
        bunches[-1].append(file)
    cut = fence(keys(sample, by), order.count * piles)
    return _Course(order, by, cut, tuple(map(tuple, bunches)))


def _spreads(course: _Course) -> list[Spread]:
    if course.fence is None:
        return []
    return [Spread(course.order, bunch, course.by, course.fence) for bunch in course.bunches]


def _writes(course: _Course) -> list[Write]:
    order, cut = course.order, course.fence
    if cut is None:
        pile = tuple((file, None) for file in order.files)
        return [Write(order, (pile,), course.by, order.count if course.by else 1)]
    piles: list[list[Source]] = [[] for _ in range(cut.ranges)]
    for spill in (spill for one in course.spilled for spill in one.spills):
        for group, number in enumerate(spill.ranges):
            piles[number].append((spill.file, (group,)))
    step = cut.ranges // order.count
    jobs = (tuple(map(tuple, piles[i : i + step])) for i in range(0, cut.ranges, step))
    return [Write(order, job, course.by) for job in jobs]


def spread(job: Spread) -> Spilled:
    """Does one job: as many rows as fit are sorted and written at a time.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read or written.
    """
    order, read = job.order, 0
    spills: list[Spill] = []
    room = order.memory / _ROOM
    try:
        for table in _gathered(_tables(order, [(f, None) for f in job.files]), None, room):
            read += table.num_rows
            spills.append(_spilled(job, pl.DataFrame(table)))
    except BaseException:
        discard(order.place, [spill.file for spill in spills])
        raise
    return Spilled(order.number, read, tuple(spills))


def _spilled(job: Spread, frame: pl.DataFrame) -> Spill:
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
    """Does one job.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read or written.
    """
    order, tally = job.order, [0]
    made: list[WrittenFile] = []
    name = files.clustered(order.batch_id, *order.cluster) if order.cluster else order.batch_id
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
    size = portion.rows(_GROUP_VALUES, len(job.order.layout))
    if not job.by:
        tables = _count_rows(_tables(job.order, [s for pile in job.piles for s in pile]), tally)
        yield _gathered(tables, size, _GROUP_BYTES)
    elif job.count == 1:
        yield (frame for pile in job.piles for frame in _slices(*_sorted(job, pile, tally), size))
    else:
        frame, rows = _sorted(job, job.piles[0], tally)
        for part in np.array_split(rows, job.count):
            yield _slices(frame, part, size)


def _sorted(job: Write, pile: Sequence[Source], tally: list[int]) -> tuple[pl.DataFrame, Numbers]:
    tables = list(_count_rows(_tables(job.order, pile), tally))
    if not tables:
        return pl.DataFrame(), np.empty(0, np.int64)
    frame = pl.concat([pl.DataFrame(table) for table in tables])
    return frame, along(frame, job.by)[0]


def _slices(frame: pl.DataFrame, rows: Numbers, size: int) -> Iterator[pl.DataFrame]:
    if not len(rows):
        return
    mean = portion.size(frame) / frame.height
    size = max(1, min(size, int(_GROUP_BYTES / max(mean, 1))))
    for start in range(0, len(rows), size):
        yield frame[rows[start : start + size]]


def _tables(order: Order, pile: Iterable[Source]) -> Iterator[pa.Table]:
    for file, groups in pile:
        parquet = files.opened(order.place, file)
        constants = dict(file.partition)
        for _, table in files.parts(parquet, order.layout, None, groups, constants):
            yield table


def _count_rows(tables: Iterable[pa.Table], tally: list[int]) -> Iterator[pa.Table]:
    for table in tables:
        tally[0] += table.num_rows
        yield table


def _gathered(tables: Iterable[pa.Table], rows: int | None, size: float) -> Iterator[pa.Table]:
    """Tables joined until they have so many rows, or bytes."""
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


def _made(course: _Course, written: Sequence[Written]) -> Made:
    """Proves that no row was lost or doubled on the way."""
    order = course.order
    mine = [one for one in written if one.number == order.number]
    made = tuple(file for one in mine for file in one.files)
    counts = {sum(one.read for one in mine), sum(file.rows for file in made)}
    if course.fence is not None:
        spills = [spill for one in course.spilled for spill in one.spills]
        counts |= {sum(one.read for one in course.spilled), sum(s.file.rows for s in spills)}
    if all(file.rows >= 0 for file in order.files):
        counts.add(sum(file.rows for file in order.files))
    if len(counts) > 1:
        raise Mismatch(
            f"Rewriting {len(order.files)} files of the table at {order.place.url} would have"
            f" changed the number of their rows: {', '.join(map(str, sorted(counts)))}.",
            hint="Nothing was changed. If it happens again, verify the table.",
        )
    return Made(order, made, counts.pop())
