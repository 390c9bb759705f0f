"""The server of tests: databricks-sdk, which shares nothing with it, reads what was put there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.errors import NotFound, PermissionDenied
from databricks.sdk.errors.base import DatabricksError
from databricks.sdk.service import catalog as uc
from databricks.sdk.service import sql
from deltalake import write_deltalake

from tests.support.unity_server import ADMIN, BRONZE, Unity, unity

# Of the server that other tests use.
pytestmark = pytest.mark.soak

WAREHOUSE = "0123456789abcdef"
COLUMN = uc.ColumnInfo(
    name="id",
    type_text="bigint",
    type_name=uc.ColumnTypeName.LONG,
    type_json='{"name":"id","type":"long","nullable":true,"metadata":{}}',
    position=0,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Unity]:
    """A workspace for the lake at s3://lake, which is read from a folder."""
    with unity() as running:
        running.mounts["s3://lake"] = (str(tmp_path), {})
        running.prepare("s3://lake")
        running.warehouse()
        running.principals("analysts", "data-team")
        yield running


def client(workspace: Unity, name: str = "bronze") -> WorkspaceClient:
    """The sdk as a client."""
    config = Config(
        host=workspace.url, token=f"{name}-token", auth_type="pat", retry_timeout_seconds=3
    )
    return WorkspaceClient(config=config)


def execute(sdk: WorkspaceClient, *texts: str) -> None:
    """Executes statements, each of which has to succeed."""
    for text in texts:
        status = sdk.statement_execution.execute_statement(text, WAREHOUSE).status
        assert status is not None
        assert status.state is sql.StatementState.SUCCEEDED, status.error


def failure(sdk: WorkspaceClient, text: str) -> str:
    """The message of a statement that fails."""
    status = sdk.statement_execution.execute_statement(text, WAREHOUSE).status
    assert status is not None
    assert status.error is not None, f"{text} succeeded"
    return str(status.error.message)


def delta(folder: Path, name: str, **columns: Any) -> None:
    """Writes a Delta table below a folder."""
    write_deltalake(
        str(folder / name), pa.table(columns), mode="overwrite", schema_mode="overwrite"
    )


def create(sdk: WorkspaceClient, name: str = "t", **changes: Any) -> uc.TableInfo:
    """Creates a table by REST."""
    arguments: dict[str, Any] = {
        "name": name, "catalog_name": "workspace", "schema_name": "shop",
        "table_type": uc.TableType.EXTERNAL, "data_source_format": uc.DataSourceFormat.DELTA,
        "storage_location": f"s3://lake/shop/{name}", "columns": [COLUMN],
    }  # fmt: skip
    return sdk.tables.create(**{**arguments, **changes})


def test_the_sdk_reads_what_was_put_by_rest(workspace: Unity, tmp_path: Path) -> None:
    """Schema, table, grants, tags, bindings, external metadata and lineage, over many pages."""
    workspace.page = 1
    bronze, admin = client(workspace), client(workspace, "admin")
    delta(tmp_path, "shop/t", id=pa.array([1]))
    bronze.schemas.create("Shop", "workspace", comment="of the shop")
    assert bronze.schemas.get("workspace.shop").comment == "of the shop"
    create(bronze)
    table = bronze.tables.get("workspace.shop.t")
    assert table.storage_location == "s3://lake/shop/t"
    assert [c.as_dict() for c in table.columns or []] == [COLUMN.as_dict()]
    assert not workspace.problems("workspace.shop.t")
    assert [t.name for t in bronze.tables.list("workspace", "shop")] == ["t"]

    changes = [uc.PermissionsChange(principal="analysts", add=[uc.Privilege.SELECT])]
    bronze.grants.update("table", "workspace.shop.t", changes=changes)
    granted = bronze.grants.get("table", "workspace.shop.t").privilege_assignments
    assert [(g.principal, g.privileges) for g in granted or []] == [
        ("analysts", [uc.Privilege.SELECT])
    ]
    inherited = bronze.grants.get_effective("table", "workspace.shop.t", principal=BRONZE)
    assert {
        (p.privilege, p.inherited_from_name)
        for g in inherited.privilege_assignments or []
        for p in g.privileges or []
    } > {(uc.Privilege.USE_CATALOG, "workspace")}

    for kind, name in (("tables", "workspace.shop.t"), ("columns", "workspace.shop.t.id")):
        for key in ("pii", "sla"):
            bronze.entity_tag_assignments.create(
                uc.EntityTagAssignment(name, key, kind, tag_value="x")
            )
        bronze.entity_tag_assignments.update(
            kind, name, "pii", uc.EntityTagAssignment(name, "pii", kind, tag_value="y"), "tag_value"
        )
        tags = {t.tag_key: t.tag_value for t in bronze.entity_tag_assignments.list(kind, name)}
        assert tags == {"pii": "y", "sla": "x"}
        bronze.entity_tag_assignments.delete(kind, name, "sla")
    with pytest.raises(DatabricksError, match="already exists"):
        bronze.entity_tag_assignments.create(
            uc.EntityTagAssignment("workspace.shop.t", "pii", "tables", tag_value="z")
        )

    read_only = uc.WorkspaceBindingBindingType.BINDING_TYPE_READ_ONLY
    admin.workspace_bindings.update_bindings(
        "catalog", "workspace", add=[uc.WorkspaceBinding(7, read_only), uc.WorkspaceBinding(8)]
    )
    bindings = list(admin.workspace_bindings.get_bindings("catalog", "workspace"))
    assert [(b.workspace_id, b.binding_type) for b in bindings] == [
        (7, read_only),
        (8, uc.WorkspaceBindingBindingType.BINDING_TYPE_READ_WRITE),
    ]

    bronze.external_metadata.create_external_metadata(
        uc.ExternalMetadata("shop.t", uc.SystemType.POSTGRESQL, "table", columns=["id", "v"])
    )
    source = uc.ExternalLineageObject(
        external_metadata=uc.ExternalLineageExternalMetadata(name="shop.t")
    )
    target = uc.ExternalLineageObject(table=uc.ExternalLineageTable(name="workspace.shop.t"))
    pairs = [uc.ColumnRelationship("id", "id")]
    bronze.external_lineage.create_external_lineage_relationship(
        uc.CreateRequestExternalLineage(source, target, columns=pairs)
    )
    (known,) = bronze.external_lineage.list_external_lineage_relationships(
        target, uc.LineageDirection.UPSTREAM
    )
    assert known.external_metadata_info is not None
    assert known.external_metadata_info.system_type is uc.SystemType.POSTGRESQL
    assert known.external_lineage_info is not None
    assert known.external_lineage_info.columns == pairs
    bronze.external_metadata.update_external_metadata(
        "shop.t", uc.ExternalMetadata("shop.t", uc.SystemType.POSTGRESQL, "table", columns=["id"]),
        "columns",
    )  # fmt: skip
    assert bronze.external_metadata.get_external_metadata("shop.t").columns == ["id"]

    bronze.tables.update("workspace.shop.t", owner="data-team")
    assert admin.tables.get("workspace.shop.t").owner == "data-team"


def test_the_sdk_reads_what_was_put_by_sql(workspace: Unity, tmp_path: Path) -> None:
    """Columns are those of the Delta log; REPAIR adds new ones, and keeps comments."""
    bronze = client(workspace)
    delta(tmp_path, "shop/t", id=pa.array([1]), v=pa.array(["x"]))
    name = "`workspace`.`shop`.`t`"
    execute(
        bronze,
        "CREATE SCHEMA IF NOT EXISTS `workspace`.`shop`",
        "CREATE SCHEMA IF NOT EXISTS `workspace`.`shop`",
        f"CREATE TABLE IF NOT EXISTS {name} USING DELTA LOCATION 's3://lake/shop/t'",
        f"COMMENT ON TABLE {name} IS 'it\\'s \\\\ a table'",
        "COMMENT ON COLUMN `workspace`.`shop`.`t`.`v` IS 'a value'",
        f"ALTER TABLE {name} SET TAGS ('sla' = '5m', 'source' = 'shop')",
        f"ALTER TABLE {name} UNSET TAGS ('source')",
        f"ALTER TABLE {name} ALTER COLUMN `v` SET TAGS ('pii' = 'email')",
        f"GRANT SELECT, MODIFY ON TABLE {name} TO `analysts`",
        "GRANT USE SCHEMA ON SCHEMA `workspace`.`shop` TO `analysts`",
        f"REVOKE MODIFY ON TABLE {name} FROM `analysts`",
    )
    delta(tmp_path, "shop/t", id=pa.array([1]), v=pa.array(["x"]), price=pa.array([1.5]))
    execute(bronze, f"MSCK REPAIR TABLE {name} SYNC METADATA")
    table = bronze.tables.get("workspace.shop.t")
    assert table.comment == "it's \\ a table"
    assert [(c.name, c.type_text, c.comment) for c in table.columns or []] == [
        ("id", "bigint", None), ("v", "string", "a value"), ("price", "double", None),
    ]  # fmt: skip
    assert not workspace.problems("workspace.shop.t")
    tags = bronze.entity_tag_assignments
    assert [t.tag_value for t in tags.list("tables", "workspace.shop.t")] == ["5m"]
    assert [t.tag_value for t in tags.list("columns", "workspace.shop.t.v")] == ["email"]
    granted = bronze.grants.get("table", "workspace.shop.t").privilege_assignments or []
    assert [g.privileges for g in granted] == [[uc.Privilege.SELECT]]
    execute(bronze, f"ALTER TABLE {name} OWNER TO `data-team`")
    assert client(workspace, "admin").tables.get("workspace.shop.t").owner == "data-team"


def test_statements_that_databricks_refuses_fail(workspace: Unity, tmp_path: Path) -> None:
    """Without a log, at a taken or unknown location, with a doubled quote."""
    bronze = client(workspace)
    delta(tmp_path, "shop/t", id=pa.array([1]))
    table = "CREATE TABLE `workspace`.`shop`.`{}` USING DELTA LOCATION '{}'"
    assert "SCHEMA_NOT_FOUND" in failure(bronze, table.format("t", "s3://lake/shop/t"))
    execute(bronze, "CREATE SCHEMA `workspace`.`shop`", table.format("t", "s3://lake/shop/t"))
    assert "ALREADY_EXISTS" in failure(bronze, table.format("t", "s3://lake/shop/t"))
    assert "LOCATION_OVERLAP" in failure(bronze, table.format("u", "s3://lake/shop/t/u"))
    assert "TXN_LOG" in failure(bronze, table.format("u", "s3://lake/shop/u"))
    assert "NO_PARENT_EXTERNAL" in failure(bronze, table.format("u", "s3://other/u"))
    assert "not a valid name" in failure(bronze, table.format("a b", "s3://lake/shop/u"))
    assert "PARSE_SYNTAX_ERROR" in failure(bronze, "CREATE OR REPLACE TABLE x")
    execute(bronze, "COMMENT ON TABLE `workspace`.`shop`.`t` IS 'it''s'")
    assert bronze.tables.get("workspace.shop.t").comment == "its"


@pytest.mark.parametrize(
    ("kind", "name", "privilege", "by"),
    [
        ("CATALOG", "workspace", "USE_CATALOG", "both"),
        ("CATALOG", "workspace", "CREATE_TABLE", "both"),
        ("EXTERNAL_LOCATION", "lake", "CREATE_EXTERNAL_TABLE", "both"),
        ("EXTERNAL_LOCATION", "lake", "EXTERNAL_USE_LOCATION", "rest"),
        ("CATALOG", "workspace", "EXTERNAL_USE_SCHEMA", "rest"),
    ],
)
def test_each_missing_privilege_is_refused_by_its_name(
    workspace: Unity, tmp_path: Path, kind: str, name: str, privilege: str, by: str
) -> None:
    """By REST and by SQL, where it is needed; ownership and ALL PRIVILEGES do not replace EXTERNAL
    USE SCHEMA and EXTERNAL USE LOCATION.
    """
    bronze = client(workspace)
    delta(tmp_path, "shop/t", id=pa.array([1]))
    workspace.schema("workspace.shop")
    workspace.revoke(kind, name, privilege)
    if by == "rest":
        workspace.grant(kind, name, "ALL_PRIVILEGES")
        workspace.metastore.get("SCHEMA", "workspace.shop").document["owner"] = BRONZE
    words = privilege.replace("_", " ")
    with pytest.raises(PermissionDenied, match=f"User does not have {words} on"):
        create(bronze)
    text = "CREATE TABLE `workspace`.`shop`.`t` USING DELTA LOCATION 's3://lake/shop/t'"
    if by == "both":
        assert f"User does not have {words} on" in failure(bronze, text)
    else:
        execute(bronze, text)


def test_requests_that_the_api_does_not_know_are_refused(workspace: Unity) -> None:
    """Unknown fields, values outside of enumerations, managed tables, folders, bindings."""
    bronze, admin = client(workspace), client(workspace, "admin")
    workspace.schema("workspace.shop")
    api = bronze.api_client

    def refused(path: str, body: dict[str, Any], reason: str, method: str = "POST") -> None:
        with pytest.raises(DatabricksError, match=reason):
            api.do(method, f"/api/2.1/unity-catalog/{path}", body=body)

    table = {
        "name": "t", "catalog_name": "workspace", "schema_name": "shop", "table_type": "EXTERNAL",
        "data_source_format": "DELTA", "storage_location": "s3://lake/shop/t",
    }  # fmt: skip
    refused("tables", {**table, "comment": "x"}, "unknown fields comment")
    refused("tables", {**table, "table_type": "MANAGED"}, "Only EXTERNAL")
    refused("tables", {**table, "storage_location": "/x"}, "Missing cloud file system")
    refused("tables", {**table, "columns": [{"name": "a", "type_name": "BIGINT"}]}, "type_name")
    workspace.metastore.get("SCHEMA", "workspace.shop").document["owner"] = BRONZE
    for principal, privilege, reason in (
        ("analysts", "USE SCHEMA", "privilege"),
        ("analysts", "READ_FILES", "not applicable"),
        ("nobody", "SELECT", "Could not find principal"),
    ):
        changes = [{"principal": principal, "add": [privilege]}]
        refused("permissions/schema/workspace.shop", {"changes": changes}, reason, "PATCH")
    with pytest.raises(PermissionDenied):
        bronze.workspace_bindings.update_bindings("catalog", "workspace", add=[])
    with pytest.raises(DatabricksError, match="overlaps"):
        admin.external_locations.create("inner", "s3://lake/inner", "storage")
    create(bronze)
    refused("tables/workspace.shop.t", {"comment": "x"}, "unknown fields comment", "PATCH")


def test_a_catalog_that_is_bound_to_other_workspaces_cannot_be_used(workspace: Unity) -> None:
    """It is not accessible; bound as read-only it can be read."""
    bronze = client(workspace)
    catalog = workspace.metastore.get("CATALOG", "workspace")
    catalog.document["isolation_mode"] = "ISOLATED"
    with pytest.raises(PermissionDenied, match="not accessible in current workspace"):
        bronze.catalogs.get("workspace")
    catalog.bindings[workspace.metastore.workspace] = "BINDING_TYPE_READ_ONLY"
    assert bronze.catalogs.get("workspace").name == "workspace"
    with pytest.raises(PermissionDenied, match="read-only"):
        bronze.schemas.create("shop", "workspace")


def test_warehouses_start_by_themselves_and_deleted_ones_are_refused(workspace: Unity) -> None:
    """A statement is PENDING until the warehouse runs; ``wait_timeout`` is checked."""
    bronze = client(workspace)
    warehouse = workspace.warehouse(WAREHOUSE, state="STOPPED", start=0.2)
    started = bronze.statement_execution.execute_statement("SELECT 1", WAREHOUSE, wait_timeout="0s")
    assert started.status is not None
    assert started.status.state is sql.StatementState.PENDING
    state = bronze.warehouses.get(WAREHOUSE).state
    assert state is not None
    assert state.value == "STARTING"
    deadline = time.monotonic() + 10
    while (
        answer := bronze.statement_execution.get_statement(str(started.statement_id))
    ).result is None:
        assert time.monotonic() < deadline
    assert answer.result is not None
    assert answer.result.data_array == [["1"]]
    with pytest.raises(DatabricksError, match="wait_timeout"):
        bronze.statement_execution.execute_statement("SELECT 1", WAREHOUSE, wait_timeout="3s")
    warehouse.state = "DELETED"
    with pytest.raises(NotFound, match="does not exist"):
        bronze.statement_execution.execute_statement("SELECT 1", WAREHOUSE)


def test_tokens_and_limits_are_those_of_a_workspace(workspace: Unity) -> None:
    """OAuth for the sdk's own flow, a token that has ended, a wrong one, 429 with Retry-After."""
    config = Config(
        host=workspace.url, client_id="bronze-client", client_secret="bronze-client-secret",
        auth_type="oauth-m2m",
    )  # fmt: skip
    assert WorkspaceClient(config=config).catalogs.get("workspace").owner == ADMIN
    workspace.ends["bronze-token"] = time.time() - 1
    with pytest.raises(DatabricksError, match="Token is expired"):
        client(workspace).catalogs.get("workspace")
    with pytest.raises(DatabricksError, match="Invalid access token"):
        client(workspace, "wrong").catalogs.get("workspace")
    workspace.failures["/catalogs/"].append((429, {"Retry-After": "1"}))
    before = time.monotonic()
    assert client(workspace, "admin").catalogs.get("workspace").name == "workspace"
    assert time.monotonic() - before >= 1
    assert workspace.count("GET", path="/catalogs/workspace") == 5


def test_credentials_are_vended_for_paths_and_tables(workspace: Unity) -> None:
    """With an end in milliseconds; not without the privilege, or outside of external locations."""
    bronze = client(workspace)
    api = bronze.temporary_path_credentials
    write = uc.PathOperation.PATH_READ_WRITE
    answer = api.generate_temporary_path_credentials("s3://lake/shop", write)
    assert answer.aws_temp_credentials is not None
    assert workspace.vendor.accepts(str(answer.aws_temp_credentials.session_token))
    assert answer.expiration_time is not None
    assert 3500 < answer.expiration_time / 1000 - time.time() <= 3600
    with pytest.raises(DatabricksError, match="No parent external location"):
        api.generate_temporary_path_credentials("s3://other", write)
    workspace.schema("workspace.shop")
    made = create(bronze)
    by_table = bronze.temporary_table_credentials.generate_temporary_table_credentials(
        operation=uc.TableOperation.READ, table_id=made.table_id
    )
    assert by_table.url == "s3://lake/shop/t"
    workspace.revoke("CATALOG", "workspace", "EXTERNAL_USE_SCHEMA")
    with pytest.raises(PermissionDenied, match="EXTERNAL USE SCHEMA on Schema"):
        api.generate_temporary_path_credentials("s3://lake/shop/t", write)
    workspace.revoke("EXTERNAL_LOCATION", "lake", "EXTERNAL_USE_LOCATION")
    with pytest.raises(PermissionDenied, match="EXTERNAL USE LOCATION on External Location 'lake'"):
        api.generate_temporary_path_credentials("s3://lake/x", write)
    workspace.metastore.external_access = False
    with pytest.raises(DatabricksError, match="denied for security"):
        api.generate_temporary_path_credentials("s3://lake/x", write)


def test_wrong_columns_are_taken_and_make_the_table_unreadable(
    workspace: Unity, tmp_path: Path
) -> None:
    """As the API documents; the server says why."""
    bronze = client(workspace)
    workspace.schema("workspace.shop")
    delta(tmp_path, "shop/t", id=pa.array([1]))
    wrong = uc.ColumnInfo(
        name="id",
        type_text="long",
        type_name=uc.ColumnTypeName.LONG,
        type_json='"long"',
        position=0,
    )
    create(bronze, columns=[wrong])
    assert len(workspace.problems("workspace.shop.t")) >= 2
