"""`bronze register` against a server that refuses what Databricks documents to refuse; an
independent client (databricks-sdk) reads back what was written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bronze.config import loading
from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.model.columns import DeltaType, ProtectionRule
from bronze.unity import entries, register
from bronze.unity.api.rest import Api
from bronze.unity.results import RegisteredTable, RegisterResult
from bronze.unity.source_facts import SourceTable
from tests.support import lake_tables
from tests.support.unity_server import BRONZE, Unity, unity

if TYPE_CHECKING:
    from databricks.sdk import WorkspaceClient

WAREHOUSE = "0123456789abcdef"
NAME = "workspace.shop.bz_customers"
COLUMNS = (
    ("id", DeltaType("long")),
    ("e-mail", DeltaType("string")),
    ("paid", DeltaType("decimal", 12, 2)),
    ("labels", DeltaType("array", element=DeltaType("string"))),
)
ORIGINAL = SourceTable(
    "crm",
    "db:5432/crm",
    "public",
    "customers",
    comments={"": "Our `best` customer's", "e-mail": "private\naddress \\ 'of' one"},
    personal={"e-mail": "e-mail"},
    columns={name: name for name, _ in COLUMNS},
)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lake that Databricks is told to find at s3://lake, with one Bronze table."""
    monkeypatch.setenv("TOKEN", "bronze-token")
    monkeypatch.setenv("CLIENT_SECRET", "bronze-client-secret")
    location_of = entries.location_of

    def elsewhere(place: Any, provider: str) -> str:
        if provider != "databricks":
            return location_of(place, provider)
        return f"s3://lake/{Path(place.url).relative_to(tmp_path)}"

    monkeypatch.setattr(entries, "location_of", elsewhere)
    originals = ({"shop.bz_customers": ORIGINAL}, ())
    monkeypatch.setattr(register, "source_tables", lambda *_: originals)
    rules = {"e-mail": ProtectionRule("encrypt")}
    lake_tables.make(tmp_path, "customers", COLUMNS, rules)
    return tmp_path


@pytest.fixture
def workspace(lake: Path) -> Iterator[Unity]:
    """A workspace in which bronze has the rights that it needs."""
    with unity() as running:
        running.mounts["s3://lake"] = (str(lake), {})
        running.prepare("s3://lake")
        running.warehouse()
        running.principals("analysts", "data-team", "audit")
        yield running


def config(lake: Path, *workspaces: Unity, **changes: Any) -> Settings:
    """A config with one catalog, or with several."""
    catalogs = [
        {
            "host": one.url, "name": "workspace", "auth": {"token": {"secret": "TOKEN"}},
            "grants": {"analysts": ["SELECT"]}, **changes,
        }
        for one in workspaces
    ]  # fmt: skip
    document = {
        "source": {"name": "crm", "dsn": "postgresql://127.0.0.1:1/crm"},
        "lake": {"root": str(lake), "schema": "shop"},
        "tables": {"customers": {"sla": "5m"}},
        "catalog": dict(enumerate_names(catalogs)) if len(catalogs) > 1 else catalogs[0],
    }
    return loading.parse(document)


def enumerate_names(catalogs: list[Any]) -> Iterator[tuple[str, Any]]:
    """Each catalog with a name."""
    for number, catalog in enumerate(catalogs):
        yield f"number{number}", catalog


def sdk(workspace: Unity, name: str = "bronze") -> WorkspaceClient:
    """The independent client."""
    # It takes two seconds to load, in each process that collects the tests.
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.core import Config

    token = f"{name}-token"
    return WorkspaceClient(config=Config(host=workspace.url, token=token, auth_type="pat"))


def only(result: RegisterResult) -> RegisteredTable:
    """The one table of a result."""
    assert result.problems == ()
    (table,) = result.tables
    return table


def tags(client: WorkspaceClient, kind: str, name: str) -> dict[str, str | None]:
    """The tags of an entity."""
    return {t.tag_key: t.tag_value for t in client.entity_tag_assignments.list(kind, name)}


@pytest.mark.parametrize("warehouse", [WAREHOUSE, ""])
def test_a_table_is_registered_with_all_that_is_known_of_it(
    lake: Path, workspace: Unity, warehouse: str
) -> None:
    """By SQL and by REST the catalog has the same; the second time nothing is written, and after
    an owner took the table over as well.
    """
    from databricks.sdk.service import catalog as uc

    settings = config(lake, workspace, warehouse=warehouse, owner="data-team")
    workspace.grant("CATALOG", "workspace", "MANAGE")
    table = only(register.register(settings))
    assert (table.status, table.error, table.name) == ("created", None, NAME)

    client = sdk(workspace, "admin")
    info = client.tables.get(NAME)
    assert (info.table_type, info.data_source_format) == (
        uc.TableType.EXTERNAL,
        uc.DataSourceFormat.DELTA,
    )
    assert info.storage_location == "s3://lake/shop/bz_customers"
    assert workspace.problems(NAME) == []
    assert info.owner == "data-team"
    columns = {column.name: column for column in info.columns or ()}
    assert columns["e-mail"].comment == ORIGINAL.comments["e-mail"]
    assert columns["paid"].type_text == "decimal(12,2)"
    assert columns["labels"].type_name is uc.ColumnTypeName.ARRAY
    # Databricks' REST API has no comment of a table.
    assert info.comment == (ORIGINAL.comments[""] if warehouse else None)
    assert bool(table.notes) is not bool(warehouse)
    assert tags(client, "tables", NAME) == {
        "source": "crm", "source_table": "public.customers", "pattern": "full_refresh", "sla": "5m",
    }  # fmt: skip
    assert tags(client, "columns", f"{NAME}.e-mail") == {"pii": "e-mail", "protection": "encrypt"}
    granted = client.grants.get("TABLE", NAME).privilege_assignments
    assert granted is not None
    assert [(g.principal, g.privileges) for g in granted] == [("analysts", [uc.Privilege.SELECT])]
    mine = sdk(workspace)
    source = mine.external_metadata.get_external_metadata("crm__public__customers")
    assert (source.system_type, source.columns) == (
        uc.SystemType.POSTGRESQL,
        [name for name, _ in COLUMNS],
    )
    (relation,) = mine.external_lineage.list_external_lineage_relationships(
        uc.ExternalLineageObject(table=uc.ExternalLineageTable(NAME)), uc.LineageDirection.UPSTREAM
    )
    assert relation.external_lineage_info is not None
    pairs = [(c.source, c.target) for c in relation.external_lineage_info.columns or ()]
    assert sorted(pairs) == sorted((name, name) for name, _ in COLUMNS)

    before = len(workspace.requests)
    again = register.register(settings)
    assert (only(again).status, only(again).changes, again.writes) == ("unchanged", (), 0)
    assert {method for method, _ in workspace.requests[before:]} == {"GET"}


def test_changed_columns_are_repaired_by_sql(lake: Path, workspace: Unity) -> None:
    """Those that were added, and those of another type."""
    settings = config(lake, workspace, warehouse=WAREHOUSE)
    register.register(settings)
    wider = dict(COLUMNS) | {"paid": DeltaType("decimal", 14, 2)}
    lake_tables.make(lake, "customers", tuple(wider.items()))
    table = only(register.register(settings))
    assert "columns: paid is decimal(14,2), not decimal(12,2)" in table.changes
    lake_tables.make(lake, "customers", (*wider.items(), ("since", DeltaType("date"))))
    table = only(register.register(settings))
    assert (table.status, table.error) == ("updated", None)
    assert "columns: since is new" in table.changes
    assert workspace.problems(NAME) == []
    assert tags(sdk(workspace), "columns", f"{NAME}.e-mail") == {"pii": "e-mail"}
    assert register.register(settings).writes == 0


def test_added_columns_by_rest_need_an_entry_made_anew(lake: Path, workspace: Unity) -> None:
    """It is told; with ``recreate`` all that others have set comes back, and no file is touched."""
    from databricks.sdk.service import catalog as uc

    settings = config(lake, workspace, governance="")
    register.register(settings)
    client = sdk(workspace, "admin")
    client.grants.update(
        "TABLE", NAME, changes=[uc.PermissionsChange(principal="audit", add=[uc.Privilege.MODIFY])]
    )
    client.entity_tag_assignments.create(
        uc.EntityTagAssignment(
            entity_name=f"{NAME}.paid", tag_key="team", entity_type="columns", tag_value="x"
        )
    )
    workspace.grant("TABLE", NAME, "MANAGE")
    lake_tables.make(lake, "customers", (*COLUMNS, ("since", DeltaType("date"))))
    files = sorted((f, f.stat().st_mtime_ns) for f in lake.rglob("*") if f.is_file())

    table = only(register.register(settings))
    assert table.status == "failed"
    assert table.error is not None
    assert "other columns in the lake than in the catalog: since is new" in table.error.message
    assert "--recreate" in table.error.hint

    table = only(register.register(settings, recreate=True))
    assert (table.status, table.error) == ("recreated", None)
    assert workspace.problems(NAME) == []
    granted = client.grants.get("TABLE", NAME).privilege_assignments or ()
    assert {(g.principal, *(p.value for p in g.privileges or ())) for g in granted} >= {
        ("analysts", "SELECT"),
        ("audit", "MODIFY"),
    }
    assert tags(client, "columns", f"{NAME}.paid") == {"team": "x"}
    assert sorted((f, f.stat().st_mtime_ns) for f in lake.rglob("*") if f.is_file()) == files
    assert register.register(settings, recreate=True).writes == 0


def test_an_entry_that_cannot_be_made_anew_is_told_with_what_it_had(
    lake: Path, workspace: Unity
) -> None:
    """What REST cannot put back is never deleted; if the new entry is refused after all, the error
    lists grants and tags.
    """
    settings = config(lake, workspace, lineage=False)
    register.register(settings)
    lake_tables.make(lake, "customers", (*COLUMNS, ("since", DeltaType("date"))))
    workspace.table(NAME)["row_filter"] = {"function_name": "f", "input_column_names": []}
    table = only(register.register(settings, recreate=True))
    assert table.error is not None
    assert "it has a row filter, which cannot be put back" in table.error.message
    assert workspace.count("DELETE") == 0
    del workspace.table(NAME)["row_filter"]
    workspace.revoke("EXTERNAL_LOCATION", "lake", "CREATE_EXTERNAL_TABLE")
    table = only(register.register(settings, recreate=True))
    assert table.error is not None
    assert "was deleted, and could not be made anew: PERMISSION_DENIED" in table.error.message
    assert "SELECT to analysts" in table.error.hint
    assert "tags of the table: " in table.error.hint


def test_another_location_is_an_error_and_never_a_drop(lake: Path, workspace: Unity) -> None:
    """So is a table that is not an external Delta table."""
    settings = config(lake, workspace, warehouse=WAREHOUSE)
    register.register(settings)
    workspace.table(NAME)["storage_location"] = "s3://lake/other"
    writes = workspace.count("POST", "PATCH", "DELETE")
    table = only(register.register(settings, recreate=True))
    assert table.error is not None
    assert "is registered at s3://lake/other, and the lake has it at s3://lake/shop" in (
        table.error.message
    )
    workspace.table(NAME).update(
        storage_location="s3://lake/shop/bz_customers", table_type="MANAGED"
    )
    table = only(register.register(settings))
    assert table.error is not None
    assert "is registered as MANAGED DELTA" in table.error.message
    assert workspace.count("POST", "PATCH", "DELETE") == writes


PRIVILEGES = (
    ("CATALOG", "workspace", "USE_CATALOG"),
    ("CATALOG", "workspace", "CREATE_SCHEMA"),
    ("CATALOG", "workspace", "CREATE_TABLE"),
    ("EXTERNAL_LOCATION", "lake", "CREATE_EXTERNAL_TABLE"),
    ("METASTORE", "", "CREATE_EXTERNAL_METADATA"),
)


@pytest.mark.parametrize("warehouse", [WAREHOUSE, ""])
def test_a_missing_privilege_is_told_in_databricks_words(
    lake: Path, workspace: Unity, warehouse: str
) -> None:
    """With the GRANT that is needed; what does not need it is registered."""
    settings = config(lake, workspace, warehouse=warehouse, grants={})
    for kind, name, privilege in PRIVILEGES:
        if privilege == "CREATE_TABLE":
            # The owner of a schema may create tables in it.
            workspace.schema("workspace.shop")
        workspace.revoke(kind, name, privilege)
        result = register.register(settings)
        (failure,) = (*result.problems, *(t.error for t in result.tables if t.error))
        assert result.exit_code == 1
        assert "PERMISSION_DENIED" in failure.message or "INSUFFICIENT" in failure.message
        assert privilege.replace("_", " ") in failure.hint
        assert "GRANT" in failure.hint
        workspace.grant(kind, name, privilege)
    assert register.register(settings).exit_code == 0
    assert sdk(workspace).tables.get(NAME).storage_location == "s3://lake/shop/bz_customers"


def test_what_is_busy_is_asked_again(
    lake: Path, workspace: Unity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 429 and 503 only, when the server asks for it, and not for ever."""
    waits: list[float] = []
    monkeypatch.setattr(register, "Api", lambda where: Api(where, waits.append))
    settings = config(lake, workspace)
    workspace.failures["/catalogs/"] += [(429, {"Retry-After": "7"}), (503, {})]
    assert only(register.register(settings)).error is None
    assert waits == [7.0, 2.0]
    waits.clear()
    workspace.failures["/tables/"] += [(429, {"Retry-After": "50"})] * 9
    result = register.register(settings)
    (problem,) = (*result.problems, *(t.error for t in result.tables if t.error))
    assert (problem.kind, result.exit_code) == ("CatalogUnreachable", 3)
    assert "is busy: REQUEST_LIMIT_EXCEEDED: Try again later." in problem.message
    assert sum(waits) <= 180


def test_warehouses_that_do_not_run(lake: Path, workspace: Unity) -> None:
    """A stopped one is waited for, within bounds; one that is deleted is told."""
    house = workspace.warehouse("stopped", state="STOPPED", start=0.3)
    result = register.register(config(lake, workspace, warehouse="stopped", lineage=False))
    assert only(result).status == "created"
    house.state, house.runs_at, house.start = "STOPPED", 0.0, 60.0
    lake_tables.make(lake, "orders", COLUMNS)
    began = time.monotonic()
    late = config(lake, workspace, warehouse="stopped", wait=0, lineage=False)
    lake_tables.make(lake, "returns", COLUMNS)
    before = workspace.count("POST")
    result = register.register(late, ["bz_orders", "bz_returns"])
    # The second table would wait as long as the first: nothing is sent for it.
    assert workspace.count("POST") - before == len(["the statement", "its cancellation"])
    (problem,) = {t.error for t in result.tables}
    assert problem is not None
    assert problem.kind == "CatalogUnreachable"
    assert "has not started within 0 s; the statement was canceled" in problem.message
    assert time.monotonic() - began < 20
    workspace.warehouse("deleted", state="DELETED")
    for name in ("gone", "deleted"):
        missing = register.register(config(lake, workspace, warehouse=name), ["bz_orders"])
        assert missing.exit_code == 1
        texts = (*missing.problems, *(t.error for t in missing.tables if t.error))
        assert any(f"There is no SQL warehouse {name} at 127" in one.message for one in texts)


@pytest.mark.soak
def test_workspaces_are_bound_to_an_isolated_catalog(lake: Path, workspace: Unity) -> None:
    """Others stay bound; of a catalog that is open to all it is told that bindings mean nothing."""
    from databricks.sdk.service import catalog as uc

    settings = config(
        lake, workspace, workspaces=[{"id": 1, "access": "READ_ONLY"}, {"id": 2}], lineage=False
    )
    result = register.register(settings)
    assert "is open to all workspaces" in result.notes[0]
    admin = sdk(workspace, "admin")
    admin.catalogs.update("workspace", isolation_mode=uc.CatalogIsolationMode.ISOLATED)
    mine = workspace.metastore.workspace
    (problem,) = register.register(settings).problems
    assert "binds the catalog to the workspace of host" in problem.hint
    admin.catalogs.update("workspace", owner=BRONZE)
    bound = uc.WorkspaceBinding(workspace_id=mine)
    admin.workspace_bindings.update_bindings("catalog", "workspace", add=[bound])
    result = register.register(settings)
    assert (result.problems, len(result.changes)) == ((), 2)
    found = {
        b.workspace_id: b.binding_type
        for b in admin.workspace_bindings.get_bindings("catalog", "workspace")
    }
    kinds = uc.WorkspaceBindingBindingType
    assert found[1] is kinds.BINDING_TYPE_READ_ONLY
    assert found[2] is kinds.BINDING_TYPE_READ_WRITE
    assert mine in found
    assert register.register(settings).writes == 0


def test_the_open_source_catalog_has_what_it_can(lake: Path) -> None:
    """Tables with comments, columns and grants, at file:// locations; what it lacks is one note."""
    with unity(is_open_source=True) as server:
        server.catalog("unity")
        server.tokens.clear()
        server.principals("analysts")
        settings = config(lake, server, provider="unitycatalog", name="unity", auth=None)
        result = register.register(settings)
        table = only(result)
        assert (table.status, table.error, table.notes) == ("created", None, ())
        known = server.table("unity.shop.bz_customers")
        assert known["storage_location"] == f"file://{lake}/shop/bz_customers"
        assert known["comment"] == ORIGINAL.comments[""]
        assert server.problems("unity.shop.bz_customers") == []
        assert "has no tags, owners" in result.notes[0]
        assert register.register(settings).writes == 0


def test_one_of_several_catalogs_may_fail(lake: Path, workspace: Unity) -> None:
    """The others are registered in; a service principal gets its token by its secret."""
    closed = Unity(url="http://127.0.0.1:1")
    auth = {"client_id": "bronze-client", "client_secret": {"secret": "CLIENT_SECRET"}}
    result = register.register(config(lake, closed, workspace, auth=auth))
    assert [table.status for table in result.tables] == ["created"]
    (problem,) = result.problems
    assert problem.message.startswith("Catalog number0: ")
    assert result.exit_code == 1


def test_without_postgresql_comments_stay(
    lake: Path, workspace: Unity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a sentence says so."""
    settings = config(lake, workspace, warehouse=WAREHOUSE)
    register.register(settings)
    monkeypatch.undo()
    monkeypatch.setenv("TOKEN", "bronze-token")
    monkeypatch.setattr(
        entries, "location_of", lambda place, _: f"s3://lake/shop/{Path(place.url).name}"
    )
    result = register.register(settings)
    assert (only(result).status, result.writes) == ("unchanged", 0)
    assert "tables of source crm stay as they were registered last" in result.notes[0]


def test_a_host_that_is_no_workspace_and_a_token_that_has_ended(
    lake: Path, workspace: Unity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its sentence, without a traceback."""
    monkeypatch.setenv("TOKEN", "unknown")
    (problem,) = register.register(config(lake, workspace)).problems
    assert "Invalid access token" in problem.message
    assert "token has expired, or is one of another workspace" in problem.hint
    monkeypatch.setenv("TOKEN", "bronze-token")
    workspace.ends["bronze-token"] = 1.0
    (problem,) = register.register(config(lake, workspace)).problems
    assert "UNAUTHENTICATED: Token is expired" in problem.message
    assert "token has expired" in problem.hint
    workspace.ends.clear()
    (problem,) = register.register(config(lake, workspace, name="nowhere")).problems
    assert "The catalog nowhere at 127.0.0.1" in problem.message
    assert "CATALOG_DOES_NOT_EXIST" in problem.message


def test_only_a_certificate_that_is_trusted_is_accepted(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA of one's own is named by SSL_CERT_FILE; without it nothing is sent."""
    with unity(folder=tmp_path) as server:
        server.prepare("s3://lake")
        settings = config(lake, server, grants={}, lineage=False)
        (problem,) = register.register(settings).problems
        assert problem.kind == "CatalogUnreachable"
        assert "its certificate is not trusted" in problem.message
        assert server.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert only(register.register(settings)).status == "created"


def test_a_local_lake_cannot_be_registered_at_databricks(
    lake: Path, workspace: Unity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is asked."""
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="folder of this machine"):
        register.register(config(lake, workspace))
    assert workspace.requests == []
