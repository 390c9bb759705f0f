"""Changes of a table in memory, to be netted and applied."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from bronze.cdc.row_changes import NetChanges, NetTask
from bronze.delta import commit, files, log
from bronze.delta.write import changes as changing
from bronze.model.columns import Column, DeltaType, RowKey
from bronze.model.locations import Destination, Place
from bronze.model.stamp import RowStamp
from bronze.postgres.catalog.types import SourceType, TypeOptions, column_contract
from bronze.postgres.replication import text_values
from bronze.postgres.replication.batch import TableChanges
from bronze.rows.metadata import COMMIT_TIMESTAMP, METADATA_COLUMNS, digests, with_metadata

NOW = RowStamp(
    "018df7a0-0000-7000-8000-00000000000b",
    dt.datetime(2024, 2, 29, tzinfo=dt.UTC),
    "s",
    "streaming",
)
NAMES = ("k", "v", "n", "w")
TYPES = (
    SourceType("text", -1, "text"),
    SourceType("text", -1, "text"),
    SourceType("int4", -1, "integer"),
    SourceType("text", -1, "text"),
)
CHOICES = TypeOptions({})
# The target names are others than the source's.
COLUMNS: tuple[Column, ...] = tuple(
    column_contract(name, f"bz {name}", name, kind, CHOICES)
    for name, kind in zip(NAMES, TYPES, strict=True)
)
TEXTS = tuple(
    text_values.text_column(column, kind, CHOICES)
    for column, kind in zip(COLUMNS, TYPES, strict=True)
)
KEY = ("k", "n")
ROW_KEY = RowKey((COLUMNS[0], COLUMNS[2]), ("bz k", "bz n"))
TARGETS = tuple(column.target for column in COLUMNS)
LAYOUT: tuple[tuple[str, DeltaType], ...] = (
    *((column.target, column.kind) for column in COLUMNS),
    *METADATA_COLUMNS,
    (COMMIT_TIMESTAMP, DeltaType("timestamp")),
)
STATS = ("bz n", "bz v")

Row = tuple[Any, ...]


def table(place: Place, rows: Sequence[Row]) -> tuple[Any, ...]:
    """Makes the Bronze table of some rows, in two files; returns those."""
    schema = {c.target: pl.Int32 if c.kind.name == "int" else pl.String for c in COLUMNS}
    half = len(rows) // 2
    added = []
    for part in (rows[:half], rows[half:]):
        frame = pl.DataFrame(list(part), schema=schema, orient="row")
        nothing = pl.Series([None] * frame.height, dtype=pl.String)
        made = with_metadata(frame, *digests(frame, nothing, len(COLUMNS)), NOW).with_columns(
            pl.lit(None, pl.Datetime("us", "UTC")).alias(COMMIT_TIMESTAMP)
        )
        file = files.write([made], place, NOW.batch_id, STATS)
        added += [file] if file else []
    shape = commit.Shape(LAYOUT, STATS)
    commit.commit(place, None, commit.Change("WRITE", added), {}, shape=shape)
    state = log.read(place)
    assert state is not None
    return state.files


def job(
    gathered: TableChanges,
    place: Place,
    stored: Sequence[Any],
    layout: tuple[tuple[str, DeltaType], ...] = LAYOUT,
    **more: Any,
) -> NetTask:
    """What is to be netted."""
    given: dict[str, Any] = {
        "table": "public.t",
        "gathered": gathered,
        "floor": 0,
        "columns": COLUMNS,
        "texts": TEXTS,
        "row_key": ROW_KEY,
        "identity": KEY,
        "into": Destination(place, layout, ROW_KEY.names, STATS, NOW),
        "stored": tuple(stored),
        "base": len(COLUMNS),
        "in_memory": 2**25,
    }
    return NetTask(**(given | more))


def applied(rows: Mapping[Row, Row], netted: NetChanges, place: Place) -> dict[Row, Row]:
    """A table's rows by key, once what was netted is in it."""
    key = ["bz k", "bz n"]
    after = {} if netted.truncated else dict(rows)
    for deletes in netted.deletes:
        for gone in changing.read(place, deletes, key).rows():
            after.pop(gone, None)
    seen: list[Row] = []
    for change in netted.changes:
        held = changing.read(place, change, [name for name, _ in LAYOUT])
        seen += held.select(key).rows()
        # What is said to be a row's hash is that of its values.
        nothing = pl.Series([None] * held.height, dtype=pl.String)
        again, _ = digests(held.select(TARGETS), nothing, len(COLUMNS))
        assert again.equals(held["row_hash"])
        assert held[COMMIT_TIMESTAMP].null_count() == 0
        after |= dict(zip(held.select(key).rows(), held.select(TARGETS).rows(), strict=True))
    assert len(seen) == len(set(seen))
    gone_keys = [k for d in netted.deletes for k in changing.read(place, d, key).rows()]
    assert not set(seen) & set(gone_keys)
    return after
