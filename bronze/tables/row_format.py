"""The form of the rows that bronze wrote to a table, by its properties, even after other writers
changed its columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bronze.delta.properties import TableProperties
from bronze.delta.write.history import KIND
from bronze.model.anomaly import ANOMALY_COLUMNS
from bronze.model.columns import KEY_TEXT, DeltaType
from bronze.model.files import RowFormat
from bronze.rows.metadata import COMMIT_TIMESTAMP, METADATA_COLUMNS

Columns = Sequence[tuple[str, DeltaType]]


def columns_as_written(
    columns: Columns, properties: Mapping[str, str]
) -> tuple[tuple[str, DeltaType], ...]:
    """The columns of a Bronze table and those that another writer has dropped, in the order that
    bronze gave them; columns that another writer has added come last.
    """
    written = TableProperties.read(properties).layout or ()
    names, present = dict(written), dict(columns)
    kept = [(name, present.get(name, kind)) for name, kind in written]
    kept += [pair for pair in columns if pair[0] not in names]
    return (*kept, *(pair for pair in METADATA_COLUMNS if pair[0] not in {**names, **present}))


def foreign_column_changes(columns: Columns, properties: Mapping[str, str]) -> tuple[str, ...]:
    """What another writer has done to the columns of a Bronze table, in words."""
    present = dict(columns)
    written = dict(_bronze_columns(columns, properties))
    metadata = [name for name, _ in METADATA_COLUMNS if name not in {**written, **present}]
    return (
        *(f"{name} was dropped" for name in [*written, *metadata] if name not in present),
        *(f"{name} was added" for name in present if name not in written),
        *(
            f"{name} was changed from {written[name]} to {kind}"
            for name, kind in present.items()
            if written.get(name, kind) != kind
        ),
    )


def row_format_of(
    columns: Columns, properties: Mapping[str, str], partition: str | None
) -> RowFormat:
    """The format of the rows of a Bronze table, by its columns and properties."""
    known = TableProperties.read(properties)
    columns = columns_as_written(columns, properties)
    names = [name for name, _ in columns]
    metadata = [name for name, _ in METADATA_COLUMNS]
    last = max((names.index(name) for name in metadata if name in names), default=len(names))
    # A table of the source may have a column of this name, before the metadata columns.
    has_history = KIND in names and names.index(KIND) > last
    added = {*metadata, partition, COMMIT_TIMESTAMP, KEY_TEXT}
    added |= {KIND} if has_history else set()
    added |= {name for name, _ in ANOMALY_COLUMNS} if known.has_anomaly_columns else set()
    values = tuple(name for name in names if name not in added)
    return RowFormat(
        values=values,
        base=len(values) if known.base is None else known.base,
        earlier=(
            tuple(pair for pair in _bronze_columns(columns, properties) if pair[0] in values),
            *earlier_types(properties),
        ),
        hashed=not known.protection,
        partition=partition or "",
        thresholds=known.thresholds or (),
        history=has_history,
    )


def earlier_types(properties: Mapping[str, str]) -> tuple[tuple[tuple[str, DeltaType], ...], ...]:
    """The types that widened columns had before, from the last widening back; each time has all
    columns that were widened since.
    """
    types: dict[str, DeltaType] = {}
    times = []
    for time in reversed(TableProperties.read(properties).types_before_widening):
        types |= time
        times.append(tuple(types.items()))
    return tuple(times)


def _bronze_columns(columns: Columns, properties: Mapping[str, str]) -> Columns:
    """The columns that bronze gave a table; ``columns`` where it is not known."""
    layout = TableProperties.read(properties).layout
    return columns if layout is None else layout
