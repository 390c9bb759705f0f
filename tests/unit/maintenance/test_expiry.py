"""Old records of governance tables are deleted, and what is needed stays."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.delta import log
from bronze.delta.layout import optimize
from bronze.delta.layout.optimize import TableLayout
from bronze.governance import writer
from bronze.governance.frames import schema_of
from bronze.governance.records import rows_of
from bronze.governance.tables import alerts, controls, runs, streams
from bronze.maintenance import expiry
from bronze.model.locations import Place
from tests.support.effort import examples

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HISTORY = timedelta(days=90)
OLD = NOW - HISTORY
TABLES: dict[str, Any] = {t.NAME: t for t in (alerts, controls, runs, streams)}
VALUES = {
    "kind": ["failed", "late"],
    "subject": ["orders", "items"],
    "state": ["open", "acknowledged", "resolved"],
    "action": ["pause", "resume", "silence", "now"],
    "command": ["run", "verify"],
    "source_table": ["orders", "items", ""],
    "status": ["began", "landed", "unchanged", "failed"],
    "stream": ["one", "two"],
}
Record = dict[str, Any]


def records(name: str) -> st.SearchStrategy[list[list[Record]]]:
    """Commits of records of a table, some of them old."""
    columns = [column for column, _ in TABLES[name].COLUMNS]
    drawn: dict[str, Any] = {n: st.sampled_from(VALUES[n]) for n in columns if n in VALUES}
    days = st.integers(0, 200).map(lambda day: NOW - timedelta(days=day, hours=1))
    drawn[expiry._TABLES[name].time] = days
    if "until_timestamp" in columns:
        drawn["until_timestamp"] = st.none() | st.sampled_from(
            [OLD - timedelta(days=1), NOW + timedelta(days=1)]
        )
    return st.lists(st.lists(st.fixed_dictionaries(drawn), min_size=1, max_size=6), max_size=5)


def append(place: Place, name: str, rows: Sequence[Record], number: int) -> None:
    """One commit of records, with a number each by which they are told apart."""
    schema = schema_of(TABLES[name].COLUMNS)
    text = next(n for n in ("run_id", "alert_id", "control_id", "batch_id") if n in schema)
    frame = pl.DataFrame(
        [{**dict.fromkeys(schema), **row, text: f"{number}.{i}"} for i, row in enumerate(rows)],
        schema=schema,
    )
    stats = (expiry._TABLES[name].time,)
    writer.append_rows(place, TABLES[name].COLUMNS, frame, "", stats if number % 2 else ())


def content(place: Place, name: str) -> list[Record]:
    """All records in the order of their times."""
    rows = rows_of(place, TABLES[name].COLUMNS)
    assert rows is not None
    return list(rows.sort(expiry._TABLES[name].time, maintain_order=True).rows(named=True))


def state(name: str, rows: Sequence[Record]) -> dict[Any, Any]:
    """What counts of the records of a table, by subject: the times of the last ones."""
    counted: dict[Any, Any] = {}
    for row in rows:
        if name == alerts.NAME:
            counted[row["kind"], row["subject"]] = row["recorded_timestamp"]
        elif name == controls.NAME:
            action = "pause" if row["action"] == "resume" else row["action"]
            counted[action, row["subject"]] = row["requested_timestamp"]
            if row["until_timestamp"] and row["until_timestamp"] > NOW:
                counted[row["control_id"]] = row["until_timestamp"]
        elif name == streams.NAME:
            counted[row["stream"]] = row["recorded_timestamp"]
        elif row["status"] != "began":
            counted[row["command"], row["source_table"]] = row["recorded_timestamp"]
            if row["status"] in ("landed", "unchanged"):
                counted[row["command"], row["source_table"], ""] = row["recorded_timestamp"]
    return counted


@pytest.mark.parametrize("name", sorted(TABLES))
@settings(max_examples=examples(6), deadline=None)
@given(data=st.data())
def test_old_records_expire_and_the_state_stays(name: str, data: st.DataObject) -> None:
    """Those within the history stay all; of older ones those that count, and no others."""
    commits, share = data.draw(records(name)), data.draw(st.sampled_from([0.0, 0.25]))
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        place = Place(f"{folder}/{name}")
        patch.setattr(expiry, "_SHARE", share)
        for number, rows in enumerate(commits):
            append(place, name, rows, number)
            if data.draw(st.booleans()):
                join(place)
        if not commits:
            assert expiry.expire_records(place, name, HISTORY.total_seconds(), NOW) == 0
            return
        before = content(place, name)
        deleted = expiry.expire_records(place, name, HISTORY.total_seconds(), NOW)
        after = content(place, name)
        time = expiry._TABLES[name].time
        assert len(after) == len(before) - deleted
        assert all(row in before for row in after)
        assert [r for r in after if r[time] >= OLD] == [r for r in before if r[time] >= OLD]
        assert state(name, after) == state(name, before)
        if share == 0.0:
            old = [row for row in after if row[time] < OLD]
            counted = set(state(name, before).values())
            assert all({row[time], row.get("until_timestamp")} & counted for row in old)
            assert expiry.expire_records(place, name, HISTORY.total_seconds(), NOW) == 0


def join(place: Place) -> None:
    """Joins the files of a table."""
    optimize.optimize_table(place, TableLayout(), batch_id="0" * 32, memory=10**9, each=map)


def history(tmp_path: Path, *days: int) -> Place:
    """Runs of one table that landed so many days ago, a file each."""
    place = Place(f"{tmp_path}/runs")
    for number, day in enumerate(days):
        row = {"status": "landed", "recorded_timestamp": NOW - timedelta(days=day)}
        append(place, "runs", [row], number)
    return place


def test_files_are_only_rewritten_when_enough_is_old(tmp_path: Path) -> None:
    """One old record of five is not worth it; two of six are."""
    place = history(tmp_path, 100, 5, 4, 3, 2, 1)
    join(place)
    assert expiry.expire_records(place, "runs", HISTORY.total_seconds(), NOW) == 0
    later = NOW + timedelta(days=86)
    assert expiry.expire_records(place, "runs", HISTORY.total_seconds(), later) == 2
    assert len(content(place, "runs")) == 4


def test_files_with_only_old_records_are_removed(tmp_path: Path) -> None:
    """Without writing any; the commit says that rows were deleted."""
    place = history(tmp_path, 100, 99, 5)
    assert expiry.expire_records(place, "runs", HISTORY.total_seconds(), NOW) == 2
    current = log.read(place)
    assert current
    assert len(current.files) == 1
    info = log.info(place, current.version)
    assert info
    assert info["operation"] == "DELETE"
    assert not list(Path(tmp_path, "runs").glob("_change_data/*"))


def test_records_that_were_appended_meanwhile_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And if another process rewrites the same files first, nothing is deleted twice or kept."""
    place, rewrite = history(tmp_path, 100, 99, 5), expiry._rewrite

    def append_first(*arguments: Any) -> None:
        row = {"status": "landed", "recorded_timestamp": NOW}
        append(place, "runs", [row], 9)
        rewrite(*arguments)

    monkeypatch.setattr(expiry, "_rewrite", append_first)
    assert expiry.expire_records(place, "runs", HISTORY.total_seconds(), NOW) == 2
    assert len(content(place, "runs")) == 2

    def rewrite_first(*arguments: Any) -> None:
        rewrite(*arguments)
        rewrite(*arguments)

    monkeypatch.setattr(expiry, "_rewrite", rewrite_first)
    join(place)
    later = NOW + timedelta(days=89)
    append(place, "runs", [{"status": "landed", "recorded_timestamp": later}], 10)
    assert expiry.expire_records(place, "runs", HISTORY.total_seconds(), later) == 0
    assert [row["recorded_timestamp"] for row in content(place, "runs")] == [NOW, later]
