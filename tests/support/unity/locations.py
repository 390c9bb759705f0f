"""External locations, the paths of tables, and the credentials that are vended for them.

Rules from the documentation of Databricks: a path lies in one external location, whose URL is in no
other one's; external tables do not overlap with one another ("LOCATION_OVERLAP"). "Temporary path
credentials": EXTERNAL USE LOCATION on the location, EXTERNAL USE SCHEMA on the schema of a table at
the path, external data access of the metastore; ``expiration_time`` is in milliseconds since 1970.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.support.unity.metastore import Metastore, Securable
from tests.support.unity.refusals import Refusal, check_enum, check_fields, denied, invalid

SCHEMES = {"s3": "aws", "s3a": "aws", "abfss": "azure", "gs": "google", "file": "file"}
Sign = Callable[[str, str, float], dict[str, Any]]


def normal(url: str) -> str:
    """A URL without a slash at its end."""
    return url.rstrip("/")


def contains(outer: str, inner: str) -> bool:
    """Whether a path is another one, or lies in it."""
    return normal(inner) == normal(outer) or normal(inner).startswith(normal(outer) + "/")


def check_url(url: str, *, open_source: bool = False) -> str:
    """Checks that a path is in an object store, and returns it without a slash at its end.

    Raises:
        Refusal: it is a folder, or something else.
    """
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES or (scheme == "file" and not open_source):
        raise invalid(f"Missing cloud file system scheme: {url}")
    return normal(url)


def location_of(metastore: Metastore, url: str) -> Securable:
    """The external location that a path lies in.

    Raises:
        Refusal: none.
    """
    for location in metastore.of("EXTERNAL_LOCATION"):
        if contains(location.document["url"], url):
            return location
    raise invalid(
        f"No parent external location for path '{url}'.", "NO_PARENT_EXTERNAL_LOCATION_FOR_PATH"
    )


def check_free(metastore: Metastore, url: str, name: str = "") -> None:
    """Checks that no other table, and no managed storage, overlaps with a path.

    Raises:
        Refusal: one does.
    """
    managed = [
        (root, kind)
        for kind in ("CATALOG", "SCHEMA")
        for s in metastore.of(kind)
        if (root := s.document.get("storage_root"))
    ]
    tables = [
        (t.document["storage_location"], "table") for t in metastore.of("TABLE") if t.name != name
    ]
    for taken, what in [*managed, *tables]:
        if contains(taken, url) or contains(url, taken):
            where = "other external tables or volumes" if what == "table" else "managed storage"
            raise invalid(f"Input path url '{url}' overlaps with {where}.", "LOCATION_OVERLAP")


def create_location(metastore: Metastore, caller: str, body: dict[str, Any]) -> Securable:
    """POST /external-locations.

    Raises:
        Refusal: as the module says.
    """
    check_fields(
        body, ("name", "url", "credential_name"),
        ("comment", "read_only", "skip_validation", "fallback", "enable_file_events"),
    )  # fmt: skip
    url = check_url(body["url"])
    store = metastore.get("METASTORE", metastore.id)
    if caller not in metastore.admins and not metastore.may(
        caller, "CREATE_EXTERNAL_LOCATION", store
    ):
        raise denied("CREATE_EXTERNAL_LOCATION", "METASTORE", "metastore")
    for other in metastore.of("EXTERNAL_LOCATION"):
        taken = other.document["url"]
        if contains(taken, url) or contains(url, taken):
            raise invalid(
                f"Input path url '{url}' overlaps with other external location '{other.name}'.",
                "LOCATION_OVERLAP",
            )
    kept = {k: v for k, v in body.items() if k not in ("name", "skip_validation")}
    return metastore.add("EXTERNAL_LOCATION", body["name"], caller, **{**kept, "url": url})


@dataclass
class Vendor:
    """Makes temporary credentials; they live ``life`` seconds. ``valid`` are those that were made,
    by their secret part, with their end; ``sign`` makes one of a cloud in another way, from the
    path, the operation and the end.
    """

    life: float = 3600.0
    valid: dict[str, float] = field(default_factory=dict)
    sign: dict[str, Sign] = field(default_factory=dict)
    vended: list[tuple[str, str]] = field(default_factory=list)
    clock: Callable[[], float] = time.time

    def accepts(self, secret: str) -> bool:
        """Whether a secret part is that of a credential that holds."""
        return self.valid.get(secret, 0.0) > self.clock()

    def revoke(self) -> None:
        """Ends all credentials."""
        self.valid.clear()

    def credentials(self, url: str, operation: str) -> dict[str, Any]:
        """Credentials for a path."""
        cloud = SCHEMES[urlsplit(url).scheme]
        ends = self.clock() + self.life
        self.vended.append((url, operation))
        answer = {"url": url, "expiration_time": int(ends * 1000)}
        if cloud in self.sign:
            return {**answer, **self.sign[cloud](url, operation, ends)}
        secret = f"session-{len(self.vended)}-{secrets.token_hex(8)}"
        self.valid[secret] = ends
        if cloud == "aws":
            keys = {"access_key_id": f"ASIA{len(self.vended)}", "secret_access_key": "word"}
            return {**answer, "aws_temp_credentials": {**keys, "session_token": secret}}
        if cloud == "azure":
            return {**answer, "azure_user_delegation_sas": {"sas_token": f"sig={secret}"}}
        return {**answer, "gcp_oauth_token": {"oauth_token": secret}}


def path_credentials(
    metastore: Metastore, vendor: Vendor, caller: str, body: dict[str, Any]
) -> dict[str, Any]:
    """POST /temporary-path-credentials.

    Raises:
        Refusal: as the module says.
    """
    check_fields(body, ("url", "operation"), ("dry_run",))
    url = check_url(body["url"])
    operation = check_enum(
        "operation", body["operation"], ("PATH_READ", "PATH_READ_WRITE", "PATH_CREATE_TABLE")
    )
    _check_external_access(metastore, "path", url)
    location = location_of(metastore, url)
    if not metastore.may(caller, "EXTERNAL_USE_LOCATION", location):
        raise denied("EXTERNAL_USE_LOCATION", "EXTERNAL_LOCATION", location.name)
    if location.document.get("read_only") and operation != "PATH_READ":
        raise Refusal(403, "PERMISSION_DENIED", f"Location '{location.name}' is read-only.")
    needed = "READ_FILES" if operation == "PATH_READ" else "WRITE_FILES"
    tables = [t for t in metastore.of("TABLE") if contains(t.document["storage_location"], url)]
    for table in tables:
        schema = metastore.get("SCHEMA", table.name.rpartition(".")[0])
        if not metastore.may(caller, "EXTERNAL_USE_SCHEMA", schema):
            raise denied("EXTERNAL_USE_SCHEMA", "SCHEMA", schema.name)
    if not tables and not metastore.may(caller, needed, location):
        raise denied(needed, "EXTERNAL_LOCATION", location.name)
    return vendor.credentials(url, operation)


def table_credentials(
    metastore: Metastore, vendor: Vendor, caller: str, body: dict[str, Any]
) -> dict[str, Any]:
    """POST /temporary-table-credentials.

    Raises:
        Refusal: as the module says.
    """
    check_fields(body, ("table_id", "operation"))
    operation = check_enum("operation", body["operation"], ("READ", "READ_WRITE"))
    tables = [t for t in metastore.of("TABLE") if t.document["table_id"] == body["table_id"]]
    if not tables:
        message = f"Table with id '{body['table_id']}' does not exist."
        raise Refusal(404, "TABLE_DOES_NOT_EXIST", message)
    _check_external_access(metastore, "table", body["table_id"])
    schema = tables[0].name.rpartition(".")[0]
    metastore.need(caller, "EXTERNAL_USE_SCHEMA", "SCHEMA", schema)
    metastore.enter(caller, "TABLE", tables[0].name, write=operation == "READ_WRITE")
    metastore.need(caller, "SELECT", "TABLE", tables[0].name)
    if operation == "READ_WRITE":
        metastore.need(caller, "MODIFY", "TABLE", tables[0].name)
    return vendor.credentials(tables[0].document["storage_location"], operation)


def _check_external_access(metastore: Metastore, what: str, name: str) -> None:
    # The message of Databricks, from github.com/unitycatalog/unitycatalog/issues/560 and /2.
    if not metastore.external_access:
        raise Refusal(
            401, "UNAUTHENTICATED",
            f"Request to generate access credential for {what} '{name}' from outside of Databricks"
            " Unity Catalog enabled compute environment is denied for security. Please contact"
            " Databricks support for integrations with Unity Catalog.",
        )  # fmt: skip
