"""The last 90 days of a table: duration, rows, score, and for how long it was late."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from bronze.operate.view import Day
from bronze.operate.web.markup import charts, words
from bronze.operate.web.markup.charts import Bar
from bronze.operate.web.markup.tags import Safe, tag
from bronze.printable import count

DAYS = 90


@dataclass(frozen=True)
class _Chart:
    """What one chart shows: the value of a day, how it is written, what is as high as it, and
    which days are red.
    """

    title: str
    about: str
    value: Callable[[Day], float | None]
    written: Callable[[float], str]
    top: float | None = None
    is_bad: Callable[[Day], bool] = lambda day: False


def _charts(least_score: float) -> tuple[_Chart, ...]:
    def rows(day: Day) -> float | None:
        return float(day.rows) if day.runs else None

    def is_low(day: Day) -> bool:
        return day.score is not None and day.score < least_score

    return (
        _Chart(
            "Duration",
            "longest run of a day; red: one failed",
            lambda day: day.seconds,
            words.span,
            is_bad=lambda day: bool(day.failed),
        ),
        _Chart("Rows", "changed on a day", rows, lambda value: words.number(round(value))),
        _Chart(
            "Score",
            f"lowest of a day; red: below {_score(least_score)}",
            lambda day: day.score,
            _score,
            top=100.0,
            is_bad=is_low,
        ),
        _Chart(
            "Late",
            "time of a day",
            lambda day: day.late or None,
            words.span,
            is_bad=lambda day: True,
        ),
    )


def _score(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def pictures(days: Iterable[Day], today: date, least_score: float) -> Safe:
    """The charts of the days up to today; a score below ``least_score`` is red."""
    known = {day.day: day for day in days}
    wanted = [today - timedelta(days=back) for back in range(DAYS - 1, -1, -1)]
    whole = [known.get(day, Day(day)) for day in wanted]
    figures = [_figure(chart, whole) for chart in _charts(least_score)]
    return tag("div", figures, class_="charts")


def _figure(chart: _Chart, days: Sequence[Day]) -> Safe:
    values = [value for day in days if (value := chart.value(day)) is not None]
    top = chart.top or max(values, default=0.0)
    if not values:
        says, most = "nothing", "–"
    else:
        low, high = chart.written(min(values)), chart.written(max(values))
        says = f"from {low} to {high}"
        most = low if chart.top else high
    label = f"{chart.title} of the last {DAYS} days, {chart.about}: {says}"
    words_of_most = "lowest" if chart.top else "most"
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("strong", chart.title),
            tag("span", f" {chart.about}", class_="muted"),
            tag("span", f"{words_of_most} {most}", class_="most"),
        ),
        charts.bars([_bar(chart, day) for day in days], top, label),
        tag(
            "p",
            tag("span", _short(days[0].day)),
            tag("span", _short(days[-1].day)),
            class_="axis",
            aria_hidden="true",
        ),
    )


def _bar(chart: _Chart, day: Day) -> Bar:
    value = chart.value(day)
    says = "" if value is None else f"{_short(day.day)}: {chart.written(value)}"
    if day.failed:
        says += f", {day.failed} of {count(day.runs, 'run')} failed"
    return Bar(value, says, chart.is_bad(day))


def _short(day: date) -> str:
    return f"{day.day} {day:%b}"
