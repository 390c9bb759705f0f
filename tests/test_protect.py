"""Protection: nothing personal is found in clear, anywhere, whichever way rows come."""

from __future__ import annotations

import base64
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bronze import drift, keys, pipeline
from bronze.config import Settings
from bronze.enrich import keyring, protect
from bronze.model import Protected, TableResult
from bronze.source import connect, digest
from bronze.source.read import dtype
from bronze.table import log
from tests.conftest import Source

METHODS = {
    "a": "encrypt",
    "b": "encrypt_deterministic",
    "c": "tokenize",
    "d": {"method": "tokenize", "format": True},
    "e": "hash",
    "f": {"method": "mask", "keep": 2},
    "g": "drop",
}
PLANTED = re.compile(rb"plant|4242424242|\x00p\x00l\x00a\x00n\x00t")
PEOPLE = """
CREATE TABLE people (id int PRIMARY KEY, a text, b text, c text, d text, e text, f text, g text,
                     born date, pay numeric(10, 2), rest text);
INSERT INTO people SELECT i, 'plant a' || i, 'plant b' || i % 3, 'plant c' || i,
    '+42 (42) 4242-42' || i, 'plant e' || i, 'plant f' || i, 'plant g' || i,
    '1970-01-01'::date + i, i, 'rest' FROM generate_series(10, 40) i
"""


@pytest.fixture(autouse=True)
def master(monkeypatch: pytest.MonkeyPatch) -> str:
    """The master key, in the environment."""
    key = base64.b64encode(os.urandom(32)).decode()
    monkeypatch.setenv("BRONZE_MASTER_KEY", key)
    keyring.unwrapped.cache_clear()
    return key


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No log, of whatever level, ever has a planted value."""
    caplog.set_level(logging.DEBUG)
    yield
    assert not PLANTED.search(caplog.text.encode())


def settings(source: Source, name: str = "people", **own: Any) -> Settings:
    """Settings that protect the columns of `PEOPLE`, one by each method."""
    given = {"protect": METHODS | {"born": "encrypt", "pay": "encrypt_deterministic"}} | own
    return source.settings(tables={name: given})


def run(given: Settings) -> TableResult:
    """Runs, for a source whose only table is to land; nothing planted is in what it says."""
    (result,) = pipeline.run(given).tables
    assert not PLANTED.search(repr(result).encode())
    return result


def landed(given: Settings) -> TableResult:
    """Runs without an error."""
    result = run(given)
    assert result.error is None, result.error
    return result


def planted(folder: Path) -> list[str]:
    """The files in which a planted value is found: in their bytes, or in what Parquet packs."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += pl.read_parquet(path, hive_partitioning=False).write_json().encode()
        if PLANTED.search(content):
            found.append(str(path))
    return found


def table(source: Source, name: str = "people") -> pl.DataFrame:
    """The Bronze table, by its key."""
    return pl.read_delta(str(source.table(name))).sort("id")


def protections(given: Settings, name: str = "bz_people") -> tuple[Protected, ...]:
    """How a table is protected, from what is in the lake alone."""
    state = log.read(given.place("bronze", name))
    assert state is not None
    known = keys.found(keys.held(given)[1])
    return tuple(
        Protected(
            column,
            column,
            kind,
            how,
            known.get(("" if how.join else f"bronze.{name}", how.join or column, how.method), ()),
        )
        for column, (how, kind) in drift.protected(state.properties).items()
        if how
    )


def clear(given: Settings, rows: pl.DataFrame, name: str = "bz_people") -> pl.DataFrame:
    """The rows with those columns decrypted that can be."""
    for one in protections(given, name):
        if one.protect.method in protect.REVEALED:
            values = protect.revealed(rows[one.column], one, given.masters, dtype(one.kind))
            rows = rows.with_columns(values.alias(one.column))
    return rows


def proved(given: Settings, source: Source, name: str = "people") -> None:
    """The row hashes of live rows are those that PostgreSQL computes, keyed."""
    (origin,) = given.source
    with connect.connect(given.origin(origin)) as connection:
        (relation,) = (r for r in connect_relations(connection) if r.name == name)
        from bronze import prepare

        (target,) = prepare.targets(given, [(origin, relation)], ())
        state = log.read(target.place)
        assert state is not None
        held = [p for p in state.columns if p[0] not in ("source_commit_timestamp", "change_type")]
        settled = drift.settled(prepare.columns(target), held, state.properties, relation)
        query = digest.row_hash(settled.columns, f'"{name}"', "true", settled.base)
        hashes = [str(row[0]) for row in connection.execute(query)]
    given_keys = keys.found(keys.held(given)[1])
    (key, *_) = given_keys[f"bronze.bz_{name}", "", keys.ROW_HASH]
    wanted = protect.keyed(pl.Series(hashes), keyring.unwrapped(key, given.masters))
    rows = pl.read_delta(str(source.table(name))).filter(pl.col("record_status") != "DELETED")
    assert sorted(rows["row_hash"]) == sorted(wanted)


def connect_relations(connection: Any) -> Any:
    """The tables of the source."""
    from bronze.source.catalog import relations

    return relations(connection, ["public"])


def test_no_method_leaves_a_value_in_clear(source: Source) -> None:
    """Each method stores what it says, of any type; not a byte of the lake has a planted value."""
    source.execute(PEOPLE)
    given = settings(source)
    landed(given)
    assert planted(source.lake) == []
    rows = table(source)
    assert "g" not in rows.columns
    assert rows["rest"].to_list() == ["rest"] * 31
    assert rows["a"].n_unique() == 31
    assert rows["b"].n_unique() == 3
    assert rows["c"].str.contains("^tok_[0-9a-f]{32}$").all()
    assert rows["d"].str.contains(r"^\+\d\d \(\d\d\) \d{4}-\d{4}$").all()
    assert rows["e"].str.contains("^[0-9a-f]{64}$").all()
    assert rows["f"].to_list() == [f"***{i}" for i in range(10, 41)]
    assert rows.schema["born"] == rows.schema["pay"] == pl.String
    known = clear(given, rows)
    assert known["a"].to_list() == [f"plant a{i}" for i in range(10, 41)]
    wanted = source.execute("SELECT b, born, pay FROM people ORDER BY id")
    assert known.select("b", "born", "pay").rows() == wanted
    proved(given, source)
