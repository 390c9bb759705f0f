"""What ten rules cost on order_details: ``python -m benchmarks.quality``.

Loads of the same rows, without rules and with them, take turns; the medians are compared. A load's
time is that of the whole run: plan, read, hash, score, write and commit. CPU is that of this
process alone, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.source import SCHEMA, running
from bronze.config import loading
from bronze.ingest import pipeline

_TABLE = "order_details"
RULES: Sequence[Mapping[str, Any]] = (
    {"column": "quantity", "range": {"min": 1, "max": 1000}},
    {"column": "unit_price", "range": {"min": 0.01, "max": 100_000}},
    {"column": "discount", "range": {"min": 0, "max": 0.9}},
    {"column": "line_total", "range": {"min": 0}, "severity": "high"},
    {"column": "note", "length": {"max": 200}},
    {"column": "note", "pattern": r"^[^<>]*$"},
    {"column": "discount", "not_null": True, "allow": 1.0, "severity": "low"},
    {"column": "updated_at", "freshness": "3650d"},
    {"expression": "line_total <= unit_price * quantity"},
    {"expression": "discount IS NULL OR discount < 0.5", "name": "half at most"},
)


Times = list[tuple[float, float]]


def measured(rows: int, runs: int) -> dict[str, Times]:
    """The seconds of loads of so many rows, wall and CPU, by what they were given."""
    cases: dict[str, dict[str, Any]] = {
        "no rules": {"quality": {"derive": False}},
        "derived": {},
        "ten rules": {"tables": {_TABLE: {"rules": list(RULES)}}},
    }
    found: dict[str, Times] = {name: [] for name in cases}
    with running({_TABLE: rows}) as (dsn, folder):
        for number in range(runs + 1):
            for name, sections in cases.items():
                lake = folder / "lake"
                seconds = _load(dsn, lake, sections)
                shutil.rmtree(lake)
                # The first round warms the server's cache and our imports.
                found[name] += [seconds] if number else []
    return found


def _load(dsn: str, lake: Path, sections: Mapping[str, Any]) -> tuple[float, float]:
    document = {
        "source": {"name": "bench", "dsn": dsn, "schema": SCHEMA},
        "lake": {"root": str(lake)},
        **sections,
    }
    settings = loading.parse(document)
    began, spent = time.perf_counter(), time.process_time()
    (result,) = pipeline.run(settings).tables
    seconds = time.perf_counter() - began, time.process_time() - spent
    assert result.error is None, result.error
    return seconds


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=5, help="rounds, whose medians are shown")
    given = parser.parse_args()
    found = measured(given.rows, given.runs)
    base = _medians(found["no rules"])
    for name, times in found.items():
        parts = [f"{name:10}"]
        for what, middle, other in zip(("work", "CPU"), _medians(times), base, strict=True):
            parts.append(f"{what} {middle:5.2f} s ({middle / other - 1:+.1%})")
        print("   ".join(parts))


def _medians(times: Times) -> tuple[float, float]:
    return median(wall for wall, _ in times), median(cpu for _, cpu in times)


if __name__ == "__main__":
    main()
