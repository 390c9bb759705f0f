"""The tables to verify: each a table of the source in a snapshot, with its Bronze table.

A claim resolves the columns and the key by which the two are compared, and makes the tasks for the
source's side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from bronze.config.settings import Settings
from bronze.delta import log, positions, properties
from bronze.delta.log import State
from bronze.errors import BronzeError, LakeError, TableRefused
from bronze.execution import budget
from bronze.governance.run_log import RunTable
from bronze.ingest import shape, units
from bronze.model.columns import KEY_TEXT, NO_KEY, Column, DeltaType, RowKey
from bronze.model.locations import Place
from bronze.model.protection import TableProtection
from bronze.model.stamp import RowStamp
from bronze.postgres import statement
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.copy import row_hash, splits
from bronze.postgres.copy.snapshot import Snapshot
from bronze.printable import count
from bronze.protection import key_text, keys
from bronze.tables import evolution, open_sources, row_format, selection
from bronze.tables.context import TableContext, streamed_columns_of
from bronze.tables.open_sources import OpenSource
from bronze.tables.selection import Target
from bronze.verify import evidence
from bronze.verify.evidence import HEAP, SPLIT, SourceTask
from bronze.verify.results import VerifiedTable
from bronze.verify.rows import digests
from bronze.verify.rows.digests import Basis


@dataclass(frozen=True)
class Claim:
    """One table to verify.

    ``state`` is the Bronze table, None where there is none yet. ``columns`` are the source's
    columns to compare; the Bronze table was created with the first ``base`` of them. ``key``
    identifies the rows. ``error`` is why the table cannot be verified.
    """

    context: TableContext
    state: State | None = None
    columns: tuple[Column, ...] = ()
    base: int = 0
    key: RowKey = NO_KEY
    protection: TableProtection | None = None
    error: BronzeError | None = None

    @property
    def label(self) -> str:
        """The source table's ``schema.name``."""
        return self.context.target.label

    @property
    def target(self) -> str:
        """The Bronze table's ``schema.name``."""
        return self.context.target.full_name

    @property
    def run_table(self) -> RunTable:
        """The table in the records of ``governance.runs``."""
        target = self.context.target
        return RunTable(target.source, target.label, target.full_name, target.settings.pattern)

    @property
    def key_names(self) -> tuple[str, ...]:
        """The Bronze table's key columns."""
        return self.key.names

    @property
    def is_streamed(self) -> bool:
        """Whether the config streams the table."""
        return self.context.target.settings.pattern == "streaming"

    @property
    def has_history(self) -> bool:
        """Whether the Bronze table keeps every version of a row."""
        return self.state is not None and self.context.target.settings.history

    @property
    def keeps_deleted(self) -> bool:
        """Whether the config keeps rows in Bronze that are deleted in the source."""
        return self.context.target.settings.deletes == "ignore"

    @property
    def quoted_name(self) -> str:
        """The source table's name in SQL."""
        relation = self.context.target.relation
        return statement.quoted(relation.schema, relation.name)

    @property
    def size(self) -> int:
        """The size of the source table in bytes, for the progress."""
        return splits.size_of(self.context.target.relation)

    @property
    def basis(self) -> Basis:
        """What the digests of the rows are computed from."""
        return digests.basis_of(self.columns, self.base, self.key, self.protection)

    @property
    def layout(self) -> tuple[tuple[str, DeltaType], ...]:
        """The Bronze table's columns, with metadata columns that another writer dropped."""
        return (
            row_format.columns_as_written(self.state.columns, self.state.properties)
            if self.state
            else ()
        )

    def source_tasks(self, trust_hashes: bool) -> tuple[list[SourceTask], list[SourceTask]]:
        """The tasks that read the source: for the bucket sums of all rows, and for the rows of
        some buckets with their keys, which still need a selection.

        With ``trust_hashes`` the digests are the row hashes, otherwise `basis` defines them.
        """
        context, columns = self.context, self.columns
        basis = None if trust_hashes else self.basis
        computed_here = basis is not None and not basis.in_postgres
        combined = basis is not None and basis.in_postgres
        key_columns = evidence.columns_to_read(self.key, basis)
        readable = basis.readable if basis and computed_here else None
        keyed = row_hash.keyed_hashes_query(
            columns, HEAP, SPLIT, self.base, key_columns, combined, readable
        )
        packed = keyed
        if not computed_here:
            packed = row_hash.packed_hashes_query(columns, HEAP, SPLIT, self.base, combined)
        sums, rows = [], []
        for group in units.grouped_splits(context, context.run.memory, self.key.source_names):
            task = SourceTask(
                origin=context.origin,
                session=context.snapshot.session,
                table=self.label,
                heap=self.quoted_name,
                query=packed,
                splits=group,
                estimate=group.size,
                key=self.key,
                protection=self.protection,
                basis=basis,
            )
            sums.append(task)
            rows.append(replace(task, query=keyed))
        return sums, rows

    def position_fields(self) -> dict[str, Any]:
        """The fields of the result about the Bronze table's version, its position, and how far
        that is behind the snapshot.
        """
        if self.state is None:
            return {}
        snapshot = self.context.snapshot
        position = positions.read(self.state, snapshot.timeline)
        lag = None if position is None else max(0, snapshot.position - position)
        return {"version": self.state.version, "position": position, "lag_bytes": lag}

    def notes(self, result: VerifiedTable, duplicates: int) -> tuple[str, ...]:
        """The notes on a result; ``duplicates`` of its extra rows share their key with others."""
        command = "`bronze stream --until-caught-up`" if self.is_streamed else "`bronze run`"
        notes = []
        if self.state is None:
            notes.append(f"there is no Bronze table yet: {command} creates it")
        elif result.status == "differs" and self._is_newer_than_snapshot(result):
            notes.append(
                "a run has committed to the Bronze table since the snapshot was taken: verify again"
            )
        elif result.status == "differs" and result.lag_bytes:
            notes.append(
                f"the Bronze table is {result.lag_bytes:,} bytes of WAL behind the snapshot: the"
                f" differences may be changes that are not loaded yet; {command} loads them"
            )
        elif result.status == "differs" and result.position is None:
            notes.append("the Bronze table has no position on the source's timeline")
        if self.keeps_deleted and (kept := result.extra - duplicates):
            notes.append(
                f"{count(kept, 'row is', 'rows are')} only in Bronze, which"
                ' deletes = "ignore" allows'
            )
        if self.context.snapshot.name is None:
            notes.append("the source cannot share a snapshot: each query saw a moment of its own")
        return tuple(notes)

    def _is_newer_than_snapshot(self, result: VerifiedTable) -> bool:
        return result.position is not None and result.position > self.context.snapshot.position

    def with_current_table(self) -> Claim:
        """The same claim, with the Bronze table as it is now."""
        return _resolve(self.context)


def claims_of_source(
    settings: Settings, tables: Sequence[str], batch_id: str, stack: ExitStack
) -> list[Claim]:
    """The tables of the source to verify: those with these names, all of the config if none.

    Each source has one snapshot, which stays open until the stack is closed.

    Raises:
        ConfigError: there is no such table.
        SourceError: a source cannot be queried.
    """
    relations, sources = open_sources.open_all(settings, batch_id, stack)
    return _claims(settings, selection.select_targets(settings, relations, tables), sources, stack)


def claims_of_bronze(
    settings: Settings, names: Collection[str], batch_id: str, stack: ExitStack
) -> list[Claim]:
    """The tables of the source that are loaded into these Bronze tables (``schema.table``). A
    Bronze table that no table of the source is loaded into, or more than one, is left out.

    Raises:
        ConfigError, SourceError: a source cannot be queried.
    """
    relations, sources = open_sources.open_all(settings, batch_id, stack)
    targets = selection.all_targets(settings, relations)
    count = Counter(target.full_name for target in targets)
    selected = [t for t in targets if t.full_name in names and count[t.full_name] == 1]
    return _claims(settings, selected, sources, stack)


def _claims(
    settings: Settings,
    targets: Sequence[Target],
    sources: Mapping[str, OpenSource],
    stack: ExitStack,
) -> list[Claim]:
    claims = []
    for name, source in sources.items():
        in_source = [target for target in targets if target.source == name]
        if in_source:
            snapshot = source.take_snapshot(settings, in_source, stack)
            relations = {relation.oid: relation for relation in snapshot.relations}
            log.prefetch([target.place for target in in_source])
            claims += [_claim(settings, source, snapshot, relations, t) for t in in_source]
    return claims


def _claim(
    settings: Settings,
    source: OpenSource,
    snapshot: Snapshot,
    relations: dict[int, Relation],
    target: Target,
) -> Claim:
    stamp = RowStamp("0", datetime.now(UTC), source.origin.name, target.settings.method)
    run = settings.run
    readers = budget.readers(run.memory, run.workers, source.slots, run.engine)
    context = TableContext(target, snapshot, source.origin, stamp, settings, readers)
    try:
        relation = open_sources.relation_in_snapshot(target, snapshot, relations)
        in_snapshot = selection.with_relation(target, relation)
        found = replace(context, target=with_streamed_columns(context, in_snapshot))
        return _resolve(found, log.recent)
    except BronzeError as error:
        return Claim(context, error=error)


def with_streamed_columns(context: TableContext, target: Target) -> Target:
    """The target, if it is streamed with the columns of its publication only."""
    if target.settings.pattern != "streaming":
        return target
    names = streamed_columns_of(context) or {a.name for a in target.relation.attributes}
    return selection.with_columns_of(target, names)


def _resolve(context: TableContext, read: Callable[[Place], State | None] = log.read) -> Claim:
    """Resolves the columns and the key by which a table and its Bronze table are compared."""
    target = context.target
    try:
        columns = selection.contract_columns(target)
        state = read(target.place)
        if state is None:
            return Claim(context, None, columns, len(columns))
        if properties.TABLE not in state.properties:
            raise LakeError(
                f"The table at {target.place.url} was not made by bronze.",
                hint="Move it away, or give the source's table another target in the config.",
                table=target.label,
            )
        contract = shape.evolve_columns(target, columns, state)
        protection = (
            None if contract.reload else keys.protection(context.settings, target, contract)
        )
        if contract.reload or keys.is_rotated(protection, state):
            raise TableRefused(
                f"The protection of table {target.label} has changed since its last load.",
                hint="`bronze run` writes the Bronze table again; verify it afterwards.",
                table=target.label,
            )
        key_names = evolution.key_columns_in_source(state.properties)
        in_source = {column.target: column for column in contract.columns if column.name}
        key = NO_KEY
        if key_names and set(key_names) <= in_source.keys():
            key_columns = [in_source[name] for name in key_names]
            key = key_text.row_key(key_columns, KEY_TEXT in dict(state.columns))
        return Claim(context, state, contract.columns, contract.base, key, protection)
    except BronzeError as error:
        return Claim(context, error=error)
