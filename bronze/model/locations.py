"""References to secrets, sources and Delta tables: where they are, without passwords."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from bronze.model.columns import DeltaType
from bronze.model.stamp import RowStamp


@dataclass(frozen=True)
class Secret:
    """A reference to a secret, never its value.

    ``provider`` is one of those of `bronze.secrets`, ``place`` the provider's store (a vault's
    URL, a folder, a scope), ``name`` the name of the secret there. A provider in the network is
    asked again after ``ttl`` seconds.
    """

    provider: str
    name: str
    place: str = ""
    ttl: int = 300


@dataclass(frozen=True)
class Auth:
    """How passwords are made at a login: by a ``method``, or by a ``command`` that prints one."""

    method: Literal["entra", "rds-iam", "databricks", "command"]
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Workspace:
    """A Databricks workspace, or the server of an open-source Unity Catalog, and how to log in.

    ``host`` is its URL without a path; ``secret`` is the token, or with ``client_id`` the client
    secret of a service principal. With "azure" the process's own identity gets tokens.
    """

    host: str
    auth: Literal["azure", "oauth", "token", "none"]
    client_id: str = ""
    secret: Secret | None = None


@dataclass(frozen=True)
class Origin:
    """How to connect to one PostgreSQL database.

    ``conninfo`` is libpq's connection string without a password; ``password``, or ``dsn`` for the
    whole string, are references to the secret part; with ``auth`` tokens are made instead. Timeouts
    are in seconds; 0 is no limit. ``connections`` are pool.min and pool.max of the config;
    ``reader`` is how rows are read.
    """

    name: str
    conninfo: str
    dsn: Secret | None = None
    password: Secret | None = None
    auth: Auth | None = None
    connect_timeout: int = 10
    statement_timeout: int = 0
    lock_timeout: int = 10
    row_security: Literal["refuse", "apply"] = "refuse"
    application_name: str = "bronze"
    connections: tuple[int, int] = (1, 10)
    reader: Literal["packed", "connectorx"] = "packed"


class TableName(NamedTuple):
    """The name of a table, of PostgreSQL or of the lake. Its parts are kept apart, as both may have
    dots in PostgreSQL; a schema of the lake has none.
    """

    schema: str
    name: str

    @property
    def label(self) -> str:
        """The name as users write it, ``schema.name``."""
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True)
class Vended:
    """Credentials of a store that Unity Catalog vends: the server, the path that they are for, and
    the version of its API of temporary credentials.
    """

    workspace: Workspace
    url: str
    api: Literal["2.0", "2.1"] = "2.0"


@dataclass(frozen=True)
class Place:
    """The location of a Delta table: a URL or path, and the options of the object store, to which
    credentials are added if they are ``vended``.
    """

    url: str
    options: tuple[tuple[str, str | Secret], ...] = field(default=(), repr=False)
    vended: Vended | None = None


@dataclass(frozen=True)
class Destination:
    """The Delta table that a batch writes rows into.

    ``columns`` is its schema in the order of its files, ``key`` the columns that tell its rows
    apart (none if nothing does), ``stats`` the columns that get file statistics, ``stamp`` the
    batch. ``dates_of`` is the column whose dates are its partitions, None without partitions.
    """

    place: Place
    columns: tuple[tuple[str, DeltaType], ...]
    key: tuple[str, ...]
    stats: tuple[str, ...]
    stamp: RowStamp
    dates_of: str | None = None
