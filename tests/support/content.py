"""Equality by content: the source as PostgreSQL hashes it, the lake as it is read back."""

from __future__ import annotations

import json
from collections import Counter

import polars as pl

from bronze.config.settings import Settings
from bronze.delta import log, properties
from bronze.delta.storage import client
from bronze.delta.write.history import KIND
from bronze.model.locations import Place
from bronze.model.units import DELETED
from bronze.postgres import statement
from bronze.postgres.catalog.relations import relations
from bronze.postgres.connection import connect
from bronze.postgres.copy import row_hash
from bronze.protection import keyring, keys, protect
from bronze.rows.metadata import COMMIT_TIMESTAMP, digests
from bronze.tables import evolution, selection


def differences(settings: Settings) -> dict[str, str]:
    """What is wrong with each table that does not equal its source; {} when all do.

    A row's hash is computed three times: by PostgreSQL from what it holds, by bronze from what it
    read, and here from what a reader finds in the lake.
    """
    wrong: dict[str, str] = {}
    for name, source in settings.source.items():
        with connect.connect(settings.origin(name)) as connection:
            found = [(name, r) for r in relations(connection, source.schema_)]
            for target in selection.select_targets(settings, found, ()):
                relation = target.relation
                state = log.read(target.place)
                if state is None:
                    wrong[target.label] = "there is no Bronze table"
                    continue
                found_columns = selection.contract_columns(target)
                own = target.settings
                dropped = {own.rename.get(name, name) for name in selection.dropped_columns(target)}
                dropped -= {column.target for column in found_columns}
                held = [
                    p
                    for p in state.columns
                    if p[0] not in (state.partition, KIND, COMMIT_TIMESTAMP)
                ]
                now = evolution.resolve_contract(
                    found_columns, held, state.properties, relation, dropped=sorted(dropped)
                )
                query = row_hash.row_hash_query(
                    now.columns,
                    statement.quoted(relation.schema, relation.name),
                    "true",
                    now.base,
                )
                computed = pl.Series([str(row[0]) for row in connection.execute(query)])
                hidden = evolution.protected_columns(state.properties)
                if hidden:
                    computed = _keyed(settings, f"{target.schema}.{target.name}", computed)
                hashes = Counter(computed)
                key = json.loads(state.properties[properties.KEY])
                values = [column.target for column in now.columns]
                fault = _fault(target.place, hashes, key, values, now.base, bool(hidden))
                if fault:
                    wrong[target.label] = fault
    return wrong


def _keyed(settings: Settings, table: str, hashes: pl.Series) -> pl.Series:
    """Hashes as a table with protected columns has them."""
    key, *_ = keys.current_keys(keys.stored_keys(settings)[1])[table, "", keys.ROW_HASH]
    return protect.keyed_hashes(hashes, keyring.unwrap(key, settings.masters))


def _fault(
    place: Place,
    hashes: Counter[str],
    key: list[str],
    columns: list[str],
    base: int,
    protected: bool,
) -> str:
    frame = pl.read_delta(place.url, storage_options=client.options(place) or None)
    if KIND in frame.columns:
        # Versions of before a change of the key have no such key.
        frame = frame.drop_nulls(key).sort("update_timestamp", maintain_order=True)
        frame = frame.unique(key, keep="last", maintain_order=True).drop(KIND)
    frame = frame.filter(pl.col("record_status") != DELETED)
    held = Counter(frame["row_hash"])
    if held != hashes:
        return f"{(hashes - held).total()} rows missing, {(held - hashes).total()} rows too many"
    values = frame.select(columns)
    again, sums = digests(values, pl.repeat(None, frame.height, dtype=pl.String, eager=True), base)
    if not sums.equals(frame["checksum"]):
        return "the stored values are not those that were hashed"
    if protected:
        return ""
    changed = (again != frame["row_hash"]).sum()
    return f"{changed} rows have rejected values" if changed else ""
