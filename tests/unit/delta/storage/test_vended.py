"""Credentials that Unity Catalog vends: used again, renewed before their end and when refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest

from bronze import secrets
from bronze.config.settings import Settings
from bronze.delta import log, store
from bronze.delta.storage import client
from bronze.errors import ConfigError, SecretsUnreachable
from bronze.model.locations import Place
from bronze.secrets import vended, workspace
from tests.support import object_store as stores
from tests.support.object_store import Store
from tests.support.unity_server import Unity, unity

METADATA = {
    "id": "a", "format": {"provider": "parquet", "options": {}}, "partitionColumns": [],
    "schemaString": '{"type":"struct","fields":[{"name":"a","type":"long","nullable":true,'
    '"metadata":{}}]}',
    "configuration": {},
}  # fmt: skip
BEGIN: list[dict[str, Any]] = [
    {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}, {"metaData": METADATA},
]  # fmt: skip


@pytest.fixture(scope="module", params=["s3", "google"])
def lake(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store behind a gateway."""
    with stores.s3() if request.param == "s3" else stores.google() as running:
        yield running


@pytest.fixture
def catalog(lake: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unity]:
    """A workspace whose credentials are the only ones that the store takes."""
    for module in (client, secrets, vended):
        module.forget()
    workspace._tokens.clear()
    monkeypatch.setenv("TOKEN", "bronze-token")
    with unity() as running:
        running.prepare(lake.root)

        def refuse(headers: Any) -> bool:
            bearer = str(headers.get("Authorization", "")).removeprefix("Bearer ")
            return not running.vendor.accepts(headers.get("X-Amz-Security-Token") or bearer)

        lake.gateway.refuse = refuse
        yield running
    lake.gateway.refuse = lambda _: False


def settings(lake: Store, host: str, **more: Any) -> Settings:
    """The config of a lake whose credentials are vended."""
    options = {
        name: value
        for name, value in lake.options.items()
        if "access_key" not in name and "signature" not in name
    }
    return Settings.from_dict(
        {
            "source": {"name": "shop", "dsn": "postgresql://u@h/d"},
            "lake": {"root": lake.root, "storage": "vended", "options": options},
            "catalog": {"host": host, "name": "workspace", "auth": {"token": {"secret": "TOKEN"}}},
            **more,
        }
    )


def place(lake: Store, catalog: Unity, name: str = "") -> Place:
    """A table on the store."""
    return settings(lake, catalog.url).place("bronze", name or uuid4().hex)


@dataclass
class Hands:
    """A clock that the test moves: of this machine, and of the workspace."""

    moved: float = 0.0
    wrong: float = 0.0

    def monotonic(self) -> float:
        """The seconds of this machine since some moment."""
        return time.monotonic() + self.moved

    def time(self) -> float:
        """The time of this machine, which may be wrong."""
        return self.true() + self.wrong

    def true(self) -> float:
        """The time of the workspace."""
        return time.time() + self.moved


@pytest.fixture
def hands(catalog: Unity, monkeypatch: pytest.MonkeyPatch) -> Hands:
    """The clock of bronze and of the workspace."""
    made = Hands()
    for module in (client, vended):
        monkeypatch.setattr(module, "time", made)
    catalog.vendor.clock = made.true
    return made


def test_credentials_are_used_again_until_the_store_refuses_them(
    lake: Store, catalog: Unity
) -> None:
    """One request for all tables, and one more at each refusal; deltalake gets the new ones too."""
    first, second = place(lake, catalog), place(lake, catalog)
    for table in (first, second):
        store.put(table, "x", b"1")
        log.write(table, 0, BEGIN)
    assert catalog.vendor.vended == [(lake.root, "PATH_READ_WRITE")]
    catalog.vendor.revoke()
    store.put(first, "y", b"2")
    catalog.vendor.revoke()
    assert client.with_table(first, None, lambda table: table.version()) == 0
    catalog.vendor.revoke()
    client.with_table(first, 0, lambda table: table.create_checkpoint())
    assert len(catalog.vendor.vended) == 4
    assert "_delta_log/_last_checkpoint" in store.listing(first)
    log.write(first, 1, [{"commitInfo": {}}])
    assert client.delta_table(first).version() == 1
    assert client.delta_table(first, 0).version() == 0


def test_credentials_are_renewed_five_minutes_before_their_end(
    lake: Store, catalog: Unity, hands: Hands
) -> None:
    """Not earlier; by the server's clock, however wrong that of this machine is."""
    table = place(lake, catalog)
    for wrong in (0.0, -7200.0, 7200.0):
        vended.forget()
        client.forget()
        hands.wrong = wrong
        catalog.vendor.vended.clear()
        store.put(table, "x", b"1")
        hands.moved += 3600 - 310
        store.put(table, "x", b"2")
        assert len(catalog.vendor.vended) == 1
        hands.moved += 15
        store.put(table, "x", b"3")
        assert len(catalog.vendor.vended) == 2
        assert store.get(table, "x") == b"3"


def test_a_workspace_that_does_not_answer_matters_only_when_the_credentials_have_ended(
    lake: Store, catalog: Unity, hands: Hands
) -> None:
    """503 at a renewal costs nothing; after the end it is an error, until it answers."""
    table = place(lake, catalog)
    store.put(table, "x", b"1")
    busy: list[tuple[int, dict[str, str]]] = [(503, {})] * 9
    catalog.failures["temporary-path"] += busy
    hands.moved += 3400
    store.put(table, "y", b"2")
    store.put(table, "y", b"3")
    assert len(catalog.failures["temporary-path"]) == 8
    hands.moved += 300
    with pytest.raises(SecretsUnreachable, match="it answers HTTP 503"):
        store.put(table, "z", b"3")
    catalog.failures.clear()
    store.put(table, "z", b"3")


def test_a_token_that_has_ended_is_made_anew(lake: Store, catalog: Unity) -> None:
    """Of a service principal: the first one is refused with 401."""
    auth = {"client_id": "bronze-client", "client_secret": {"secret": "TOKEN"}}
    config = settings(
        lake, catalog.url, catalog={"host": catalog.url, "name": "workspace", "auth": auth}
    )
    catalog.clients["bronze-client"] = ("bronze-token", "bronze@example.com")
    table = config.place("bronze", "t")
    store.put(table, "x", b"1")
    for token in list(catalog.ends):
        catalog.ends[token] = time.time() - 1
    catalog.vendor.revoke()
    store.put(table, "x", b"2")
    assert len(catalog.ends) == 2


REFUSALS: list[tuple[str, str, str]] = [
    ("location", "User does not have EXTERNAL USE LOCATION", "External data access"),
    ("access", "denied for security", "External data access"),
    ("nowhere", "No parent external location", "Create an external location"),
    ("token", "Invalid access token", "Check auth"),
    ("html", "is not that of a workspace", "Check host"),
]


@pytest.mark.parametrize(("case", "message", "hint"), REFUSALS)
def test_refusals_are_told_with_what_to_do(
    lake: Store, catalog: Unity, monkeypatch: pytest.MonkeyPatch, case: str, message: str, hint: str
) -> None:
    """Of rights, of the metastore, of the location, of the token, of a host that is another."""
    host = catalog.url
    if case == "location":
        catalog.revoke("EXTERNAL_LOCATION", "lake", "EXTERNAL_USE_LOCATION")
    elif case == "access":
        catalog.metastore.external_access = False
    elif case == "nowhere":
        del catalog.metastore.securables["EXTERNAL_LOCATION", "lake"]
    elif case == "token":
        monkeypatch.setenv("TOKEN", "wrong")
    else:
        host = lake.gateway.url
    with pytest.raises(ConfigError, match=message) as error:
        store.put(settings(lake, host).place("bronze", "t"), "x", b"")
    assert hint in (error.value.hint or "")
    assert "TOKEN" not in str(error.value)
    assert "wrong" not in str(error.value)


@pytest.mark.parametrize(
    ("lake_section", "catalog_section", "message"),
    [
        ({"root": "s3://a", "storage": "vended"}, {}, "there is none"),
        ({"root": "folder", "storage": "vended"}, {"name": "a"}, "is for lakes on s3://"),
        (
            {"root": "s3://a", "storage": "vended", "options": {"aws_access_key_id": "k"}},
            {"name": "a"},
            "remove aws_access_key_id",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused(
    lake_section: dict[str, Any], catalog_section: dict[str, Any], message: str
) -> None:
    """Without a catalog, for a folder, and with credentials of the config's own."""
    auth = {"host": "https://adb.example", "auth": "azure"}
    document = {
        "source": {"dsn": "postgresql://h/d"},
        "lake": lake_section,
        **({"catalog": {**auth, **catalog_section}} if catalog_section else {}),
    }
    with pytest.raises(ConfigError, match=message):
        Settings.from_dict(document)
