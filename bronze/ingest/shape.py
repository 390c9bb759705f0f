"""The schema of the Bronze table that a run writes: columns, partition, statistics, properties."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from bronze.delta import log, properties
from bronze.delta.commit import Shape
from bronze.delta.layout import choice
from bronze.delta.log import State
from bronze.delta.partition import column_of
from bronze.delta.properties import TableProperties
from bronze.delta.read.clustering import CLUSTERED
from bronze.delta.schema import VECTORS_ENABLED, delta_schema
from bronze.delta.statistics import SAFE
from bronze.delta.write.history import KIND
from bronze.errors import TableRefused
from bronze.ingest import watermarks
from bronze.ingest.row_key import unstable_key
from bronze.model.anomaly import ANOMALY_COLUMNS
from bronze.model.columns import KEY_TEXT, Column, DeltaType, RowKey
from bronze.model.units import Enrichment
from bronze.postgres.copy import incremental
from bronze.postgres.copy.snapshot import OpenTransactions
from bronze.protection import keys
from bronze.rows.metadata import COMMIT_TIMESTAMP, METADATA_COLUMNS
from bronze.tables import evolution, row_format, selection
from bronze.tables.context import TableContext
from bronze.tables.evolution import ColumnContract
from bronze.tables.selection import Target

TEXT = DeltaType("string")


def resolve_columns(
    target: Target, since: OpenTransactions, bronze_table: Callable[[], State | None] | None = None
) -> tuple[State | None, ColumnContract, str | None]:
    """The Bronze table as it is, the columns that a run writes, and the partition column; no
    snapshot is needed for them.

    Args:
        target: the table.
        since: what the source shows of open transactions.
        bronze_table: what reads the Bronze table, if it was begun to be read before.

    Raises:
        TableRefused: the table cannot be loaded as the config says.
        LakeError: bronze cannot write the Bronze table.
    """
    settings = target.settings
    columns = selection.contract_columns(target)
    if settings.pattern not in ("full_refresh", "streaming"):
        refusal = watermarks.cursor_refusal(
            target.relation, settings.cursor, settings.overlap, since
        )
        if refusal:
            raise refusal
    state = bronze_table() if bronze_table else log.read(target.place)
    if state is None:
        contract = ColumnContract(columns, len(columns))
    else:
        state.writable()
        _refuse_other_table(target, state)
        contract = evolve_columns(target, columns, state)
        if foreign_changes := row_format.foreign_column_changes(state.columns, state.properties):
            note = f"another writer has changed the table's columns: {', '.join(foreign_changes)}"
            contract = replace(contract, notes=(*contract.notes, note))
    cluster_columns(target, contract)
    return state, contract, _partition_column(target, contract, state)


def evolve_columns(target: Target, columns: Sequence[Column], state: State) -> ColumnContract:
    """The column contract of a run that writes into an existing Bronze table.

    Args:
        target: the table.
        columns: the columns of the source.
        state: the Bronze table.

    Raises:
        TableRefused: the Bronze table cannot hold a column any more.
    """
    settings = target.settings
    added = {state.partition, COMMIT_TIMESTAMP, KIND if settings.history else None}
    added |= {name for name, _ in ANOMALY_COLUMNS} if _has_anomaly_columns(target, state) else set()
    restored = row_format.columns_as_written(state.columns, state.properties)
    bronze_columns = [pair for pair in restored if pair[0] not in added]
    targets = {column.target for column in columns}
    # A column may have been renamed to the name of one that is left out.
    dropped = {
        settings.rename.get(name, name) for name in selection.dropped_columns(target)
    } - targets
    return evolution.resolve_contract(
        columns, bronze_columns, state.properties, target.relation, dropped=sorted(dropped)
    )


def _has_anomaly_columns(target: Target, state: State | None) -> bool:
    """Whether the table has the columns of anomaly scores; once it has, it keeps them."""
    had_them = state is not None and TableProperties.read(state.properties).has_anomaly_columns
    return had_them or target.settings.anomalies is not None


def _refuse_other_table(target: Target, state: State) -> None:
    """Checks that the Bronze table is of this source table, by its name or its oid.

    Raises:
        TableRefused: it is of another one.
    """
    known = TableProperties.read(state.properties)
    if known.label not in ("", target.label) and known.oid != target.relation.oid:
        raise TableRefused(
            f"The Bronze table {target.name} holds {known.label}, not {target.label}.",
            hint="Give this table another target, or move that Bronze table away.",
            table=target.label,
        )


def _partition_column(target: Target, contract: ColumnContract, state: State | None) -> str | None:
    """The name of the partition column, None without one.

    Raises:
        TableRefused: the config asks for one that is not possible, or not the Bronze table's.
    """
    name = _configured_partition_column(target, contract)
    if state is not None and state.partition != name:
        raise TableRefused(
            f"The Bronze table {target.name} is partitioned by {state.partition or 'nothing'}, not"
            f" {name or 'nothing'}; that cannot be changed.",
            hint="Correct partition_by; or move the Bronze table away, and run again to load it.",
            table=target.label,
        )
    return name


def _configured_partition_column(target: Target, contract: ColumnContract) -> str | None:
    source_name = target.settings.partition_by
    if not source_name:
        return None
    columns = {column.name: (column.target, column.stored_type) for column in contract.columns}
    columns |= {name: (name, kind) for name, kind in METADATA_COLUMNS}
    target_name, kind = columns.get(source_name, ("", None))
    if kind is None or kind.name not in _DATED:
        problem = f"is of type {kind}" if kind else "is not there"
        raise TableRefused(
            f"The column {source_name} of table {target.label} {problem}; partition_by has to be a"
            " date or timestamp.",
            hint=f"Correct [tables.{selection.toml(target.relation.name)}] partition_by.",
            table=target.label,
        )
    partition = column_of(target_name)
    if partition in columns:
        raise TableRefused(
            f"Table {target.label} has a column {partition}, which partition_by would add.",
            hint=f'Rename it: rename = {{ "{partition}" = "source_{partition}" }}',
            table=target.label,
        )
    return partition


# The types that have a date.
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
    """The schema and properties that a commit gives the Bronze table.

    Args:
        context: the table.
        contract: the columns of the source.
        row_key: the columns that tell rows apart.
        partition: the partition column, None without one.
        state: the Bronze table, None where there is none yet.
        enrichment: what rows get beside their values.
        scoring: the fingerprint of the rules.
    """
    layout = _layout(context.target, contract, row_key, partition, state)
    notes = {
        **_source_notes(context.target, contract, row_key),
        **_protection_notes(contract, state, enrichment),
        **_state_notes(context, contract, state),
        properties.RULES: scoring,
        properties.LAYOUT: delta_schema(layout),
        **({VECTORS_ENABLED: "true"} if context.target.settings.deletion_vectors else {}),
    }
    maintenance = context.settings.maintain.properties()
    # Another writer may have made it a clustered table, and bronze may have chosen columns: all of
    # them need statistics.
    liquid = (*state.clustering, *choice.chosen(state)) if state else ()
    stats = _statistics_columns(context.target, contract, row_key, layout, liquid)
    return Shape(tuple(layout), stats, partition, (*maintenance, *notes.items()))


def _layout(
    target: Target,
    contract: ColumnContract,
    row_key: RowKey,
    partition: str | None,
    state: State | None,
) -> list[tuple[str, DeltaType]]:
    """The columns of the Bronze table, in their order."""
    layout = [
        *((column.target, column.stored_type) for column in contract.columns),
        *METADATA_COLUMNS,
    ]
    layout += ANOMALY_COLUMNS if _has_anomaly_columns(target, state) else ()
    layout += [(KEY_TEXT, TEXT)] if row_key.has_text else []
    layout += [(KIND, TEXT)] if target.settings.history else []
    if target.settings.pattern == "streaming" or (
        state and COMMIT_TIMESTAMP in dict(state.columns)
    ):
        layout.append((COMMIT_TIMESTAMP, DeltaType("timestamp")))
    layout += [(partition, DeltaType("date"))] if partition else []
    return layout


def _statistics_columns(
    target: Target,
    contract: ColumnContract,
    row_key: RowKey,
    layout: Sequence[tuple[str, DeltaType]],
    liquid: Sequence[str],
) -> tuple[str, ...]:
    """The columns with file statistics: those of the key, the cursor and the clustering."""
    names = {*liquid, *(column.target for column in row_key.columns), *row_key.names}
    names |= {*_cursor_columns(target, contract), *cluster_columns(target, contract)}
    names -= {c.target for c in contract.columns if c.protect and not c.protect.stable}
    return tuple(name for name, kind in layout if name in names and kind.name in SAFE)


def with_chosen_columns(shape: Shape, contract: ColumnContract, state: State) -> Shape:
    """The shape with file statistics of the columns, too, by which the table has come to be
    clustered since the shape was made.
    """
    names = {*shape.stats, *state.clustering, *choice.chosen(state)}
    names -= {c.target for c in contract.columns if c.protect and not c.protect.stable}
    stats = (name for name, kind in shape.columns if name in names and kind.name in SAFE)
    return replace(shape, stats=tuple(stats))


def _source_notes(target: Target, contract: ColumnContract, row_key: RowKey) -> dict[str, str]:
    """Properties by which later runs recognise the source table, its definition and its key."""
    notes = {
        properties.SOURCE: target.source,
        properties.SCHEMA: target.relation.schema,
        properties.TABLE: target.label,
        properties.OID: str(target.relation.oid),
        properties.KEY: json.dumps(row_key.names),
        properties.BASE: str(contract.base),
        properties.NUMBERS: evolution.column_numbers(contract.columns, target.relation),
        properties.DEFINITION: json.dumps(target.relation.definition, sort_keys=True),
    }
    if target.published:
        notes[properties.PUBLISHED] = target.published
    if target.settings.pattern == "streaming":
        notes[properties.ENFORCED] = json.dumps(target.relation.enforces(target.key))
    if row_key.has_text:
        notes[properties.KEYED] = json.dumps([column.target for column in row_key.columns])
    return notes


def _protection_notes(
    contract: ColumnContract, state: State | None, enrichment: Enrichment
) -> dict[str, str]:
    """Properties that say how columns are protected, and by which keys."""
    had_any = state is not None and TableProperties.read(state.properties).has_protection
    if not enrichment.protection and not had_any:
        return {}
    return {
        properties.PROTECT: evolution.protection_property(contract.columns),
        properties.KEY_IDS: keys.ids(enrichment.protection),
    }


def _state_notes(
    context: TableContext, contract: ColumnContract, state: State | None
) -> dict[str, str]:
    """Properties that go on from those that the Bronze table has."""
    target = context.target
    threshold = context.settings.quality_of(target.settings).threshold
    known = state.properties if state and not contract.reload else None
    notes = {properties.THRESHOLDS: evolution.thresholds_property(known, threshold)}
    if _has_anomaly_columns(target, state):
        notes[properties.WATCHED] = "true"
    if state is not None:
        notes |= evolution.widened_property(contract.columns, state.columns, state.properties)
        notes |= evolution.former_names_property(
            contract.columns, state.properties, target.relation
        )
        if TableProperties.read(state.properties).has_removed_rows:
            notes[properties.CUT] = ""
    return notes


def cluster_columns(target: Target, contract: ColumnContract) -> tuple[str, ...]:
    """The target names of the columns to cluster by.

    Raises:
        TableRefused: one of them is not there.
    """
    names = {column.name: column.target for column in contract.columns}
    names |= {name: name for name, _ in METADATA_COLUMNS}
    missing = [name for name in target.settings.cluster_columns if name not in names]
    if missing:
        raise TableRefused(
            f"Table {target.label} has no column {missing[0]} to cluster by.",
            hint=f"Correct [tables.{selection.toml(target.relation.name)}] cluster_by.",
            table=target.label,
        )
    for column in contract.columns:
        stable = column.protect is None or column.protect.stable
        if column.name in target.settings.cluster_columns and not stable:
            raise unstable_key(target, column, "in cluster_by")
    if target.settings.liquid:
        _refuse_without_statistics(target, contract)
    return tuple(names[name] for name in target.settings.cluster_columns)


def _refuse_without_statistics(target: Target, contract: ColumnContract) -> None:
    """Checks that all columns of liquid clustering have statistics.

    Raises:
        TableRefused: one of them has none.
    """
    stored = {column.name: column.stored_type for column in contract.columns}
    for name in target.settings.cluster_columns:
        if name in stored and stored[name].name not in CLUSTERED:
            raise TableRefused(
                f"Table {target.label} cannot have liquid clustering by {name}: columns of type"
                f" {stored[name]} get no statistics.",
                hint="Choose whole numbers, texts, dates or times for cluster_by in"
                f" [tables.{selection.toml(target.relation.name)}], or remove liquid.",
                table=target.label,
            )


def _cursor_columns(target: Target, contract: ColumnContract) -> tuple[str, ...]:
    """The target name of the cursor column; none for xmin."""
    name = target.settings.cursor
    if name == incremental.XMIN:
        return ()
    return tuple(column.target for column in contract.columns if column.name == name)
