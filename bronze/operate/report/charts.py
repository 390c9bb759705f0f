"""Charts with axes: the shapes are SVG, their texts HTML beside them, and the figures a table below
them, so that nobody needs to see the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from bronze.operate.web.markup import charts
from bronze.operate.web.markup.charts import Bar
from bronze.operate.web.markup.tags import Safe, join, tag

_HIGH, _STEP = 120.0, 10.0
_MOST_LABELS = 6
_EACH_LABELLED = 8
_FEWEST, _SLOTS = 3, 24
# The widest bar, as a share of the picture.
_WIDEST = 1 / 12
_LADDER = (1.0, 2.0, 2.5, 5.0, 10.0)
_SECONDS = (
    *(1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800),
    *(3600, 7200, 10_800, 21_600, 43_200, 86_400),
)


@dataclass(frozen=True)
class Column:
    """One column of a chart: its ``label`` on the axis, the values of its ``parts``, the lowest
    first, and what it ``says``; whether it is ``bad``.
    """

    label: str
    parts: tuple[float, ...]
    says: str
    bad: bool = False

    @property
    def total(self) -> float:
        """Its height."""
        return sum(self.parts)


@dataclass(frozen=True)
class Chart:
    """A chart of columns side by side. ``about`` says what a column is, ``written`` writes a value
    with its unit, ``parts`` are the names of the parts of a column, ``top`` is what is as high as
    the picture. ``what`` is the head of the first column of its table.
    """

    title: str
    about: str
    columns: Sequence[Column]
    written: Callable[[float], str]
    top: float
    parts: tuple[str, ...]
    what: str

    def figure(self) -> Safe:
        """The chart, with its axes, its legend and its figures."""
        sums = [column.total for column in self.columns]
        label = (
            f"{self.title}, {self.about}: from {self.written(min(sums))} to"
            f" {self.written(max(sums))}"
        )
        return tag(
            "figure",
            tag(
                "figcaption",
                tag("strong", self.title),
                tag("span", self.about, class_="muted"),
                self._legend(),
            ),
            tag(
                "div",
                tag(
                    "div",
                    [tag("span", self.written(self.top * share)) for share in (1, 0.5, 0)],
                    class_="scale",
                    aria_hidden="true",
                ),
                self._picture(label),
                class_="plot",
            ),
            self._axis(),
            self._figures(),
            class_="chart-card",
        )

    def _legend(self) -> Safe | None:
        items = [
            tag("li", tag("span", "", class_=f"key part{number}", aria_hidden="true"), name)
            for number, name in enumerate(self.parts)
        ]
        if any(column.bad for column in self.columns):
            items.append(tag("li", tag("span", "", class_="key bad", aria_hidden="true"), "failed"))
        return tag("ul", items, class_="keys") if len(items) > 1 else None

    def _picture(self, label: str) -> Safe:
        width = _STEP * len(self.columns)
        lines = [
            tag(
                "line",
                class_="rule",
                x1=0,
                x2=f"{width:.0f}",
                y1=f"{_HIGH * share:.1f}",
                y2=f"{_HIGH * share:.1f}",
                vector_effect="non-scaling-stroke",
            )
            for share in (0, 0.5)
        ]
        return tag(
            "svg",
            lines,
            join(self._bars(width)),
            class_="chart columns",
            viewBox=f"0 0 {width:.0f} {_HIGH:.0f}",
            preserveAspectRatio="none",
            role="img",
            aria_label=label,
            focusable="false",
        )

    def _bars(self, width: float) -> Iterable[Safe]:
        wide = min(_STEP * 0.76, width * _WIDEST)
        for number, column in enumerate(self.columns):
            foot = _HIGH
            left = number * _STEP + (_STEP - wide) / 2
            for part, value in enumerate(column.parts):
                # What is there is seen, however little.
                height = max(value / self.top * _HIGH, 1.5) if value else 0.0
                foot -= height
                if height:
                    yield tag(
                        "rect",
                        tag("title", column.says),
                        x=f"{left:.2f}",
                        y=f"{foot:.1f}",
                        width=f"{wide:.2f}",
                        height=f"{height:.1f}",
                        class_="bad" if column.bad else f"part{part}",
                    )

    def _axis(self) -> Safe:
        labels = [column.label for column in self.columns]
        if len(labels) <= _EACH_LABELLED:
            return tag("div", [tag("span", label) for label in labels], class_="ticks each")
        chosen = [labels[len(labels) * n // _MOST_LABELS] for n in range(_MOST_LABELS)]
        return tag("div", [tag("span", label) for label in chosen], class_="ticks")

    def _figures(self) -> Safe:
        heads = (self.what, *self.parts)
        rows = [
            tag(
                "tr",
                tag("th", column.label, scope="row"),
                [tag("td", self.written(value), class_="figure") for value in column.parts],
            )
            for column in self.columns
        ]
        return details(
            "Figures",
            tag(
                "table",
                tag("caption", f"{self.title}, {self.about}", class_="only-read"),
                tag("thead", tag("tr", [tag("th", head, scope="col") for head in heads])),
                tag("tbody", rows),
                class_="plain",
            ),
        )


def details(title: str, *content: object) -> Safe:
    """Something that is seen when it is asked for."""
    return tag("details", tag("summary", title), *content, class_="more")


def trend(values: Sequence[float], written: Callable[[float], str], says: str) -> Safe:
    """A small chart of values from the first to the last, with the highest in words. Of few values
    words say more than a picture.
    """
    if len(values) < _FEWEST:
        words = ", then ".join(written(value) for value in values)
        return tag("span", words or "–", class_="muted")
    top = max(values)
    # The bars of few values are as narrow as those of many, and end where now is.
    bars = [Bar(None, "")] * (_SLOTS - len(values)) + [Bar(v, written(v)) for v in values]
    picture = charts.bars(
        bars, top or 1.0, f"{says}: {written(values[0])} to {written(values[-1])}"
    )
    return tag("span", picture, tag("span", f"up to {written(top)}", class_="sub"), class_="mini")


def round_top(value: float) -> float:
    """The round number of the axis that is above a value of a count."""
    scale = 1.0
    while value > 10 * scale:
        scale *= 10
    return next((step * scale for step in _LADDER if step * scale >= value), 10 * scale)


def round_seconds(value: float) -> float:
    """The round time of the axis that is above a number of seconds."""
    if value <= 1:
        return next(step / 10 for step in _LADDER if step / 10 >= value)
    above = (float(step) for step in _SECONDS if step >= value)
    days = timedelta(days=1).total_seconds()
    return next(above, round_top(value / days) * days)
