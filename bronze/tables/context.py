"""The context of a table in a run: what all its tasks have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from bronze.config.settings import RunSettings, Settings
from bronze.errors import BronzeError
from bronze.model.locations import Origin
from bronze.model.stamp import RowStamp
from bronze.postgres.connection.connect import Connection
from bronze.postgres.connection.translation import explain
from bronze.postgres.copy.snapshot import Snapshot
from bronze.tables.selection import Target


@dataclass(frozen=True)
class TableContext:
    """The context of one table in a run, which all its units share."""

    target: Target
    snapshot: Snapshot
    origin: Origin
    stamp: RowStamp
    settings: Settings
    readers: int

    @property
    def run(self) -> RunSettings:
        """How the run works."""
        return self.settings.run


def ask_source(context: TableContext, question: Any) -> Any:
    """The answer of a function that queries the source in the transaction of the snapshot. An error
    does not end the transaction.

    Raises:
        BronzeError: the query failed.
    """
    holder: Connection = context.snapshot.holder
    try:
        holder.execute("SAVEPOINT plan")
        answer = question(holder)
        holder.execute("RELEASE SAVEPOINT plan")
    except psycopg.Error as error:
        failure: BronzeError = explain(error, context.origin, context.target.label)
        if not failure.retry:
            holder.execute("ROLLBACK TO SAVEPOINT plan; RELEASE SAVEPOINT plan")
        raise failure from error
    return answer
