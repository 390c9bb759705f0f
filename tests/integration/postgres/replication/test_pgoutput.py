"""Messages of pgoutput from a real server are parsed exactly; damaged ones are refused."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bronze.demo.server import Server
from bronze.errors import Mismatch
from bronze.postgres.connection import connect
from bronze.postgres.replication import pgoutput, slot
from bronze.postgres.replication.pgoutput import DELETE, INSERT, UPDATE, RowChanges
from tests.conftest import Source, database
from tests.support import wire
from tests.support.effort import examples
from tests.support.wire import Wire

SEVERAL = settings(
    max_examples=examples(6),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
MANY = settings(SEVERAL, max_examples=examples(50))

Row = tuple[str | None, ...]


@pytest.fixture
def streamed(source: Source) -> Iterator[Wire]:
    """A stream of the test's database."""
    with wire.wire(source) as opened:
        yield opened


def rows(frame: pl.DataFrame) -> list[Row]:
    """A frame's rows."""
    return frame.rows()


def large(length: int, seed: str = "x") -> str:
    """A text that PostgreSQL moves to the TOAST table if the column's storage is EXTERNAL."""
    return (seed * length)[:length]


def test_inserts_updates_and_deletes_are_parsed(source: Source, streamed: Wire) -> None:
    """Kinds and values in order; of old rows only the key, if it is sent."""
    source.execute("CREATE TABLE t (a text, id int PRIMARY KEY, b text)")
    source.execute("INSERT INTO t VALUES ('one', 1, NULL), ('', 2, 'zwei')")
    source.execute("UPDATE t SET a = 'eins' WHERE id = 1")
    source.execute("UPDATE t SET id = 10, b = 'ten' WHERE id = 1")
    source.execute("DELETE FROM t WHERE id = 2")
    found = streamed.changes("t")
    assert found.kinds.tolist() == [INSERT, INSERT, UPDATE, UPDATE, DELETE]
    assert found.new.columns == found.old.columns == ["a", "id", "b"]
    assert rows(found.new) == [
        ("one", "1", None),
        ("", "2", "zwei"),
        ("eins", "1", None),
        ("eins", "10", "ten"),
        (None, None, None),
    ]
    assert found.keyed.tolist() == [False, False, False, True, True]
    nothing = (None, None, None)
    assert rows(found.old) == [nothing, nothing, nothing, (None, "1", None), (None, "2", None)]
    assert found.unchanged == (None, None, None)


def test_identity_full_sends_whole_old_rows(source: Source, streamed: Wire) -> None:
    """Each update and delete comes with the complete old row."""
    source.execute("CREATE TABLE t (id int, a text, b text)")
    source.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    source.execute("INSERT INTO t VALUES (1, 'a', NULL)")
    source.execute("UPDATE t SET b = 'b'")
    source.execute("DELETE FROM t")
    found = streamed.changes("t")
    assert rows(found.new) == [("1", "a", None), ("1", "a", "b"), (None, None, None)]
    assert rows(found.old) == [(None, None, None), ("1", "a", None), ("1", "a", "b")]
    assert found.keyed.tolist() == [False, True, True]


def test_identity_of_an_index_sends_its_columns(source: Source, streamed: Wire) -> None:
    """The old key is that of the index, not the primary key."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL UNIQUE, v text)")
    source.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key")
    source.execute("INSERT INTO t VALUES (1, 'one', 'v')")
    source.execute("UPDATE t SET id = 2")
    source.execute("UPDATE t SET code = 'two'")
    source.execute("DELETE FROM t")
    found = streamed.changes("t")
    nothing = (None, None, None)
    assert rows(found.old) == [nothing, nothing, (None, "one", None), (None, "two", None)]
    assert rows(found.new)[1:3] == [("2", "one", "v"), ("2", "two", "v")]


def test_texts_of_any_length_are_parsed(source: Source, streamed: Wire) -> None:
    """Empty, shorter and longer than what fits into a view of Arrow."""
    source.execute("CREATE TABLE t (id int, a text, b text)")
    numbers = itertools.count()
    given: dict[tuple[str, int], list[Row]] = {}
    for letter in "aé日🚀":
        size = len(letter.encode())
        for length in (0, 1, 3, 4, 5, 10, 11, 12, 13, 14, 16, 255, 256, 65_536, 2**20):
            text = letter * (length // size) + "." * (length % size)
            assert len(text.encode()) == length
            values = [(text, None), (text + "!", text)]
            given[letter, length] = [(str(next(numbers)), *pair) for pair in values]
    with psycopg.connect(source.dsn) as connection:
        every = [row for pair in given.values() for row in pair]
        connection.cursor().executemany("INSERT INTO t VALUES (%s, %s, %s)", every)
    found = rows(streamed.changes("t").new)
    assert len(found) == len(every)
    pairs = zip(found[::2], found[1::2], strict=True)
    assert [case for case, pair in zip(given, pairs, strict=True) if [*pair] != given[case]] == []


def test_unchanged_toast_values_are_flagged(source: Source, streamed: Wire) -> None:
    """They differ from NULL by row and column, and are sent when they change."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b text, n int)")
    source.execute("ALTER TABLE t ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL")
    a, b = large(3000), large(4000, "é")
    source.execute("INSERT INTO t VALUES (1, %s, NULL), (2, %s, %s)", a, a, b)
    source.execute("UPDATE t SET n = id")
    source.execute("UPDATE t SET b = NULL WHERE id = 2")
    source.execute("UPDATE t SET a = %s WHERE id = 2", b)
    source.execute("DELETE FROM t WHERE id = 1")
    found = streamed.changes("t")
    first, second, third, fourth = found.unchanged
    assert first is None
    assert fourth is None
    assert second is not None
    assert third is not None
    assert second.tolist() == [False, False, True, True, True, False, False]
    assert third.tolist() == [False, False, False, True, False, False, False]
    assert rows(found.new) == [
        ("1", a, None, None),
        ("2", a, b, None),
        ("1", None, None, "1"),
        ("2", None, None, "2"),
        ("2", None, None, "2"),
        ("2", b, None, "2"),
        (None, None, None, None),
    ]


def test_a_full_old_row_has_unchanged_toast_values(source: Source, streamed: Wire) -> None:
    """They are missing in the new row only."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    source.execute("ALTER TABLE t ALTER a SET STORAGE EXTERNAL")
    source.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    a = large(3000)
    source.execute("INSERT INTO t VALUES (1, %s)", a)
    source.execute("UPDATE t SET id = 2")
    found = streamed.changes("t")
    assert rows(found.new) == [("1", a), ("2", None)]
    assert rows(found.old) == [(None, None), ("1", a)]
    assert found.unchanged[1] is not None
    assert found.unchanged[1].tolist() == [False, True]


def test_a_row_of_1600_columns_is_parsed(source: Source, streamed: Wire) -> None:
    """Some of its values are NULL."""
    names = [f"c{i}" for i in range(1600)]
    source.execute(f"CREATE TABLE t ({', '.join(f'{name} int' for name in names)})")
    values = [None if i % 7 == 0 else i for i in range(1600)]
    written = ", ".join("NULL" if value is None else str(value) for value in values)
    source.execute(f"INSERT INTO t VALUES ({written})")
    source.execute("INSERT INTO t (c1599) VALUES (-1)")
    found = streamed.changes("t")
    assert found.new.columns == names
    assert rows(found.new) == [
        tuple(None if value is None else str(value) for value in values),
        (*[None] * 1599, "-1"),
    ]


def test_a_table_without_columns_has_rows(source: Source, streamed: Wire) -> None:
    """Each change is a row without values."""
    source.execute("CREATE TABLE t ()")
    source.execute("ALTER TABLE t REPLICA IDENTITY FULL")
    source.execute("INSERT INTO t DEFAULT VALUES")
    source.execute("INSERT INTO t DEFAULT VALUES")
    source.execute("DELETE FROM t")
    found = streamed.changes("t")
    assert found.kinds.tolist()[:2] == [INSERT, INSERT]
    assert found.new.height == found.old.height == len(found.kinds)
    assert found.new.width == found.old.width == len(found.unchanged) == 0


def one(parse: Callable[[bytes, Any], Any]) -> Callable[[bytes], Any]:
    """A parser of concatenated messages, for one message."""
    return lambda message: parse(message, np.array([len(message)]))


def test_transaction_relation_and_truncate_messages_are_parsed(
    source: Source, streamed: Wire
) -> None:
    """Positions and time of a transaction; names, columns and identity of relations."""
    source.execute('CREATE SCHEMA "My s"')
    source.execute('CREATE TABLE "My s"."Tä ble" (id bigint PRIMARY KEY, "Größe" numeric(10,2))')
    source.execute("CREATE TABLE u (n int)")
    before = time.time()
    with psycopg.connect(source.dsn) as connection:
        connection.execute('INSERT INTO "My s"."Tä ble" VALUES (1, 2.5)')
        connection.execute('TRUNCATE "My s"."Tä ble", u')
    ((after,),) = source.execute("SELECT pg_current_wal_insert_lsn()::text")
    found = list(streamed.heard())
    (begin,) = one(pgoutput.read_begins)(found[0])
    assert before - 1 < begin[1] / 10**6 < time.time() + 1
    own = next(one for one in streamed.relations.values() if one.name == "Tä ble")
    assert own.schema == "My s"
    assert own.identity == "d"
    ((number, typmod),) = source.execute(
        'SELECT \'"My s"."Tä ble"\'::regclass::oid::int8, atttypmod FROM pg_attribute'
        " WHERE attrelid = '\"My s\".\"Tä ble\"'::regclass AND attname = 'Größe'"
    )
    assert own.oid == number
    assert own.columns == (("id", 20, -1), ("Größe", 1700, typmod))
    emptied = next(body for body in found if body[0] == pgoutput.TRUNCATE)
    ((other,),) = source.execute("SELECT 'u'::regclass::oid::int8")
    assert sorted(pgoutput.read_truncate(emptied)) == sorted([number, other])
    (end,) = one(pgoutput.read_commits)(next(body for body in found if body[0] == pgoutput.COMMIT))
    assert begin[0] < end <= slot.lsn(after)


# Random rows

KEYED, FULL = "keyed", "whole"
_LETTERS = st.sampled_from("aé日🚀\\'\n\t ,{}")
TEXTS = st.none() | st.integers(0, 14).flatmap(lambda n: st.text(_LETTERS, min_size=n, max_size=n))
EXTERNAL = st.sampled_from([large(3000), large(2999, "é"), large(5000, "日a")])
VALUES = st.tuples(
    TEXTS | EXTERNAL,
    TEXTS,
    st.none() | st.just("NaN") | st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.none() | st.binary(max_size=9).map(lambda data: "\\x" + data.hex()),
    st.none() | st.floats().map(repr).filter(lambda text: text != "-nan"),
    st.none() | st.datetimes().map(str),
    st.none() | st.sampled_from(["{}", '{NULL,"",a}', '{"a b","c\\"d"}']),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "touch", "move", "delete"]), st.integers(0, 3), VALUES),
    min_size=1,
    max_size=12,
)
COLUMNS = "id, a, b, c, d, e, f, g"


class Model:
    """A table, and the changes that its stream must have."""

    def __init__(self, connection: connect.Connection, name: str) -> None:
        self._connection, self._name = connection, f"public.{name}"
        self._rows: dict[int, Row] = {}
        self.kinds: list[int] = []
        self.new: list[Row | None] = []
        self.old: list[Row | None] = []
        self.unchanged: list[bool] = []

    def step(self, action: str, key: int, values: tuple[str | None, ...]) -> None:
        """Changes a row, if it exists."""
        before = self._rows.get(key)
        if action == "put":
            columns = ("a", "b", "c", "d", "e", "f", "g")
            if before is None:
                marks = ", ".join(f"${i + 1}" for i in range(7))
                after = self._run(f"INSERT INTO {self._name} VALUES ({key}, {marks})", values)
                self._expect(INSERT, None, after, False)
            else:
                pairs = ", ".join(f"{name} = ${i + 1}" for i, name in enumerate(columns))
                after = self._run(f"UPDATE {self._name} SET {pairs} WHERE id = {key}", values)
                self._expect(UPDATE, before, after, False)
            self._rows[key] = after
        elif before is None:
            return
        elif action == "touch":
            query = f"UPDATE {self._name} SET b = $1 WHERE id = {key}"
            after = self._run(query, values[1:2])
            self._expect(UPDATE, before, after, _is_external(before))
            self._rows[key] = after
        elif action == "move" and key + 10 not in self._rows:
            query = f"UPDATE {self._name} SET id = id + 10 WHERE id = {key}"
            after = self._run(query, ())
            self._expect(UPDATE, before, after, _is_external(before))
            del self._rows[key]
            self._rows[key + 10] = after
        elif action == "delete":
            self._run(f"DELETE FROM {self._name} WHERE id = {key}", ())
            self._expect(DELETE, before, None, False)
            del self._rows[key]

    def _run(self, statement: str, values: tuple[str | None, ...]) -> Row:
        query = f"{statement} RETURNING {COLUMNS}".encode()
        given = [None if value is None else value.encode() for value in values]
        result = self._connection.pgconn.exec_params(query, given)
        assert result.ntuples == 1, result.error_message
        cells = [result.get_value(0, column) for column in range(result.nfields)]
        return tuple(None if cell is None else cell.decode() for cell in cells)

    def _expect(self, kind: int, before: Row | None, after: Row | None, same: bool) -> None:
        self.kinds.append(kind)
        if same and after is not None:
            after = (after[0], None, *after[2:])
        self.new.append(after)
        self.unchanged.append(same)
        moved = before is None or after is None or before[0] != after[0]
        if self._name == f"public.{KEYED}" and before is not None:
            before = (before[0], *[None] * 7) if moved else None
        self.old.append(before)


def _is_external(row: Row) -> bool:
    return row[1] is not None and len(row[1].encode()) > 2100


def test_random_changes_have_the_values_that_postgresql_returns(
    source: Source, streamed: Wire
) -> None:
    """In a table with a key, and in one with REPLICA IDENTITY FULL."""
    for name in (KEYED, FULL):
        source.execute(
            f"CREATE TABLE {name} (id int PRIMARY KEY, a text, b text, c numeric, d bytea,"
            " e float8, f timestamp, g text[])"
        )
        source.execute(f"ALTER TABLE {name} ALTER a SET STORAGE EXTERNAL")
    source.execute(f"ALTER TABLE {FULL} REPLICA IDENTITY FULL")
    nothing: Row = (None,) * 8

    with connect.connect(source.settings().origin("test")) as connection:

        @SEVERAL
        @given(steps=STEPS, name=st.sampled_from([KEYED, FULL]))
        def check(steps: list[tuple[str, int, tuple[str | None, ...]]], name: str) -> None:
            # A failed example may have left rows.
            source.execute(f"DELETE FROM {name}")
            streamed.heard()
            model = Model(connection, name)
            for step in steps:
                model.step(*step)
            assume(model.kinds)
            found = streamed.changes(name)
            assert found.kinds.tolist() == model.kinds
            assert rows(found.new) == [row or nothing for row in model.new]
            assert rows(found.old) == [row or nothing for row in model.old]
            assert found.keyed.tolist() == [row is not None for row in model.old]
            flags = found.unchanged[1]
            assert (flags is not None) == any(model.unchanged)
            assert flags is None or flags.tolist() == model.unchanged

        check()


# Damaged messages


@dataclass(frozen=True)
class Captured:
    """Changes of all kinds of a table with the columns `NAMES`, and all messages of the stream."""

    changes: list[bytes]
    everything: list[bytes]


@pytest.fixture(scope="module")
def captured(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    """Messages of a real server."""
    with (
        database(server, tmp_path_factory.mktemp("captured")) as source,
        wire.wire(source) as streamed,
    ):
        source.execute("CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
        source.execute("ALTER TABLE t ALTER b SET STORAGE EXTERNAL")
        insert = "INSERT INTO t VALUES (1, 'short', NULL), (2, 'more than twelve', %s)"
        source.execute(insert, "é" * 9)
        source.execute("INSERT INTO t VALUES (3, '', %s)", large(3000))
        source.execute("UPDATE t SET a = NULL WHERE id = 3")
        source.execute("UPDATE t SET id = 4 WHERE id = 1")
        source.execute("DELETE FROM t WHERE id = 2")
        source.execute("TRUNCATE t")
        everything = streamed.heard()
        own = next(number for number, one in streamed.relations.items() if one.name == "t")
        changes = [m for m in everything if m[0] in pgoutput.CHANGES and wire.oid(m) == own]
        assert len(changes) == 6
        yield Captured(changes, everything)


NAMES = ["id", "a", "b"]


def readable(found: RowChanges) -> None:
    """Reads every value, so that a view with a wrong offset fails."""
    for frame in (found.new, found.old):
        assert frame.height == len(found.kinds)
        for row in frame.rows():
            assert all(value is None or value.encode().decode() == value for value in row)


def test_a_change_of_a_wrong_length_is_refused(captured: Captured) -> None:
    """Cut at any byte or extended, alone or among others."""
    messages = captured.changes
    for number, message in enumerate(messages):
        # For the largest message its two ends are enough.
        cuts = [*range(1, min(len(message), 60)), len(message) - 1]
        for wrong in (*(message[:cut] for cut in cuts), message + b"\0", message + message):
            for others in (messages, [message]):
                place = number if others is messages else 0
                given = [*others[:place], wrong, *others[place + 1 :]]
                with pytest.raises(Mismatch):
                    wire.apart(given, NAMES)


@pytest.mark.parametrize("size", [-1, -2, -(2**31), 2**31 - 1, 2**30, 4000, 3001, 17, 6])
def test_wrong_lengths_of_values_are_refused(captured: Captured, size: int) -> None:
    """Lengths beyond the message, and negative ones, in any column."""
    messages = captured.changes
    tried = 0
    for number, message in enumerate(messages):
        for at in _lengths(message):
            wrong = message[:at] + struct.pack(">i", size) + message[at + 4 :]
            if wrong == message:
                continue
            tried += 1
            for whole in ([wrong], [*messages[:number], wrong, *messages[number + 1 :]]):
                with pytest.raises(Mismatch):
                    wire.apart(whole, NAMES)
    assert tried >= 10


def _lengths(message: bytes) -> Iterator[int]:
    """The offsets of the lengths of values in a change."""
    at = 5
    while at < len(message):
        (columns,) = struct.unpack_from(">h", message, at + 1)
        at += 3
        for _ in range(columns):
            if message[at : at + 1] == b"t":
                yield at + 1
                at += 4 + struct.unpack_from(">i", message, at + 1)[0]
            at += 1


def test_another_number_of_columns_is_refused(captured: Captured) -> None:
    """Rows must have exactly the columns of their relation."""
    messages = captured.changes
    for names in ([], ["id"], ["id", "a"], ["id", "a", "b", "c"]):
        with pytest.raises(Mismatch):
            wire.apart(messages, names)


def test_messages_that_are_not_row_changes_are_refused(captured: Captured) -> None:
    """Among row changes."""
    messages, everything = captured.changes, captured.everything
    for other in everything:
        if other[0] not in pgoutput.CHANGES:
            with pytest.raises(Mismatch):
                wire.apart([*messages, other], NAMES)


def test_lengths_of_messages_must_add_up(captured: Captured) -> None:
    """Extra or missing bytes are refused."""
    messages = captured.changes
    lengths = np.array([len(message) for message in messages], np.int64)
    whole = b"".join(messages)
    for data in (whole + b"x", whole[:-1], b""):
        with pytest.raises(Mismatch):
            pgoutput.read_changes(data, lengths, NAMES)


def test_invalid_utf8_is_refused(source: Source, streamed: Wire) -> None:
    """In short values and long ones."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    read = []
    for size in (2, 12, 13, 40):
        source.execute("INSERT INTO t VALUES (%s, repeat('a', %s)), (-%s, 'b')", size, size, size)
        messages = streamed.raw("t")
        assert wire.apart(messages, ["id", "a"]).new.height == 2
        for wrong in (b"\xff\xfe", b"a\xc3", b"\xed\xa0"):
            end = messages[0].removesuffix(b"aa") + wrong
            assert len(end) == len(messages[0])
            try:
                wire.apart([end, messages[1]], ["id", "a"])
            except Mismatch:
                continue
            read.append((size, wrong))
    assert read == []


def test_damaged_changes_are_refused_or_read_as_text(captured: Captured) -> None:
    """With bytes replaced, removed or inserted."""
    messages = captured.changes
    places = st.tuples(st.integers(0, 5), st.integers(0, 80), st.integers(0, 255))

    @MANY
    @given(flips=st.lists(places, min_size=1, max_size=4), kind=st.sampled_from("=-+"))
    def check(flips: list[tuple[int, int, int]], kind: str) -> None:
        wrong = list(messages)
        for number, at, value in flips:
            old = wrong[number]
            behind = {"=": at + 1, "-": at + 1 + value % 8, "+": at}[kind]
            wrong[number] = old[:at] + (b"" if kind == "-" else bytes([value])) + old[behind:]
        try:
            found = wire.apart(wrong, NAMES)
        except Mismatch:
            return
        readable(found)

    check()


READERS: Mapping[int, Any] = {
    pgoutput.BEGIN: one(pgoutput.read_begins),
    pgoutput.COMMIT: one(pgoutput.read_commits),
    pgoutput.RELATION: pgoutput.read_relation,
    pgoutput.TRUNCATE: pgoutput.read_truncate,
}


def test_other_messages_that_are_cut_or_damaged_are_refused_or_read(captured: Captured) -> None:
    """A cut one is always refused."""
    framing = {message[0]: message for message in captured.everything if message[0] in READERS}
    assert framing.keys() == READERS.keys()
    for kind, message in framing.items():
        for end in range(1, len(message)):
            with pytest.raises(Mismatch):
                READERS[kind](message[:end])
        with pytest.raises(Mismatch):
            READERS[kind](message + b"\0")

    @MANY
    @given(
        kind=st.sampled_from(sorted(READERS)),
        flips=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 255)), min_size=1, max_size=3),
    )
    def check(kind: int, flips: list[tuple[int, int]]) -> None:
        wrong = bytearray(framing[kind])
        for at, value in flips:
            wrong[min(at, len(wrong) - 1)] = value
        try:
            READERS[kind](bytes(wrong))
        except Mismatch:
            return

    check()
