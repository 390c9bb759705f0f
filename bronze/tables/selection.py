"""Selection: which tables and columns of the source are loaded, and into which Bronze tables."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from bronze.config.sections.protection import ColumnProtection
from bronze.config.sections.tables import TableSettings
from bronze.config.settings import Settings
from bronze.delta.write.history import KIND
from bronze.errors import ConfigError, TableRefused
from bronze.model.anomaly import ANOMALY_COLUMNS
from bronze.model.columns import KEY_TEXT, Column
from bronze.model.locations import Place, TableName
from bronze.postgres import statement
from bronze.postgres.catalog.relations import (
    TABLEOID,
    Relation,
    list_relations,
    relations,
    schemas,
    with_tableoid,
)
from bronze.postgres.catalog.survey import Personal
from bronze.postgres.catalog.types import TypeOptions, column_contract
from bronze.postgres.connection.connect import Connection
from bronze.rows.metadata import COMMIT_TIMESTAMP, METADATA_COLUMNS
from bronze.tables.naming import name_faults, proposed_names, table_name


@dataclass(frozen=True)
class Target:
    """A table of the source and its Bronze table.

    ``published`` is how a publication has a streamed table (see
    `bronze.postgres.replication.publication.Published`).
    """

    source: str
    relation: Relation
    settings: TableSettings
    schema: str
    name: str
    place: Place
    published: str = ""

    @property
    def label(self) -> str:
        """The source table's ``schema.name``."""
        return self.relation.label

    @property
    def full_name(self) -> str:
        """The Bronze table's ``schema.name``, as governance tables have it."""
        return TableName(self.schema, self.name).label

    @property
    def names(self) -> tuple[str, str, str]:
        """The names that config and arguments may use for it."""
        return self.relation.name, self.label, f"{self.source}.{self.label}"

    @property
    def key(self) -> tuple[str, ...]:
        """The source's columns that identify a row: those of the config, or the table's own key."""
        return self.settings.key or self.relation.key


def relations_of(
    connection: Connection, source: str, wanted: Sequence[str], *, detailed: bool = True
) -> tuple[Relation, ...]:
    """All relations in the schemas that the config of a source names; with their columns, keys and
    definitions only if ``detailed``.

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
    return (relations if detailed else list_relations)(connection, wanted)


def select_targets(
    settings: Settings, found: Sequence[tuple[str, Relation]], wanted: Sequence[str]
) -> list[Target]:
    """The tables to load, by the config.

    Args:
        settings: the config.
        found: the relations of all sources, each with the name of its source.
        wanted: names of tables to load (``table``, ``schema.table``), or `of_pattern` of a pattern;
            none selects all.

    Raises:
        ConfigError: there is no such table, no table at all, or two would become one Bronze table.
    """
    targets = all_targets(settings, found)
    # A thousand tables are selected by their names among a thousand.
    by_name = [
        (frozenset((*target.names, of_pattern(target.settings.pattern))), target)
        for target in targets
    ]
    known = {name for names, _ in by_name for name in names}
    unknown = [name for name in wanted if name not in known]
    if unknown and unknown[0].startswith(_PATTERN):
        raise ConfigError(
            f'No table of the config has the pattern "{unknown[0].removeprefix(_PATTERN)}".',
            hint="`bronze check` lists the tables of the config.",
        )
    if unknown:
        suggestion = _suggestion(unknown[0], targets)
        raise ConfigError(
            f"There is no table {', '.join(unknown)} in the source{suggestion}.",
            hint="`bronze check` lists the tables of the config; names are case-sensitive.",
        )
    asked = frozenset(wanted)
    chosen = [target for names, target in by_name if not wanted or not asked.isdisjoint(names)]
    for place, count in Counter(t.place.url for t in chosen).items():
        if count > 1:
            same = [t for t in chosen if t.place.url == place]
            several = len({t.source for t in same}) > 1
            both = [t.names[-1] if several else t.label for t in same]
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


_PATTERN = "pattern:"


def of_pattern(pattern: str) -> str:
    """The name that selects all tables of a pattern."""
    return f"{_PATTERN}{pattern}"


def all_targets(settings: Settings, found: Sequence[tuple[str, Relation]]) -> list[Target]:
    """All tables that the config loads; arguments as of `select_targets`."""
    return [
        _target(settings, source, relation)
        for source, relation in found
        if settings.source[source].takes(relation.name)
    ]


def missing_tables(
    settings: Settings, chosen: Sequence[Target], *, streamed: bool = False
) -> list[TableRefused]:
    """An error for each table that has a section in the config and is not in the source: of those
    that a run loads, or of those that are ``streamed``.
    """
    known = {name for target in chosen for name in target.names}
    return [
        TableRefused(
            f"There is no table {name} in the source{_suggestion(name, chosen)}.",
            hint=f"Correct or remove [tables.{toml(name)}]; its Bronze table stays as it is.",
            table=name,
            sqlstate="42P01",
        )
        for name in dict.fromkeys((*settings.tables, *settings.added))
        if name not in known
        and (name in settings.tables and settings.tables[name].pattern == "streaming") == streamed
    ]


def toml(text: str) -> str:
    """A string in TOML."""
    # A JSON string is a TOML string.
    return json.dumps(text, ensure_ascii=False)


def _suggestion(name: str, known: Sequence[Target]) -> str:
    close = difflib.get_close_matches(name, [n for t in known for n in t.names], 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _target(settings: Settings, source: str, relation: Relation) -> Target:
    own = settings.table(source, relation.schema, relation.name)
    name = own.target or table_name(relation.name)
    schema = settings.lake.schema_
    return with_relation(
        Target(source, relation, own, schema, name, settings.place(schema, name)), relation
    )


def with_relation(target: Target, relation: Relation) -> Target:
    """The target with its table as it is in the catalog now."""
    wanted = TABLEOID in target.settings.key
    return replace(target, relation=with_tableoid(relation) if wanted else relation)


def dropped_columns(target: Target) -> frozenset[str]:
    """The source's names of the columns that the config leaves out."""
    own = target.settings
    dropped = {name for name, how in own.protect.items() if how.is_dropped}
    return frozenset(
        attribute.name
        for attribute in target.relation.attributes
        if attribute.name in dropped or (own.columns and attribute.name not in own.columns)
    )


def with_columns_of(target: Target, names: Collection[str]) -> Target:
    """A streamed table with only the columns ``names``, which its stream has, and those that the
    config leaves out anyway.
    """
    kept = {*names, *dropped_columns(target)}
    attributes = tuple(a for a in target.relation.attributes if a.name in kept)
    return replace(target, relation=replace(target.relation, attributes=attributes))


def contract_columns(target: Target) -> tuple[Column, ...]:
    """The column contract of a table.

    Raises:
        TableRefused: a column cannot have its name in Delta or may not be read, or the config
            names a missing column, or leaves out one of the key.
    """
    own, relation = target.settings, target.relation
    present = {attribute.name for attribute in relation.attributes}
    watched = own.anomalies.columns if own.anomalies else ()
    named = {*own.columns, *own.rename, *own.decimals, *own.key, *own.protect, *watched}
    unknown = sorted(named - present)
    if unknown:
        raise TableRefused(
            f"Table {target.label} has no column {', '.join(unknown)}.",
            hint=f"Correct [tables.{toml(relation.name)}] in the config.",
            table=target.label,
        )
    out = dropped_columns(target)
    if lost := sorted(out & {*(target.key)}):
        raise _keyless(target, lost[0])
    if any(not a.readable for a in relation.attributes if a.name not in out):
        raise unreadable_columns_error(target)
    for attribute in relation.attributes:
        how = own.protect.get(attribute.name)
        if how and (how.format or how.keep) and attribute.type.has_few_values:
            raise _revealing_protection(target, attribute.name, attribute.type.declared, how)
    choices = TypeOptions(own.decimals, own.arrays, own.timestamps, relation.encoding)
    found = tuple(
        replace(
            column_contract(
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
        if attribute.name not in out
    )
    ours = [name for name, _ in METADATA_COLUMNS]
    ours += [KEY_TEXT, COMMIT_TIMESTAMP, *([KIND] if own.history else [])]
    ours += [name for name, _ in ANOMALY_COLUMNS] if own.anomalies else []
    bad = name_faults([c.target for c in found], ours)
    if bad:
        name, reason = next(iter(bad.items()))
        proposed = proposed_names([c.target for c in found], ours)
        pairs = ", ".join(f"{toml(old)} = {toml(new)}" for old, new in proposed.items())
        raise TableRefused(
            f"Column {name!r} of table {target.label} cannot keep its name: {reason}.",
            hint=f"Rename it: [tables.{toml(relation.name)}] rename = {{ {pairs} }}",
            table=target.label,
        )
    return found


def _revealing_protection(
    target: Target, column: str, declared: str, how: ColumnProtection
) -> TableRefused:
    option = "format = true" if how.format else f"keep = {how.keep}"
    return TableRefused(
        f"Column {column} of table {target.label} has the type {declared}, which has few values:"
        f" with {option}, the length or the end of a value would reveal it.",
        hint=f"Leave {option.partition(' ')[0]} out: protect = {{ {toml(column)} ="
        f' "{how.method}" }}',
        table=target.label,
    )


def unprotected(target: Target, personal: Sequence[Personal]) -> tuple[Personal, ...]:
    """The columns that look personal and that the config does not mention."""
    out = dropped_columns(target)
    there = {attribute.name for attribute in target.relation.attributes} - out
    protect = target.settings.protect
    return tuple(p for p in personal if p.column in there and p.column not in protect)


def unprotected_notes(target: Target, personal: Sequence[Personal]) -> tuple[str, ...]:
    """A note about columns that look personal and that the config does not mention, if any."""
    left = unprotected(target, personal)
    if not left:
        return ()
    names = ", ".join(f"{one.column} ({one.kind}, by {' and '.join(one.signs)})" for one in left)
    key = target.key
    pairs = ", ".join(f"{toml(n)} = {toml(how)}" for n, how in protections(left, key).items())
    note = f"looks personal and is not protected: {names}. Set protect = {{ {pairs} }},"
    return (f'{note} or "clear" for columns that everybody may read',)


def protections(personal: Sequence[Personal], key: Sequence[str]) -> dict[str, str]:
    """A method of protection for each column that looks personal; equal values of key columns stay
    equal.
    """
    return {
        column.column: "tokenize" if column.column in key or column.kind == "phone" else "encrypt"
        for column in personal
    }


def unreadable_error(target: Target, role: str = "") -> TableRefused:
    """The error for a table that the ``role`` may not read; "" where its name is not known."""
    to = statement.quoted(role) if role else "role"
    what = "" if role else " where role is the one that bronze connects as."
    schema, name = target.relation.schema, target.relation.name
    return TableRefused(
        f"Table {target.label} cannot be read: permission denied.",
        hint=f"GRANT USAGE ON SCHEMA {statement.quoted(schema)} TO {to};"
        f" GRANT SELECT ON {statement.quoted(schema, name)} TO {to};{what}",
        table=target.label,
        sqlstate="42501",
    )


def secured_error(target: Target) -> TableRefused:
    """The error for a table some rows of which row-level security hides from the role."""
    return TableRefused(
        f"Table {target.label} cannot be read whole: row-level security hides rows from the role.",
        hint='Give the role BYPASSRLS, or set row_security = "apply" to load the rows that it may'
        " see.",
        table=target.label,
        sqlstate="42501",
    )


def _keyless(target: Target, column: str) -> TableRefused:
    own = target.settings
    if column in own.protect and own.protect[column].is_dropped:
        hint = f'Load its tokens: protect = {{ {toml(column)} = "tokenize" }}'
    else:
        named = ", ".join(map(toml, (*own.columns, column)))
        hint = f"Load it as well: columns = [{named}]"
    return TableRefused(
        f"Column {column} of table {target.label} is part of its key and cannot be left out.",
        hint=f"{hint}; or name other columns that are unique and never NULL: key = […].",
        table=target.label,
    )


def unreadable_columns_error(target: Target) -> TableRefused:
    """The error for a table with columns to load that the role may not read."""
    relation, out = target.relation, dropped_columns(target)
    shut = [a.name for a in relation.attributes if not a.readable and a.name not in out]
    names = ", ".join(shut)
    grant = ", ".join(statement.quoted(name) for name in shut)
    hint = (
        f"GRANT SELECT ({grant}) ON {statement.quoted(relation.schema, relation.name)} TO role;"
        f" where role is the one that bronze connects as; or leave"
        f" {'it' if len(shut) == 1 else 'them'} out:"
        f" [tables.{toml(relation.name)}] {_leaving_out(target, shut)}"
    )
    if in_key := sorted({*shut} & {*target.key}):
        hint += (
            f", with other columns that are unique and never NULL as key = […], as {in_key[0]} is"
            " part of the key"
        )
    return TableRefused(
        f"Column{'' if len(shut) == 1 else 's'} {names} of table {target.label} cannot be read:"
        " permission denied.",
        hint=f"{hint}.",
        table=target.label,
        sqlstate="42501",
    )


def _leaving_out(target: Target, closed: Sequence[str]) -> str:
    """The shorter one of the two settings that leave columns out of a table."""
    own, out = target.settings, dropped_columns(target)
    taken = [a.name for a in target.relation.attributes if a.name not in {*closed, *out}]
    if not own.columns and len(closed) <= len(taken):
        dropped = ", ".join(f'{toml(name)} = "drop"' for name in (*sorted(out), *closed))
        return f"protect = {{ {dropped} }}"
    return f"columns = [{', '.join(map(toml, taken))}]"
