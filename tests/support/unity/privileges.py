"""The privileges of Unity Catalog: which there are, where they can be granted, which imply which.

From the documentation of Databricks, "Unity Catalog privileges and securable objects", and the
enumerations of ``databricks.sdk.service.catalog`` (Privilege, SecurableType), which are copied here
so that the server and its independent client share nothing.
"""

from __future__ import annotations

_TABLE = {"ALL_PRIVILEGES", "APPLY_TAG", "MANAGE", "MODIFY", "SELECT"}
_SCHEMA = _TABLE | {
    "BROWSE", "CREATE_FUNCTION", "CREATE_MATERIALIZED_VIEW", "CREATE_MODEL", "CREATE_TABLE",
    "CREATE_VOLUME", "EXECUTE", "EXTERNAL_USE_SCHEMA", "READ_VOLUME", "REFRESH", "USE_SCHEMA",
    "WRITE_VOLUME",
}  # fmt: skip
_CATALOG = _SCHEMA | {"CREATE_SCHEMA", "USE_CATALOG"}
GRANTABLE: dict[str, set[str]] = {
    "METASTORE": {
        "CREATE_CATALOG", "CREATE_CONNECTION", "CREATE_EXTERNAL_LOCATION", "CREATE_PROVIDER",
        "CREATE_RECIPIENT", "CREATE_SHARE", "CREATE_STORAGE_CREDENTIAL", "MANAGE_ALLOWLIST",
        "CREATE_EXTERNAL_METADATA",
    },
    "CATALOG": _CATALOG,
    "SCHEMA": _SCHEMA,
    "TABLE": _TABLE,
    "EXTERNAL_LOCATION": {
        "ALL_PRIVILEGES", "BROWSE", "CREATE_EXTERNAL_TABLE", "CREATE_EXTERNAL_VOLUME",
        "CREATE_MANAGED_STORAGE", "EXTERNAL_USE_LOCATION", "MANAGE", "READ_FILES", "WRITE_FILES",
    },
    "EXTERNAL_METADATA": {"ALL_PRIVILEGES", "BROWSE", "MANAGE", "MODIFY"},
}  # fmt: skip
"""The privileges that can be granted, by the type of the securable."""

EXPLICIT = {"EXTERNAL_USE_SCHEMA", "EXTERNAL_USE_LOCATION", "MANAGE"}
"""Privileges that ALL_PRIVILEGES does not include; the first two neither come with ownership."""

OWNERS_LACK = {"EXTERNAL_USE_SCHEMA", "EXTERNAL_USE_LOCATION"}
"""Privileges that an owner has to be granted."""


def implies(granted: str, wanted: str) -> bool:
    """Whether a granted privilege includes another one."""
    if granted == wanted:
        return True
    return granted == "ALL_PRIVILEGES" and wanted not in EXPLICIT


def parents(kind: str, name: str) -> list[tuple[str, str]]:
    """The securables that a securable lies in, the nearest first."""
    if kind == "TABLE":
        catalog, schema, _ = name.split(".", 2)
        return [("SCHEMA", f"{catalog}.{schema}"), ("CATALOG", catalog)]
    if kind == "SCHEMA":
        return [("CATALOG", name.split(".", 1)[0])]
    return []
