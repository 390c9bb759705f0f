"""Who runs bronze: the user of the operating system, the cloud's identity, and the machine."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from functools import cache

if sys.platform != "win32":
    import pwd

# The variables in which sudo, a Databricks job and an Azure workload name the user behind them.
_IDENTITIES = (
    ("sudo", "SUDO_USER"),
    ("databricks", "DATABRICKS_CLIENT_ID"),
    ("azure", "AZURE_CLIENT_ID"),
)


def user() -> str:
    """The name of the user of the operating system, or its number if it has no name."""
    if sys.platform == "win32":
        return getpass.getuser()
    try:
        # Not by getpass: it reads the environment first, which anybody can set.
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run as a user without a name
        return str(os.getuid())


def identity() -> str:
    """The identities in the environment, as ``azure:<client id>``; may be empty."""
    identities = ((kind, os.environ.get(name)) for kind, name in _IDENTITIES)
    return ", ".join(f"{kind}:{value}" for kind, value in identities if value)


@cache
def host() -> str:
    """The machine's name."""
    return socket.gethostname()
