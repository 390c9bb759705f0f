"""What libpq's connection parameters ask for, to be honoured without libpq.

Absent parameters are taken from libpq's environment variables (``PGSSLMODE``, ``PGSSLROOTCERT``,
…), as libpq does.
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

_PATIENCE: Final = 30.0
_HONOURED: Final = {"sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword"}
# The other parameters that concern TLS, and the values of theirs that can be honoured.
_LIMITED: Final[Mapping[str, tuple[str, ...]]] = {
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
    """A parameter, or else libpq's environment variable for it; empty if there is neither."""
    if key in params:
        return params[key]
    name = key if key == "connect_timeout" else key.replace("_", "")
    return os.environ.get(f"PG{name.upper()}", "")


def mode(params: Mapping[str, str]) -> str:
    """The ``sslmode`` that holds."""
    implied = "verify-full" if setting(params, "sslrootcert") == "system" else "prefer"
    return setting(params, "sslmode") or implied


def is_local(host: str) -> bool:
    """Whether a host is a Unix socket, where PostgreSQL never uses TLS."""
    return host == "" or host.startswith(("/", "@"))


def file(params: Mapping[str, str], key: str, default: str) -> Path:
    """The file that a parameter names, or else libpq's default; it may not exist."""
    given = setting(params, key)
    if given:
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA", "")) / "postgresql" / default
    # Path.expanduser raises for a user without a home; there is only no such file then.
    return Path(os.path.expanduser("~/.postgresql")) / default  # noqa: PTH111


def client_certificate(params: Mapping[str, str]) -> tuple[Path, Path] | None:
    """The files of the client's certificate and its key, if it has one."""
    certificate = file(params, "sslcert", "postgresql.crt")
    key = file(params, "sslkey", "postgresql.key")
    return (certificate, key) if certificate.exists() else None


def check(params: Mapping[str, str]) -> None:
    """Refuses what cannot be honoured: nothing that concerns TLS is ever ignored.

    Raises:
        ConfigError: and names the parameter.
    """
    if mode(params) not in VERIFYING:
        raise ConfigError(f"sslmode={mode(params)} needs no relay")
    unknown = {key for key in params if key.startswith("ssl")} - _HONOURED - _LIMITED.keys()
    for key in (*_LIMITED, *sorted(unknown)):
        known = _LIMITED.get(key, ())
        if setting(params, key) not in ("", *known):
            raise ConfigError(
                f"{key} cannot be honoured for parallel reads as it is set",
                hint=f"leave it out{', or set it to ' if known else ''}{' or '.join(known)}",
            )
    if setting(params, "sslrootcert") == "system" and mode(params) != "verify-full":
        raise ConfigError(
            f"sslrootcert=system cannot be used with sslmode={mode(params)}",
            hint="any holder of a public certificate would pass: use sslmode=verify-full",
        )
    several = "," in setting(params, "host") + setting(params, "hostaddr")
    if several and setting(params, "target_session_attrs") not in ("", "any"):
        raise ConfigError(
            "target_session_attrs cannot be honoured for several hosts in parallel reads",
            hint="name the one host to read from",
        )


def targets(params: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """The servers to try, in order: the name for the certificate, where it is, and the port.

    Raises:
        ConfigError: they do not fit together, or cannot be had through TLS.
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
        raise ConfigError("the DSN has different numbers of host, hostaddr and port")
    if any(map(is_local, addresses)):
        raise ConfigError("TLS needs a host name or address, and the DSN has a host without")
    if mode(params) == "verify-full" and "" in hosts:
        raise ConfigError("sslmode=verify-full needs a host name, and the DSN has only hostaddr")
    try:
        numbers = [int(port or 5432) for port in ports]
    except ValueError:
        raise ConfigError("the DSN has a port that is not a number") from None
    return list(zip(hosts, addresses, numbers, strict=True))


def timeout(params: Mapping[str, str]) -> float:
    """The seconds that a server may take to answer.

    Raises:
        ConfigError: it is not a number.
    """
    try:
        seconds = int(setting(params, "connect_timeout") or 0)
    except ValueError:
        raise ConfigError("connect_timeout is not a whole number of seconds") from None
    return float(seconds) if seconds > 0 else _PATIENCE


def socket_options(params: Mapping[str, str]) -> tuple[tuple[int, int, int], ...]:
    """What to call `socket.setsockopt` with: keepalives, mostly."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if setting(params, "keepalives") != "0":
        options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
    for key, name in _SOCKET_OPTIONS.items():
        value = setting(params, key)
        if value.isdecimal() and int(value) and hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), int(value)))
    return tuple(options)
