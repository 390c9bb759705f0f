"""Proposes a first bronze.toml for a database: surveys its tables, and writes the config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bronze.api.config_text import DatabaseSurvey, config_text
from bronze.config.sections.tables import TableSettings
from bronze.errors import ConfigError
from bronze.model.locations import Origin, Place
from bronze.model.results import Failure
from bronze.postgres.catalog import relations as catalog
from bronze.postgres.catalog import survey
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection import connect, translation
from bronze.postgres.copy import snapshot
from bronze.printable import count
from bronze.tables import selection
from bronze.tables.selection import Target

_LOCK_NOT_AVAILABLE = "55P03"


def propose_config(
    dsn: str,
    *,
    schemas: Sequence[str] = (),
    name: str = "",
    notify: Callable[[str], None] = lambda _: None,
) -> str:
    """The text of a bronze.toml for a database, which `bronze.config.loading.load` can load.

    It has names, sizes and counts of the source, but no value of a row and no password.

    Args:
        dsn: libpq's connection string, as a URL or as keywords; it may contain a password.
        schemas: the schemas to load; none loads all that have a readable table.
        name: the name of the source in the lake; by default that of the database.
        notify: is called with a message for each table that is left out because it cannot be read.

    Raises:
        ConfigError: the connection string is not valid, a schema does not exist, or there is no
            table that can be read.
        SourceUnreachable, SourceBusy, SourceRefused, SourceError
    """
    # With a short lock timeout: a locked table is proposed like any other.
    origin = Origin(name=name or "source", conninfo=dsn, lock_timeout=1)
    with translation.source_errors(origin), connect.connect(origin) as connection:
        database = _survey_database(origin, connection, schemas)
    for surveyed in database.excluded:
        notify(f"Left out: {database.refused[surveyed.relation.oid].message}")
    return config_text(database, dsn, name or database.database)


def write_config(path: str | Path, text: str) -> None:
    """Writes the text of a config to a new file.

    Raises:
        ConfigError: the file already exists, or cannot be written.
    """
    try:
        with Path(path).open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"The file {path} already exists, and is not overwritten.",
            hint="Name another file with --out, or move this one away first.",
        ) from None
    except OSError as error:
        raise ConfigError(f"The file {path} cannot be written: {error.strerror}.") from None


def _survey_database(
    origin: Origin, connection: connect.Connection, schemas: Sequence[str]
) -> DatabaseSurvey:
    present = catalog.schemas(connection)
    missing = [schema for schema in schemas if schema not in present]
    if missing:
        raise ConfigError(
            f"There is no schema {', '.join(missing)} in the database.",
            hint=f"Its schemas are: {', '.join(present)}; names are case-sensitive.",
        )
    surveys = survey.survey_relations(
        connection, survey.relations_with_sizes(connection, tuple(schemas) or present)
    )
    relations = [s.relation for s in surveys if not s.extension]
    loaded = set(schemas) or {relation.schema for relation in relations if relation.readable}
    row: Any = connection.execute(
        "SELECT current_database(), current_setting('server_version'), current_user"
    ).fetchone()
    if not any(relation.readable for relation in relations):
        raise _no_tables(relations, row[0], row[2], schemas)
    inside = [s for s in surveys if s.relation.schema in loaded]
    refused = _refusals(origin, connection, [s.relation for s in inside], sorted(loaded))
    # The config excludes tables by name only, so it must not exclude another schema's table.
    names = {s.relation.name for s in inside if not s.extension and s.relation.oid not in refused}
    others = [s for s in inside if s.relation.name not in names]
    if refused and not names:
        first = next(iter(refused.values()))
        raise ConfigError(f"No table can be read: {first.message}", hint=first.hint)
    return DatabaseSurvey(
        database=row[0],
        version=row[1],
        schemas=tuple(sorted(loaded)),
        hidden=tuple(sorted({relation.schema for relation in relations} - loaded)),
        surveys=tuple(s for s in inside if s not in others),
        left_out=tuple(s for s in others if s.extension),
        refused=refused,
        excluded=tuple(s for s in others if not s.extension),
    )


def _refusals(
    origin: Origin,
    connection: connect.Connection,
    relations: Sequence[Relation],
    schemas: Sequence[str],
) -> dict[int, Failure]:
    """Why tables cannot be read, by oid, as a run would report it. A lock is no reason."""
    readable = [relation for relation in relations if relation.readable]
    with snapshot.hold(origin, connection, readable, schemas, "per-table") as context:
        errors = dict(context.refused)
    failures: dict[int, Failure] = {}
    for relation in relations:
        target = Target(origin.name, relation, TableSettings(), "", "", Place(""))
        error = errors.get(relation.label)
        if not relation.readable:
            error = selection.unreadable_error(target)
        elif {a.name for a in relation.attributes if not a.readable} & {*relation.key}:
            error = selection.unreadable_columns_error(target)
        if error and error.sqlstate != _LOCK_NOT_AVAILABLE:
            failures[relation.oid] = error.failure()
    return failures


def _no_tables(
    relations: Sequence[Relation], database: str, role: str, schemas: Sequence[str]
) -> ConfigError:
    place = f"the database {database}" + (f", schema {', '.join(schemas)}" if schemas else "")
    if relations:
        return ConfigError(
            f"The role {role} may not read any table in {place}, which has"
            f" {count(len(relations), 'table')}.",
            hint="GRANT it USAGE on the schema and SELECT on its tables.",
        )
    return ConfigError(
        f"There is no table in {place}.",
        hint="Check the database's name at the end of the connection string, and --schema.",
    )
