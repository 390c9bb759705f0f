"""How a table's rows are watched: its model is taken from the lake, or made of a sample of what is
in the Bronze table; before there is one, of the rows that it will be made of.
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
from bronze.anomaly.forest import prove
from bronze.config.settings import GOVERNANCE, Settings
from bronze.config.tables import AnomalySettings
from bronze.delta import files, log, properties
from bronze.delta.files import Layout
from bronze.delta.log import State
from bronze.errors import LakeError
from bronze.governance import writer
from bronze.governance.tables import models as book
from bronze.governance.tables import profiles
from bronze.model.anomaly import Model, Monitoring
from bronze.model.columns import Column, DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.model.units import DELETED
from bronze.postgres import statement
from bronze.postgres.copy import read, splits
from bronze.tables.context import TableContext, ask_source
from bronze.tables.evolution import ColumnContract
from bronze.tables.naming import short_name
from bronze.tables.selection import Target

# A sample has about so many rows, of so many pages or files, and so many bytes.
_ROWS = 50_000
_PAGES = 500
_FILES = 64
_BYTES = 32 * 2**20
# A model is made anew when its table has grown so much, or when so many times as many rows as
# expected were anomalies in a run of so many rows.
_GROWTH = 2
_EXCESS = 5
_JUDGED = 1000
_PROFILED = 100


def monitoring_of(
    context: TableContext,
    contract: ColumnContract,
    key: tuple[str, ...],
    state: State | None,
    protected: Collection[str] = (),
) -> Monitoring | None:
    """How a table's rows are watched; None where they are not, and have no columns for it.

    Args:
        context: the table.
        contract: its columns.
        key: the key's target names.
        state: the Bronze table as it was found.
        protected: source names of columns whose values nothing may be learned of.

    Raises:
        SourceError: the sample cannot be read.
        LakeError: the models in the lake, or the table, cannot be read.
    """
    own = context.target.settings.anomalies
    if own is None:
        return (
            Monitoring() if state is not None and properties.WATCHED in state.properties else None
        )
    free = [c for c in contract.columns if c.name not in protected and c.kind.name != "array"]
    profiled = [c for c in contract.columns if c.kind.name != "array"][:_PROFILED]
    numeric = {c.target for c in free if c.is_number}
    named = _named(context, contract.columns, key)
    model, notes = _model(context, own, _candidates(own, free, named), state)
    if model is not None and (notes or own.columns):
        notes += _left_out(own, contract.columns, named, model)
    return Monitoring(
        model,
        tuple(c.target for c in profiled),
        frozenset(numeric - named),
        notes,
    )


def _left_out(
    own: AnomalySettings, columns: Sequence[Column], named: Collection[str], model: Model
) -> tuple[str, ...]:
    """Says which columns the scores know nothing of, though somebody may think so. Keys, and what
    names something, are not among them unless they were chosen.
    """
    seen = {feature.column for feature in model.features}
    wanted = (c for c in columns if c.name and c.target not in seen)
    if own.columns:
        left = [c for c in wanted if c.name in own.columns]
    else:
        left = [c for c in wanted if c.target not in named]
    listed = ", ".join(f"{c.name} ({c.source_type})" for c in left)
    return (f"no anomaly is found by the values of {listed}",) if left else ()


_FOREIGN = """
SELECT DISTINCT a.attname FROM pg_constraint c
JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = ANY(c.conkey)
WHERE c.conrelid = %s AND c.contype IN ('p', 'u', 'f')
"""
_NAMING = ("id", "key", "no", "nr", "number", "code", "uuid", "zip")


def _named(context: TableContext, columns: Sequence[Column], key: Sequence[str]) -> set[str]:
    """The target names of columns that name something: of keys and foreign keys, or by their
    names.
    """
    oid = context.target.relation.oid
    rows: list[Any] = ask_source(context, lambda holder: holder.execute(_FOREIGN, [oid]).fetchall())
    names = {name for (name,) in rows}
    return {
        c.target
        for c in columns
        if c.name in names or c.target in key or c.name.lower().rpartition("_")[2] in _NAMING
    }


def _candidates(
    own: AnomalySettings, free: Sequence[Column], named: Collection[str]
) -> list[Column]:
    """The columns that features may be made of; ``named`` are those that name something."""
    fit = [c for c in free if c.name and training.suitable_columns(c)]
    if own.columns:
        return [c for c in fit if c.name in own.columns]
    return [c for c in fit if c.target not in named]


def _model(
    context: TableContext, own: AnomalySettings, columns: Sequence[Column], state: State | None
) -> tuple[Model | None, tuple[str, ...]]:
    """The model to go by, and what to say about it."""
    if not columns:
        return None, ("no column is fit for anomaly scores: there are none",)
    kinds = [(c.target, "number" if _text_number(c) else str(c.kind)) for c in columns]
    said = [own.trees, own.expected, own.seed, kinds]
    settings = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
    rows = sum(max(file.rows, 0) for file in state.files) if state else 0
    place = context.settings.place(GOVERNANCE, book.NAME)
    known, why = _stored(context, own, place, settings, rows)
    if known is not None and not why:
        return known, ()
    sample = _sample(context, columns, state, own.seed)
    rows = max(rows, sample.height, 0 if state else context.target.relation.rows)
    if sample.height < training.LEAST:
        return None, (f"no anomaly scores: the table has fewer than {training.LEAST} rows",)
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
    _keep(context, place, model, why, settings)
    return model, (f"the anomaly model was trained ({why}): version {model.version}",)


def _text_number(column: Column) -> bool:
    return column.is_number and column.kind.name == "string"


def _keep(context: TableContext, place: Place, model: Model, why: str, settings: str) -> None:
    target, stamp = context.target, context.stamp
    record = book.ModelRecord(
        model, stamp.loaded_at, target.source, target.label, target.full_name, why, settings
    )
    store_records(place, book.COLUMNS, book.frame(record), stamp.batch_id)


def store_records(place: Place, columns: Layout, records: pl.DataFrame, batch_id: str) -> None:
    """Enters records into one of the books of this part.

    Raises:
        LakeError, LakeUnreachable
    """
    writer.append_rows(place, columns, records, batch_id, BY)


# The models in the lake


def _stored(
    context: TableContext, own: AnomalySettings, place: Place, settings: str, rows: int
) -> tuple[Model | None, str]:
    """The table's model, and why another one is needed; "" where it is not."""
    state = log.read(place)
    found = None
    if state is not None:
        try:
            found = _latest(place, state, context)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, LakeError):
            return None, "the one in the lake is damaged"
    if found is None:
        return None, "there was none"
    model, record = found
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
    best: tuple[Any, Any] | None = None
    for file in state.files:
        if not _may_hold(file, context.target):
            continue
        parquet = files.opened(place, file)
        for start, part in files.parts(parquet, book.COLUMNS, book.TOLD):
            told = pl.DataFrame(part).with_row_index("at", start)
            mine = told.filter(_about(context.target))
            for row in mine.iter_rows(named=True):
                if best is None or row["trained_timestamp"] > best[1]["trained_timestamp"]:
                    best = file, row
    if best is None:
        return None
    file, record = best
    for start, part in files.parts(files.opened(place, file), book.COLUMNS):
        if start <= record["at"] < start + part.num_rows:
            row = pl.DataFrame(part.slice(record["at"] - start, 1)).row(0, named=True)
            model = book.model_of(row)
            if training.version(model) != model.version:
                raise LakeError(f"The model {model.version} is not what it was.")
            prove(model.forest, len(model.features))
            return model, record
    return None


def _last_share(context: TableContext, model: Model) -> float:
    """The share of anomalies in the last run of which the model has told many rows."""
    told = pl.DataFrame(schema={"model_version": pl.String, "scored": pl.Int64})
    # What hinders the reading is told when the run is to be entered.
    with suppress(LakeError):
        told = earlier_profiles(context.settings, context.target)
    told = told.filter(pl.col("model_version") == model.version, pl.col("scored") >= _JUDGED)
    if told.is_empty():
        return 0.0
    row = told.row(-1, named=True)
    return float(row["anomalies"] / row["scored"])


BY = ("target_table",)
"""What the books of this part have file statistics of, so that few files are read of them."""


def earlier_profiles(settings: Settings, target: Target, most: int = 40) -> pl.DataFrame:
    """The last profiles of a table, in the order of their time.

    Raises:
        LakeError, LakeUnreachable: they cannot be read.
    """
    place = settings.place(GOVERNANCE, profiles.NAME)
    state = log.read(place)
    parts = [pl.DataFrame(files.conform(pa.table({}), profiles.COLUMNS, {}, 0))]
    # Files are named by their batches, which are named by their times.
    newest = sorted(state.files, key=lambda file: file.path, reverse=True) if state else []
    for file in newest:
        if sum(part.height for part in parts) >= most:
            break
        if not _may_hold(file, target):
            continue
        with log.mapped(place, "read"):
            for _, part in files.parts(files.opened(place, file), profiles.COLUMNS):
                parts.append(pl.DataFrame(part).filter(_about(target)))
    return pl.concat(parts).sort("profiled_timestamp").tail(most)


def _about(target: Target) -> pl.Expr:
    """The condition that is true for records about a table."""
    names = (target.full_name, short_name(target.full_name))
    return (pl.col("source_table") == target.label) & pl.col("target_table").is_in(names)


def _may_hold(file: StoredFile, target: Target) -> bool:
    low, high = (dict(side).get(BY[0]) for side in (file.low, file.high))
    return any(
        (low is None or low <= name) and (high is None or name <= high)
        for name in (target.full_name, short_name(target.full_name))
    )


# Samples


def _sample(
    context: TableContext, columns: Sequence[Column], state: State | None, seed: int
) -> pl.DataFrame:
    """Rows of the Bronze table; of the source, where that has not these columns, or no rows."""
    if state is not None and {c.target for c in columns} <= {name for name, _ in state.columns}:
        with log.mapped(state.place, "read"):
            sample = _from_bronze(state, columns, seed)
        if sample.height >= training.LEAST:
            return sample
    return _from_source(context, columns, seed)


def _from_bronze(state: State, columns: Sequence[Column], seed: int) -> pl.DataFrame:
    """Rows of the Bronze table: some row groups of some files, chosen by the seed."""
    chance = np.random.default_rng(seed)
    some = sorted(state.files, key=lambda file: file.path)
    if len(some) > _FILES:
        some = [some[i] for i in sorted(chance.choice(len(some), _FILES, replace=False))]
    layout = [*((c.target, c.kind) for c in columns), *_STATUS]
    each = -(-_ROWS // max(len(some), 1))
    found = []
    for file in some:
        parquet = files.opened(state.place, file)
        groups = chance.permutation(parquet.num_row_groups).tolist()
        left = each
        for group in groups:
            if left <= 0:
                break
            for _, part in files.parts(parquet, layout, None, [group], dict(file.partition)):
                rows = pl.DataFrame(part).filter(pl.col("record_status").ne_missing(DELETED))
                rows = _some(rows.drop("record_status"), left, chance)
                left -= rows.height
                found.append(rows)
    return pl.concat(found) if found else pl.DataFrame()


_STATUS = (("record_status", DeltaType("string")),)


def _from_source(context: TableContext, columns: Sequence[Column], seed: int) -> pl.DataFrame:
    """Rows of the source, in the run's snapshot: those of some pages, chosen by the seed."""
    relation = context.target.relation
    table = statement.quoted(relation.schema, relation.name)
    pages = sum(relation.heaps)
    if not pages:
        # What has no pages is sampled from its beginning.
        names = ", ".join(statement.quoted(a.name) for a in relation.attributes if a.readable)
        table = f"(SELECT {names} FROM {table} LIMIT {_ROWS}) AS sample"  # noqa: S608
    else:
        wanted = min(_PAGES, max(1, _BYTES * pages // max(splits.size_of(relation), 1)))
        if pages > wanted:
            table += f" TABLESAMPLE SYSTEM ({100 * wanted / pages:.6f}) REPEATABLE ({seed})"
    query = statement.select(columns, table)
    session = context.held.session(context.origin)
    guarded = bool(context.target.settings.protect)
    label = context.target.label
    parts = read.read_rows(
        context.origin, session, query, (splits.WHOLE_TABLE,), columns, label, guarded
    )
    rows = pl.concat([rows for rows, _ in parts] or [pl.DataFrame()])
    return _some(rows, _ROWS, np.random.default_rng(seed))


def _some(rows: pl.DataFrame, most: int, chance: np.random.Generator) -> pl.DataFrame:
    if rows.height <= most:
        return rows
    return rows[np.sort(chance.choice(rows.height, most, replace=False))]
