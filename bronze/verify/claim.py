"""What is to be proven: tables of the source in a snapshot, and their Bronze tables beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from bronze.config.settings import Settings
from bronze.delta import log, positions, properties
from bronze.delta.log import State
from bronze.errors import BronzeError, LakeError, TableRefused
from bronze.execution import budget
from bronze.ingest import pipeline, shape, units
from bronze.ingest.pipeline import OpenSource
from bronze.model.columns import KEY_TEXT, NO_KEY, Column, DeltaType, RowKey
from bronze.model.protection import TableProtection
from bronze.model.stamp import RowStamp
from bronze.postgres import statement
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.copy import row_hash, splits
from bronze.postgres.copy.snapshot import Snapshot
from bronze.postgres.replication import publication
from bronze.protection import key_text, keys
from bronze.tables import evolution, row_format, selection
from bronze.tables.context import TableContext, ask_source
from bronze.tables.selection import Target
from bronze.verify import digests, evidence
from bronze.verify.digests import Basis
from bronze.verify.evidence import SourceTask
from bronze.verify.results import VerifiedTable


@dataclass(frozen=True)
class Claim:
    """One table. ``state`` is its Bronze table, None where there is none yet; ``key`` is
    what tells its rows apart; ``error`` is what hinders the proof.
    """

    given: TableContext
    state: State | None = None
    columns: tuple[Column, ...] = ()
    base: int = 0
    key: RowKey = NO_KEY
    protection: TableProtection | None = None
    error: BronzeError | None = None

    @property
    def label(self) -> str:
        """The source table's ``schema.name``."""
        return self.given.target.label

    @property
    def target(self) -> str:
        """The Bronze table's ``schema.name``."""
        return self.given.target.full_name

    @property
    def names(self) -> tuple[str, ...]:
        """The Bronze table's columns by which its rows are known."""
        return self.key.names

    @property
    def history(self) -> bool:
        """Whether the Bronze table keeps every version of a row."""
        return self.state is not None and self.given.target.settings.history

    @property
    def keeps_gone(self) -> bool:
        """Whether the config has rows stay that the source has no more."""
        return self.given.target.settings.deletes == "ignore"

    @property
    def table(self) -> str:
        """The source table in SQL."""
        relation = self.given.target.relation
        return statement.quoted(relation.schema, relation.name)

    @property
    def size(self) -> int:
        """About how many bytes are read of the source."""
        return splits.size_of(self.given.target.relation)

    @property
    def basis(self) -> Basis:
        """What the digests of rows are made of."""
        return digests.basis(self.columns, self.base, self.key, self.protection)

    @property
    def layout(self) -> tuple[tuple[str, DeltaType], ...]:
        """The Bronze table's columns, with those of ours that somebody has taken from it."""
        return (
            row_format.columns_as_written(self.state.columns, self.state.properties)
            if self.state
            else ()
        )

    def asking(self, trusting: bool) -> tuple[list[SourceTask], list[tuple[str, ...]]]:
        """What to ask the source for all digests, and for those of rows with their keys.

        With ``trusting`` they are the row hashes that Bronze rows have, otherwise `basis` says what
        they are.
        """
        given, columns = self.given, self.columns
        basis = None if trusting else self.basis
        beside = basis is not None and not basis.plain
        key, proven = evidence.asked_columns(self.key, basis), basis is not None and basis.plain
        rest = basis.rest if basis and beside else None
        groups = units.grouped_splits(given, given.run.memory, self.key.source_names)
        asked, naming = [], []
        for group in groups:
            wheres = [part.where for part in group]
            names = tuple(
                row_hash.keyed_hashes_query(
                    columns, self.table, where, self.base, key, proven, rest
                )
                for where in wheres
            )
            packed = names
            if not beside:
                packed = tuple(
                    row_hash.packed_hashes_query(columns, self.table, where, self.base, proven)
                    for where in wheres
                )
            asked.append(
                SourceTask(
                    origin=given.origin,
                    session=given.held.session(given.origin),
                    table=self.label,
                    queries=packed,
                    estimate=sum(part.size for part in group),
                    key=self.key,
                    protection=self.protection,
                    basis=basis,
                )
            )
            naming.append(names)
        return asked, naming

    def placed(self) -> dict[str, Any]:
        """Where the Bronze table is, and how far behind the snapshot."""
        if self.state is None:
            return {}
        held = self.given.held
        position = positions.read(self.state, held.timeline)
        lag = None if position is None else max(0, held.position - position)
        return {"version": self.state.version, "position": position, "lag_bytes": lag}

    def notes(self, result: VerifiedTable, doubled: int) -> tuple[str, ...]:
        """What else there is to say; ``doubled`` of the extra rows share their key with others."""
        streamed = self.given.target.settings.pattern == "streaming"
        take = "`bronze stream --until-caught-up`" if streamed else "`bronze run`"
        said = []
        if self.state is None:
            said.append(f"there is no Bronze table yet: {take} makes it")
        elif result.status == "differs" and self._ahead(result):
            said.append("another run has landed it since the source was looked at: verify again")
        elif result.status == "differs" and result.lag_bytes:
            said.append(
                f"Bronze is as of an earlier position, {result.lag_bytes:,} bytes of the source's"
                f" log ago: what differs may be changes not yet taken in; {take} takes them in"
            )
        elif result.status == "differs" and result.position is None:
            said.append("the Bronze table has no position in this history of the source")
        if self.keeps_gone and (alone := result.extra - doubled):
            said.append(f'{alone:,} rows are in Bronze alone, as deletes = "ignore" has it')
        if self.given.held.name is None:
            said.append("the source shares no snapshot: each statement saw a moment of its own")
        return tuple(said)

    def _ahead(self, result: VerifiedTable) -> bool:
        return result.position is not None and result.position > self.given.held.position

    def again(self) -> Claim:
        """The same, with the Bronze table as it is now."""
        return _resolve(self.given)


def claims_of_source(
    settings: Settings, tables: Sequence[str], batch_id: str, stack: ExitStack
) -> list[Claim]:
    """The tables to be proven, each source in one snapshot for as long as the stack lasts.

    Raises:
        ConfigError: a table is not there.
        SourceError: a source cannot be asked.
    """
    relations, sources = pipeline.open_sources(settings, batch_id, stack)
    return _claims(settings, selection.select_targets(settings, relations, tables), sources, stack)


def claims_of_bronze(
    settings: Settings, names: Collection[str], batch_id: str, stack: ExitStack
) -> list[Claim]:
    """The tables that become these Bronze tables (``schema.table``); one that no table of the
    source becomes, or several, is left out.

    Raises:
        ConfigError, SourceError: a source cannot be asked.
    """
    relations, sources = pipeline.open_sources(settings, batch_id, stack)
    taken = selection.all_targets(settings, relations)
    count = Counter(target.full_name for target in taken)
    chosen = [t for t in taken if t.full_name in names and count[t.full_name] == 1]
    return _claims(settings, chosen, sources, stack)


def _claims(
    settings: Settings,
    chosen: Sequence[Target],
    sources: Mapping[str, OpenSource],
    stack: ExitStack,
) -> list[Claim]:
    claims = []
    for name, source in sources.items():
        mine = [target for target in chosen if target.source == name]
        if mine:
            held = source.take_snapshot(settings, mine, stack)
            seen = {relation.oid: relation for relation in held.relations}
            claims += [_claim(settings, source, held, seen, target) for target in mine]
    return claims


def _claim(
    settings: Settings,
    source: OpenSource,
    held: Snapshot,
    seen: dict[int, Relation],
    target: Target,
) -> Claim:
    stamp = RowStamp("0", datetime.now(UTC), source.origin.name, target.settings.method)
    readers = budget.readers(settings.run.memory, settings.run.workers, source.slots)
    given = TableContext(target, held, source.origin, stamp, settings, readers)
    try:
        there = selection.with_relation(target, pipeline.relation_in_snapshot(target, held, seen))
        return _resolve(replace(given, target=carried_columns(given, there)))
    except BronzeError as error:
        return Claim(given, error=error)


def carried_columns(context: TableContext, target: Target) -> Target:
    """A table with those columns only that its stream carries, if it is streamed."""
    if target.settings.pattern != "streaming":
        return target
    relation = target.relation
    _, published = context.settings.stream.names(context.origin.name)
    names = ask_source(
        context, lambda holder: publication.streamed_columns(holder, relation, published)
    ) or {attribute.name for attribute in relation.attributes}
    return selection.with_columns_of(target, names)


def _resolve(context: TableContext) -> Claim:
    """The columns and the key by which both sides are compared."""
    target = context.target
    try:
        columns = selection.contract_columns(target)
        state = log.read(target.place)
        if state is None:
            return Claim(context, None, columns, len(columns))
        if properties.TABLE not in state.properties:
            raise LakeError(
                f"The table at {target.place.url} was not made by bronze.",
                hint="Move it away, or give the source's table another target.",
                table=target.label,
            )
        now = shape.evolve_columns(target, columns, state)
        protection = None if now.reload else keys.protection(context.settings, target, now)
        if now.reload or keys.is_rotated(protection, state):
            raise TableRefused(
                f"The protection of table {target.label} has changed since it landed last.",
                hint="A run writes it anew; then it can be proven.",
                table=target.label,
            )
        by = evolution.key_columns_in_source(state.properties)
        there = {column.target: column for column in now.columns if column.name}
        key = NO_KEY
        if by and set(by) <= there.keys():
            columns_by = [there[name] for name in by]
            key = key_text.row_key(columns_by, KEY_TEXT in dict(state.columns))
        return Claim(context, state, now.columns, now.base, key, protection)
    except BronzeError as error:
        return Claim(context, error=error)
