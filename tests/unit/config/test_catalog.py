"""[catalog]: which catalogs a config can have."""

from __future__ import annotations

from typing import Any

import pytest

from bronze.config import loading
from bronze.errors import ConfigError
from bronze.model.locations import Secret, Workspace

HOST = "https://adb-1.azuredatabricks.net"
CATALOG: dict[str, Any] = {"host": f"{HOST}/", "name": "workspace", "auth": "azure"}
OPEN: dict[str, Any] = {"provider": "unitycatalog", "host": "http://uc:8080", "name": "unity"}


def parse(catalog: Any) -> Any:
    """The catalogs of a config."""
    document = {"source": {"dsn": "postgresql:///db"}, "lake": {"root": "l"}, "catalog": catalog}
    settings = loading.parse(document)
    return {name: (one, settings.workspace(one)) for name, one in settings.catalog.items()}


def test_one_catalog_and_several() -> None:
    """[catalog] is one, [catalog.NAME] are several; each says how to log in."""
    secret = {"secret": "TOKEN"}
    (settings, workspace) = parse({**CATALOG, "grants": {"a": ["apply_tag", "SELECT"]}})[""]
    assert (settings.after_runs, settings.governance, settings.wait) == (False, "governance", 600)
    assert settings.grants == {"a": ("APPLY TAG", "SELECT")}
    assert workspace == Workspace(HOST, "azure")
    auth = {"client_id": "id", "client_secret": secret}
    several = parse({"a": {**CATALOG, "auth": {"token": secret}}, "b": {**CATALOG, "auth": auth}})
    assert several["a"][1] == Workspace(HOST, "token", "", Secret("env", "TOKEN"))
    assert several["b"][1] == Workspace(HOST, "oauth", "id", Secret("env", "TOKEN"))
    assert parse(OPEN)[""][1] == Workspace("http://uc:8080", "none")


@pytest.mark.parametrize(
    ("catalog", "message"),
    [
        ({}, "catalog.host is missing"),
        ({**CATALOG, "hots": 1}, r"unknown key catalog.hots \(did you mean host\?\)"),
        ({"a": {**CATALOG, "hots": 1}}, "unknown key catalog.a.hots"),
        ({**CATALOG, "workspaces": [{"id": 1, "acces": 2}]}, "did you mean access"),
        ({**CATALOG, "auth": {"client_id": "x"}}, "set token, or client_id and client_secret"),
        ({**CATALOG, "auth": {"tokn": 1}}, r"auth.tokn \(did you mean token\?\)"),
        ({"host": HOST, "name": "x"}, "auth is missing"),
        ({**CATALOG, "host": "http://adb.example"}, "would get the token in clear"),
        ({**CATALOG, "host": "https://adb.example/sql/1"}, "an address without a path"),
        ({**CATALOG, "name": "a.b"}, "names have no dots"),
        ({**CATALOG, "grants": {"a": ["SELCT"]}}, "'SELCT' is no privilege of tables"),
        ({**CATALOG, "schema": "g", "governance": "g"}, "two schemas"),
        ({**OPEN, "warehouse": "w"}, "warehouse is only for Databricks"),
        ({**OPEN, "host": HOST, "auth": "azure"}, "open-source Unity Catalog takes auth"),
        ({**OPEN, "grants": {"a": ["MANAGE"]}}, "has no MANAGE of tables"),
    ],
)
def test_mistakes_are_told_with_their_place(catalog: Any, message: str) -> None:
    """Each is a sentence; nothing is asked of a server."""
    with pytest.raises(ConfigError, match=message):
        parse(catalog)
