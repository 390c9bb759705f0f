"""Verified TLS for clients that cannot verify: a relay inside this process.

connectorx refuses ``sslmode=verify-ca`` and ``verify-full``, and checks nothing under ``require``.
Here it connects without TLS to a Unix socket that only this user can open (to 127.0.0.1 where the
platform has no Unix sockets), and every such connection goes on to PostgreSQL through TLS that
is verified as libpq would have done::

    with relay(params) as near:
        read(near)  # host, port and sslmode of ``near`` lead through the relay

A client in this process must let go of the GIL while it waits, or both wait for ever. connectorx
does so while it reads; it does not for ``partition_on``, nor does psycopg's ``cancel()`` (its
``cancel_safe()`` does).

Where libpq and this relay differ:

- SCRAM runs without channel binding, because client and server do not share one TLS connection;
  ``channel_binding=require`` is refused. libpq itself, seeing the server offer it without TLS,
  takes that for an attack and gives up: the relay is for clients that cannot verify.
- All connections go to the one address that answered at the start, even if the DSN names several
  hosts or a name has several addresses: a snapshot lives on one server.
- An ``sslrootcert`` that does not exist is refused under ``require`` too.
- A host that is an IP address must be among the certificate's subject alternative names.
"""

from __future__ import annotations

import logging
import os
import selectors
import shutil
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bronze.errors import ConfigError, SourceError, SourceRefused, SourceUnreachable

_log = logging.getLogger(__name__)

_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE
_SSL_REQUEST: Final = struct.pack("!II", 8, 80877103)
_REQUEST_BYTES: Final = 16 * 1024
_RESULT_BYTES: Final = 256 * 1024
_PATIENCE: Final = 30.0
_VERIFYING: Final = ("require", "verify-ca", "verify-full")
_CONSUMED: Final = {"host", "hostaddr", "port", "load_balance_hosts", "requirepeer"}
_CONSUMED_TLS: Final = {"channel_binding", "gssencmode", "requiressl"}
_TLS_VERSIONS: Final = {
    "TLSv1": ssl.TLSVersion.TLSv1,
    "TLSv1.1": ssl.TLSVersion.TLSv1_1,
    "TLSv1.2": ssl.TLSVersion.TLSv1_2,
    "TLSv1.3": ssl.TLSVersion.TLSv1_3,
}
_ALERTS: Final = {
    "TLSV1_ALERT_UNKNOWN_CA": "the server does not know the CA of our client certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server demands a client certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the server does not accept our client certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "our client certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "our client certificate was revoked",
}

# poll() needs no file descriptor of its own and, unlike select(), takes descriptors above 1024.
_Selector: Callable[[], selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)


@dataclass(frozen=True)
class _Target:
    """One server of the DSN: ``host`` is what its certificate names, ``address`` where it is."""

    host: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.host or self.address}:{self.port}"


@dataclass(frozen=True)
class _Upstream:
    """The server that connections go to; timeouts are in seconds."""

    target: _Target
    family: socket.AddressFamily
    address: tuple[object, ...]
    context: ssl.SSLContext
    direct: bool
    timeout: float
    options: tuple[tuple[int, int, int], ...]


class _Stopped(Exception):
    """The relay is closing."""


def needed(params: Mapping[str, str]) -> bool:
    """Says whether a client without TLS verification needs a relay for these parameters.

    Args:
        params: libpq's connection parameters; absent ones are taken from libpq's environment
            variables (``PGSSLMODE``, ``PGSSLROOTCERT``, …), as libpq does.

    Returns:
        True for ``require``, ``verify-ca`` and ``verify-full`` (which ``sslrootcert=system``
        implies), unless every host is a Unix socket, where PostgreSQL never uses TLS.
    """
    hosts = _setting(params, "host").split(",")
    local = not _setting(params, "hostaddr") and all(map(_is_local, hosts))
    return _mode(params) in _VERIFYING and not local


@contextmanager
def relay(params: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Opens a relay to the first server that answers, and yields the parameters to use it by.

    Any number of threads and processes of this user may connect through it, until the block
    ends; then their connections are cut.

    Args:
        params: libpq's connection parameters, completed by libpq's environment variables.
            ``connect_timeout`` is in seconds, and 30 if absent.

    Yields:
        ``params`` without the keys that concern TLS, with ``host`` (a directory, to be
        percent-encoded in a URL, or 127.0.0.1), ``port`` and ``sslmode=disable``. A password
        file does not match this host: look passwords up before.

    Raises:
        ConfigError: the parameters contradict each other or cannot be honoured, or a
            certificate, key or CA file cannot be read.
        SourceRefused: the server has no TLS, or its certificate is not accepted.
        SourceUnreachable: no server of the DSN could be reached.
    """
    _check(params)
    upstream = _reach(params)
    with ExitStack() as stack:
        listener, near = _listen(stack, has_identity=_identity(params) is not None)
        stop, bell = socket.socketpair()
        stack.enter_context(stop)
        stack.enter_context(bell)
        thread = threading.Thread(
            target=_accept, args=(listener, upstream, stop), name="bronze-relay", daemon=True
        )
        thread.start()
        stack.callback(thread.join)
        stack.callback(bell.close)
        gone = _CONSUMED | _CONSUMED_TLS
        kept = {k: v for k, v in params.items() if k not in gone and not k.startswith("ssl")}
        yield {**kept, **near, "sslmode": "disable"}


# What the parameters say.


def _setting(params: Mapping[str, str], key: str) -> str:
    if key in params:
        return params[key]
    name = key if key == "connect_timeout" else key.replace("_", "")
    return os.environ.get(f"PG{name.upper()}", "")


def _mode(params: Mapping[str, str]) -> str:
    implied = "verify-full" if _setting(params, "sslrootcert") == "system" else "prefer"
    return _setting(params, "sslmode") or implied


def _is_local(host: str) -> bool:
    return host == "" or host.startswith(("/", "@"))


def _check(params: Mapping[str, str]) -> None:
    mode = _mode(params)
    if mode not in _VERIFYING:
        raise ConfigError(f"sslmode={mode} needs no relay")
    if _setting(params, "sslrootcert") == "system" and mode != "verify-full":
        raise ConfigError(
            f"sslrootcert=system cannot be used with sslmode={mode}",
            hint="any holder of a public certificate would pass: use sslmode=verify-full",
        )
    if _setting(params, "channel_binding") == "require":
        raise ConfigError(
            "channel_binding=require cannot be honoured for parallel reads",
            hint="use sslmode=verify-full, which proves the server's identity, without it",
        )
    if _setting(params, "sslcertmode") == "require":
        raise ConfigError("sslcertmode=require cannot be honoured for parallel reads")
    several = "," in _setting(params, "host") + _setting(params, "hostaddr")
    if several and _setting(params, "target_session_attrs") not in ("", "any"):
        raise ConfigError(
            "target_session_attrs cannot be honoured for several hosts in parallel reads",
            hint="name the one host to read from",
        )


def _targets(params: Mapping[str, str]) -> list[_Target]:
    hosts = _setting(params, "host").split(",")
    addresses = _setting(params, "hostaddr").split(",")
    if addresses == [""]:
        addresses = hosts
    elif hosts == [""]:
        hosts = hosts * len(addresses)
    ports = _setting(params, "port").split(",")
    if len(ports) == 1:
        ports = ports * len(hosts)
    if not len(hosts) == len(addresses) == len(ports):
        raise ConfigError("the DSN has different numbers of host, hostaddr and port")
    if any(map(_is_local, addresses)):
        raise ConfigError("TLS needs a host name or address, and the DSN has a host without")
    if _mode(params) == "verify-full" and "" in hosts:
        raise ConfigError("sslmode=verify-full needs a host name, and the DSN has only hostaddr")
    try:
        numbers = [int(port or 5432) for port in ports]
    except ValueError:
        raise ConfigError("the DSN has a port that is not a number") from None
    return [_Target(*each) for each in zip(hosts, addresses, numbers, strict=True)]


def _timeout(params: Mapping[str, str]) -> float:
    try:
        seconds = int(_setting(params, "connect_timeout") or 0)
    except ValueError:
        raise ConfigError("connect_timeout is not a whole number of seconds") from None
    return float(seconds) if seconds > 0 else _PATIENCE


def _socket_options(params: Mapping[str, str]) -> tuple[tuple[int, int, int], ...]:
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if _setting(params, "keepalives") != "0":
        options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
    for key, name in (
        ("keepalives_idle", "TCP_KEEPIDLE"),
        ("keepalives_interval", "TCP_KEEPINTVL"),
        ("keepalives_count", "TCP_KEEPCNT"),
        ("tcp_user_timeout", "TCP_USER_TIMEOUT"),
    ):
        value = _setting(params, key)
        if value.isdecimal() and int(value) and hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), int(value)))
    return tuple(options)


def _default_file(name: str) -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", "")) / "postgresql" / name
    return Path("~/.postgresql").expanduser() / name


def _context(params: Mapping[str, str]) -> ssl.SSLContext:
    # Not create_default_context, which adds checks that libpq does not make.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["postgresql"])
    context.check_hostname = _mode(params) == "verify-full"
    try:
        lowest = _setting(params, "ssl_min_protocol_version")
        highest = _setting(params, "ssl_max_protocol_version")
        if lowest:
            context.minimum_version = _TLS_VERSIONS[lowest]
        if highest:
            context.maximum_version = _TLS_VERSIONS[highest]
    except KeyError as error:
        raise ConfigError(
            f"{error.args[0]} is no version of TLS", hint=f"known: {', '.join(_TLS_VERSIONS)}"
        ) from None
    _trust(context, params)
    identity = _identity(params)
    if identity is not None:
        certificate, key = identity
        with _readable(f"the client certificate {certificate} with the key {key}"):
            # A password of None would make OpenSSL ask on the terminal.
            context.load_cert_chain(certificate, key, _setting(params, "sslpassword"))
    return context


def _trust(context: ssl.SSLContext, params: Mapping[str, str]) -> None:
    given = _setting(params, "sslrootcert")
    roots = Path(given) if given else _default_file("root.crt")
    if given == "system":
        context.set_default_verify_paths()
    elif roots.exists():
        with _readable(f"the CA file {roots}"):
            context.load_verify_locations(roots)
    elif given or _mode(params) != "require":
        raise ConfigError(
            f"the CA file {roots} does not exist",
            hint="set sslrootcert to the CA's certificate, or to 'system' for public CAs",
        )
    else:
        context.verify_mode = ssl.CERT_NONE
    folder = _setting(params, "sslcrldir") or None
    file = _setting(params, "sslcrl") or None
    if file is None and folder is None and _default_file("root.crl").is_file():
        file = str(_default_file("root.crl"))
    if file or folder:
        with _readable(f"the revocation list {file or folder}"):
            context.load_verify_locations(cafile=file, capath=folder)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN


def _identity(params: Mapping[str, str]) -> tuple[Path, Path] | None:
    if _setting(params, "sslcertmode") == "disable":
        return None
    certificate = Path(_setting(params, "sslcert") or _default_file("postgresql.crt"))
    key = Path(_setting(params, "sslkey") or _default_file("postgresql.key"))
    return (certificate, key) if certificate.exists() else None


@contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        reason = error.reason or "it is not in PEM format, or its password is wrong"
        raise ConfigError(f"{what} cannot be used: {reason}") from None
    except OSError as error:
        raise ConfigError(f"{what} cannot be used: {error.strerror}") from None


# The far side: a verified connection to PostgreSQL.


def _reach(params: Mapping[str, str]) -> _Upstream:
    context, timeout, options = _context(params), _timeout(params), _socket_options(params)
    direct = _setting(params, "sslnegotiation") == "direct"
    failures: list[str] = []
    for target in _targets(params):
        try:
            found = socket.getaddrinfo(target.address, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            failures.append(f"{target}: the host name is unknown")
            continue
        for family, _, _, _, address in found:
            upstream = _Upstream(target, family, address, context, direct, timeout, options)
            try:
                _dial(upstream).close()
            except SourceUnreachable as error:
                failures.append(error.message)
            else:
                return upstream
    raise SourceUnreachable(
        "; ".join(dict.fromkeys(failures)),
        hint="check the host and port, the network and the firewall",
    )


def _dial(upstream: _Upstream, stop: socket.socket | None = None) -> ssl.SSLSocket:
    deadline = time.monotonic() + upstream.timeout
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(socket.socket(upstream.family, socket.SOCK_STREAM))
            _connect(raw, upstream, stop, deadline)
            if not upstream.direct:
                _ask_for_tls(raw, upstream.target, stop, deadline)
            sock = stack.enter_context(
                upstream.context.wrap_socket(
                    raw,
                    server_hostname=upstream.target.host or None,
                    do_handshake_on_connect=False,
                )
            )
            _handshake(sock, stop, deadline)
        except OSError as error:
            raise _explain(error, upstream.target) from None
        except (UnicodeError, ValueError):
            raise ConfigError(f"{upstream.target.host} is not a host name") from None
        if upstream.direct and sock.selected_alpn_protocol() is None:
            raise SourceRefused(f"{upstream.target}: the server does not speak PostgreSQL")
        stack.pop_all()
        return sock


def _connect(
    sock: socket.socket, upstream: _Upstream, stop: socket.socket | None, deadline: float
) -> None:
    sock.setblocking(False)
    for option in upstream.options:
        sock.setsockopt(*option)
    with suppress(BlockingIOError):
        sock.connect(upstream.address)
    _wait_for(sock, _WRITE, stop, deadline)
    failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        raise OSError(failure, os.strerror(failure))


def _ask_for_tls(
    sock: socket.socket, target: _Target, stop: socket.socket | None, deadline: float
) -> None:
    sock.sendall(_SSL_REQUEST)
    _wait_for(sock, _READ, stop, deadline)
    # One byte and no more: what came with it would not be protected by TLS.
    answer = sock.recv(1)
    if answer == b"N":
        raise SourceRefused(
            f"{target}: the server has no TLS",
            hint="set ssl = on in PostgreSQL, or choose another sslmode",
        )
    if answer == b"":
        raise SourceUnreachable(f"{target}: the server closed the connection")
    if answer != b"S":
        raise SourceUnreachable(f"{target}: the server did not answer the request for TLS")


def _handshake(sock: ssl.SSLSocket, stop: socket.socket | None, deadline: float) -> None:
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            _wait_for(sock, _READ, stop, deadline)
        except ssl.SSLWantWriteError:
            _wait_for(sock, _WRITE, stop, deadline)


def _explain(error: OSError, target: _Target) -> SourceError:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in (62, 64):
            name = target.host or target.address
            return SourceRefused(
                f"{target}: the server's certificate is not for the host name {name}",
                hint="use the name in the certificate as host, or sslmode=verify-ca",
            )
        if error.verify_code in (2, 18, 19, 20, 21):
            return SourceRefused(
                f"{target}: the server's certificate is from an unknown CA",
                hint="set sslrootcert to the certificate of the CA that signed it",
            )
        return SourceRefused(
            f"{target}: the server's certificate is refused: {error.verify_message}"
        )
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        reason = _ALERTS.get(error.reason or "", f"TLS failed: {error.reason}")
        return SourceRefused(f"{target}: {reason}")
    if isinstance(error, TimeoutError):
        return SourceUnreachable(f"{target}: no answer in time")
    if isinstance(error, ssl.SSLError) or not error.strerror:
        return SourceUnreachable(f"{target}: the server closed the connection")
    return SourceUnreachable(f"{target}: {error.strerror}")


# The near side: the clients.


def _listen(stack: ExitStack, *, has_identity: bool) -> tuple[socket.socket, dict[str, str]]:
    if hasattr(socket, "AF_UNIX"):
        # mkdtemp makes it for this user alone, who thereby guards the socket as well.
        folder = tempfile.mkdtemp(prefix="bronze-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(f"{folder}/.s.PGSQL.5432")
        near = {"host": folder, "port": "5432"}
    elif has_identity:
        raise ConfigError(
            "a client certificate cannot be used for parallel reads on this platform",
            hint="every user of this machine could use it; log in with a password",
        )
    else:
        listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind(("127.0.0.1", 0))
        near = {"host": "127.0.0.1", "port": str(listener.getsockname()[1])}
    listener.setblocking(False)
    listener.listen(128)
    return listener, near


def _accept(listener: socket.socket, upstream: _Upstream, stop: socket.socket) -> None:
    threads: list[threading.Thread] = []
    with suppress(_Stopped):
        while True:
            _wait({listener: _READ}, stop)
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                # Most often out of file descriptors: the client stays in the queue meanwhile.
                _log.warning("the relay cannot accept a connection: %s", error.strerror)
                _wait({}, stop, 0.1)
                continue
            threads = [thread for thread in threads if thread.is_alive()]
            threads += _start(client, upstream, stop)
    for thread in threads:
        thread.join()


def _start(
    client: socket.socket, upstream: _Upstream, stop: socket.socket
) -> list[threading.Thread]:
    thread = threading.Thread(
        target=_serve, args=(client, upstream, stop), name="bronze-relay-client", daemon=True
    )
    try:
        thread.start()
    except RuntimeError as error:
        _log.warning("the relay cannot serve a connection: %s", error)
        client.close()
        return []
    return [thread]


def _serve(client: socket.socket, upstream: _Upstream, stop: socket.socket) -> None:
    with client, suppress(_Stopped):
        client.setblocking(False)
        try:
            server = _dial(upstream, stop)
        except SourceError as error:
            return _tell(client, error, stop)
        with server:
            up = _Flow(client, server, _REQUEST_BYTES)
            down = _Flow(server, client, _RESULT_BYTES)
            try:
                _pump(up, down, stop)
            except OSError as error:
                # In TLS 1.3 the server judges our certificate only after the handshake.
                if isinstance(error, ssl.SSLError) and not down.begun:
                    return _tell(client, _explain(error, upstream.target), stop)
                _log.debug("a relayed connection was cut: %s", type(error).__name__)


def _tell(client: socket.socket, error: SourceError, stop: socket.socket) -> None:
    """Answers the client as PostgreSQL would, so that it can say more than "closed"."""
    _log.warning("a relayed connection failed: %s", error)
    state = b"08004" if isinstance(error, SourceRefused) else b"08001"
    fields = b"SFATAL\0VFATAL\0C%b\0M%b\0\0" % (state, error.message.encode())
    with suppress(OSError):
        client.sendall(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        # Closing with the client's request unread would discard the answer.
        deadline = time.monotonic() + 5
        while True:
            _wait_for(client, _READ, stop, deadline)
            if not client.recv(4096):
                break


class _Flow:
    """Bytes on their way from one socket to another, never more than ``size`` of them."""

    def __init__(self, source: socket.socket, sink: socket.socket, size: int) -> None:
        self._source = source
        self._sink = sink
        self._view = memoryview(bytearray(size))
        self._start = self._end = 0
        self._closed = False
        self.begun = False

    @property
    def finished(self) -> bool:
        """Whether the source has closed and all it sent has been passed on."""
        return self._closed and self._start == self._end

    def step(self, waits: dict[socket.socket, int]) -> bool:
        """Fills the buffer, then empties it, as far as that goes without waiting.

        Returns:
            Whether it got through, so that there may be more to do at once; else ``waits`` has
            the events to wait for.
        """
        drained = self._start < self._end or self._fill(waits)
        while self._start < self._end:
            part = self._view[self._start : self._end]
            sent = _attempt(self._sink.send, part, self._sink, _WRITE, waits)
            if sent is None:
                return False
            self._start += sent
            self.begun = True
        return drained

    def _fill(self, waits: dict[socket.socket, int]) -> bool:
        self._start = self._end = 0
        while self._end < len(self._view) and not self._closed:
            room = self._view[self._end :]
            try:
                count = _attempt(self._source.recv_into, room, self._source, _READ, waits)
            except OSError:
                if self._end == 0:
                    raise
                # What came before the failure, PostgreSQL's last words perhaps, goes first.
                return True
            if count is None:
                return False
            self._end += count
            self._closed = count == 0
        return True


def _attempt(
    operation: Callable[[memoryview], int],
    part: memoryview,
    sock: socket.socket,
    event: int,
    waits: dict[socket.socket, int],
) -> int | None:
    # TLS may have to write in order to read, and the other way round.
    try:
        return operation(part)
    except BlockingIOError:
        waits[sock] |= event
    except ssl.SSLWantReadError:
        waits[sock] |= _READ
    except ssl.SSLWantWriteError:
        waits[sock] |= _WRITE
    return None


def _pump(up: _Flow, down: _Flow, stop: socket.socket) -> None:
    while not (up.finished or down.finished):
        waits: dict[socket.socket, int] = defaultdict(int)
        more = down.step(waits)
        try:
            more = up.step(waits) or more
        except OSError:
            # A server that takes no more may have said why.
            down.step(waits)
            raise
        _wait(waits, stop, 0 if more else None)


def _wait_for(sock: socket.socket, event: int, stop: socket.socket | None, deadline: float) -> None:
    if not _wait({sock: event}, stop, max(0, deadline - time.monotonic())):
        raise TimeoutError


def _wait(
    waits: Mapping[socket.socket, int], stop: socket.socket | None, timeout: float | None = None
) -> bool:
    with _Selector() as selector:
        for sock, events in waits.items():
            selector.register(sock, events)
        if stop is not None:
            selector.register(stop, _READ)
        ready = [key.fileobj for key, _ in selector.select(timeout)]
    if stop in ready:
        raise _Stopped
    return bool(ready)
