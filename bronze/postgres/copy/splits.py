"""Tables are split into slices: conditions that together are true for every row exactly once.

Heaps are split by pages, as ranges of ``ctid``: that needs no key, is even however the data is
skewed, and is complete by construction, as the first range starts at the first page and the last
one is open. What has no pages, or keeps its ``ctid`` from the role, is split by ranges of its first
key column, or read whole; and so is what has a key on servers that read a whole heap for each
range.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from bronze.postgres.catalog.operators import PLAIN, comparisons
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection.connect import Connection
from bronze.postgres.statement import literal, quoted

# A value stored out of line is usually compressed: it takes more room with us than on disk.
TOAST_GROWTH = 4
# PostgreSQL 14 is the first that scans a range of ctids without reading the whole table.
CTID_RANGES = 140_000

WHOLE = "true"


@dataclass(frozen=True)
class Slice:
    """A condition in SQL, and about how many bytes the rows have that meet it."""

    where: str
    size: int


def slices(
    connection: Connection, relation: Relation, version: int, size: int, key: Sequence[str]
) -> list[Slice]:
    """Slices of about ``size`` bytes each; never none.

    Args:
        connection: in the run's snapshot.
        relation: what to split.
        version: the server's, as in server_version_num.
        size: the bytes of source data that one slice should hold.
        key: columns whose first one may be used for ranges where there are no pages.
    """
    # Without a key an older server reads the heap as often as there are ranges: slow, and bounded.
    if paged(relation, version if key else CTID_RANGES):
        return list(by_pages(relation, size))
    total = _estimate(connection, relation)
    count = -(-total // size)
    if count <= 1 or not key:
        return [Slice(WHOLE, total)]
    return by_key(connection, relation, key[0], count, total)


def paged(relation: Relation, version: int) -> bool:
    """Whether a table can be split by its pages."""
    return bool(relation.heaps) and version >= CTID_RANGES and "ctid" in relation.system


def size_of(relation: Relation) -> int:
    """About how many bytes the rows have, uncompressed; 0 for what has no pages."""
    return sum(relation.heaps) * relation.page + TOAST_GROWTH * relation.toast


def by_pages(relation: Relation, size: int) -> Iterator[Slice]:
    """Ranges of ctid over all heaps of a table at once, which a SELECT from it applies to each."""
    per_page = size_of(relation) // max(sum(relation.heaps), 1) or relation.page
    bounds, weights = _bounds(sorted(relation.heaps), max(1, size // per_page))
    for low, high, weight in zip([0, *bounds], [*bounds, None], weights, strict=True):
        where = f"ctid >= '({low},0)'::tid"
        if high is not None:
            where += f" AND ctid < '({high},0)'::tid"
        yield Slice(where, weight * per_page)


def _bounds(heaps: Sequence[int], pages: int) -> tuple[list[int], list[int]]:
    """The inner bounds of ranges that hold at most ``pages`` pages over all heaps, or one page.

    Returns them with the pages that each range holds, one more than there are bounds.
    """
    bounds: list[int] = []
    weights: list[int] = []
    low, last = 0, max(heaps, default=0)
    while True:
        # As heaps end, a range of the same height holds fewer pages: so it may be higher.
        open_heaps = sum(1 for heap in heaps if heap > low)
        height = max(1, pages // max(open_heaps, 1))
        high = low + height
        weights.append(sum(max(0, min(heap, high) - low) for heap in heaps))
        if high >= last:
            return bounds, weights
        bounds.append(high)
        low = high


def by_key(
    connection: Connection, relation: Relation, column: str, count: int, total: int
) -> list[Slice]:
    """Ranges of one column at its quantiles; rows where it is NULL are in the first one."""
    name = quoted(column)
    how = comparisons(connection, relation.schema, relation.name).get(column, PLAIN)
    shares = [i / count for i in range(1, count)]
    row: Any = connection.execute(
        f"SELECT percentile_disc(ARRAY{shares}::float8[]) WITHIN GROUP (ORDER BY {name})::text[],"  # noqa: S608
        f" format_type(pg_typeof(percentile_disc(0) WITHIN GROUP (ORDER BY {name}))::oid, -1)"
        f" FROM {quoted(relation.schema, relation.name)}"
    ).fetchone()
    found, kind = row
    bounds = [f"{literal(b)}::{kind}" for b in dict.fromkeys(found or []) if b is not None]
    if not bounds:
        return [Slice(WHOLE, total)]
    wheres = [f"({name} {how.less} {bounds[0]} OR {name} IS NULL)"]
    wheres += [
        f"{name} {how.at_least} {low} AND {name} {how.less} {high}"
        for low, high in pairwise(bounds)
    ]
    wheres.append(f"{name} {how.at_least} {bounds[-1]}")
    return [Slice(where, total // len(wheres)) for where in wheres]


def _estimate(connection: Connection, relation: Relation) -> int:
    names = ", ".join(quoted(a.name) for a in relation.attributes if a.readable)
    table = quoted(relation.schema, relation.name)
    query = f"EXPLAIN (FORMAT JSON) SELECT {names} FROM {table}"  # noqa: S608 - quoted names
    row: Any = connection.execute(query).fetchone()
    plan = (json.loads(row[0]) if isinstance(row[0], str) else row[0])[0]["Plan"]
    return int(plan["Plan Rows"] * max(plan["Plan Width"], 1)) + TOAST_GROWTH * relation.toast


def packed(parts: Sequence[Slice], size: int) -> list[list[Slice]]:
    """Neighbouring slices together until they hold ``size`` bytes: what one file is made of."""
    units: list[list[Slice]] = []
    filled = 0
    for part in parts:
        if units and filled + part.size <= size:
            units[-1].append(part)
            filled += part.size
        else:
            units.append([part])
            filled = part.size
    return units
