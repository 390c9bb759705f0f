"""The figures of a report: what landed when, and what a lookup skips."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from bronze.model.files import StoredFile
from bronze.operate.report import charts, records, times
from bronze.operate.report.sections.stored import skipped_share

NOW = datetime(2026, 11, 28, 4, 0, tzinfo=UTC)


def test_sums_of_a_stream_are_counted_once() -> None:
    """A stream records its sums again and again: what landed is what each has more than before."""
    rows = [
        ("a", NOW - timedelta(days=2), 10, 1),
        ("a", NOW - timedelta(hours=2), 15, 1),
        ("a", NOW - timedelta(hours=1), 18, 4),
        ("b", NOW - timedelta(hours=1), 7, 0),
    ]
    lineage = pl.DataFrame(
        [(i, "t", at, f"{i}{at:%H}", ins, upd, 0) for i, at, ins, upd in rows],
        schema=["lineage_id", "target_table", "created_timestamp", "batch_id", "inserted",
                "updated", "deleted"],
        orient="row",
    )  # fmt: skip
    landed = records.landings_of(lineage, NOW - timedelta(days=1))
    assert sorted(landed.select("inserted", "updated").rows()) == [(3, 3), (5, 0), (7, 0)]


def test_days_are_those_of_the_zone() -> None:
    """Also where the clocks change: each day has one column, and each time is in its own."""
    zone = ZoneInfo("Europe/Berlin")
    hours = [datetime(2026, 10, 10, tzinfo=UTC) + timedelta(hours=7 * n) for n in range(100)]
    cut = times.cut(pl.Series(hours), zone)
    assert cut is not None
    assert cut.each == "per day"
    frame = pl.DataFrame({"at": hours}).with_columns(cut.number(pl.col("at")).alias("n"))
    for at, number in frame.iter_rows():
        local = at.astimezone(zone)
        assert cut.labels[number] == f"{local.day} {local:%b}"


def test_few_batches_have_a_column_each() -> None:
    """Their labels are as short as they can be told apart; one batch is no chart."""
    at = pl.Series([NOW, NOW + timedelta(seconds=9)])
    cut = times.cut(at, ZoneInfo("UTC"))
    assert cut is not None
    assert (cut.labels, cut.each) == (("04:00:00", "04:00:09"), "each column a batch")
    assert times.cut(at[:1], ZoneInfo("UTC")) is None


@pytest.mark.parametrize(
    ("bounds", "share"),
    [([(0, 9), (10, 19)], 0.5), ([(0, 19), (0, 19)], 0.0), ([(0, 9), (None, 19)], None)],
)
def test_a_lookup_skips_files_whose_bounds_exclude_it(
    bounds: list[tuple[int | None, int]], share: float | None
) -> None:
    """Half of the bytes of two files that share no value; none if they share all."""
    stored = [
        StoredFile(f"{n}", 100, 10, (("id", low),), (("id", high),))
        for n, (low, high) in enumerate(bounds)
    ]
    assert skipped_share(stored, "id") == share


def test_axes_end_at_round_values() -> None:
    """Counts at a multiple of a power of ten, times at whole seconds, minutes or hours."""
    assert [charts.round_top(v) for v in (0.0, 3.0, 52_101.0)] == [1.0, 5.0, 100_000.0]
    assert [charts.round_seconds(v) for v in (0.3, 61.0, 5000.0, 200_000.0)] == [
        0.5,
        120.0,
        7200.0,
        216_000.0,
    ]
