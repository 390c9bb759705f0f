"""Forgetting a person: rewriting files beside destroying a key: ``python -m benchmarks.forget``.

A table of customers with two encrypted columns, in files of 250,000 rows. With *rewriting*, as
``bronze forget`` does it, all values of a column are encrypted with one key, and a person's row is
taken out of its file. With *shredding*, each person has a key of its own, wrapped by the master
key, in a table of keys; forgetting takes the person's key out of that table, which is done by the
same functions, as the key has to be as gone as the row would be. Columns that are not encrypted
stay as they are then. Seconds are of one process; nothing is read of a source.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from rich.console import Console
from rich.table import Table

from bronze.config import loading
from bronze.config.settings import Settings
from bronze.delta import commit, files, properties
from bronze.delta.commit import Change, Shape
from bronze.delta.schema import delta_schema
from bronze.ingest.enrich import enrich
from bronze.model.columns import DeltaType, ProtectionRule
from bronze.model.locations import Secret
from bronze.model.protection import ProtectedColumn, TableProtection
from bronze.model.stamp import RowStamp
from bronze.model.units import Enrichment
from bronze.protection import erasure, keyring
from bronze.rows.metadata import METADATA_COLUMNS

_FILE = 250_000
_GROUP = 25_000
_STAMP = RowStamp("01a20595-02b3-7000-8000-000000000000", datetime.now(UTC), "bench", "batch")
_MASTERS = (Secret("env", "BRONZE_BENCHMARK_KEY"),)
_STRING, _LONG = DeltaType("string"), DeltaType("long")
_CUSTOMERS = (("customer_id", _LONG), ("customer_name", _STRING), ("email", _STRING))
_KEYS = (("customer_id", _LONG), ("wrapped_key", _STRING))


def customers(start: int, count: int) -> pl.DataFrame:
    """Source rows."""
    numbers = pl.int_range(start, start + count, dtype=pl.Int64, eager=True)
    text = numbers.cast(pl.String)
    return pl.DataFrame(
        {
            "customer_id": numbers,
            "customer_name": "Customer Number " + text,
            "email": "customer" + text + "@example.com",
        }
    )


def shared(rows: pl.DataFrame, protection: TableProtection) -> pl.DataFrame:
    """Bronze rows under one key for each column."""
    return _enriched(rows, Enrichment(protection))


def own(rows: pl.DataFrame, master: AESGCM, kept: list[str]) -> pl.DataFrame:
    """Bronze rows under a key for each row, which is kept wrapped."""
    sealed: dict[str, list[bytes]] = {"customer_name": [], "email": []}
    drawn = os.urandom(32 * rows.height)
    for row, (_, *values) in enumerate(rows.iter_rows()):
        key = drawn[32 * row : 32 * row + 32]
        nonce = os.urandom(12)
        kept.append(base64.b64encode(nonce + master.encrypt(nonce, key, None)).decode())
        cipher = AESGCM(key)
        for name, value in zip(sealed, values, strict=True):
            nonce = os.urandom(12)
            sealed[name].append(nonce + cipher.encrypt(nonce, value.encode(), name.encode()))
    done = {n: pl.Series(n, v, dtype=pl.Binary).bin.encode("base64") for n, v in sealed.items()}
    return _enriched(rows.with_columns(**done), Enrichment())


def _enriched(rows: pl.DataFrame, wanted: Enrichment) -> pl.DataFrame:
    nothing = pl.repeat(None, rows.height, dtype=pl.String, eager=True)
    return enrich(rows, nothing, _STAMP, rows.width, wanted).rows


def written(
    settings: Settings,
    name: str,
    columns: Sequence[tuple[str, DeltaType]],
    parts: list[pl.DataFrame],
) -> int:
    """Writes a table; returns its bytes."""
    place = settings.place(settings.lake.schema_, name)
    each = _FILE // _GROUP
    made = [
        files.write(parts[at : at + each], place, _STAMP.batch_id, ["customer_id"])
        for at in range(0, len(parts), each)
    ]
    added = [file for file in made if file]
    protect = {
        name: {
            "protect": asdict(ProtectionRule("encrypt")),
            "kind": delta_schema([(name, _STRING)]),
        }
        for name, _ in _CUSTOMERS[1:]
    }
    notes = {
        properties.TABLE: f"public.{name}",
        properties.KEY: '["customer_id"]',
        properties.PROTECT: json.dumps(protect if len(columns) > len(_KEYS) else {}),
    }
    shape = Shape(tuple(columns), ("customer_id",), None, tuple(notes.items()))
    commit.commit(place, None, Change("WRITE", added), {}, shape=shape)
    return sum(file.size for file in added)


def timed(work: Callable[[], object]) -> float:
    """The seconds that something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(rows: int, folder: Path) -> list[tuple[str, float, int, float]]:
    """Name, seconds to load, bytes stored and seconds to forget one, for both ways."""
    document = {"source": {"dsn": "postgresql://x/y"}, "lake": {"root": str(folder)}}
    settings = loading.parse(document)
    wrapping = keyring.master(_MASTERS[0])
    protection = TableProtection(
        tuple(
            ProtectedColumn(
                name,
                name,
                _STRING,
                ProtectionRule("encrypt"),
                (keyring.new(wrapping, "bronze.customers", name, "encrypt"),),
            )
            for name, _ in _CUSTOMERS[1:]
        ),
        keyring.new(wrapping, "bronze.customers", "", "row_hash"),
        _MASTERS,
    )
    layout = (*_CUSTOMERS, *METADATA_COLUMNS)
    starts = range(0, rows, _GROUP)
    sizes: list[int] = []

    def rewriting() -> None:
        parts = [shared(customers(at, _GROUP), protection) for at in starts]
        sizes.append(written(settings, "customers", layout, parts))

    def shredding() -> None:
        kept: list[str] = []
        parts = [own(customers(at, _GROUP), AESGCM(wrapping), kept) for at in starts]
        size = written(settings, "shredded", layout, parts)
        numbers = pl.int_range(rows, dtype=pl.Int64, eager=True)
        known = pl.DataFrame({"customer_id": numbers, "wrapped_key": kept})
        slices = [known[at : at + _GROUP] for at in starts]
        sizes.append(size + written(settings, "subject_keys", _KEYS, slices))

    loads = [timed(rewriting), timed(shredding)]
    whose = {"customer_id": str(rows // 2)}

    def forgotten(table: str) -> None:
        assert erasure.forget(settings, table, whose, ask=False).left == 0

    ends = [timed(lambda: forgotten("customers")), timed(lambda: forgotten("subject_keys"))]
    return list(zip(("rewriting", "shredding"), loads, sizes, ends, strict=True))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    rows: int = parser.parse_args().rows
    os.environ[_MASTERS[0].name] = base64.b64encode(os.urandom(32)).decode()
    with tempfile.TemporaryDirectory(prefix="bronze-bench-") as folder:
        found = measure(rows, Path(folder))
    table = Table(title=f"{rows:,} customers", box=None)
    for name in ("", "load, s", "stored, MB", "forget one, s"):
        table.add_column(name, justify="right")
    for name, load, size, end in found:
        table.add_row(name, f"{load:.1f}", f"{size / 10**6:.1f}", f"{end:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
