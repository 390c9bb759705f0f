"""The paths of the REST API: which method of which path does what.

The paths are those that ``databricks.sdk`` 0.162 sends to; the credentials' are documented under
2.0, and older pages of the documentation have 2.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tests.support.unity import governance, lineage, locations, objects
from tests.support.unity.refusals import Refusal

if TYPE_CHECKING:
    from tests.support.unity_server import Unity


@dataclass(frozen=True)
class Call:
    """A request of a caller: the parts of its path, its query, its body."""

    caller: str
    parts: tuple[str, ...]
    query: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)


Handler = Callable[["Unity", Call], Any]
_UC = r"/api/2\.1/unity-catalog"
_LINEAGE = r"/api/2\.0/lineage-tracking"
_TAGS = rf"{_UC}/entity-tag-assignments"
_SQL = r"/api/2\.0/sql"


def _table(unity: Unity, call: Call) -> Any:
    return objects.seen_table(unity.metastore, call.caller, call.parts[0]).document


def _tables(unity: Unity, call: Call) -> Any:
    schema = objects.full_name(call.query["catalog_name"], call.query["schema_name"])
    objects.seen_schema(unity.metastore, call.caller, schema)
    documents = [
        table.document
        for table in unity.metastore.of("TABLE", schema)
        if call.caller in unity.metastore.admins
        or unity.metastore.may(call.caller, "SELECT", table)
    ]
    return objects.page(documents, call.query, "tables", unity.page)


def _schemas(unity: Unity, call: Call) -> Any:
    catalog = objects.seen_catalog(unity.metastore, call.caller, call.query["catalog_name"]).name
    documents = [s.document for s in unity.metastore.of("SCHEMA", catalog)]
    return objects.page(documents, call.query, "schemas", unity.page)


def _catalogs(unity: Unity, call: Call) -> Any:
    documents = [
        c.document
        for c in unity.metastore.of("CATALOG")
        if call.caller in unity.metastore.admins
        or unity.metastore.may(call.caller, "USE_CATALOG", c)
    ]
    return objects.page(documents, call.query, "catalogs", unity.page)


def _update(kind: str) -> Handler:
    def handler(unity: Unity, call: Call) -> Any:
        securable = unity.metastore.get(kind, call.parts[0].lower())
        changed = objects.update(unity.metastore, call.caller, securable, call.body)
        return {} if kind == "TABLE" else changed.document

    return handler


def _delete(kind: str) -> Handler:
    def handler(unity: Unity, call: Call) -> Any:
        objects.delete(unity.metastore, call.caller, kind, call.parts[0])
        return {}

    return handler


def _permissions(unity: Unity, call: Call) -> Any:
    known = governance.assignments(unity.metastore, call.caller, *call.parts)
    if "principal" in call.query:
        known = [one for one in known if one["principal"] == call.query["principal"]]
    return objects.page(known, call.query, "privilege_assignments", unity.page)


def _change_permissions(unity: Unity, call: Call) -> Any:
    securable = governance.securable_of(unity.metastore, *call.parts)
    unity.metastore.enter(call.caller, securable.kind, securable.name)
    unity.metastore.change_grants(call.caller, securable, call.body.get("changes", []))
    return {
        "privilege_assignments": governance.assignments(unity.metastore, call.caller, *call.parts)
    }


def _effective(unity: Unity, call: Call) -> Any:
    who = call.query.get("principal", "")
    kind, name = call.parts
    known = governance.effective(unity.metastore, kind, name, who)
    return objects.page(known, call.query, "privilege_assignments", unity.page)


def _tag(unity: Unity, call: Call) -> Any:
    kind, name, key = call.parts
    _, tags = governance.entity(unity.metastore, kind, name)
    if key not in tags:
        raise Refusal(404, "NOT_FOUND", f"Tag assignment with tag key {key} does not exist.")
    return governance.assignment(kind, name, key, tags[key])


def _tags(unity: Unity, call: Call) -> Any:
    kind, name = call.parts
    _, tags = governance.entity(unity.metastore, kind, name)
    known = [governance.assignment(kind, name, key, value) for key, value in tags.items()]
    return objects.page(known, call.query, "tag_assignments", unity.page)


def _update_tag(unity: Unity, call: Call) -> Any:
    kind, name, key = call.parts
    update = (kind, name, key, call.query.get("update_mask", ""))
    return governance.assign_tag(unity.metastore, call.caller, call.body, update)


def _delete_tag(unity: Unity, call: Call) -> Any:
    kind, name, key = call.parts
    securable, tags = governance.entity(unity.metastore, kind, name)
    governance.need_tagging(unity.metastore, call.caller, securable)
    if tags.pop(key, None) is None:
        raise Refusal(404, "NOT_FOUND", f"Tag assignment with tag key {key} does not exist.")
    return {}


def _bindings(unity: Unity, call: Call) -> Any:
    securable = governance.bound(unity.metastore, call.caller, *call.parts)
    return objects.page(governance.bindings(securable), call.query, "bindings", unity.page)


def _change_bindings(unity: Unity, call: Call) -> Any:
    kind, name = call.parts
    known = governance.update_bindings(unity.metastore, call.caller, kind, name, call.body)
    return {"bindings": known}


def _locations(unity: Unity, call: Call) -> Any:
    documents = [s.document for s in unity.metastore.of("EXTERNAL_LOCATION")]
    return objects.page(documents, call.query, "external_locations", unity.page)


def _metadata(unity: Unity, call: Call) -> Any:
    return unity.metastore.need(
        call.caller, "BROWSE", "EXTERNAL_METADATA", call.parts[0]
    ).document  # fmt: skip


def _all_metadata(unity: Unity, call: Call) -> Any:
    documents = [s.document for s in unity.metastore.of("EXTERNAL_METADATA")]
    return objects.page(documents, call.query, "external_metadata", unity.page, "page_size")


def _delete_metadata(unity: Unity, call: Call) -> Any:
    known = unity.metastore.need(call.caller, "MANAGE", "EXTERNAL_METADATA", call.parts[0])
    unity.metastore.remove(known)
    return {}


def _update_metadata(unity: Unity, call: Call) -> Any:
    mask = call.query.get("update_mask", "")
    return lineage.update_metadata(
        unity.metastore, call.caller, call.parts[0], mask, call.body
    ).document  # fmt: skip


def _relate(unity: Unity, call: Call) -> Any:
    return lineage.relate(unity.metastore, unity.lineage, call.caller, call.body)


def _update_relation(unity: Unity, call: Call) -> Any:
    mask = call.query.get("update_mask", "")
    return lineage.relate(unity.metastore, unity.lineage, call.caller, call.body, mask or "-")


def _relations(unity: Unity, call: Call) -> Any:
    known = lineage.related(unity.metastore, unity.lineage, call.query)
    key = "external_lineage_relationships"
    return objects.page(known, call.query, key, unity.page, "page_size")


def _unrelate(unity: Unity, call: Call) -> Any:
    lineage.unrelate(unity.metastore, unity.lineage, call.caller, call.query)
    return {}


def _path_credentials(unity: Unity, call: Call) -> Any:
    return locations.path_credentials(unity.metastore, unity.vendor, call.caller, call.body)


def _table_credentials(unity: Unity, call: Call) -> Any:
    return locations.table_credentials(unity.metastore, unity.vendor, call.caller, call.body)


def _cancel(unity: Unity, call: Call) -> Any:
    unity.statements.cancel(call.caller, call.parts[0])
    return {}


ROUTES: list[tuple[str, re.Pattern[str], Handler]] = [
    (method, re.compile(pattern), handler)
    for method, pattern, handler in [
        ("GET", rf"{_UC}/catalogs", _catalogs),
        ("POST", rf"{_UC}/catalogs",
         lambda u, c: objects.create_catalog(u.metastore, c.caller, c.body).document),
        ("GET", rf"{_UC}/catalogs/([^/]+)",
         lambda u, c: objects.seen_catalog(u.metastore, c.caller, c.parts[0]).document),
        ("PATCH", rf"{_UC}/catalogs/([^/]+)", _update("CATALOG")),
        ("GET", rf"{_UC}/schemas", _schemas),
        ("POST", rf"{_UC}/schemas",
         lambda u, c: objects.create_schema(u.metastore, c.caller, c.body).document),
        ("GET", rf"{_UC}/schemas/([^/]+)",
         lambda u, c: objects.seen_schema(u.metastore, c.caller, c.parts[0]).document),
        ("PATCH", rf"{_UC}/schemas/([^/]+)", _update("SCHEMA")),
        ("DELETE", rf"{_UC}/schemas/([^/]+)", _delete("SCHEMA")),
        ("GET", rf"{_UC}/tables", _tables),
        ("POST", rf"{_UC}/tables",
         lambda u, c: objects.create_table(u.metastore, c.caller, c.body).document),
        ("GET", rf"{_UC}/tables/([^/]+)/exists",
         lambda u, c: {"table_exists": ("TABLE", c.parts[0].lower()) in u.metastore.securables}),
        ("GET", rf"{_UC}/tables/([^/]+)", _table),
        ("PATCH", rf"{_UC}/tables/([^/]+)", _update("TABLE")),
        ("DELETE", rf"{_UC}/tables/([^/]+)", _delete("TABLE")),
        ("GET", rf"{_UC}/permissions/([^/]+)/([^/]+)", _permissions),
        ("PATCH", rf"{_UC}/permissions/([^/]+)/([^/]+)", _change_permissions),
        ("GET", rf"{_UC}/effective-permissions/([^/]+)/([^/]+)", _effective),
        ("POST", _TAGS, lambda u, c: governance.assign_tag(u.metastore, c.caller, c.body)),
        ("GET", rf"{_TAGS}/([^/]+)/([^/]+)/tags", _tags),
        ("GET", rf"{_TAGS}/([^/]+)/([^/]+)/tags/([^/]+)", _tag),
        ("PATCH", rf"{_TAGS}/([^/]+)/([^/]+)/tags/([^/]+)", _update_tag),
        ("DELETE", rf"{_TAGS}/([^/]+)/([^/]+)/tags/([^/]+)", _delete_tag),
        ("GET", rf"{_UC}/bindings/([^/]+)/([^/]+)", _bindings),
        ("PATCH", rf"{_UC}/bindings/([^/]+)/([^/]+)", _change_bindings),
        ("GET", rf"{_UC}/external-locations", _locations),
        ("POST", rf"{_UC}/external-locations",
         lambda u, c: locations.create_location(u.metastore, c.caller, c.body).document),
        ("GET", rf"{_UC}/external-locations/([^/]+)",
         lambda u, c: u.metastore.get("EXTERNAL_LOCATION", c.parts[0]).document),
        ("POST", r"/api/2\.[01]/unity-catalog/temporary-path-credentials", _path_credentials),
        ("POST", r"/api/2\.[01]/unity-catalog/temporary-table-credentials", _table_credentials),
        ("GET", rf"{_LINEAGE}/external-metadata", _all_metadata),
        ("POST", rf"{_LINEAGE}/external-metadata",
         lambda u, c: lineage.create_metadata(u.metastore, c.caller, c.body).document),
        ("GET", rf"{_LINEAGE}/external-metadata/([^/]+)", _metadata),
        ("PATCH", rf"{_LINEAGE}/external-metadata/([^/]+)", _update_metadata),
        ("DELETE", rf"{_LINEAGE}/external-metadata/([^/]+)", _delete_metadata),
        ("GET", rf"{_LINEAGE}/external-lineage", _relations),
        ("POST", rf"{_LINEAGE}/external-lineage", _relate),
        ("PATCH", rf"{_LINEAGE}/external-lineage", _update_relation),
        ("DELETE", rf"{_LINEAGE}/external-lineage", _unrelate),
        ("GET", rf"{_SQL}/warehouses/([^/]+)",
         lambda u, c: u.statements.described(c.parts[0], c.caller)),
        ("POST", rf"{_SQL}/statements", lambda u, c: u.statements.execute(c.caller, c.body)),
        ("GET", rf"{_SQL}/statements/([^/]+)",
         lambda u, c: u.statements.status(c.caller, c.parts[0])),
        ("POST", rf"{_SQL}/statements/([^/]+)/cancel", _cancel),
    ]
]  # fmt: skip


def handle(
    unity: Unity, method: str, path: str, caller: str, query: dict[str, str], body: dict[str, Any]
) -> Any:
    """The document that answers a request.

    Raises:
        Refusal: it is refused, or there is no such path.
    """
    for verb, pattern, handler in ROUTES:
        match = pattern.fullmatch(path) if verb == method else None
        if match:
            parts = tuple(unquote(part) for part in match.groups())
            return handler(unity, Call(caller, parts, query, body))
    raise Refusal(404, "ENDPOINT_NOT_FOUND", f"No API found for '{method} {path}'")
