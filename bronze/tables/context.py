"""The context of a table in a run: what all its tasks have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg

from bronze.config.sections.run import RunSettings
from bronze.config.settings import Settings
from bronze.errors import BronzeError
from bronze.execution import budget
from bronze.model.locations import Origin
from bronze.model.stamp import RowStamp
from bronze.postgres.catalog import constraints
from bronze.postgres.catalog.constraints import ConstraintRows, Constraints
from bronze.postgres.connection.connect import Connection
from bronze.postgres.connection.translation import explain
from bronze.postgres.copy.snapshot import Snapshot
from bronze.postgres.replication import publication
from bronze.tables.selection import Target

T = TypeVar("T")


@dataclass(frozen=True)
class TableContext:
    """The context of one table in a run, which all its units share; ``readers`` of them are
    processed at once, in one process or in several.
    """

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

    @property
    def readers_of_process(self) -> int:
        """How many units share the memory of a process."""
        return min(self.readers, budget.most_readers(self.run.memory))

    @property
    def most_readers(self) -> int:
        """How many units would share the memory of a process that had enough of it."""
        is_cluster = self.run.engine.startswith("dask:")
        return self.readers_of_process if is_cluster else self.run.workers


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


def ask_once(context: TableContext, question: Callable[..., T], *arguments: str) -> T:
    """The answer to a question about all tables of the snapshot, which is asked only once.

    Args:
        context: the first table that needs it.
        question: a function of a module, of the snapshot and ``arguments``.
        arguments: what else the answer depends on.

    Raises:
        BronzeError: the query failed.
    """
    answers, key = context.snapshot.answers, (question, *arguments)
    if key not in answers:
        answers[key] = ask_source(context, lambda _: question(context.snapshot, *arguments))
    answer: T = answers[key]
    return answer


def constraints_of(context: TableContext) -> Constraints:
    """The constraints of a table in the snapshot.

    Raises:
        BronzeError: the query failed.
    """
    relation = context.target.relation
    if relation.oid in context.snapshot.locked:
        rows = ask_once(context, _constraint_rows_of_locked)
    else:
        rows = ask_source(context, lambda holder: constraints.constraint_rows(holder, [relation]))
    return constraints.constraints(relation, rows[relation.oid])


def _constraint_rows_of_locked(snapshot: Snapshot) -> Mapping[int, ConstraintRows]:
    locked = [relation for relation in snapshot.relations if relation.oid in snapshot.locked]
    return constraints.constraint_rows(snapshot.holder, locked)


def streamed_columns_of(context: TableContext) -> frozenset[str]:
    """The columns of a table that its publication has, or will have; none if it was dropped.

    Raises:
        BronzeError: the query failed.
    """
    _, name = context.settings.stream.names(context.origin.name)
    columns = ask_once(context, _streamed_columns, name)
    return columns.get(context.target.relation.oid, frozenset())


def _streamed_columns(snapshot: Snapshot, name: str) -> Mapping[int, frozenset[str]]:
    return publication.streamed_columns(snapshot.holder, snapshot.relations, name)
