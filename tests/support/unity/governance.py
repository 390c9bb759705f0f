"""Grants, tags and workspace bindings by REST.

Rules from the docstrings of ``databricks.sdk.service.catalog`` (GrantsAPI, EntityTagAssignmentsAPI,
WorkspaceBindingsAPI) and the documentation "Apply tags to Unity Catalog securable objects": at most
50 tags of a securable, keys and values of at most 256 characters, no leading or trailing spaces,
none of ``. , - = / :`` in keys.
"""

from __future__ import annotations

import re
from typing import Any

from tests.support.unity.metastore import Metastore, Securable
from tests.support.unity.objects import full_name
from tests.support.unity.privileges import GRANTABLE, parents
from tests.support.unity.refusals import Refusal, check_enum, check_fields, denied, invalid

ENTITIES = {"catalogs": "CATALOG", "schemas": "SCHEMA", "tables": "TABLE", "columns": "TABLE"}
_KEY = re.compile(r"[^.,\-=/:\x00-\x1f]{1,256}")
_BINDING = ("BINDING_TYPE_READ_ONLY", "BINDING_TYPE_READ_WRITE")
_MOST_TAGS = 50


def securable_of(metastore: Metastore, kind: str, name: str) -> Securable:
    """The securable of a path such as ``permissions/table/c.s.t``.

    Raises:
        Refusal: there is no such type, or no such securable.
    """
    check_enum("securable_type", kind.upper(), GRANTABLE)
    upper = kind.upper()
    known = name if upper in ("METASTORE", "EXTERNAL_LOCATION") else full_name(*name.split("."))
    return metastore.get(upper, known)


def assignments(metastore: Metastore, caller: str, kind: str, name: str) -> list[dict[str, Any]]:
    """GET /permissions: the grants on the securable itself; who does not manage it sees their own.

    Raises:
        Refusal: there is no such securable.
    """
    securable = securable_of(metastore, kind, name)
    mine = metastore.identities(caller)
    return [
        {"principal": principal, "privileges": sorted(privileges)}
        for principal, privileges in sorted(securable.grants.items())
        if metastore.manages(caller, securable) or principal in mine
    ]


def effective(metastore: Metastore, kind: str, name: str, principal: str) -> list[dict[str, Any]]:
    """GET /effective-permissions: grants with those inherited from catalog and schema.

    Raises:
        Refusal: there is no such securable.
    """
    securable = securable_of(metastore, kind, name)
    answer: dict[str, list[dict[str, str]]] = {}
    for key in [(securable.kind, securable.name), *parents(securable.kind, securable.name)]:
        for grantee, privileges in metastore.securables[key].grants.items():
            if principal and grantee != principal:
                continue
            for privilege in sorted(privileges):
                entry = {"privilege": privilege}
                if key != (securable.kind, securable.name):
                    entry |= {"inherited_from_type": key[0], "inherited_from_name": key[1]}
                answer.setdefault(grantee, []).append(entry)
    return [{"principal": who, "privileges": what} for who, what in sorted(answer.items())]


def entity(metastore: Metastore, kind: str, name: str) -> tuple[Securable, dict[str, str]]:
    """The securable of a tag assignment, and its tags or those of its column.

    Raises:
        Refusal: there is no such type, securable or column.
    """
    check_enum("entity_type", kind, ENTITIES)
    if kind != "columns":
        securable = securable_of(metastore, ENTITIES[kind], name)
        return securable, securable.tags
    parts = name.split(".", 3)
    securable = metastore.get("TABLE", full_name(*parts[:3]))
    return securable, tags_of_column(securable, parts[3] if len(parts) > 3 else "")


def tags_of_column(table: Securable, column: str) -> dict[str, str]:
    """The tags of a column of a table.

    Raises:
        Refusal: there is no such column.
    """
    names = {c["name"].lower(): c["name"] for c in table.document.get("columns", [])}
    if column.lower() not in names:
        raise Refusal(
            404, "COLUMN_DOES_NOT_EXIST", f"Column '{column}' of '{table.name}' does not exist."
        )
    return table.column_tags.setdefault(names[column.lower()], {})


def need_tagging(metastore: Metastore, caller: str, securable: Securable) -> None:
    """Checks that a caller may change tags: its owner, or APPLY TAG, with USE of its parents.

    Raises:
        Refusal: not.
    """
    metastore.enter(caller, securable.kind, securable.name, write=True)
    metastore.need(caller, "APPLY_TAG", securable.kind, securable.name)


def put_tag(tags: dict[str, str], key: str, value: str) -> None:
    """Sets a tag.

    Raises:
        Refusal: the key or the value cannot be one, or there are 50.
    """
    if not _KEY.fullmatch(key) or key != key.strip():
        raise invalid(f"Tag key '{key}' is not valid.")
    if len(value) > 256 or value != value.strip():
        raise invalid(f"The value of tag '{key}' is not valid.")
    if key not in tags and len(tags) >= _MOST_TAGS:
        raise invalid("A securable can have at most 50 tags.", "RESOURCE_EXHAUSTED")
    tags[key] = value


def assignment(kind: str, name: str, key: str, value: str) -> dict[str, str]:
    """A tag assignment as the API returns it."""
    return {"entity_type": kind, "entity_name": name, "tag_key": key, "tag_value": value}


def assign_tag(
    metastore: Metastore,
    caller: str,
    body: dict[str, Any],
    update: tuple[str, str, str, str] | None = None,
) -> dict[str, str]:
    """POST, or with the parts of the path and the mask PATCH, of /entity-tag-assignments.

    Raises:
        Refusal: it is assigned already, or not yet; or not for the caller.
    """
    check_fields(
        body, ("entity_type", "entity_name", "tag_key"), ("tag_value", "source_type", "update_time")
    )
    kind, name, key = body["entity_type"], body["entity_name"], body["tag_key"]
    securable, tags = entity(metastore, kind, name)
    need_tagging(metastore, caller, securable)
    if update:
        if update[:3] != (kind, name, key) or update[3] not in ("tag_value", "*"):
            raise invalid("The body and update_mask do not match the path.")
        if key not in tags:
            raise Refusal(404, "NOT_FOUND", f"Tag assignment with tag key {key} does not exist.")
    elif key in tags:
        raise Refusal(409, "ALREADY_EXISTS", f"Tag assignment with tag key {key} already exists")
    put_tag(tags, key, body.get("tag_value") or "")
    return assignment(kind, name, key, tags[key])


def update_bindings(
    metastore: Metastore, caller: str, kind: str, name: str, body: dict[str, Any]
) -> list[dict[str, Any]]:
    """PATCH /bindings/{type}/{name}: by metastore admins and owners of the securable.

    Raises:
        Refusal: another type, an unknown binding_type, or not for the caller.
    """
    check_fields(body, (), ("add", "remove"))
    securable = bound(metastore, caller, kind, name)
    for change in (*body.get("add", ()), *body.get("remove", ())):
        check_fields(change, ("workspace_id",), ("binding_type",))
        if not isinstance(change["workspace_id"], int):
            raise invalid("workspace_id is a number")
        binding = check_enum("binding_type", change.get("binding_type", _BINDING[1]), _BINDING)
        if kind != "catalog" and binding == _BINDING[0]:
            raise invalid("Only catalogs can be bound as read-only.")
    for change in body.get("remove", ()):
        securable.bindings.pop(change["workspace_id"], None)
    for change in body.get("add", ()):
        securable.bindings[change["workspace_id"]] = change.get("binding_type", _BINDING[1])
    return bindings(securable)


def bound(metastore: Metastore, caller: str, kind: str, name: str) -> Securable:
    """The securable whose bindings a caller may see and change.

    Raises:
        Refusal: not, or another type.
    """
    check_enum("securable_type", kind, ("catalog", "external_location", "storage_credential"))
    securable = securable_of(metastore, kind, name)
    if caller not in metastore.admins and not metastore.is_owner(caller, securable):
        raise denied("MANAGE", securable.kind, name)
    return securable


def bindings(securable: Securable) -> list[dict[str, Any]]:
    """The bindings of a securable as the API returns them."""
    return [
        {"workspace_id": number, "binding_type": binding}
        for number, binding in sorted(securable.bindings.items())
    ]
