"""How tables are laid out: their files by size, their clustering, and what filters skip."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from bronze.delta import file_names
from bronze.delta.layout import choice
from bronze.delta.layout.choice import Choice
from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.errors import BronzeError
from bronze.model.files import StoredFile
from bronze.operate.report.charts import Chart, Column, round_top
from bronze.operate.report.material import Material
from bronze.operate.report.sections.parts import MOST_TABLES, Section, more_tables
from bronze.operate.web.markup import words
from bronze.operate.web.markup.layout import grid
from bronze.operate.web.markup.tags import Safe, tag
from bronze.printable import count

_MB = 2**20
_BOUNDS = (_MB // 4, _MB, 4 * _MB, 16 * _MB, 64 * _MB, 128 * _MB, 256 * _MB)
_SIZES = (
    "below ¼",
    "¼ to 1",
    "1 to 4",
    "4 to 16",
    "16 to 64",
    "64 to 128",
    "128 to 256",
    "above 256",
)
_FEWEST_FILES = 2
# The files of which the bounds are compared with each other.
_MOST_FILES = 1_000


@dataclass(frozen=True)
class _Layout:
    """The layout of a table: the columns that it is clustered by and why, the share of bytes in
    files that are clustered, and the share of bytes that a lookup of a value of ``column`` skips.
    """

    target: str
    files: int
    size: int
    rows: int | None
    by: tuple[str, ...]
    why: str
    clustered: float
    column: str
    skipped: float | None


def section(material: Material) -> Section:
    """The section."""
    found, unreadable = [], []
    for target, table in material.stored.items():
        try:
            found.append(_layout(target, table.state, material.clustered[target]))
        except BronzeError as error:
            unreadable.append(error.message)
    if not found:
        return Section("layout", "Layout", tag("p", "The lake has no table yet."))
    found.sort(key=lambda one: (-one.size, one.target))
    return Section(
        "layout",
        "Layout",
        tag("p", _sentence(found), class_="lead"),
        _sizes(material),
        _table(material, found),
        [tag("p", message, class_="muted") for message in unreadable[:3]],
    )


def _layout(target: str, state: State | None, wish: Sequence[str]) -> _Layout:
    assert state is not None  # noqa: S101 - only tables that could be read are stored
    stored = state.listed_files
    size = sum(file.size for file in stored)
    known = Choice.read(TableProperties.read(state.properties).clustering_choice)
    by = state.clustering or tuple(wish) or choice.chosen(state)
    in_clusters = sum(f.size for f in stored if f.provider or file_names.cluster_of(f.path))
    column, skipped = _skipped(state, by)
    rows = [file.rows for file in stored]
    return _Layout(
        target=target,
        files=len(stored),
        size=size,
        rows=sum(rows) if all(number >= 0 for number in rows) else None,
        by=by,
        why=known.why if known else "",
        clustered=in_clusters / size if size else 0.0,
        column=column,
        skipped=skipped,
    )


def _skipped(state: State, by: Sequence[str]) -> tuple[str, float | None]:
    """The first column of the clustering, or else of the key, that files have bounds of, and the
    share of bytes that a lookup of one of its values skips.
    """
    stored = state.listed_files[:_MOST_FILES]
    if len(stored) < _FEWEST_FILES:
        return "", None
    for name in (*by, *(TableProperties.read(state.properties).key or ())):
        share = skipped_share(stored, name)
        if share is not None:
            return name, share
    return "", None


def skipped_share(stored: Sequence[StoredFile], column: str) -> float | None:
    """The share of bytes in files whose bounds exclude a value: the mean for values at the bounds
    of the files, each of which counts by its bytes. None where a file has no bounds.
    """
    lows, highs = _bounds(stored, "low", column), _bounds(stored, "high", column)
    if lows is None or highs is None:
        return None
    sizes = np.array([file.size for file in stored], np.float64)
    try:
        probes = pl.Series([*lows, *highs])
        low, high = pl.Series(lows), pl.Series(highs)
        read = [float(sizes[((low <= v) & (high >= v)).to_numpy()].sum()) for v in probes]
    except (TypeError, pl.exceptions.PolarsError):
        return None
    mean = float(np.average(read, weights=[*sizes, *sizes])) if sizes.sum() else 0.0
    return 1.0 - mean / float(sizes.sum() or 1.0)


def _bounds(stored: Sequence[StoredFile], side: str, column: str) -> list[Any] | None:
    values = [dict(getattr(file, side)).get(column) for file in stored]
    return None if any(value is None for value in values) else values


def _sentence(found: Sequence[_Layout]) -> str:
    total, size = sum(one.files for one in found), sum(one.size for one in found)
    mean = words.size(size / total) if total else "0 B"
    by = sum(bool(one.by) for one in found)
    clustered = f"{by:,} of {len(found):,} clustered" if by else "none clustered"
    return (
        f"{count(total, 'file')} of {count(len(found), 'table')}, {words.size(size)}:"
        f" {mean} a file on average; {clustered}."
    )


def _sizes(material: Material) -> Safe | None:
    """How many files there are of each size."""
    sizes = [
        file.size
        for table in material.stored.values()
        for file in (table.state.listed_files if table.state else ())
    ]
    counts = [0] * len(_SIZES)
    for size in sizes:
        counts[bisect_right(_BOUNDS, size)] += 1
    if sum(number > 0 for number in counts) < _FEWEST_FILES:
        return None
    first = next(at for at, number in enumerate(counts) if number)
    last = max(at for at, number in enumerate(counts) if number)
    columns = [
        Column(label, (float(number),), f"{label} MiB: {count(number, 'file')}")
        for label, number in list(zip(_SIZES, counts, strict=True))[first : last + 1]
    ]
    top = round_top(max(counts))
    chart = Chart(
        "Files by size", "MiB", columns, lambda value: f"{value:,.4g}", top, ("files",), "MiB"
    )
    return tag("div", chart.figure(), class_="single")


def _table(material: Material, found: Sequence[_Layout]) -> Safe:
    heads = ("Table", "Size", "Files", "Mean file", "Rows", "Clustered by", "A lookup skips")
    rows = [
        [
            material.name(one.target),
            words.size(one.size),
            words.number(one.files),
            words.size(one.size / one.files) if one.files else "–",
            "–" if one.rows is None else words.number(one.rows),
            _clustering(one),
            _lookup(one),
        ]
        for one in found[:MOST_TABLES]
    ]
    table = grid("Layout by table", heads, rows)
    return tag("div", table, more_tables(len(found), "which are smaller"))


def _clustering(one: _Layout) -> object:
    if not one.by:
        return tag("span", one.why or "–", class_="sub" if one.why else "muted")
    about = f"{words.share(one.clustered)} of the bytes"
    return [
        ", ".join(one.by),
        tag("span", f"{about}; {one.why}" if one.why else about, class_="sub"),
    ]


def _lookup(one: _Layout) -> object:
    if one.skipped is None:
        return tag("span", "–", class_="muted")
    return [words.share(one.skipped), tag("span", f"of the bytes, by {one.column}", class_="sub")]
