"""The list of Bronze tables to verify at rest: those in the lake, and those that are missing.

``governance.data_lineage`` records each table that was loaded and its version. A recorded table
that is missing or cannot be opened is on the list too, with an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import file_names, files, log, properties, store
from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.errors import (
    BronzeError,
    FileDamaged,
    LakeError,
    LakeUnreachable,
    TableVanished,
)
from bronze.governance.tables import data_lineage
from bronze.model.locations import Place, TableName
from bronze.tables import lake
from bronze.tables.lake import LakeTable


@dataclass(frozen=True)
class RecordedTable:
    """What ``governance.data_lineage`` records of a Bronze table: the source and the table
    (``schema.name``) that were loaded into it last, and the version of that commit.
    """

    source: str
    label: str
    version: int


@dataclass(frozen=True)
class ExpectedTable(LakeTable):
    """A Bronze table to verify, which has reached ``version`` by its record. ``source_names`` are
    the names that the source's table may have, where the Bronze table cannot tell.
    """

    version: int = 0
    source_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names that arguments may call it by: its own, and those of the source's table."""
        if self.state is None and self.source_names:
            return (self.name, *self.labels, *self.source_names)
        return super().names


def expected_tables(settings: Settings, names: Sequence[str]) -> list[ExpectedTable]:
    """The tables with these names (of the Bronze table or of the source's table); all if none.

    If ``governance.data_lineage`` cannot be read in full, it is on the list itself, with the error.

    Raises:
        ConfigError: there is no such table.
        LakeError: there is no Bronze table at all.
        LakeUnreachable: the lake cannot be read.
    """
    recorded, error = recorded_tables(settings)
    tables = list(_all_tables(settings, recorded))
    selected = lake.find(settings, tables, names)
    if not tables:
        raise LakeError(
            f"There is no Bronze table at {settings.place(settings.lake.schema_, '').url}: nothing"
            " was verified.",
            hint="Check [lake] root and schema, and whether the lake is mounted.",
        )
    return [*selected, *([] if error is None else [_incomplete_records(error)])]


def _incomplete_records(error: BronzeError) -> ExpectedTable:
    label = f"{GOVERNANCE}.{data_lineage.NAME}"
    incomplete = LakeError(
        f"{label}, which lists the Bronze tables and their versions, cannot be read in full:"
        f" {error.message}",
        hint="The other tables were verified. Restore the files of this table from a backup; or"
        " move its folder away, then the next run creates it again.",
        table=label,
    )
    return ExpectedTable(GOVERNANCE, data_lineage.NAME, "", label, error=incomplete)


def _all_tables(
    settings: Settings, recorded: Mapping[str, RecordedTable]
) -> Iterator[ExpectedTable]:
    schema = settings.lake.schema_
    missing = dict(recorded)
    for table in lake.tables_of(settings, schema):
        record = missing.pop(table.name, None)
        if record is not None and not _source_names(settings, record, table.state):
            record = None
        expected = _table_in_lake(settings, table, record)
        if expected is not None:
            yield expected
    for name, record in missing.items():
        source_names = _source_names(settings, record, None)
        if source_names:
            yield _missing_table(settings, name, record, source_names)


def _missing_table(
    settings: Settings, name: str, record: RecordedTable, source_names: tuple[str, ...]
) -> ExpectedTable:
    schema = settings.lake.schema_
    error = TableVanished(
        f"The Bronze table {name} is missing at {settings.place(schema, name).url}:"
        " governance.data_lineage has a record of it.",
        hint="Restore it, or load it again with `bronze run`. If it was moved away on purpose, name"
        " the tables to verify.",
        table=record.label,
    )
    return ExpectedTable(
        schema,
        name,
        record.source,
        record.label,
        error=error,
        version=record.version,
        source_names=source_names,
    )


def _table_in_lake(
    settings: Settings, table: LakeTable, record: RecordedTable | None
) -> ExpectedTable | None:
    """The Bronze table in a folder; None where bronze has not made it."""
    version = record.version if record else 0
    if table.is_bronze:
        return ExpectedTable(
            table.schema, table.name, table.source, table.label, table.state, None, version
        )
    source, label = (record.source, record.label) if record else ("", table.name)
    source_names = _source_names(settings, record, None) if record else ()
    error = table.error
    if error is None:
        place = settings.place(table.schema, table.name)
        try:
            if not record and not any(file_names.batch_of(path) for path in store.listing(place)):
                return None
        except BronzeError as unlisted:
            error = unlisted
        problem = (
            "has no Delta log"
            if table.state is None
            else "no longer has the table properties that bronze sets"
        )
        error = error or LakeError(
            f"The Bronze table at {place.url} {problem}.",
            hint="Restore its Delta log from a backup; or move the folder away, then the next run"
            " loads the table again.",
            table=label,
        )
    return ExpectedTable(
        table.schema, table.name, source, label, error=error, source_names=source_names
    )


def recorded_tables(
    settings: Settings,
) -> tuple[dict[str, RecordedTable], BronzeError | None]:
    """The latest record of each Bronze table, by its name; and the error if
    ``governance.data_lineage`` cannot be read in full.

    Raises:
        LakeUnreachable: the lake cannot be read.
    """
    parts, error = _records(settings.place(GOVERNANCE, data_lineage.NAME))
    if not parts:
        return {}, error
    # By now a source's table may go into another Bronze table, and a Bronze table may have
    # another source: only the latest record of each counts.
    latest = (
        pl.concat(parts)
        .filter(pl.col("version_after").is_not_null())
        .sort("created_timestamp", "version_after")
        .unique(["source_system", "source_table"], keep="last", maintain_order=True)
        .unique("target_table", keep="last", maintain_order=True)
    )
    prefix = f"{settings.lake.schema_}."
    return {
        row["target_table"].removeprefix(prefix): RecordedTable(
            row["source_system"], row["source_table"], row["version_after"]
        )
        for row in latest.iter_rows(named=True)
        if row["target_table"].startswith(prefix)
    }, error


def _records(place: Place) -> tuple[list[pl.DataFrame], BronzeError | None]:
    """The readable records of loads, and the first error of those that are not."""
    names = ["created_timestamp", "source_system", "source_table", "target_table", "version_after"]
    layout = [pair for pair in data_lineage.COLUMNS if pair[0] in names]
    parts: list[pl.DataFrame] = []
    first_error: BronzeError | None = None
    try:
        state = log.read(place)
        stored = state.listed_files if state else ()
    except LakeUnreachable:
        raise
    except LakeError as error:
        return [], error
    for file in stored:
        try:
            parquet = files.open_parquet(place, file)
            parts += [pl.DataFrame(part) for _, part in files.parts(parquet, layout)]
        except FileDamaged as error:
            first_error = first_error or error
    return parts, first_error


def _source_names(
    settings: Settings, record: RecordedTable, state: State | None
) -> tuple[str, ...]:
    """The names that the source's table of a record may have, of those that the config selects.

    The record has ``schema.name`` as one text, and both may have dots. The properties of the Bronze
    table have them apart. Without these the schemas of the config decide.
    """
    source = settings.source.get(record.source)
    if source is None:
        return ()
    known = state.properties if state else {}
    if known.get(properties.TABLE) == record.label and properties.SCHEMA in known:
        pairs = [TableProperties.read(known).source_table]
    else:
        pairs = [
            TableName(schema, record.label[len(schema) + 1 :])
            for schema in source.schema_
            if record.label.startswith(f"{schema}.")
        ]
    return tuple(name for schema, name in pairs if schema in source.schema_ and source.takes(name))
