"""Erasure leaves the rows of others, and says what it cannot know."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import log
from bronze.errors import FileDamaged
from bronze.governance.tables import rejected_values
from bronze.protection import erasure
from bronze.protection.old_versions import delete_old_versions
from bronze.protection.subject import recorded_values
from tests.conftest import Source
from tests.integration.protection.test_erasure import files_with, records, run

SHAPED: dict[str, Any] = {
    "protect": {"id": {"method": "tokenize", "format": True}},
    "rules": [{"name": "small", "column": "n", "range": {"max": 0}}],
}


def tokens(source: Source) -> dict[int, str]:
    """The stored tokens by the rows' numbers."""
    frame = pl.read_delta(str(source.table("t")))
    return dict(frame.select("n", "id").rows())


def recorded(source: Source) -> list[str]:
    """The keys of rejected values, and of examples."""
    keys = records(source, rejected_values.NAME)["row_key"].to_list()
    return sorted([*keys, *records(source, "quality")["examples"].to_list()])


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["text", "int"])
def test_a_token_that_is_the_value_of_another_row_does_not_match_it(
    source: Source, kind: str
) -> None:
    """In a dense column of format tokens the token of one row is the clear value of another. A
    value that no row has is not found, the row with that token stays with its records, and the row
    with that value is erased.
    """
    source.execute(f"CREATE TABLE t (id {kind} PRIMARY KEY, n int, day date)")
    source.execute("INSERT INTO t SELECT 234560 + i, i, 'infinity' FROM generate_series(1, 9) i")
    given = source.settings(tables={"t": SHAPED})
    run(given)
    source.execute("UPDATE t SET n = n + 10")
    run(given)
    others = tokens(source)
    token = next(one for one in others.values() if not one.startswith("0"))
    before = recorded(source)
    absent = erasure.forget(given, "t", {"id": token})
    assert (absent.is_found, absent.exit_code, absent.after) == (False, 1, None)
    assert absent.before is not None
    assert (absent.before.found, absent.before.told, absent.doubtful) == (0, 0, 0)
    assert recorded(source) == before
    source.execute(f"INSERT INTO t VALUES ('{token}', 7, 'infinity')")
    run(given)
    source.execute("DELETE FROM t WHERE n = 7")
    run(given)
    assert len(records(source, rejected_values.NAME)) >= 2
    done = erasure.forget(given, "t", {"id": token})
    assert (done.rows, done.left, done.exit_code) == (1, 0, 0)
    assert tokens(source) == others
    left = records(source, rejected_values.NAME)["row_key"].to_list()
    assert {json.loads(key)["id"] for key in left} == {*others.values()}


def test_a_clear_value_that_may_be_a_token_is_doubtful(source: Source) -> None:
    """If older versions of a text column have clear values, a match may be the token of another
    row: it is reported, the exit code is 1, and --old-versions deletes it.
    """
    source.execute("CREATE TABLE t (id text PRIMARY KEY, n int, day date)")
    source.execute("INSERT INTO t VALUES ('234567', 1, 'infinity'), ('345678', 2, NULL)")
    run(source.settings(tables={"t": {"rules": SHAPED["rules"]}}))
    given = source.settings(tables={"t": SHAPED})
    source.execute("DELETE FROM t WHERE n = 1")
    run(given)
    done = erasure.forget(given, "t", {"id": "234567"})
    assert (done.is_found, done.exit_code) == (False, 1)
    assert done.doubtful >= 2
    assert any("--old-versions" in note for note in done.notes)
    delete_old_versions(given, "t")
    assert files_with(source.lake, "234567") == []
    done = erasure.forget(given, "t", {"id": "234567"})
    assert (done.is_found, done.doubtful) == (False, 0)


@pytest.mark.soak
def test_rows_under_a_reused_column_name_are_distinguished_by_time(source: Source) -> None:
    """Rows from before a rename of the key have it under the old name, which another column has
    now: they are erased, and no row whose new column has that value.
    """
    source.execute("CREATE TABLE t (a int PRIMARY KEY, note text)")
    source.execute("INSERT INTO t VALUES (1, 'plant'), (2, 'old'), (3, 'x')")
    given = source.settings()
    run(given)
    source.execute("DELETE FROM t WHERE a < 3")
    run(given)
    source.execute("ALTER TABLE t RENAME a TO b; ALTER TABLE t ADD a int")
    run(given)
    source.execute("INSERT INTO t VALUES (4, 'else', 1)")
    run(given)
    source.execute("DELETE FROM t WHERE b = 4")
    run(given)
    done = erasure.forget(given, "t", {"a": "2"})
    assert (done.is_found, done.doubtful) == (False, 0)
    done = erasure.forget(given, "t", {"b": "1"})
    assert (done.rows, done.left, done.exit_code, done.notes) == (1, 0, 0, ())
    assert files_with(source.lake, "plant") == []
    assert sorted(pl.read_delta(str(source.table("t")))["note"]) == ["else", "old", "x", "x"]


OPEN = {
    "swapped": (
        "ALTER TABLE t RENAME a TO c; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME c TO b",
        "b",
    ),
    "no key": ("ALTER TABLE t RENAME mail TO email; ALTER TABLE t ADD mail text", "email"),
}


@pytest.mark.parametrize("how", OPEN)
def test_rows_under_an_ambiguous_column_name_are_doubtful(source: Source, how: str) -> None:
    """If an earlier row and a later one cannot be distinguished, nothing is erased by the old name;
    that is reported, and the exit code is 1.
    """
    statement, column = OPEN[how]
    source.execute("CREATE TABLE t (a int PRIMARY KEY, b int NOT NULL, mail text, note text)")
    source.execute("INSERT INTO t VALUES (7, 70, '7', 'plant'), (8, 80, '8', 'x')")
    given = source.settings()
    run(given)
    source.execute("DELETE FROM t WHERE a = 7")
    run(given)
    source.execute(statement)
    run(given)
    done = erasure.forget(given, "t", {column: "7"})
    assert (done.rows, done.exit_code) == (0, 1)
    assert done.doubtful >= 1
    assert any("had another name" in note for note in done.notes)
    assert "plant" in pl.read_delta(str(source.table("t")))["note"].to_list()


def test_unfinished_files_do_not_stop_an_erasure(source: Source) -> None:
    """Files that a kill or a running load has left half written cannot be read: that is reported,
    and the erasure goes on. A file that a version names must be readable.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, day date)")
    source.execute("INSERT INTO t VALUES (1, 'infinity'), (2, NULL)")
    given = source.settings()
    run(given)
    source.execute("DELETE FROM t WHERE id = 1")
    run(given)
    state = _state(given)
    whole = (source.table("t") / state.files[0].path).read_bytes()
    book = source.lake / GOVERNANCE / rejected_values.NAME
    name = f"part-{'0' * 8}-0000-7000-8000-{'0' * 12}-{'0' * 32}.zstd.parquet"
    broken = [folder / name for folder in (source.table("t"), book)]
    for path in broken:
        path.write_bytes(whole[: len(whole) // 2])
    done = erasure.forget(given, "t", {"id": "1"})
    assert (done.rows, done.left, done.exit_code) == (1, 0, 0)
    assert done.after is not None
    assert done.after.unreadable == 2
    assert any("2 files of no version are not Parquet" in note for note in done.notes)
    for path in broken:
        path.unlink()
    assert files_with(source.lake, "infinity") == []
    (source.table("t") / _state(given).files[0].path).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileDamaged, match="cannot be read"):
        erasure.forget(given, "t", {"id": "2"}, ask=False)


def _state(given: Settings) -> log.State:
    state = log.read(given.place("bronze", "bz_t"))
    assert state is not None
    return state


def test_cost_grows_with_rows_plus_records(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost is that of the rows plus that of the records, not their product."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, who int, day date)")
    source.execute(
        "INSERT INTO t SELECT i, 1, CASE WHEN i % 10 = 0 THEN 'infinity'::date END"
        " FROM generate_series(1, 2000) i"
    )
    given = source.settings()
    run(given)
    source.execute("DELETE FROM t")
    calls, record_text = list[int](), recorded_values.record_text

    def counting(value: Any) -> str:
        calls.append(1)
        return record_text(value)

    monkeypatch.setattr(recorded_values, "record_text", counting)
    done = erasure.forget(given, "t", {"who": "1"})
    assert (done.rows, done.exit_code) == (2000, 0)
    assert done.records >= 200
    assert len(calls) < 10 * (2000 + 200)
