"""What PostgreSQL says about the tables that Bronze tables were loaded from: the comments of
pg_description, the names of columns, and which of them look personal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bronze.config.settings import Settings
from bronze.delta.properties import TableProperties
from bronze.errors import BronzeError
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.catalog.survey import personal_by_name
from bronze.postgres.connection import connect
from bronze.postgres.connection.parameters import address
from bronze.postgres.connection.translation import source_errors
from bronze.tables import selection
from bronze.tables.lake import LakeTable


@dataclass(frozen=True)
class SourceTable:
    """A table of PostgreSQL. By the names of the Bronze table's columns: ``comments`` (that of the
    table is under ""), ``personal`` with the kind of personal data that a name suggests, and
    ``columns`` with the names in PostgreSQL.
    """

    source: str
    database: str
    schema: str
    name: str
    comments: Mapping[str, str]
    personal: Mapping[str, str]
    columns: Mapping[str, str]


def source_tables(
    settings: Settings, tables: Sequence[LakeTable]
) -> tuple[dict[str, SourceTable], tuple[str, ...]]:
    """The source tables of Bronze tables, by the Bronze tables' full names, as far as PostgreSQL
    can be reached and still has them.

    Returns:
        The tables, and a message for each source that cannot be read.
    """
    found: dict[str, SourceTable] = {}
    notes = []
    for source in dict.fromkeys(table.source for table in tables if table.is_bronze):
        if source not in settings.source:
            continue
        try:
            database, relations = _relations(settings, source)
        except BronzeError as error:
            notes.append(
                f"Comments, personal columns and lineage of the tables of source {source} stay as"
                f" they were registered last: {error.message}"
            )
            continue
        for table in tables:
            relation = relations.get(table.label)
            if table.is_bronze and table.source == source and relation is not None:
                found[table.target] = _source_table(source, database, table, relation)
    return found, tuple(notes)


def _relations(settings: Settings, source: str) -> tuple[str, dict[str, Relation]]:
    """The source as ``host:port/name``, and its relations by their labels."""
    origin = settings.origin(source)
    with source_errors(origin), connect.connect(origin) as connection:
        relations = selection.relations_of(connection, source, settings.source[source].schema_)
        return address(origin), {relation.label: relation for relation in relations}


def _source_table(source: str, database: str, table: LakeTable, relation: Relation) -> SourceTable:
    targets = _targets(table, relation)
    personal = {one.column: one.kind for one in personal_by_name(relation)}
    return SourceTable(
        source,
        database,
        relation.schema,
        relation.name,
        comments={"": relation.comment}
        | {target: a.comment for a in relation.attributes if (target := targets.get(a.name))},
        personal={target: personal[name] for name, target in targets.items() if name in personal},
        columns={target: name for name, target in targets.items()},
    )


def _targets(table: LakeTable, relation: Relation) -> dict[str, str]:
    """The Bronze table's columns by the names of the source's, which its last load recorded."""
    known = TableProperties.read(table.state.properties if table.state else {})
    if known.oid != relation.oid:
        # It was made again since: equal names are all that is known.
        return {name: name for name in _names(relation) if name in known.numbers}
    names = {attribute.number: attribute.name for attribute in relation.attributes}
    return {names[number]: name for name, number in known.numbers.items() if number in names}


def _names(relation: Relation) -> Iterable[str]:
    return (attribute.name for attribute in relation.attributes)
