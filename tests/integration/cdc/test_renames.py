"""Tables that are renamed while a stream runs: no row is lost, and none is in a wrong table."""

from __future__ import annotations

import threading

import polars as pl
import pytest

from bronze.cdc import apply_loop, resync, stream
from bronze.cdc.new_slot import NewSlot
from bronze.config.settings import Settings
from bronze.errors import LakeUnreachable
from bronze.governance import audit
from bronze.model.events import BatchApplied, CheckpointMade
from bronze.tables import selection
from tests.conftest import Source
from tests.integration.cdc.test_resync import said, temporary_slots
from tests.integration.cdc.test_unseen_changes import exists
from tests.support.streams import caught_up, proven, rows, streaming, until

STREAMED = {"pattern": "streaming"}


@pytest.fixture(autouse=True)
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream checks the catalog all the time, and retries a failed table at once."""
    monkeypatch.setattr(apply_loop, "_CATALOG_INTERVAL", 0.1)
    monkeypatch.setattr(resync, "_FIRST_PAUSE", 0.2)
    monkeypatch.setattr(resync, "_LONGEST_PAUSE", 0.2)


def has_rows(source: Source, *ids: int, name: str = "t") -> bool:
    """Whether a Bronze table has exactly the rows with these ids."""
    return exists(source, name) and sorted(rows(source, name)["id"]) == list(ids)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is not set, the stream does not notice that a new slot was created."""
    known, wait = threading.Event(), NewSlot.wait
    known.set()
    monkeypatch.setattr(resync, "_SLOT_PATIENCE", 0)
    monkeypatch.setattr(NewSlot, "wait", lambda new, s: known.is_set() and wait(new, s))
    return known


MOVES: dict[str, tuple[str, str, dict[str, dict[str, str]]]] = {
    "another schema": ("ALTER TABLE t SET SCHEMA other", "other.t", {"t": STREAMED}),
    "another name": (
        "ALTER TABLE t RENAME TO s",
        "public.s",
        {"t": STREAMED, "s": {**STREAMED, "target": "bz_t"}},
    ),
}


@pytest.mark.soak
@pytest.mark.parametrize("move", ["another name", "another schema"])
def test_changes_before_a_moved_table_joins_again_are_applied(
    source: Source, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, move: str
) -> None:
    """Those after the position of its slot that the stream has received before the table joins
    under its new name.
    """
    monkeypatch.setattr(resync, "_FIRST_PAUSE", 3600.0)
    statement, label, tables = MOVES[move]
    source.execute("CREATE SCHEMA other")
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    given = _settings(source, {**tables, "u": STREAMED})
    with streaming(given) as steps:
        until(lambda: has_rows(source, 1))
        gate.clear()
        source.execute(statement)
        until(lambda: said(steps, f"{label} has come since"), told=lambda: steps)
        until(lambda: any(row[2] for row in temporary_slots(source)))
        source.execute(f"INSERT INTO {label} VALUES (2, 'b'); INSERT INTO u VALUES (2)")
        source.execute(f"UPDATE {label} SET v = 'c' WHERE id = 1; INSERT INTO u VALUES (3)")
        until(lambda: has_rows(source, 2, 3, name="u"), told=lambda: steps)
        gate.set()
        until(lambda: {*rows(source)["v"]} == {"b", "c"}, told=lambda: steps)
    caught_up(given)
    proven(source, given, "t", "u")


@pytest.mark.soak
def test_retries_of_the_old_name_do_not_disturb_the_new_one(source: Source) -> None:
    """The table follows under its new name, and is not copied again, also if another table fails
    all the time.
    """
    statement, label, tables = MOVES["another name"]
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    source.execute("CREATE TABLE bare (id int)")
    given = _settings(source, {**tables, "bare": STREAMED})
    with streaming(given) as steps:

        def retries() -> int:
            return sum("bare: tried again" in step.message for step in steps)

        until(lambda: has_rows(source, 1))
        source.execute(statement)
        until(lambda: said(steps, f"{label} has come since"), told=lambda: steps)
        for number in range(2, 5):
            source.execute(f"INSERT INTO {label} VALUES ({number}, 'd')")
            until(lambda n=number: has_rows(source, *range(1, n + 1)), told=lambda: steps)  # type: ignore[misc]
            before = retries()
            until(lambda n=before: retries() > n + 1, told=lambda: steps)  # type: ignore[misc]
        assert sum("has come since" in step.message for step in steps) == 1
    source.execute("DROP TABLE bare")
    caught_up(given)
    proven(source, given)


def test_two_tables_cannot_have_the_same_bronze_table(source: Source) -> None:
    """A new table with the old name of one that keeps its Bronze table under another name is
    refused, and the rows of the other one stay.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    given = _settings(source, {"t": STREAMED, "s": {**STREAMED, "target": "bz_t"}})
    with streaming(given) as steps:
        until(lambda: has_rows(source, 1))
        source.execute("ALTER TABLE t RENAME TO s")
        until(lambda: said(steps, "public.s has come since"), told=lambda: steps)
        source.execute("INSERT INTO s VALUES (2, 'b')")
        until(lambda: has_rows(source, 1, 2), told=lambda: steps)
        source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        until(lambda: said(steps, "public.t would become bronze.bz_t"), told=lambda: steps)
        source.execute("INSERT INTO s VALUES (3, 'c')")
        until(lambda: has_rows(source, 1, 2, 3), told=lambda: steps)


def test_a_table_that_is_renamed_and_altered_is_reported(source: Source) -> None:
    """Its next row does not fit, and it is not resynced under its old name."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    given = _settings(source, {"t": STREAMED, "u": STREAMED})
    with streaming(given) as steps, pytest.MonkeyPatch.context() as patch:
        until(lambda: has_rows(source, 1))
        patch.setattr(apply_loop, "_CATALOG_INTERVAL", 3600.0)
        source.execute("ALTER TABLE t RENAME TO s; ALTER TABLE s ADD w int")
        source.execute("INSERT INTO s VALUES (2, 'b', 3); INSERT INTO u VALUES (1)")
        until(lambda: said(steps, "Table public.t was renamed to public.s"), told=lambda: steps)
        until(lambda: has_rows(source, 1, name="u"), told=lambda: steps)
    assert rows(source)["id"].to_list() == [1]


def test_tables_that_are_not_named_do_not_affect_the_named_ones(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of named tables follows one of them that is created later, whatever is wrong with
    other tables, and does not report those. It selects tables only if there are new ones.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)")
    tables = {"t": STREAMED, "u": STREAMED, "x": {"target": "bz_same"}, "y": {"target": "bz_same"}}
    given, found, calls = _settings(source, tables), selection.select_targets, list[int]()

    def counting(*arguments: object) -> list[selection.Target]:
        calls.append(1)
        return found(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(selection, "select_targets", counting)
    with streaming(given, ("t", "u")) as steps:
        until(
            lambda: (
                has_rows(source, name="u")
                and any(isinstance(step, CheckpointMade | BatchApplied) for step in steps)
            )
        )
        source.execute("CREATE TABLE x (id int); CREATE TABLE y (id int); DROP TABLE u")
        until(lambda: said(steps, "public.u was dropped"), told=lambda: steps)
        source.execute("CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1)")
        until(lambda: has_rows(source, 1, name="u"), told=lambda: steps)
        assert not said(steps, "would both become")
        known = len(calls)
        events = len(steps)
        for number in range(3):
            source.execute(f"INSERT INTO t VALUES ({number})")
            until(lambda n=number: n in rows(source)["id"])  # type: ignore[misc]
        assert len(steps) > events
        assert len(calls) == known


def test_lineage_is_recorded_if_the_audit_log_cannot_be_read(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error about the audit log does not keep a table's last lineage from being recorded."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    given = _settings(source, {"t": STREAMED})

    def failing(*_: object) -> list[str]:
        raise LakeUnreachable("The audit log cannot be read.")

    monkeypatch.setattr(audit, "records_lost", failing)
    original = apply_loop.Session.__init__

    def with_lost_audit_records(self: apply_loop.Session, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        for following in self._tables.followed.values():
            following.ahead_of_audit = object()  # type: ignore[assignment]

    monkeypatch.setattr(apply_loop.Session, "__init__", with_lost_audit_records)
    result = stream.stream(given, until_caught_up=True)
    assert result.unrecorded is not None
    lineage = pl.read_delta(str(source.lake / "governance" / "data_lineage"))
    assert lineage.sort("created_timestamp")["status"][-1] != "streaming"


def _settings(source: Source, tables: dict[str, dict[str, str]]) -> Settings:
    return source.settings(
        source={"schema": ["public", "other"]} if "other" in _schemas(source) else {},
        tables=tables,
        stream={"interval": 0},
    )


def _schemas(source: Source) -> list[str]:
    return [name for (name,) in source.execute("SELECT nspname FROM pg_namespace")]
