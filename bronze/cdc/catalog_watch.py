"""Watches the source for what the stream does not report, or reports too late.

PostgreSQL does not stream DDL. `CatalogWatch.check_tables` finds what changed in the catalog:

- a table was renamed, dropped or moved: it is not followed any more;
- a table was dropped and created again: the stream starts again;
- a table was created, or one that had failed exists again: it is copied and followed;
- a table's definition, key, replica identity or publication changed: it is resynced, as rows may
  have changed without a message, or messages may not have been sent.

`CatalogWatch.check_slot` finds a slot that is lost, or that makes the server keep too much log.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from bronze.cdc.context import FollowedTable, StreamContext
from bronze.cdc.resync import StreamedTables, moved_error, refuse_recreated
from bronze.errors import ConfigError, SourceBusy
from bronze.model.events import NewTablesRefused, Resynced, SlotRetains, TableAdded
from bronze.postgres.catalog import definition
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection import translation
from bronze.postgres.replication import publication, slot
from bronze.tables import selection


class CatalogWatch:
    """Watches the tables and the slot of a stream."""

    def __init__(
        self, stream: StreamContext, tables: StreamedTables, names: Sequence[str] = ()
    ) -> None:
        """Watches the ``tables``. New ones are followed if the config streams them, and ``names``
        is empty or contains theirs.
        """
        self._stream, self._tables, self._names = stream, tables, names
        self._labels: frozenset[str] = frozenset()

    def check_tables(self) -> None:
        """Compares the catalog with the tables, and changes their state accordingly.

        Raises:
            SourceBusy: a table was dropped and created again; the slot knows the old one.
        """
        now = {relation.oid: relation for relation in self._stream.relations()}
        refuse_recreated(self._tables.following, now.values())
        self._stop_moved_tables(now)
        self._follow_new_tables(now.values())
        self._resync_changed_tables(now)

    def _stop_moved_tables(self, now: Mapping[int, Relation]) -> None:
        for table in self._tables.following:
            if table.oid not in now or now[table.oid].label != table.label:
                self._tables.stop_following(table, moved_error(table, now.get(table.oid)))

    def _follow_new_tables(self, relations: Collection[Relation]) -> None:
        for failed in self._tables.failed.values():
            label, oid = failed.target.label, failed.target.relation.oid
            if any(r.label == label and r.oid != oid for r in relations):
                # It was created again.
                failed.due = 0.0
        labels = frozenset(relation.label for relation in relations)
        if labels == self._labels:
            return
        self._labels = labels
        source = self._stream.origin.name
        selected = [(source, relation) for relation in relations if self._is_named(relation)]
        if not selected:
            return
        try:
            targets = selection.select_targets(self._stream.settings, selected, ())
        except ConfigError as error:
            self._stream.notify(NewTablesRefused(error.failure()))
            return
        known = self._tables.labels
        new = [t for t in targets if t.settings.pattern == "streaming" and t.label not in known]
        for target in new:
            self._stream.notify(TableAdded(target.label))
        if new:
            self._tables.sync_later(new, "it has come since the stream began")

    def _is_named(self, relation: Relation) -> bool:
        """Whether a table is among the names that the stream was started for."""
        label = relation.label
        names = {relation.name, label, f"{self._stream.origin.name}.{label}"}
        return not self._names or not names.isdisjoint(self._names)

    def _resync_changed_tables(self, now: Mapping[int, Relation]) -> None:
        control, following = self._stream.control, self._tables.following
        with translation.source_errors(self._stream.origin):
            fingerprints = publication.fingerprints_of(
                control, self._stream.publication, [now[table.oid] for table in following]
            )
            identities = publication.identifying_columns_by_table(
                control, [(now[table.oid], table.target.key) for table in following]
            )
        changed: dict[str, list[FollowedTable]] = {}
        for table in following:
            why = _change(table, now[table.oid], fingerprints.get(table.oid, ""))
            if not why and identities.get(table.oid) != table.identity:
                why = "the columns that identify its rows have changed"
            if why:
                changed.setdefault(why, []).append(table)
        for why, tables in changed.items():
            self._stream.notify(Resynced(tuple(table.label for table in tables), why))
            self._tables.resync(tables, why)

    def check_slot(self) -> None:
        """Reports how much of its log the slot makes the server keep.

        Raises:
            SourceBusy: the slot was lost.
        """
        stream, limit = self._stream, self._stream.settings.stream.wal_budget
        state = slot.find(stream.control, stream.slot)
        if state is None or state.is_invalidated:
            raise SourceBusy(
                f"The slot {stream.slot} was lost.", hint="The stream starts again with a new slot."
            )
        stream.notify(
            SlotRetains(stream.slot, state.retained, limit, state.wal_status, state.safe_wal_size)
        )


def _change(table: FollowedTable, now: Relation, fingerprint: str) -> str:
    """What has changed in the catalog since a table was read; "" if nothing has.

    Args:
        table: the table.
        now: the table in the catalog.
        fingerprint: of its publication and replica identity now.
    """
    known = table.target.relation
    if why := definition.definition_change(known.definition, now.definition, storage=True):
        return why
    if fingerprint != table.target.published:
        return "its publication or its replica identity has changed"
    if now.key != known.key:
        return "its key has changed"
    columns = {(column.number, column.name) for column in now.attributes}
    if not {(column.number, column.name) for column in known.attributes} <= columns:
        return "its columns have changed"
    return ""
