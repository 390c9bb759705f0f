"""The rows of a Bronze table as a polars frame."""

from __future__ import annotations

import json

import polars as pl
from deltalake import DeltaTable

from bronze.config.settings import Settings
from bronze.delta import log, properties, store
from bronze.delta.write.history import KIND, ORDER
from bronze.maintenance import maintain
from bronze.model.units import ACTIVE


def active_rows(settings: Settings, name: str) -> pl.LazyFrame:
    """The rows of a Bronze table that are active: of a history, the last versions of them.

    Raises:
        ConfigError: there is no such table in the lake.
        LakeError, LakeUnreachable: it cannot be read.
    """
    ((_, state),) = maintain.in_lake(settings, [name])
    with log.mapped(state.place, "read"):
        table = DeltaTable(
            state.place.url, version=state.version, storage_options=store.options(state.place)
        )
        rows = pl.scan_delta(table)
    if KIND in dict(state.columns):
        key = json.loads(state.properties[properties.KEY])
        rows = rows.sort(ORDER, maintain_order=True).unique(key, keep="last")
    return rows.filter(pl.col("record_status") == ACTIVE)
