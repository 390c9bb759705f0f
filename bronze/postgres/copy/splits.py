"""Splits of a table: SQL conditions; for each row exactly one of them is true.

Tables are split by pages, as ranges of ``ctid``. That needs no key, gives even splits however the
data is skewed, and is complete by construction: the first range starts at the first page and the
last one is open. A relation without pages, or whose ``ctid`` the role may not read, is split by
ranges of its first key column, or not at all. So is a table with a key on servers that scan the
whole table for each range of ``ctid``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bronze.postgres.catalog.operators import DEFAULT_OPERATORS, comparison_operators
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.statement import literal, quoted

# Values out of line are usually compressed: they need more memory than disk space.
TOAST_GROWTH = 4
# Since PostgreSQL 14 a range of ctid is read without a scan of the whole table.
CTID_RANGES_VERSION = 140_000

WHOLE_TABLE = "true"
PAGES = "ctid >= "
"""The beginning of the condition of a split that is a range of pages."""


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


def page_ranges(relation: Relation, size: int) -> Iterator[Split]:
    """Splits by ranges of ctid; a SELECT applies a range to each heap (partition) of the table."""
    per_page = size_of(relation) // max(sum(relation.heaps), 1) or relation.page
    bounds, pages = _bounds(sorted(relation.heaps), max(1, size // per_page))
    for low, high, count in zip([0, *bounds], [*bounds, None], pages, strict=True):
        where = f"{PAGES}'({low},0)'::tid"
        if high is not None:
            where += f" AND ctid < '({high},0)'::tid"
        yield Split(where, count * per_page)


def _bounds(heaps: Sequence[int], pages: int) -> tuple[list[int], list[int]]:
    """Divides heaps into ranges of page numbers that hold at most ``pages`` pages over all heaps.

    A range is at least one page high.

    Returns:
        The bounds between the ranges, and the number of pages in each range.
    """
    bounds: list[int] = []
    counts: list[int] = []
    low, last = 0, max(heaps, default=0)
    while True:
        # Beyond the end of some heaps a range of the same height holds fewer pages.
        open_heaps = sum(1 for heap in heaps if heap > low)
        height = max(1, pages // max(open_heaps, 1))
        high = low + height
        counts.append(sum(max(0, min(heap, high) - low) for heap in heaps))
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
