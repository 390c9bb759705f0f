"""Vaults, stores and catalogs that are missing or refuse: the command line has a sentence each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bronze import secrets
from bronze.delta.storage import client
from bronze.secrets import azure, vended, workspace
from tests.acceptance.test_cli import configured, invoke
from tests.conftest import Source
from tests.support import object_store
from tests.support.cloud import TENANT, Cloud, cloud
from tests.support.object_store import Store
from tests.support.unity_server import Unity, unity

pytestmark = pytest.mark.soak

KEY_VAULT = {"provider": "azure-key-vault"}


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    """An S3 behind a gateway."""
    with object_store.s3() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_known(s3: Store) -> Iterator[None]:
    """No clients and secrets of other tests, and a gateway without failures."""
    for module in (client, secrets, vended):
        module.forget()
    workspace._tokens.clear()
    yield
    s3.gateway.failures.clear()
    s3.gateway.code = ""


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A Key Vault with three secrets, of which the identity may not read the second."""
    from azure.identity import EnvironmentCredential
    from azure.keyvault.secrets import SecretClient

    with cloud(tmp_path) as running:
        for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, str(running.ca))
        for name, value in (("TENANT_ID", TENANT), ("CLIENT_ID", "a"), ("CLIENT_SECRET", "right")):
            monkeypatch.setenv(f"AZURE_{name}", value)
        identity = EnvironmentCredential(authority=running.url, disable_instance_discovery=True)
        made = SecretClient(running.url, identity, verify_challenge_resource=False)
        monkeypatch.setattr(azure, "credential", lambda: identity)
        monkeypatch.setattr(azure, "client", lambda _: made)
        running.secrets.update({"One": "key", "Two": "word", "Three": "us-east-1"})
        running.failures["/secrets/Two"] = [(403, {})] * 99
        yield running


def told(to: Source, command: str, code: int, /, *words: str, **sections: Any) -> str:
    """What a command prints: each of the words, an exit code, and no traceback."""
    result = invoke(*command.split(), "-c", configured(to, **sections))
    assert result.exit_code == code, result.output + result.stderr
    text = " ".join((result.stdout + result.stderr).split())
    for word in words:
        assert word in text, text
    assert "Traceback" not in text
    assert "<Error>" not in text
    return text


def test_a_vault_that_does_not_exist(source: Source) -> None:
    """Its name is in the sentence, and the run does not wait for long."""
    began = time.monotonic()
    told(
        source, "run", 3, "cannot be read from Key Vault https://nothing.invalid",
        "Check the vault's URL",
        source={"password": {"secret": "K"}},
        secrets={**KEY_VAULT, "vault": "https://nothing.invalid"},
    )  # fmt: skip
    assert time.monotonic() - began < 60


def test_no_rights_on_one_secret_of_three(source: Source, s3: Store, vault: Cloud) -> None:
    """It alone is named, by the run and by the doctor."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    names = {"aws_access_key_id": "One", "aws_secret_access_key": "Two", "aws_region": "Three"}
    options: dict[str, Any] = {**s3.options, **{k: {"secret": v} for k, v in names.items()}}
    sections: Mapping[str, Any] = {
        "secrets": {**KEY_VAULT, "vault": vault.url},
        "lake": {"root": f"{s3.root}/three", "options": options},
    }
    text = told(source, "run", 2, "The secret Two", "HTTP 403", "Secrets User", **sections)
    assert "The secret One" not in text
    secrets.forget()
    text = told(source, "doctor", 1, "The secret Two cannot be read", "HTTP 403", **sections)
    assert "The secret One can be read" in text
    assert "The secret Three can be read" in text


def test_a_secret_that_is_missing_or_empty(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """No default of libpq takes its place."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    for name, state in (("Missing", "not set"), ("Empty", "empty")):
        monkeypatch.setenv("Empty", "")
        word = f"The environment variable {name} is {state}"
        told(source, "run", 2, word, source={"dsn": {"secret": name}})
        told(source, "run", 2, word, source={"password": {"secret": name}})
    file = {"provider": "file", "folder": str(source.lake.parent)}
    (source.lake.parent / "Empty").write_text("\n")
    told(source, "run", 2, "Empty is empty", source={"dsn": {"secret": "Empty"}}, secrets=file)
    told(source, "run", 2, "Lost does not exist", source={"dsn": {"secret": "Lost"}}, secrets=file)


@pytest.mark.parametrize("command", ["run", "verify", "audit --verify", "maintain"])
def test_a_bucket_that_is_missing(source: Source, s3: Store, command: str) -> None:
    """No command takes it for an empty lake."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    lake = {"root": "s3://nowhere/a", "options": s3.options}
    told(source, command, 3, "there is no bucket nowhere", "Create the bucket", lake=lake)


def test_a_container_that_is_missing(source: Source, tmp_path: Path) -> None:
    """Azure's word for it is used."""
    command = object_store.azurite()
    if command is None:
        pytest.skip("azurite cannot be had: it needs node and npm")
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    with object_store.azure(tmp_path, command) as store:
        root = store.root.replace("lake@", "nowhere@")
        lake = {"root": root, "options": store.options}
        told(source, "run", 3, "there is no container nowhere", lake=lake)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (
            403,
            "RequestTimeTooSkewed",
            ("clock of this machine is wrong", "Set this machine's clock"),
        ),
        (400, "ExpiredToken", ("the credentials have expired", "Renew")),
        (403, "InvalidAccessKeyId", ("the credentials are refused",)),
    ],
)
def test_a_clock_that_is_wrong_and_tokens_that_have_expired(
    source: Source, s3: Store, status: int, code: str, words: tuple[str, ...]
) -> None:
    """The store says what is wrong, and so does the run."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    s3.gateway.failures[:], s3.gateway.code = [status] * 999, code
    told(source, "run", 3, *words, lake={"root": f"{s3.root}/clock", "options": s3.options})


@pytest.fixture
def catalog(source: Source, s3: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unity]:
    """A workspace, and a lake with a table."""
    monkeypatch.setenv("TOKEN", "bronze-token")
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    with unity() as running:
        running.mounts["s3://lake"] = ("s3://lake", s3.options)
        running.prepare("s3://lake")
        told(source, "run", 0, lake={"root": f"{s3.root}/catalog", "options": s3.options})
        yield running


def test_catalogs_that_cannot_be_used(source: Source, s3: Store, catalog: Unity) -> None:
    """A host that is no workspace or unknown, a token that has ended, a catalog that is missing or
    not for this identity, a warehouse that is deleted or does not start: none changes anything.
    """
    lake = {"root": f"{s3.root}/catalog", "options": s3.options}
    good = {"host": catalog.url, "name": "workspace", "auth": {"token": {"secret": "TOKEN"}}}
    catalog.warehouse("asleep", state="STOPPED", start=90.0)

    def refused(*words: str, code: int = 1, **changes: Any) -> None:
        told(source, "register", code, *words, lake=lake, catalog={**good, **changes})

    refused("is not that of a Unity Catalog", host=s3.gateway.url)
    refused("cannot be reached", code=3, host="http://127.0.0.1:1")
    refused("CATALOG_DOES_NOT_EXIST", name="nowhere")
    refused("There is no SQL warehouse gone", warehouse="gone")
    began = time.monotonic()
    refused("has not started within 1 s", code=3, warehouse="asleep", wait=1)
    assert time.monotonic() - began < 60
    catalog.revoke("CATALOG", "workspace", "USE_CATALOG")
    refused("User does not have USE CATALOG on Catalog 'workspace'")
    catalog.grant("CATALOG", "workspace", "USE_CATALOG")
    catalog.ends["bronze-token"] = time.time() - 1
    refused("Token is expired")
    assert catalog.metastore.of("TABLE") == []


def test_vended_credentials_that_are_refused(source: Source, s3: Store, catalog: Unity) -> None:
    """The missing right is named, by the run and by the doctor."""
    options = {k: v for k, v in s3.options.items() if "key" not in k}
    sections: Mapping[str, Any] = {
        "lake": {"root": f"{s3.root}/catalog", "storage": "vended", "options": options},
        "catalog": {
            "host": catalog.url, "name": "workspace", "auth": {"token": {"secret": "TOKEN"}},
        },
    }  # fmt: skip
    told(source, "run", 0, **sections)
    catalog.revoke("EXTERNAL_LOCATION", "lake", "EXTERNAL_USE_LOCATION")
    vended.forget()
    client.forget()
    words = ("User does not have EXTERNAL USE LOCATION", "External data access")
    told(source, "run", 2, *words, **sections)
    told(source, "doctor", 1, *words, **sections)
