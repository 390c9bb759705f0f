"""The last records of ``governance.runs``, from many files and row groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from numpy.random import default_rng

from bronze.config.settings import GOVERNANCE
from bronze.delta import files, log
from bronze.delta.layout import optimize
from bronze.delta.layout.optimize import TableLayout
from bronze.governance import run_log, writer
from bronze.governance.tables import runs, streams
from bronze.governance.tables.streams import Checkpoint
from bronze.operate.facts import run_reader
from bronze.operate.history import History
from tests.support.operators import config, rows_of, run, table

TABLES = [table(name) for name in ("often", "rarely", "once")]


def records(seed: int) -> pl.DataFrame:
    """Rows of runs that have begun and ended, in the order in which they were written."""
    random = default_rng(seed)
    often, rarely, once = TABLES
    found = [run(once, 1), run(once, 1, 2)]
    for minute in range(0, 400, 4):
        own = rarely if minute % 80 == 0 else often
        took = random.uniform(0.1, 9)
        found.append(run(own, minute))
        if random.random() > 0.1:
            found.append(run(own, minute, minute + took, rows_read=minute))
        if minute % 40 == 0:
            found.append(run(own, minute, minute + 1, command="verify", status="equal"))
    return rows_of(found)


@pytest.mark.parametrize("seed", range(4))
def test_they_are_those_that_all_rows_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Of each table and command the last ones, in their order, whichever files they are in."""
    monkeypatch.setattr(run_reader, "LAST", 7)
    monkeypatch.setattr(run_reader, "_MERGED_ROWS", 5)
    monkeypatch.setattr(files, "_PART_VALUES", 300)
    place = run_log.place(config(lake={"root": str(tmp_path)}))
    rows, random = records(seed), default_rng(seed)
    # Files overlap in their times, as after they were joined.
    shuffled = rows.with_columns(file=pl.Series(random.integers(6, size=rows.height)))
    for part in shuffled.sort("file", maintain_order=True).partition_by("file"):
        writer.append_rows(place, runs.COLUMNS, part.drop("file"), "")
    state = log.read(place)
    assert state is not None
    found = pl.concat(run_reader.last_records(place, state.files))
    counted = run_reader.merge([rows])
    group = ["command", "source_system", "target_table"]
    last = counted.filter(pl.int_range(pl.len()).reverse().over(group) < 7)
    assert sorted(found["run_id"]) == sorted(last["run_id"])
    assert found["status"].to_list() == last["status"].to_list()
    assert found["recorded_timestamp"].is_sorted()


def test_a_history_has_the_runs_of_all_tables(tmp_path: Path) -> None:
    """As it has those of each."""
    settings = config(lake={"root": str(tmp_path)})
    writer.append_rows(run_log.place(settings), runs.COLUMNS, records(1), "")
    history = History(settings)
    assert history.refresh() == {own.key for own in TABLES}
    found = history.all_runs()
    assert set(found) == {own.key for own in TABLES}
    for key, last in found.items():
        assert tuple(last) == history.runs(key)
    assert [len(last) for last in history.all_runs(most=3).values()].count(3) == 2
    assert set(history.all_runs("verify")) == {own.key for own in TABLES[:2]}
    assert set(history.all_runs(keys=[TABLES[1].key])) == {TABLES[1].key}


def test_old_files_are_looked_at_only_for_the_names_of_their_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with a table of which there are few records are read: its last ones are in them."""
    monkeypatch.setattr(run_reader, "LAST", 5)
    monkeypatch.setattr(run_reader, "_MERGED_ROWS", 5)
    settings = config(lake={"root": str(tmp_path)})
    often, _, once = TABLES
    for day in range(6):
        own = [run(often, 60 * day + minute, 60 * day + minute + 1) for minute in range(0, 60, 6)]
        own += [run(once, 5, 6)] if day == 0 else []
        writer.append_rows(run_log.place(settings), runs.COLUMNS, rows_of(own), "")
    state, read = log.read(run_log.place(settings)), list[int]()
    assert state is not None
    keys = run_reader._keys

    def keys_of(*arguments: Any) -> pl.DataFrame:
        read.append(arguments[2])
        return keys(*arguments)

    monkeypatch.setattr(run_reader, "_keys", keys_of)
    found = pl.concat(run_reader.last_records(run_log.place(settings), state.files))
    assert set(found["source_table"]) == {once.label, often.label}
    assert found.height == 6
    assert len(read) == 2


def test_a_history_that_is_kept_up_knows_what_a_new_one_knows(tmp_path: Path) -> None:
    """Also after files were joined, and when the log was cut since it was last read."""
    settings = config(lake={"root": str(tmp_path)})
    place, kept_up = run_log.place(settings), History(settings)
    assert kept_up.refresh() == frozenset()
    for number, part in enumerate(records(2).iter_slices(40)):
        writer.append_rows(place, runs.COLUMNS, part, "")
        if number == 2:
            optimize.optimize_table(place, TableLayout(), batch_id="0" * 32, memory=10**9, each=map)
        if number == 4:
            DeltaTable(place.url).create_checkpoint()
            for entry in (tmp_path / "governance/runs/_delta_log").glob("0*.json"):
                entry.unlink()
        kept_up.refresh()
        fresh = History(settings)
        fresh.refresh()
        assert kept_up.tables == fresh.tables
        assert kept_up.all_runs() == fresh.all_runs()
    assert kept_up.refresh() == frozenset()


def test_many_small_parts_take_little_memory(tmp_path: Path) -> None:
    """Each refresh brings a few rows: they are joined from time to time."""
    history = History(config(lake={"root": str(tmp_path)}))
    rows = records(3)
    for part in rows.iter_slices(2):
        history.add(part)
        assert len(history._kept.unpacked) <= 21
    whole = History(config(lake={"root": str(tmp_path)}))
    whole.add(rows)
    assert history.all_runs() == whole.all_runs()


def test_a_checkpoint_is_of_all_tables_of_its_series(tmp_path: Path) -> None:
    """A later record has only those that have changed, and none if the source was idle."""
    settings = config(lake={"root": str(tmp_path)})
    (source,) = settings.source
    place, kept_up = settings.place(GOVERNANCE, streams.NAME), History(settings)

    def write(series: str, number: int, *tables: str) -> None:
        versions = json.dumps(dict.fromkeys(tables, number))
        point = Checkpoint("s", source, 1, None, "b", 0, 0, 0, 0.0, versions, series, number)
        writer.append_rows(place, streams.COLUMNS, streams.frame(point), "")

    expected = frozenset[str]()
    for series, number, tables in (
        ("one", 1, ["b.x", "b.y"]),
        ("one", 2, []),
        ("one", 3, ["b.z"]),
        ("one", 4, []),
        ("two", 1, ["b.x"]),
        ("two", 2, []),
    ):
        write(series, number, *tables)
        expected = frozenset(tables) | (expected if number > 1 else frozenset())
        fresh = History(settings)
        for history in (fresh, kept_up):
            history.refresh()
            assert history.streams[source].targets == expected
