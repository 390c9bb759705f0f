"""The change data feed, held against the table: it says what happened, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import polars as pl
from deltalake import DeltaTable

from bronze.delta import properties
from bronze.delta.write.history import KIND

_TOLD = {
    "_change_type",
    "_commit_version",
    "_commit_timestamp",
    "load_timestamp",
    "update_timestamp",
    "batch_id",
    "ingestion_method",
    "data_lineage",
}


def faults(folder: Path, since: int = 0) -> list[str]:
    """What is wrong with the feed of a table with a key: rows that it tells of wrongly.

    It is replayed from version ``since`` (whose rows are what is there at first): no row is
    inserted twice, changed or deleted that is not there, or said to change without a change; and
    at the end it gives the table's rows.
    """
    table = DeltaTable(str(folder))
    known = table.metadata().configuration
    key = json.loads(known[properties.KEY])
    if KIND in [field.name for field in table.schema().fields]:
        return _of_history(folder, since)
    rows: dict[tuple[object, ...], object] = {}
    wrong: list[str] = []
    for version in range(since, table.version() + 1):
        if version == since:
            rows = _rows(pl.read_delta(str(folder), version=version), key)
            continue
        changes = pl.DataFrame(table.load_cdf(version, version).read_all())
        parts = {kind: _rows(part, key) for (kind,), part in changes.group_by("_change_type")}
        doubled = changes.group_by("_change_type", *key).len().filter(pl.col("len") > 1)
        wrong += [f"version {version}: {row} more than once" for row in doubled.rows()]
        before, after = parts.get("update_preimage", {}), parts.get("update_postimage", {})
        inserted, deleted = parts.get("insert", {}), parts.get("delete", {})
        if before.keys() != after.keys():
            wrong.append(f"version {version}: images of different rows")
        wrong += [f"version {version}: {k} did not change" for k in before if before[k] == after[k]]
        for k, row in (before | deleted).items():
            if rows.get(k) != row:
                wrong.append(f"version {version}: {k} was not as it is said to have been")
        for k in deleted:
            rows.pop(k, None)
        wrong += [f"version {version}: {k} was there already" for k in inserted if k in rows]
        rows |= after | inserted
    now = _rows(pl.read_delta(str(folder)), key)
    if now != rows:
        differing = [k for k in now.keys() | rows.keys() if now.get(k) != rows.get(k)]
        wrong.append(f"the feed leads to other rows than the table's: {differing[:3]}")
    return wrong


def _rows(frame: pl.DataFrame, key: list[str]) -> dict[tuple[object, ...], object]:
    names = sorted(set(frame.columns) - _TOLD)
    # NaN differs from itself; a column that came later is NULL in the rows of before.
    rows = (
        {name: repr(value) for name, value in zip(names, row, strict=True) if value is not None}
        for row in frame.select(names).rows()
    )
    return dict(zip(frame.select(key).rows(), rows, strict=True))


def _of_history(folder: Path, since: int) -> list[str]:
    """A history is only ever added to, and says so."""
    table = DeltaTable(str(folder))
    counted: Counter[str] = Counter()
    for version in range(since + 1, table.version() + 1):
        changes = pl.DataFrame(table.load_cdf(version, version).read_all())
        counted.update(changes["_change_type"].to_list())
    return [f"{count} rows {kind}" for kind, count in counted.items() if kind != "insert"]


def positions(folder: Path) -> list[int]:
    """The positions that the commits of runs have reached, in the order of the versions."""
    history = reversed(DeltaTable(str(folder)).history())
    facts = (json.loads(entry["bronze"]) for entry in history if "bronze" in entry)
    return [fact["position"] for fact in facts if "position" in fact]
