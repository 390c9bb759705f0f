"""The meaning of libpq's connection parameters, for connections that are opened without libpq.

As in libpq, environment variables (``PGSSLMODE``, …) stand for absent parameters.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bronze.errors import ConfigError

VERIFYING: Final = ("require", "verify-ca", "verify-full")

_DEFAULT_TIMEOUT: Final = 30.0
_SUPPORTED: Final = {"sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword"}
# The other parameters about TLS, with their supported values.
_PARTLY_SUPPORTED: Final[Mapping[str, tuple[str, ...]]] = {
    "channel_binding": ("disable", "prefer"),
    "gssencmode": ("disable", "prefer"),
    "ssl_max_protocol_version": (),
    "ssl_min_protocol_version": ("TLSv1.2", "TLSv1.3"),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslcrl": (),
    "sslcrldir": (),
    "sslnegotiation": ("postgres", "direct"),
    "sslsni": ("1",),
}
_SOCKET_OPTIONS: Final = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}


def setting(params: Mapping[str, str], key: str) -> str:
    """The value of a parameter, or of libpq's environment variable for it; "" if neither is set."""
    if key in params:
        return params[key]
    name = key if key == "connect_timeout" else key.replace("_", "")
    return os.environ.get(f"PG{name.upper()}", "")


def sslmode(params: Mapping[str, str]) -> str:
    """The ``sslmode`` in effect."""
    implied = "verify-full" if setting(params, "sslrootcert") == "system" else "prefer"
    return setting(params, "sslmode") or implied


def is_local(host: str) -> bool:
    """Whether a host is a Unix socket, over which PostgreSQL never uses TLS."""
    return host == "" or host.startswith(("/", "@"))


def file_path(params: Mapping[str, str], key: str, default: str) -> Path:
    """The path in a parameter, or else libpq's default; the file may not exist."""
    path = setting(params, key)
    if path:
        return Path(path)
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", "")) / "postgresql" / default
    # Path.expanduser raises for a user without a home, where simply no such file exists.
    return Path(os.path.expanduser("~/.postgresql")) / default  # noqa: PTH111


def client_certificate(params: Mapping[str, str]) -> tuple[Path, Path] | None:
    """The paths of the client's certificate and key; None without a certificate."""
    certificate = file_path(params, "sslcert", "postgresql.crt")
    key = file_path(params, "sslkey", "postgresql.key")
    return (certificate, key) if certificate.exists() else None


def refuse_unsupported(params: Mapping[str, str]) -> None:
    """Refuses unsupported parameters, so that none about TLS is ever ignored.

    Raises:
        ConfigError: a parameter, which the message names, is not supported with its value.
    """
    if sslmode(params) not in VERIFYING:
        raise ConfigError(f"sslmode={sslmode(params)} needs no relay")
    unknown = (
        {key for key in params if key.startswith("ssl")} - _SUPPORTED - _PARTLY_SUPPORTED.keys()
    )
    for key in (*_PARTLY_SUPPORTED, *sorted(unknown)):
        supported = _PARTLY_SUPPORTED.get(key, ())
        if setting(params, key) not in ("", *supported):
            raise ConfigError(
                f"The connection parameter {key} is not supported for parallel reads with this"
                " value.",
                hint=f"Leave it out{', or set it to ' if supported else ''}"
                f"{' or '.join(supported)}.",
            )
    if setting(params, "sslrootcert") == "system" and sslmode(params) != "verify-full":
        raise ConfigError(
            f"sslrootcert=system cannot be used with sslmode={sslmode(params)}: any server with a"
            " certificate of a public CA would be accepted.",
            hint="Use sslmode=verify-full.",
        )
    several = "," in setting(params, "host") + setting(params, "hostaddr")
    if several and setting(params, "target_session_attrs") not in ("", "any"):
        raise ConfigError(
            "The connection parameter target_session_attrs is not supported for parallel reads with"
            " several hosts.",
            hint="Name only the host to read from.",
        )


def targets(params: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """The servers to try, in order: host name for the certificate, host or address, port.

    Raises:
        ConfigError: the parameters contradict each other, or a server cannot be used over TLS.
    """
    hosts = setting(params, "host").split(",")
    addresses = setting(params, "hostaddr").split(",")
    if addresses == [""]:
        addresses = hosts
    elif hosts == [""]:
        hosts = hosts * len(addresses)
    ports = setting(params, "port").split(",")
    if len(ports) == 1:
        ports = ports * len(hosts)
    if not len(hosts) == len(addresses) == len(ports):
        raise ConfigError("The DSN has different numbers of host, hostaddr and port.")
    if any(map(is_local, addresses)):
        raise ConfigError("TLS needs a host name or address, but a host of the DSN has neither.")
    if sslmode(params) == "verify-full" and "" in hosts:
        raise ConfigError("sslmode=verify-full needs a host name, but the DSN has only hostaddr.")
    try:
        numbers = [int(port or 5432) for port in ports]
    except ValueError:
        raise ConfigError("The DSN has a port that is not a number.") from None
    return list(zip(hosts, addresses, numbers, strict=True))


def timeout(params: Mapping[str, str]) -> float:
    """The seconds that a server may take to answer.

    Raises:
        ConfigError: it is not a number.
    """
    try:
        seconds = int(setting(params, "connect_timeout") or 0)
    except ValueError:
        raise ConfigError("connect_timeout is not a whole number of seconds.") from None
    return float(seconds) if seconds > 0 else _DEFAULT_TIMEOUT


def socket_options(params: Mapping[str, str]) -> tuple[tuple[int, int, int], ...]:
    """The arguments of calls to `socket.setsockopt`, mostly for keepalives."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if setting(params, "keepalives") != "0":
        options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
    for key, name in _SOCKET_OPTIONS.items():
        value = setting(params, key)
        if value.isdecimal() and int(value) and hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), int(value)))
    return tuple(options)
