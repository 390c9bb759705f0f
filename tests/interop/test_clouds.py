"""The configs of docs/how-to/clouds.md, word for word but for hosts, against emulators."""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
import pytest
import trustme
from azure.identity import EnvironmentCredential
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from obstore.store import S3Store

from bronze import secrets
from bronze.api.client import Bronze
from bronze.config import loading
from bronze.config.settings import Settings
from bronze.delta.storage import client
from bronze.demo.server import Server
from bronze.postgres.connection import tokens
from bronze.secrets import aws, azure, google, vended, workspace
from tests.acceptance.test_cli import toml
from tests.conftest import Source
from tests.support import object_store
from tests.support.cloud import TENANT, Cloud, cloud
from tests.support.content import differences
from tests.support.object_store import Gateway
from tests.support.tls_proxy import TokenProxy
from tests.support.unity_server import Unity, unity

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "clouds.md"
MASTER = base64.b64encode(b"k" * 32).decode()
_KEPT = (azure.credential, azure.client, aws._client, google._session)
_PREFIXES = ("AZURE_", "IDENTITY_", "MSI_", "DATABRICKS_", "GOOGLE_", "AWS_")


def config_of(name: str) -> str:
    """The config under a heading of the page."""
    match = re.search(rf"^## {name}$.*?^```toml$(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert match, f"docs/how-to/clouds.md has no config for {name}"
    return match[1]


@dataclass
class Loopback:
    """What stands for a cloud on this machine: its services, and PostgreSQL that takes tokens."""

    source: Source
    folder: Path
    server: Cloud
    proxy: TokenProxy
    database: str
    environment: pytest.MonkeyPatch
    open: ExitStack = field(default_factory=ExitStack)

    def config(self, name: str, hosts: Mapping[str, str], options: Mapping[str, str]) -> Settings:
        """The config of the page with other hosts, and with options of an emulator."""
        text = config_of(name)
        for before, after in hosts.items():
            assert text.count(before) == 1, f"{before} is not once in the config"
            text = text.replace(before, after)
        document = tomllib.loads(text)
        lake = document["lake"]
        lake["options"] = {**lake.get("options", {}), **options}
        path = self.folder / "bronze.toml"
        path.write_text("\n".join(f"{key} = {toml(value)}" for key, value in document.items()))
        return loading.load(path)

    def hosts(self, host: str, certificates: str, address: str = "localhost") -> dict[str, str]:
        """The replacements of the source's address and of the file with its CA."""
        return {
            f"{host}:5432/shop": f"{address}:{self.proxy.port}/{self.database}",
            certificates: str(self.folder / "database.pem"),
        }

    def prove(self, settings: Settings, record: Any, gate: Gateway) -> None:
        """Runs twice, maintains and verifies; the lake equals the source, e-mail is protected."""
        bronze = Bronze(settings)
        began = time.monotonic()
        first = bronze.run()
        assert first.exit_code == 0
        record("seconds of the first run", round(time.monotonic() - began, 1))
        record("requests of the first run", len(gate.requests))
        assert [table.version for table in first.tables] == [0, 0]
        self.source.execute("DELETE FROM orders WHERE id > 900")
        assert bronze.run().exit_code == 0
        assert bronze.maintain().exit_code == 0
        assert bronze.verify().exit_code == 0
        assert bronze.verify(at_rest=True).exit_code == 0
        record("passwords", len(self.proxy.passwords))
        assert self.proxy.passwords


@pytest.fixture
def loopback(
    server: Server, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Loopback]:
    """A machine without any identity, a source with two tables, and services on loopback."""
    for name in list(os.environ):
        if name.startswith(_PREFIXES):
            monkeypatch.delenv(name)
    _forget()
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "database.pem"))
    source.execute(
        "CREATE TABLE customers (id int PRIMARY KEY, email text);"
        "INSERT INTO customers VALUES (1, 'ada@example.com');"
        "CREATE TABLE orders (id int PRIMARY KEY, v text);"
        "INSERT INTO orders SELECT i, repeat('v', 20) FROM generate_series(1, 1000) i;"
    )
    source.execute("CREATE ROLE bronze LOGIN")
    source.execute("GRANT USAGE ON SCHEMA public TO bronze")
    source.execute("GRANT SELECT ON customers, orders TO bronze")
    proxy = TokenProxy(server.port, context)
    try:
        with cloud(tmp_path) as running, ExitStack() as stack:
            for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
                monkeypatch.setenv(name, str(running.ca))
            database = source.dsn.rpartition("/")[2]
            yield Loopback(source, tmp_path, running, proxy, database, monkeypatch, stack)
    finally:
        proxy.close()
        _forget()
        source.execute("DROP OWNED BY bronze")
        source.execute("DROP ROLE bronze")


def _forget() -> None:
    for module in (secrets, client, vended):
        module.forget()
    for known in _KEPT:
        known.cache_clear()
    tokens._tokens.clear()
    workspace._tokens.clear()


@contextmanager
def bucket() -> Iterator[str]:
    """The address of an S3 with the empty bucket of the page; a process has one moto."""
    with object_store.moto("shop-lake") as address:
        opened = S3Store(
            "shop-lake",
            access_key_id="key",
            secret_access_key="word",
            endpoint=address,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        for chunk in obstore.list(opened):
            obstore.delete(opened, [meta["path"] for meta in chunk])
        yield address


def registered(catalog: Unity, settings: Settings) -> None:
    """Registers all tables; another client reads them, and a second time nothing is written."""
    bronze = Bronze(settings)
    result = bronze.register()
    assert result.exit_code == 0, result
    sdk = WorkspaceClient(config=Config(host=catalog.url, token="admin-token", auth_type="pat"))
    for name in ("customers", "orders"):
        full = f"workspace.shop_bronze.bz_{name}"
        assert str(sdk.tables.get(full).storage_location).endswith(f"/shop_bronze/bz_{name}")
        assert catalog.problems(full) == []
        granted = sdk.grants.get("table", full).privilege_assignments or []
        assert [one.principal for one in granted] == ["analysts"]
    catalog.requests.clear()
    assert bronze.register().exit_code == 0
    assert catalog.count("PATCH", "DELETE", "PUT") == 0
    assert catalog.count("POST") == catalog.count("POST", path="/temporary-path-credentials")


def test_azure(loopback: Loopback, record_property: Any) -> None:
    """Key Vault, tokens of Entra ID for PostgreSQL and Databricks, azurite, a SQL warehouse."""
    command = object_store.azurite()
    if command is None:
        pytest.skip("azurite cannot be had: it needs node and npm")
    from azure.keyvault.secrets import SecretClient

    entra = loopback.server
    entra.token, entra.secrets["bronze-master-key"] = "entra-token", MASTER
    loopback.proxy.accepts = lambda password: password == "entra-token"
    for name, value in (("TENANT_ID", TENANT), ("CLIENT_ID", "app"), ("CLIENT_SECRET", "right")):
        loopback.environment.setenv(f"AZURE_{name}", value)
    identity = EnvironmentCredential(authority=entra.url, disable_instance_discovery=True)
    vault = SecretClient(entra.url, identity, verify_challenge_resource=False)
    loopback.environment.setattr(azure, "credential", lambda: identity)
    vaults: list[str] = []

    def client_of(url: str) -> SecretClient:
        vaults.append(url)
        return vault

    loopback.environment.setattr(azure, "client", client_of)
    folder = loopback.folder / "azurite"
    folder.mkdir()
    store = loopback.open.enter_context(object_store.azure(folder, command))
    catalog = loopback.open.enter_context(unity())
    catalog.tokens["entra-token"] = "bronze@example.com"
    catalog.principals("analysts")
    catalog.warehouse(state="STOPPED", start=0.2)
    root = f"{store.root}/bronze"
    catalog.prepare(root)
    catalog.mounts[root] = (root, store.options)
    settings = loopback.config(
        "Azure",
        {
            **loopback.hosts("shop.postgres.database.azure.com", "/etc/bronze/azure-roots.pem"),
            "https://shop-vault.vault.azure.net": entra.url,
            "shopstorage": object_store.AZURE_ACCOUNT,
            "https://adb-1234567890123456.7.azuredatabricks.net": catalog.url,
        },
        store.options,
    )
    loopback.prove(settings, record_property, store.gateway)
    assert set(vaults) == {entra.url}
    assert not differences(settings)
    registered(catalog, settings)


def test_aws(loopback: Loopback, record_property: Any) -> None:
    """Secrets Manager and S3 by moto; tokens of RDS, which are signed for the user and the host."""
    address = loopback.open.enter_context(bucket())
    for name, value in (
        ("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "word"), ("REGION", "eu-central-1"),
        ("ENDPOINT_URL", address),
    ):  # fmt: skip
        loopback.environment.setenv(f"AWS_{name}", value)
    made = aws._client("secretsmanager", "eu-central-1")
    made.create_secret(Name="bronze/master-key", SecretString=MASTER)
    token = re.compile(r"localhost:\d+/\?Action=connect&DBUser=bronze&.*eu-central-1.*Signature=")
    loopback.proxy.accepts = token.match
    gate = loopback.open.enter_context(object_store.gateway(address))
    settings = loopback.config(
        "AWS",
        loopback.hosts(
            "shop.c1a2b3c4d5e6.eu-central-1.rds.amazonaws.com", "/etc/bronze/rds-bundle.pem"
        ),
        {"aws_endpoint_url": gate.url, "aws_allow_http": "true"},
    )
    loopback.prove(settings, record_property, gate)
    assert not differences(settings)


def test_google(loopback: Loopback, record_property: Any) -> None:
    """Secret Manager with a service account, a password, and the XML interface before moto."""
    account = {
        "type": "service_account", "client_email": "bronze@example.com", "private_key": _key(),
        "token_uri": f"{loopback.server.url}/token",
    }  # fmt: skip
    path = loopback.folder / "account.json"
    path.write_text(json.dumps(account))
    loopback.environment.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    loopback.environment.setattr(google, "ENDPOINT", loopback.server.url)
    loopback.server.secrets.update({"bronze-master-key": MASTER, "shop-password": "pa55-w0rd"})
    loopback.proxy.accepts = lambda password: password == "pa55-w0rd"
    address = loopback.open.enter_context(bucket())
    gate = loopback.open.enter_context(object_store.gateway(address, google=True))
    settings = loopback.config(
        "Google Cloud",
        loopback.hosts("10.20.0.5", "/etc/bronze/server-ca.pem", "127.0.0.1"),
        {
            "google_base_url": gate.url, "google_allow_http": "true",
            "google_skip_signature": "true",
        },
    )  # fmt: skip
    loopback.prove(settings, record_property, gate)
    assert not differences(settings)


def _key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048)
    kind, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, kind, plain).decode()


def test_databricks(loopback: Loopback, record_property: Any) -> None:
    """Lakebase's tokens, a scope, a service principal; the store takes vended credentials alone."""
    host = loopback.server
    host.token = "lakebase-token"
    host.secrets.update(
        {"bronze-master-key": MASTER, "bronze-client-secret": "bronze-client-secret"}
    )
    loopback.environment.setenv("DATABRICKS_HOST", host.url)
    loopback.environment.setenv("DATABRICKS_TOKEN", "lakebase-token")
    loopback.proxy.accepts = lambda password: password == "lakebase-token"
    address = loopback.open.enter_context(bucket())
    gate = loopback.open.enter_context(object_store.gateway(address))
    catalog = loopback.open.enter_context(unity())
    catalog.principals("analysts")
    catalog.prepare("s3://shop-lake/bronze")
    direct = {
        "aws_access_key_id": "key", "aws_secret_access_key": "word", "aws_region": "eu-central-1",
        "aws_endpoint_url": address, "aws_allow_http": "true",
    }  # fmt: skip
    catalog.mounts["s3://shop-lake"] = ("s3://shop-lake", direct)
    gate.refuse = lambda headers: (
        not catalog.vendor.accepts(str(headers.get("X-Amz-Security-Token")))
    )
    settings = loopback.config(
        "Databricks",
        {
            **loopback.hosts(
                "instance-1a2b3c4d.database.cloud.databricks.com", "/etc/bronze/roots.pem"
            ),
            "https://dbc-a1b2c3d4-e5f6.cloud.databricks.com": catalog.url,
        },
        {"aws_endpoint_url": gate.url, "aws_allow_http": "true"},
    )
    loopback.prove(settings, record_property, gate)
    assert len(catalog.vendor.vended) == 1
    assert not differences(settings)
    registered(catalog, settings)
