"""Liquid clustering in a Delta log: the columns that a table is clustered by, and what files need.

The format is that of PROTOCOL.md of delta-io/delta, "Clustered Table", with each column as a list
of names, as Delta's own writers have it. Every file of such a table has statistics for the columns,
and a file that an implementation has clustered names that implementation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from bronze.delta import files
from bronze.delta.statistics import SAFE, Statistics
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Place

DOMAIN = "delta.clustering"
PROVIDER = "bronze"
"""The clustering implementation that files of bronze name."""
FEATURES = ("domainMetadata", "clustering")
"""The features of writers that a clustered table names."""
CLUSTERED = tuple(name for name in SAFE if name != "boolean")
"""The types that a table can be clustered by: Delta has no bounds of booleans, bronze none of
floats and decimals.
"""

Columns = Sequence[tuple[str, DeltaType]]


def configuration(columns: Sequence[str]) -> str:
    """The configuration of the domain for these columns."""
    names = [[name] for name in columns]
    return json.dumps({"clusteringColumns": names, "domainName": DOMAIN}, ensure_ascii=False)


def columns_of(domains: Mapping[str, str]) -> tuple[str, ...]:
    """The columns that a table is clustered by, none if it is not. A field of a struct is named
    with dots.

    Raises:
        ValueError: the domain cannot be read.
    """
    if DOMAIN not in domains:
        return ()
    try:
        columns = json.loads(domains[DOMAIN])["clusteringColumns"]
        # The protocol's own example has texts.
        return tuple(c if isinstance(c, str) else ".".join(c) for c in columns)
    except (TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"the domain {DOMAIN} cannot be read") from error


def lacks_statistics(stats: str | None, columns: Iterable[str]) -> bool:
    """Whether the statistics of a file, as JSON, lack one of the columns."""
    known = json.loads(stats) if stats else {}
    nulls, low = known.get("nullCount") or {}, known.get("minValues") or {}
    rows = known.get("numRecords")
    return any(nulls.get(n) is None or (n not in low and nulls[n] != rows) for n in columns)


def with_statistics(
    place: Place,
    file: WrittenFile | StoredFile,
    stats: str | None,
    layout: Columns,
    columns: Sequence[str],
) -> str:
    """The statistics of a file, as JSON, with those of more columns, for which it is read.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    # The statistics of a file are those of all of its rows, deleted ones too.
    whole = replace(file, vector=None) if isinstance(file, StoredFile) else file
    parquet = files.open_parquet(place, whole)
    narrow = [(name, kind) for name, kind in layout if name in columns]
    measured = Statistics(tuple(name for name, _ in narrow))
    for _, table in files.parts(parquet, narrow, None, None, dict(file.partition)):
        frame = pl.DataFrame(table)
        measured.add(frame)
    known: dict[str, Any] = json.loads(stats) if stats else {}
    added = json.loads(measured.json())
    bounds = {n: {**(known.get(n) or {}), **added[n]} for n in ("minValues", "maxValues")}
    nulls = {**dict.fromkeys(measured.columns, 0), **added["nullCount"]}
    count = {"nullCount": {**(known.get("nullCount") or {}), **nulls}}
    merged = {**known, "numRecords": parquet.metadata.num_rows, **bounds, **count}
    if isinstance(file, StoredFile) and file.vector:
        merged["tightBounds"] = False
    return json.dumps(merged, ensure_ascii=False)
