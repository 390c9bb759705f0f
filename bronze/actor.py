"""Who is at work: the user of the operating system, the cloud's identity, and the machine."""

from __future__ import annotations

import getpass
import os
import socket
from functools import cache

# What a login through sudo, a Databricks job and an Azure workload tell of who is behind them.
_IDENTITIES = (
    ("sudo", "SUDO_USER"),
    ("databricks", "DATABRICKS_CLIENT_ID"),
    ("azure", "AZURE_CLIENT_ID"),
)


def user() -> str:
    """The user of the operating system, by number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that nobody has named
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def identity() -> str:
    """Who else it is by the environment, as ``azure:<client id>``; may be empty."""
    told = ((kind, os.environ.get(name)) for kind, name in _IDENTITIES)
    return ", ".join(f"{kind}:{value}" for kind, value in told if value)


@cache
def host() -> str:
    """The machine's name."""
    return socket.gethostname()
