"""From the config and a snapshot to plans: what to read of each table, and where it goes."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import errors as pg

from bronze.config import RunSettings, Settings, TableSettings
from bronze.enrich.stamp import METADATA
from bronze.errors import BronzeError, ConfigError, TableRefused
from bronze.model import Column, Kind, Origin, Place, Stamp, Unit
from bronze.source import plan, statement
from bronze.source.catalog import Relation, relations, schemas
from bronze.source.connect import Connection, explain
from bronze.source.snapshot import Snapshot
from bronze.source.types import Choices, contract
from bronze.table.naming import faults, renames, table_name
from bronze.table.statistics import SAFE

# Measured: what the process takes with all its libraries, what a reader takes for the rows that
# it is hashing and encoding, and how many bytes a slice takes for each of its bytes on disk.
_BASE = 320 * 10**6
_READER = 24 * 10**6
_GROWTH = 4
_SLICE = 12 * 2**20
_FILE = 128 * 2**20
_UNITS_PER_READER = 3


@dataclass(frozen=True)
class Target:
    """A table of the source and the Bronze table that it becomes."""

    source: str
    relation: Relation
    settings: TableSettings
    schema: str
    name: str
    place: Place

    @property
    def label(self) -> str:
        """The source table's ``schema.name``."""
        return self.relation.label

    @property
    def names(self) -> tuple[str, str, str]:
        """The names that config and arguments may call it by."""
        return self.relation.name, self.label, f"{self.source}.{self.label}"


@dataclass(frozen=True)
class Plan:
    """What a run does with one table."""

    target: Target
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    stats: tuple[str, ...]
    units: tuple[Unit, ...]

    @property
    def layout(self) -> tuple[tuple[str, Kind], ...]:
        """The Bronze table's columns in their order."""
        return (*((column.target, column.kind) for column in self.columns), *METADATA)


def found(connection: Connection, source: str, wanted: Sequence[str]) -> tuple[Relation, ...]:
    """All relations in the schemas that a source's config names.

    Raises:
        ConfigError: there is no such schema.
    """
    known = schemas(connection)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(
            f"There is no schema {', '.join(unknown)} in the source {source}.",
            hint=f"Correct [source] schema; there are the schemas {', '.join(known)}.",
        )
    return relations(connection, wanted)


def targets(
    settings: Settings, found: Sequence[tuple[str, Relation]], wanted: Sequence[str]
) -> list[Target]:
    """The tables to take, of those found (each with its source's name), by the config.

    Args:
        settings: the config.
        found: the relations of all sources.
        wanted: names to take only (``table``, ``schema.table``); none takes all.

    Raises:
        ConfigError: a wanted table is not there, there is none at all, or two would become one.
    """
    taken = [
        _target(settings, source, relation)
        for source, relation in found
        if settings.source[source].takes(relation.name)
    ]
    unknown = [name for name in wanted if not any(name in t.names for t in taken)]
    if unknown:
        raise ConfigError(
            f"There is no table {', '.join(unknown)} in the source{_nearest(unknown[0], taken)}.",
            hint="`bronze check` lists the tables that the config takes; names are case-sensitive.",
        )
    chosen = [t for t in taken if not wanted or any(name in t.names for name in wanted)]
    for place, count in Counter(t.place.url for t in chosen).items():
        if count > 1:
            both = [t.label for t in chosen if t.place.url == place]
            raise ConfigError(
                f"The tables {' and '.join(both)} would both become {place}.",
                hint=f'Give one another name: [tables.{_toml(both[-1])}] target = "bz_…"',
            )
    if not chosen:
        raise ConfigError(
            "The config takes no table of the source.",
            hint="Check [source] schema, tables and exclude; and that the role has USAGE on the"
            " schema.",
        )
    return chosen


def missing(settings: Settings, chosen: Sequence[Target]) -> list[TableRefused]:
    """An error for each table that the config has a section for, and the source has not."""
    known = {name for target in chosen for name in target.names}
    return [
        TableRefused(
            f"There is no table {name} in the source{_nearest(name, chosen)}.",
            hint=f"Correct or remove [tables.{_toml(name)}]; its Bronze table stays as it is.",
            table=name,
            sqlstate="42P01",
        )
        for name in settings.tables
        if name not in known
    ]


def _toml(text: str) -> str:
    # A JSON string is a TOML string.
    return json.dumps(text, ensure_ascii=False)


def _nearest(name: str, known: Sequence[Target]) -> str:
    close = difflib.get_close_matches(name, [n for t in known for n in t.names], 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _target(settings: Settings, source: str, relation: Relation) -> Target:
    own = settings.table(source, relation.schema, relation.name)
    name = own.target or table_name(relation.name)
    schema = settings.lake.schema_
    return Target(source, relation, own, schema, name, settings.place(schema, name))


def columns(target: Target) -> tuple[Column, ...]:
    """The type contract of a table's columns.

    Raises:
        TableRefused: a column cannot have its name in Delta, or the config names one that is not
            there.
    """
    own, relation = target.settings, target.relation
    present = {attribute.name for attribute in relation.attributes}
    unknown = sorted({*own.rename, *own.decimals, *own.key} - present)
    if unknown:
        raise TableRefused(
            f"Table {target.label} has no column {', '.join(unknown)}.",
            hint=f"Correct [tables.{_toml(relation.name)}] in the config.",
            table=target.label,
        )
    choices = Choices(own.decimals, own.arrays, own.timestamps)
    found = tuple(
        contract(
            attribute.name,
            own.rename.get(attribute.name, attribute.name),
            statement.quoted(attribute.name),
            attribute.type,
            choices,
            attribute.not_null,
        )
        for attribute in relation.attributes
    )
    bad = faults([c.target for c in found], [name for name, _ in METADATA])
    if bad:
        name, reason = next(iter(bad.items()))
        proposed = renames([c.target for c in found], [name for name, _ in METADATA])
        pairs = ", ".join(f"{_toml(old)} = {_toml(new)}" for old, new in proposed.items())
        raise TableRefused(
            f"Column {name!r} of table {target.label} cannot keep its name: {reason}.",
            hint=f"Rename it: [tables.{_toml(relation.name)}] rename = {{ {pairs} }}",
            table=target.label,
        )
    return found


def unreadable(target: Target) -> TableRefused:
    """The error for a table that the role may not read."""
    return TableRefused(
        f"Table {target.label} cannot be read: permission denied.",
        hint=f'GRANT USAGE ON SCHEMA "{target.relation.schema}" and SELECT on the table to the role'
        " that bronze uses.",
        table=target.label,
        sqlstate="42501",
    )


def plan_table(
    target: Target, held: Snapshot, origin: Origin, stamp: Stamp, run: RunSettings, readers: int
) -> Plan:
    """The units of one table.

    Raises:
        TableRefused: the table cannot be read, or its columns cannot be held.
        SourceError: the snapshot's connection failed.
    """
    found = columns(target)
    relation = target.relation
    key = target.settings.key or relation.key
    names = {column.name: column.target for column in found}
    kept_key = tuple(names[name] for name in key)
    stats = tuple(c.target for c in found if c.target in kept_key and c.kind.name in SAFE)
    per_slice, _ = _sizes(plan.size_of(relation), run.memory, readers)
    parts = _slices(target, held, origin, run.memory // readers, per_slice, key)
    _, per_file = _sizes(sum(part.size for part in parts), run.memory, readers)
    packed = plan.packed(parts, per_file)
    query = statement.select(found, statement.quoted(relation.schema, relation.name))
    units = tuple(
        Unit(
            number=number,
            table=target.label,
            origin=origin,
            session=held.session(origin),
            query=query,
            slices=tuple(part.where for part in group),
            columns=found,
            key=kept_key,
            stats=stats,
            stamp=stamp,
            place=target.place,
            estimate=sum(part.size for part in group),
        )
        for number, group in enumerate(packed)
    )
    return Plan(target, found, kept_key, stats, units)


def readers(run: RunSettings, slots: int) -> int:
    """How many units may run at once: as many as the workers, the source and the memory allow."""
    fitting = (run.memory - _BASE) // (2 * _READER)
    return max(1, min(run.workers, slots, fitting))


def _sizes(whole: int, memory: int, readers: int) -> tuple[int, int]:
    """The bytes of the source in a slice and in a file, for a table of ``whole`` bytes.

    All files are alike, and their number is a multiple of the readers', so that no reader is left
    without work at the end.
    """
    each = (memory - _BASE) // readers - _READER
    largest = max(2**20, min(_SLICE, each // _GROWTH))
    if whole <= largest:
        return largest, _FILE
    rounds = max(_UNITS_PER_READER, -(-whole // (_FILE * readers)))
    per_file = -(-whole // (rounds * readers))
    per_slice = -(-per_file // -(-per_file // largest))
    # Pages do not divide evenly: a little more room keeps the last one out of a file of its own.
    return per_slice, per_file + per_slice // 2


def _slices(
    target: Target, held: Snapshot, origin: Origin, memory: int, size: int, key: Sequence[str]
) -> list[plan.Slice]:
    if held.name is None:
        return [_whole(target, memory)]
    holder: Connection = held.holder
    try:
        holder.execute("SAVEPOINT plan")
        parts = plan.slices(holder, target.relation, held.version, size, key)
        holder.execute("RELEASE SAVEPOINT plan")
    except (pg.UndefinedFunction, pg.UndefinedObject):
        # A key of a type without an order, such as json, cannot be split.
        holder.execute("ROLLBACK TO SAVEPOINT plan; RELEASE SAVEPOINT plan")
        return [plan.Slice(plan.WHOLE, size)]
    except psycopg.Error as error:
        mine: BronzeError = explain(error, origin, target.label)
        if not mine.retry:
            holder.execute("ROLLBACK TO SAVEPOINT plan; RELEASE SAVEPOINT plan")
        raise mine from error
    return parts


def _whole(target: Target, memory: int) -> plan.Slice:
    # Without a shared snapshot only one statement sees one state.
    relation = target.relation
    size = plan.size_of(relation)
    if size * _GROWTH > memory:
        raise TableRefused(
            f"Table {target.label} is too large to be read by one statement, which"
            ' consistency = "per-table" asks for.',
            hint=f"Raise [run] memory: it takes about {size * _GROWTH // 10**6} MB for a worker.",
            table=target.label,
        )
    return plan.Slice(plan.WHOLE, size)
