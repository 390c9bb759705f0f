"""The anomaly model of a table: read from the lake, or trained as `bronze.anomaly.samples` says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from bronze.anomaly import samples, training
from bronze.anomaly.forest import check_forest
from bronze.anomaly.samples import Trained, Training
from bronze.config.sections.tables import AnomalySettings
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import files, log, properties
from bronze.delta.files import Layout
from bronze.delta.log import State
from bronze.errors import LakeError
from bronze.governance import writer
from bronze.governance.tables.anomaly import models as models_table
from bronze.governance.tables.anomaly import profiles
from bronze.model.anomaly import Model, Monitoring
from bronze.model.columns import Column
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.printable import count
from bronze.tables.context import TableContext, ask_source
from bronze.tables.evolution import ColumnContract
from bronze.tables.naming import short_name
from bronze.tables.selection import Target

# A new model is trained when the table has grown by this factor, or when the anomalies in a run of
# at least _MIN_SCORED rows exceed the expected share by this factor.
_GROWTH = 2
_EXCESS = 5
_MIN_SCORED = 1000
_MAX_PROFILED = 100


@dataclass(frozen=True)
class PendingMonitoring:
    """How the rows of a table are monitored once a model has been trained: ``training`` is a task
    for any worker, and ``record`` stores the model.

    ``record`` raises `LakeError` or `LakeUnreachable` if the model cannot be stored.
    """

    training: Training
    record: Callable[[Trained], Monitoring]


def monitoring_of(
    context: TableContext,
    contract: ColumnContract,
    key: tuple[str, ...],
    state: State | None,
    protected: Collection[str] = (),
) -> Monitoring | PendingMonitoring | None:
    """How the rows of a table are monitored, or what has to be trained first; None if they are not
    monitored and never were.

    Args:
        context: the table.
        contract: its columns.
        key: the target names of its key.
        state: the Bronze table before the run.
        protected: source names of columns whose values must not be in a model.

    Raises:
        SourceError: the catalog cannot be read.
        LakeError: the models in the lake cannot be read.
    """
    own = context.target.settings.anomalies
    if own is None:
        return (
            Monitoring() if state is not None and properties.WATCHED in state.properties else None
        )
    scalar = [c for c in contract.columns if c.kind.name != "array"]
    unprotected = [c for c in scalar if c.name not in protected]
    identifiers = _identifiers(context, contract.columns, key)

    def monitoring(model: Model | None, *notes: str) -> Monitoring:
        if model is not None and (notes or own.columns):
            notes += _unused_columns(own, contract.columns, identifiers, model)
        return Monitoring(
            model,
            tuple(c.target for c in scalar[:_MAX_PROFILED]),
            frozenset(c.target for c in unprotected if c.is_number and c.target not in identifiers),
            notes,
        )

    columns = _candidates(own, unprotected, identifiers)
    if not columns:
        return monitoring(None, "no column is fit for anomaly scores: rows have none")
    kinds = [(c.target, "number" if _text_number(c) else str(c.kind)) for c in columns]
    parts = [own.trees, own.expected, own.seed, kinds]
    settings = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    rows = sum(max(file.rows, 0) for file in state.files) if state else 0
    place = context.settings.place(GOVERNANCE, models_table.NAME)
    stored, reason = _stored_model(context, own, place, settings, rows)
    if stored is not None and not reason:
        return monitoring(stored)

    def record(trained: Trained) -> Monitoring:
        model = trained.model
        if model is None:
            return monitoring(None, trained.reason)
        _store(context, place, model, reason, settings)
        note = f"the anomaly model was trained ({reason}): version {model.version}"
        return monitoring(model, note)

    return PendingMonitoring(_training(context, own, columns, state, rows), record)


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


def _training(
    context: TableContext,
    own: AnomalySettings,
    columns: Sequence[Column],
    state: State | None,
    rows: int,
) -> Training:
    """The task that trains a model of a table, whose Bronze table has so many ``rows``."""
    relation = context.target.relation
    has_columns = state is not None and {c.target for c in columns} <= dict(state.columns).keys()
    return Training(
        columns=tuple(columns),
        chosen=frozenset(c.target for c in columns) if own.columns else frozenset(),
        place=context.target.place,
        files=state.files if state is not None and has_columns else (),
        origin=context.origin,
        session=context.snapshot.session,
        query=samples.query_of(relation, columns, own.seed),
        table=context.target.label,
        guarded=bool(context.target.settings.protect),
        moment=context.stamp.loaded_at.replace(hour=0, minute=0, second=0, microsecond=0),
        rows=max(rows, 0 if state else relation.rows),
        expected=own.expected,
        trees=own.trees,
        seed=own.seed,
    )


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
        return model, f"the last one is {count(round(age / 86400), 'day')} old"
    if rows >= _GROWTH * max(model.rows, 1):
        return model, f"the table has grown from {model.rows:,} to {count(rows, 'row')}"
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
