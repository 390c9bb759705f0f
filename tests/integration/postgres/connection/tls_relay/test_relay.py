"""The relay: TLS is verified as by libpq, every byte arrives, and nothing is left behind."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, quote, urlsplit

import connectorx as cx
import psycopg
import pytest
import trustme
from psycopg.conninfo import make_conninfo

from bronze.demo.server import Server
from bronze.errors import ConfigError, SourceRefused, SourceUnreachable
from bronze.model.columns import Column, DeltaType
from bronze.model.locations import Origin
from bronze.postgres import statement
from bronze.postgres.connection.parameters import parameters
from bronze.postgres.connection.tls_relay import relay as relay_module
from bronze.postgres.connection.tls_relay.relay import is_needed, relay
from bronze.postgres.copy import packed_reader
from bronze.postgres.copy.rows_reader import _url
from tests.support.tls_proxy import TlsProxy

LONG_RESULT = "SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, {rows}) AS i"


OpenProxy = Callable[..., TlsProxy]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    """The CA that the clients trust."""
    return trustme.CA()


@pytest.fixture(scope="module")
def roots(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file with that CA's certificate."""
    path = tmp_path_factory.mktemp("roots") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def proxy_for(server: Server, ca: trustme.CA) -> Iterator[OpenProxy]:
    """Opens TLS proxies for that PostgreSQL, by default with a certificate for localhost."""
    proxies: list[TlsProxy] = []

    def open_proxy(
        *names: str,
        issuer: trustme.CA = ca,
        demand: bool = False,
        family: socket.AddressFamily = socket.AF_INET,
    ) -> TlsProxy:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.set_alpn_protocols(["postgresql"])
        issuer.issue_cert(*(names or ("localhost",))).configure_cert(tls)
        if demand:
            tls.verify_mode = ssl.CERT_REQUIRED
            ca.configure_trust(tls)
        proxies.append(TlsProxy(server.port, tls, family))
        return proxies[-1]

    yield open_proxy
    for proxy in proxies:
        proxy.close()


@pytest.fixture(autouse=True)
def _no_thread_remains(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("bronze-relay")]


def params_for(
    port: int, roots: str = "", mode: str = "verify-full", **more: str
) -> dict[str, str]:
    """Connection parameters for a server on 127.0.0.1 with the host name localhost."""
    server = {"host": "localhost", "hostaddr": "127.0.0.1", "port": str(port), "user": "postgres"}
    trust = {"sslrootcert": roots} if roots else {}
    return {**server, "dbname": "postgres", "sslmode": mode, **trust, **more}


def url(near: dict[str, str]) -> str:
    """The URL for connectorx."""
    secret = f":{near['password']}" if "password" in near else ""
    place = f"{near['user']}{secret}@{quote(near['host'], safe='')}:{near['port']}"
    return f"postgresql://{place}/{near['dbname']}?sslmode={near['sslmode']}"


def read(near: dict[str, str], query: str) -> list[dict[str, Any]]:
    """The rows that connectorx reads."""
    rows: list[dict[str, Any]] = cx.read_sql(url(near), query, return_type="arrow").to_pylist()
    return rows


def digest(params: dict[str, str], query: str) -> str:
    """The SHA-256 of the bytes that psycopg's COPY reads."""
    hasher = hashlib.sha256()
    with (
        psycopg.connect(make_conninfo(**params)) as connection,
        connection.cursor().copy(f"COPY ({query}) TO STDOUT".encode()) as copy,
    ):
        for block in copy:
            hasher.update(block)
    return hasher.hexdigest()


@pytest.mark.parametrize(
    ("params", "answer"),
    [
        ({"host": "db", "sslmode": "verify-full"}, True),
        ({"host": "db", "sslmode": "verify-ca"}, True),
        ({"host": "db", "sslmode": "require"}, True),
        ({"host": "db", "sslmode": "prefer"}, False),
        ({"host": "db", "sslmode": "allow"}, False),
        ({"host": "db", "sslmode": "disable"}, False),
        ({"host": "db"}, False),
        ({"host": "db", "sslrootcert": "system"}, True),
        ({"host": "/run/postgresql", "sslmode": "verify-full"}, False),
        ({"sslmode": "verify-full"}, False),
        ({"hostaddr": "10.0.0.1", "sslmode": "verify-ca"}, True),
        ({"host": "/run/postgresql,db", "sslmode": "verify-full"}, True),
    ],
)
def test_a_relay_is_needed_where_tls_is_required(params: dict[str, str], answer: bool) -> None:
    """A relay is needed where libpq requires TLS, which it never does on a Unix socket."""
    assert is_needed(params) is answer


def test_environment_variables_of_libpq_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """So connectorx is never less strict than psycopg."""
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert is_needed({"host": "db"})
    assert not is_needed({"host": "db", "sslmode": "prefer"})
    monkeypatch.setenv("PGCHANNELBINDING", "require")
    with pytest.raises(ConfigError, match="channel_binding"), relay({"host": "db"}):
        pass


def test_verify_full_reads_over_tls(proxy_for: OpenProxy, roots: str) -> None:
    """A read by connectorx uses TLS, with the host name in the certificate."""
    proxy = proxy_for()
    with relay(params_for(proxy.port, roots, application_name="app")) as near:
        assert read(near, "SELECT 42 AS answer") == [{"answer": 42}]
    assert proxy.sessions[-1] == ("TLSv1.3", "postgresql")
    assert near["application_name"] == "app"
    assert near["sslmode"] == "disable"
    assert not {"sslrootcert", "hostaddr"} & near.keys()


def test_direct_negotiation_starts_with_the_handshake(proxy_for: OpenProxy, roots: str) -> None:
    """With ``sslnegotiation=direct`` the client sends no request for TLS first."""
    proxy = proxy_for()
    with relay(params_for(proxy.port, roots, sslnegotiation="direct")) as near:
        assert read(near, "SELECT 42 AS answer") == [{"answer": 42}]
    assert proxy.sessions[-1] == ("TLSv1.3", "postgresql")


def test_a_certificate_for_another_host_is_refused(proxy_for: OpenProxy, roots: str) -> None:
    """It is refused with verify-full, and accepted with verify-ca and require."""
    proxy = proxy_for("db.example")
    refused = relay(params_for(proxy.port, roots))
    with (
        pytest.raises(SourceRefused, match="is not for the host name localhost") as caught,
        refused,
    ):
        pass
    assert caught.value.hint
    for mode in ("verify-ca", "require"):
        with relay(params_for(proxy.port, roots, mode)) as near:
            assert read(near, "SELECT 1 AS one") == [{"one": 1}]


def test_a_certificate_for_another_address_is_refused(proxy_for: OpenProxy, roots: str) -> None:
    """An IP address as host must be in the certificate as well."""
    with relay(params_for(proxy_for("127.0.0.1").port, roots, host="127.0.0.1")):
        pass
    refused = relay(params_for(proxy_for("127.0.0.2").port, roots, host="127.0.0.1"))
    with pytest.raises(SourceRefused, match=r"is not for the host name 127\.0\.0\.1"), refused:
        pass


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca", "require"])
def test_a_certificate_of_another_ca_is_refused(
    proxy_for: OpenProxy, roots: str, mode: str
) -> None:
    """It is refused in every mode if the DSN has a CA, with require as well."""
    proxy = proxy_for(issuer=trustme.CA())
    with (
        pytest.raises(SourceRefused, match="unknown CA"),
        relay(params_for(proxy.port, roots, mode)),
    ):
        pass


def test_require_without_a_ca_accepts_any_certificate(
    proxy_for: OpenProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a CA, require encrypts the connection and verifies nothing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    proxy = proxy_for("db.example", issuer=trustme.CA())
    with relay(params_for(proxy.port, mode="require")) as near:
        assert read(near, "SELECT 1 AS one") == [{"one": 1}]
    assert proxy.sessions


def test_default_certificate_files_are_used(
    proxy_for: OpenProxy, ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CA and the client's certificate are read from ~/.postgresql, as by libpq."""
    monkeypatch.setenv("HOME", str(tmp_path))
    proxy = proxy_for(demand=True)
    with (
        pytest.raises(ConfigError, match=r"root\.crt does not exist"),
        relay(params_for(proxy.port)),
    ):
        pass
    folder = tmp_path / ".postgresql"
    folder.mkdir()
    ca.cert_pem.write_to_path(folder / "root.crt")
    identity = ca.issue_cert("carol@example.com", common_name="carol")
    identity.cert_chain_pems[0].write_to_path(folder / "postgresql.crt")
    identity.private_key_pem.write_to_path(folder / "postgresql.key")
    with relay(params_for(proxy.port)) as near:
        assert read(near, "SELECT 1 AS one") == [{"one": 1}]
    assert proxy.clients[-1] == "carol"


def test_a_server_without_tls_is_refused(server: Server, roots: str) -> None:
    """Nothing is read without TLS."""
    with (
        pytest.raises(SourceRefused, match="the server has no TLS"),
        relay(params_for(server.port, roots)),
    ):
        pass


def test_unreachable_hosts_are_reported_one_by_one(roots: str) -> None:
    """The error has for each host: connection refused, no answer, or unknown host name."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        params = params_for(1, roots, host="localhost,127.0.0.1,no.such.host.invalid")
        params |= {"hostaddr": "", "connect_timeout": "1"}
        params["port"] = f"1,{mute.getsockname()[1]},5432"
        with pytest.raises(SourceUnreachable) as caught, relay(params):
            pass
    message = str(caught.value)
    assert "localhost:1: Connection refused" in message
    assert ": no answer in time" in message
    assert "no.such.host.invalid:5432: the host name is unknown" in message


@pytest.mark.parametrize("answer", [b"", b"E", b"S"])
def test_a_server_that_breaks_off_the_handshake_is_unreachable(roots: str, answer: bytes) -> None:
    """The server closes the connection or sends invalid bytes before TLS is established."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(8)
            sock.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    with (
        listener,
        pytest.raises(SourceUnreachable, match=r"the server (closed|did not)"),
        relay(params_for(listener.getsockname()[1], roots)),
    ):
        pass
    thread.join()


def test_the_first_host_that_answers_is_used(proxy_for: OpenProxy, roots: str) -> None:
    """Hosts are tried in order; all connections go to the first that answers."""
    first, second = proxy_for(), proxy_for()
    params = params_for(1, roots, host="localhost,localhost,localhost")
    params |= {"hostaddr": "", "port": f"1,{first.port},{second.port}"}
    with relay(params) as near:
        assert [read(near, "SELECT 1 AS one") for _ in range(3)] == [[{"one": 1}]] * 3
    assert len(first.sessions) >= 4
    assert not second.sessions


@pytest.mark.parametrize(
    ("conninfo", "family"),
    [
        ("postgresql://postgres@[::1]:{port}/postgres", socket.AF_INET6),
        ("postgresql://postgres@[::1]:1,127.0.0.1:{port}/postgres", socket.AF_INET),
        ("postgresql://postgres@localhost:1,localhost:{port}/postgres", socket.AF_INET),
        ("postgresql://postgres@localhost:{port}/postgres?hostaddr=127.0.0.1", socket.AF_INET),
        ("host=localhost,127.0.0.1 port={port} user=postgres dbname=postgres", socket.AF_INET),
    ],
)
def test_the_url_has_the_relay_as_its_only_host(
    proxy_for: OpenProxy,
    roots: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    conninfo: str,
    family: socket.AddressFamily,
) -> None:
    """However the DSN names its servers, connectorx connects to the relay only."""
    if family == socket.AF_INET6 and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    # The path of a socket can have about a hundred characters.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("u")))
    proxy = proxy_for("localhost", "127.0.0.1", "::1", family=family)
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", roots)
    params = parameters(Origin("test", conninfo.format(port=proxy.port)))
    with relay(params) as near:
        relay_url = _url(near)
        assert cx.read_sql(relay_url, "SELECT 42 AS answer", return_type="arrow").num_rows == 1
    host = quote(near["host"], safe="")
    assert relay_url.startswith(f"postgresql://postgres@{host}:5432/postgres?")
    assert parse_qs(urlsplit(relay_url).query)["sslmode"] == ["disable"]


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_client_certificates_are_presented(
    proxy_for: OpenProxy, roots: str, ca: trustme.CA, tmp_path: Path
) -> None:
    """The client certificate is sent; a missing or untrusted one is reported as the cause."""
    proxy = proxy_for(demand=True)
    for name, issuer in (("carol", ca), ("mallory", trustme.CA())):
        identity = issuer.issue_cert(f"{name}@example.com", common_name=name)
        identity.private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")

    def with_certificate(name: str) -> dict[str, str]:
        path = str(tmp_path / f"{name}.pem")
        return params_for(proxy.port, roots, sslcert=path, sslkey=path)

    with relay(with_certificate("carol")) as near:
        assert read(near, "SELECT 1 AS one") == [{"one": 1}]
    assert set(proxy.clients) == {"carol"}
    for name, reason in (
        ("mallory", "the server does not trust the CA of the client certificate"),
        ("nobody", "the server requires a client certificate"),
    ):
        with (
            relay(with_certificate(name)) as near,
            pytest.raises(psycopg.OperationalError, match=reason),
        ):
            psycopg.connect(make_conninfo(**near))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sslmode": "verify-ca", "sslrootcert": "system"}, "sslrootcert=system"),
        ({"sslrootcert": "/no/such/file"}, "/no/such/file does not exist"),
        ({"sslmode": "require", "sslrootcert": "/no/such/file"}, "does not exist"),
        ({"sslrootcert": __file__}, "cannot be used: NO_CERTIFICATE"),
        ({"sslcert": "ROOTS", "sslkey": "/no/key"}, "key /no/key cannot be used: No such file"),
        ({"sslcert": __file__, "sslkey": __file__}, "cannot be used: it is not in PEM format"),
        ({"sslmode": "prefer"}, "needs no relay"),
        ({"host": ""}, "only hostaddr"),
        ({"host": "", "hostaddr": ""}, "needs a host name"),
        ({"host": "/run/postgresql", "hostaddr": ""}, "needs a host name"),
        ({"host": "a,b"}, "different numbers"),
        ({"port": "x"}, "port"),
        ({"connect_timeout": "soon"}, "connect_timeout"),
        (
            {"host": "a,b", "hostaddr": "", "target_session_attrs": "primary"},
            "target_session_attrs",
        ),
    ],
)
def test_contradicting_parameters_are_refused(
    roots: str, change: dict[str, str], message: str
) -> None:
    """Parameters that contradict each other are refused, never ignored."""
    change = {key: value.replace("ROOTS", roots) for key, value in change.items()}
    with pytest.raises(ConfigError, match=message), relay({**params_for(1, roots), **change}):
        pass


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("channel_binding", "require"),
        ("gssencmode", "require"),
        ("ssl_max_protocol_version", "TLSv1.2"),
        ("ssl_min_protocol_version", "TLSv1"),
        ("sslcertmode", "require"),
        ("sslcompression", "1"),
        ("sslcrl", "/some/file"),
        ("sslcrldir", "/some/folder"),
        ("sslkeylogfile", "/some/file"),
        ("sslnegotiation", "later"),
        ("sslsni", "0"),
        ("ssl_of_tomorrow", "1"),
    ],
)
def test_unsupported_parameters_are_refused(
    roots: str, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    """The error names the parameter, also if it comes from the environment."""
    params = params_for(1, roots, **{key: value})
    with pytest.raises(ConfigError, match=f"{key} is not supported") as caught, relay(params):
        pass
    assert "Leave it out" in caught.value.hint
    if key not in ("sslkeylogfile", "ssl_of_tomorrow"):
        monkeypatch.setenv(f"PG{key.replace('_', '').upper()}", value)
        with (
            pytest.raises(ConfigError, match=f"{key} is not supported"),
            relay(params_for(1, roots)),
        ):
            pass


def test_supported_values_are_accepted(proxy_for: OpenProxy, roots: str) -> None:
    """Values that require nothing more than the relay does are accepted."""
    options = {
        "channel_binding": "prefer",
        "gssencmode": "disable",
        "ssl_min_protocol_version": "TLSv1.3",
        "sslcertmode": "allow",
        "sslcompression": "0",
        "sslcrl": "",
        "sslnegotiation": "postgres",
        "sslsni": "1",
    }
    with relay(params_for(proxy_for().port, roots, **options)) as near:
        assert not options.keys() & near.keys()


def test_a_revocation_list_is_refused(
    roots: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revocation list in libpq's default place is not ignored."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql" / "root.crl").touch()
    refused = relay(params_for(1, roots))
    with pytest.raises(ConfigError, match=r"root\.crl is not supported"), refused:
        pass


def test_results_arrive_unchanged(proxy_for: OpenProxy, server: Server, roots: str) -> None:
    """20 MB arrive unchanged, in four connections at once through two relays of one process."""
    query = LONG_RESULT.format(rows=20_000)
    expected = digest({**params_for(server.port, mode="disable")}, query)
    proxy = proxy_for()
    params = params_for(proxy.port, roots)
    with relay(params) as one, relay(params) as two, ThreadPoolExecutor(4) as pool:
        assert set(pool.map(digest, [one, two, one, two], [query] * 4)) == {expected}


def test_requests_arrive_unchanged(proxy_for: OpenProxy, roots: str) -> None:
    """5 MB sent to the server arrive unchanged."""
    text = "".join(chr(97 + i % 26) for i in range(5_000_000))
    with (
        relay(params_for(proxy_for().port, roots)) as near,
        psycopg.connect(make_conninfo(**near)) as connection,
    ):
        row = connection.execute("SELECT md5(%s)", [text]).fetchone()
    assert row == (hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(),)


def test_a_slow_client_makes_the_server_wait(
    proxy_for: OpenProxy, server: Server, roots: str
) -> None:
    """While the client does not read, the server waits: the relay does not buffer the result."""
    query = f"COPY ({LONG_RESULT.format(rows=100_000)}) TO STDOUT"
    with (
        relay(params_for(proxy_for().port, roots, application_name="slow")) as near,
        psycopg.connect(server.dsn(), autocommit=True) as watcher,
    ):
        connection = psycopg.connect(make_conninfo(**near))
        connection.pgconn.send_query(query.encode())
        state: Any = None
        deadline = time.monotonic() + 10
        while state != ("ClientWrite",) and time.monotonic() < deadline:
            time.sleep(0.2)
            state = watcher.execute(
                "SELECT wait_event FROM pg_stat_activity WHERE application_name = 'slow'"
            ).fetchone()
        connection.close()
    assert state == ("ClientWrite",)


def test_a_cut_server_connection_closes_the_client_connection(
    proxy_for: OpenProxy, roots: str
) -> None:
    """The server's side is cut in the middle of a result."""
    proxy = proxy_for()
    query = LONG_RESULT.format(rows=100_000)
    with relay(params_for(proxy.port, roots)) as near:
        connection = psycopg.connect(make_conninfo(**near))
        with connection.cursor().copy(f"COPY ({query}) TO STDOUT".encode()) as copy:
            next(iter(copy))
            proxy.cut()
            with pytest.raises(psycopg.OperationalError):
                list(copy)
        assert connection.closed
        connection.close()


def test_later_failures_reach_the_client(
    proxy_for: OpenProxy, roots: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An error after the start of the relay reaches the client as an error of PostgreSQL."""
    proxy = proxy_for()
    with relay(params_for(proxy.port, roots, password="open-sesame")) as near:
        proxy.close()
        with (
            caplog.at_level(logging.DEBUG),
            pytest.raises(psycopg.OperationalError, match="Connection refused"),
        ):
            psycopg.connect(make_conninfo(**near))
    assert "Connection refused" in caplog.text
    assert "open-sesame" not in caplog.text


def test_the_end_of_the_block_releases_everything(proxy_for: OpenProxy, roots: str) -> None:
    """Connections, threads, the socket and its folder are closed or deleted."""
    before = set(threading.enumerate())
    proxy = proxy_for()
    with relay(params_for(proxy.port, roots)) as near:
        folder = Path(near["host"])
        assert folder.stat().st_mode & 0o777 == 0o700
        connection = psycopg.connect(make_conninfo(**near))
        mute = socket.socket(socket.AF_UNIX)
        mute.connect(str(folder / ".s.PGSQL.5432"))
    with pytest.raises((psycopg.OperationalError, OSError)):
        connection.execute("SELECT 1")
    connection.close()
    # An accepted connection is closed, one in the queue is reset.
    with mute, suppress(ConnectionResetError):
        assert mute.recv(1) == b""
    assert not folder.exists()
    proxy.close()
    assert set(threading.enumerate()) <= before


def test_an_error_in_the_block_releases_everything(proxy_for: OpenProxy, roots: str) -> None:
    """The error is raised, and the folder is deleted."""
    with pytest.raises(ZeroDivisionError), relay(params_for(proxy_for().port, roots)) as near:
        raise ZeroDivisionError
    assert not Path(near["host"]).exists()


def test_the_end_does_not_wait_for_a_silent_server(roots: str, proxy_for: OpenProxy) -> None:
    """A connection to a server that does not answer does not delay the end of the block."""
    proxy = proxy_for()
    with relay(params_for(proxy.port, roots)) as near:
        proxy.answer = b""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{near['host']}/.s.PGSQL.5432")
            time.sleep(0.1)
            start = time.monotonic()
    assert time.monotonic() - start < 5


# A PostgreSQL with TLS, if the machine has one.


def _tls_binaries() -> Path | None:
    folders = [
        *Path("/usr/lib/postgresql").glob("*/bin"),
        Path(shutil.which("pg_config") or "").parent,
    ]
    for folder in (folder for folder in folders if (folder / "initdb").exists()):
        command = [str(folder / "pg_config"), "--configure"]
        if "openssl" in subprocess.run(command, capture_output=True, text=True, check=True).stdout:
            return folder
    return None


@contextmanager
def _folder_for_postgres() -> Iterator[tuple[Path, dict[str, Any]]]:
    identity: dict[str, Any] = {}
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        import pwd

        user = pwd.getpwnam("postgres")
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(folder, user.pw_uid, user.pw_gid)
    try:
        yield folder, identity
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tls_port(ca: trustme.CA) -> Iterator[int]:
    """The port of a PostgreSQL with TLS, where carol uses a certificate and sally a password."""
    binaries = _tls_binaries() or pytest.skip("no PostgreSQL with TLS on this machine")
    with _folder_for_postgres() as (folder, identity):

        def run(program: str, *arguments: str) -> None:
            command = [str(binaries / program), *arguments]
            silent: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            subprocess.run(command, cwd=folder, check=True, **silent, **identity)

        run("initdb", "-U", "postgres", "-A", "trust", "-N", "-D", "data")
        data = folder / "data"
        certificate = ca.issue_cert("localhost")
        files = {
            "server.key": certificate.private_key_pem.bytes(),
            "server.crt": certificate.cert_chain_pems[0].bytes(),
            "ca.crt": ca.cert_pem.bytes(),
            "pg_hba.conf": b"hostssl all carol all cert\nhostssl all sally all scram-sha-256\n"
            b"hostssl all all all trust\n",
        }
        for name, content in files.items():
            (data / name).write_bytes(content)
            (data / name).chmod(0o600)
            os.chown(data / name, data.stat().st_uid, data.stat().st_gid)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        options = f"-p {port} -c ssl=on -c ssl_ca_file=ca.crt -c fsync=off"
        options += " -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        run("pg_ctl", "-w", "-D", "data", "-l", "log", "-o", options, "start")
        try:
            yield port
        finally:
            run("pg_ctl", "-w", "-D", "data", "-m", "immediate", "stop")


def test_postgres_reports_an_encrypted_session(tls_port: int, roots: str) -> None:
    """pg_stat_ssl shows that connectorx's session is encrypted."""
    query = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    with relay(params_for(tls_port, roots)) as near:
        assert read(near, query) == [{"ssl": True, "version": "TLSv1.3"}]


def test_certificates_and_passwords_log_in(
    tls_port: int, roots: str, ca: trustme.CA, tmp_path: Path
) -> None:
    """A role logs in with a client certificate, another one with a SCRAM password."""
    identity = ca.issue_cert("carol@example.com", common_name="carol")
    pem = tmp_path / "carol.pem"
    identity.private_key_and_cert_chain_pem.write_to_path(pem)
    query = "SELECT current_user::text AS me"
    with (
        relay(params_for(tls_port, roots)) as near,
        psycopg.connect(make_conninfo(**near), autocommit=True) as connection,
    ):
        connection.execute("CREATE USER carol")
        connection.execute("CREATE USER sally PASSWORD 'open-sesame'")
    carol = params_for(tls_port, roots, user="carol", sslcert=str(pem), sslkey=str(pem))
    with relay(carol) as near:
        assert read(near, query) == [{"me": "carol"}]
    sally = params_for(tls_port, roots, user="sally", password="open-sesame")
    with relay(sally) as near:
        assert read(near, query) == [{"me": "sally"}]


def test_packed_reads_need_no_relay(proxy_for: OpenProxy, roots: str) -> None:
    """Libpq encrypts them, and refuses a certificate for another host with verify-full."""
    column = Column("n", "n", "int", DeltaType("int"), "same", "n", "n", "", "n::text")
    query = statement.select([column], "(SELECT 42 AS n) AS t")

    def rows(proxy: TlsProxy) -> list[Any]:
        origin = Origin("test", make_conninfo(**params_for(proxy.port, roots)))
        parts = packed_reader.read_rows(origin, (), query, ["true"], [column], "t")
        return [row for frame, _ in parts for row in frame.rows()]

    proxy = proxy_for()
    with mock.patch.object(relay_module, "relay", side_effect=AssertionError("a relay")):
        assert rows(proxy) == [(42,)]
        with pytest.raises(SourceRefused, match="cannot be used over TLS"):
            rows(proxy_for("db.example"))
    assert {version for version, _ in proxy.sessions} == {"TLSv1.3"}


@pytest.mark.parametrize("mode", ["prefer", "verify-full"])
def test_a_packed_read_that_is_cut_can_be_retried(
    proxy_for: OpenProxy, roots: str, mode: str
) -> None:
    """Libpq calls it an error of TLS, which says nothing about the parameters of TLS."""
    column = Column("n", "n", "int", DeltaType("int"), "same", "n", "n", "", "n::text")
    rows = "(SELECT n, pg_sleep(CASE WHEN n > 5 THEN 60 ELSE 0 END) FROM generate_series(1, 9) n)"
    query = statement.select([column], f"{rows} AS t")
    proxy = proxy_for()
    given = params_for(proxy.port, roots if mode == "verify-full" else "", mode=mode)
    origin = Origin("test", make_conninfo(**given))
    parts = packed_reader.read_rows(origin, (), query, ["n < 3", "n > 7"], [column], "t")
    assert next(parts)[0]["n"].to_list() == [1, 2]
    proxy.cut()
    with pytest.raises(SourceUnreachable) as raised:
        list(parts)
    assert raised.value.retry
