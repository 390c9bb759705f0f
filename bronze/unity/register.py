"""Registers tables of the lake in the catalogs of the config.

What is there is read by REST, and only what differs is written: registering a second time changes
nothing, and starts no warehouse. Nothing is ever dropped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bronze import stopping
from bronze.config.sections.catalog import CatalogSettings
from bronze.config.settings import GOVERNANCE, Settings
from bronze.errors import (
    BronzeError,
    CatalogError,
    CatalogUnreachable,
    ConfigError,
    SecretsUnreachable,
    Stopped,
)
from bronze.model.results import Failure
from bronze.tables import lake
from bronze.tables.lake import LakeTable
from bronze.unity import entries, registered
from bronze.unity.api.refusals import explained
from bronze.unity.api.rest import CATALOG, Api, segment
from bronze.unity.api.warehouse import Warehouse
from bronze.unity.entries import Entry
from bronze.unity.results import RegisteredTable, RegisterResult
from bronze.unity.source_facts import SourceTable, source_tables
from bronze.unity.table import Catalog, register_table
from bronze.unity.writers import RestWriter, SqlWriter

_UNREACHABLE = (CatalogUnreachable.__name__, SecretsUnreachable.__name__)
_OPEN_SOURCE_NOTE = (
    "The open-source Unity Catalog has no tags, owners, bindings of workspaces and lineage: tables,"
    " columns, comments and grants are registered."
)


@dataclass
class _Progress:
    """What a registration has done so far."""

    tables: list[RegisteredTable] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Failure] = field(default_factory=list)
    reads: int = 0
    writes: int = 0


def register(
    settings: Settings, names: Sequence[str] = (), *, recreate: bool = False
) -> RegisterResult:
    """Registers tables of the lake in all catalogs, governance tables included.

    Args:
        settings: the config.
        names: of which tables, as of `bronze.tables.lake.find`; none is all.
        recreate: whether to make entries anew whose columns REST cannot change.

    Raises:
        ConfigError: there is no [catalog], no such table, or Databricks cannot reach the lake.
        LakeError, LakeUnreachable: the lake cannot be read.
        Stopped: the command was asked to stop.
    """
    if not settings.catalog:
        raise ConfigError(
            "The config has no [catalog] to register tables in.",
            hint='[catalog] host = "https://…", name = "…" and auth = "azure", for example.',
        )
    return register_tables(settings, _tables(settings, names), settings.catalog, recreate=recreate)


def register_tables(
    settings: Settings,
    tables: Sequence[LakeTable],
    chosen: Mapping[str, CatalogSettings],
    *,
    recreate: bool = False,
) -> RegisterResult:
    """`register`, for tables that were read already, and for ``chosen`` catalogs."""
    began = time.monotonic()
    # What nobody can reach is told before anything is asked.
    for catalog in chosen.values():
        entries.location_of(settings.place(settings.lake.schema_, ""), catalog.provider)
    originals, notes = source_tables(settings, [table for table in tables if table.state])
    done = _Progress(notes=list(notes))
    for name, catalog in chosen.items():
        api = Api(settings.workspace(catalog))
        try:
            _register_in(settings, catalog, api, tables, originals, recreate, done)
        except (ConfigError, Stopped):
            raise
        except BronzeError as error:
            named = f"Catalog {name}: " if name else ""
            failure = error.failure()
            done.problems.append(Failure(failure.kind, f"{named}{failure.message}", failure.hint))
        done.reads += api.reads
        done.writes += api.writes
    return RegisterResult(
        time.monotonic() - began,
        tuple(done.tables),
        tuple(done.changes),
        tuple(dict.fromkeys(done.notes)),
        tuple(done.problems),
        done.reads,
        done.writes,
    )


def _tables(settings: Settings, names: Sequence[str]) -> list[LakeTable]:
    """The tables of the lake to register, those that cannot be read included."""
    schemas = (settings.lake.schema_, GOVERNANCE)
    there = [table for schema in schemas for table in lake.tables_of(settings, schema)]
    own = [
        table
        for table in there
        if table.error or table.is_bronze or (table.state and table.schema == GOVERNANCE)
    ]
    return lake.find(settings, own, names)


def _register_in(
    settings: Settings,
    catalog: CatalogSettings,
    api: Api,
    tables: Sequence[LakeTable],
    originals: Mapping[str, SourceTable],
    recreate: bool,
    done: _Progress,
) -> None:
    """Registers tables in one catalog.

    Raises:
        CatalogError, CatalogUnreachable: the catalog or a schema cannot be used.
        ConfigError, SecretsUnreachable: there is no token.
    """
    is_open = catalog.provider == "unitycatalog"
    writer = (
        SqlWriter(Warehouse(api, catalog.warehouse, catalog.wait))
        if catalog.warehouse
        else RestWriter(api, is_open)
    )
    target = Catalog(api, writer, is_open, catalog.lineage, recreate)
    if is_open:
        done.notes.append(_OPEN_SOURCE_NOTE)
    _check_catalog(catalog, target, done)
    prepared = list(_entries(settings, catalog, api, tables, originals, done))
    _prepare_schemas(catalog, target, prepared, done)
    unreachable: Failure | None = None
    for entry in prepared:
        stopping.check()
        if unreachable:
            # The next one would wait for as long as this one.
            table = RegisteredTable(
                entry.target, entry.full_name, api.host, "failed", error=unreachable
            )
        else:
            table = register_table(target, entry)
        if table.error and table.error.kind in _UNREACHABLE:
            unreachable = table.error
        done.tables.append(table)


def _entries(
    settings: Settings,
    catalog: CatalogSettings,
    api: Api,
    tables: Sequence[LakeTable],
    originals: Mapping[str, SourceTable],
    done: _Progress,
) -> Iterator[Entry]:
    for table in tables:
        if table.schema == GOVERNANCE and not catalog.governance:
            done.notes.append(
                'Governance tables are not registered: governance is "" under [catalog].'
            )
            continue
        try:
            if table.error:
                raise table.error
            yield entries.entry_of(settings, catalog, table, originals.get(table.target))
        except ConfigError:
            raise
        except BronzeError as error:
            done.tables.append(
                RegisteredTable(table.target, table.name, api.host, "failed", error=error.failure())
            )


def _check_catalog(catalog: CatalogSettings, target: Catalog, done: _Progress) -> None:
    """Checks that the catalog is there, and binds it to workspaces."""
    what = f"The catalog {catalog.name} at {target.api.host} cannot be used"
    with explained(what, f"USE CATALOG on the catalog {catalog.name}"):
        found = target.api.get(f"{CATALOG}/catalogs/{segment(catalog.name)}")
    if not catalog.workspaces:
        return
    if found.get("isolation_mode") != "ISOLATED":
        done.notes.append(
            f"The catalog {catalog.name} is open to all workspaces of its metastore: it was bound"
            " to none. Set its isolation mode to ISOLATED first, as its owner: `databricks catalogs"
            f" update {catalog.name} --isolation-mode ISOLATED`."
        )
        return
    _bind(catalog, target, done)


def _bind(catalog: CatalogSettings, target: Catalog, done: _Progress) -> None:
    path = f"{CATALOG}/bindings/catalog/{segment(catalog.name)}"
    what = f"The catalog {catalog.name} cannot be bound to workspaces"
    with explained(what, f"MANAGE on the catalog {catalog.name}"):
        bindings = {
            one["workspace_id"]: one.get("binding_type", _binding("READ_WRITE"))
            for one in target.api.pages(path, "bindings", max_results=0)
        }
        wanted = {one.id: _binding(one.access) for one in catalog.workspaces}
        add = {id_: kind for id_, kind in wanted.items() if bindings.get(id_) != kind}
        if not add:
            return
        replaced = {id_: bindings[id_] for id_ in add if id_ in bindings}
        body = {"add": _bindings(add), **({"remove": _bindings(replaced)} if replaced else {})}
        target.api.call("PATCH", path, body)
    done.changes += [f"catalog {catalog.name} bound to workspace {id_}" for id_ in add]


def _binding(access: str) -> str:
    return f"BINDING_TYPE_{access}"


def _bindings(kinds: Mapping[int, str]) -> list[dict[str, object]]:
    return [{"workspace_id": id_, "binding_type": kind} for id_, kind in kinds.items()]


def _prepare_schemas(
    catalog: CatalogSettings, target: Catalog, prepared: Sequence[Entry], done: _Progress
) -> None:
    """Creates the schemas that are missing, and lets those use them who are granted tables."""
    principals: dict[str, list[str]] = {}
    for entry in prepared:
        principals.setdefault(entry.name[1], []).extend(entry.grants)
    for schema, granted in principals.items():
        full_name = f"{catalog.name}.{schema}"
        needs = f"USE CATALOG and CREATE SCHEMA on the catalog {catalog.name}"
        with explained(f"The schema {full_name} cannot be used", f"USE SCHEMA on {full_name}"):
            found = target.api.find(f"{CATALOG}/schemas/{segment(full_name)}")
        if found is None:
            with explained(f"The schema {full_name} cannot be created", needs):
                target.writer.create_schema(catalog.name, schema)
            done.changes.append(f"schema {full_name} created")
        try:
            if granted:
                _let_use(target, (catalog.name, schema), dict.fromkeys(granted), done)
        except CatalogError as error:
            if error.retry:
                raise
            # Tables can be registered in a schema of somebody else.
            done.problems.append(error.failure())


def _let_use(
    target: Catalog, schema: tuple[str, str], principals: Mapping[str, None], done: _Progress
) -> None:
    full_name = ".".join(schema)
    what = f"USE SCHEMA on {full_name} cannot be granted"
    with explained(what, f"MANAGE on the schema {full_name}"):
        granted = registered.grants_of(
            target.api, "schema", full_name, open_source=target.open_source
        )
        for principal in principals:
            if not granted.get(principal, frozenset()) & {"USE SCHEMA", "ALL PRIVILEGES"}:
                target.writer.grant("schema", schema, principal, ["USE SCHEMA"])
                done.changes.append(f"USE SCHEMA on {full_name} to {principal}")
