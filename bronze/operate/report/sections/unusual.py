"""Rows and runs that are unlike the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

from bronze.governance.tables.anomaly.anomalies import ROW, RUN
from bronze.operate.report import charts
from bronze.operate.report.material import Material
from bronze.operate.report.sections.parts import MOST_TABLES, Section, more, more_tables
from bronze.operate.web.markup import words
from bronze.operate.web.markup.layout import grid
from bronze.operate.web.markup.tags import Safe, tag
from bronze.printable import count

_MOST_MEASURES = 30
_MOST_COLUMNS = 3
_LAST = 30


def section(material: Material) -> Section:
    """The section."""
    profiles, found = material.records.profiles, material.records.anomalies
    runs = found.filter(pl.col("level") == RUN)
    scored = int(profiles["scored"].sum())
    if not scored and runs.is_empty():
        none = "No table has a model of its rows: `anomalies = true` in its section makes one."
        return Section("anomalies", "Anomalies", tag("p", none))
    return Section(
        "anomalies",
        "Anomalies",
        tag("p", _sentence(profiles, runs), class_="lead"),
        _by_table(material),
        _measures(material, runs),
    )


def _sentence(profiles: pl.DataFrame, runs: pl.DataFrame) -> str:
    rows, scored = int(profiles["anomalies"].sum()), int(profiles["scored"].sum())
    share = words.share(rows / scored, 2) if scored else "0 %"
    about_rows = f"{rows:,} of {count(scored, 'row')} ({share}) are unlike the rows of their table"
    if runs.is_empty():
        return f"{about_rows}; no run was unlike the ones before it."
    verb = "was" if runs.height == 1 else "were"
    return f"{about_rows}; {count(runs.height, 'measure')} of runs {verb} unlike those before."


def _by_table(material: Material) -> Safe | None:
    batches = (
        material.records.profiles.filter(pl.col("scored") > 0)
        .group_by("target_table", "batch_id")
        .agg(pl.sum("scored", "anomalies"), pl.min("profiled_timestamp"))
        .sort("profiled_timestamp")
        .with_columns((pl.col("anomalies") / pl.col("scored")).alias("share"))
    )
    if batches.is_empty():
        return None
    tables = (
        batches.group_by("target_table")
        .agg(pl.sum("scored", "anomalies"), pl.col("share").tail(_LAST))
        .sort("anomalies", "target_table", descending=[True, False])
    )
    reasons = _reasons(material.records.anomalies)
    heads = ("Table", "Anomalies", "Rows scored", "Mostly because of", "Share by batch")
    rows = [
        [
            material.name(target),
            words.number(anomalies),
            words.number(scored),
            ", ".join(name for name, _ in reasons[target].most_common(_MOST_COLUMNS)) or "–",
            charts.trend(
                shares,
                lambda value: words.share(value, 1),
                f"Share of anomalies in the last {count(len(shares), 'batch', 'batches')}",
            ),
        ]
        for target, scored, anomalies, shares in tables.head(MOST_TABLES).iter_rows()
    ]
    table = grid("Anomalies by table", heads, rows)
    return tag("div", table, more_tables(tables.height, "which have fewer"))


def _reasons(found: pl.DataFrame) -> Mapping[str, Counter[str]]:
    """How often each column contributes the most to an anomaly, by table."""
    reasons: dict[str, Counter[str]] = {}
    for target, text in found.filter(pl.col("level") == ROW)["target_table", "columns"].iter_rows():
        first = next(iter(_parsed(text)), {}).get("column")
        if first:
            reasons.setdefault(target, Counter())[str(first)] += 1
    return _Counters(reasons)


class _Counters(dict[str, "Counter[str]"]):
    def __missing__(self, key: str) -> Counter[str]:
        return Counter()


def _parsed(text: str | None) -> list[dict[str, Any]]:
    """The details of a record, which another writer may have changed."""
    try:
        value = json.loads(text or "[]")
    except ValueError:
        return []
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def _measures(material: Material, runs: pl.DataFrame) -> Safe | None:
    if runs.is_empty():
        return None
    newest = runs.sort("anomaly_timestamp", descending=True).head(_MOST_MEASURES)
    rows = [
        [
            words.time(at, material.zone, material.now),
            material.name(target),
            f"{str(part.get('measure', '')).replace('_', ' ')} {part.get('column') or ''}".strip(),
            _figure(part.get("value")),
            _figure(part.get("usual")),
        ]
        for at, target, text in newest["anomaly_timestamp", "target_table", "columns"].iter_rows()
        for part in _parsed(text)
    ]
    return tag(
        "div",
        tag("h3", "Unusual runs"),
        grid(
            "Measures of runs unlike those before",
            ("When", "Table", "Measure", "Value", "Usual"),
            rows,
        ),
        more(runs.height, _MOST_MEASURES, "measure", "which are older"),
        class_="below",
    )


def _figure(value: object) -> str:
    return f"{value:,.6g}" if isinstance(value, int | float) else "–"
