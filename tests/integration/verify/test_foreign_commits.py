"""Foreign commits to a Bronze table make the next run, and a stream, compare all rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import uuid_utils
from deltalake import DeltaTable, write_deltalake

from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.delta import commit, files, log
from bronze.delta.commit import Change
from bronze.ingest import pipeline, quality_gate
from bronze.model.locations import Place
from bronze.model.results import TableResult
from bronze.verify import verify as verifying
from tests.conftest import Source
from tests.support.content import differences

THING = """
CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(8,2));
INSERT INTO t SELECT i, 'v' || i, i FROM generate_series(1, 50) i
"""
PATTERNS: list[dict[str, Any]] = [
    {},
    {"pattern": "batch"},
    {"pattern": "batch", "deletes": "1d"},
    {"pattern": "batch", "history": True},
]
NOTICED = "all rows are compared: another writer has changed the Bronze table (version 1: "


def loaded(source: Source, table: str = THING, **own: Any) -> Settings:
    """A database with one table that a run has loaded."""
    source.execute(table)
    settings = source.settings(tables={"t": own})
    assert pipeline.run(settings).exit_code == 0
    return settings


def run(settings: Settings) -> TableResult:
    """The result of a run for the only table."""
    (result,) = pipeline.run(settings).tables
    assert result.error is None
    return result


def another_writer(source: Source, do: Callable[[DeltaTable], Any]) -> None:
    """Lets another writer do something to the table."""
    do(DeltaTable(str(source.table("t"))))


def update(table: DeltaTable) -> None:
    """Changes a value beneath its hashes."""
    table.update(updates={"v": "'x'"}, predicate="id = 7")


def test_the_next_run_compares_a_table_with_foreign_commits(source: Source) -> None:
    """Though nothing changed in the source: a note says so once, and the rows are right again."""
    names = {f"t{number}": pattern for number, pattern in enumerate(PATTERNS)}
    for name in names:
        source.execute(re.sub(r"\bt\b", name, THING))
    settings = source.settings(tables=names)
    assert pipeline.run(settings).exit_code == 0

    def run_all() -> dict[str, TableResult]:
        results = {t.target.removeprefix("bronze.bz_"): t for t in pipeline.run(settings).tables}
        assert [result.error for result in results.values()] == [None] * len(names)
        return results

    for name in names:
        update(DeltaTable(str(source.table(name))))
    for name, done in run_all().items():
        assert [note for note in done.notes if note.startswith(NOTICED)], name
        assert done.updated == 1, name
    assert differences(settings) == {}
    for name, done in run_all().items():
        assert not any("another writer" in note for note in done.notes), name
        DeltaTable(str(source.table(name))).delete("id < 9")
    for name, done in run_all().items():
        assert any("another writer" in note for note in done.notes), name
        assert done.inserted == 8, name
    assert {name: done.notes for name, done in run_all().items()} == dict.fromkeys(names, ())


def test_a_table_without_a_key_is_reloaded_after_a_foreign_commit(source: Source) -> None:
    """Its rows have no key to compare by, and their row hashes alone look right."""
    settings = loaded(source, THING.replace(" PRIMARY KEY", ""))
    another_writer(source, update)
    assert any("another writer" in note for note in run(settings).notes)
    assert differences(settings) == {}


def test_optimize_and_vacuum_by_another_writer_cause_no_comparison(source: Source) -> None:
    """They change no row."""
    settings = loaded(source, pattern="batch")
    source.execute("INSERT INTO t VALUES (51, 'x', 1)")
    assert run(settings).inserted == 1
    another_writer(source, lambda table: table.optimize.compact())
    another_writer(source, lambda table: table.vacuum(dry_run=False))
    assert run(settings).notes == ()
    source.execute("INSERT INTO t VALUES (52, 'x', 1)")
    assert run(settings).rows_read == 1


def test_commits_of_a_lake_without_marks_are_read_once(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no mark says which commits are known, a run reads each commit once."""
    patterns: list[dict[str, Any]] = [*PATTERNS[:2], {"pattern": "micro_batch", "cursor": "xmin"}]
    names = {f"t{number}": pattern for number, pattern in enumerate(patterns)}
    for name in names:
        source.execute(re.sub(r"\bt\b", name, THING))
    settings = source.settings(tables=names)
    assert pipeline.run(settings).exit_code == 0

    def insert(row: int) -> None:
        source.execute("; ".join(f"INSERT INTO {name} VALUES ({row})" for name in names))
        assert [table.inserted for table in pipeline.run(settings).tables] == [1] * len(names)

    insert(51)
    for name in names:
        for path in (source.table(name) / "_delta_log").glob("*.json"):
            lines = path.read_text().splitlines()
            path.write_text("".join(line + "\n" for line in lines if log.MARK not in line))
    read: Counter[tuple[str, int]] = Counter()
    entry = log.entry

    def counted(place: Place, version: int) -> Any:
        read[place.url, version] += place.url.rpartition("bz_")[2] in names
        return entry(place, version)

    monkeypatch.setattr(log, "entry", counted)
    insert(52)
    assert max(read.values()) == 1
    read.clear()
    insert(53)
    assert not +read


@pytest.mark.parametrize(
    "own",
    [
        {"pattern": "batch"},
        pytest.param({"pattern": "batch", "history": True}, marks=pytest.mark.soak),
    ],
)
def test_a_run_is_retried_when_maintenance_rewrites_a_file_to_compare(
    source: Source, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any]
) -> None:
    """Maintenance compacts files between comparison and merge: no row is lost."""
    loaded(source, **own)
    settings = source.settings(tables={"t": own}, run={"max_retries": 1})
    row = (
        pl.read_delta(str(source.table("t")))
        .head(1)
        .with_columns(pl.lit(999, pl.Int32).alias("id"))
    )
    foreign = row.to_arrow(compat_level=pl.CompatLevel.oldest())
    write_deltalake(str(source.table("t")), foreign, mode="append")
    check_quality = quality_gate.check_quality
    versions: list[int] = []

    def with_maintenance(*arguments: Any) -> None:
        if not versions:
            versions.append(compact(settings.place("bronze", "bz_t")))
        check_quality(*arguments)

    monkeypatch.setattr(quality_gate, "check_quality", with_maintenance)
    run(settings)
    assert len(versions) == 1
    assert differences(settings) == {}


def compact(place: Place) -> int:
    """Writes all rows into one file, as maintenance does."""
    state = log.read(place)
    assert state is not None
    rows = [
        part
        for file in state.files
        for _, part in files.parts(files.open_parquet(place, file), state.columns)
    ]
    file = files.write(rows, place, str(uuid_utils.uuid7()), ())
    assert file is not None
    return commit.commit(place, state, Change("OPTIMIZE", [file], state.files, is_data=False), {})


def test_a_foreign_commit_before_maintenance_is_compared(source: Source) -> None:
    """A commit of bronze that changes no row does not hide the foreign commit before it."""
    settings = loaded(source, pattern="batch")
    another_writer(source, update)
    place = settings.place("bronze", "bz_t")
    state = log.read(place)
    assert state is not None
    log.write(place, state.version + 1, [{"commitInfo": {"engineInfo": log.ENGINE}}])
    assert run(settings).updated == 1
    assert differences(settings) == {}


def test_duplicate_keys_are_refused_by_a_run_and_removed_by_a_repair(source: Source) -> None:
    """A run would update only one of two rows with the same key."""
    settings = loaded(source)
    data = pl.read_delta(str(source.table("t"))).head(3)
    foreign = data.to_arrow(compat_level=pl.CompatLevel.oldest())
    write_deltalake(str(source.table("t")), foreign, mode="append")
    (done,) = pipeline.run(settings).tables
    assert done.error is not None
    assert "rows of the same key" in done.error.message
    assert "verify public.t --repair" in done.error.hint
    (repaired,) = verifying.verify(settings, repair=True).tables
    assert (repaired.status, repaired.repaired) == ("equal", 3)
    assert run(settings).notes == ()


def test_a_stream_resyncs_a_table_with_foreign_commits(source: Source) -> None:
    """When it starts."""
    source.execute(THING)
    settings = source.settings(tables={"t": {"pattern": "streaming"}}, stream={"interval": 0})
    assert stream.stream(settings, until_caught_up=True).exit_code == 0
    another_writer(source, update)
    assert stream.stream(settings, until_caught_up=True).exit_code == 0
    assert differences(settings) == {}
    assert verifying.verify(settings).exit_code == 0
