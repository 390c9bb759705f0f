"""The sources of a config, each with an open connection, and their tables in its snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from bronze.config.settings import Settings
from bronze.errors import TableRefused
from bronze.model.locations import Origin
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection import connect, translation
from bronze.postgres.copy import snapshot as snapshots
from bronze.postgres.copy.snapshot import Snapshot
from bronze.tables import selection
from bronze.tables.selection import Target


@dataclass(frozen=True)
class OpenSource:
    """A source with an open connection; up to ``slots`` more connections may read from it."""

    origin: Origin
    connection: connect.Connection
    slots: int

    def take_snapshot(
        self,
        settings: Settings,
        targets: Sequence[Target],
        stack: ExitStack,
        consistency: snapshots.Consistency | None = None,
    ) -> Snapshot:
        """A snapshot of these tables, open until the stack is closed; ``consistency`` is the
        config's unless it is given.
        """
        source = settings.source[self.origin.name]
        readable = [target.relation for target in targets if target.relation.readable]
        return stack.enter_context(
            snapshots.hold(
                self.origin,
                self.connection,
                readable,
                source.schema_,
                consistency or source.consistency,
                in_threads=settings.run.engine == "threads",
            )
        )


def open_all(
    settings: Settings, batch_id: str, stack: ExitStack, *, detailed: bool = False
) -> tuple[list[tuple[str, Relation]], dict[str, OpenSource]]:
    """Connects to all sources, until the stack is closed.

    Returns:
        All tables, with the names of their sources, and only if ``detailed`` with their columns,
        keys and definitions, which a snapshot shows again; and the open sources by name.

    Raises:
        ConfigError, SourceError
    """
    relations: list[tuple[str, Relation]] = []
    sources: dict[str, OpenSource] = {}
    for name, source in settings.source.items():
        origin = replace(settings.origin(name), application_name=f"bronze {batch_id}")
        stack.callback(connect.forget_origin, origin)
        connection = stack.enter_context(connect.connect(origin, lasting=True))
        with translation.source_errors(origin):
            listed = selection.relations_of(connection, name, source.schema_, detailed=detailed)
            relations += [(name, relation) for relation in listed]
        connect.remember_server(origin, connection)
        sources[name] = OpenSource(origin, connection, source.pool.readers)
    return relations, sources


def relation_in_snapshot(
    target: Target, snapshot: Snapshot, relations: Mapping[int, Relation]
) -> Relation:
    """A table as the snapshot shows it; ``relations`` are all tables of the snapshot by their oid.

    Raises:
        SourceError: it cannot be read in the snapshot.
    """
    for label, error in snapshot.refused:
        if label == target.label:
            raise error
    if not target.relation.readable:
        session = snapshot.holder.info
        # With the option ``role`` the session has the rights of another one.
        role = "" if "role" in session.options else session.user
        raise selection.unreadable_error(target, role)
    relation = relations.get(target.relation.oid)
    if relation is None:
        raise TableRefused(
            f"Table {target.label} was dropped while the run started.",
            hint="Its Bronze table is unchanged.",
            table=target.label,
            sqlstate="42P01",
        )
    if relation.rewritten:
        raise TableRefused(
            f"Table {target.label} was refreshed or rewritten while the run started.",
            hint="Run again; its Bronze table is unchanged.",
            table=target.label,
        )
    return relation
