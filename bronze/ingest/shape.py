"""The Bronze table that a run writes: its columns, partition, clustering and properties."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from bronze.delta import log, properties
from bronze.delta.commit import Shape
from bronze.delta.log import State
from bronze.delta.partition import column_of
from bronze.delta.schema import delta_schema
from bronze.delta.statistics import SAFE
from bronze.delta.write.history import KIND
from bronze.errors import TableRefused
from bronze.ingest import watermarks
from bronze.ingest.row_key import (
    unstable_key,
)
from bronze.model.anomaly import ANOMALY_COLUMNS
from bronze.model.columns import KEY_TEXT, Column, Kind, RowKey
from bronze.model.units import Enrichment
from bronze.postgres.copy import incremental
from bronze.postgres.copy.snapshot import Since
from bronze.protection import keys
from bronze.rows.metadata import COMMITTED, METADATA
from bronze.tables import evolution, selection
from bronze.tables.context import TableContext
from bronze.tables.evolution import ColumnContract
from bronze.tables.selection import Target

TEXT = Kind("string")


def resolve_columns(
    target: Target, since: Since
) -> tuple[State | None, ColumnContract, str | None]:
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
        settled = evolve_columns(target, found, state)
        if meddled := evolution.meddled(state.columns, state.properties):
            said = f"another writer has changed the table's columns: {', '.join(meddled)}"
            settled = replace(settled, notes=(*settled.notes, said))
    _cluster_columns(target, settled)
    return state, settled, _partition_column(target, settled, state)


def evolve_columns(target: Target, found: Sequence[Column], state: State) -> ColumnContract:
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


def shape_of(
    context: TableContext,
    contract: ColumnContract,
    row_key: RowKey,
    partition: str | None,
    state: State | None,
    enrichment: Enrichment,
    scoring: str,
) -> Shape:
    """The schema and properties that the Bronze table gets.

    Args:
        context: the table.
        contract: the columns of the source.
        row_key: what tells rows apart.
        partition: the partition column, None where there is none.
        state: the Bronze table, None where there is none yet.
        enrichment: what rows get beside their values.
        scoring: the fingerprint of the rules.
    """
    target = context.target
    layout = [*((column.target, column.stored) for column in contract.columns), *METADATA]
    layout += ANOMALY_COLUMNS if _has_anomaly_columns(target, state) else ()
    layout += [(KEY_TEXT, TEXT)] if row_key.has_text else []
    layout += [(KIND, TEXT)] if target.settings.history else []
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
        state.properties if state and not contract.reload else None,
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
