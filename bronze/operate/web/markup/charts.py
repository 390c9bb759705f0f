"""Charts as SVG. They take the width they get: what is text stands in HTML beside them, so that it
is as large on a phone as on a wall.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from bronze.operate.web.markup.tags import Safe, join, tag

_WIDTH, _HEIGHT = 240.0, 40.0
_BUCKETS = 96

Point = tuple[datetime, float]


@dataclass(frozen=True)
class Bar:
    """One bar: its ``value``, None for nothing known; what it ``says``; whether it is ``bad``."""

    value: float | None
    says: str
    bad: bool = False


@dataclass(frozen=True)
class Span:
    """A piece of a time line: its ``kind`` is a class of the style sheet."""

    begin: datetime
    end: datetime
    kind: str
    says: str = ""


def sparkline(
    points: Sequence[Point], begin: datetime, end: datetime, threshold: float, says: str
) -> Safe:
    """Values over a time, with a dashed line where the threshold is.

    Args:
        points: values with their times, in order.
        begin: what the left edge is.
        end: what the right edge is.
        threshold: a value.
        says: the picture in words.
    """
    shown = _thinned([point for point in points if begin <= point[0] <= end], begin, end)
    values = [value for _, value in shown]
    top = max([*values, threshold, 1e-9]) * 1.1
    low = min([*values, threshold])
    # Scores are all near the top: their differences are what is looked at.
    low = low - (top - low) * 0.15 if low > 0.5 * top else 0.0

    def height(value: float) -> float:
        return _HEIGHT - 2 - (value - low) / (top - low) * (_HEIGHT - 4)

    def along(moment: datetime) -> float:
        return (moment - begin) / (end - begin) * _WIDTH

    line = " ".join(f"{along(at):.1f},{height(value):.1f}" for at, value in shown)
    limit = f"{height(threshold):.1f}"
    parts: list[Safe] = []
    if len(shown) > 1:
        first, last = along(shown[0][0]), along(shown[-1][0])
        area = f"{first:.1f},{_HEIGHT:.0f} {line} {last:.1f},{_HEIGHT:.0f}"
        parts.append(tag("polygon", class_="area", points=area))
        parts.append(_stroke("polyline", class_="line", points=line))
    edge = _stroke("line", class_="limit", x1=0, x2=f"{_WIDTH:.0f}", y1=limit, y2=limit)
    return _svg(_WIDTH, _HEIGHT, "spark", says, [*parts, edge])


def bars(values: Sequence[Bar], top: float, says: str) -> Safe:
    """A bar for each value, side by side.

    Args:
        values: the bars.
        top: the value that is as high as the picture.
        says: the picture in words.
    """
    step, high = 8.0, 80.0
    return _svg(step * max(len(values), 1), high, "bars", says, _bars(values, top, step, high))


def _bars(values: Sequence[Bar], top: float, step: float, high: float) -> Iterable[Safe]:
    for number, bar in enumerate(values):
        if bar.value is None:
            continue
        height = max(min(bar.value / top if top else 0.0, 1.0) * high, 1.0 if bar.value else 0.0)
        if height:
            yield tag(
                "rect",
                tag("title", bar.says),
                x=f"{number * step + 1:.0f}",
                y=f"{high - height:.1f}",
                width=f"{step - 2:.0f}",
                height=f"{height:.1f}",
                class_="bad" if bar.bad else None,
            )


def time_line(
    spans: Iterable[Span], begin: datetime, end: datetime, now: datetime, says: str
) -> Safe:
    """Pieces of time from left to right, and a line where now is."""
    width, high = 960.0, 20.0

    def along(moment: datetime) -> float:
        return min(max((moment - begin) / (end - begin), 0.0), 1.0) * width

    shapes = []
    for span in spans:
        if span.end < begin or span.begin > end:
            continue
        left = along(span.begin)
        wide = max(along(span.end) - left, 2.0)
        is_window = span.kind.startswith("window")
        shapes.append(
            tag(
                "rect",
                tag("title", span.says) if span.says else None,
                x=f"{left:.1f}",
                y=0 if is_window else 4,
                width=f"{wide:.1f}",
                height=20 if is_window else 12,
                class_=span.kind,
            )
        )
    line = _stroke(
        "line", class_="now", x1=f"{along(now):.1f}", x2=f"{along(now):.1f}", y1=0, y2=20
    )
    return _svg(width, high, "timeline", says, [*shapes, line])


def meter(share: float, tone: str) -> Safe:
    """A bar that is filled to a share from 0 to 1; the words for it stand beside it."""
    filled = f"{min(max(share, 0.0), 1.0) * 100:.0f}"
    return tag(
        "svg",
        tag("rect", class_="track", width=100, height=4),
        tag("rect", class_=f"fill {tone}", width=filled, height=4),
        class_="meter",
        viewBox="0 0 100 4",
        preserveAspectRatio="none",
        aria_hidden="true",
        focusable="false",
    )


def _thinned(points: Sequence[Point], begin: datetime, end: datetime) -> list[Point]:
    """At most `_BUCKETS` points: of many at a time the largest."""
    if len(points) <= _BUCKETS:
        return list(points)
    step = (end - begin) / _BUCKETS or timedelta(seconds=1)
    largest: dict[int, Point] = {}
    for point in points:
        bucket = min(int((point[0] - begin) / step), _BUCKETS - 1)
        if bucket not in largest or point[1] > largest[bucket][1]:
            largest[bucket] = point
    return list(largest.values())


def _stroke(name: str, **attributes: object) -> Safe:
    """A line that is as thin where the picture is stretched."""
    return tag(name, vector_effect="non-scaling-stroke", **attributes)


def _svg(width: float, height: float, kind: str, says: str, shapes: Iterable[Safe]) -> Safe:
    return tag(
        "svg",
        join(shapes),
        class_=f"chart {kind}",
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        preserveAspectRatio="none",
        role="img",
        aria_label=says,
        focusable="false",
    )
