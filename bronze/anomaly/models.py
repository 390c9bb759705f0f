"""The anomaly model of a table: read from the lake, or trained on a sample of the Bronze table; or
on a sample of the source, before the Bronze table has rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from bronze.anomaly import training
from bronze.anomaly.forest import check_forest
from bronze.config.settings import GOVERNANCE, Settings
from bronze.config.tables import AnomalySettings
from bronze.delta import files, log, properties
from bronze.delta.files import Layout
from bronze.delta.log import State
from bronze.errors import LakeError
from bronze.governance import writer
from bronze.governance.tables import models as models_table
from bronze.governance.tables import profiles
from bronze.model.anomaly import Model, Monitoring
from bronze.model.columns import Column, DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.model.units import DELETED
from bronze.postgres import statement
from bronze.postgres.copy import reader, splits
from bronze.tables.context import TableContext, ask_source
from bronze.tables.evolution import ColumnContract
from bronze.tables.naming import short_name
from bronze.tables.selection import Target

# The size of a sample, at most: its rows (about), its pages or files, and its bytes.
_SAMPLE_ROWS = 50_000
_PAGES = 500
_FILES = 64
_BYTES = 32 * 2**20
# A new model is trained when the table has grown by this factor, or when the anomalies in a run of
# at least _MIN_SCORED rows exceed the expected share by this factor.
_GROWTH = 2
_EXCESS = 5
_MIN_SCORED = 1000
_MAX_PROFILED = 100


def monitoring_of(
    context: TableContext,
    contract: ColumnContract,
    key: tuple[str, ...],
    state: State | None,
    protected: Collection[str] = (),
) -> Monitoring | None:
    """How the rows of a table are monitored; None if they are not and never were.

    Args:
        context: the table.
        contract: its columns.
        key: the target names of its key.
        state: the Bronze table before the run.
        protected: source names of columns whose values must not be in a model.

    Raises:
        SourceError: the sample cannot be read.
        LakeError: the models in the lake, or the table, cannot be read.
    """
    own = context.target.settings.anomalies
    if own is None:
        return (
            Monitoring() if state is not None and properties.WATCHED in state.properties else None
        )
    scalar = [c for c in contract.columns if c.kind.name != "array"]
    unprotected = [c for c in scalar if c.name not in protected]
    identifiers = _identifiers(context, contract.columns, key)
    model, notes = _model(context, own, _candidates(own, unprotected, identifiers), state)
    if model is not None and (notes or own.columns):
        notes += _unused_columns(own, contract.columns, identifiers, model)
    return Monitoring(
        model,
        tuple(c.target for c in scalar[:_MAX_PROFILED]),
        frozenset(c.target for c in unprotected if c.is_number and c.target not in identifiers),
        notes,
    )


def _unused_columns(
    own: AnomalySettings, columns: Sequence[Column], identifiers: Collection[str], model: Model
) -> tuple[str, ...]:
    """A note with the columns that are not features of the model. Identifiers are named only if
    the config selects them.
    """
    used = {feature.column for feature in model.features}
    unused = [
        c
        for c in columns
        if c.name
        and c.target not in used
        and (c.name in own.columns if own.columns else c.target not in identifiers)
    ]
    listed = ", ".join(f"{c.name} ({c.source_type})" for c in unused)
    return (f"no anomaly is found by the values of {listed}",) if unused else ()


_KEY_COLUMNS = """
SELECT DISTINCT a.attname FROM pg_constraint c
JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY(c.conkey)
WHERE c.conrelid = %s AND c.contype IN ('p', 'u', 'f')
"""
_IDENTIFIER_WORDS = ("id", "key", "no", "nr", "number", "code", "uuid", "zip")


def _identifiers(context: TableContext, columns: Sequence[Column], key: Sequence[str]) -> set[str]:
    """The target names of identifiers: columns of keys and foreign keys, others by their names."""
    oid = context.target.relation.oid
    rows: list[Any] = ask_source(
        context, lambda holder: holder.execute(_KEY_COLUMNS, [oid]).fetchall()
    )
    names = {name for (name,) in rows}
    return {
        c.target
        for c in columns
        if c.name in names
        or c.target in key
        or c.name.lower().rpartition("_")[2] in _IDENTIFIER_WORDS
    }


def _candidates(
    own: AnomalySettings, columns: Sequence[Column], identifiers: Collection[str]
) -> list[Column]:
    """The columns that may be features."""
    suitable = [c for c in columns if c.name and training.suitable_columns(c)]
    if own.columns:
        return [c for c in suitable if c.name in own.columns]
    return [c for c in suitable if c.target not in identifiers]


def _model(
    context: TableContext, own: AnomalySettings, columns: Sequence[Column], state: State | None
) -> tuple[Model | None, tuple[str, ...]]:
    """The model of the table, None if it has none, and notes about it."""
    if not columns:
        return None, ("no column is fit for anomaly scores: rows have none",)
    kinds = [(c.target, "number" if _text_number(c) else str(c.kind)) for c in columns]
    parts = [own.trees, own.expected, own.seed, kinds]
    settings = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    rows = sum(max(file.rows, 0) for file in state.files) if state else 0
    place = context.settings.place(GOVERNANCE, models_table.NAME)
    stored, reason = _stored_model(context, own, place, settings, rows)
    if stored is not None and not reason:
        return stored, ()
    sample = _sample(context, columns, state, own.seed)
    rows = max(rows, sample.height, 0 if state else context.target.relation.rows)
    if sample.height < training.MIN_ROWS:
        return None, (f"no anomaly scores: the table has fewer than {training.MIN_ROWS} rows",)
    chosen = {c.target for c in columns} if own.columns else set()
    day = context.stamp.loaded_at.replace(hour=0, minute=0, second=0, microsecond=0)
    model = training.train(
        sample,
        training.find_features(sample, columns, chosen),
        day,
        rows,
        expected=own.expected,
        trees=own.trees,
        seed=own.seed,
    )
    if model is None:
        return None, ("no anomaly scores: no column has values that differ",)
    _store(context, place, model, reason, settings)
    return model, (f"the anomaly model was trained ({reason}): version {model.version}",)


def _text_number(column: Column) -> bool:
    return column.is_number and column.kind.name == "string"


def _store(context: TableContext, place: Place, model: Model, reason: str, settings: str) -> None:
    target, stamp = context.target, context.stamp
    record = models_table.ModelRecord(
        model, stamp.loaded_at, target.source, target.label, target.full_name, reason, settings
    )
    store_records(place, models_table.COLUMNS, models_table.frame(record), stamp.batch_id)


def store_records(place: Place, columns: Layout, records: pl.DataFrame, batch_id: str) -> None:
    """Appends records to a governance table of models, profiles or anomalies.

    Raises:
        LakeError, LakeUnreachable: they cannot be written.
    """
    writer.append_rows(place, columns, records, batch_id, STATISTICS)


# The models in the lake


def _stored_model(
    context: TableContext, own: AnomalySettings, place: Place, settings: str, rows: int
) -> tuple[Model | None, str]:
    """The stored model of the table, and why a new one is needed, "" if it is not."""
    state = log.read(place)
    latest = None
    if state is not None:
        try:
            latest = _latest(place, state, context)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, LakeError):
            return None, "the one in the lake is damaged"
    if latest is None:
        return None, "there was none"
    model, record = latest
    age = (context.stamp.loaded_at - record["trained_timestamp"]).total_seconds()
    if record["settings"] != settings:
        return model, "its columns or settings have changed"
    if own.retrain and age >= own.retrain:
        return model, f"the last one is {age / 86400:.0f} days old"
    if rows >= _GROWTH * max(model.rows, 1):
        return model, f"the table has grown from {model.rows:,} to {rows:,} rows"
    share = _last_share(context, model)
    if share > _EXCESS * own.expected:
        return model, f"{share:.1%} of the last run's rows were anomalies"
    return model, ""


def _latest(
    place: Place, state: State, context: TableContext
) -> tuple[Model, dict[str, Any]] | None:
    """The newest record of the table, and its model."""
    latest: tuple[Any, Any] | None = None
    for file in state.files:
        if not _may_have(file, context.target):
            continue
        parquet = files.open_parquet(place, file)
        for start, part in files.parts(parquet, models_table.COLUMNS, models_table.SELECTION):
            records = pl.DataFrame(part).with_row_index("at", start)
            for row in records.filter(_about(context.target)).iter_rows(named=True):
                if latest is None or row["trained_timestamp"] > latest[1]["trained_timestamp"]:
                    latest = file, row
    if latest is None:
        return None
    file, record = latest
    for start, part in files.parts(files.open_parquet(place, file), models_table.COLUMNS):
        if start <= record["at"] < start + part.num_rows:
            row = pl.DataFrame(part.slice(record["at"] - start, 1)).row(0, named=True)
            model = models_table.model_of(row)
            if training.version(model) != model.version:
                raise LakeError(f"The anomaly model {model.version} was changed in the lake.")
            check_forest(model.forest, len(model.features))
            return model, record
    return None


def _last_share(context: TableContext, model: Model) -> float:
    """The share of anomalies in the last run in which the model scored enough rows."""
    earlier = pl.DataFrame(schema={"model_version": pl.String, "scored": pl.Int64})
    # The profile of this run cannot be recorded then either, which is reported.
    with suppress(LakeError):
        earlier = earlier_profiles(context.settings, context.target)
    earlier = earlier.filter(
        pl.col("model_version") == model.version, pl.col("scored") >= _MIN_SCORED
    )
    if earlier.is_empty():
        return 0.0
    row = earlier.row(-1, named=True)
    return float(row["anomalies"] / row["scored"])


STATISTICS = ("target_table",)
"""The columns of these governance tables with file statistics, by which files are skipped."""


def earlier_profiles(settings: Settings, target: Target, most: int = 40) -> pl.DataFrame:
    """The last profiles of a table, oldest first.

    Raises:
        LakeError, LakeUnreachable: they cannot be read.
    """
    place = settings.place(GOVERNANCE, profiles.NAME)
    state = log.read(place)
    parts = [pl.DataFrame(files.conform(pa.table({}), profiles.COLUMNS, {}, 0))]
    # The names of files begin with their batch ids, which are ordered by time.
    newest = sorted(state.files, key=lambda file: file.path, reverse=True) if state else []
    for file in newest:
        if sum(part.height for part in parts) >= most:
            break
        if not _may_have(file, target):
            continue
        with log.mapped_errors(place, "read"):
            for _, part in files.parts(files.open_parquet(place, file), profiles.COLUMNS):
                parts.append(pl.DataFrame(part).filter(_about(target)))
    return pl.concat(parts).sort("profiled_timestamp").tail(most)


def _about(target: Target) -> pl.Expr:
    """The condition for records about a table."""
    names = (target.full_name, short_name(target.full_name))
    return (pl.col("source_table") == target.label) & pl.col("target_table").is_in(names)


def _may_have(file: StoredFile, target: Target) -> bool:
    """Whether a file may have records about a table, by its statistics."""
    low, high = (dict(side).get(STATISTICS[0]) for side in (file.low, file.high))
    return any(
        (low is None or low <= name) and (high is None or name <= high)
        for name in (target.full_name, short_name(target.full_name))
    )


# Samples


def _sample(
    context: TableContext, columns: Sequence[Column], state: State | None, seed: int
) -> pl.DataFrame:
    """Rows of the Bronze table, or of the source if it lacks columns or rows."""
    if state is not None and {c.target for c in columns} <= {name for name, _ in state.columns}:
        with log.mapped_errors(state.place, "read"):
            sample = _from_bronze(state, columns, seed)
        if sample.height >= training.MIN_ROWS:
            return sample
    return _from_source(context, columns, seed)


def _from_bronze(state: State, columns: Sequence[Column], seed: int) -> pl.DataFrame:
    """Rows of the Bronze table: some row groups of some files, selected by the seed."""
    chance = np.random.default_rng(seed)
    stored = sorted(state.files, key=lambda file: file.path)
    if len(stored) > _FILES:
        stored = [stored[i] for i in sorted(chance.choice(len(stored), _FILES, replace=False))]
    layout = [*((c.target, c.kind) for c in columns), *_STATUS]
    rows_per_file = -(-_SAMPLE_ROWS // max(len(stored), 1))
    samples = []
    for file in stored:
        parquet = files.open_parquet(state.place, file)
        groups = chance.permutation(parquet.num_row_groups).tolist()
        remaining = rows_per_file
        for group in groups:
            if remaining <= 0:
                break
            for _, part in files.parts(parquet, layout, None, [group], dict(file.partition)):
                rows = pl.DataFrame(part).filter(pl.col("record_status").ne_missing(DELETED))
                rows = _subset(rows.drop("record_status"), remaining, chance)
                remaining -= rows.height
                samples.append(rows)
    return pl.concat(samples) if samples else pl.DataFrame()


_STATUS = (("record_status", DeltaType("string")),)


def _from_source(context: TableContext, columns: Sequence[Column], seed: int) -> pl.DataFrame:
    """Rows of the source in the run's snapshot: those of some pages, selected by the seed."""
    relation = context.target.relation
    table = statement.quoted(relation.schema, relation.name)
    pages = sum(relation.heaps)
    if not pages:
        # A view has no pages: its first rows are the sample.
        names = ", ".join(statement.quoted(a.name) for a in relation.attributes if a.readable)
        table = f"(SELECT {names} FROM {table} LIMIT {_SAMPLE_ROWS}) AS sample"  # noqa: S608
    else:
        sampled = min(_PAGES, max(1, _BYTES * pages // max(splits.size_of(relation), 1)))
        if pages > sampled:
            table += f" TABLESAMPLE SYSTEM ({100 * sampled / pages:.6f}) REPEATABLE ({seed})"
    query = statement.select(columns, table)
    session = context.snapshot.session
    has_protection = bool(context.target.settings.protect)
    label = context.target.label
    parts = reader.reader_of(context.origin)(
        context.origin, session, query, (splits.WHOLE_TABLE,), columns, label, has_protection
    )
    rows = pl.concat([rows for rows, _ in parts] or [pl.DataFrame()])
    return _subset(rows, _SAMPLE_ROWS, np.random.default_rng(seed))


def _subset(rows: pl.DataFrame, most: int, chance: np.random.Generator) -> pl.DataFrame:
    if rows.height <= most:
        return rows
    return rows[np.sort(chance.choice(rows.height, most, replace=False))]
