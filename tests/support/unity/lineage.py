"""External metadata and external lineage (``/api/2.0/lineage-tracking``).

Rules from the docstrings of ``databricks.sdk.service.catalog`` (ExternalMetadataAPI,
ExternalLineageAPI) and the documentation "Bring your own data lineage": CREATE EXTERNAL METADATA on
the metastore; MODIFY on the external metadata object and on the table of a relationship; one end
of a relationship at least is an external metadata object.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from tests.support.unity.metastore import Metastore, Securable
from tests.support.unity.objects import full_name, seen_table, touch
from tests.support.unity.refusals import Refusal, check_enum, check_fields, denied, exists, invalid

SYSTEMS = {
    "AMAZON_REDSHIFT",
    "AZURE_SYNAPSE",
    "CONFLUENT",
    "DATABRICKS",
    "GOOGLE_BIGQUERY",
    "KAFKA",
    "LOOKER",
    "MICROSOFT_FABRIC",
    "MICROSOFT_SQL_SERVER",
    "MONGODB",
    "MYSQL",
    "ORACLE",
    "OTHER",
    "POSTGRESQL",
    "POWER_BI",
    "SALESFORCE",
    "SAP",
    "SERVICENOW",
    "SNOWFLAKE",
    "STREAM_NATIVE",
    "TABLEAU",
    "TERADATA",
    "WORKDAY",
}
_MUTABLE = ("columns", "description", "entity_type", "owner", "properties", "system_type", "url")
_ENDS = ("external_metadata", "model_version", "path", "table")


@dataclass
class Lineage:
    """The relationships of a metastore, in the order in which they were made."""

    relationships: list[dict[str, Any]] = field(default_factory=list)

    def between(self, source: Any, target: Any) -> dict[str, Any] | None:
        """The relationship of two objects, if there is one."""
        for known in self.relationships:
            if known["source"] == source and known["target"] == target:
                return known
        return None


def create_metadata(metastore: Metastore, caller: str, body: dict[str, Any]) -> Securable:
    """POST /external-metadata.

    Raises:
        Refusal: it exists, an unknown system, or no CREATE EXTERNAL METADATA.
    """
    check_fields(body, ("name", "system_type", "entity_type"), _MUTABLE)
    check_enum("system_type", body["system_type"], SYSTEMS)
    store = metastore.get("METASTORE", metastore.id)
    if caller not in metastore.admins and not metastore.may(
        caller, "CREATE_EXTERNAL_METADATA", store
    ):
        raise denied("CREATE_EXTERNAL_METADATA", "METASTORE", "metastore")
    if ("EXTERNAL_METADATA", body["name"]) in metastore.securables:
        raise exists("EXTERNAL_METADATA", body["name"])
    made = metastore.add("EXTERNAL_METADATA", body["name"], caller)
    made.document = {
        "owner": caller, "created_by": caller, "id": str(uuid.uuid4()),
        "metastore_id": metastore.id, **body,
    }  # fmt: skip
    return made


def update_metadata(
    metastore: Metastore, caller: str, name: str, mask: str, body: dict[str, Any]
) -> Securable:
    """PATCH /external-metadata/{name}: the fields of the mask.

    Raises:
        Refusal: an unknown field of the mask, or not for the caller.
    """
    check_fields(body, ("name", "system_type", "entity_type"), _MUTABLE)
    check_enum("system_type", body["system_type"], SYSTEMS)
    known = metastore.need(caller, "MODIFY", "EXTERNAL_METADATA", name)
    touch(known, caller, **masked(mask, body, _MUTABLE))
    return known


def masked(mask: str, body: dict[str, Any], allowed: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a body that a mask names.

    Raises:
        Refusal: it names none, or one that cannot be changed.
    """
    names = allowed if mask == "*" else tuple(mask.split(","))
    for name in names:
        if name not in allowed:
            raise invalid(f"update_mask: {name!r} cannot be changed.")
    return {name: body[name] for name in names if name in body}


def relate(
    metastore: Metastore, lineage: Lineage, caller: str, body: dict[str, Any], mask: str = ""
) -> dict[str, Any]:
    """POST, or with a mask PATCH, of /external-lineage.

    Raises:
        Refusal: it exists, or not yet; an end does not exist; or not for the caller.
    """
    check_fields(body, ("source", "target"), ("columns", "properties", "id"))
    body = {**body, "source": _end(body["source"]), "target": _end(body["target"])}
    if not any("external_metadata" in body[end] for end in ("source", "target")):
        raise invalid("The source or the target has to be an external metadata object.")
    for end in ("source", "target"):
        _need_end(metastore, caller, body[end])
    for pair in body.get("columns", ()):
        check_fields(pair, ("source", "target"))
        for end in ("source", "target"):
            _check_column(metastore, body[end], pair[end])
    known = lineage.between(body["source"], body["target"])
    if mask:
        if known is None:
            raise Refusal(404, "NOT_FOUND", "The external lineage relationship does not exist.")
        known.update(masked(mask, body, ("columns", "properties")))
        return known
    if known is not None:
        raise Refusal(409, "ALREADY_EXISTS", "The external lineage relationship already exists.")
    made = {**body, "id": str(uuid.uuid4())}
    lineage.relationships.append(made)
    return made


def unrelate(metastore: Metastore, lineage: Lineage, caller: str, query: dict[str, str]) -> None:
    """DELETE /external-lineage; the relationship is in the query.

    Raises:
        Refusal: there is none, or it is not for the caller.
    """
    wanted = nested(query, "external_lineage_relationship")
    known = lineage.between(_end(wanted.get("source")), _end(wanted.get("target")))
    if known is None:
        raise Refusal(404, "NOT_FOUND", "The external lineage relationship does not exist.")
    for end in ("source", "target"):
        _need_end(metastore, caller, known[end])
    lineage.relationships.remove(known)


def related(metastore: Metastore, lineage: Lineage, query: dict[str, str]) -> list[dict[str, Any]]:
    """GET /external-lineage: what flows into an object (UPSTREAM), or out of it (DOWNSTREAM).

    Raises:
        Refusal: no object, or no direction.
    """
    direction = check_enum(
        "lineage_direction", query.get("lineage_direction"), ("UPSTREAM", "DOWNSTREAM")
    )
    asked = _end(nested(query, "object_info"))
    here, there = ("target", "source") if direction == "UPSTREAM" else ("source", "target")
    answer = []
    for known in lineage.relationships:
        if known[here] != asked:
            continue
        info: dict[str, Any] = {"external_lineage_info": known}
        other = known[there]
        if "table" in other:
            catalog, schema, name = other["table"]["name"].split(".", 2)
            info["table_info"] = {"catalog_name": catalog, "schema_name": schema, "name": name}
        elif "external_metadata" in other:
            document = metastore.get("EXTERNAL_METADATA", other["external_metadata"]["name"])
            info["external_metadata_info"] = {
                key: document.document[key] for key in ("name", "entity_type", "system_type")
            }
        answer.append(info)
    return answer


def nested(query: dict[str, str], name: str) -> dict[str, Any]:
    """An object in a query: flattened (``object_info.table.name=…``) as documented, or as JSON."""
    if name in query:
        parsed = json.loads(query[name])
        return parsed if isinstance(parsed, dict) else {}
    made: dict[str, Any] = {}
    for key, value in query.items():
        if key.startswith(f"{name}."):
            *path, last = key.removeprefix(f"{name}.").split(".")
            inner = made
            for part in path:
                inner = inner.setdefault(part, {})
            inner[last] = value
    return made


def _end(end: Any) -> dict[str, Any]:
    if not isinstance(end, dict) or len(set(end) & set(_ENDS)) != 1 or set(end) - set(_ENDS):
        raise invalid(f"An object of external lineage is one of {', '.join(_ENDS)}.")
    kind, value = next(iter(end.items()))
    if kind in ("table", "external_metadata") and not value.get("name"):
        raise invalid(f"{kind}.name is missing.")
    if kind == "table":
        return {"table": {"name": full_name(*value["name"].split("."))}}
    return {kind: value}


def _need_end(metastore: Metastore, caller: str, end: dict[str, Any]) -> None:
    if "table" in end:
        table = seen_table(metastore, caller, end["table"]["name"])
        metastore.need(caller, "MODIFY", "TABLE", table.name)
    if "external_metadata" in end:
        name = end["external_metadata"]["name"]
        metastore.need(caller, "MODIFY", "EXTERNAL_METADATA", name)


def _check_column(metastore: Metastore, end: dict[str, Any], column: str) -> None:
    if "table" in end:
        columns = metastore.get("TABLE", end["table"]["name"]).document.get("columns", [])
        known = [c["name"] for c in columns]
    else:
        name = end["external_metadata"]["name"]
        known = metastore.get("EXTERNAL_METADATA", name).document.get("columns", [])
    if column not in known:
        raise invalid(f"Column '{column}' does not exist.")
