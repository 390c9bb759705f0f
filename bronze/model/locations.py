"""Where things are: secrets, sources, tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Secret:
    """Where a secret is to be found; never the secret itself.

    ``provider`` is one of ``bronze.secrets.PROVIDERS``, ``place`` what that provider needs to find
    its store (a vault's URL, a folder), ``name`` the secret's name there.
    """

    provider: str
    name: str
    place: str = ""


@dataclass(frozen=True)
class Origin:
    """How to reach one PostgreSQL database, without the password.

    ``conninfo`` is libpq's, with no password in it; ``password`` or ``dsn`` say where the missing
    part is to be found. Times are in seconds; 0 is no limit. ``connections`` are the config's
    pool.min and pool.max.
    """

    name: str
    conninfo: str
    dsn: Secret | None = None
    password: Secret | None = None
    connect_timeout: int = 10
    statement_timeout: int = 0
    lock_timeout: int = 10
    row_security: Literal["refuse", "apply"] = "refuse"
    application_name: str = "bronze"
    connections: tuple[int, int] = (1, 10)


@dataclass(frozen=True)
class Place:
    """Where one Delta table lies: a URL or path, and the object store's options."""

    url: str
    options: tuple[tuple[str, str | Secret], ...] = field(default=(), repr=False)
