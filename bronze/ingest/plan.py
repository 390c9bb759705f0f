"""The plan of one table: which rows a run reads, and how they get into the Bronze table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from bronze.anomaly import models, samples
from bronze.anomaly.models import PendingMonitoring
from bronze.config.settings import Settings
from bronze.delta.commit import Shape
from bronze.delta.log import State
from bronze.delta.positions import Position
from bronze.delta.properties import TableProperties
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
from bronze.ingest.shape import TEXT, resolve_columns, shape_of, with_chosen_columns
from bronze.model.anomaly import Monitoring
from bronze.model.columns import KEY_TEXT, Column, RowKey
from bronze.model.locations import Destination, Origin
from bronze.model.protection import TableProtection
from bronze.model.stamp import RowStamp
from bronze.model.units import Enrichment, KnownRows, Unit
from bronze.postgres.catalog import survey
from bronze.postgres.copy import splits
from bronze.postgres.copy.snapshot import Snapshot
from bronze.protection import keys
from bronze.quality import rules, set_rules
from bronze.rows.metadata import METADATA_COLUMNS
from bronze.tables import duplicate_keys, evolution, selection
from bronze.tables.context import TableContext
from bronze.tables.evolution import ColumnContract
from bronze.tables.selection import Target

Mode = Literal["load", "compare", "changes"]
"""How rows get into the table: "load" replaces all rows; "compare" reads all rows and merges the
differences; "changes" reads and merges only rows that may have changed."""


@dataclass(frozen=True)
class Plan:
    """What a run does with one table.

    ``state`` is the Bronze table when the plan was made; ``reached`` is the position, and ``shape``
    the schema, that the commit gives it. ``units`` read rows of the source; the units of
    ``all_units()`` read all of them, to compare. With ``doubting``, each row of the Bronze table is
    checked against its own hashes first, as another writer may have changed it. With ``pending``, a
    model has to be trained before rows are read.
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
    pending: PendingMonitoring | None = field(default=None, repr=False)

    def monitored(self, watch: Monitoring) -> Plan:
        """The plan whose units monitor their rows like this, once the model has been trained."""
        enrichment, all_units = replace(self.enrichment, watch=watch), self.all_units

        def with_scores(units: tuple[Unit, ...]) -> tuple[Unit, ...]:
            return tuple(replace(u, rows=replace(u.rows, enrichment=enrichment)) for u in units)

        return replace(
            self,
            units=with_scores(self.units),
            notes=(*self.notes, *watch.notes),
            all_units=lambda: with_scores(all_units()),
            enrichment=enrichment,
            pending=None,
        )

    def with_chosen_columns(self, state: State) -> Plan:
        """The plan that writes statistics of the columns, too, that were chosen since it was made
        to cluster the Bronze table by.
        """
        return replace(self, shape=with_chosen_columns(self.shape, self.contract, state))

    def compare_all_rows(self, why: str = "its cursor did not show all changes") -> Plan:
        """The plan that compares all rows, in the same snapshot."""
        note = f"all rows were compared: {why}"
        return replace(self, mode="compare", units=self.all_units(), notes=(*self.notes, note))

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the Bronze table that tell its rows apart; empty without a key."""
        return self.row_key.names

    def destination(self, stamp: RowStamp) -> Destination:
        """The Bronze table, as a batch writes into it."""
        return self.shape.destination(self.target.place, self.key, stamp)


def plan_table(
    target: Target,
    snapshot: Snapshot,
    origin: Origin,
    stamp: RowStamp,
    settings: Settings,
    readers: int,
    doubting: bool = False,
    bronze_table: Callable[[], State | None] | None = None,
) -> Plan:
    """The plan of one table.

    With ``doubting``, or where another writer changed rows of the Bronze table, all rows are
    compared, and each row of the Bronze table is checked against its own hashes. ``bronze_table``
    is what reads the Bronze table, if it was begun to be read before.

    Raises:
        TableRefused: the table cannot be read, or Delta cannot hold its columns.
        SourceError: the snapshot's connection failed.
        LakeError: bronze cannot write the Bronze table.
    """
    context = TableContext(target, snapshot, origin, stamp, settings, readers)
    outline = outline_plan(context, bronze_table)
    state, contract = outline.state, outline.contract
    row_key, no_key_reason = row_key_of(context, contract, state)
    protection = outline.protection
    if not keys.has_all_keys(protection):
        protection = keys.protection(settings, target, contract)
    contract = _with_new_key(target, contract, row_key, state)
    mode, where, mode_notes = _mode(context, state, contract, row_key.names, no_key_reason)
    if state is not None and (doubting or state.foreign):
        doubting = True
        mode, where = _doubting_mode(target, mode, state, contract, row_key)
    reading = _reads_rows(context, mode)
    enrichment, pending = _enrichment(
        context, contract, row_key, state, protection, reading=reading
    )
    scoring = rules.fingerprint(settings, target, enrichment.quality.criteria)
    shape = shape_of(context, contract, row_key, outline.partition, state, enrichment, scoring)
    watermarks_reached, seeking_deletes = watermarks.next_watermarks(
        context, state, whole=mode != "changes"
    )
    row_units = partial(
        units.row_units,
        context,
        contract,
        shape,
        row_key,
        enrichment=enrichment,
        doubting=doubting,
    )
    work: list[Unit] = []
    if reading:
        against = state if mode == "compare" else None
        work += row_units(where, merging=mode != "load", against=against)
    if seeking_deletes and mode == "changes" and state is not None:
        work += units.key_units(context, contract, shape, row_key, state, len(work), enrichment)
    return Plan(
        target=target,
        mode=mode,
        contract=contract,
        row_key=row_key,
        shape=shape,
        state=state,
        reached=Position(snapshot.timeline, snapshot.position, tuple(watermarks_reached)),
        units=tuple(work),
        notes=(
            *contract.notes,
            *((f"it has no key: {no_key_reason}",) if no_key_reason else ()),
            *mode_notes,
            *_rules_note(state, scoring),
            *(enrichment.watch.notes if enrichment.watch else ()),
            *selection.unprotected_notes(target, survey.personal_by_name(target.relation)),
        ),
        all_units=lambda: tuple(row_units(splits.WHOLE_TABLE, merging=True, against=state)),
        enrichment=enrichment,
        doubting=doubting,
        pending=pending,
    )


def _doubting_mode(
    target: Target, mode: Mode, state: State, contract: ColumnContract, key: RowKey
) -> tuple[Mode, str]:
    """The mode and the split for a Bronze table with rows that may be altered: none is trusted.

    Raises:
        TableRefused: two rows of the Bronze table share a key.
    """
    if mode == "load":
        return "load", splits.WHOLE_TABLE
    _refuse_duplicate_keys(target, state, contract, key)
    return "compare", splits.WHOLE_TABLE


def _reads_rows(context: TableContext, mode: Mode) -> bool:
    """Whether rows are read from the snapshot. Those of a stream come as changes where possible;
    before its slot has a snapshot, the plan only says what to read.
    """
    streamed = context.target.settings.pattern == "streaming"
    return not (streamed and (mode == "changes" or context.snapshot.name is None))


def _rules_note(state: State | None, scoring: str) -> tuple[str, ...]:
    if state is None or TableProperties.read(state.properties).rules in (None, scoring):
        return ()
    return ("its rules have changed: rows that did not change keep their scores",)


def _with_new_key(
    target: Target, contract: ColumnContract, key: RowKey, state: State | None
) -> ColumnContract:
    """The contract, with a reload where the table's rows cannot be given their new key."""
    notes: tuple[str, ...] = ()
    if state is not None and merges_deleted_rows(target, state, key.names):
        notes += ("rows marked as deleted share the new key with others: the table is reloaded",)
    if state is not None and lacks_text(target, state, key):
        notes += (f"{KEY_TEXT} becomes part of its key: the table is reloaded",)
    if not notes:
        return contract
    return replace(contract, reload=True, notes=(*contract.notes, *notes))


def _enrichment(
    context: TableContext,
    contract: ColumnContract,
    key: RowKey,
    state: State | None,
    protection: TableProtection | None,
    *,
    reading: bool,
) -> tuple[Enrichment, PendingMonitoring | None]:
    """What all units add to the rows of a table, and the training of a model that their workers
    do first; ``reading`` is false where rows come by a stream instead of the snapshot.
    """
    protect = context.target.settings.protect
    protected = {name for name, how in protect.items() if how.method != "clear"}
    quality = set_rules.quality_rules(context, contract, key, asking=reading, protected=protected)
    watch = models.monitoring_of(context, contract, key.names, state, protected)
    pending = None
    if isinstance(watch, PendingMonitoring):
        # Where nothing is read, no worker comes before the first rows.
        if reading:
            watch, pending = None, watch
        else:
            watch = watch.record(samples.train(watch.training))
    return Enrichment(protection=protection, watch=watch, quality=quality), pending


def _refuse_duplicate_keys(
    target: Target, state: State, contract: ColumnContract, key: RowKey
) -> None:
    """Checks that no two rows of the Bronze table share a key. Rows are found by their keys, so
    that one of the two would stay; only another writer can have written such rows.

    Raises:
        TableRefused: two rows share a key.
    """
    layout = (
        *((c.target, c.stored_type) for c in contract.columns),
        *METADATA_COLUMNS,
        (KEY_TEXT, TEXT),
    )
    known = KnownRows(state.place, state.version, state.files, layout, key.names, 0)
    if target.settings.history or not duplicate_keys.has_duplicates(known):
        return
    commits = f" ({', '.join(state.foreign)})" if state.foreign else ""
    raise TableRefused(
        f"The Bronze table {target.name} has several rows of the same key, from another"
        f" writer{commits}.",
        hint=f"`bronze verify {target.label} --repair` removes the surplus rows.",
        table=target.label,
    )


@dataclass(frozen=True)
class PlanOutline:
    """What a plan says before any row of the source is read. ``key`` has the columns of the key,
    none without one; keys of ``protection`` may not exist yet.
    """

    state: State | None
    contract: ColumnContract
    partition: str | None
    key: tuple[Column, ...]
    protection: TableProtection | None


def outline_plan(
    context: TableContext, bronze_table: Callable[[], State | None] | None = None
) -> PlanOutline:
    """The part of a plan that needs no row of the source; all that `bronze check` does.

    ``bronze_table`` is as in `plan_table`.

    Raises:
        TableRefused: the table cannot be loaded as the config says.
        LakeError: bronze cannot write the Bronze table.
    """
    target = context.target
    state, contract, partition = resolve_columns(target, context.snapshot.since, bronze_table)
    key = key_columns(target, contract)
    protection = keys.protection(context.settings, target, contract, making=False)
    if keys.is_rotated(protection, state):
        note = f"its keys have been rotated: {evolution.RELOAD_NOTE}"
        contract = replace(contract, reload=True, notes=(*contract.notes, note))
    no_key_reason = "" if key else target.relation.keyless
    names = tuple(column.target for column in key)
    if refusal := _refusal(context, state, contract, names, no_key_reason):
        raise refusal
    if target.settings.pattern != "streaming":
        units.check_fits(context, state)
    return PlanOutline(state, contract, partition, key, protection)


def _mode(
    context: TableContext,
    state: State | None,
    contract: ColumnContract,
    key: tuple[str, ...],
    no_key_reason: str,
) -> tuple[Mode, str, tuple[str, ...]]:
    """How rows get into the table, the condition in SQL for the rows to read, and notes.

    Raises:
        TableRefused: the table cannot be loaded as the config says.
    """
    if refusal := _refusal(context, state, contract, key, no_key_reason):
        raise refusal
    pattern = context.target.settings.pattern
    if pattern == "full_refresh":
        replaced = state is None or not key or contract.reload
        reason = watermarks.foreign_commits_reason(state) if state else ""
        return "load" if replaced else "compare", splits.WHOLE_TABLE, _comparison_note(reason)
    if state is None or contract.reload:
        return "load", splits.WHOLE_TABLE, ()
    if reason := watermarks.reason_to_compare(context, state, contract, key):
        return "compare", splits.WHOLE_TABLE, _comparison_note(reason)
    if pattern == "streaming":
        return "changes", splits.WHOLE_TABLE, ()
    where = watermarks.changes_condition(context, state)
    if where is None:
        return "compare", splits.WHOLE_TABLE, _comparison_note("the last run was too long ago")
    return "changes", where, ()


def _comparison_note(reason: str) -> tuple[str, ...]:
    return (f"all rows are compared: {reason}",) if reason else ()


def _refusal(
    context: TableContext,
    state: State | None,
    contract: ColumnContract,
    key: tuple[str, ...],
    no_key_reason: str,
) -> TableRefused | None:
    """Why a table cannot be loaded as the config says, None where it can."""
    target = context.target
    if refusal := keyless_refusal(target, key, no_key_reason):
        return refusal
    if target.settings.history and (refusal := _history_refusal(target, state, contract)):
        return refusal
    if contract.reload and target.settings.deletes == "ignore":
        return TableRefused(
            f"Table {target.name} would have to be reloaded ({_reload_reason(contract)}), without"
            " the rows that only Bronze has.",
            hint='Give the table another target = "bz_…"; or set deletes = "detect", which gives up'
            " those rows.",
            table=target.label,
        )
    return None


def _history_refusal(
    target: Target, state: State | None, contract: ColumnContract
) -> TableRefused | None:
    """Why the history of a table cannot be kept, None where it can."""
    hint = 'Give the history another target = "bz_…", or move the Bronze table away.'
    if state is not None and KIND not in dict(state.columns):
        return TableRefused(
            f"The Bronze table {target.name} keeps no history, and cannot begin to.",
            hint=hint,
            table=target.label,
        )
    if contract.reload:
        return TableRefused(
            f"The history {target.name} would have to be reloaded ({_reload_reason(contract)}), but"
            " the source does not have its old versions.",
            hint=hint,
            table=target.label,
        )
    return None


def _reload_reason(contract: ColumnContract) -> str:
    return contract.notes[-1].partition(":")[0]
