"""Passwords that change while bronze works: rotated ones, and tokens that live for seconds."""

from __future__ import annotations

import json
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import bronze
from bronze import secrets
from bronze.config.settings import Settings
from bronze.demo.server import Server
from bronze.errors import ConfigError, SourceRefused
from bronze.model.locations import Secret
from bronze.postgres.connection import allowance, connect, read_connections, tokens
from bronze.postgres.connection.read_connections import BEGIN
from tests.conftest import Source
from tests.support.content import differences
from tests.support.passwords import password_needed
from tests.support.proxy import until
from tests.support.tls_proxy import TlsProxy

ROLE = "rotated"


@pytest.fixture
def vault(
    server: Server, source: Source, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """A vault with the password of a role that has to give it; ``asked`` is how often it was."""
    held: dict[str, Any] = {"password": "one", "asked": 0}

    def key_vault(secret: Secret) -> str:
        held["asked"] += 1
        return str(held["password"])

    monkeypatch.setitem(secrets.REMOTE, "azure-key-vault", key_vault)
    secrets.forget()
    source.execute(f"CREATE ROLE {ROLE} LOGIN SUPERUSER PASSWORD 'one'")
    try:
        with password_needed(server, ROLE):
            yield held
    finally:
        secrets.forget()
        source.execute(f"REASSIGN OWNED BY {ROLE} TO postgres")
        source.execute(f"DROP ROLE {ROLE}")


def settings(source: Source, **more: Any) -> Settings:
    """A config whose password is in the vault."""
    dsn = source.dsn.replace("postgres@", f"{ROLE}@")
    password = {"secret": "K", "provider": "azure-key-vault"}
    return source.settings(
        source={"dsn": dsn, "password": password, "name": "vaulted"},
        secrets={"vault": "https://vault"},
        **more,
    )


def rotate(source: Source, vault: dict[str, Any], password: str) -> None:
    """The role gets another password, and all its sessions end."""
    source.execute(f"ALTER ROLE {ROLE} PASSWORD '{password}'")
    vault["password"] = password
    source.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", ROLE
    )


def test_a_run_after_a_rotation_asks_once_for_the_new_password(
    source: Source, vault: dict[str, Any]
) -> None:
    """And a run asks no more than twice, however many connections it makes."""
    for name in "abc":
        source.execute(f"CREATE TABLE {name} AS SELECT 1 AS id")
    for reader in ("packed", "connectorx"):
        secrets.forget()
        config = settings(source)
        shop = config.source["vaulted"].model_copy(update={"reader": reader})
        opened = bronze.Bronze(config.model_copy(update={"source": {"vaulted": shop}}))
        vault["asked"] = 0
        assert opened.run().exit_code == 0
        assert vault["asked"] == 1
        rotate(source, vault, f"after {reader}")
        assert opened.run().exit_code == 0
        assert vault["asked"] == 2
    rotate(source, vault, "unknown")
    vault["password"] = "wrong"
    with pytest.raises(SourceRefused, match="password authentication failed"):
        opened.run()


def test_reads_of_a_run_survive_a_rotation(source: Source, vault: dict[str, Any]) -> None:
    """A connection that a run opens later logs in with the password that is valid then."""
    origin = settings(source).origin("vaulted")
    with connect.connect(origin) as connection:
        connect.remember_server(origin, connection)
        source.execute(f"ALTER ROLE {ROLE} PASSWORD 'two'")
        vault["password"] = "two"
        with read_connections.read_connection(origin, (BEGIN,)) as later:
            assert later.execute("SELECT 1").fetchone() == (1,)
        assert connect.server_parameters(origin)["password"] == "two"
    connect.forget_origin(origin)


@pytest.mark.soak
def test_a_stream_survives_a_rotation(source: Source, vault: dict[str, Any]) -> None:
    """Its connections are lost, and made again with the new password; nothing is missing."""
    source.execute("CREATE TABLE s (id int PRIMARY KEY)")
    config = settings(
        source,
        tables={"s": {"pattern": "streaming"}},
        stream={"interval": 0},
        run={"retry_delay": 0, "workers": 2},
    )
    stop, messages, errors = threading.Event(), [], []

    def work() -> None:
        try:
            bronze.Bronze(config).stream(stop=stop, notify=lambda e: messages.append(e.message))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for number in range(3):
            source.execute("INSERT INTO s VALUES (%s)", number)
            until(lambda: errors or (source.table("s") / "_delta_log").is_dir())
            until(lambda: errors or differences(config) == {})
            rotate(source, vault, f"password {number}")
    finally:
        stop.set()
        thread.join(30)
    assert errors == []
    assert any("Again" in message for message in messages)


COMMAND = """
import datetime, json, pathlib, sys
path = pathlib.Path(sys.argv[1])
made = json.loads(path.read_text())
made["count"] += 1
path.write_text(json.dumps(made))
ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=made["life"])
print(json.dumps({"token": made["token"], "expires_at": ends.isoformat()}))
"""


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """The file of a command that makes tokens: the token, its life, and how many it has made."""
    path = tmp_path / "token.json"
    path.write_text(json.dumps({"token": "one", "life": 3600, "count": 0}))
    tokens._tokens.clear()
    return path


@pytest.mark.soak
def test_a_command_makes_the_passwords(
    server: Server, source: Source, vault: dict[str, Any], token: Path, tmp_path: Path
) -> None:
    """Over TLS alone; a token is used again while it lives, and made anew when it is refused."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    source.execute("CREATE TABLE t AS SELECT i AS id FROM generate_series(1, 1000) i")
    proxy = TlsProxy(server.port, context)
    database = source.dsn.rpartition("/")[2]
    dsn = f"postgresql://{ROLE}@localhost:{proxy.port}/{database}?hostaddr=127.0.0.1"
    auth = {"command": [sys.executable, "-c", COMMAND, str(token)]}

    def opened(mode: str) -> bronze.Bronze:
        tls = f"&sslmode={mode}&sslrootcert={tmp_path / 'ca.pem'}"
        given = {"dsn": dsn + tls, "auth": auth, "name": "tokens"}
        return bronze.Bronze(source.settings(source=given, run={"workers": 2}))

    def made() -> int:
        return int(json.loads(token.read_text())["count"])

    try:
        with pytest.raises(ConfigError, match="only an encrypted connection may carry"):
            opened("prefer").run()
        assert made() == 0
        lake = opened("verify-full")
        assert lake.run().exit_code == 0
        assert made() == 1
        source.execute(f"ALTER ROLE {ROLE} PASSWORD 'two'")
        token.write_text(json.dumps({"token": "two", "life": 0, "count": 1}))
        assert lake.run().exit_code == 0
        assert made() > 2  # one that has ended is for no other login
        token.write_text(json.dumps({"token": "wrong", "life": 60, "count": 0}))
        with pytest.raises(SourceRefused, match="password authentication failed") as refused:
            lake.run()
        assert "the clock of this machine" in refused.value.hint
        assert made() <= 3
    finally:
        proxy.close()
    assert not differences(source.settings())


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["/nowhere/token"], "cannot be started: No such file or directory"),
        ([sys.executable, "-c", "print('secret-output'); exit(3)"], "ended with exit code 3"),
        ([sys.executable, "-c", "print('secret-output')"], "does not print a token"),
        (
            [sys.executable, "-c", 'print(\'{"token": "secret-output"}\')'],
            "does not print a token",
        ),
    ],
)
def test_a_command_that_makes_no_token_has_a_sentence(
    source: Source, command: list[str], sentence: str
) -> None:
    """What it printed is not shown."""
    given = {"dsn": f"{source.dsn}?sslmode=require", "auth": {"command": command}}
    origin = source.settings(source={**given, "name": "tokens"}).origin("tokens")
    with pytest.raises(bronze.BronzeError) as caught:
        connect.connect(origin)
    assert sentence in caught.value.message
    assert "secret-output" not in caught.value.message + caught.value.hint
    assert not allowance._of(origin).used
