"""How good the rows of the Bronze tables are: the latest figures of each table, and earlier runs.

Only the lake is read. The age of a table is measured now: from the moment of the source that its
last run loaded or, for a streamed table, that its stream recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow as pa

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import file_names, files, log, properties, store
from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.errors import ConfigError
from bronze.governance.json_values import json_value
from bronze.governance.tables import quality as quality_table
from bronze.governance.tables import streams
from bronze.governance.tables.quality import Figure
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import TableName
from bronze.model.results import Shown
from bronze.quality import checks
from bronze.tables.naming import short_name

# How many of the newest files of stream records are read at a time.
_STREAM_FILES = 20


@dataclass(frozen=True)
class Run:
    """The figures of one run; ``unmet`` counts the rules and checks that were not met."""

    batch_id: str
    evaluated: datetime
    mode: str
    landed: bool
    rows: int
    score: float
    flawed: int
    quarantined: int
    unmet: int


@dataclass(frozen=True)
class TableQuality:
    """One table: its runs, newest first, and the figures of the newest.

    ``age`` is the time in seconds since the moment of the source that the table shows; it has to
    be below ``allowed``.
    """

    table: str
    target: str
    runs: tuple[Run, ...]
    figures: tuple[Figure, ...]
    age: float
    allowed: int

    @property
    def fresh(self) -> bool:
        """Whether the age is allowed."""
        return self.age < self.allowed

    @property
    def unmet(self) -> tuple[Figure, ...]:
        """The figures of the newest run that do not meet the demands, but for freshness."""
        return tuple(f for f in self.figures if f.passed is False and f.rule != checks.FRESHNESS)


@dataclass(frozen=True, repr=False)
class QualityReport(Shown):
    """The quality of tables; ``missing`` are Bronze tables without figures, ``lake`` is the root of
    the lake that was searched.
    """

    tables: tuple[TableQuality, ...]
    missing: tuple[str, ...] = ()
    lake: str = ""

    @property
    def exit_code(self) -> int:
        """0: all demands are met; 1: some are not, or a table has no figures."""
        unmet = any(table.unmet or not table.fresh for table in self.tables)
        return 1 if unmet or self.missing or not self.tables else 0

    def _row(self, item: TableQuality) -> Mapping[str, Any]:
        latest = asdict(item.runs[0]) if item.runs else {}
        rules = [figure.rule for figure in item.unmet]
        return {"table": item.table, "target": item.target, **latest, "unmet": rules}

    def _messages(self) -> Iterator[str]:
        for name in self.missing:
            yield f"{name}: there are no figures yet: its next run records them"
        for table in self.tables:
            if not table.fresh:
                yield f"{table.target} is older than its limit of {table.allowed:,} s"
        yield from super()._messages()


def quality(settings: Settings, tables: Sequence[str] = (), trend: int = 1) -> QualityReport:
    """Reads the quality of tables.

    Args:
        settings: the config.
        tables: names of the source's tables, or of Bronze tables; all tables without any.
        trend: how many of the last runs to report.

    Raises:
        ConfigError: a table has no quality figures.
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    state = log.read(settings.place(GOVERNANCE, quality_table.NAME))
    recorded = _recorded_tables(settings, _read_rows(state, state.files)) if state else []
    unknown = [name for name in tables if not any(name in one.names for one in recorded)]
    if unknown:
        raise ConfigError(
            f"Table {unknown[0]} has no quality figures in {settings.lake.root}.",
            hint="`bronze run` and `bronze stream` record them. Tables with figures:"
            f" {', '.join(sorted(one.target for one in recorded)) or 'none'}.",
        )
    reached = _streamed_moments(settings)
    selected = tuple(
        _table_quality(settings, one, reached.get(one.target), trend)
        for one in sorted(recorded, key=lambda one: (one.source, one.target))
        if not tables or set(one.names) & set(tables)
    )
    targets = [one.target for one in recorded]
    missing = () if tables else tuple(_without_figures(settings, targets))
    return QualityReport(selected, missing, settings.lake.root)


def _without_figures(settings: Settings, targets: Sequence[str]) -> Iterator[str]:
    """The Bronze tables in the lake other than these."""
    schema = settings.lake.schema_
    for name in store.folders(settings.place(schema, "")):
        target = TableName(schema, name).label
        if target not in targets:
            state = log.read(settings.place(schema, name))
            if state is not None and properties.TABLE in state.properties:
                yield target


@dataclass(frozen=True)
class _RecordedTable:
    """The figures of one table, newest first. ``source`` is the label of the source's table, in
    ``schema`` of the source ``system``; ``target`` is the Bronze table's full name.
    """

    system: str
    source: str
    schema: str
    target: str
    records: pl.DataFrame

    @property
    def name(self) -> str:
        """The name of the source's table without its schema."""
        return self.source[len(self.schema) + 1 :]

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which arguments may call it."""
        key = f"{self.system}.{self.source}"
        return self.source, key, self.name, self.target, short_name(self.target)


def _recorded_tables(settings: Settings, records: pl.DataFrame) -> list[_RecordedTable]:
    """The tables of this config with figures."""
    newest = _with_full_names(settings, records).sort(
        "evaluated_timestamp", descending=True, maintain_order=True
    )
    tables = []
    for (source, target), own in newest.partition_by(
        ["source_table", "target_table"], as_dict=True
    ).items():
        label, name, system = str(source), str(target), str(own["source_system"][0])
        schema = _schema_of(settings, system, label, name)
        tables.append(_RecordedTable(system, label, schema, name, own))
    return tables


def _with_full_names(settings: Settings, records: pl.DataFrame) -> pl.DataFrame:
    """The records of this config's Bronze tables, each under its full name."""
    target, prefix = pl.col("target_table"), f"{settings.lake.schema_}."
    is_full = target.str.contains(".", literal=True)
    full = pl.when(is_full).then(target).otherwise(pl.lit(prefix) + target)
    return records.with_columns(full).filter(target.str.starts_with(prefix))


def _schema_of(settings: Settings, system: str, label: str, target: str) -> str:
    """The schema of a table of the source. Its name, and that of the table, may have dots."""
    source = settings.source.get(system)
    schemas = [name for name in source.schema_ if label.startswith(f"{name}.")] if source else []
    if len(schemas) != 1 and label.count(".") > 1:
        # The config does not decide it; the Bronze table does if it is there.
        state = log.read(settings.place(settings.lake.schema_, short_name(target)))
        known = TableProperties.read(state.properties if state else {})
        if known.label == label:
            return known.schema
    return schemas[0] if schemas else label.partition(".")[0]


def _read_rows(
    state: State,
    stored: Sequence[StoredFile],
    columns: Sequence[tuple[str, DeltaType]] | None = None,
) -> pl.DataFrame:
    columns = columns or state.columns
    empty = files.conform(pa.table({}), columns, {}, 0)
    parts = (
        part
        for file in stored
        for _, part in files.parts(files.open_parquet(state.place, file), columns)
    )
    return pl.concat([pl.DataFrame(part) for part in (empty, *parts)])


def _streamed_moments(settings: Settings) -> dict[str, datetime]:
    """For streamed tables, by their full names, the moment of the source that they show. Earlier
    releases recorded the name alone: such a record counts if this config's stream wrote it.
    """
    state = log.read(settings.place(GOVERNANCE, streams.NAME))
    if state is None:
        return {}
    records = _newest_checkpoints(state)
    streams_here = {(settings.stream.names(source)[0], source) for source in settings.source}
    moments: dict[str, datetime] = {}
    for record, versions in streams.with_versions(records):
        moment = record["recorded_timestamp"] - timedelta(seconds=record["lag_seconds"])
        for name in versions:
            if "." in name:
                moments[name] = moment
            elif (record["stream"], record["source_system"]) in streams_here:
                moments[TableName(settings.lake.schema_, name).label] = moment
    return moments


def _newest_checkpoints(state: State) -> pl.DataFrame:
    """The records of the newest files, with the whole of the last series of each stream."""
    newest = sorted(
        state.files, key=lambda file: file_names.batch_of(file.path) or "", reverse=True
    )
    parts: list[pl.DataFrame] = []
    for start in range(0, len(newest), _STREAM_FILES):
        chunk = newest[start : start + _STREAM_FILES]
        # Tables of earlier releases have fewer columns.
        parts.append(_read_rows(state, chunk, streams.COLUMNS))
        records = pl.concat(parts)
        last = records.sort("recorded_timestamp").group_by("stream", "source_system").last()
        begun = records.filter(pl.col("number") == 1)["series"].implode()
        if last["series"].drop_nulls().is_in(begun).all():
            break
    return pl.concat(parts) if parts else _read_rows(state, [], streams.COLUMNS)


def _table_quality(
    settings: Settings, table: _RecordedTable, streamed: datetime | None, trend: int
) -> TableQuality:
    records = table.records
    batches = records["batch_id"].unique(maintain_order=True).head(max(trend, 1))
    runs = [records.filter(pl.col("batch_id") == batch) for batch in batches]
    landed = records.filter("landed")["as_of_timestamp"].max()
    moments = [moment for moment in (landed, streamed) if isinstance(moment, datetime)]
    age = (datetime.now(UTC) - max(moments)).total_seconds() if moments else float("inf")
    own = settings.table(table.system, table.schema, table.name)
    return TableQuality(
        table=table.source,
        target=table.target,
        runs=tuple(_run(rows) for rows in runs),
        figures=figures(runs[0]),
        age=age,
        allowed=settings.quality_of(own).freshness,
    )


def _run(rows: pl.DataFrame) -> Run:
    check = pl.col("kind") == "check"
    (score,) = rows.filter(check, pl.col("rule") == checks.SCORE).head(1).to_dicts()
    (low,) = rows.filter(check, pl.col("rule") == checks.QUARANTINED).head(1).to_dicts()
    return Run(
        batch_id=score["batch_id"],
        evaluated=score["evaluated_timestamp"],
        mode=score["mode"],
        landed=score["landed"],
        rows=score["checked"],
        score=score["measured"],
        flawed=score["failed"],
        quarantined=low["failed"],
        unmet=rows.filter(pl.col("passed") == False).height,  # noqa: E712 - NULL is not False
    )


def figures(records: pl.DataFrame) -> tuple[Figure, ...]:
    """The figures of records with the columns of ``governance.quality``.

    Raises:
        LakeError: a record was changed by another writer.
    """
    return tuple(_figure(row) for row in records.to_dicts())


def _figure(row: dict[str, object]) -> Figure:
    names = [name for name in Figure.__dataclass_fields__ if name not in ("column", "examples")]
    examples = tuple(
        json.dumps(key, ensure_ascii=False)
        for key in json_value(str(row["examples"]), quality_table.NAME, list)
    )
    return Figure(
        **{name: row[name] for name in names},  # type: ignore[arg-type]
        column=str(row["column_name"]),
        examples=examples,
    )
