"""Connections to PostgreSQL through TLS that is verified as libpq would verify it.

Where this differs from libpq:

- Revocation lists, and whatever else `bronze.postgres.connection.libpq.check` names, are refused.
- An ``sslrootcert`` that does not exist is refused under ``require`` too.
- A host that is an IP address must be among the certificate's subject alternative names.
"""

from __future__ import annotations

import os
import selectors
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from bronze.errors import ConfigError, SourceError, SourceRefused, SourceUnreachable
from bronze.postgres.connection import libpq

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE

_SSL_REQUEST: Final = struct.pack("!II", 8, 80877103)
_ALERTS: Final = {
    "TLSV1_ALERT_UNKNOWN_CA": "the server does not know the CA of our client certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server demands a client certificate",
}

# poll() needs no file descriptor of its own and, unlike select(), takes descriptors above 1024.
_Selector: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)
_Ready = Callable[[socket.socket, int], None]


@dataclass(frozen=True)
class Server:
    """Where connections go; ``host`` is what the certificate names, ``timeout`` is in seconds."""

    name: str
    host: str
    family: socket.AddressFamily
    address: tuple[object, ...]
    context: ssl.SSLContext
    direct: bool
    timeout: float
    options: tuple[tuple[int, int, int], ...]


class Stopped(Exception):
    """What was waited for is no longer wanted."""


def reach(params: Mapping[str, str]) -> Server:
    """Finds the first server of the DSN that answers.

    Raises:
        ConfigError, SourceRefused, SourceUnreachable: as `bronze.postgres.connection.relay.relay`
        does.
    """
    libpq.check(params)
    context, options = _context(params), libpq.socket_options(params)
    timeout = libpq.timeout(params)
    direct = libpq.setting(params, "sslnegotiation") == "direct"
    failures: list[str] = []
    for host, place, port in libpq.targets(params):
        name = f"{host or place}:{port}"
        try:
            found = socket.getaddrinfo(place, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            failures.append(f"{name}: the host name is unknown")
            continue
        for family, _, _, _, address in found:
            server = Server(name, host, family, address, context, direct, timeout, options)
            try:
                dial(server).close()
            except SourceUnreachable as error:
                failures.append(error.message)
            else:
                return server
    raise SourceUnreachable(
        "; ".join(dict.fromkeys(failures)),
        hint="check the host and port, the network and the firewall",
    )


def dial(server: Server, stop: socket.socket | None = None) -> ssl.SSLSocket:
    """Connects to the server; the socket does not block.

    Raises:
        ConfigError: the host cannot be the name of one.
        SourceRefused: the server has no TLS, or its certificate is not accepted.
        SourceUnreachable: it does not answer, or not as PostgreSQL.
        Stopped: ``stop`` was closed meanwhile.
    """
    deadline = time.monotonic() + server.timeout

    def ready(sock: socket.socket, event: int) -> None:
        if not wait({sock: event}, stop, max(0, deadline - time.monotonic())):
            raise TimeoutError

    with ExitStack() as stack:
        try:
            raw = stack.enter_context(socket.socket(server.family, socket.SOCK_STREAM))
            _connect(raw, server, ready)
            if not server.direct:
                _ask_for_tls(raw, server.name, ready)
            sock = server.context.wrap_socket(
                raw, server_hostname=server.host or None, do_handshake_on_connect=False
            )
            stack.enter_context(sock)
            _handshake(sock, ready)
        except OSError as error:
            raise explain(error, server) from None
        except ValueError:
            raise ConfigError(f"{server.host} is not a host name") from None
        if server.direct and sock.selected_alpn_protocol() is None:
            raise SourceRefused(f"{server.name}: the server does not speak PostgreSQL")
        stack.pop_all()
        return sock


def explain(error: OSError, server: Server) -> SourceError:
    """Our error for one of a socket's."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _refusal(error, server)
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        reason = _ALERTS.get(error.reason or "", f"TLS failed: {error.reason}")
        return SourceRefused(f"{server.name}: {reason}")
    if isinstance(error, TimeoutError):
        return SourceUnreachable(f"{server.name}: no answer in time")
    if isinstance(error, ssl.SSLError) or not error.strerror:
        return SourceUnreachable(f"{server.name}: the server closed the connection")
    return SourceUnreachable(f"{server.name}: {error.strerror}")


def wait(
    waits: Mapping[socket.socket, int], stop: socket.socket | None, timeout: float | None = None
) -> bool:
    """Waits for one of several events, and says whether there was one within ``timeout`` seconds.

    Raises:
        Stopped: ``stop`` was closed meanwhile.
    """
    with _Selector() as selector:
        for sock, events in waits.items():
            selector.register(sock, events)
        if stop is not None:
            selector.register(stop, READ)
        ready = [key.fileobj for key, _ in selector.select(timeout)]
    if stop in ready:
        raise Stopped
    return bool(ready)


def _context(params: Mapping[str, str]) -> ssl.SSLContext:
    # Not create_default_context, which adds checks that libpq does not make.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["postgresql"])
    context.check_hostname = libpq.mode(params) == "verify-full"
    lowest = libpq.setting(params, "ssl_min_protocol_version") or "TLSv1.2"
    context.minimum_version = ssl.TLSVersion[lowest.replace(".", "_")]
    _trust(context, params)
    identity = libpq.client_certificate(params)
    if identity is not None:
        certificate, key = identity
        with _readable(f"the client certificate {certificate} with the key {key}"):
            # A password of None would make OpenSSL ask on the terminal.
            context.load_cert_chain(certificate, key, libpq.setting(params, "sslpassword"))
    return context


def _trust(context: ssl.SSLContext, params: Mapping[str, str]) -> None:
    given = libpq.setting(params, "sslrootcert")
    roots = libpq.file(params, "sslrootcert", "root.crt")
    if given == "system":
        context.set_default_verify_paths()
    elif roots.exists():
        revoked = libpq.file(params, "sslcrl", "root.crl")
        if revoked.exists():
            raise ConfigError(
                f"the revocation list {revoked} cannot be honoured for parallel reads",
                hint="move it away to read without it",
            )
        with _readable(f"the CA file {roots}"):
            context.load_verify_locations(roots)
    elif given or libpq.mode(params) != "require":
        raise ConfigError(
            f"the CA file {roots} does not exist",
            hint="set sslrootcert to the CA's certificate, or to 'system' for public CAs",
        )
    else:
        context.verify_mode = ssl.CERT_NONE


@contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        reason = error.reason or "it is not in PEM format, or its password is wrong"
        raise ConfigError(f"{what} cannot be used: {reason}") from None
    except OSError as error:
        raise ConfigError(f"{what} cannot be used: {error.strerror}") from None


def _connect(sock: socket.socket, server: Server, ready: _Ready) -> None:
    sock.setblocking(False)
    for option in server.options:
        sock.setsockopt(*option)
    with suppress(BlockingIOError):
        sock.connect(server.address)
    ready(sock, WRITE)
    failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        raise OSError(failure, os.strerror(failure))


def _ask_for_tls(sock: socket.socket, name: str, ready: _Ready) -> None:
    sock.sendall(_SSL_REQUEST)
    ready(sock, READ)
    # One byte and no more: what came with it would not be protected by TLS.
    answer = sock.recv(1)
    if answer == b"N":
        raise SourceRefused(
            f"{name}: the server has no TLS",
            hint="set ssl = on in PostgreSQL, or choose another sslmode",
        )
    if answer != b"S":
        raise SourceUnreachable(f"{name}: the server did not answer the request for TLS")


def _handshake(sock: ssl.SSLSocket, ready: _Ready) -> None:
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            ready(sock, READ)
        except ssl.SSLWantWriteError:
            ready(sock, WRITE)


def _refusal(error: ssl.SSLCertVerificationError, server: Server) -> SourceRefused:
    if error.verify_code in (62, 64):
        return SourceRefused(
            f"{server.name}: the server's certificate is not for the host name {server.host}",
            hint="use the name in the certificate as host, or sslmode=verify-ca",
        )
    if error.verify_code in (2, 18, 19, 20, 21):
        return SourceRefused(
            f"{server.name}: the server's certificate is from an unknown CA",
            hint="set sslrootcert to the certificate of the CA that signed it",
        )
    return SourceRefused(
        f"{server.name}: the server's certificate is refused: {error.verify_message}"
    )
