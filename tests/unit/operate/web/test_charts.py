"""Charts, with values of any kind."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from bronze.operate.web.markup import charts
from bronze.operate.web.markup.charts import Bar, Span

_BEGIN = datetime(2026, 3, 9, tzinfo=UTC)
_END = _BEGIN + timedelta(days=1)
_VALUES = st.floats(0, 1e12)


def _numbers(picture: str) -> list[float]:
    root = ElementTree.fromstring(picture)  # noqa: S314 - it was made here
    numbers: list[float] = []
    for shape in root.iter():
        for name, value in shape.attrib.items():
            if name in ("x", "y", "x1", "x2", "y1", "y2", "width", "height", "points"):
                numbers += [float(part) for part in value.replace(",", " ").split()]
    return numbers


@given(st.lists(st.tuples(st.integers(-3600, 90_000), _VALUES), max_size=300), _VALUES)
def test_a_sparkline_stays_in_its_frame(points: list[tuple[int, float]], limit: float) -> None:
    """However many the values are and however large; the threshold is always in it."""
    known = sorted((_BEGIN + timedelta(seconds=at), value) for at, value in points)
    picture = charts.sparkline(known, _BEGIN, _END, limit, "says")
    assert all(-0.1 <= number <= 240.1 for number in _numbers(picture))
    assert len(picture) < 6_000
    assert 'class="limit"' in picture


@given(st.lists(st.one_of(st.none(), _VALUES), max_size=90))
def test_bars_stay_in_their_frame(values: list[float | None]) -> None:
    """The largest is as high as the picture; what is not nothing is seen."""
    known = [value for value in values if value is not None]
    top = max(known, default=0.0)
    picture = charts.bars([Bar(value, "says") for value in values], top, "says")
    heights = [float(r.attrib["height"]) for r in ElementTree.fromstring(picture).iter("rect")]  # noqa: S314
    assert all(0 < height <= 80 for height in heights)
    assert len(heights) == sum(value > 0 for value in known)


def test_pieces_of_time_are_cut_at_the_edges() -> None:
    """What lies outside is left out; what is short is seen."""
    now = _BEGIN + timedelta(hours=12)
    spans = [
        Span(_BEGIN - timedelta(days=3), _BEGIN - timedelta(days=2), "run"),
        Span(_BEGIN - timedelta(days=1), _BEGIN + timedelta(hours=1), "run", "<cut>"),
        Span(now, now + timedelta(seconds=1), "due"),
    ]
    picture = charts.time_line(spans, _BEGIN, _END, now, "says")
    rects = list(ElementTree.fromstring(picture).iter("rect"))  # noqa: S314
    assert [(r.attrib["x"], r.attrib["width"]) for r in rects] == [
        ("0.0", "40.0"),
        ("480.0", "2.0"),
    ]
    assert "&lt;cut&gt;" in picture
