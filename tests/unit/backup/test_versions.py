"""A generation is of one moment: of one position of a stream, and never in the middle of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bronze.backup import manifest
from bronze.backup.manifest import Manifest, Moment, TableCopy
from bronze.config.settings import GOVERNANCE
from bronze.delta import log
from bronze.delta.commit import Change, Shape, commit
from bronze.delta.positions import Position
from bronze.governance.tables import data_lineage
from tests.support.small_lake import HISTORY, SmallLake


@pytest.fixture
def lake(tmp_path: Path) -> SmallLake:
    """A lake with an audit log."""
    return SmallLake(tmp_path).begin()


def backed_up(lake: SmallLake) -> Manifest:
    """The generation that a backup makes now."""
    number = lake.back_up().generation
    root = lake.settings.copy_root
    assert root is not None
    return manifest.read(root, number)


def table(generation: Manifest, name: str) -> tuple[TableCopy, Moment]:
    """A table of a generation, and its moment."""
    found = next(table for table in generation.tables if table.name == name)
    return found, generation.moments[found.moment]


def test_streamed_tables_have_the_versions_of_the_last_checkpoint(lake: SmallLake) -> None:
    """One that is ahead of the checkpoint has the version that the checkpoint names; one that has
    only moved files since has its newest; one that waits has a moment of its own.
    """
    lake.append("a", name="bz_orders", position=100)
    lake.append("x", name="bz_items", position=90)
    lake.append("p", name="bz_late", position=100)
    lake.checkpoint(100, {"bz_orders": 0, "bz_items": 0, "bz_late": None})
    lake.append("b", name="bz_orders", position=200)
    lake.append("q", name="bz_late", position=200)
    items = log.read(lake.place("bz_items"))
    assert items is not None
    commit(lake.place("bz_items"), items, Change("OPTIMIZE", is_data=False), {})
    generation = backed_up(lake)
    orders, moment = table(generation, "bz_orders")
    assert (orders.version, moment.kind, moment.stream, moment.position) == (
        0, "stream", "bronze_shop", 100,
    )  # fmt: skip
    other, same = table(generation, "bz_items")
    assert (other.version, same) == (1, moment)
    late, own = table(generation, "bz_late")
    assert (late.version, own.kind) == (1, "table")
    assert "waits" in own.note
    assert lake.words(lake.copy, name="bz_orders") == ["a"]
    lake.checkpoint(200, {"bz_orders": 1, "bz_items": 1, "bz_late": 1})
    generation = backed_up(lake)
    assert table(generation, "bz_orders")[0].version == 1
    assert {table(generation, n)[1].position for n in ("bz_orders", "bz_items", "bz_late")} == {200}


def test_a_table_that_a_run_has_loaded_since_is_not_of_the_stream(lake: SmallLake) -> None:
    """A checkpoint of a stream that has ended does not hold the table back."""
    lake.append("a", position=100)
    lake.checkpoint(100, {"bz_orders": 0})
    place, state = lake.place(), log.read(lake.place())
    assert state is not None
    commit(place, state, Change("WRITE"), {}, reached=Position(HISTORY, 300))
    found, moment = table(backed_up(lake), "bz_orders")
    assert (found.version, moment.kind) == (1, "runs")


def test_a_run_that_goes_on_is_not_in_a_generation(lake: SmallLake) -> None:
    """Of two tables of a run one has landed: both are as before it; a table that the run makes is
    not there; after its end all are.
    """
    lake.append("a", name="bz_orders")
    lake.append("x", name="bz_items")
    lake.note_run("run-1", "b1", orders="began", items="began", fresh="began")
    lake.append("b", name="bz_orders", batch="b1")
    lake.append("new", name="bz_fresh", batch="b1")
    lake.note_run("run-1", "b1", orders="landed", fresh="landed")
    done = lake.back_up()
    root = lake.settings.copy_root
    assert root is not None
    generation = manifest.read(root, 1)
    assert table(generation, "bz_orders")[0].version == 0
    assert done.excluded == {"bronze.bz_fresh": "it is being loaded for the first time"}
    lake.append("y", name="bz_items", batch="b1")
    lake.note_run("run-1", "b1", items="landed")
    generation = backed_up(lake)
    versions = {t.name: t.version for t in generation.tables if t.schema == "bronze"}
    assert versions == {"bz_orders": 1, "bz_items": 1, "bz_fresh": 0}


def test_a_run_that_died_does_not_hold_tables_back(lake: SmallLake) -> None:
    """A later run of the same tables says that it has died."""
    lake.append("a", name="bz_orders")
    lake.note_run("run-1", "b1", orders="began", items="began")
    lake.append("b", name="bz_orders", batch="b1")
    assert table(backed_up(lake), "bz_orders")[0].version == 0
    lake.note_run("run-2", "b2", orders="began", items="began")
    assert table(backed_up(lake), "bz_orders")[0].version == 1


def test_the_copied_lineage_knows_no_commit_that_the_copy_lacks(lake: SmallLake) -> None:
    """A version of ``data_lineage`` that is ahead of the tables is not taken: commits after a
    failover would have no record.
    """
    lake.append("a", position=100)
    lake.checkpoint(100, {"bz_orders": 0})
    place = lake.settings.place(GOVERNANCE, data_lineage.NAME)
    for version in (0, 1):
        marks = (("bronze.bz_orders", version),)
        state = log.read(place)
        shape = Shape(data_lineage.COLUMNS, ()) if state is None else None
        reached = Position("lineage", version + 1, marks)
        commit(place, state, Change("WRITE"), {}, shape=shape, reached=reached)
    lake.append("b", position=200)
    generation = backed_up(lake)
    assert table(generation, "bz_orders")[0].version == 0
    assert table(generation, data_lineage.NAME)[0].version == 0
    lake.checkpoint(200, {"bz_orders": 1})
    assert table(backed_up(lake), data_lineage.NAME)[0].version == 1


def test_tables_are_copied_between_what_they_need_and_what_says_their_position(
    lake: SmallLake,
) -> None:
    """The audit log first, as tables name its records; checkpoints of streams last. A pass that is
    killed leaves a copy in which no position is ahead.
    """
    lake.append("a", position=100)
    lake.checkpoint(100, {"bz_orders": 0})
    lake.note_run("run-1", "b1", orders="landed")
    order = [table.target for table in lake.back_up().tables]
    assert order == [
        "governance.audit_log", "governance.runs", "bronze.bz_orders", "governance.streams",
    ]  # fmt: skip


def test_a_table_that_has_vanished_from_the_lake_is_named(lake: SmallLake) -> None:
    """It is not in the generation, and not silently so; the earlier one has it."""
    lake.append("a")
    lake.append("x", name="bz_items")
    lake.back_up()
    shutil.rmtree(lake.lake / "bronze/bz_orders")
    done = lake.back_up()
    assert done.excluded == {
        "bronze.bz_orders": "the lake no longer has it, and earlier generations do"
    }
    assert lake.words(lake.copy) == ["a"]
