"""Databases in SQL_ASCII, in which a text may be any bytes, and others that are not in UTF-8."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from psycopg import sql

from bronze.api import check
from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.demo.server import Server
from bronze.errors import SourceError, SourceRefused
from bronze.ingest import pipeline
from bronze.model.columns import KEY_TEXT
from bronze.verify.verify import verify
from tests.conftest import Source, without_slots
from tests.support import feed

# Columns of every kind of text: a value that is text, and one that is none.
KINDS = {
    "a text": ("E'\\xc3\\xa4 \\xf0\\x9f\\x98\\x80'", "E'M\\xfcller'"),
    "b varchar(20)": ("'plain'", "E'\\xed\\xa0\\x80'"),
    "c text[]": ("ARRAY['x', E'\\xc3\\xb6']", "ARRAY['x', E'\\xf6', NULL]"),
    "d json": ('\'{"k": "v"}\'', 'E\'{"k": "\\xe9"}\''),
    "e hstore": ("'k => v'", "E'k => \\xe9'"),
    "f pair": ("ROW('x', 1)::pair", "ROW(E'\\xc3', 1)::pair"),
    "g char(8)": ("'eight'", "E'\\xff\\xfe'"),
    "h name": ("'n'", "E'n\\xc0\\xaf'"),
    "i pair[]": ("ARRAY[ROW('x', 1)::pair]", "ARRAY[ROW(E'\\x80', 1)::pair]"),
    "j mood": ("'fine'", "E'tr\\xfcb'"),
    "k citext": ("'C'", "E'\\xf4\\x90\\x80\\x80'"),
}
NAMES = [kind.split()[0] for kind in KINDS]
MADE = (
    "CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE TYPE pair AS (t text, n int);"
    "CREATE TYPE mood AS ENUM ('fine', E'tr\\xfcb');"
    f"CREATE TABLE t (id int PRIMARY KEY, n int, {', '.join(KINDS)});"
    f"INSERT INTO t SELECT g, 0, {', '.join(good for good, _ in KINDS.values())}"
    " FROM generate_series(1, 20) g;"
    "COMMENT ON TABLE t IS E'\\xfc'; COMMENT ON COLUMN t.id IS E'\\xfc';"
    "ALTER TABLE t ADD CONSTRAINT other CHECK (a <> E'\\xfc')"
)
ODD = ", ".join(f"{name} = {bad}" for name, (_, bad) in zip(NAMES, KINDS.values(), strict=True))


@contextmanager
def encoded(server: Server, lake: Path, encoding: str) -> Iterator[Source]:
    """An empty database in another encoding."""
    name = f"test_{encoding.lower()}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' LOCALE_PROVIDER libc"
            " TEMPLATE template0"
        )
        yield Source(server.dsn(name), lake)
        without_slots(admin, name)
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def raw(server: Server, tmp_path: Path) -> Iterator[Source]:
    """A database in SQL_ASCII."""
    with encoded(server, tmp_path / "lake", "SQL_ASCII") as made:
        yield made


def proven(given: Settings) -> None:
    """The tables equal their source, by hashes that PostgreSQL has made."""
    assert {(t.status, t.error) for t in verify(given).tables} == {("equal", None)}


def kept(raw: Source, table: str = "bz_t") -> dict[str, set[str]]:
    """The texts of rejected values by column."""
    rows = pl.read_delta(str(raw.lake / "governance" / "rejected_values"))
    rows = rows.filter(pl.col("target_table").str.ends_with(table))
    return {column: set(part["source_text"]) for (column,), part in rows.group_by("column_name")}


def expected_bytes(raw: Source) -> dict[str, set[str]]:
    """The bytes of the invalid texts, as rejected_values should have them."""
    texts = (f"'\\x' || encode(convert_to(concat({n}), 'SQL_ASCII'), 'hex')" for n in NAMES)
    (row,) = raw.execute(f"SELECT {', '.join(texts)} FROM t WHERE id = 3")
    return {name: {text.decode()} for name, text in zip(NAMES, row, strict=True)}


@pytest.mark.soak
def test_a_run_records_invalid_text_as_rejected_values(raw: Source) -> None:
    """Such values of any type are NULL in the table, and rejected_values has their bytes; other
    values land, and PostgreSQL and bronze compute the same hashes.
    """
    raw.execute(MADE)
    tables: list[dict[str, Any]] = [
        {"pattern": "batch"},
        {"pattern": "full_refresh", "target": "bz_w", "arrays": "string"},
        {"pattern": "batch", "history": True, "target": "bz_h", "protect": {"a": "tokenize"}},
    ]
    changes = (
        "SELECT",
        f"UPDATE t SET {ODD} WHERE id IN (3, 4)",
        "UPDATE t SET a = 'x' WHERE id = 4",
    )
    for change, updated in zip(changes, (0, 2, 1), strict=True):
        raw.execute(change)
        for own in tables:
            given = raw.settings(tables={"t": own})
            (result,) = pipeline.run(given).tables
            assert result.error is None
            assert result.updated == updated
            proven(given)
    assert kept(raw) == expected_bytes(raw)
    rows = pl.read_delta(str(raw.table("t")))
    assert rows.filter(id=3).select(NAMES).row(0) == (None,) * len(NAMES)
    assert rows.filter(id=5)["a"].item() == "ä \N{GRINNING FACE}"
    assert rows.filter(id=5)["c"].item().to_list() == ["x", "ö"]
    (table,) = check.check(raw.settings(tables={"t": tables[0]})).tables
    assert table.problem is None
    assert next(c for c in table.columns if c.name == "a").note == "may be rejected"


def test_a_stream_records_invalid_text_as_rejected_values(raw: Source) -> None:
    """As in a run; runs and streams give the same row hash."""
    raw.execute(MADE)
    given = raw.settings(tables={"t": {"pattern": "streaming"}}, stream={"interval": 0})
    changes = (
        "SELECT",
        f"UPDATE t SET {ODD} WHERE id IN (3, 4); DELETE FROM t WHERE id = 1",
        "UPDATE t SET n = n + 1",
    )
    for change in changes:
        raw.execute(change)
        result = stream.stream(given, until_caught_up=True)
        assert [table.error for table in result.tables if table.error] == []
        proven(given)
    assert kept(raw) == expected_bytes(raw)
    assert feed.faults(raw.table("t")) == []


@pytest.mark.parametrize("pattern", ["batch", "streaming"])
def test_keys_of_invalid_text_identify_rows(raw: Source, pattern: str) -> None:
    """Rows are matched by the bytes of their keys."""
    raw.execute(
        "CREATE TABLE t (name text PRIMARY KEY, v int);"
        " INSERT INTO t VALUES ('plain', 1), (E'\\xe4', 2), (E'\\xf6', 3), ('\\xe4', 4)"
    )
    given = raw.settings(tables={"t": {"pattern": pattern}}, stream={"interval": 0})
    for _ in range(3):
        if pattern == "streaming":
            result = stream.stream(given, until_caught_up=True)
            assert [table.error for table in result.tables if table.error] == []
        else:
            assert [table.error for table in pipeline.run(given).tables] == [None]
        proven(given)
        raw.execute("UPDATE t SET v = v + 10 WHERE v < 30; DELETE FROM t WHERE name = E'\\xf6'")
    rows = pl.read_delta(str(raw.table("t"))).filter(pl.col("record_status") == "ACTIVE")
    assert sorted(rows.select("name", KEY_TEXT, "v").rows(), key=lambda row: row[2]) == [
        ("plain", None, 21),
        (None, json.dumps({"name": "\\xe4"}), 22),
        ("\\xe4", None, 24),
    ]


def test_names_of_invalid_text_are_refused(raw: Source) -> None:
    """A table or column with such a name is refused, with an error that says so."""
    raw.execute("CREATE TABLE t (id int PRIMARY KEY)")
    given = raw.settings()
    with psycopg.connect(raw.dsn, autocommit=True) as connection:
        connection.execute("SET client_encoding = 'SQL_ASCII'")
        connection.execute(b'ALTER TABLE t ADD "\xfc" int')
    for look in (pipeline.run, check.check):
        with pytest.raises(SourceError, match="the name of a table, a column") as refused:
            look(given)
        assert "SQL_ASCII" in refused.value.hint


OTHERS = {
    "WIN1252": ("E'\\x81'", "E'\\xe4'"),
    "EUC_JP": ("E'\\xa9\\xa1'", "E'\\xa4\\xa2'"),
}


@pytest.mark.parametrize("encoding", OTHERS)
def test_characters_without_a_utf8_form_refuse_their_table(
    server: Server, tmp_path: Path, encoding: str
) -> None:
    """In a database with another encoding, the error names the column and the row; all other
    characters land.
    """
    odd, plain = OTHERS[encoding]
    with encoded(server, tmp_path / "lake", encoding) as source:
        source.execute(
            'CREATE TABLE t (id int PRIMARY KEY, v text, "the ""odd"" FROM" text[]);'
            f"INSERT INTO t SELECT i, {plain}, NULL FROM generate_series(1, 3000) i"
        )
        own = {"pattern": "batch", "rename": {'the "odd" FROM': "odd"}}
        given = source.settings(tables={"t": own})
        assert [table.error for table in pipeline.run(given).tables] == [None]
        proven(given)
        source.execute(f'UPDATE t SET "the ""odd"" FROM" = ARRAY[{odd}] WHERE id = 1500')
        (row,) = source.execute("SELECT ctid::text FROM t WHERE id = 1500")
        (table,) = pipeline.run(given).tables
        assert table.error is not None
        said = f'column the "odd" FROM of the row at ctid {row[0]} has a character of {encoding}'
        assert said in table.error.message


def test_a_database_that_cannot_send_utf8_is_refused(server: Server, tmp_path: Path) -> None:
    """PostgreSQL cannot convert MULE_INTERNAL to UTF-8; the error says so."""
    with encoded(server, tmp_path / "lake", "MULE_INTERNAL") as source:
        for look in (pipeline.run, check.check):
            with pytest.raises(SourceRefused, match="MULE_INTERNAL"):
                look(source.settings())
