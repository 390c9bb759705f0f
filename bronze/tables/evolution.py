"""Schema evolution: which columns a Bronze table gets when those of its source table have changed.

The columns of the Bronze table come first, in its order: those that the source still has, as wide
as both need them, and those that it no longer has, which are NULL from now on. New columns follow.
So the row_hash of a row whose values did not change stays the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from bronze.delta.properties import FORMER, WIDENED, TableProperties
from bronze.delta.schema import delta_schema
from bronze.errors import TableRefused
from bronze.model.columns import KEY_TEXT, Column, DeltaType, ProtectionRule
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.catalog.types import absent_column, common_kind, recast_column
from bronze.postgres.statement import quoted
from bronze.rows.metadata import METADATA_COLUMNS

RELOAD_NOTE = (
    "the table is reloaded, without the rows that the source no longer has; its older versions stay"
    " until they expire, or until `bronze forget --old-versions` deletes them"
)


@dataclass(frozen=True)
class ColumnContract:
    """What each column of the source becomes in a run.

    ``base`` is how many columns the Bronze table began with. With ``rewrite``, files of the table
    are rewritten; with ``reload``, all rows are read and written again. ``notes`` tell users what
    has changed.
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
    """The column contract of a run into an existing Bronze table.

    Args:
        found: the contract of the columns of the source.
        held: the columns of the Bronze table, metadata columns included.
        properties: the properties of the Bronze table.
        relation: the source table.
        added: columns that bronze adds to this table beside its usual ones.
        dropped: columns that the config leaves out.

    Raises:
        TableRefused: a column has become something that the table's column cannot hold.
        LakeError: a property of the Bronze table cannot be read.
    """
    known = TableProperties.read(properties)
    metadata = {*(name for name, _ in METADATA_COLUMNS), KEY_TEXT, *added}
    left_out = {name.lower() for name in dropped}
    found = tuple(_with_spelling_of([name for name, _ in held], found))
    new = {column.target: column for column in found}
    columns: list[Column] = []
    reloaded: list[str] = []
    notes: list[str] = []
    rewrite = False
    names = {attribute.number: attribute.name for attribute in relation.attributes}
    numbers = {name: number for number, name in names.items()}
    for name, stored in held:
        if name in metadata:
            continue
        rule, kind = known.protection.get(name, (None, stored))
        if name.lower() in left_out:
            reloaded.append(name)
            continue
        if name not in new:
            columns.append(replace(absent_column(name, kind), protect=rule))
            notes += _absence_notes(name, found, known, relation, names)
            continue
        column = new.pop(name)
        notes += _replacement_notes(column, known, relation, numbers)
        if column.protect != rule:
            reloaded.append(name)
        else:
            column = _widen_column(column, kind, relation)
            if column.kind != kind:
                rewrite |= column.protect is None
                notes.append(f"column {name} is widened from {kind} to {column.kind}")
        columns.append(column)
    base = len(columns) if known.base is None else known.base
    notes += [f"column {name} was added" for name in new]
    columns += new.values()
    if reloaded:
        notes.append(f"the protection of {', '.join(reloaded)} has changed: {RELOAD_NOTE}")
        base = len(columns)
    return ColumnContract(tuple(columns), base, rewrite, tuple(notes), bool(reloaded))


def _with_spelling_of(names: Sequence[str], columns: Sequence[Column]) -> Iterator[Column]:
    """The columns under the spelling of the Bronze table: in Delta, names that differ only in case
    are the same, and no table can have both.
    """
    known, spellings = set(names), {name.lower(): name for name in names}
    for column in columns:
        target = column.target
        yield (
            column
            if target in known
            else replace(column, target=spellings.get(target.lower(), target))
        )


def _widen_column(column: Column, stored: DeltaType, relation: Relation) -> Column:
    """The column with a type that holds all values of the source and of the Bronze table.

    Raises:
        TableRefused: there is none.
    """
    both = common_kind(column.kind, stored)
    if both is None:
        raise TableRefused(
            f"Column {column.name} of table {relation.label} has become {column.source_type},"
            f" which is {column.kind} in Delta; the Bronze table's column is {stored}.",
            hint="Nothing was changed. Load it as a new column beside the old one, rename ="
            f' {{ "{column.name}" = "{column.target}_new" }}; or load a new table, target ='
            ' "bz_…"; or move the Bronze table away, and the next run loads it again.',
            table=relation.label,
        )
    return column if both == column.kind else recast_column(column, quoted(column.name), both)


def _is_same_table(known: TableProperties, relation: Relation) -> bool:
    """Whether the Bronze table was loaded from this very table: its columns keep their attnums."""
    return known.oid == relation.oid


def _replacement_notes(
    column: Column, known: TableProperties, relation: Relation, numbers: Mapping[str, int]
) -> tuple[str, ...]:
    """A note if a column of the same name is another one than in the last run. ``numbers`` are the
    attnums of the source's columns.
    """
    is_other = known.numbers.get(column.target) != numbers[column.name]
    if known.numbers and is_other and _is_same_table(known, relation):
        return (f"column {column.target} was dropped and added again",)
    return ()


def _absence_notes(
    name: str,
    columns: Sequence[Column],
    known: TableProperties,
    relation: Relation,
    names: Mapping[int, str],
) -> tuple[str, ...]:
    """A note if a Bronze column was in the last run, and the source has none of its name now.
    ``names`` are those of the source's columns, by their attnums.
    """
    if name not in known.numbers:
        return ()
    number = known.numbers[name]
    if not _is_same_table(known, relation) or number not in names:
        return (f"column {name} was dropped: it is NULL from now on",)
    renamed = names[number]
    target = next((column.target for column in columns if column.name == renamed), "")
    if not target:
        return (
            f"column {name} was renamed to {renamed}, which the config leaves out: it is NULL from"
            " now on",
        )
    if renamed == target:
        return (
            f"column {name} was renamed to {target}: its values are in the new column {target} from"
            f' now on, unless the config says rename = {{ "{target}" = "{name}" }}',
        )
    return (f"the values of column {name} are in {target} now: it is NULL from now on",)


# Properties that the next runs read


def protection_property(columns: Sequence[Column]) -> str:
    """The property `PROTECT`: how columns are protected."""
    return json.dumps(
        {
            c.target: {"protect": asdict(c.protect), "kind": delta_schema([(c.target, c.kind)])}
            for c in columns
            if c.protect
        }
    )


def column_numbers(columns: Sequence[Column], relation: Relation) -> str:
    """The property `NUMBERS`: each column's attnum, which tells a renamed column from a new one."""
    return json.dumps(_attnums(columns, relation))


def _attnums(columns: Sequence[Column], relation: Relation) -> dict[str, int]:
    attnums = {attribute.name: attribute.number for attribute in relation.attributes}
    return {c.target: attnums[c.name] for c in columns if c.name in attnums}


def former_names_property(
    columns: Sequence[Column], properties: Mapping[str, str], relation: Relation
) -> dict[str, str]:
    """The property `FORMER`, if any column was ever renamed: rows that are gone from the source
    still have their values in the former columns.
    """
    known = TableProperties.read(properties)
    former: Mapping[str, Sequence[str]] = known.former
    if _is_same_table(known, relation):
        targets = {number: target for target, number in _attnums(columns, relation).items()}
        renamed = {
            name: targets[number]
            for name, number in known.numbers.items()
            if targets.get(number, name) != name
        }
        # Names may have been swapped: each takes along what was known before any of them moved.
        kept = {name: names for name, names in former.items() if name not in renamed}
        moved = {
            target: [name, *former.get(name, []), *kept.get(target, [])]
            for name, target in renamed.items()
        }
        former = kept | {
            target: [name for name in dict.fromkeys(names) if name != target]
            for target, names in moved.items()
        }
    return {FORMER: json.dumps(former)} if former else {}


def widened_property(
    columns: Sequence[Column], held: Sequence[tuple[str, DeltaType]], properties: Mapping[str, str]
) -> dict[str, str]:
    """The property `WIDENED`, if any column was ever widened: rows that are gone from the source
    keep the checksum of their narrower values.
    """
    times = [*TableProperties.read(properties).types_before_widening]
    before = dict(held)
    # Arrays are never widened: one that differs is reloaded.
    narrower = {
        c.target: kind
        for c in columns
        if (kind := before.get(c.target, c.stored_type)) != c.stored_type and kind.element is None
    }
    if narrower:
        times.append(narrower)
    types = [{name: [k.name, k.precision, k.scale] for name, k in time.items()} for time in times]
    return {WIDENED: json.dumps(types)} if types else {}


def thresholds_property(properties: Mapping[str, str] | None, now: int) -> str:
    """The property `THRESHOLDS`: below which scores rows were quarantined at one time or another;
    "[]" for a table from before this was recorded.

    Args:
        properties: those of the table, None where it is new or reloaded.
        now: the threshold from now on.
    """
    if properties is None:
        return json.dumps([now])
    known = TableProperties.read(properties).thresholds
    return json.dumps(sorted({*known, now}) if known else [])


# What the properties say


def protected_columns(
    properties: Mapping[str, str],
) -> Mapping[str, tuple[ProtectionRule, DeltaType]]:
    """How the protected columns of a Bronze table are protected, and their types in the source."""
    return TableProperties.read(properties).protection


def key(properties: Mapping[str, str]) -> tuple[str, ...]:
    """The Bronze columns that identify a row, none for a table without a key."""
    return TableProperties.read(properties).key or ()


def key_columns_in_source(properties: Mapping[str, str]) -> tuple[str, ...]:
    """The Bronze names of the columns that the key has in the source."""
    known = TableProperties.read(properties)
    names = known.key or ()
    return known.key_text_columns if KEY_TEXT in names else names


def former_names(properties: Mapping[str, str], name: str) -> tuple[str, ...]:
    """The Bronze columns that have, or had, the values of a column, the latest first; without those
    that the source uses for something else now.
    """
    known = TableProperties.read(properties)
    if name not in known.numbers:
        name = next((new for new, names in known.former.items() if name in names), name)
    return (name, *(n for n in known.former.get(name, ()) if n not in known.numbers))


def reused_names(properties: Mapping[str, str], name: str) -> tuple[str, ...]:
    """The Bronze columns that had the values of a column, the latest first, and that the source
    uses for something else now: older rows still have the values there.
    """
    known = TableProperties.read(properties)
    current, *_ = former_names(properties, name)
    return tuple(n for n in known.former.get(current, ()) if n in known.numbers)
