"""The providers in the network, over their protocols, by a server on loopback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bronze import secrets
from bronze.errors import BronzeError, ConfigError, SecretsUnreachable
from bronze.model.locations import Secret
from bronze.secrets import aws, azure, databricks, google
from tests.support.cloud import TENANT, Cloud, cloud

PASSWORD = "pa55-w0rd"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """A cloud whose certificate is trusted; nothing is known of it before."""
    with cloud(tmp_path) as running:
        running.secrets["K"] = PASSWORD
        for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, str(running.ca))
        for name in list(os.environ):
            if name.startswith(("AZURE_", "IDENTITY_", "MSI_", "DATABRICKS_", "GOOGLE_", "AWS_")):
                monkeypatch.delenv(name)
        _forget()
        yield running
        _forget()


_KEPT = (azure.credential, azure.client, aws._client, google._session)


def _forget() -> None:
    secrets.forget()
    for known in _KEPT:
        known.cache_clear()


@pytest.fixture
def vault(server: Cloud, monkeypatch: pytest.MonkeyPatch) -> Secret:
    """A secret of a Key Vault, whose identity is an application of Entra ID."""
    # It takes long to load, and not each worker has a test that asks for it.
    from azure.identity import EnvironmentCredential
    from azure.keyvault.secrets import SecretClient

    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", "app")
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "right")
    identity = EnvironmentCredential(authority=server.url, disable_instance_discovery=True)
    monkeypatch.setattr(azure, "credential", lambda: identity)
    made = SecretClient(
        server.url, identity, verify_challenge_resource=False, retry_backoff_factor=0, retry_total=2
    )
    monkeypatch.setattr(azure, "client", lambda _: made)
    return Secret("azure-key-vault", "K", server.url)


def refusal(call: Callable[[], object], kind: type[BronzeError]) -> BronzeError:
    """The error of a call; it has no secret."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    shown = caught.value.message + caught.value.hint
    assert not [text for text in (PASSWORD, "token-1", "right") if text in shown.split()]
    return caught.value


def test_key_vault_is_asked_once_and_with_one_token(server: Cloud, vault: Secret) -> None:
    """A challenge, a token of Entra ID, a secret: the next secret needs no new token."""
    server.secrets["L"] = "other"
    assert [secrets.resolve(vault) for _ in range(10)] == [PASSWORD] * 10
    assert secrets.resolve(Secret("azure-key-vault", "L", server.url)) == "other"
    assert (server.asked("/secrets/K"), server.asked("/secrets/L"), server.issued) == (2, 1, 1)


def test_answers_of_key_vault(server: Cloud, vault: Secret) -> None:
    """401 once is answered with a token, 429 and 503 are tried again; then each has a sentence."""
    server.failures["/secrets/K"] = [(429, {"Retry-After": "0"}), (503, {})]
    assert secrets.resolve(vault) == PASSWORD
    server.failures["/secrets/K"] = [(503, {})] * 9
    secrets.forget()
    assert "HTTP 503" in refusal(lambda: azure.key_vault(vault), SecretsUnreachable).message
    server.failures.clear()
    server.failures["/secrets/K"] = [(403, {})]
    error = refusal(lambda: azure.key_vault(vault), ConfigError)
    assert "HTTP 403" in error.message
    assert "Key Vault Secrets User" in error.hint
    missing = Secret("azure-key-vault", "Nothing", server.url)
    assert "no such secret" in refusal(lambda: azure.key_vault(missing), ConfigError).message
    server.secrets["Empty"] = ""
    empty = Secret("azure-key-vault", "Empty", server.url)
    assert "is empty" in refusal(lambda: azure.key_vault(empty), ConfigError).message


def test_an_identity_that_is_refused_has_a_sentence(
    server: Cloud, vault: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong client secret of Entra ID, and none at all."""
    from azure.identity import EnvironmentCredential

    monkeypatch.setenv("AZURE_CLIENT_SECRET", "wrong")
    identity = EnvironmentCredential(authority=server.url, disable_instance_discovery=True)
    monkeypatch.setattr(azure, "credential", lambda: identity)
    error = refusal(azure.database_token, ConfigError)
    assert "Entra ID gives no token" in error.message
    monkeypatch.delenv("AZURE_CLIENT_SECRET")
    monkeypatch.setattr(azure, "credential", EnvironmentCredential)
    assert "az login" in refusal(azure.database_token, ConfigError).hint


def test_a_vault_that_is_gone_is_unreachable(
    vault: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not a mistake of the config: trying again may help."""
    from azure.keyvault.secrets import SecretClient

    with cloud(tmp_path) as other:
        gone = SecretClient(other.url, azure.credential(), retry_total=0)
    monkeypatch.setattr(azure, "client", lambda _: gone)
    assert refusal(lambda: azure.key_vault(vault), SecretsUnreachable).retry


def test_a_machine_has_its_identity_from_the_metadata_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens for databases come from there, with their end."""
    from azure.identity import ManagedIdentityCredential

    with cloud(tmp_path, tls=False) as metadata:
        address = f"http://127.0.0.1:{metadata.port}"
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", address)
        monkeypatch.setattr(azure, "credential", ManagedIdentityCredential)
        token, ends = azure.database_token()
    assert token == "token-1"
    assert ends > 1.7e9
    assert "resource=https" in metadata.requests[0].replace("%3A", ":").lower()


def test_databricks(server: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of a scope, and tokens for the Lakebase instance at a host."""
    secret = Secret("databricks", "K", "scope")
    refusal(lambda: databricks.scope(secret), ConfigError)
    monkeypatch.setenv("DATABRICKS_HOST", server.url)
    monkeypatch.setenv("DATABRICKS_TOKEN", server.issue())
    assert secrets.resolve(secret) == PASSWORD
    assert "HTTP 404" in str(
        refusal(lambda: databricks.scope(Secret("databricks", "Q", "scope")), ConfigError)
    )
    server.failures["secrets/get"] = [(503, {})]
    refusal(lambda: databricks.scope(secret), SecretsUnreachable)
    token, _ = databricks.database_token("instance-localhost.database.example.com")
    assert token == "token-2"
    error = refusal(lambda: databricks.database_token("instance-x.database"), ConfigError)
    assert "Lakebase instance" in error.hint


def test_google(server: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret's latest version, with the identity of a service account's file."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "client_email": "bronze@example.com",
        "private_key": key.decode(),
        "token_uri": f"{server.url}/token",
    }
    path = tmp_path / "account.json"
    path.write_text(json.dumps(account))
    monkeypatch.setattr(google, "ENDPOINT", server.url)
    secret = Secret("google-secret-manager", "K", "project")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    assert secrets.resolve(secret) == PASSWORD
    missing = Secret("google-secret-manager", "Q", "project")
    assert "HTTP 404" in str(refusal(lambda: google.secret_manager(missing), ConfigError))
    server.failures["/K/"] = [(503, {})]
    refusal(lambda: google.secret_manager(secret), SecretsUnreachable)


def test_aws(server: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret of Secrets Manager, and a signed token for RDS, which needs no request."""
    from moto.server import ThreadedMotoServer

    secret = Secret("aws-secrets-manager", "K", "eu-central-1")
    moto: Any = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        refusal(lambda: aws.secrets_manager(secret), ConfigError)
        aws._client("secretsmanager", secret.place).create_secret(Name="K", SecretString=PASSWORD)
        assert secrets.resolve(secret) == PASSWORD
        for host, region in (("db", "eu-west-1"), ("db.x.eu-north-1.rds.amazonaws.com", "")):
            monkeypatch.setenv("AWS_REGION", region)
            token, _ = aws.database_token(host, "5432", "ada")
            assert token.startswith(f"{host}:5432/?Action=connect&DBUser=ada")
            assert (region or "eu-north-1") in token
    finally:
        moto.stop()
    aws._client.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    refusal(lambda: aws.secrets_manager(secret), SecretsUnreachable)
