"""How many rows break each rule, and how that has changed from run to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from bronze.operate.report import charts
from bronze.operate.report.material import Material
from bronze.operate.report.sections.parts import MOST_TABLES, Section, more, more_tables
from bronze.operate.report.sections.summary import score_text
from bronze.operate.web.markup import words
from bronze.operate.web.markup.layout import badge, grid
from bronze.operate.web.markup.tags import Safe, tag
from bronze.printable import count
from bronze.quality import checks

_MOST_RULES = 40
_LAST = 30
_RULE = ("target_table", "rule", "column_name")


@dataclass(frozen=True)
class _Trend:
    """The figures of a rule: those of its last run, and its shares from run to run."""

    target: str
    rule: str
    column: str
    severity: str
    checked: int
    failed: int
    allowed: float | None
    passed: bool | None
    shares: tuple[float, ...]


def section(material: Material) -> Section:
    """The section."""
    figures = material.records.figures
    if figures.is_empty():
        none = f"No rows were scored in the last {count(material.days, 'day')}."
        return Section("quality", "Quality", tag("p", none))
    rules = figures.filter(pl.col("rule") != checks.SCORE)
    trends = _trends(rules)
    number = rules.select(_RULE).n_unique() if rules.height else 0
    return Section(
        "quality",
        "Quality by rule",
        tag("p", _sentence(number, trends), class_="lead"),
        _table(material, trends),
        _scores(material),
    )


def _sentence(number: int, trends: Sequence[_Trend]) -> str:
    if not number:
        return "No rule is checked: [tables.NAME.quality] has them, or constraints of PostgreSQL."
    now = sum(trend.failed > 0 for trend in trends)
    unmet = sum(trend.passed is False for trend in trends)
    if not trends:
        return f"Rows meet all of the {count(number, 'rule')} that are checked."
    verb = "is" if now == 1 else "are"
    limits = f"; {unmet:,} beyond what is allowed" if unmet else "; all within what is allowed"
    return f"{now:,} of {count(number, 'rule')} {verb} broken by rows of the last run{limits}."


def _trends(rules: pl.DataFrame) -> list[_Trend]:
    """The rules that rows have broken, the worst of now first."""
    share = (pl.col("failed") / pl.max_horizontal(pl.col("checked"), 1)).fill_null(0.0)
    grouped = (
        rules.sort("evaluated_timestamp")
        .with_columns(share.alias("share"))
        .group_by(_RULE)
        .agg(
            pl.last("severity", "checked", "failed", "allowed", "passed"),
            pl.col("share").tail(_LAST),
            (pl.col("failed").fill_null(0).sum() > 0).alias("was_broken"),
        )
        .filter(pl.col("was_broken") | (pl.col("passed") == False))  # noqa: E712 - NULL is not False
    )
    found = [
        _Trend(
            row["target_table"],
            row["rule"],
            row["column_name"] or "",
            row["severity"] or "",
            row["checked"] or 0,
            row["failed"] or 0,
            row["allowed"],
            row["passed"],
            tuple(row["share"]),
        )
        for row in grouped.iter_rows(named=True)
    ]
    return sorted(
        found,
        key=lambda one: (
            one.passed is not False,
            -one.failed / max(one.checked, 1),
            one.target,
            one.rule,
            one.column,
        ),
    )


def _table(material: Material, trends: Sequence[_Trend]) -> Safe | None:
    if not trends:
        return None
    heads = ("Rule", "Table", "State", "Rows that break it", "Share", "By run")
    rows = [
        [
            [one.rule, tag("span", one.column, class_="sub") if one.column else None],
            material.name(one.target),
            _state(one),
            f"{one.failed:,} of {one.checked:,}",
            words.share(one.failed / max(one.checked, 1), 1),
            charts.trend(
                one.shares,
                lambda value: words.share(value, 1),
                f"Share of rows that broke {one.rule} in the last {count(len(one.shares), 'run')}",
            ),
        ]
        for one in trends[:_MOST_RULES]
    ]
    table = grid("Rules that rows break", heads, rows)
    return tag("div", table, more(len(trends), _MOST_RULES, "rule", "which fewer rows break"))


def _state(one: _Trend) -> list[object]:
    if one.passed is False:
        return [badge("failed", "not met"), _severity(one)]
    if not one.failed:
        return [badge("ok", "mended"), _severity(one)]
    return [badge("warning", "allowed"), _severity(one)]


def _severity(one: _Trend) -> Safe | None:
    return tag("span", one.severity, class_="sub") if one.severity else None


def _scores(material: Material) -> Safe | None:
    """The average scores of the rows of each table from run to run, where they have changed."""
    scored = (
        material.records.figures.filter(
            pl.col("rule") == checks.SCORE, pl.col("checked") > 0, pl.col("measured").is_not_null()
        )
        .sort("evaluated_timestamp")
        .group_by("target_table")
        .agg(pl.col("measured").tail(_LAST), pl.col("measured").min().alias("low"))
        .filter(pl.col("low") < 100)
        .sort("low", "target_table")
    )
    if scored.is_empty():
        return None
    heads = ("Table", "Score", "Lowest", "Points below 100, by run")
    rows = [
        [
            material.name(target),
            score_text(values[-1]),
            score_text(low),
            charts.trend(
                [100 - value for value in values],
                lambda value: f"{value:.2g}",
                f"Points below 100 of the last {count(len(values), 'run')}",
            ),
        ]
        for target, values, low in scored.head(MOST_TABLES).iter_rows()
    ]
    return tag(
        "div",
        tag("h3", "Scores below 100"),
        grid("Scores by table", heads, rows),
        more_tables(scored.height, "which have higher scores"),
        class_="below",
    )
