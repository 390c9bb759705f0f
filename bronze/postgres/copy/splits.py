"""Splits of a table: SQL conditions; for each row exactly one of them is true.

Tables are split by pages, as ranges of ``ctid``. That needs no key, gives even splits however the
data is skewed, and is complete by construction: the first range starts at the first page and the
last one is open. Where there are many partitions, they are read one after another: a SELECT from
their parent plans and opens all of them for each range. A relation without pages, or whose ``ctid``
the role may not read, is split by ranges of its first key column, or not at all. So is a table with
a key on servers that scan the whole table for each range of ``ctid``.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from bronze.model.units import PAGES, PageRange, SplitGroup
from bronze.postgres.catalog.operators import DEFAULT_OPERATORS, comparison_operators
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.statement import literal, quoted

# Values out of line are usually compressed: they need more memory than disk space.
TOAST_GROWTH = 4
# Since PostgreSQL 14 a range of ctid is read without a scan of the whole table.
CTID_RANGES_VERSION = 140_000
# How many times the pages of a split one page of each heap may have.
_PAGES_OVER = 2
# Measured: a range of a parent takes PostgreSQL 0.1 ms longer for each heap; one that is read by
# itself takes us 7 ms, however small it is. So heaps of a quarter of a split are read by
# themselves, and heaps of which one page each is too much, if there are more ranges than this.
_PART_OF_SPLIT = 4
_FEW_RANGES = 32

WHOLE_TABLE = "true"


@dataclass(frozen=True)
class Split:
    """The SQL condition of a split, and the estimated size of its rows in bytes."""

    where: str
    size: int


def splits_of(
    connection: Connection, relation: Relation, version: int, size: int, key: Sequence[str]
) -> list[Split]:
    """The splits of a relation, of about ``size`` bytes each; at least one.

    Args:
        connection: in the run's snapshot.
        relation: the relation to split.
        version: the server's version, as in server_version_num.
        size: the bytes of source data per split.
        key: the key columns; ranges of the first are used where pages cannot be.
    """
    if by_pages(relation, version, key):
        return list(page_ranges(relation, size))
    total = _estimated_size(connection, relation)
    count = -(-total // size)
    if count <= 1 or not key:
        return [Split(WHOLE_TABLE, total)]
    return key_ranges(connection, relation, key[0], count, total)


def by_pages(relation: Relation, version: int, key: Sequence[str]) -> bool:
    """Whether a relation is split by pages, which asks nothing of the server; arguments as of
    `splits_of`.
    """
    # Without a key an older server scans the table once per range: slow, but with bounded memory.
    return has_page_ranges(relation, version if key else CTID_RANGES_VERSION)


def has_page_ranges(relation: Relation, version: int) -> bool:
    """Whether a relation can be split by pages."""
    return bool(relation.heaps) and version >= CTID_RANGES_VERSION and "ctid" in relation.system


def size_of(relation: Relation) -> int:
    """The estimated size of the rows in bytes, uncompressed; 0 for a relation without pages."""
    return sum(relation.heaps) * relation.page + TOAST_GROWTH * relation.toast


def page_groups(relation: Relation, size: int, largest: int) -> list[SplitGroup]:
    """Splits by ranges of ctid, of about ``size`` bytes, in groups of up to ``largest`` bytes.

    Large heaps are read one after another where the role may; otherwise the table is read as a
    whole, with ranges that apply to each of its heaps.
    """
    per_page = bytes_per_page(relation)
    step, most = max(1, size // per_page), max(1, largest // per_page)
    by_heap = relation.leaves and _are_large(relation.heaps, step)
    if len(relation.heaps) > 1 and not by_heap:
        parts = list(page_ranges(relation, size))
        return [condition_group(group) for group in group_splits(parts, largest)]
    heaps = zip(relation.leaves if by_heap else ("",), relation.heaps, strict=True)
    groups: list[SplitGroup] = []
    ranges: list[PageRange] = []
    pages = 0
    for heap, end in heaps:
        low, rest = 0, max(end, 1)
        while rest > most - pages:
            taken = (most - pages) // step * step or (0 if ranges else min(step, rest))
            if taken >= rest:
                break
            if taken:
                ranges.append(PageRange(low, low + taken, step, False, heap))
            groups.append(_page_group(ranges, per_page))
            ranges, pages, low, rest = [], 0, low + taken, rest - taken
        ranges.append(PageRange(low, low + rest, step, True, heap))
        pages += rest
    return [*groups, _page_group(ranges, per_page)]


def _are_large(heaps: Sequence[int], step: int) -> bool:
    """Whether it is faster to read heaps by themselves, ``step`` pages at a time."""
    are_many = len(heaps) > _PAGES_OVER * step and max(heaps) > _FEW_RANGES
    return are_many or sum(heaps) * _PART_OF_SPLIT > len(heaps) * step


def _page_group(ranges: Sequence[PageRange], per_page: int) -> SplitGroup:
    size = sum(part.end - part.low for part in ranges) * per_page
    return SplitGroup(size, ranges=tuple(ranges))


def total_of(relation: Relation) -> int:
    """The size of all splits of a relation that is split by pages."""
    return sum(relation.heaps) * bytes_per_page(relation)


def condition_group(parts: Sequence[Split]) -> SplitGroup:
    """The group of some splits."""
    return SplitGroup(sum(part.size for part in parts), tuple(part.where for part in parts))


def bytes_per_page(relation: Relation) -> int:
    """The mean size of the rows of a page, uncompressed."""
    return size_of(relation) // max(sum(relation.heaps), 1) or relation.page


def page_ranges(relation: Relation, size: int) -> Iterator[Split]:
    """Splits by ranges of ctid; a SELECT applies a range to each heap (partition) of the table.

    One page of each of very many heaps is more than a split may have: then each range is divided by
    the heaps.
    """
    per_page = bytes_per_page(relation)
    most = max(1, size // per_page)
    bounds, pages = _bounds(sorted(relation.heaps), most)
    for low, high, count in zip([0, *bounds], [*bounds, None], pages, strict=True):
        where = f"{PAGES}'({low},0)'::tid"
        if high is not None:
            where += f" AND ctid < '({high},0)'::tid"
        shares = -(-count // (_PAGES_OVER * most))
        for share in range(shares) if shares > 1 else ():
            of_share = f"(hashoid(tableoid) & 2147483647) % {shares} = {share}"
            yield Split(f"{where} AND {of_share}", count * per_page // shares)
        if shares <= 1:
            yield Split(where, count * per_page)


def _bounds(heaps: Sequence[int], pages: int) -> tuple[list[int], list[int]]:
    """Divides heaps into ranges of page numbers that hold at most ``pages`` pages over all heaps.

    A range is at least one page high.

    Args:
        heaps: the pages of each heap, sorted.
        pages: the most pages in a range.

    Returns:
        The bounds between the ranges, and the number of pages in each range.
    """
    bounds: list[int] = []
    counts: list[int] = []
    low, last = 0, max(heaps, default=0)
    ended, sums = 0, [0, *accumulate(heaps)]

    def below(high: int) -> int:
        """How many pages all heaps have below a page number."""
        place = bisect_left(heaps, high)
        return sums[place] + high * (len(heaps) - place)

    while True:
        # Beyond the end of some heaps a range of the same height holds fewer pages.
        ended = bisect_right(heaps, low, ended)
        height = max(1, pages // max(len(heaps) - ended, 1))
        high = low + height
        counts.append(below(high) - below(low))
        if high >= last:
            return bounds, counts
        bounds.append(high)
        low = high


def key_ranges(
    connection: Connection, relation: Relation, column: str, count: int, total: int
) -> list[Split]:
    """Splits by ranges of one column between its quantiles; the first includes its NULLs."""
    name = quoted(column)
    operators = comparison_operators(connection, relation.schema, relation.name).get(
        column, DEFAULT_OPERATORS
    )
    shares = [i / count for i in range(1, count)]
    row: Any = connection.execute(
        f"SELECT percentile_disc(ARRAY{shares}::float8[]) WITHIN GROUP (ORDER BY {name})::text[],"  # noqa: S608
        f" format_type(pg_typeof(percentile_disc(0) WITHIN GROUP (ORDER BY {name}))::oid, -1)"
        f" FROM {quoted(relation.schema, relation.name)}"
    ).fetchone()
    quantiles, type_name = row
    bounds = [
        f"{literal(quantile)}::{type_name}"
        for quantile in dict.fromkeys(quantiles or [])
        if quantile is not None
    ]
    if not bounds:
        return [Split(WHOLE_TABLE, total)]
    wheres = [f"({name} {operators.less} {bounds[0]} OR {name} IS NULL)"]
    wheres += [
        f"{name} {operators.at_least} {low} AND {name} {operators.less} {high}"
        for low, high in pairwise(bounds)
    ]
    wheres.append(f"{name} {operators.at_least} {bounds[-1]}")
    return [Split(where, total // len(wheres)) for where in wheres]


def _estimated_size(connection: Connection, relation: Relation) -> int:
    names = ", ".join(quoted(a.name) for a in relation.attributes if a.readable)
    table = quoted(relation.schema, relation.name)
    query = f"EXPLAIN (FORMAT JSON) SELECT {names} FROM {table}"  # noqa: S608 - quoted names
    row: Any = connection.execute(query).fetchone()
    plan = (json.loads(row[0]) if isinstance(row[0], str) else row[0])[0]["Plan"]
    return int(plan["Plan Rows"] * max(plan["Plan Width"], 1)) + TOAST_GROWTH * relation.toast


def group_splits(parts: Sequence[Split], size: int) -> list[list[Split]]:
    """Groups of adjacent splits of up to ``size`` bytes, one for each file."""
    groups: list[list[Split]] = []
    group_size = 0
    for part in parts:
        if groups and group_size + part.size <= size:
            groups[-1].append(part)
            group_size += part.size
        else:
            groups.append([part])
            group_size = part.size
    return groups
