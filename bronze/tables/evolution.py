"""Drift: what has changed about a table's columns since it was last taken in, and what to do.

The Bronze table's own columns come first, in its order: those that the source still has, as wide
as both need them, and those that it has no more, which are NULL from now on. New ones follow. So
the row_hash of a row whose values did not change stays the same, whatever comes and goes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bronze.delta.files import arrow_type
from bronze.delta.properties import (
    BASE,
    FORMER,
    KEY,
    KEYED,
    LAYOUT,
    NUMBERS,
    OID,
    PROTECT,
    SCHEMA,
    TABLE,
    THRESHOLDS,
    WATCHED,
    WIDENED,
    mapping_in,
    names_in,
    numbers_in,
    value,
)
from bronze.delta.schema import delta_schema, kinds
from bronze.delta.write.history import KIND
from bronze.errors import TableRefused
from bronze.model.anomaly import ANOMALY_COLUMNS
from bronze.model.columns import KEY_TEXT, Column, DeltaType, ProtectionRule
from bronze.model.files import RowFormat
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.catalog.types import absent_column, common_kind, recast_column
from bronze.postgres.statement import quoted
from bronze.rows.metadata import COMMIT_TIMESTAMP, METADATA_COLUMNS


@dataclass(frozen=True)
class ColumnContract:
    """The columns of a table's run. ``base`` is how many the table began with; ``rewrite`` says
    that files of the table have to be written anew, ``anew`` that all its rows have to be read and
    written anew, ``notes`` tell people what has changed.
    """

    columns: tuple[Column, ...]
    base: int
    rewrite: bool = False
    notes: tuple[str, ...] = ()
    reload: bool = False


def resolve_contract(
    found: Sequence[Column],
    held: Sequence[tuple[str, DeltaType]],
    properties: Mapping[str, str],
    relation: Relation,
    added: Sequence[str] = (),
    dropped: Sequence[str] = (),
) -> ColumnContract:
    """The columns of a run into a table that is there.

    Args:
        found: the contract of the source's columns.
        held: the Bronze table's columns, ours included.
        properties: the Bronze table's.
        relation: the source's table.
        added: columns that bronze adds to this table beside its usual ones.
        dropped: columns that the config does not take.

    Raises:
        TableRefused: a column has become something that the table's column cannot hold.
    """
    ours = {*(name for name, _ in METADATA_COLUMNS), KEY_TEXT, *added}
    found = tuple(_respelled(found, [name for name, _ in held]))
    mine = {column.target: column for column in found}
    gone = {name.lower() for name in dropped}
    columns: list[Column] = []
    notes: list[str] = []
    rewrite = False
    before = protected_columns(properties)
    changed: list[str] = []
    known = _numbers(properties)
    now = {attribute.name: attribute.number for attribute in relation.attributes}
    for name, kind in held:
        if name in ours:
            continue
        how, kind = before.get(name, (None, kind))
        if name.lower() in gone:
            changed.append(name)
            continue
        if name not in mine:
            columns.append(replace(absent_column(name, kind), protect=how))
            if name in known:
                notes.append(_dropped_columns(name, known[name], found, properties, relation))
            continue
        if known and known.get(name) != now[mine[name].name] and _same(properties, relation):
            notes.append(f"column {name} was dropped and added again")
        if mine[name].protect != how:
            changed.append(name)
            columns.append(mine.pop(name))
            continue
        column = _fitting(mine.pop(name), kind, relation)
        if column.kind != kind:
            rewrite |= column.protect is None
            notes.append(f"column {name} is widened from {kind} to {column.kind}")
        columns.append(column)
    base = value(properties, BASE, len(columns), int)
    notes += [f"column {name} was added" for name in mine]
    columns += mine.values()
    if changed:
        notes.append(f"the protection of {', '.join(changed)} has changed: {ANEW}")
        base = len(columns)
    return ColumnContract(tuple(columns), base, rewrite, tuple(notes), bool(changed))


def _respelled(found: Sequence[Column], held: Sequence[str]) -> Iterator[Column]:
    """The columns under the table's own spelling of their names: to those who read it, names that
    differ in nothing but case are the same one, and no table can have both.
    """
    known = {name.lower(): name for name in held}
    for column in found:
        own = column.target if column.target in held else known.get(column.target.lower())
        yield replace(column, target=own) if own else column


ANEW = (
    "the table is written anew, without the rows that the source has no more; its older versions"
    " stay as they were until they have expired, or `bronze forget --old-versions` deletes them"
)


def table_of(properties: Mapping[str, str]) -> tuple[str, str]:
    """The schema and the name of the source's table that a Bronze table was made from, each of
    which may have dots; ("", "") where nothing is said of it.
    """
    label = properties.get(TABLE, "")
    schema = properties.get(SCHEMA)
    if schema is None:
        # Tables of before say their label alone.
        schema = label.partition(".")[0]
    return schema, label[len(schema) + 1 :]


def protected_columns(
    properties: Mapping[str, str],
) -> dict[str, tuple[ProtectionRule | None, DeltaType]]:
    """How the protected columns of a Bronze table are protected, and their kinds in the source."""

    def parse(text: str) -> dict[str, tuple[ProtectionRule | None, DeltaType]]:
        return {
            name: (ProtectionRule(**how["protect"]), kinds(how["kind"])[0][1])
            for name, how in mapping_in(text, dict).items()
        }

    return value(properties, PROTECT, {}, parse)


def protection_property(columns: Sequence[Column]) -> str:
    """The property that says how columns are protected."""
    return json.dumps(
        {
            c.target: {"protect": asdict(c.protect), "kind": delta_schema([(c.target, c.kind)])}
            for c in columns
            if c.protect
        }
    )


def _fitting(column: Column, held: DeltaType, relation: Relation) -> Column:
    both = common_kind(column.kind, held)
    if both is None:
        raise TableRefused(
            f"Column {column.name} of table {relation.label} has become {column.source_type},"
            f" which is {column.kind} in Delta; the Bronze table has {held} there.",
            hint="Nothing was changed. Either take it as a new column beside the old one,"
            f' rename = {{ "{column.name}" = "{column.target}_new" }}; or begin a new table,'
            ' target = "bz_…"; or move the Bronze table away, and it is loaded anew.',
            table=relation.label,
        )
    return column if both == column.kind else recast_column(column, quoted(column.name), both)


def _same(properties: Mapping[str, str], relation: Relation) -> bool:
    return properties.get(OID) == str(relation.oid)


def _dropped_columns(
    name: str,
    number: int,
    found: Sequence[Column],
    properties: Mapping[str, str],
    relation: Relation,
) -> str:
    """What to say of a column that the source has no more under its name."""
    names = {attribute.number: attribute.name for attribute in relation.attributes}
    if _same(properties, relation) and number in names:
        target = next((c.target for c in found if c.name == names[number]), "")
        if not target:
            return (
                f"column {name} is called {names[number]} now, which the config does not take: it"
                " is NULL from now on"
            )
        if names[number] == target:
            return (
                f"column {name} is called {target} now: it goes on under the new name,"
                f' unless the config says rename = {{ "{target}" = "{name}" }}'
            )
        return f"column {name} goes on as {target}: it is NULL from now on"
    return f"column {name} was dropped: it is NULL from now on"


def column_numbers(columns: Sequence[Column], relation: Relation) -> str:
    """The property that tells a renamed column from a new one: each column's attnum."""
    known = {attribute.name: attribute.number for attribute in relation.attributes}
    return json.dumps({c.target: known[c.name] for c in columns if c.name in known})


def former_names_property(
    columns: Sequence[Column], properties: Mapping[str, str], relation: Relation
) -> dict[str, str]:
    """The property that tells which columns of the Bronze table had the values of a column before
    it was renamed, the latest first: rows that are gone from the source have them there still.
    """
    known = _former(properties)
    if _same(properties, relation):
        now = {
            number: target
            for target, number in json.loads(column_numbers(columns, relation)).items()
        }
        before = _numbers(properties)
        renamed = {n: now[number] for n, number in before.items() if now.get(number, n) != n}
        # Names may have been swapped: what each had is what was known before any of them moved.
        kept = {name: names for name, names in known.items() if name not in renamed}
        moved = {
            target: [name, *known.get(name, []), *kept.get(target, [])]
            for name, target in renamed.items()
        }
        known = kept | {
            target: [n for n in dict.fromkeys(names) if n != target]
            for target, names in moved.items()
        }
    return {FORMER: json.dumps(known)} if known else {}


def former_names(properties: Mapping[str, str], name: str) -> tuple[str, ...]:
    """The Bronze columns that have, or had, the values of one of them, the latest first. One that
    the source uses for something else now is not among them.
    """
    known = _former(properties)
    live = _numbers(properties)
    if name not in live:
        name = next((now for now, before in known.items() if name in before), name)
    return (name, *(n for n in known.get(name, ()) if n not in live))


def reused_names(properties: Mapping[str, str], name: str) -> tuple[str, ...]:
    """The Bronze columns that had the values of one of them once, the latest first, and that the
    source uses for something else now: in rows of before they have them still.
    """
    known = _former(properties)
    live = _numbers(properties)
    return tuple(n for n in known.get(former_names(properties, name)[0], ()) if n in live)


def widened_property(
    columns: Sequence[Column], held: Sequence[tuple[str, DeltaType]], properties: Mapping[str, str]
) -> dict[str, str]:
    """The property that tells what columns were each time before some were widened, if any were:
    rows that have gone from the source keep the checksum of their narrower values.
    """
    times = _widened(properties)
    before = dict(held)
    narrower = {c.target: k for c in columns if (k := before.get(c.target, c.stored)) != c.stored}
    if narrower:
        times.append(narrower)
    told = [{name: [k.name, k.precision, k.scale] for name, k in time.items()} for time in times]
    return {WIDENED: json.dumps(told)} if told else {}


def earlier_types(properties: Mapping[str, str]) -> tuple[tuple[tuple[str, DeltaType], ...], ...]:
    """The kinds of columns as they were, from the last time on back; each holds for all columns
    that were ever widened since then.
    """
    kinds: dict[str, DeltaType] = {}
    found = []
    for time in reversed(_widened(properties)):
        kinds |= time
        found.append(tuple(kinds.items()))
    return tuple(found)


def thresholds_property(properties: Mapping[str, str] | None, now: int) -> str:
    """The property that tells below which scores rows were quarantined, at one time or another;
    "[]" where nobody knows, as the table is of before it was remembered.

    Args:
        properties: the table's, None where it is made.
        now: the threshold from now on.
    """
    if properties is None:
        return json.dumps([now])
    if THRESHOLDS not in properties:
        return "[]"
    known: list[int] = value(properties, THRESHOLDS, [], numbers_in)
    return json.dumps(sorted({*known, now}) if known else [])


def columns_as_written(
    columns: Sequence[tuple[str, DeltaType]], properties: Mapping[str, str]
) -> tuple[tuple[str, DeltaType], ...]:
    """The columns of a Bronze table with those that another writer has taken from it, in the order
    that bronze gave them; what has been put into it comes last.
    """
    ours = _given((), properties)
    known, held = dict(ours), dict(columns)
    kept = [(name, held.get(name, kind)) for name, kind in ours]
    kept += [pair for pair in columns if pair[0] not in known]
    return (*kept, *(pair for pair in METADATA_COLUMNS if pair[0] not in {**known, **held}))


def foreign_column_changes(
    columns: Sequence[tuple[str, DeltaType]], properties: Mapping[str, str]
) -> tuple[str, ...]:
    """What another writer has done to the columns of a Bronze table."""
    held = dict(columns)
    known = dict(_given(columns, properties))
    meta = [name for name, _ in METADATA_COLUMNS if name not in {**known, **held}]
    return (
        *(f"{name} was dropped" for name in [*known, *meta] if name not in held),
        *(f"{name} was added" for name in held if name not in known),
        *(
            f"{name} was changed from {known[name]} to {kind}"
            for name, kind in held.items()
            if known.get(name, kind) != kind
        ),
    )


def row_format_of(
    columns: Sequence[tuple[str, DeltaType]], properties: Mapping[str, str], partition: str | None
) -> RowFormat:
    """What the rows of a Bronze table are made of, by its columns and properties."""
    columns = columns_as_written(columns, properties)
    names = [name for name, _ in columns]
    meta = [name for name, _ in METADATA_COLUMNS]
    last = max((names.index(name) for name in meta if name in names), default=len(names))
    # A table of the source may have a column of this name, before the columns of ours.
    history = KIND in names and names.index(KIND) > last
    own = {*meta, partition, COMMIT_TIMESTAMP, KEY_TEXT} | ({KIND} if history else set())
    own |= {name for name, _ in ANOMALY_COLUMNS} if WATCHED in properties else set()
    values = tuple(name for name in names if name not in own)
    return RowFormat(
        values=values,
        base=value(properties, BASE, len(values), int),
        earlier=(
            tuple(p for p in _given(columns, properties) if p[0] in values),
            *earlier_types(properties),
        ),
        hashed=not protected_columns(properties),
        partition=partition or "",
        thresholds=tuple(value(properties, THRESHOLDS, [], numbers_in)),
        history=history,
    )


def _given(
    columns: Sequence[tuple[str, DeltaType]], properties: Mapping[str, str]
) -> Sequence[tuple[str, DeltaType]]:
    """The columns that bronze gave a table; ``columns`` where it does not say."""
    return value(properties, LAYOUT, columns, kinds)


def _numbers(properties: Mapping[str, str]) -> dict[str, int]:
    return value(properties, NUMBERS, {}, lambda text: mapping_in(text, int))


def _former(properties: Mapping[str, str]) -> dict[str, list[str]]:
    def parse(text: str) -> dict[str, list[str]]:
        return {
            name: list(names_in(json.dumps(was))) for name, was in mapping_in(text, list).items()
        }

    return value(properties, FORMER, {}, parse)


def _widened(properties: Mapping[str, str]) -> list[dict[str, DeltaType]]:
    def parse(text: str) -> list[dict[str, DeltaType]]:
        return [{name: _kind(*kind) for name, kind in t.items()} for t in json.loads(text)]

    return value(properties, WIDENED, [], parse)


def _kind(name: Any, precision: int, scale: int) -> DeltaType:
    found = DeltaType(name, precision, scale)
    # A kind that there is not is an error here.
    arrow_type(found)
    return found


def key_columns_in_source(properties: Mapping[str, str]) -> tuple[str, ...]:
    """The Bronze names of the columns that a table's key has in the source."""
    own = key(properties)
    return value(properties, KEYED, (), names_in) if KEY_TEXT in own else own


def key(properties: Mapping[str, str]) -> tuple[str, ...]:
    """The Bronze table's columns by which its rows are known, none where they are not."""
    return value(properties, KEY, (), names_in)
