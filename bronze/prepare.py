"""From the config and the catalog to targets: which tables are taken, as what, and where to."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bronze.enrich import anomaly
from bronze.enrich.stamp import COMMITTED, METADATA
from bronze.errors import ConfigError, TableRefused
from bronze.model import KEY_TEXT, Column, Place
from bronze.settings import Settings, TableSettings
from bronze.source import statement
from bronze.source.catalog import TABLEOID, Relation, relations, schemas, with_tableoid
from bronze.source.connect import Connection
from bronze.source.types import Choices, contract
from bronze.table.history import KIND
from bronze.table.naming import faults, renames, table_name


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
                hint=f'Give one another name: [tables.{toml(both[-1])}] target = "bz_…"',
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
            hint=f"Correct or remove [tables.{toml(name)}]; its Bronze table stays as it is.",
            table=name,
            sqlstate="42P01",
        )
        for name in dict.fromkeys((*settings.tables, *settings.added))
        if name not in known
        and not (name in settings.tables and settings.tables[name].pattern == "streaming")
    ]


def toml(text: str) -> str:
    """A string in TOML."""
    # A JSON string is a TOML string.
    return json.dumps(text, ensure_ascii=False)


def _nearest(name: str, known: Sequence[Target]) -> str:
    close = difflib.get_close_matches(name, [n for t in known for n in t.names], 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _target(settings: Settings, source: str, relation: Relation) -> Target:
    own = settings.table(source, relation.schema, relation.name)
    name = own.target or table_name(relation.name)
    schema = settings.lake.schema_
    return seen(Target(source, relation, own, schema, name, settings.place(schema, name)), relation)


def seen(target: Target, relation: Relation) -> Target:
    """The target with its table as it has been seen."""
    wanted = TABLEOID in target.settings.key
    return replace(target, relation=with_tableoid(relation) if wanted else relation)


def columns(target: Target) -> tuple[Column, ...]:
    """The type contract of the columns that are taken of a table.

    Raises:
        TableRefused: a column cannot have its name in Delta, or the config names one that is not
            there, or drops one of the key.
    """
    own, relation = target.settings, target.relation
    present = {attribute.name for attribute in relation.attributes}
    watched = own.anomalies.columns if own.anomalies else ()
    named = {*own.rename, *own.decimals, *own.key, *own.protect, *watched}
    unknown = sorted(named - present)
    if unknown:
        raise TableRefused(
            f"Table {target.label} has no column {', '.join(unknown)}.",
            hint=f"Correct [tables.{toml(relation.name)}] in the config.",
            table=target.label,
        )
    dropped = {name for name, how in own.protect.items() if how.dropped}
    if lost := sorted(dropped & {*(own.key or relation.key)}):
        raise TableRefused(
            f"Column {lost[0]} of table {target.label} is part of its key, and cannot be dropped.",
            hint=f'Take its tokens: protect = {{ {toml(lost[0])} = "tokenize" }}',
            table=target.label,
        )
    choices = Choices(own.decimals, own.arrays, own.timestamps, relation.encoding)
    found = tuple(
        replace(
            contract(
                attribute.name,
                own.rename.get(attribute.name, attribute.name),
                statement.quoted(attribute.name),
                attribute.type,
                choices,
                attribute.not_null,
            ),
            protect=own.protect[attribute.name].rule if attribute.name in own.protect else None,
        )
        for attribute in relation.attributes
        if attribute.name not in dropped
    )
    ours = [name for name, _ in METADATA]
    ours += [KEY_TEXT, COMMITTED, *([KIND] if own.history else [])]
    ours += [name for name, _ in anomaly.COLUMNS] if own.anomalies else []
    bad = faults([c.target for c in found], ours)
    if bad:
        name, reason = next(iter(bad.items()))
        proposed = renames([c.target for c in found], ours)
        pairs = ", ".join(f"{toml(old)} = {toml(new)}" for old, new in proposed.items())
        raise TableRefused(
            f"Column {name!r} of table {target.label} cannot keep its name: {reason}.",
            hint=f"Rename it: [tables.{toml(relation.name)}] rename = {{ {pairs} }}",
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
