"""The open-source Unity Catalog where its API differs from Databricks'.

From api/all.yaml of github.com/unitycatalog/unitycatalog: privileges are spelled with spaces, both
``add`` and ``remove`` of a change are required, tables take a ``comment`` and need ``columns``,
folders can be locations, and there are neither PATCH of tables nor tags, bindings, lineage, SQL.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.support.unity import locations, objects, routes
from tests.support.unity.metastore import Securable
from tests.support.unity.refusals import Refusal, check_fields, invalid

if TYPE_CHECKING:
    from tests.support.unity_server import Unity

_MISSING = re.compile(
    r"/api/2\.0/.*|/api/2\.1/unity-catalog/(entity-tag-assignments|bindings|effective-perm).*"
)


def handle(
    unity: Unity, method: str, path: str, caller: str, query: dict[str, str], body: dict[str, Any]
) -> Any:
    """The document that answers a request.

    Raises:
        Refusal: it is refused, or there is no such path.
    """
    if _MISSING.fullmatch(path) or (method == "PATCH" and "/tables/" in path):
        raise Refusal(404, "NOT_FOUND", f"{method} {path}")
    if method == "POST" and path.endswith("/tables"):
        return _create_table(unity, caller, body).document
    if "/permissions/" in path:
        for change in body.get("changes", ()):
            check_fields(change, ("principal",), ("add", "remove"))
            if "add" not in change or "remove" not in change:
                raise invalid("add and remove are required", "INVALID_ARGUMENT")
        answer = routes.handle(unity, method, path, caller, query, _respell(body, " ", "_"))
        return _respell(answer, "_", " ")
    return routes.handle(unity, method, path, caller, query, body)


def _create_table(unity: Unity, caller: str, body: dict[str, Any]) -> Securable:
    check_fields(
        body, ("name", "catalog_name", "schema_name", "table_type", "data_source_format",
               "columns", "storage_location"), ("comment", "properties"),
    )  # fmt: skip
    columns = objects.check_columns(body["columns"])
    name = objects.full_name(body["catalog_name"], body["schema_name"], body["name"])
    unity.metastore.get("SCHEMA", name.rpartition(".")[0])
    url = locations.check_url(body["storage_location"], open_source=True)
    return objects.put_table(
        unity.metastore, caller, name, url, columns, comment=body.get("comment"),
        properties=body.get("properties"),
    )  # fmt: skip


def _respell(document: Any, before: str, after: str) -> Any:
    """The document with its privileges spelled in the other way."""
    if isinstance(document, list):
        return [
            one.replace(before, after) if isinstance(one, str) else _respell(one, before, after)
            for one in document
        ]
    if not isinstance(document, dict):
        return document
    return {
        key: _respell(value, before, after) if isinstance(value, (list, dict)) else value
        for key, value in document.items()
    }
