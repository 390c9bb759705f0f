"""The checkpoints of ``governance.streams``: each has only the versions that have changed."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.cdc import checkpoints
from bronze.cdc.checkpoints import _Series
from bronze.governance.tables import streams
from bronze.governance.tables.streams import Checkpoint, Versions
from tests.support.effort import examples

RECORD = Checkpoint("slot", "shop", 1, None, "", 0, 0, 0, 0.0, "{}", "", 0)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TABLES = st.dictionaries(st.sampled_from("abcde"), st.none() | st.integers(0, 3))


def written(history: list[Versions], stream: str, clock: list[int]) -> pl.DataFrame:
    """The records of a stream with these versions, by a clock that may be put back."""
    series, frames = _Series(), [streams.frame(RECORD).clear()]
    for number, versions in enumerate(history):
        series, changed = series.next(versions)
        record = replace(
            RECORD,
            stream=stream,
            position=number,
            tables=json.dumps(changed),
            series=series.name,
            number=series.number,
        )
        moment = NOON + timedelta(seconds=clock[number % len(clock)] if clock else number)
        time = pl.lit(moment).cast(pl.Datetime("us", "UTC"))
        frames.append(streams.frame(record).with_columns(recorded_timestamp=time))
    return pl.concat(frames)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(TABLES, max_size=20),
    st.lists(TABLES, max_size=20),
    st.integers(1, 5),
    st.lists(st.integers(-5, 5), max_size=3),
)
def test_the_versions_of_all_tables_are_known_at_each_record(
    one: list[Versions], other: list[Versions], size: int, clock: list[int]
) -> None:
    """Whatever order the records are read in, also while another stream writes its own."""
    known = checkpoints._SERIES
    checkpoints._SERIES = size
    try:
        rows = pl.concat([written(one, "one", clock), written(other, "other", clock)])
    finally:
        checkpoints._SERIES = known
    folded: dict[str, dict[int, Versions]] = {"one": {}, "other": {}}
    for record, versions in streams.with_versions(rows.sample(fraction=1, shuffle=True, seed=1)):
        folded[record["stream"]][record["position"]] = versions
    assert folded == {"one": dict(enumerate(one)), "other": dict(enumerate(other))}


def test_a_record_has_the_versions_that_have_changed() -> None:
    """And those of all tables in the first one, after a hundred, and when a table has left."""
    history: list[Versions] = [{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 3}, {"b": 3}]
    history += [{"b": 3}] * 100
    rows = written(history, "one", [])
    tables = [json.loads(text) for text in rows["tables"]]
    assert tables[:5] == [{"a": 1, "b": 2}, {"b": 3}, {}, {"b": 3}, {}]
    assert rows["number"].to_list() == [1, 2, 3, *range(1, 101), 1]
    assert tables[-2:] == [{}, {"b": 3}]


def test_records_of_earlier_releases_are_complete() -> None:
    """They have no series, and stand for themselves."""
    old = written([{"a": 1}, {"b": 2}], "one", []).with_columns(
        pl.lit(None, pl.String).alias("series"), pl.lit(None, pl.Int64).alias("number")
    )
    assert [versions for _, versions in streams.with_versions(old)] == [{"a": 1}, {"b": 2}]
