"""What another writer commits to a Bronze table is noticed by the next run, and by a stream."""

from __future__ import annotations

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


def landed(source: Source, table: str = THING, **own: Any) -> Settings:
    """A database with one table, which a run has taken."""
    source.execute(table)
    settings = source.settings(tables={"t": own})
    assert pipeline.run(settings).exit_code == 0
    return settings


def run(settings: Settings) -> TableResult:
    """What a run did to the only table."""
    (done,) = pipeline.run(settings).tables
    assert done.error is None
    return done


def theirs(source: Source, do: Callable[[DeltaTable], Any]) -> None:
    """Something that another writer does."""
    do(DeltaTable(str(source.table("t"))))


def update(table: DeltaTable) -> None:
    """A value is changed beneath its hashes."""
    table.update(updates={"v": "'x'"}, predicate="id = 7")


@pytest.mark.parametrize("own", PATTERNS)
def test_the_next_run_compares_what_another_writer_changed(
    source: Source, own: dict[str, Any]
) -> None:
    """Though nothing changed in the source: it says so once, and the table is as it should be."""
    settings = landed(source, **own)
    theirs(source, update)
    done = run(settings)
    assert [note for note in done.notes if note.startswith(NOTICED)]
    assert done.updated == 1
    assert differences(settings) == {}
    assert not any("another writer" in note for note in run(settings).notes)
    theirs(source, lambda table: table.delete("id < 9"))
    done = run(settings)
    assert any("another writer" in note for note in done.notes)
    assert done.inserted == 8
    assert run(settings).notes == ()


def test_a_table_without_a_key_is_loaded_anew(source: Source) -> None:
    """Its rows cannot be told apart; their hashes alone would look right."""
    settings = landed(source, THING.replace(" PRIMARY KEY", ""))
    theirs(source, update)
    assert any("another writer" in note for note in run(settings).notes)
    assert differences(settings) == {}


def test_what_changes_no_row_is_no_change(source: Source) -> None:
    """Files that another writer joins, and old ones that it deletes, cost no comparison."""
    settings = landed(source, pattern="batch")
    source.execute("INSERT INTO t VALUES (51, 'x', 1)")
    assert run(settings).inserted == 1
    theirs(source, lambda table: table.optimize.compact())
    theirs(source, lambda table: table.vacuum(dry_run=False))
    assert run(settings).notes == ()
    source.execute("INSERT INTO t VALUES (52, 'x', 1)")
    assert run(settings).rows_read == 1


@pytest.mark.parametrize("own", [*PATTERNS[:2], {"pattern": "micro_batch", "cursor": "xmin"}])
def test_a_table_of_before_is_looked_through_once(
    source: Source, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any]
) -> None:
    """Where it is not noted which commits were looked at, a run reads each of them once."""
    settings = landed(source, **own)
    source.execute("INSERT INTO t VALUES (51)")
    assert run(settings).inserted == 1
    for path in (source.table("t") / "_delta_log").glob("*.json"):
        lines = path.read_text().splitlines()
        path.write_text("".join(line + "\n" for line in lines if log.MARK not in line))
    read: Counter[int] = Counter()
    entry = log.entry

    def counted(place: Place, version: int) -> Any:
        read[version] += place.url.endswith("bz_t")
        return entry(place, version)

    source.execute("INSERT INTO t VALUES (52)")
    monkeypatch.setattr(log, "entry", counted)
    assert run(settings).inserted == 1
    assert max(read.values()) == 1
    read.clear()
    source.execute("INSERT INTO t VALUES (53)")
    assert run(settings).inserted == 1
    assert not +read


@pytest.mark.parametrize("own", [{"pattern": "batch"}, {"pattern": "batch", "history": True}])
def test_a_row_that_is_doubted_is_not_lost_when_its_file_is_rewritten(
    source: Source, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any]
) -> None:
    """Maintenance joins files between the reading and the merge: the run is begun again."""
    landed(source, **own)
    settings = source.settings(tables={"t": own}, run={"max_retries": 1})
    row = (
        pl.read_delta(str(source.table("t")))
        .head(1)
        .with_columns(pl.lit(999, pl.Int32).alias("id"))
    )
    held = row.to_arrow(compat_level=pl.CompatLevel.oldest())
    write_deltalake(str(source.table("t")), held, mode="append")
    graded = quality_gate.check_quality
    times: list[int] = []

    def maintained(*given: Any) -> None:
        if not times:
            times.append(joined(settings.place("bronze", "bz_t")))
        graded(*given)

    monkeypatch.setattr(quality_gate, "check_quality", maintained)
    run(settings)
    assert len(times) == 1
    assert differences(settings) == {}


def joined(place: Place) -> int:
    """Writes all rows into one file, as maintenance does."""
    state = log.read(place)
    assert state is not None
    rows = [
        part
        for file in state.files
        for _, part in files.parts(files.opened(place, file), state.columns)
    ]
    file = files.write(rows, place, str(uuid_utils.uuid7()), ())
    assert file is not None
    return commit.commit(place, state, Change("OPTIMIZE", [file], state.files, is_data=False), {})


def test_maintenance_does_not_hide_it(source: Source) -> None:
    """A commit of ours that changes no row, after theirs, leaves it to be compared."""
    settings = landed(source, pattern="batch")
    theirs(source, update)
    place = settings.place("bronze", "bz_t")
    state = log.read(place)
    assert state is not None
    log.write(place, state.version + 1, [{"commitInfo": {"engineInfo": log.ENGINE}}])
    assert run(settings).updated == 1
    assert differences(settings) == {}


def test_rows_of_a_key_that_is_there_twice_are_refused(source: Source) -> None:
    """A run would leave one of them; a repair takes it out."""
    settings = landed(source)
    data = pl.read_delta(str(source.table("t"))).head(3)
    held = data.to_arrow(compat_level=pl.CompatLevel.oldest())
    write_deltalake(str(source.table("t")), held, mode="append")
    (done,) = pipeline.run(settings).tables
    assert done.error is not None
    assert "rows of the same key" in done.error.message
    assert "verify public.t --repair" in done.error.hint
    (mended,) = verifying.verify(settings, repair=True).tables
    assert (mended.status, mended.repaired) == ("equal", 3)
    assert run(settings).notes == ()


def test_a_stream_compares_what_another_writer_changed(source: Source) -> None:
    """By its next batch for that table, and when it begins."""
    source.execute(THING)
    settings = source.settings(tables={"t": {"pattern": "streaming"}}, stream={"interval": 0})
    assert stream.stream(settings, until_caught_up=True).exit_code == 0
    theirs(source, update)
    assert stream.stream(settings, until_caught_up=True).exit_code == 0
    assert differences(settings) == {}
    assert verifying.verify(settings).exit_code == 0
