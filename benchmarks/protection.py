"""What it costs to protect values, by method: ``python -m benchmarks.protection``.

Columns of texts are protected, and revealed where the method allows that, in parts of as many rows
as a load reads at once. *Distinct* values all differ; *repeated* ones are one of a thousand each.
Seconds are CPU of this process: medians of rounds in which all cases take turns.
"""

from __future__ import annotations

import argparse
import base64
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from bronze.model.columns import DeltaType, ProtectionRule
from bronze.model.locations import Secret
from bronze.model.protection import ProtectedColumn
from bronze.protection import keyring, protect

_PART = 25_000
_FEW = 1000
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
_MASTERS = (Secret("env", "BRONZE_BENCHMARK_KEY"),)
_METHODS: tuple[tuple[str, Mapping[str, Any], str], ...] = (
    ("encrypt", {}, "address"),
    ("encrypt_deterministic", {}, "address"),
    ("tokenize", {}, "address"),
    ("tokenize", {"format": True}, "phone"),
    ("tokenize", {"format": True}, "name"),
    ("tokenize", {"format": True}, "address"),
    ("hash", {}, "address"),
    ("mask", {"keep": 4}, "address"),
)


@dataclass(frozen=True)
class Case:
    """A column and its values."""

    name: str
    values: str
    column: ProtectedColumn
    parts: tuple[pl.Series, ...]


def cases(rows: int) -> Iterator[Case]:
    """Each method, on distinct and on repeated values."""
    columns = _columns(rows)
    wrapping = keyring.master(_MASTERS[0])
    for method, options, name in _METHODS:
        rule = ProtectionRule(method, **options)  # type: ignore[arg-type]
        key = keyring.new(wrapping, "bronze.customers", name, method)
        column = ProtectedColumn(name, name, DeltaType("string"), rule, (key,))
        title = ", ".join([method, *options])
        for kind, values in (("distinct", columns[name]), ("repeated", _repeated(columns[name]))):
            parts = tuple(values[at : at + _PART] for at in range(0, rows, _PART))
            yield Case(title, f"{kind} {name}", column, parts)


def _columns(rows: int) -> dict[str, pl.Series]:
    """Email addresses, numbers of eight digits, and names of six to nineteen letters."""
    numbers = pl.int_range(rows, dtype=pl.Int64, eager=True)
    digits = (numbers * 7919 % 10**8).cast(pl.String).str.zfill(8)
    generator = np.random.default_rng(1)
    lengths = generator.integers(6, 20, rows)
    drawn = "".join(_LETTERS[generator.integers(0, 26, int(lengths.sum()))])
    ends = np.cumsum(lengths)
    names = [drawn[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    return {
        "address": "customer" + numbers.cast(pl.String) + "@example.com",
        "phone": "+49 30 " + digits,
        "name": pl.Series(names).str.to_titlecase(),
    }


def _repeated(values: pl.Series) -> pl.Series:
    drawn = np.random.default_rng(2).integers(0, min(_FEW, len(values)), len(values))
    return values.gather(drawn)


def measure(case: Case) -> tuple[float, float | None]:
    """The CPU seconds to protect the values, and to reveal them if that is possible.

    Raises:
        AssertionError: other values came back.
    """
    stored: list[pl.Series] = []
    clear: list[pl.Series] = []
    protecting = _seconds(
        lambda: stored.extend(
            protect.protect_texts(part, case.column, _MASTERS) for part in case.parts
        )
    )
    if case.column.protect.method not in protect.REVEALED:
        return protecting, None
    revealing = _seconds(
        lambda: clear.extend(
            protect.reveal_values(part, case.column, _MASTERS, pl.String) for part in stored
        )
    )
    assert pl.concat(clear).equals(pl.concat(case.parts)), case.name
    return protecting, revealing


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.protection", description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=3, help="rounds, whose medians are shown")
    given = parser.parse_args()
    os.environ[_MASTERS[0].name] = base64.b64encode(os.urandom(32)).decode()
    all_cases = list(cases(given.rows))
    rounds = [[measure(case) for case in all_cases] for _ in range(given.runs + 1)]
    table = Table(title=f"{given.rows:,} values", box=None)
    for name in ("method", "values", "protect, s", "reveal, s"):
        table.add_column(name, justify="right" if name.endswith(", s") else "left")
    # The first round warms the caches of keys and of memory.
    for case, *figures in zip(all_cases, *rounds[1:], strict=True):
        protecting = median(seconds for seconds, _ in figures)
        revealing = [seconds for _, seconds in figures if seconds is not None]
        shown = f"{median(revealing):.3f}" if revealing else ""
        table.add_row(case.name, case.values, f"{protecting:.3f}", shown)
    Console().print(table)


if __name__ == "__main__":
    main()
