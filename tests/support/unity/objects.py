"""Catalogs, schemas and tables: what creates, changes and deletes them, by REST or by SQL.

Rules from the documentation of the API (docs.databricks.com/api/workspace, as the docstrings of
``databricks.sdk.service.catalog`` have it) and "Names": names are stored in lower case, without
periods, spaces, slashes or control characters, and have at most 255 characters.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from tests.support.unity.columns import TYPE_NAMES
from tests.support.unity.locations import check_free, check_url, location_of
from tests.support.unity.metastore import Metastore, Securable
from tests.support.unity.refusals import Refusal, check_enum, check_fields, denied, invalid

_NAME = re.compile(r"[^./ \x00-\x1f\x7f]{1,255}")
_COLUMN = (
    "name", "type_text", "type_json", "type_name", "type_precision", "type_scale", "position",
    "nullable", "comment", "partition_index", "type_interval_type",
)  # fmt: skip


def valid_name(name: str) -> str:
    """A name as it is stored.

    Raises:
        Refusal: it has characters that names do not have, or is too long.
    """
    if not _NAME.fullmatch(name):
        raise invalid(f"'{name}' is not a valid name. Valid names must not contain ./ or spaces.")
    return name.lower()


def full_name(*parts: str) -> str:
    """The full name of a securable as it is stored."""
    return ".".join(part.lower() for part in parts)


def touch(securable: Securable, caller: str, **fields: Any) -> None:
    """Changes the document of a securable."""
    securable.document.update(updated_at=int(time.time() * 1000), updated_by=caller, **fields)


def seen_catalog(metastore: Metastore, caller: str, name: str) -> Securable:
    """GET /catalogs/{name}: of metastore admins, owners, and users with USE CATALOG.

    Raises:
        Refusal: there is none, it is not for the caller, or not bound to this workspace.
    """
    catalog = metastore.get("CATALOG", name.lower())
    if caller not in metastore.admins:
        metastore.need(caller, "USE_CATALOG", "CATALOG", catalog.name)
    metastore.check_binding(catalog.name, write=False)
    return catalog


def create_catalog(metastore: Metastore, caller: str, body: dict[str, Any]) -> Securable:
    """POST /catalogs.

    Raises:
        Refusal: not a metastore admin, and no CREATE CATALOG.
    """
    check_fields(body, ("name",), ("comment", "properties", "storage_root", "options"))
    store = metastore.get("METASTORE", metastore.id)
    if caller not in metastore.admins and not metastore.may(caller, "CREATE_CATALOG", store):
        raise denied("CREATE_CATALOG", "METASTORE", "metastore")
    name = valid_name(body["name"])
    fields = {key: value for key, value in body.items() if key != "name"}
    return metastore.add(
        "CATALOG", name, caller, **fields, isolation_mode="OPEN", catalog_type="MANAGED_CATALOG",
        securable_type="CATALOG",
    )  # fmt: skip


def seen_schema(metastore: Metastore, caller: str, name: str) -> Securable:
    """GET /schemas/{full_name}: of owners, and users with USE SCHEMA; USE CATALOG too.

    Raises:
        Refusal: there is none, or it is not for the caller.
    """
    name = name.lower()
    metastore.get("CATALOG", name.partition(".")[0])
    metastore.enter(caller, "SCHEMA", name)
    return metastore.need(caller, "USE_SCHEMA", "SCHEMA", name)


def create_schema(metastore: Metastore, caller: str, body: dict[str, Any]) -> Securable:
    """POST /schemas: needs USE CATALOG and CREATE SCHEMA.

    Raises:
        Refusal: it exists, or is not for the caller.
    """
    check_fields(body, ("name", "catalog_name"), ("comment", "properties", "storage_root"))
    catalog, schema = body["catalog_name"].lower(), valid_name(body["name"])
    metastore.get("CATALOG", catalog)
    name = full_name(catalog, schema)
    metastore.enter(caller, "SCHEMA", name, write=True)
    metastore.need(caller, "CREATE_SCHEMA", "CATALOG", catalog)
    fields = {k: body.get(k) for k in ("comment", "properties", "storage_root")}
    return metastore.add(
        "SCHEMA", name, caller, catalog_name=catalog, schema_id=str(uuid.uuid4()), **fields
    )


def seen_table(metastore: Metastore, caller: str, name: str) -> Securable:
    """GET /tables/{full_name}: of metastore admins, owners, and users with SELECT, USE CATALOG and
    USE SCHEMA.

    Raises:
        Refusal: there is none, or it is not for the caller.
    """
    name = name.lower()
    catalog, schema, _ = (*name.split(".", 2), "", "")[:3]
    metastore.get("CATALOG", catalog)
    metastore.get("SCHEMA", f"{catalog}.{schema}")
    table = metastore.get("TABLE", name)
    if caller not in metastore.admins:
        metastore.enter(caller, "TABLE", name)
        metastore.need(caller, "SELECT", "TABLE", name)
    return table


def check_create(metastore: Metastore, caller: str, name: str, url: str, *, by_rest: bool) -> str:
    """Checks that a caller may create an external table at a location, and returns its URL.

    USE CATALOG, USE SCHEMA and CREATE TABLE on the schema, CREATE EXTERNAL TABLE on the external
    location; by REST also EXTERNAL USE SCHEMA and EXTERNAL USE LOCATION, which are never inherited
    by ownership or ALL PRIVILEGES.

    Raises:
        Refusal: not, or the location overlaps.
    """
    schema = name.rpartition(".")[0]
    metastore.get("CATALOG", schema.partition(".")[0])
    metastore.get("SCHEMA", schema)
    metastore.enter(caller, "TABLE", name, write=True)
    metastore.need(caller, "CREATE_TABLE", "SCHEMA", schema)
    url = check_url(url)
    location = location_of(metastore, url)
    if by_rest:
        if not metastore.external_access:
            raise Refusal(403, "PERMISSION_DENIED", "External data access is disabled.")
        metastore.need(caller, "EXTERNAL_USE_SCHEMA", "SCHEMA", schema)
        metastore.need(caller, "EXTERNAL_USE_LOCATION", "EXTERNAL_LOCATION", location.name)
    metastore.need(caller, "CREATE_EXTERNAL_TABLE", "EXTERNAL_LOCATION", location.name)
    if ("TABLE", name) not in metastore.securables:
        check_free(metastore, url, name)
    return url


def create_table(metastore: Metastore, caller: str, body: dict[str, Any]) -> Securable:
    """POST /tables: external Delta tables alone, with any columns ("The API itself does not
    validate the correctness of the column spec").

    Raises:
        Refusal: another type or format, an unknown field or type_name, or not for the caller.
    """
    check_fields(
        body, ("name", "catalog_name", "schema_name", "table_type", "data_source_format",
               "storage_location"), ("columns", "properties"),
    )  # fmt: skip
    if body["table_type"] != "EXTERNAL" or body["data_source_format"] != "DELTA":
        raise invalid("Only EXTERNAL tables with data source format DELTA can be created.")
    columns = check_columns(body.get("columns") or [])
    name = full_name(body["catalog_name"], body["schema_name"], valid_name(body["name"]))
    url = check_create(metastore, caller, name, body["storage_location"], by_rest=True)
    return put_table(metastore, caller, name, url, columns, properties=body.get("properties"))


def check_columns(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns of a request, of which only the fields and the enumeration are checked.

    Raises:
        Refusal: an unknown field or type_name.
    """
    for column in columns:
        check_fields(column, ("name", "type_name"), _COLUMN)
        check_enum("type_name", column["type_name"], TYPE_NAMES)
    return columns


def put_table(
    metastore: Metastore, caller: str, name: str, url: str, columns: list[dict[str, Any]],
    **fields: Any,
) -> Securable:  # fmt: skip
    """Adds an external table without any check.

    Raises:
        Refusal: it exists.
    """
    catalog, schema, _ = name.split(".", 2)
    return metastore.add(
        "TABLE", name, caller, catalog_name=catalog, schema_name=schema, table_type="EXTERNAL",
        data_source_format="DELTA", storage_location=url, columns=columns,
        table_id=str(uuid.uuid4()), **fields,
    )  # fmt: skip


def update(
    metastore: Metastore, caller: str, securable: Securable, body: dict[str, Any]
) -> Securable:
    """PATCH of a securable. Of a table only the owner changes; of a schema a metastore admin
    changes only the owner.

    Raises:
        Refusal: unknown fields, an unknown owner, or not for the caller.
    """
    allowed = {
        "TABLE": ("owner",),
        "SCHEMA": ("owner", "comment", "properties", "new_name"),
        "CATALOG": ("owner", "comment", "properties", "isolation_mode", "options"),
    }[securable.kind]
    check_fields(body, (), allowed)
    if securable.kind == "TABLE":
        metastore.enter(caller, "TABLE", securable.name)
    metastore.need_management(caller, securable)
    if "owner" in body:
        metastore.check_principal(body["owner"])
    if "isolation_mode" in body:
        check_enum("isolation_mode", body["isolation_mode"], ("OPEN", "ISOLATED"))
    touch(securable, caller, **body)
    return securable


def delete(metastore: Metastore, caller: str, kind: str, name: str) -> None:
    """DELETE of a table, or of a schema without tables; the files of external tables stay.

    Raises:
        Refusal: there is none, or it is not for the caller.
    """
    securable = metastore.get(kind, name.lower())
    metastore.enter(caller, kind, securable.name, write=True)
    metastore.need_management(caller, securable)
    if kind == "SCHEMA" and metastore.of("TABLE", securable.name):
        raise invalid(f"Schema '{name}' is not empty.", "INVALID_STATE")
    metastore.remove(securable)


def page(
    items: list[Any], query: dict[str, str], key: str, size: int, limit: str = "max_results"
) -> dict[str, Any]:
    """One page of a list. It has a token while there are more, and the first one may be empty
    ("Clients must continue reading pages until next_page_token is absent").

    Raises:
        Refusal: a negative length.
    """
    wanted = int(query.get(limit) or 0)
    if wanted < 0:
        raise invalid(f"{limit} must not be negative")
    length = min(wanted or size, size)
    start = int(query.get("page_token") or 0)
    answer: dict[str, Any] = {}
    if items[start : start + length]:
        answer[key] = items[start : start + length]
    if start + length < len(items):
        answer["next_page_token"] = str(start + length)
    return answer


Change = Callable[[Metastore, str, dict[str, Any]], Securable]
