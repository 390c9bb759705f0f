"""Tables that get another name while a stream runs: no row is lost, and none is mixed up."""

from __future__ import annotations

import threading

import polars as pl
import pytest

from bronze.cdc import resync, session, stream
from bronze.cdc.new_slot import NewSlot
from bronze.config.settings import Settings
from bronze.errors import LakeUnreachable
from bronze.governance import audit
from bronze.model.events import BatchApplied, CheckpointMade
from bronze.tables import selection
from tests.conftest import Source
from tests.integration.cdc.test_resync import beside, said
from tests.integration.cdc.test_unseen_changes import made
from tests.support.streams import caught_up, proven, rows, streaming, until

STREAMED = {"pattern": "streaming"}


@pytest.fixture(autouse=True)
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream looks at the catalog all the time, and tries again at once what has failed."""
    monkeypatch.setattr(session, "_CATALOG_INTERVAL", 0.1)
    monkeypatch.setattr(resync, "_FIRST_PAUSE", 0.2)
    monkeypatch.setattr(resync, "_LONGEST_PAUSE", 0.2)


def landed(source: Source, *ids: int, name: str = "t") -> bool:
    """Whether a Bronze table is there and has the rows with some ids, and no others."""
    return made(source, name) and sorted(rows(source, name)["id"]) == list(ids)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is not set, nobody hears that a new slot is there."""
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


@pytest.mark.parametrize("move", MOVES)
def test_what_happens_before_a_moved_table_joins_again(
    source: Source, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, move: str
) -> None:
    """Changes after the position of its new slot, which the stream brings before the table has
    joined under its new name, land all the same.
    """
    monkeypatch.setattr(resync, "_FIRST_PAUSE", 3600.0)
    statement, label, tables = MOVES[move]
    source.execute("CREATE SCHEMA other")
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    given = _settings(source, {**tables, "u": STREAMED})
    with streaming(given) as steps:
        until(lambda: landed(source, 1))
        gate.clear()
        source.execute(statement)
        until(lambda: said(steps, f"{label} has come since"), told=lambda: steps)
        until(lambda: any(row[2] for row in beside(source)))
        source.execute(f"INSERT INTO {label} VALUES (2, 'b'); INSERT INTO u VALUES (2)")
        source.execute(f"UPDATE {label} SET v = 'c' WHERE id = 1; INSERT INTO u VALUES (3)")
        until(lambda: landed(source, 2, 3, name="u"), told=lambda: steps)
        gate.set()
        until(lambda: {*rows(source)["v"]} == {"b", "c"}, told=lambda: steps)
    caught_up(given)
    proven(source, given, "t", "u")


def test_the_old_name_is_tried_again(source: Source) -> None:
    """In vain, beside another table that cannot follow: the table goes on under its new name, and
    is not copied anew.
    """
    statement, label, tables = MOVES["another name"]
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    source.execute("CREATE TABLE bare (id int)")
    given = _settings(source, {**tables, "bare": STREAMED})
    with streaming(given) as steps:

        def tries() -> int:
            return sum("bare: tried again" in step.message for step in steps)

        until(lambda: landed(source, 1))
        source.execute(statement)
        until(lambda: said(steps, f"{label} has come since"), told=lambda: steps)
        for number in range(2, 5):
            source.execute(f"INSERT INTO {label} VALUES ({number}, 'd')")
            until(lambda n=number: landed(source, *range(1, n + 1)), told=lambda: steps)  # type: ignore[misc]
            before = tries()
            until(lambda n=before: tries() > n + 1, told=lambda: steps)  # type: ignore[misc]
        assert sum("has come since" in step.message for step in steps) == 1
    source.execute("DROP TABLE bare")
    caught_up(given)
    proven(source, given)


def test_two_tables_are_not_followed_into_one(source: Source) -> None:
    """A table that takes the name of one that goes on elsewhere in the same Bronze table is
    refused with a sentence, and the rows of the other stay.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    given = _settings(source, {"t": STREAMED, "s": {**STREAMED, "target": "bz_t"}})
    with streaming(given) as steps:
        until(lambda: landed(source, 1))
        source.execute("ALTER TABLE t RENAME TO s")
        until(lambda: said(steps, "public.s has come since"), told=lambda: steps)
        source.execute("INSERT INTO s VALUES (2, 'b')")
        until(lambda: landed(source, 1, 2), told=lambda: steps)
        source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        until(lambda: said(steps, "public.t would become bronze.bz_t"), told=lambda: steps)
        source.execute("INSERT INTO s VALUES (3, 'c')")
        until(lambda: landed(source, 1, 2, 3), told=lambda: steps)


def test_a_table_that_is_renamed_and_altered_at_once(source: Source) -> None:
    """Its next row does not fit, and it is not compared under the name that it has no more."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    given = _settings(source, {"t": STREAMED, "u": STREAMED})
    with streaming(given) as steps, pytest.MonkeyPatch.context() as patch:
        until(lambda: landed(source, 1))
        patch.setattr(session, "_CATALOG_INTERVAL", 3600.0)
        source.execute("ALTER TABLE t RENAME TO s; ALTER TABLE s ADD w int")
        source.execute("INSERT INTO s VALUES (2, 'b', 3); INSERT INTO u VALUES (1)")
        until(lambda: said(steps, "Table public.t was renamed to public.s"), told=lambda: steps)
        until(lambda: landed(source, 1, name="u"), told=lambda: steps)
    assert rows(source)["id"].to_list() == [1]


def test_what_is_not_followed_does_not_keep_others_from_it(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream for some tables follows one of them that comes later, whatever is wrong with the
    others, says nothing of those, and works out its tables only when there are others.
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
                landed(source, name="u")
                and any(isinstance(step, CheckpointMade | BatchApplied) for step in steps)
            )
        )
        source.execute("CREATE TABLE x (id int); CREATE TABLE y (id int); DROP TABLE u")
        until(lambda: said(steps, "public.u was dropped"), told=lambda: steps)
        source.execute("CREATE TABLE u (id int PRIMARY KEY); INSERT INTO u VALUES (1)")
        until(lambda: landed(source, 1, name="u"), told=lambda: steps)
        assert not said(steps, "would both become")
        known = len(calls)
        looks = len(steps)
        for number in range(3):
            source.execute(f"INSERT INTO t VALUES ({number})")
            until(lambda n=number: n in rows(source)["id"])  # type: ignore[misc]
        assert len(steps) > looks
        assert len(calls) == known


def test_the_lineage_is_entered_whatever_becomes_of_the_audit_log(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A doubt that cannot be entered costs no table its last record of lineage."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    given = _settings(source, {"t": STREAMED})

    def failing(*_: object) -> list[str]:
        raise LakeUnreachable("The audit log cannot be read.")

    monkeypatch.setattr(audit, "records_lost", failing)
    begun = session.Session.__init__

    def doubting(self: session.Session, *arguments: object) -> None:
        begun(self, *arguments)  # type: ignore[arg-type]
        for following in self._tables.followed.values():
            following.ahead_of_audit = object()  # type: ignore[assignment]

    monkeypatch.setattr(session.Session, "__init__", doubting)
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
