"""[source]: a PostgreSQL database, and how many connections it allows."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from bronze.config.fields import NameList, Seconds, SecretName, Section


class Pool(Section):
    """Connections to the source: ``max`` bounds their number, parallel reads included."""

    min: PositiveInt = 1
    max: PositiveInt = 10

    @property
    def readers(self) -> int:
        """How many reads may run in parallel, beside the ``min`` connections.

        Each may need two connections: PostgreSQL may still be closing that of the read before.
        """
        return (self.max - self.min) // 2

    @model_validator(mode="after")
    def _check_max(self) -> Pool:
        if self.max < self.min + 2:
            raise ValueError("max is at least min + 2, one for a read and one that is closing")
        return self


class CommandAuth(Section):
    """``auth`` of [source]: a ``command`` that prints a token, as a list of its words."""

    command: tuple[str, ...] = Field(min_length=1)


class SourceSettings(Section):
    """[source]: one PostgreSQL database."""

    name: str = ""
    dsn: str | SecretName = Field(repr=False)
    password: SecretName | None = None
    auth: Literal["entra", "rds-iam", "databricks"] | CommandAuth | None = None
    schema_: NameList = Field(default=("public",), alias="schema")
    tables: NameList = ("*",)
    exclude: NameList = ()
    consistency: Literal["run", "per-table"] = "run"
    pool: Pool = Pool()
    connect_timeout: Seconds = 10
    statement_timeout: Seconds = 0
    lock_timeout: Seconds = 10
    row_security: Literal["refuse", "apply"] = "refuse"
    reader: Literal["packed", "connectorx"] = "packed"

    @model_validator(mode="after")
    def _check_auth(self) -> SourceSettings:
        if self.auth is not None and self.password is not None:
            raise ValueError("auth makes the password: set one of them")
        return self

    def takes(self, table: str) -> bool:
        """Whether the patterns of ``tables`` and ``exclude`` select a table of this name."""
        return any(fnmatchcase(table, p) for p in self.tables) and not any(
            fnmatchcase(table, p) for p in self.exclude
        )
