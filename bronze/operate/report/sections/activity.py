"""Rows that landed and the time that runs took, of all tables and of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from bronze.operate.report import charts, times
from bronze.operate.report.charts import Chart, Column
from bronze.operate.report.material import Material
from bronze.operate.report.sections.parts import MOST_TABLES, Section, more_tables
from bronze.operate.web.markup import words
from bronze.operate.web.markup.layout import grid
from bronze.operate.web.markup.tags import Safe, tag
from bronze.printable import count

_KINDS = ("inserted", "updated", "deleted")
_CHANGED = pl.sum_horizontal(_KINDS)
_LAST = 30


@dataclass(frozen=True)
class _Sum:
    """What a table did in the time of the report."""

    target: str
    rows: int = 0
    runs: int = 0
    failed: int = 0
    longest: float | None = None
    last_rows: tuple[float, ...] = ()
    last_seconds: tuple[float, ...] = ()


def section(material: Material) -> Section:
    """The section."""
    landings, runs = material.records.landings, material.records.runs
    if landings.is_empty() and runs.is_empty():
        none = tag("p", f"Nothing has run in the last {count(material.days, 'day')}.")
        return Section("activity", "Rows and durations", none)
    pictures = [p for p in (_rows(material), _seconds(material)) if p]
    return Section(
        "activity",
        "Rows and durations",
        tag("p", _sentence(material), class_="lead"),
        tag("div", pictures, class_="pair") if pictures else None,
        _tables(material),
    )


def _sentence(material: Material) -> str:
    landings, runs = material.records.landings, material.records.runs
    changed = [int(landings[name].sum()) for name in _KINDS]
    batches = landings["batch_id"].n_unique()
    many = count(batches, "batch", "batches")
    text = (
        f"{count(sum(changed), 'row')} landed in {many}:"
        f" {changed[0]:,} inserted, {changed[1]:,} updated, {changed[2]:,} deleted."
    )
    failed = runs.filter(pl.col("status") == "failed").height
    if not runs.height:
        return text
    of_runs = f" {count(runs.height, 'run')} of a table ended"
    return (
        f"{text}{of_runs}, {failed:,} of them failed."
        if failed
        else f"{text}{of_runs}; none failed."
    )


def _rows(material: Material) -> Safe | None:
    """Rows by time."""
    landings = material.records.landings
    # A batch is one column, however many tables it has.
    batched = landings.with_columns(pl.col("at").min().over("batch_id"))
    cut = times.cut(batched["at"], material.zone)
    if cut is None:
        return None
    sums = batched.group_by(cut.number(pl.col("at")).alias("column")).agg(pl.sum(*_KINDS))
    by_number = {row[0]: row[1:] for row in sums.iter_rows()}
    columns = [
        Column(
            label,
            tuple(map(float, by_number.get(number, (0, 0, 0)))),
            _says(label, by_number.get(number)),
        )
        for number, label in enumerate(cut.labels)
    ]
    top = charts.round_top(max(column.total for column in columns))
    return Chart("Rows landed", cut.each, columns, _rows_text, top, _KINDS, "Time").figure()


def _says(label: str, parts: Sequence[int] | None) -> str:
    if not parts:
        return label
    told = ", ".join(
        f"{value:,} {kind}" for value, kind in zip(parts, _KINDS, strict=True) if value
    )
    return f"{label}: {told}"


def _rows_text(value: float) -> str:
    """A number of rows for an axis: in full below a million."""
    return (
        f"{value / 1e6:,.4g} M"
        if value >= 1e6
        else f"{value:,.0f}"
        if value == int(value)
        else f"{value:,.1f}"
    )


def _seconds(material: Material) -> Safe | None:
    """The longest run of a table, by time."""
    runs = material.records.runs.filter(pl.col("seconds").is_not_null())
    begun = runs.with_columns(pl.col("ended_timestamp").min().over("run_id").alias("at"))
    cut = times.cut(begun["at"], material.zone)
    if cut is None:
        return None
    longest = (
        begun.sort("seconds")
        .group_by(cut.number(pl.col("at")).alias("column"))
        .agg(
            pl.last("seconds"),
            pl.last("target_table"),
            (pl.col("status") == "failed").any().alias("failed"),
        )
    )
    by_number = {row[0]: row[1:] for row in longest.iter_rows()}
    columns = []
    for number, label in enumerate(cut.labels):
        seconds, target, failed = by_number.get(number, (0.0, "", False))
        says = f"{label}: {words.span(seconds)}, {material.name(target)}" if target else label
        columns.append(Column(label, (seconds,), says, bool(failed)))
    top = charts.round_seconds(max(column.total for column in columns))
    each = "longest table of each run" if not cut.every else f"longest table {cut.each}"
    return Chart("Duration", each, columns, words.span, top, ("longest table",), "Time").figure()


def _tables(material: Material) -> Safe:
    found = sorted(_sums(material).values(), key=lambda one: (-one.rows, one.target))
    heads = ("Table", "Rows landed", "Rows by batch", "Runs", "Longest", "Duration by run")
    rows = [
        [
            material.name(one.target),
            words.number(one.rows),
            charts.trend(
                one.last_rows,
                _rows_text,
                f"Rows of the last {count(len(one.last_rows), 'batch', 'batches')}",
            ),
            [
                words.number(one.runs) if one.runs else "–",
                tag("span", f"{one.failed:,} failed", class_="bad-text sub")
                if one.failed
                else None,
            ],
            "–" if one.longest is None else words.span(one.longest),
            charts.trend(
                one.last_seconds,
                words.span,
                f"Durations of the last {count(len(one.last_seconds), 'run')}",
            ),
        ]
        for one in found[:MOST_TABLES]
    ]
    table = grid("Rows and durations by table", heads, rows)
    return tag("div", table, more_tables(len(found), "which landed fewer rows"))


def _sums(material: Material) -> Mapping[str, _Sum]:
    rows = (
        material.records.landings.sort("at")
        .with_columns(_CHANGED.alias("rows"))
        .group_by("target_table")
        .agg(pl.sum("rows"), pl.col("rows").tail(_LAST).alias("last"))
    )
    ran = material.records.runs.group_by("target_table").agg(
        pl.len(),
        (pl.col("status") == "failed").sum().alias("failed"),
        pl.col("seconds").max().alias("longest"),
        pl.col("seconds").drop_nulls().tail(_LAST).alias("last"),
    )
    landed = {target: (total, last) for target, total, last in rows.iter_rows()}
    worked = {row[0]: row[1:] for row in ran.iter_rows()}
    found = {}
    for target in {*landed, *worked} - {""}:
        total, last = landed.get(target, (0, []))
        runs, failed, longest, seconds = worked.get(target, (0, 0, None, []))
        found[target] = _Sum(
            target, total, runs, failed, longest, tuple(map(float, last)), tuple(seconds)
        )
    return found
