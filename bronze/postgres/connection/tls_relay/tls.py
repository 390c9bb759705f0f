"""Connections to PostgreSQL over TLS, verified as libpq verifies them.

Differences from libpq:

- Revocation lists are refused, and so are the parameters that
  `bronze.postgres.connection.tls_relay.libpq.refuse_unsupported` names.
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
from bronze.postgres.connection.tls_relay import libpq

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE

_SSL_REQUEST: Final = struct.pack("!II", 8, 80877103)
_ALERTS: Final = {
    "TLSV1_ALERT_UNKNOWN_CA": "the server does not trust the CA of the client certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server requires a client certificate",
}

# poll() needs no file descriptor of its own and, unlike select(), takes descriptors above 1024.
_Selector: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)
_WaitReady = Callable[[socket.socket, int], None]


@dataclass(frozen=True)
class Server:
    """A server to connect to. Its certificate must be for ``host``; ``timeout`` is in seconds."""

    name: str
    host: str
    family: socket.AddressFamily
    address: tuple[object, ...]
    context: ssl.SSLContext
    direct: bool
    timeout: float
    options: tuple[tuple[int, int, int], ...]


class Stopped(Exception):
    """The wait was stopped."""


def first_server(params: Mapping[str, str]) -> Server:
    """The first server of the DSN that answers.

    Raises:
        ConfigError, SourceRefused, SourceUnreachable: as in
            `bronze.postgres.connection.tls_relay.relay.relay`.
    """
    libpq.refuse_unsupported(params)
    context, options = _context(params), libpq.socket_options(params)
    timeout = libpq.timeout(params)
    direct = libpq.setting(params, "sslnegotiation") == "direct"
    failures: list[str] = []
    for host, host_or_address, port in libpq.targets(params):
        name = f"{host or host_or_address}:{port}"
        try:
            addresses = socket.getaddrinfo(host_or_address, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            failures.append(f"{name}: the host name is unknown")
            continue
        for family, _, _, _, address in addresses:
            server = Server(name, host, family, address, context, direct, timeout, options)
            try:
                dial(server).close()
            except SourceUnreachable as error:
                failures.append(error.message)
            else:
                return server
    raise SourceUnreachable(
        "; ".join(dict.fromkeys(failures)),
        hint="Check host and port, the network and the firewall.",
    )


def dial(server: Server, stop: socket.socket | None = None) -> ssl.SSLSocket:
    """Connects to the server and returns a non-blocking socket.

    Raises:
        ConfigError: the host is not a valid host name.
        SourceRefused: the server has no TLS, or its certificate is refused.
        SourceUnreachable: it does not answer, or not as PostgreSQL does.
        Stopped: ``stop`` was closed in the meantime.
    """
    deadline = time.monotonic() + server.timeout

    def wait_ready(sock: socket.socket, event: int) -> None:
        if not wait({sock: event}, stop, max(0, deadline - time.monotonic())):
            raise TimeoutError

    with ExitStack() as stack:
        try:
            raw = stack.enter_context(socket.socket(server.family, socket.SOCK_STREAM))
            _connect(raw, server, wait_ready)
            if not server.direct:
                _request_tls(raw, server.name, wait_ready)
            sock = server.context.wrap_socket(
                raw, server_hostname=server.host or None, do_handshake_on_connect=False
            )
            stack.enter_context(sock)
            _handshake(sock, wait_ready)
        except OSError as error:
            raise explain(error, server) from None
        except ValueError:
            raise ConfigError(f"{server.host} is not a valid host name.") from None
        if server.direct and sock.selected_alpn_protocol() is None:
            raise SourceRefused(f"{server.name}: the server does not speak PostgreSQL")
        stack.pop_all()
        return sock


def explain(error: OSError, server: Server) -> SourceError:
    """The error of bronze for one of a socket."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_error(error, server)
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        reason = _ALERTS.get(error.reason or "", f"TLS failed: {error.reason}")
        return SourceRefused(f"{server.name}: {reason}")
    if isinstance(error, TimeoutError):
        return SourceUnreachable(f"{server.name}: no answer in time")
    is_closed = isinstance(error, (ssl.SSLError, ConnectionResetError, BrokenPipeError))
    if is_closed or not error.strerror:
        return SourceUnreachable(f"{server.name}: the server closed the connection")
    return SourceUnreachable(f"{server.name}: {error.strerror}")


def wait(
    waits: Mapping[socket.socket, int], stop: socket.socket | None, timeout: float | None = None
) -> bool:
    """Waits for one of several events.

    Returns:
        Whether there was one within ``timeout`` seconds.

    Raises:
        Stopped: ``stop`` was closed in the meantime.
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
    # create_default_context would add checks that libpq does not make.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["postgresql"])
    context.check_hostname = libpq.sslmode(params) == "verify-full"
    lowest = libpq.setting(params, "ssl_min_protocol_version") or "TLSv1.2"
    context.minimum_version = ssl.TLSVersion[lowest.replace(".", "_")]
    _load_trusted_cas(context, params)
    identity = libpq.client_certificate(params)
    if identity is not None:
        certificate, key = identity
        with _readable(f"The client certificate {certificate} with the key {key}"):
            # A password of None would make OpenSSL ask on the terminal.
            context.load_cert_chain(certificate, key, libpq.setting(params, "sslpassword"))
    return context


def _load_trusted_cas(context: ssl.SSLContext, params: Mapping[str, str]) -> None:
    sslrootcert = libpq.setting(params, "sslrootcert")
    roots = libpq.file_path(params, "sslrootcert", "root.crt")
    if sslrootcert == "system":
        context.set_default_verify_paths()
    elif roots.exists():
        revocation_list = libpq.file_path(params, "sslcrl", "root.crl")
        if revocation_list.exists():
            raise ConfigError(
                f"The revocation list {revocation_list} is not supported for parallel reads.",
                hint="Move it to another folder to read without it.",
            )
        with _readable(f"The CA file {roots}"):
            context.load_verify_locations(roots)
    elif sslrootcert or libpq.sslmode(params) != "require":
        raise ConfigError(
            f"The CA file {roots} does not exist.",
            hint="Set sslrootcert to the CA's certificate, or to 'system' for public CAs.",
        )
    else:
        context.verify_mode = ssl.CERT_NONE


@contextmanager
def _readable(subject: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        reason = error.reason or "it is not in PEM format, or its password is wrong"
        raise ConfigError(f"{subject} cannot be used: {reason}.") from None
    except OSError as error:
        raise ConfigError(f"{subject} cannot be used: {error.strerror}.") from None


def _connect(sock: socket.socket, server: Server, wait_ready: _WaitReady) -> None:
    sock.setblocking(False)
    for option in server.options:
        sock.setsockopt(*option)
    with suppress(BlockingIOError):
        sock.connect(server.address)
    wait_ready(sock, WRITE)
    failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failure:
        raise OSError(failure, os.strerror(failure))


def _request_tls(sock: socket.socket, name: str, wait_ready: _WaitReady) -> None:
    sock.sendall(_SSL_REQUEST)
    wait_ready(sock, READ)
    # Only one byte: more would have been sent without TLS.
    answer = sock.recv(1)
    if answer == b"N":
        raise SourceRefused(
            f"{name}: the server has no TLS",
            hint="Set ssl = on in PostgreSQL, or choose another sslmode.",
        )
    if answer != b"S":
        raise SourceUnreachable(f"{name}: the server did not answer the request for TLS")


def _handshake(sock: ssl.SSLSocket, wait_ready: _WaitReady) -> None:
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            wait_ready(sock, READ)
        except ssl.SSLWantWriteError:
            wait_ready(sock, WRITE)


def _certificate_error(error: ssl.SSLCertVerificationError, server: Server) -> SourceRefused:
    if error.verify_code in (62, 64):
        return SourceRefused(
            f"{server.name}: the server's certificate is not for the host name {server.host}",
            hint="Use the name in the certificate as host, or sslmode=verify-ca.",
        )
    if error.verify_code in (2, 18, 19, 20, 21):
        return SourceRefused(
            f"{server.name}: the server's certificate is from an unknown CA",
            hint="Set sslrootcert to the certificate of the CA that signed it.",
        )
    return SourceRefused(
        f"{server.name}: the server's certificate is refused: {error.verify_message}"
    )
