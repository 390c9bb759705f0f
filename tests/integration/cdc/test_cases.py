"""Cases of streaming: each file in ``cases`` is a table, which is streamed three times.

A file begins with a comment about the case, and may have these lines:

- ``-- config: {…}``: the table's section of the config;
- ``-- also: {"SUFFIX": {…}}``: another table, with more in its section, by the suffix of its name;
- ``-- ids: [[…], […]]``: the ids of the active rows after the second and the third stream;
- ``-- quiet: true``: neither of these two streams has a note about the table;
- ``-- resynced: true``: the second stream resyncs the table.

``-- stream`` begins the SQL before a stream, ``-- commit`` ends a transaction. ``{t}`` is the
table, which has the file's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest

from bronze.cdc import apply_loop, stream
from bronze.demo.server import Server
from bronze.model.results import TableResult
from tests.conftest import Source, database
from tests.support import feed
from tests.support.content import differences
from tests.support.features import has
from tests.support.streams import caught_up, proven, streaming, table_state, until

VIRTUAL = ", w int GENERATED ALWAYS AS (n * 3) VIRTUAL" if has("virtual generated columns") else ""


@dataclass(frozen=True)
class Case:
    """A file: the transactions before each of three streams, and what is expected."""

    name: str
    streams: tuple[tuple[str, ...], ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    ids: Sequence[Sequence[int]] | None = None
    quiet: bool = False
    resynced: bool = False

    @classmethod
    def read(cls, file: Path) -> Iterator[Case]:
        """The cases of a file."""
        text = file.read_text().replace("{virtual}", VIRTUAL)
        head, *parts = re.split(r"^-- stream$", text, flags=re.MULTILINE)
        options = {
            name: json.loads(value)
            for name, value in re.findall(
                r"^-- (config|also|ids|quiet|resynced): (.*)$", head, re.MULTILINE
            )
        }
        config, also = options.pop("config", {}), options.pop("also", {})
        configs = {file.stem: config}
        configs |= {f"{file.stem}_{suffix}": config | more for suffix, more in also.items()}
        for name, own in configs.items():
            streams = [_transactions(part.replace("{t}", name)) for part in parts]
            yield cls(name, (*streams, *[()] * (3 - len(streams))), own, **options)


def _transactions(text: str) -> tuple[str, ...]:
    found = re.split(r"^-- commit$", text, flags=re.MULTILINE)
    return tuple(one.strip() for one in found if one.strip())


CASES = {
    case.name: case
    for file in sorted((Path(__file__).parent / "cases").glob("*.sql"))
    for case in Case.read(file)
}
PARTITIONS = ("partition_attached", "partition_detached", "partition_truncated")


@dataclass(frozen=True)
class Streams:
    """All cases after three streams: results, differences and versions of each stream, by table."""

    source: Source
    results: list[dict[str, TableResult]] = field(default_factory=list)
    wrong: list[dict[str, str]] = field(default_factory=list)
    versions: list[dict[str, int]] = field(default_factory=list)

    def rows(self, name: str, number: int) -> pl.DataFrame:
        """The active rows of a table after a stream."""
        version = self.versions[number][name]
        all_rows = pl.read_delta(str(self.source.table(name)), version=version)
        return all_rows.filter(pl.col("record_status") == "ACTIVE")


@pytest.fixture(scope="module")
def streams(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Streams]:
    """The cases, streamed together."""
    with database(server, tmp_path_factory.mktemp("streams") / "lake") as source:
        found = Streams(source)
        given = source.settings(
            source={"tables": list(CASES)},
            tables={name: {"pattern": "streaming", **case.config} for name, case in CASES.items()},
            stream={"interval": 0},
        )
        for number in range(3):
            with psycopg.connect(source.dsn, autocommit=True) as connection:
                for case in CASES.values():
                    for transaction in case.streams[number]:
                        connection.execute(transaction)
            results = caught_up(given).tables
            found.results.append({t.table.removeprefix("public."): t for t in results})
            found.wrong.append(differences(given))
            found.versions.append({name: table_state(source, name).version for name in CASES})
        # All slots of these tests have one name, and belong to the whole server.
        stream.drop(given)
        yield found


def test_streamed_tables_equal_their_sources(streams: Streams, subtests: pytest.Subtests) -> None:
    """After each stream they have the rows of the source, and a correct change data feed."""
    # Generated columns are left out of that table: it has a test of its own.
    for name in sorted(CASES.keys() - {"generated"}):
        with subtests.test(name):
            _check_equal(streams, name)


def _check_equal(streams: Streams, name: str) -> None:
    case = CASES[name]
    assert [wrong.get(f"public.{name}") for wrong in streams.wrong] == [None] * 3
    since = streams.versions[1 if case.resynced else 0][name]
    assert feed.faults(streams.source.table(name), since) == []
    if case.ids is not None:
        assert [sorted(streams.rows(name, number)["id"]) for number in (1, 2)] == case.ids
    if case.quiet:
        assert [streams.results[number][name].notes for number in (1, 2)] == [(), ()]
    if case.resynced:
        # The third stream reads only changes.
        assert streams.results[1][name].notes
        assert streams.results[2][name].rows_read == 9


def test_the_first_stream_copies_a_table(streams: Streams) -> None:
    """All rows are inserted by the table sync."""
    copied = streams.results[0]["followed"]
    assert (copied.status, copied.inserted) == ("landed", 200)


def test_generated_columns(streams: Streams) -> None:
    """Stored ones are streamed if the server sends them; the other ones are left out."""
    found = streams.rows("generated", 2)
    stored = ["s"] if has("generated columns in publications") else []
    values = [(1, 5, 10), (2, 2, 4)]
    wanted = [row[: 2 + len(stored)] for row in values]
    assert found.sort("id").select("id", "n", *stored).rows() == wanted
    assert {"s", "w"} & set(found.columns) == set(stored)
    result = streams.results[1]["generated"]
    assert (result.inserted, result.updated, result.notes) == (1, 1, ())


@pytest.mark.soak
def test_partitions_exchanged_while_a_stream_runs_are_resynced(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check of the catalog finds them."""
    monkeypatch.setattr(apply_loop, "_CATALOG_INTERVAL", 0.1)
    for name in PARTITIONS:
        for transaction in CASES[name].streams[0]:
            source.execute(transaction)
    given = source.settings(
        source={"tables": list(PARTITIONS)},
        tables={name: {"pattern": "streaming"} for name in PARTITIONS},
        stream={"interval": 0},
    )
    with streaming(given) as steps:
        until(lambda: steps)
        for name in PARTITIONS:
            for transaction in CASES[name].streams[1]:
                source.execute(transaction)
        wrong: dict[str, str] = {}

        def equal() -> bool:
            nonlocal wrong
            wrong = differences(given)
            return wrong == {}

        until(equal, told=lambda: wrong)
    proven(source, given, *PARTITIONS)
