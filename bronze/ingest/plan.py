"""What a run does with one table: which of its rows are read, and how they become the table's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from bronze.anomaly import models
from bronze.config.settings import Settings
from bronze.delta import properties
from bronze.delta.commit import Position, Shape
from bronze.delta.log import State
from bronze.delta.partition import source_of
from bronze.delta.write.history import KIND
from bronze.errors import TableRefused
from bronze.ingest import units, watermarks
from bronze.ingest.row_key import (
    key_columns,
    keyless_refusal,
    lacks_text,
    merges_deleted_rows,
    row_key_of,
)
from bronze.ingest.shape import TEXT, resolve_columns, shape_of
from bronze.model.columns import KEY_TEXT, Column, RowKey
from bronze.model.locations import Origin
from bronze.model.protection import Protection
from bronze.model.stamp import Stamp
from bronze.model.units import Enrichment, Known, Unit
from bronze.postgres.catalog import survey
from bronze.postgres.copy import splits
from bronze.postgres.copy.snapshot import Snapshot
from bronze.protection import keys
from bronze.quality import rules, set_rules
from bronze.rows.metadata import METADATA
from bronze.tables import evolution, known_rows, selection
from bronze.tables.context import TableContext
from bronze.tables.evolution import ColumnContract
from bronze.tables.selection import Target

Mode = Literal["load", "compare", "changes"]
"""How rows get into the table: "load", all rows replace what is there; "compare", all rows are read
and only differences are merged; "changes", only rows that may have changed are read and merged."""


@dataclass(frozen=True)
class Plan:
    """What a run does with one table.

    ``state`` is the Bronze table when the plan was made, ``reached`` the position that it will
    hold, ``shape`` the schema that it will have. ``units`` read the rows of the source; the units
    of ``all_units()`` read all of them, to compare. With ``doubting``, each row of the Bronze table
    is checked against its own hashes first, as another writer may have changed it.
    """

    target: Target
    mode: Mode
    contract: ColumnContract
    row_key: RowKey
    shape: Shape
    state: State | None
    reached: Position
    units: tuple[Unit, ...]
    notes: tuple[str, ...]
    all_units: Callable[[], tuple[Unit, ...]] = field(repr=False)
    enrichment: Enrichment
    doubting: bool = False

    def whole(self, why: str = "its cursor has not shown all that changed") -> Plan:
        """The plan that compares all rows, in the same snapshot."""
        note = f"all rows were compared: {why}"
        return replace(self, mode="compare", units=self.all_units(), notes=(*self.notes, note))

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the Bronze table that tell its rows apart; none where nothing does."""
        return self.row_key.names

    @property
    def dates_of(self) -> str | None:
        """The column whose dates are the table's partitions."""
        return source_of(self.shape.partition) if self.shape.partition else None


def plan_table(
    target: Target,
    snapshot: Snapshot,
    origin: Origin,
    stamp: Stamp,
    settings: Settings,
    readers: int,
    doubting: bool = False,
) -> Plan:
    """The plan of one table.

    With ``doubting``, or where another writer changed rows of the Bronze table, all rows are
    compared, and each row of the Bronze table is checked against its own hashes.

    Raises:
        TableRefused: the table cannot be read, or its columns cannot be held.
        SourceError: the snapshot's connection failed.
        LakeError: the Bronze table is none that we can write.
    """
    context = TableContext(target, snapshot, origin, stamp, settings, readers)
    outline = outline_plan(context)
    state, contract = outline.state, outline.contract
    row_key, keyless = row_key_of(context, contract, state)
    protection = outline.protection
    if not keys.complete(protection):
        protection = keys.protection(settings, target, contract)
    contract = _with_new_key(target, contract, row_key, state)
    mode, where, why = _mode(context, state, contract, row_key.names, keyless)
    doubting |= state is not None and bool(state.foreign)
    if doubting and mode == "changes":
        mode, where = "compare", splits.WHOLE
    if doubting and mode == "compare" and state is not None:
        _refuse_duplicate_keys(target, state, contract, row_key)
    # A stream reads in the snapshot of its slot: without one it only looks what is to be read.
    streamed = target.settings.pattern == "streaming"
    reading = not (streamed and (mode == "changes" or snapshot.name is None))
    enrichment = _enrichment(context, contract, row_key, state, protection, reading=reading)
    scoring = rules.fingerprint(settings, target, enrichment.quality.criteria)
    if state is not None and state.properties.get(properties.RULES, scoring) != scoring:
        why += ("its rules have changed: rows that do not change keep the scores that they have",)
    shape = shape_of(context, contract, row_key, outline.partition, state, enrichment, scoring)
    marks, seeking_deletes = watermarks.next_watermarks(context, state, whole=mode != "changes")

    def rows(where: str, merging: bool, against: State | None) -> tuple[Unit, ...]:
        return tuple(
            units.row_units(
                context,
                contract,
                shape,
                row_key,
                where,
                enrichment,
                merging=merging,
                against=against,
                doubting=doubting,
            )
        )

    work: tuple[Unit, ...] = ()
    if reading:
        work = rows(where, mode != "load", state if mode == "compare" else None)
    if seeking_deletes and mode == "changes" and state is not None:
        start = len(work)
        work += tuple(units.key_units(context, contract, shape, row_key, state, start, enrichment))
    return Plan(
        target=target,
        mode=mode,
        contract=contract,
        row_key=row_key,
        shape=shape,
        state=state,
        reached=Position(snapshot.timeline, snapshot.position, tuple(marks)),
        units=work,
        notes=(
            *contract.notes,
            *((f"its rows cannot be told apart: {keyless}",) if keyless else ()),
            *why,
            *(enrichment.watch.notes if enrichment.watch else ()),
            *selection.unprotected(target, survey.by_names(target.relation)),
        ),
        all_units=lambda: rows(splits.WHOLE, True, state),
        enrichment=enrichment,
        doubting=doubting,
    )


def _with_new_key(
    target: Target, contract: ColumnContract, key: RowKey, state: State | None
) -> ColumnContract:
    """The contract of a table that has to be written again where its key is another one."""
    why: tuple[str, ...] = ()
    if state is not None and merges_deleted_rows(target, state, key.names):
        why += ("rows marked as deleted share the new key with others: the table is reloaded",)
    if state is not None and lacks_text(target, state, key):
        why += (f"{KEY_TEXT} becomes part of its key: the table is reloaded",)
    return replace(contract, reload=True, notes=(*contract.notes, *why)) if why else contract


def _enrichment(
    context: TableContext,
    contract: ColumnContract,
    key: RowKey,
    state: State | None,
    protection: Protection | None,
    *,
    reading: bool,
) -> Enrichment:
    """What all units add to the rows of a table; ``reading`` says whether rows are read from the
    snapshot, or come by a stream.
    """
    protect = context.target.settings.protect
    protected = {name for name, how in protect.items() if how.method != "clear"}
    quality = set_rules.quality(context, contract, key, asking=reading, protected=protected)
    watch = models.watch(context, contract, key.names, state, protected)
    return Enrichment(protection=protection, watch=watch, quality=quality)


def _refuse_duplicate_keys(
    target: Target, state: State, contract: ColumnContract, key: RowKey
) -> None:
    """Makes sure that no key is there more than once, as only another writer can have it: rows are
    found by their keys, and one of two would stay.

    Raises:
        TableRefused: one is.
    """
    layout = (*((c.target, c.stored) for c in contract.columns), *METADATA, (KEY_TEXT, TEXT))
    known = Known(state.place, state.version, state.files, layout, key.names, 0)
    if target.settings.history or not known_rows.doubled(known):
        return
    said = f" ({', '.join(state.foreign)})" if state.foreign else ""
    raise TableRefused(
        f"The Bronze table {target.name} has rows of the same key: another writer has put them"
        f" there{said}.",
        hint=f"`bronze verify {target.label} --repair` takes out those that are too many.",
        table=target.label,
    )


@dataclass(frozen=True)
class PlanOutline:
    """What is known of a plan before any row of the source is looked at. ``key`` are the key's
    columns, none where there is none; keys of ``protection`` may be still to make.
    """

    state: State | None
    contract: ColumnContract
    partition: str | None
    key: tuple[Column, ...]
    protection: Protection | None


def outline_plan(context: TableContext) -> PlanOutline:
    """The part of a plan that needs no row of the source; `bronze check` looks no further.

    Raises:
        TableRefused: the table cannot be loaded as the config says.
        LakeError: the Bronze table is none that we can write.
    """
    target = context.target
    state, contract, partition = resolve_columns(target, context.held.since)
    key = key_columns(target, contract)
    protection = keys.protection(context.settings, target, contract, making=False)
    if keys.moved(protection, state):
        note = f"its keys have been rotated: {evolution.ANEW}"
        contract = replace(contract, reload=True, notes=(*contract.notes, note))
    keyless = "" if key else target.relation.keyless
    _mode(context, state, contract, tuple(column.target for column in key), keyless)
    if target.settings.pattern != "streaming":
        units.check_fits(context, state)
    return PlanOutline(state, contract, partition, key, protection)


def _mode(
    context: TableContext,
    state: State | None,
    contract: ColumnContract,
    key: tuple[str, ...],
    why_none: str,
) -> tuple[Mode, str, tuple[str, ...]]:
    """How the table is taken, the condition for changes, and what to say about it."""
    own, relation = context.target.settings, context.target.relation
    if refused := keyless_refusal(context.target, key, why_none):
        raise refused
    if own.history and (refused := _history_refusal(context, state, contract)):
        raise refused
    if contract.reload and own.deletes == "ignore":
        raise TableRefused(
            f"Table {context.target.name} would have to be reloaded"
            f" ({contract.notes[-1].partition(':')[0]}), without the rows that only Bronze has.",
            hint='Give the table another target = "bz_…"; or have deletes = "detect", which lets'
            " those rows go.",
            table=relation.label,
        )
    if own.pattern == "full_refresh":
        load = state is None or not key or contract.reload
        why = watermarks.foreign_commits_reason(state) if state else ""
        said = (f"all rows are compared: {why}",) if why else ()
        return ("load" if load else "compare"), splits.WHOLE, said
    if state is None or contract.reload:
        return "load", splits.WHOLE, ()
    why = watermarks.reason_to_compare(context, state, contract, key)
    if not why and own.pattern == "streaming":
        return "changes", splits.WHOLE, ()
    if why:
        return "compare", splits.WHOLE, (f"all rows are compared: {why}",)
    where = watermarks.changes_condition(context, state)
    if where is None:
        return "compare", splits.WHOLE, ("all rows are compared: the last run was too long ago",)
    return "changes", where, ()


def _history_refusal(
    context: TableContext, state: State | None, contract: ColumnContract
) -> TableRefused | None:
    """Why a table's history cannot be kept, None where it can."""
    label = context.target.label
    if state is not None and KIND not in dict(state.columns):
        return TableRefused(
            f"The Bronze table {context.target.name} keeps no history, and cannot begin to.",
            hint='Give the history another target = "bz_…", or move the Bronze table away.',
            table=label,
        )
    if contract.reload:
        return TableRefused(
            f"The history {context.target.name} would have to be written anew"
            f" ({contract.notes[-1].partition(':')[0]}), and its versions cannot be read anew.",
            hint='Give the history another target = "bz_…", or move the Bronze table away.',
            table=label,
        )
    return None
