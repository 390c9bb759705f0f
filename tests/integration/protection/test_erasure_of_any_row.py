"""Erasure from tables with random keys, texts of keys, patterns and changes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.demo.server import Server
from bronze.ingest import pipeline
from bronze.protection import erasure
from tests.conftest import Source, database
from tests.support.features import known
from tests.support.strategies import SCALARS, SETUP, Declared

_NO_KEYS = ("json", "xid", '"char"', "boolean", "pair", "couple", "hstore", "mood", "int4range")
KEYS = [one for one in SCALARS if known(one.type) and one.type not in _NO_KEYS]
# Other spellings of a value that its type takes for equal, in SQL of its text.
SPELLED = {
    "citext": "upper(t)",
    "uuid": "upper(t)",
    "numeric": "CASE WHEN t ~ '^[0-9]+$' THEN t || '.00' ELSE t END",
    "numeric(12,2)": "trim_scale(t::numeric)::text",
    "char(5)": "rtrim(t)",
    "inet": "CASE WHEN t LIKE '%%:%%' THEN upper(t) ELSE t || '/32' END",
    "integer": "' ' || t",
    "timestamptz": "CASE WHEN isfinite(t::timestamptz)"
    " THEN (t::timestamptz AT TIME ZONE 'Asia/Kolkata')::text || '+05:30' ELSE t END",
    "interval": "concat('@ ', t::interval)",
}
EVENTS = {
    "update": "UPDATE t SET note = note || '.'",
    "rename": "ALTER TABLE t RENAME {key} TO {key}x",
    "add": "ALTER TABLE t ADD more text DEFAULT 'm'",
    "widen": "ALTER TABLE t ALTER n TYPE bigint",
    "drop": "ALTER TABLE t DROP n",
    "leave": "DELETE FROM t WHERE note LIKE 'plant%'",
}


@dataclass(frozen=True)
class Life:
    """A table's key, its settings, and what happens to it."""

    key: Declared
    values: Sequence[str]
    own: Mapping[str, Any]
    events: Sequence[str]
    is_spelled: bool


@st.composite
def lives(draw: st.DrawFn) -> Life:
    """Any such table."""
    key = draw(st.sampled_from(KEYS))
    values = draw(st.lists(key.texts, min_size=2, max_size=6, unique=True))
    own: dict[str, Any] = draw(
        st.sampled_from(
            [
                {},
                {"on_delete": "remove"},
                {"pattern": "batch"},
                {"pattern": "micro_batch", "deletes": "detect", "on_delete": "remove"},
                {"pattern": "batch", "history": True},
                {"pattern": "streaming"},
                {"pattern": "streaming", "on_delete": "remove"},
            ]
        )
    )
    own = {**own, "rules": [{"name": "low", "column": "pay", "range": {"max": 0}}]}
    if draw(st.booleans()):
        own["anomalies"] = {"trees": 10, "columns": ["kind", "pay"], "expected": 0.1}
    methods = {"note": draw(st.sampled_from(["", "encrypt", "hash", "tokenize"]))}
    methods["id"] = draw(st.sampled_from(["", "", "hash", "encrypt_deterministic"]))
    protect = {name: how for name, how in methods.items() if how}
    own |= {"protect": protect} if protect else {}
    events = draw(st.lists(st.sampled_from(list(EVENTS)), max_size=4))
    once = [e for i, e in enumerate(events) if e == "update" or e not in events[:i]]
    if {"drop", "widen"} <= {*once}:
        once.remove("widen")
    spelled = draw(st.booleans()) and "id" not in protect
    return Life(key, values, own, once, spelled)


def landed(given: Settings) -> None:
    """Runs, or streams, without an error."""
    if given.tables["t"].pattern == "streaming":
        tables = stream.stream(given, until_caught_up=True).tables
    else:
        tables = pipeline.run(given).tables
    assert [t.error for t in tables if t.error] == []


def configured(source: Source, life: Life, key: str) -> Settings:
    """The config; a protected key that was renamed in the source keeps its name in Bronze."""
    own = dict(life.own)
    protect = dict(own.get("protect", {}))
    if "id" in protect and key != "id":
        protect[key] = protect.pop("id")
        own["rename"] = {key: "id"}
    return source.settings(tables={"t": {**own, **({"protect": protect} if protect else {})}})


def places(lake: Path, *texts: str) -> list[str]:
    """The files that have one of the texts in a byte or in a decoded value."""
    found = []
    for path in lake.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                rows = pl.read_parquet(path, hive_partitioning=False).rows()
                content += "\n".join(map(str, rows)).encode()
            found += [str(path)] if any(text.encode() in content for text in texts) else []
    return found


def keys_of(source: Source) -> set[str]:
    """What records may have as the key of the person, whose rows are marked."""
    rows = pl.read_delta(str(source.table("t"))).filter(pl.col("mark") == "mine.")
    found = rows.select(pl.col("^(idx?x?|key_as_text)$")).rows()
    return {str(value) for row in found for value in row if value is not None}


def others(source: Source, keys: set[str]) -> dict[str, list[str]]:
    """What the lake has of everybody but the person."""
    rows = pl.read_delta(str(source.table("t")))
    theirs = {"t": sorted(map(str, rows.filter(pl.col("mark") != "mine.").rows()))}
    for name, column in (("rejected_values", "row_key"), ("anomalies", "row_key")):
        place = source.lake / "governance" / name
        if place.is_dir():
            records = pl.read_delta(str(place)).filter(pl.col(column).is_not_null())
            told = [
                row
                for row in records.rows(named=True)
                if not keys & {str(v) for v in json.loads(row[column]).values()}
            ]
            theirs[name] = sorted(map(str, told))
    return theirs


def lived(server: Server, life: Life) -> None:
    """A person is inserted, the table changes, the person is deleted and erased."""
    with TemporaryDirectory() as folder, database(server, Path(folder) / "lake") as source:
        source.execute(SETUP)
        source.execute(
            f"CREATE TABLE t (id {life.key.type} PRIMARY KEY, note text, kind text, pay float8,"
            " n int, day date, mark text)"
        )
        for i, value in enumerate(life.values):
            who, mark = ("plant", "mine.") if i == 0 else ("else", "other")
            try:
                source.execute(
                    f"INSERT INTO t VALUES (%s, '{who}{i}.', '{who}kind', {i} + 4242.125, {i},"
                    f" 'infinity', '{mark}') ON CONFLICT DO NOTHING",
                    value,
                )
            except psycopg.Error:
                # No value of the type after all.
                if i == 0:
                    return
        key, given = "id", configured(source, life, "id")
        ((text,),) = source.execute("SELECT concat(id) FROM t WHERE note LIKE 'plant%'")
        if life.is_spelled and life.key.type in SPELLED:
            ((text,),) = source.execute(
                f"SELECT {SPELLED[life.key.type]} FROM (SELECT %s::text AS t) s", text
            )
        landed(given)
        mine = keys_of(source)
        for event in life.events:
            if event == "rename":
                source.execute(EVENTS[event].format(key=key))
                key = f"{key}x"
                given = configured(source, life, key)
            else:
                source.execute(EVENTS[event])
            landed(given)
            mine |= keys_of(source)
        source.execute("DELETE FROM t WHERE note LIKE 'plant%'")
        if "leave" not in life.events:
            assert places(source.lake, "plantkind")
        before = others(source, mine)
        is_kept = "id" in life.own.get("protect", {})
        done = erasure.forget(given, "t", {"id" if is_kept else key: text})
        assert (done.left, done.is_found) == (0, True)
        assert places(source.lake, "plant", "mine.", "4242.125") == []
        assert others(source, mine) == before
        landed(given)


def lived_all(server: Server, examples: int, *, alike: bool) -> None:
    """Many tables, the same ones each time if ``alike``."""

    @settings(
        max_examples=examples,
        derandomize=alike,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(lives())
    def each(life: Life) -> None:
        lived(server, life)

    each()


@pytest.mark.soak
def test_nothing_of_an_erased_person_is_left(server: Server) -> None:
    """After an erasure no byte and no decoded value in the lake comes from the person's row, and
    the rows and records of everybody else are unchanged.
    """
    lived_all(server, 3, alike=True)


@pytest.mark.soak
@pytest.mark.slow
def test_nothing_of_an_erased_person_is_left_at_length(server: Server) -> None:
    """The same, with many more tables."""
    lived_all(server, 40, alike=False)
