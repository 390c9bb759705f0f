"""A table of a run, and what all its tasks have in common."""

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
    """One table of a run: what all its units have in common."""

    target: Target
    held: Snapshot
    origin: Origin
    stamp: RowStamp
    settings: Settings
    readers: int

    @property
    def run(self) -> RunSettings:
        """How the run works."""
        return self.settings.run


def ask_source(context: TableContext, question: Any) -> Any:
    """Asks in the snapshot's own transaction, which an error must not end."""
    holder: Connection = context.held.holder
    try:
        holder.execute("SAVEPOINT plan")
        answer = question(holder)
        holder.execute("RELEASE SAVEPOINT plan")
    except psycopg.Error as error:
        mine: BronzeError = explain(error, context.origin, context.target.label)
        if not mine.retry:
            holder.execute("ROLLBACK TO SAVEPOINT plan; RELEASE SAVEPOINT plan")
        raise mine from error
    return answer
