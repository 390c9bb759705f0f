"""Training, as a task for any worker: a model from a sample of the Bronze table, or of the source
where the Bronze table lacks columns or rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import polars as pl

from bronze.anomaly import training
from bronze.delta import files, log
from bronze.model.anomaly import Model
from bronze.model.columns import Column, DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Origin, Place
from bronze.model.units import DELETED
from bronze.postgres import statement
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.copy import reader, splits

# The size of a sample, at most: its rows (about), its pages or files, and its bytes.
_SAMPLE_ROWS = 50_000
_PAGES = 500
_FILES = 64
_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Training:
    """The task to train a model.

    ``columns`` may be features; those that are ``chosen`` in the config are features whatever their
    values are. The sample is of ``files`` of the Bronze table at ``place``, or of the source, by
    ``query`` with ``session`` (see `bronze.model.units.SourceRead`); ``guarded`` says that errors
    must not show its values. ``moment``, ``rows``, ``expected``, ``trees`` and ``seed`` are those
    of `bronze.anomaly.training.train`.
    """

    columns: tuple[Column, ...]
    chosen: frozenset[str]
    place: Place
    files: tuple[StoredFile, ...] = field(repr=False)
    origin: Origin
    session: tuple[str, ...]
    query: str
    table: str
    guarded: bool
    moment: datetime
    rows: int
    expected: float
    trees: int
    seed: int


@dataclass(frozen=True)
class Trained:
    """The result of a `Training`: the model, or the ``reason`` why there is none."""

    model: Model | None
    reason: str = ""


def train(task: Training) -> Trained:
    """Trains a model. The same rows give the same model, on any worker.

    Raises:
        SourceError: the sample cannot be read.
        LakeError, LakeUnreachable: the Bronze table cannot be read.
    """
    sample = _sample(task)
    if sample.height < training.MIN_ROWS:
        return Trained(
            None, f"no anomaly scores: the table has fewer than {training.MIN_ROWS} rows"
        )
    model = training.train(
        sample,
        training.find_features(sample, task.columns, task.chosen),
        task.moment,
        max(task.rows, sample.height),
        expected=task.expected,
        trees=task.trees,
        seed=task.seed,
    )
    return Trained(model, "" if model else "no anomaly scores: no column has values that differ")


def _sample(task: Training) -> pl.DataFrame:
    if task.files:
        with log.mapped_errors(task.place, "read"):
            sample = _from_bronze(task)
        if sample.height >= training.MIN_ROWS:
            return sample
    return _from_source(task)


def _from_bronze(task: Training) -> pl.DataFrame:
    """Rows of the Bronze table: some row groups of some files, selected by the seed."""
    chance = np.random.default_rng(task.seed)
    stored = sorted(task.files, key=lambda file: file.path)
    if len(stored) > _FILES:
        stored = [stored[i] for i in sorted(chance.choice(len(stored), _FILES, replace=False))]
    layout = [*((c.target, c.kind) for c in task.columns), *_STATUS]
    rows_per_file = -(-_SAMPLE_ROWS // max(len(stored), 1))
    samples = []
    for file in stored:
        parquet = files.open_parquet(task.place, file)
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


def query_of(relation: Relation, columns: Sequence[Column], seed: int) -> str:
    """The SELECT of a sample of the source: the rows of some pages, selected by the seed."""
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
    return statement.select(columns, table)


def _from_source(task: Training) -> pl.DataFrame:
    """Rows of the source in the run's snapshot."""
    parts = reader.reader_of(task.origin)(
        task.origin,
        task.session,
        task.query,
        (splits.WHOLE_TABLE,),
        task.columns,
        task.table,
        task.guarded,
    )
    rows = pl.concat([rows for rows, _ in parts] or [pl.DataFrame()])
    return _subset(rows, _SAMPLE_ROWS, np.random.default_rng(task.seed))


def _subset(rows: pl.DataFrame, most: int, chance: np.random.Generator) -> pl.DataFrame:
    if rows.height <= most:
        return rows
    return rows[np.sort(chance.choice(rows.height, most, replace=False))]
