"""The rows of a Bronze table as a polars frame."""

from __future__ import annotations

import polars as pl

from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.properties import TableProperties
from bronze.delta.storage import client
from bronze.delta.write.history import KIND, ORDER
from bronze.errors import ConfigError, LakeError
from bronze.model.units import ACTIVE
from bronze.tables import lake


def active_rows(settings: Settings, name: str) -> pl.LazyFrame:
    """The rows of a Bronze table that are active: of a history, the last versions of them.

    Raises:
        ConfigError: there is no such table in the lake, or there are several.
        LakeError: a later release has written it in a format that this one does not know, or it
            cannot be read.
        LakeUnreachable: the lake cannot be read.
    """
    found = lake.tables_of(settings, settings.lake.schema_)
    table = lake.find_one(settings, (one for one in found if one.is_bronze or one.error), name)
    state = table.state
    if table.error or state is None:
        raise table.error or ConfigError(f"There is no Bronze table {name}.")
    state.refuse_newer()
    if client.is_copied(state.place):
        raise LakeError(
            "Rows of a lake on Google Cloud with vended credentials cannot be read as a frame.",
            hint="Read them by Unity Catalog, or with credentials of your own.",
        )
    with log.mapped_errors(state.place, "read"):
        rows = pl.scan_delta(client.delta_table(state.place, state.version))
    if KIND in dict(state.columns):
        key = TableProperties.read(state.properties).key
        if not key:
            raise LakeError(
                f"The Bronze table {table.target} does not say which columns identify its rows.",
                hint="Another writer has removed the property bronze.key: the next run sets it.",
            )
        rows = rows.sort(ORDER, maintain_order=True).unique(key, keep="last")
    return rows.filter(pl.col("record_status") == ACTIVE)
