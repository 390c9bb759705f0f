"""What a run does with one table: which of its rows are read, and how they become the table's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from bronze.config.settings import Settings
from bronze.delta import log, properties
from bronze.delta.commit import Position, Shape
from bronze.delta.log import State
from bronze.delta.partition import column_of, source_of
from bronze.delta.schema import delta_schema
from bronze.delta.statistics import SAFE
from bronze.delta.write.history import KIND
from bronze.errors import TableRefused
from bronze.ingest import provide, units, watermarks
from bronze.ingest.row_key import (
    key_columns,
    keyless_refusal,
    lacks_text,
    merges_deleted_rows,
    row_key_of,
    unstable_key,
)
from bronze.model.anomaly import ANOMALY_COLUMNS
from bronze.model.columns import KEY_TEXT, Column, Kind, RowKey
from bronze.model.locations import Origin
from bronze.model.protection import Protection
from bronze.model.stamp import Stamp
from bronze.model.units import Enrichment, Known, Unit
from bronze.postgres.catalog import survey
from bronze.postgres.copy import incremental, splits
from bronze.postgres.copy.snapshot import Since, Snapshot
from bronze.protection import keys
from bronze.quality import rules
from bronze.rows.metadata import COMMITTED, METADATA
from bronze.tables import evolution, known_rows, selection
from bronze.tables.context import TableContext
from bronze.tables.evolution import ColumnContract
from bronze.tables.selection import Target

Mode = Literal["load", "compare", "changes"]
"""How rows become the table's: all of them replace what is there; all are held against it and
only differences land; or only those are read that may have changed."""


@dataclass(frozen=True)
class Plan:
    """What a run does with one table.

    ``row_key`` is what tells rows apart. ``state`` is the Bronze table as it was found, ``reached``
    the position that it is to hold. With ``doubting``, rows of the Bronze table are held against
    their own hashes first, as somebody else may have changed them.
    """

    target: Target
    mode: Mode
    settled: ColumnContract
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
        """The Bronze table's columns by which its rows are known, none where they are not."""
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
    """The plan of one table. With ``doubting``, or where another writer changed rows of the Bronze
    table, all rows are compared, and those of the Bronze table with their own hashes, too.

    Raises:
        TableRefused: the table cannot be read, or its columns cannot be held.
        SourceError: the snapshot's connection failed.
        LakeError: the Bronze table is none that we can write.
    """
    given = TableContext(target, snapshot, origin, stamp, settings, readers)
    known = outline_plan(given)
    state, settled = known.state, known.settled
    row_key, why_none = row_key_of(given, settled, state)
    key = row_key.names
    protection = known.protection
    if not keys.complete(protection):
        protection = keys.protection(settings, target, settled)
    if state is not None and merges_deleted_rows(target, state, key):
        said = "rows that are gone share the new key with others: the table is written anew"
        settled = replace(settled, anew=True, notes=(*settled.notes, said))
    if state is not None and lacks_text(target, state, row_key):
        said = f"its rows are known by {KEY_TEXT}, too: the table is written anew"
        settled = replace(settled, anew=True, notes=(*settled.notes, said))
    mode, where, why = _mode(given, state, settled, key, why_none)
    doubting |= state is not None and bool(state.foreign)
    if doubting and mode == "changes":
        mode, where = "compare", splits.WHOLE
    if doubting and mode == "compare" and state is not None:
        _refuse_duplicate_keys(target, state, settled, row_key)
    none = (f"its rows cannot be told apart: {why_none}",) if why_none else ()
    # A stream reads in the snapshot of a slot: without one it only finds out what is to be read.
    streamed = target.settings.pattern == "streaming"
    reading = not (streamed and (mode == "changes" or snapshot.name is None))
    enrichment = provide.enrichment_of(given, settled, row_key, state, protection, reading=reading)
    scoring = rules.fingerprint(settings, target, enrichment.quality.criteria)
    shape = _shape(given, settled, row_key, known.partition, state, enrichment, scoring)
    if state is not None and state.properties.get(properties.RULES, scoring) != scoring:
        why += ("its rules have changed: rows that do not change keep the scores that they have",)
    marks, looking = watermarks.next_watermarks(given, state, whole=mode != "changes")
    against = state if mode == "compare" else None

    def rows(where: str, against: State | None) -> tuple[Unit, ...]:
        inline = mode != "load"
        found = units.row_units(
            given, settled, shape, row_key, where, against, inline, enrichment, doubting
        )
        return tuple(found)

    # What has changed comes by the stream.
    work = rows(where, against) if reading else ()
    if looking and mode == "changes" and state is not None:
        work += tuple(units.key_units(given, settled, shape, row_key, state, len(work), enrichment))
    reached = Position(snapshot.timeline, snapshot.position, tuple(marks))
    return Plan(
        target=target,
        mode=mode,
        settled=settled,
        row_key=row_key,
        shape=shape,
        state=state,
        reached=reached,
        units=work,
        notes=settled.notes
        + none
        + why
        + (enrichment.watch.notes if enrichment.watch else ())
        + selection.unprotected(target, survey.by_names(target.relation)),
        all_units=lambda: rows(splits.WHOLE, state),
        enrichment=enrichment,
        doubting=doubting,
    )


_TEXT = Kind("string")


def _refuse_duplicate_keys(
    target: Target, state: State, contract: ColumnContract, key: RowKey
) -> None:
    """Makes sure that no key is there more than once, as only another writer can have it: rows are
    found by their keys, and one of two would stay.

    Raises:
        TableRefused: one is.
    """
    layout = (*((c.target, c.stored) for c in contract.columns), *METADATA, (KEY_TEXT, _TEXT))
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
    settled: ColumnContract
    partition: str | None
    key: tuple[Column, ...]
    protection: Protection | None


def outline_plan(context: TableContext) -> PlanOutline:
    """What a plan is made of that is not a matter of rows; `bronze check` looks no further.

    Raises:
        TableRefused: the table cannot be taken as the config says.
        LakeError: the Bronze table is none that we can write.
    """
    target = context.target
    state, settled, partition = resolve(target, context.held.since)
    key = key_columns(target, settled)
    protection = keys.protection(context.settings, target, settled, making=False)
    if keys.moved(protection, state):
        said = f"its keys have been rotated: {evolution.ANEW}"
        settled = replace(settled, anew=True, notes=(*settled.notes, said))
    why_none = "" if key else target.relation.keyless
    _mode(context, state, settled, tuple(column.target for column in key), why_none)
    if target.settings.pattern != "streaming":
        units.check_fits(context, state)
    return PlanOutline(state, settled, partition, key, protection)


def resolve(target: Target, since: Since) -> tuple[State | None, ColumnContract, str | None]:
    """What can be told of a table's run before its snapshot: the Bronze table as it is, the
    columns, and the partition column.

    Args:
        target: the table.
        since: what the source shows of open transactions.

    Raises:
        TableRefused: it cannot be taken as the config says.
        LakeError: the Bronze table is none that we can write.
    """
    own = target.settings
    found = selection.columns(target)
    if own.pattern not in ("full_refresh", "streaming"):
        refused = watermarks.cursor_refusal(target.relation, own.cursor, own.overlap, since)
        if refused:
            raise refused
    state = log.read(target.place)
    if state is None:
        settled = ColumnContract(found, len(found))
    else:
        state.writable()
        _refuse_other_table(target, state)
        settled = evolve(target, found, state)
        if meddled := evolution.meddled(state.columns, state.properties):
            said = f"another writer has changed the table's columns: {', '.join(meddled)}"
            settled = replace(settled, notes=(*settled.notes, said))
    _cluster_columns(target, settled)
    return state, settled, _partition_column(target, settled, state)


def evolve(target: Target, found: Sequence[Column], state: State) -> ColumnContract:
    """The columns of a table's run into the Bronze table that is there.

    Raises:
        TableRefused: a column has become something that the table's column cannot hold.
    """
    own = target.settings
    added = {state.partition, COMMITTED, KIND if own.history else None}
    added |= {name for name, _ in ANOMALY_COLUMNS} if _has_anomaly_columns(target, state) else set()
    columns = evolution.restored(state.columns, state.properties)
    held = [pair for pair in columns if pair[0] not in added]
    taken = {column.target for column in found}
    # A column that is taken may have got the name of one that is left out.
    dropped = {own.rename.get(name, name) for name in selection.left_out(target)} - taken
    return evolution.resolve_contract(
        found, held, state.properties, target.relation, dropped=sorted(dropped)
    )


def _has_anomaly_columns(target: Target, state: State | None) -> bool:
    """Whether the table has the columns of anomalies; once there, they stay."""
    before = state is not None and properties.WATCHED in state.properties
    return before or target.settings.anomalies is not None


def _refuse_other_table(target: Target, state: State) -> None:
    """Two tables of the source must not take turns in one Bronze table."""
    known = state.properties
    names = {known.get(properties.TABLE, target.label), known.get(properties.OID, "")}
    if not names & {target.label, str(target.relation.oid)}:
        raise TableRefused(
            f"The Bronze table {target.name} holds {known[properties.TABLE]}, not {target.label}.",
            hint="Give this one another target, or move that Bronze table away.",
            table=target.label,
        )


def _partition_column(target: Target, contract: ColumnContract, state: State | None) -> str | None:
    """The partition column.

    Raises:
        TableRefused: the config asks for one that cannot be, or that the table has not.
    """
    name = target.settings.partition_by
    kinds = {column.name: (column.target, column.stored) for column in contract.columns}
    kinds |= {own: (own, kind) for own, kind in METADATA}
    wanted = None
    if name:
        source, kind = kinds.get(name, ("", None))
        if kind is None or kind.name not in _DATED:
            what = f"is of type {kind}" if kind else "is not there"
            raise TableRefused(
                f"The column {name} of table {target.label} {what}; partition_by has to be a date"
                " or timestamp.",
                hint=f"Correct [tables.{selection.toml(target.relation.name)}] partition_by.",
                table=target.label,
            )
        wanted = column_of(source)
        if wanted in kinds:
            raise TableRefused(
                f"Table {target.label} has a column {wanted}, which partition_by would add.",
                hint=f'Rename it: rename = {{ "{wanted}" = "source_{wanted}" }}',
                table=target.label,
            )
    if state is not None and state.partition != wanted:
        raise TableRefused(
            f"The Bronze table {target.name} is partitioned by {state.partition or 'nothing'}, not"
            f" {wanted or 'nothing'}; that cannot be changed.",
            hint="Correct partition_by, or move the Bronze table away, and it is loaded anew.",
            table=target.label,
        )
    return wanted


_DATED = ("date", "timestamp", "timestamp_ntz")


def _shape(
    context: TableContext,
    contract: ColumnContract,
    row_key: RowKey,
    partition: str | None,
    state: State | None,
    enrichment: Enrichment,
    scoring: str,
) -> Shape:
    target = context.target
    layout = [*((column.target, column.stored) for column in contract.columns), *METADATA]
    layout += ANOMALY_COLUMNS if _has_anomaly_columns(target, state) else ()
    layout += [(KEY_TEXT, _TEXT)] if row_key.has_text else []
    layout += [(KIND, _TEXT)] if target.settings.history else []
    if target.settings.pattern == "streaming" or (state and COMMITTED in dict(state.columns)):
        layout.append((COMMITTED, Kind("timestamp")))
    layout += [(partition, Kind("date"))] if partition else []
    keyed = [column.target for column in row_key.columns]
    wanted = {*keyed, *row_key.names}
    wanted |= {*(_cursor_columns(target, contract) or ()), *_cluster_columns(target, contract)}
    wanted -= {c.target for c in contract.columns if c.protect and not c.protect.stable}
    stats = tuple(name for name, kind in layout if name in wanted and kind.name in SAFE)
    notes = {
        properties.SOURCE: target.source,
        properties.SCHEMA: target.relation.schema,
        properties.TABLE: target.label,
        properties.OID: str(target.relation.oid),
        properties.KEY: json.dumps(row_key.names),
        properties.BASE: str(contract.base),
        properties.NUMBERS: evolution.numbers(contract.columns, target.relation),
        properties.RULES: scoring,
        properties.DEFINITION: json.dumps(target.relation.definition, sort_keys=True),
    }
    if target.published:
        notes[properties.PUBLISHED] = target.published
    if enrichment.protection or (state and properties.PROTECT in state.properties):
        notes[properties.PROTECT] = evolution.protects(contract.columns)
        notes[keys.IDS] = keys.ids(enrichment.protection)
    if target.settings.pattern == "streaming":
        notes[properties.ENFORCED] = json.dumps(target.relation.enforces(target.key))
    notes[properties.THRESHOLDS] = evolution.thresholds(
        state.properties if state and not contract.anew else None,
        context.settings.demanded(target.settings).threshold,
    )
    if state is not None and properties.CUT in state.properties:
        notes[properties.CUT] = ""
    if state is not None:
        notes |= evolution.widened(contract.columns, state.columns, state.properties)
        notes |= evolution.former(contract.columns, state.properties, target.relation)
    notes[properties.LAYOUT] = delta_schema(layout)
    if row_key.has_text:
        notes[properties.KEYED] = json.dumps(keyed)
    if _has_anomaly_columns(target, state):
        notes[properties.WATCHED] = "true"
    kept = context.settings.maintain.properties()
    return Shape(tuple(layout), stats, partition, (*kept, *notes.items()))


def _cluster_columns(target: Target, contract: ColumnContract) -> tuple[str, ...]:
    """The target names of the columns to cluster by.

    Raises:
        TableRefused: one of them is not there.
    """
    names = {column.name: column.target for column in contract.columns}
    names |= {own: own for own, _ in METADATA}
    missing = [name for name in target.settings.cluster_by if name not in names]
    if missing:
        raise TableRefused(
            f"Table {target.label} has no column {missing[0]} to cluster by.",
            hint=f"Correct [tables.{selection.toml(target.relation.name)}] cluster_by.",
            table=target.label,
        )
    wanted = [column for column in contract.columns if column.name in target.settings.cluster_by]
    if hidden := [c for c in wanted if c.protect and not c.protect.stable]:
        raise unstable_key(target, hidden[0], "are clustered")
    return tuple(names[name] for name in target.settings.cluster_by)


def _cursor_columns(target: Target, contract: ColumnContract) -> tuple[str, ...] | None:
    name = target.settings.cursor
    if name == incremental.XMIN:
        return None
    return tuple(column.target for column in contract.columns if column.name == name)


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
    if contract.anew and own.deletes == "ignore":
        raise TableRefused(
            f"The table {context.target.name} would have to be written anew"
            f" ({contract.notes[-1].partition(':')[0]}), without the rows that are in Bronze alone.",
            hint='Give the table another target = "bz_…"; or have deletes = "detect", which lets'
            " those rows go.",
            table=relation.label,
        )
    if own.pattern == "full_refresh":
        load = state is None or not key or contract.anew
        why = watermarks.foreign_commits_reason(state) if state else ""
        said = (f"all rows are compared: {why}",) if why else ()
        return ("load" if load else "compare"), splits.WHOLE, said
    if state is None or contract.anew:
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
    if contract.anew:
        return TableRefused(
            f"The history {context.target.name} would have to be written anew"
            f" ({contract.notes[-1].partition(':')[0]}), and its versions cannot be read anew.",
            hint='Give the history another target = "bz_…", or move the Bronze table away.',
            table=label,
        )
    return None
