"""Drift: what has changed about a table's columns since it was last taken in, and what to do.

The Bronze table's own columns come first, in its order: those that the source still has, as wide
as both need them, and those that it has no more, which are NULL from now on. New ones follow. So
the row_hash of a row whose values did not change stays the same, whatever comes and goes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bronze.enrich.stamp import METADATA
from bronze.errors import TableRefused
from bronze.model import Column, Kind
from bronze.source.catalog import Relation
from bronze.source.statement import quoted
from bronze.source.types import absent, recast, wider

# Properties of a Bronze table in which it says what it was made from.
SOURCE, TABLE, OID, KEY, BASE, NUMBERS, PARTS, RULES = (
    f"bronze.{name}"
    for name in ("source", "table", "oid", "key", "base", "columns", "parts", "rules")
)


@dataclass(frozen=True)
class Settled:
    """The columns of a table's run. ``base`` is how many the table began with; ``rewrite`` says
    that files of the table have to be written anew, ``notes`` tell people what has changed.
    """

    columns: tuple[Column, ...]
    base: int
    rewrite: bool = False
    notes: tuple[str, ...] = ()


def settled(
    found: Sequence[Column],
    held: Sequence[tuple[str, Kind]],
    properties: Mapping[str, str],
    relation: Relation,
    added: Sequence[str] = (),
) -> Settled:
    """The columns of a run into a table that is there.

    Args:
        found: the contract of the source's columns.
        held: the Bronze table's columns, ours included.
        properties: the Bronze table's.
        relation: the source's table.
        added: columns that bronze adds to this table beside its usual ones.

    Raises:
        TableRefused: a column has become something that the table's column cannot hold.
    """
    ours = {*(name for name, _ in METADATA), *added}
    mine = {column.target: column for column in found}
    columns: list[Column] = []
    notes: list[str] = []
    rewrite = False
    known = json.loads(properties.get(NUMBERS, "{}"))
    now = {attribute.name: attribute.number for attribute in relation.attributes}
    for name, kind in held:
        if name in ours:
            continue
        if name not in mine:
            columns.append(absent(name, kind))
            if name in known:
                notes.append(_gone(name, known[name], found, properties, relation))
            continue
        if known and known.get(name) != now[mine[name].name] and _same(properties, relation):
            notes.append(f"column {name} was dropped and added again")
        column = _fitting(mine.pop(name), kind, relation)
        if column.kind != kind:
            rewrite = True
            notes.append(f"column {name} is widened from {kind} to {column.kind}")
        columns.append(column)
    base = int(properties.get(BASE, len(columns)))
    notes += [f"column {name} was added" for name in mine]
    return Settled((*columns, *mine.values()), base, rewrite, tuple(notes))


def _fitting(column: Column, held: Kind, relation: Relation) -> Column:
    both = wider(column.kind, held)
    if both is None:
        raise TableRefused(
            f"Column {column.name} of table {relation.label} has become {column.source_type},"
            f" which is {column.kind} in Delta; the Bronze table has {held} there.",
            hint="Nothing was changed. Either take it as a new column beside the old one,"
            f' rename = {{ "{column.name}" = "{column.target}_new" }}; or begin a new table,'
            ' target = "bz_…"; or move the Bronze table away, and it is loaded anew.',
            table=relation.label,
        )
    return column if both == column.kind else recast(column, quoted(column.name), both)


def _same(properties: Mapping[str, str], relation: Relation) -> bool:
    return properties.get(OID) == str(relation.oid)


def _gone(
    name: str,
    number: int,
    found: Sequence[Column],
    properties: Mapping[str, str],
    relation: Relation,
) -> str:
    """What to say of a column that the source has no more under its name."""
    names = {attribute.number: attribute.name for attribute in relation.attributes}
    if _same(properties, relation) and number in names:
        target = next(column.target for column in found if column.name == names[number])
        if names[number] == target:
            return (
                f"column {name} is called {target} now: it goes on under the new name,"
                f' unless the config says rename = {{ "{target}" = "{name}" }}'
            )
        return f"column {name} goes on as {target}: it is NULL from now on"
    return f"column {name} was dropped: it is NULL from now on"


def numbers(columns: Sequence[Column], relation: Relation) -> str:
    """The property that tells a renamed column from a new one: each column's attnum."""
    known = {attribute.name: attribute.number for attribute in relation.attributes}
    return json.dumps({c.target: known[c.name] for c in columns if c.name in known})


def parts(relation: Relation, streamed: bool) -> str:
    """The property that tells whether the same heaps make up the table, its partitions or heirs.

    A stream does not tell that a partition was truncated: there it also tells whether their files
    are the same.
    """
    known = sorted(relation.parts)
    if streamed and relation.kind == "partitioned":
        known += sorted(relation.stores)
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
