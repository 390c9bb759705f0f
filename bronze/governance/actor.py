"""Who is at work: the user of the operating system, the cloud's identity, and the machine."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from functools import cache

if sys.platform != "win32":
    import pwd

# What a login through sudo, a Databricks job and an Azure workload tell of who is behind them.
_IDENTITIES = (
    ("sudo", "SUDO_USER"),
    ("databricks", "DATABRICKS_CLIENT_ID"),
    ("azure", "AZURE_CLIENT_ID"),
)


def user() -> str:
    """The user of the operating system, by number where it has no name."""
    if sys.platform == "win32":
        return getpass.getuser()
    try:
        # Not by getpass: it believes the environment first, which anybody can set.
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run as a user that nobody has named
        return str(os.getuid())


def identity() -> str:
    """Who else it is by the environment, as ``azure:<client id>``; may be empty."""
    told = ((kind, os.environ.get(name)) for kind, name in _IDENTITIES)
    return ", ".join(f"{kind}:{value}" for kind, value in told if value)


@cache
def host() -> str:
    """The machine's name."""
    return socket.gethostname()
