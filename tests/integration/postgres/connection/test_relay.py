"""The relay: TLS is verified as libpq would, every byte arrives, and nothing is left behind."""

from __future__ import annotations

import hashlib
import logging
import os
import select
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import connectorx as cx
import psycopg
import pytest
import trustme
from psycopg.conninfo import make_conninfo

from bronze.demo.server import Server
from bronze.errors import ConfigError, SourceRefused, SourceUnreachable
from bronze.model.locations import Origin
from bronze.postgres.connection.connect import parameters
from bronze.postgres.connection.relay import needed, relay
from bronze.postgres.copy.read import _url

LONG_RESULT = "SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, {rows}) AS i"


class Doorman:
    """Speaks TLS for a PostgreSQL that was built without it, and can be rude.

    It answers the request for TLS, or a direct handshake, and passes the rest on in the clear.
    """

    def __init__(
        self, backend: int, tls: ssl.SSLContext, family: socket.AddressFamily = socket.AF_INET
    ) -> None:
        self.backend = backend
        self.tls = tls
        self.answer = b"S"
        self.sessions: list[tuple[str | None, str | None]] = []
        self.clients: list[str] = []
        self._open: list[socket.socket] = []
        here = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        self._listener = socket.create_server((here, 0), family=family)
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Cuts every connection, without a word."""
        for sock in self._open:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Cuts everything and waits for the threads."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._open.append(sock)
                self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
                self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, suppress(OSError):
            if sock.recv(1, socket.MSG_PEEK) == b"\0":
                assert sock.recv(8) == struct.pack("!II", 8, 80877103)
                sock.sendall(self.answer)
            if self.answer != b"S":
                sock.recv(1)
                return
            with self.tls.wrap_socket(sock, server_side=True) as near:
                self._open.append(near)
                self._pass_on(near)

    def _pass_on(self, near: ssl.SSLSocket) -> None:
        self.sessions.append((near.version(), near.selected_alpn_protocol()))
        certificate: Any = near.getpeercert()
        if certificate:
            self.clients.append(dict(part[0] for part in certificate["subject"])["commonName"])
        with socket.create_connection(("127.0.0.1", self.backend)) as far:
            while True:
                ready = [near] if near.pending() else select.select([near, far], [], [])[0]
                for source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    (far if source is near else near).sendall(data)


OpenDoor = Callable[..., Doorman]


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
def door(server: Server, ca: trustme.CA) -> Iterator[OpenDoor]:
    """Opens doormen in front of that PostgreSQL; by default with a certificate for localhost."""
    doormen: list[Doorman] = []

    def open_door(
        *names: str,
        issuer: trustme.CA = ca,
        demand: bool = False,
        family: socket.AddressFamily = socket.AF_INET,
    ) -> Doorman:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.set_alpn_protocols(["postgresql"])
        issuer.issue_cert(*(names or ("localhost",))).configure_cert(tls)
        if demand:
            tls.verify_mode = ssl.CERT_REQUIRED
            ca.configure_trust(tls)
        doormen.append(Doorman(server.port, tls, family))
        return doormen[-1]

    yield open_door
    for doorman in doormen:
        doorman.close()


@pytest.fixture(autouse=True)
def _nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    yield
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("bronze-relay")]


def params_for(
    port: int, roots: str = "", mode: str = "verify-full", **more: str
) -> dict[str, str]:
    """Connection parameters for a server on 127.0.0.1, known as localhost."""
    given = {"host": "localhost", "hostaddr": "127.0.0.1", "port": str(port), "user": "postgres"}
    trust = {"sslrootcert": roots} if roots else {}
    return {**given, "dbname": "postgres", "sslmode": mode, **trust, **more}


def url(near: dict[str, str]) -> str:
    """The URL that connectorx takes."""
    secret = f":{near['password']}" if "password" in near else ""
    place = f"{near['user']}{secret}@{quote(near['host'], safe='')}:{near['port']}"
    return f"postgresql://{place}/{near['dbname']}?sslmode={near['sslmode']}"


def read(near: dict[str, str], query: str) -> list[dict[str, Any]]:
    """What connectorx reads."""
    rows: list[dict[str, Any]] = cx.read_sql(url(near), query, return_type="arrow").to_pylist()
    return rows


def digest(params: dict[str, str], query: str) -> str:
    """The SHA-256 of what psycopg's COPY reads."""
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
def test_needed(params: dict[str, str], answer: bool) -> None:
    """A relay is needed where libpq insists on TLS, which it never does on a Unix socket."""
    assert needed(params) is answer


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variables of libpq count, so connectorx is never less strict than psycopg."""
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert needed({"host": "db"})
    assert not needed({"host": "db", "sslmode": "prefer"})
    monkeypatch.setenv("PGCHANNELBINDING", "require")
    with pytest.raises(ConfigError, match="channel_binding"), relay({"host": "db"}):
        pass


def test_verify_full(door: OpenDoor, roots: str) -> None:
    """A read by connectorx goes through TLS, under the name in the certificate."""
    doorman = door()
    with relay(params_for(doorman.port, roots, application_name="here")) as near:
        assert read(near, "SELECT 42 AS answer") == [{"answer": 42}]
    assert doorman.sessions[-1] == ("TLSv1.3", "postgresql")
    assert near["application_name"] == "here"
    assert near["sslmode"] == "disable"
    assert not {"sslrootcert", "hostaddr"} & near.keys()


def test_direct(door: OpenDoor, roots: str) -> None:
    """With ``sslnegotiation=direct`` the connection starts with the handshake."""
    doorman = door()
    with relay(params_for(doorman.port, roots, sslnegotiation="direct")) as near:
        assert read(near, "SELECT 42 AS answer") == [{"answer": 42}]
    assert doorman.sessions[-1] == ("TLSv1.3", "postgresql")


def test_wrong_name(door: OpenDoor, roots: str) -> None:
    """A certificate for another host is refused under verify-full, and good for verify-ca."""
    doorman = door("db.example")
    refused = relay(params_for(doorman.port, roots))
    with (
        pytest.raises(SourceRefused, match="is not for the host name localhost") as caught,
        refused,
    ):
        pass
    assert caught.value.hint
    for mode in ("verify-ca", "require"):
        with relay(params_for(doorman.port, roots, mode)) as near:
            assert read(near, "SELECT 1 AS one") == [{"one": 1}]


def test_address(door: OpenDoor, roots: str) -> None:
    """An IP address as host must be in the certificate, too."""
    with relay(params_for(door("127.0.0.1").port, roots, host="127.0.0.1")):
        pass
    refused = relay(params_for(door("127.0.0.2").port, roots, host="127.0.0.1"))
    with pytest.raises(SourceRefused, match=r"is not for the host name 127\.0\.0\.1"), refused:
        pass


@pytest.mark.parametrize("mode", ["verify-full", "verify-ca", "require"])
def test_unknown_ca(door: OpenDoor, roots: str, mode: str) -> None:
    """A certificate of another CA is refused wherever a CA is given, under require as well."""
    doorman = door(issuer=trustme.CA())
    with (
        pytest.raises(SourceRefused, match="unknown CA"),
        relay(params_for(doorman.port, roots, mode)),
    ):
        pass


def test_require(door: OpenDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any CA, require encrypts and trusts whoever answers."""
    monkeypatch.setenv("HOME", str(tmp_path))
    doorman = door("db.example", issuer=trustme.CA())
    with relay(params_for(doorman.port, mode="require")) as near:
        assert read(near, "SELECT 1 AS one") == [{"one": 1}]
    assert doorman.sessions


def test_default_files(
    door: OpenDoor, ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CA and the client's certificate are found in ~/.postgresql, as by libpq."""
    monkeypatch.setenv("HOME", str(tmp_path))
    doorman = door(demand=True)
    with (
        pytest.raises(ConfigError, match=r"root\.crt does not exist"),
        relay(params_for(doorman.port)),
    ):
        pass
    folder = tmp_path / ".postgresql"
    folder.mkdir()
    ca.cert_pem.write_to_path(folder / "root.crt")
    identity = ca.issue_cert("carol@example.com", common_name="carol")
    identity.cert_chain_pems[0].write_to_path(folder / "postgresql.crt")
    identity.private_key_pem.write_to_path(folder / "postgresql.key")
    with relay(params_for(doorman.port)) as near:
        assert read(near, "SELECT 1 AS one") == [{"one": 1}]
    assert doorman.clients[-1] == "carol"


def test_no_tls(server: Server, roots: str) -> None:
    """A server without TLS is refused; nothing is read in the clear."""
    with (
        pytest.raises(SourceRefused, match="the server has no TLS"),
        relay(params_for(server.port, roots)),
    ):
        pass


def test_unreachable(roots: str) -> None:
    """Where nobody listens, where nobody answers and what nobody knows is said, host by host."""
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
def test_hangs_up(roots: str, answer: bytes) -> None:
    """A server that hangs up or talks nonsense while TLS is agreed on is unreachable."""
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


def test_several_hosts(door: OpenDoor, roots: str) -> None:
    """Hosts are tried in order, and all connections go to the first that answers."""
    first, second = door(), door()
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
def test_url(
    door: OpenDoor,
    roots: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    conninfo: str,
    family: socket.AddressFamily,
) -> None:
    """However the DSN names its servers, connectorx's URL has the relay as its only host."""
    if family == socket.AF_INET6 and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    # A socket's path has about a hundred characters at the most.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("u")))
    doorman = door("localhost", "127.0.0.1", "::1", family=family)
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", roots)
    given = parameters(Origin("here", conninfo.format(port=doorman.port)))
    with relay(given) as near:
        made = _url(near)
        assert cx.read_sql(made, "SELECT 42 AS answer", return_type="arrow").num_rows == 1
    host = quote(near["host"], safe="")
    assert made.startswith(f"postgresql://postgres@{host}:5432/postgres?")
    assert parse_qs(urlsplit(made).query)["sslmode"] == ["disable"]


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_client_certificate(door: OpenDoor, roots: str, ca: trustme.CA, tmp_path: Path) -> None:
    """A client certificate is shown; one that is missing or of a wrong CA is named as the cause."""
    doorman = door(demand=True)
    for name, issuer in (("carol", ca), ("mallory", trustme.CA())):
        identity = issuer.issue_cert(f"{name}@example.com", common_name=name)
        identity.private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")

    def shown(name: str) -> dict[str, str]:
        path = str(tmp_path / f"{name}.pem")
        return params_for(doorman.port, roots, sslcert=path, sslkey=path)

    with relay(shown("carol")) as near:
        assert read(near, "SELECT 1 AS one") == [{"one": 1}]
    assert set(doorman.clients) == {"carol"}
    for name, reason in (
        ("mallory", "the server does not know the CA of our client certificate"),
        ("nobody", "the server demands a client certificate"),
    ):
        with relay(shown(name)) as near, pytest.raises(psycopg.OperationalError, match=reason):
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
def test_contradictions(roots: str, change: dict[str, str], message: str) -> None:
    """What cannot be honoured is refused, never ignored."""
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
def test_unsupported(roots: str, monkeypatch: pytest.MonkeyPatch, key: str, value: str) -> None:
    """A parameter of TLS that cannot be honoured is refused by name, in the environment too."""
    params = params_for(1, roots, **{key: value})
    with pytest.raises(ConfigError, match=f"{key} cannot") as caught, relay(params):
        pass
    assert "leave it out" in caught.value.hint
    if key not in ("sslkeylogfile", "ssl_of_tomorrow"):
        monkeypatch.setenv(f"PG{key.replace('_', '').upper()}", value)
        with pytest.raises(ConfigError, match=f"{key} cannot"), relay(params_for(1, roots)):
            pass


def test_harmless(door: OpenDoor, roots: str) -> None:
    """What asks for nothing beyond what is done anyway is no reason to refuse."""
    asked = {
        "channel_binding": "prefer",
        "gssencmode": "disable",
        "ssl_min_protocol_version": "TLSv1.3",
        "sslcertmode": "allow",
        "sslcompression": "0",
        "sslcrl": "",
        "sslnegotiation": "postgres",
        "sslsni": "1",
    }
    with relay(params_for(door().port, roots, **asked)) as near:
        assert not asked.keys() & near.keys()


def test_revocation_list(roots: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revocation list where libpq looks for one is not passed over."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql" / "root.crl").touch()
    refused = relay(params_for(1, roots))
    with pytest.raises(ConfigError, match=r"root\.crl cannot be honoured"), refused:
        pass


def test_intact(door: OpenDoor, server: Server, roots: str) -> None:
    """20 MB arrive unchanged, four times at once, through two relays of one process."""
    query = LONG_RESULT.format(rows=20_000)
    expected = digest({**params_for(server.port, mode="disable")}, query)
    doorman = door()
    params = params_for(doorman.port, roots)
    with relay(params) as one, relay(params) as two, ThreadPoolExecutor(4) as pool:
        assert set(pool.map(digest, [one, two, one, two], [query] * 4)) == {expected}


def test_intact_upwards(door: OpenDoor, roots: str) -> None:
    """5 MB to the server arrive unchanged as well."""
    text = "".join(chr(97 + i % 26) for i in range(5_000_000))
    with (
        relay(params_for(door().port, roots)) as near,
        psycopg.connect(make_conninfo(**near)) as connection,
    ):
        row = connection.execute("SELECT md5(%s)", [text]).fetchone()
    assert row == (hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(),)


def test_backpressure(door: OpenDoor, server: Server, roots: str) -> None:
    """While the client does not read, the server waits: the relay does not hoard its result."""
    query = f"COPY ({LONG_RESULT.format(rows=100_000)}) TO STDOUT"
    with (
        relay(params_for(door().port, roots, application_name="slow")) as near,
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


def test_cut(door: OpenDoor, roots: str) -> None:
    """When the server's side is cut in the middle of a result, the client's side is closed."""
    doorman = door()
    query = LONG_RESULT.format(rows=100_000)
    with relay(params_for(doorman.port, roots)) as near:
        connection = psycopg.connect(make_conninfo(**near))
        with connection.cursor().copy(f"COPY ({query}) TO STDOUT".encode()) as copy:
            next(iter(copy))
            doorman.cut()
            with pytest.raises(psycopg.OperationalError):
                list(copy)
        assert connection.closed
        connection.close()


def test_later_failure(door: OpenDoor, roots: str, caplog: pytest.LogCaptureFixture) -> None:
    """What fails after the start reaches the client as PostgreSQL's own kind of error."""
    doorman = door()
    with relay(params_for(doorman.port, roots, password="open-sesame")) as near:
        doorman.close()
        with (
            caplog.at_level(logging.DEBUG),
            pytest.raises(psycopg.OperationalError, match="Connection refused"),
        ):
            psycopg.connect(make_conninfo(**near))
    assert "Connection refused" in caplog.text
    assert "open-sesame" not in caplog.text


def test_end(door: OpenDoor, roots: str) -> None:
    """At the end of the block all is gone: connections, threads, the socket and its folder."""
    before = set(threading.enumerate())
    doorman = door()
    with relay(params_for(doorman.port, roots)) as near:
        folder = Path(near["host"])
        assert folder.stat().st_mode & 0o777 == 0o700
        connection = psycopg.connect(make_conninfo(**near))
        mute = socket.socket(socket.AF_UNIX)
        mute.connect(str(folder / ".s.PGSQL.5432"))
    with pytest.raises((psycopg.OperationalError, OSError)):
        connection.execute("SELECT 1")
    connection.close()
    # Accepted or still in the queue: it is closed or reset.
    with mute, suppress(ConnectionResetError):
        assert mute.recv(1) == b""
    assert not folder.exists()
    doorman.close()
    assert set(threading.enumerate()) <= before


def test_end_after_error(door: OpenDoor, roots: str) -> None:
    """An error in the block goes through, and all is gone as well."""
    with pytest.raises(ZeroDivisionError), relay(params_for(door().port, roots)) as near:
        raise ZeroDivisionError
    assert not Path(near["host"]).exists()


def test_end_while_connecting(roots: str, door: OpenDoor) -> None:
    """A connection on its way to a server that has gone silent does not hold up the end."""
    doorman = door()
    with relay(params_for(doorman.port, roots)) as near:
        doorman.answer = b""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{near['host']}/.s.PGSQL.5432")
            time.sleep(0.1)
            start = time.monotonic()
    assert time.monotonic() - start < 5


# A real PostgreSQL with TLS, where the machine has one.


def _tls_binaries() -> Path | None:
    found = [
        *Path("/usr/lib/postgresql").glob("*/bin"),
        Path(shutil.which("pg_config") or "").parent,
    ]
    for folder in (folder for folder in found if (folder / "initdb").exists()):
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
    """The port of a PostgreSQL with TLS, where carol shows a certificate and sally a password."""
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


def test_real_session(tls_port: int, roots: str) -> None:
    """PostgreSQL itself says that connectorx's session is encrypted."""
    query = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    with relay(params_for(tls_port, roots)) as near:
        assert read(near, query) == [{"ssl": True, "version": "TLSv1.3"}]


def test_real_logins(tls_port: int, roots: str, ca: trustme.CA, tmp_path: Path) -> None:
    """A client certificate logs in, and so does a SCRAM password."""
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
