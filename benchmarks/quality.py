"""What ten rules cost on order_details: ``python -m benchmarks.quality``.

First loads of the same rows, without rules and with them, take turns; the medians are compared.
They are whole commands, see `benchmarks.command`. CPU is that of bronze alone, which other work on
the machine disturbs less.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.command import BRONZE, Used, configure, measure, median_of, server_of
from benchmarks.source import SCHEMA, running

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


def measured(rows: int, runs: int) -> dict[str, Used]:
    """What loads of so many rows used, by the rules of their config."""
    cases: dict[str, dict[str, Any]] = {
        "no rules": {"quality": {"derive": False}},
        "derived": {},
        "ten rules": {"tables": {_TABLE: {"rules": list(RULES)}}},
    }
    found: dict[str, list[Used]] = {name: [] for name in cases}
    with running({_TABLE: rows}) as (dsn, folder):
        server = server_of(dsn)
        for number in range(runs + 1):
            for name, sections in cases.items():
                configure(folder, dsn, SCHEMA, sections)
                used = measure([BRONZE, "run"], server, folder)
                shutil.rmtree(folder / "lake")
                # The first round warms the server's cache.
                found[name] += [used] if number else []
    return {name: median_of(loads) for name, loads in found.items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=5, help="rounds, whose medians are shown")
    given = parser.parse_args()
    found = measured(given.rows, given.runs)
    base = found["no rules"]
    for name, used in found.items():
        wall = f"wall {used.wall:5.2f} s ({used.wall / base.wall - 1:+.1%})"
        cpu = f"CPU {used.cpu:5.2f} s ({used.cpu / base.cpu - 1:+.1%})"
        print(f"{name:10}   {wall}   {cpu}")


if __name__ == "__main__":
    main()
