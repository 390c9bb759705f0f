"""The sections [catalog] and [catalog.NAME] of bronze.toml: where tables are registered.

Times are in seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from bronze.config.fields import Seconds, SecretName, Section

_HOST = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Privileges of tables: https://docs.databricks.com/data-governance/unity-catalog/manage-privileges
PRIVILEGES = ("SELECT", "MODIFY", "APPLY TAG", "MANAGE", "ALL PRIVILEGES")
_OPEN_SOURCE_PRIVILEGES = ("SELECT", "MODIFY")
_NO_NAME = re.compile(r"[./\s\x00-\x1f\x7f]")


def _check_host(host: str) -> str:
    host = host.rstrip("/")
    if not _HOST.fullmatch(host):
        raise ValueError('it is an address without a path, such as "https://adb-….net"')
    return host


def _check_name(name: str) -> str:
    if _NO_NAME.search(name):
        raise ValueError(
            "Unity Catalog's names have no dots, spaces, slashes and control characters"
        )
    return name


def _check_privilege(privilege: str) -> str:
    spelled = privilege.upper().replace("_", " ")
    if spelled not in PRIVILEGES:
        raise ValueError(f"{privilege!r} is no privilege of tables; {', '.join(PRIVILEGES)} are")
    return spelled


Name = Annotated[str, AfterValidator(_check_name)]
Privilege = Annotated[str, AfterValidator(_check_privilege)]
Grants = Mapping[str, tuple[Privilege, ...]]


class CatalogAuth(Section):
    """``auth`` of [catalog]: a ``token``, or a service principal of Databricks, ``client_id`` and
    ``client_secret``.
    """

    token: SecretName | None = None
    client_id: str = ""
    client_secret: SecretName | None = None

    @model_validator(mode="after")
    def _check(self) -> CatalogAuth:
        is_pair = bool(self.client_id) and self.client_secret is not None
        is_partial = bool(self.client_id) or self.client_secret is not None
        if is_pair == (self.token is not None) or is_partial != is_pair:
            raise ValueError("set token, or client_id and client_secret")
        return self


class WorkspaceSettings(Section):
    """[[catalog.workspaces]]: a workspace that the catalog is bound to."""

    id: PositiveInt
    access: Literal["READ_WRITE", "READ_ONLY"] = "READ_WRITE"


class CatalogSettings(Section):
    """[catalog]: a catalog of Unity Catalog, at Databricks or of the open-source server.

    ``name`` is the catalog. Bronze tables are registered in ``schema`` (that of the lake if it is
    ""), governance tables in ``governance`` ("" for not at all). With a ``warehouse``, SQL is used
    for what is written; ``wait`` is how long a stopped one may take. ``grants`` are for Bronze
    tables, ``governance_grants`` for governance tables. With ``after_runs``, the tables that a run
    has loaded are registered when it ends.
    """

    provider: Literal["databricks", "unitycatalog"] = "databricks"
    host: Annotated[str, AfterValidator(_check_host)]
    name: Annotated[Name, Field(min_length=1)]
    schema_: Name = Field(default="", alias="schema")
    governance: Name = "governance"
    warehouse: str = Field(default="", pattern=r"^[\w-]*$")
    auth: Literal["azure"] | CatalogAuth | None = None
    owner: str = ""
    grants: Grants = Field(default={})
    governance_grants: Grants = Field(default={})
    workspaces: tuple[WorkspaceSettings, ...] = ()
    lineage: bool = True
    after_runs: bool = False
    wait: Seconds = 600

    @model_validator(mode="after")
    def _check(self) -> CatalogSettings:
        parts = urlsplit(self.host)
        is_open = self.provider == "unitycatalog"
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK and self.auth is not None:
            raise ValueError(f"host = {self.host!r} would get the token in clear: it needs https")
        if self.auth is None and not is_open:
            raise ValueError(
                'auth is missing: "azure", { client_id = "…", client_secret = { secret = "…" } },'
                ' or { token = { secret = "…" } }'
            )
        if is_open and self.auth is not None and not self._has_token:
            raise ValueError(
                'the open-source Unity Catalog takes auth = { token = { secret = "…" } }, or none'
            )
        if self.schema_ and self.schema_ == self.governance:
            raise ValueError("schema and governance are two schemas")
        for mistake in self._mistakes(is_open):
            raise ValueError(mistake)
        return self

    @property
    def _has_token(self) -> bool:
        return isinstance(self.auth, CatalogAuth) and self.auth.token is not None

    def _mistakes(self, is_open: bool) -> Sequence[str]:
        """Settings that the open-source Unity Catalog has nothing for."""
        if not is_open:
            return ()
        names = ("warehouse", "owner", "workspaces")
        unknown = [f"{name} is only for Databricks" for name in names if getattr(self, name)]
        granted = {p for grants in (self.grants, self.governance_grants) for p in _all(grants)}
        more = sorted(granted - {*_OPEN_SOURCE_PRIVILEGES})
        return (*unknown, *(f"the open-source Unity Catalog has no {p} of tables" for p in more))


def _all(grants: Grants) -> list[str]:
    return [privilege for privileges in grants.values() for privilege in privileges]


def section_of(path: Sequence[str]) -> type[Section]:
    """The section of [catalog] that a key belongs to, by the path of the section in it, which may
    begin with the name of a catalog.
    """
    if "workspaces" in path:
        return WorkspaceSettings
    if "auth" in path:
        return CatalogAuth if path[-1] == "auth" else SecretName
    return CatalogSettings
