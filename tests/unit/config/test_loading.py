"""bronze.toml: what is wrong in it is said with its place, and no secret leaves its place."""

from __future__ import annotations

import base64
import dataclasses
import http.server
import json
import pickle
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from azure.core.credentials import AccessToken
from typer.testing import CliRunner

from bronze import secrets
from bronze.cli.main import app
from bronze.config import loading
from bronze.dsn import parse_dsn
from bronze.errors import ConfigError
from bronze.ingest import pipeline
from bronze.ingest.worker import work
from bronze.model.locations import Secret
from bronze.protection import keyring
from tests.conftest import Source

PASSWORD = "pa55-w0rd"
DSN = "postgresql://me@localhost/db"
SOUND: dict[str, Any] = {"source": {"dsn": DSN}, "lake": {"root": "lake"}}


BATCH = {"pattern": "batch", "cursor": "at"}


def refused(*wrong: tuple[str, Any], base: dict[str, Any] = SOUND) -> ConfigError:
    """The error for a config that is sound but for values put at dotted places."""
    document = json.loads(json.dumps(base))
    for place, value in wrong:
        *path, last = place.split("/")
        section = document
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    with pytest.raises(ConfigError) as caught:
        loading.parse(document)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


def test_a_sound_config_is_taken() -> None:
    """What the other tests break is sound to begin with."""
    assert loading.parse(SOUND).lake.root == "lake"


@pytest.mark.parametrize(
    ("place", "nearest"),
    [
        ("tabels", "tables"),
        ("source/consistancy", "consistency"),
        ("source/shema", "schema"),
        ("source/pool/maximum", "max"),
        ("source/password/secrt", "secret"),
        ("source/dsn", "secret"),
        ("lake/rot", "root"),
        ("lake/options/key", "secret"),
        ("run/worker", "workers"),
        ("secrets/provder", "provider"),
        ("tables/orders/patern", "pattern"),
        ("tables/run/patern", "pattern"),
        ("tables/source/patern", "pattern"),
        ("tables/pool/decimal", "decimals"),
        ("tables/t/cursr", "cursor"),
        ("tables/t/overlapp", "overlap"),
        ("tables/t/delete", "deletes"),
        ("tables/t/ondelete", "on_delete"),
    ],
)
def test_an_unknown_key_names_its_place_and_the_nearest_known_one(place: str, nearest: str) -> None:
    """At each level of the config, whatever the tables are called."""
    value: Any = {"secrt": "X"} if place in ("source/dsn", "lake/options/key") else "x"
    error = refused((place, value))
    dotted = place.replace("/", ".") + (".secrt" if isinstance(value, dict) else "")
    assert f"unknown key {dotted} (did you mean {nearest}?)" in error.message


def test_a_key_like_no_other_lists_the_known_ones() -> None:
    """Where no known key is near, all of them are named."""
    error = refused(("run/zzz", 1))
    assert "unknown key run.zzz (known are workers, memory, engine," in error.message


@pytest.mark.parametrize("misspelt", [DSN, {"secret": "DSN"}])
@pytest.mark.parametrize("more", [{}, {"pool": {"max": 4}}])
def test_a_misspelt_dsn_is_called_so(misspelt: object, more: dict[str, Any]) -> None:
    """A source without a dsn is one source with a wrong key, not a list of sources."""
    base = {"source": {"name": "pg", "dns": misspelt, **more}, "lake": {"root": "lake"}}
    error = refused(base=base)
    assert "unknown key source.dns (did you mean dsn?)" in error.message
    assert "source.dsn is missing" in error.message


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("source/dsn", 5, "source.dsn"),
        ("source/schema", 5, "source.schema"),
        ("source/pool/max", 1, "max is at least min + 2"),
        ("source/pool", {"min": 5, "max": 4}, "at least min"),
        ("source/consistency", "sometimes", "source.consistency"),
        ("source/row_security", "off", "source.row_security"),
        ("source/lock_timeout", "soon", 'a time looks like "30s"'),
        ("source/lock_timeout", -1, "source.lock_timeout"),
        ("lake/schema", "a/b", "lake.schema"),
        ("lake", "lake", "lake"),
        ("run/workers", "four", "run.workers"),
        ("run/workers", 0, "run.workers"),
        ("run/memory", "lots", 'a size looks like "500MB"'),
        ("run/memory", "1MB", "memory is at least"),
        ("run/engine", "spark", "run.engine"),
        ("run/max_retries", -1, "run.max_retries"),
        ("secrets/provider", "vault", "secrets.provider"),
        ("secrets/provider", "file", 'provider "file" needs folder'),
        ("secrets/provider", "azure-key-vault", 'provider "azure-key-vault" needs vault'),
        ("tables", 3, "tables"),
        ("tables/t/priority", 10, "tables.t.priority"),
        ("tables/t/pattern", "hourly", "tables.t.pattern"),
        ("tables/t", {"cursor": "at"}, 'cursor is for the patterns "batch" and "micro_batch" only'),
        ("tables/t", {"overlap": "1h"}, 'overlap is for the patterns "batch"'),
        ("tables/t", {"deletes": "ignore"}, 'deletes is for the patterns "batch"'),
        ("tables/t", {"pattern": "batch", "overlap": "1h"}, 'cursor = "xmin" needs none'),
        ("tables/t", {**BATCH, "overlap": "a while"}, 'a time looks like "30s"'),
        ("tables/t", {**BATCH, "overlap": -1}, "tables.t.overlap"),
        ("tables/t", {**BATCH, "deletes": "sometimes"}, 'a time looks like "30s"'),
        ("tables/t", {**BATCH, "deletes": -5}, "tables.t.deletes"),
        ("tables/t/on_delete", "keep", "tables.t.on_delete: input should be 'mark' or 'remove'"),
        ("tables/t/key", 5, "tables.t.key"),
        ("tables/t/rename", {"a": 5}, "tables.t.rename.a"),
        ("tables/t/target", "a/b", "tables.t.target"),
        ("tables/t/decimals", {"n": "decimal(39,2)"}, "the precision is 1 to 38"),
        ("tables/t/decimals", {"n": "money"}, 'it looks like "decimal(38,10)"'),
    ],
)
def test_a_wrong_value_names_its_place(place: str, value: object, said: str) -> None:
    """A value of a wrong type or out of its range is refused before anything is touched."""
    error = refused((place, value))
    assert said in error.message
    assert place.split("/")[0] in error.message


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ({}, ("full_refresh", "xmin", None, "detect", "mark")),
        ({"pattern": "batch"}, ("batch", "xmin", None, "detect", "mark")),
        ({**BATCH, "overlap": "1h"}, ("batch", "at", 3600, "detect", "mark")),
        ({**BATCH, "deletes": "1d"}, ("batch", "at", None, 86400, "mark")),
        ({**BATCH, "deletes": "ignore"}, ("batch", "at", None, "ignore", "mark")),
        (
            {"pattern": "micro_batch", "deletes": 90, "on_delete": "remove"},
            ("micro_batch", "xmin", None, 90, "remove"),
        ),
        ({"on_delete": "remove"}, ("full_refresh", "xmin", None, "detect", "remove")),
    ],
)
def test_how_a_table_is_taken(own: dict[str, Any], found: tuple[object, ...]) -> None:
    """The defaults, and intervals in seconds."""
    taken = loading.parse({**SOUND, "tables": {"t": own}}).table("source", "public", "t")
    names = ("pattern", "cursor", "overlap", "deletes", "on_delete")
    assert tuple(getattr(taken, name) for name in names) == found
    assert taken.method == found[0]


def test_a_wrong_value_of_deletes_says_what_it_may_be() -> None:
    """The words and the times that it may be, under the name that it has in the config."""
    error = refused(("tables/t", {**BATCH, "deletes": "sometimes"}))
    for said in ("tables.t.deletes: ", "'detect' or 'ignore'", '"30s", "5m" or "2h"'):
        assert said in error.message
    assert "literal" not in error.message


def test_one_key_may_be_given_as_a_string() -> None:
    """A key of one column needs no list."""
    for key in ("id", ["id"]):
        taken = loading.parse({**SOUND, "tables": {"t": {"key": key}}}).table("source", "s", "t")
        assert taken.key == ("id",)


def test_all_faults_are_said_at_once() -> None:
    """Nobody has to mend a config fault by fault."""
    error = refused(("run/workers", 0), ("lake/rot", "x"), ("tables/t/priority", 0))
    for place in ("run.workers", "lake.rot", "tables.t.priority"):
        assert place in error.message


def test_a_missing_section_is_named() -> None:
    """A config without a source or a lake says which is missing."""
    error = refused(base={"source": {"dsn": DSN}})
    assert "lake is missing" in error.message
    assert "source is missing" in refused(base={"lake": {"root": "lake"}}).message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There is no config file"),
        (b"[source\ndsn = 1", "is not valid TOML"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_config_is_named(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    """A missing file, one that is not TOML, and one that is not text each say so."""
    path = tmp_path / "my.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        loading.load(path)
    assert said in caught.value.message
    assert str(path) in caught.value.message


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    """A folder in the config's place is an error like any other."""
    with pytest.raises(ConfigError, match="cannot be read"):
        loading.load(tmp_path)


@pytest.mark.parametrize("dsn", ["postgresql://me:pa55-w0rd@[::1", "host=x nonsense=pa55-w0rd"])
def test_an_unreadable_connection_string_is_not_repeated(dsn: str) -> None:
    """The error names the source, not what is in the connection string."""
    settings = loading.parse({**SOUND, "source": {"name": "shop", "dsn": dsn}})
    with pytest.raises(ConfigError, match="source shop cannot be read") as caught:
        settings.origin("shop")
    assert PASSWORD not in caught.value.message + caught.value.hint
    assert "postgresql://" in caught.value.hint


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("postgresql://me:s3/cret@db.internal:5432/shop", "a / in its user or password"),
        ("postgresql://me:s3cr@et@db.internal/shop", "an @ in its user or password"),
        ("postgresql://me:12/s3cret@db/shop?sslmode=require", "a / in its user or password"),
        ("postgresql://me:s3%zzcret@db/shop", "cannot be read"),
        ("postgresql://s3cret:s3cret", "its port is not a number"),
        ("host=db port=s3cret", "its port is not a number"),
        ("host=db password=s3 cret", "cannot be read"),
    ],
)
def test_a_connection_string_that_is_misread_is_not_told(
    dsn: str, said: str, tmp_path: Path
) -> None:
    """Where libpq would take a part of the password for a host, a port or a database, no word of
    it is in what is said, whichever command it is.
    """
    config = tmp_path / "bronze.toml"
    config.write_text(
        f'[source]\nname = "shop"\ndsn = "{dsn}"\nschema = "public"\n[lake]\nroot = "lake"\n'
        'schema = "b"\n[tables.t]\npattern = "streaming"\n'
    )
    runner = CliRunner()
    commands = [[name, "-c", str(config)] for name in ("check", "run", "stream", "verify")]
    for command in (*commands, ["init", "--dsn", dsn]):
        result = runner.invoke(app, command)
        assert result.exit_code == 2, command
        told = result.output + result.stderr
        assert said in " ".join(told.split()), command
        assert "cret" not in told.replace("secret", ""), command


def test_a_connection_string_may_have_anything_percent_encoded() -> None:
    """What is written as it should be is read."""
    dsn = "postgresql://me:a%2Fb%40c@h1:1,h2:2/my%40db?options=-c%20x%3Da@b"
    given = parse_dsn(dsn, "shop")
    assert (given["password"], given["dbname"], given["port"]) == ("a/b@c", "my@db", "1,2")
    assert parse_dsn("postgresql:///shop?host=/run&user=a", "shop")["host"] == "/run"


def file_with(tmp_path: Path, source: str) -> Path:
    """A config file with the lines of a source."""
    path = tmp_path / "bronze.toml"
    path.write_text(f'{source}\n[lake]\nroot = "lake"\n')
    return path


@pytest.mark.parametrize(
    "section",
    [
        "[source]",
        '[source]\nname = "pg/1"',
        "[source.pg]",
        '[source."pg/1"]',
        '[source.pg]\nname = "x"',
    ],
)
def test_a_password_in_the_config_stays_there(tmp_path: Path, section: str) -> None:
    """It is in no repr and no pickle, and is found again in the file, however it is written."""
    dsn = f"postgresql://me:{PASSWORD}@localhost/db"
    settings = loading.load(file_with(tmp_path, f'{section}\ndsn = "{dsn}"'))
    (name,) = settings.source
    origin = settings.origin(name)
    for shown in (repr(settings), str(settings), repr(origin), str(pickle.dumps(origin))):
        assert PASSWORD not in shown
    assert origin.dsn is not None
    assert secrets.resolve(origin.dsn) == dsn


def test_a_password_in_a_mapping_is_refused() -> None:
    """Without a file, workers could not find it again: the hint says how to give it."""
    dsn = f"postgresql://me:{PASSWORD}@localhost/db"
    with pytest.raises(ConfigError, match="has a password in it") as caught:
        loading.parse({**SOUND, "source": {"dsn": dsn}}).origin("source")
    assert PASSWORD not in caught.value.message + caught.value.hint
    assert "password = { secret = " in caught.value.hint


def test_keys_of_the_lake_are_in_no_repr() -> None:
    """Neither a key written into the config's options nor one named there is shown."""
    options = {"access_key": PASSWORD, "other": {"secret": "LAKE_KEY"}}
    settings = loading.parse({**SOUND, "lake": {"root": "s3://b/x", "options": options}})
    for shown in (repr(settings), repr(settings.lake), repr(settings.place("bronze", "bz_t"))):
        assert PASSWORD not in shown


class Watching(ThreadPoolExecutor):
    """An executor that keeps what a worker would be sent."""

    def __init__(self) -> None:
        super().__init__(1)
        self.seen: list[bytes] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Keeps the pickles and the reprs of a unit of work."""
        if fn is work:
            self.seen += [pickle.dumps(args[0]), repr(args[0]).encode()]
        return super().submit(fn, *args, **kwargs)


@pytest.mark.parametrize("provider", ["env", "file", "config"])
def test_a_connection_string_can_be_secret(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    """It is looked up where the config says, and is in no unit and in no file of the lake."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    dsn = source.dsn.replace("postgres@", f"postgres:{PASSWORD}@")
    (tmp_path / "DSN").write_text(f"{dsn}\n")
    monkeypatch.setenv("DSN", dsn)
    if provider == "config":
        settings = loading.load(file_with(tmp_path, f'[source]\ndsn = "{dsn}"'))
    else:
        settings = source.settings(
            source={"dsn": {"secret": "DSN"}},
            secrets={"provider": provider, "folder": str(tmp_path) if provider == "file" else ""},
        )
    with Watching() as pool:
        result = pipeline.run(settings, pool=pool)
    assert result.exit_code == 0
    assert len(pool.seen) == 2
    files = [path.read_bytes() for path in (tmp_path / "lake").rglob("*") if path.is_file()]
    # A file and a log entry of the table, and as many of each of the books and the audit log.
    assert len(files) == 8
    shown = [*pool.seen, *files, repr(settings).encode(), repr(result).encode()]
    assert not [text for text in shown if PASSWORD.encode() in text]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (Secret("env", "NO_SUCH_SECRET"), "environment variable NO_SUCH_SECRET is not set"),
        (Secret("file", "nothing", "/nowhere"), "secret file /nowhere/nothing cannot be read"),
    ],
)
def test_a_missing_secret_names_its_place(place: Secret, said: str) -> None:
    """The error says which secret was looked for where, and what to do."""
    with pytest.raises(ConfigError, match=said) as caught:
        secrets.resolve(place)
    assert "[secrets]" in caught.value.hint
    assert caught.value.exit_code == 2


@dataclass
class Vault:
    """A local server that speaks Key Vault's protocol."""

    url: str
    ca: str
    values: dict[str, str]
    asked: list[str] = field(default_factory=list)


@contextmanager
def vault(folder: Path) -> Iterator[Vault]:
    """The protocol on the wire: a challenge, a bearer token, a JSON document."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            known.asked.append(self.path)
            assert query.startswith("api-version=")
            if self.headers.get("Authorization") != "Bearer token-1":
                challenge = (
                    'Bearer authorization="https://login.microsoftonline.com/tenant",'
                    ' resource="https://vault.azure.net"'
                )
                return self.answer(401, {}, challenge)
            name = path.split("/")[2]
            if name not in known.values:
                return self.answer(404, {"error": {"code": "SecretNotFound", "message": "no"}})
            where = f"{known.url}/secrets/{name}/1"
            return self.answer(200, {"value": known.values[name], "id": where, "attributes": {}})

        def answer(self, status: int, body: dict[str, Any], challenge: str = "") -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            if challenge:
                self.send_header("WWW-Authenticate", challenge)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with served(Handler, folder) as port:
        known = Vault(f"https://localhost:{port}", str(folder / "ca.pem"), {})
        yield known


@contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler], folder: Path) -> Iterator[int]:
    """A server over TLS in a thread; its authority is in ``ca.pem`` in the folder."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Credential:
    """An identity that gets a token without asking anybody."""

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        """The token that the vault knows."""
        return AccessToken("token-1", 2**31)


@contextmanager
def workspace(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A local server that speaks the protocol of Databricks' secrets: where it is, and what it was
    asked.
    """
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.headers.get("Authorization") != "Bearer token-2":
                return self.answer(403, {"error_code": "PERMISSION_DENIED"})
            path, _, query = self.path.partition("?")
            assert path == "/api/2.0/secrets/get"
            given = urllib.parse.parse_qs(query)
            if given != {"scope": ["my scope"], "key": ["K1"]}:
                return self.answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST"})
            value = base64.b64encode(PASSWORD.encode()).decode()
            return self.answer(200, {"key": "K1", "value": value})

        def answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with served(Handler, folder) as port:
        yield f"https://localhost:{port}/", asked


def test_databricks_is_asked_by_its_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret of a scope is fetched over TLS; what is wrong is said, and nothing leaks."""
    found = Secret("databricks", "K1", "my scope")
    with pytest.raises(ConfigError, match="DATABRICKS_HOST and DATABRICKS_TOKEN"):
        secrets.resolve(found)
    with workspace(tmp_path) as (url, asked):
        monkeypatch.setenv("DATABRICKS_HOST", url)
        monkeypatch.setenv("DATABRICKS_TOKEN", "token-2")
        with pytest.raises(ConfigError, match="did not give"):
            secrets.resolve(found)
        assert asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert secrets.resolve(found) == PASSWORD
        with pytest.raises(ConfigError, match="scope my scope: HTTP 404"):
            secrets.resolve(Secret("databricks", "K2", "my scope"))
        monkeypatch.setenv("DATABRICKS_TOKEN", "token-3")
        with pytest.raises(ConfigError, match="HTTP 403") as caught:
            secrets.resolve(found)
    assert "token-3" not in caught.value.message + caught.value.hint


def test_a_master_key_may_be_in_key_vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config names the vault; the key wraps data keys as one from the environment does."""
    key = base64.b64encode(bytes(range(32))).decode()
    document = SOUND | {
        "secrets": {"provider": "azure-key-vault", "vault": "https://localhost"},
        "protection": {"key": {"secret": "KMaster"}, "previous": [{"secret": "KOld"}]},
    }
    first, old = loading.parse(document).masters
    assert (first.provider, first.name, old.name) == ("azure-key-vault", "KMaster", "KOld")
    with vault(tmp_path) as known:
        known.values["KMaster"] = key
        options = {"connection_verify": known.ca, "verify_challenge_resource": False}
        monkeypatch.setitem(
            secrets.PROVIDERS,
            "azure-key-vault",
            lambda given: secrets.key_vault(
                dataclasses.replace(given, place=known.url), Credential(), **options
            ),
        )
        assert keyring.master(first) == bytes(range(32))
        made = keyring.new(keyring.master(first), "t", "c", "encrypt")
        assert len(keyring.unwrapped(made, (first,))) == 64


def test_key_vault_is_asked_by_its_protocol(tmp_path: Path) -> None:
    """The current version of a secret is fetched; a missing one is said, and nothing leaks."""
    with vault(tmp_path) as known:
        known.values["KConnectionString"] = PASSWORD
        options = {
            "connection_verify": known.ca,
            "verify_challenge_resource": False,
            "retry_total": 0,
        }
        found = Secret("azure-key-vault", "KConnectionString", known.url)
        assert secrets.key_vault(found, Credential(), **options) == PASSWORD
        assert known.asked[0].startswith("/secrets/KConnectionString/?api-version=")
        missing = Secret("azure-key-vault", "Nothing", known.url)
        with pytest.raises(ConfigError, match="did not give the secret Nothing") as caught:
            secrets.key_vault(missing, Credential(), **options)
    assert known.url in caught.value.message
    assert "Key Vault Secrets User" in caught.value.hint
    with pytest.raises(ConfigError, match="did not give the secret"):
        secrets.key_vault(found, Credential(), **options)
