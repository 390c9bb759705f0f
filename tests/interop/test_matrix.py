"""The matrix of readers and writers on tables of bronze: ``nox -s interop -- -k matrix``.

It is compared with ``docs/reference/readers.md``; with ``BRONZE_MATRIX=write`` it is written there.
Answers are compared, versions are not. Lines of engines that are not installed stay. Daft needs
another pyarrow: ``BRONZE_DAFT`` names the Python of an environment that has it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import bronze
from bronze.delta import log
from bronze.delta.write import merge
from bronze.demo.server import running
from bronze.model.locations import Place
from tests.conftest import FAST, Source, database
from tests.interop.readers import ENGINES
from tests.interop.test_writers import WRITERS, duckdb_connection

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "readers.md"
QUESTIONS = ("content", "count", "filter", "feed")
ROWS, KEY = 900, 30
DEAD = "ends the process"
# A reader that has not answered all questions by then hangs.
_SECONDS = 120
MISCOUNTING = {"deltalake", "chDB"}
"""Those that count deleted rows, as `bronze check` says where a table has deletion vectors."""
FEATURES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "plain": ("at timestamptz", {}),
    "timestamp without zone": ("at timestamp", {}),
    "deletion vectors": ("at timestamptz", {"deletion_vectors": True}),
    "liquid clustering": ("at timestamptz", {"cluster_by": ["place", "at"], "liquid": True}),
    "both": (
        "at timestamptz",
        {"cluster_by": ["place", "at"], "liquid": True, "deletion_vectors": True},
    ),
}


@dataclass(frozen=True)
class Made:
    """A table: its folder, its rows, and the changes that its feed has."""

    folder: Path
    rows: list[list[Any]]
    changes: list[list[Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Made]]:
    """A table for each of the features: nine loads, a merge of updates and deletes."""
    folder = tmp_path_factory.mktemp("matrix")
    with (
        running(folder / "postgres", settings=FAST) as server,
        database(server, folder / "lake") as source,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(merge, "_SMALLEST_FILE", 0)
        yield _make(source)


def _make(source: Source) -> dict[str, Made]:
    names = {feature: f"t{number}" for number, feature in enumerate(FEATURES)}
    tables = {names[f]: {**own, "on_delete": "remove"} for f, (_, own) in FEATURES.items()}
    opened = bronze.Bronze(source.settings(tables=tables, maintain={"auto": True}))
    for feature, (columns, _) in FEATURES.items():
        columns = f"id int PRIMARY KEY, place int, name text, {columns}"
        source.execute(f"CREATE TABLE {names[feature]} ({columns})")
    for first in range(0, ROWS, 100):
        for name in names.values():
            source.execute(
                f"INSERT INTO {name} SELECT g, g % 7, 'name ' || g, '2026-01-01'::timestamp + g *"
                f" interval '1 hour' FROM generate_series({first}, {first + 99}) g"
            )
        assert opened.run().exit_code == 0
    for name in names.values():
        source.execute(f"DELETE FROM {name} WHERE id % 17 = 0")
        source.execute(f"UPDATE {name} SET name = 'new' WHERE id % 29 = 1")
    assert opened.run().exit_code == 0
    changes = [["insert", n] for n in range(ROWS)]
    changes += [["delete", n] for n in range(0, ROWS, 17)]
    for kind in ("update_preimage", "update_postimage"):
        changes += [[kind, n] for n in range(1, ROWS, 29) if n % 17]
    found = {}
    for feature, name in names.items():
        rows = [list(row) for row in source.execute(f"SELECT id, name FROM {name} ORDER BY id")]
        found[feature] = Made(source.table(name), rows, sorted(changes))
        _check(feature, source.table(name))
    return found


def _check(feature: str, folder: Path) -> None:
    """The table has what the matrix says that it has."""
    state = log.read(Place(str(folder)))
    assert state is not None
    vectors = any(file.vector is not None for file in state.files)
    assert vectors == (feature in ("deletion vectors", "both")), feature
    assert bool(state.clustering) == (feature in ("liquid clustering", "both")), feature


def python_of(engine: str) -> str | None:
    """The interpreter that has an engine, None if none has."""
    if engine == "Daft":
        return os.environ.get("BRONZE_DAFT")
    module = {"Sail": "pysail", "delta-kernel": "delta_kernel_rust_sharing_wrapper"}.get(
        engine, ENGINES[engine][2]
    )
    return sys.executable if importlib.util.find_spec(module) else None


def version_of(python: str, package: str) -> str:
    """The version of a package there."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.check_output([python, "-c", code], text=True).strip()


def answers(python: str, engine: str, asked: Sequence[tuple[str, str]]) -> list[Any]:
    """What an engine says of some tables and questions: the answer, None for an error, `DEAD` if
    its process ended.

    Raises:
        TimeoutExpired: it has not answered in two minutes.
    """
    script = str(Path(__file__).with_name("readers.py"))
    found: list[Any] = []
    while len(found) < len(asked):
        lines = "".join(json.dumps([*one, KEY]) + "\n" for one in asked[len(found) :])
        done = subprocess.run(
            [python, script, engine],
            input=lines,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        told = [line for line in done.stdout.splitlines() if line.startswith("= ")]
        found += [json.loads(line[2:]) for line in told]
        if len(found) < len(asked):
            assert done.returncode < 0, done.stderr
            found.append(DEAD)
    return found


def verdict(table: Made, question: str, answer: Any) -> str:
    """Whether an answer is right, in a word or two."""
    if answer is None or answer == DEAD:
        return "refuses" if answer is None else DEAD
    if question == "count":
        wrong = answer - len(table.rows)
        return f"**wrong** ({wrong:+})" if wrong else "yes"
    wanted = table.changes if question == "feed" else table.rows
    if question == "filter":
        wanted = [row for row in wanted if row[0] == KEY]
    return "yes" if Counter(map(tuple, answer)) == Counter(map(tuple, wanted)) else "**wrong**"


def reading(made: Mapping[str, Made], installed: Mapping[str, str]) -> list[str]:
    """A line for each feature and installed reader."""
    lines = []
    for engine, python in installed.items():
        questions = ENGINES[engine][1]
        asked = [(str(table.folder), one) for table in made.values() for one in questions]
        told = dict(zip(asked, answers(python, engine, asked), strict=True))
        for feature, table in made.items():
            cells = [
                verdict(table, one, told[str(table.folder), one]) if one in questions else "–"
                for one in QUESTIONS
            ]
            lines.append(f"| {engine} | {feature} | {' | '.join(cells)} |")
    return lines


def writing(made: Mapping[str, Made], scratch: Path) -> list[str]:
    """A line for each writer."""
    lines = []
    with duckdb_connection() as connection:
        for name, write in WRITERS.items():
            cells = []
            for number, table in enumerate(made.values()):
                copy = scratch / f"{name}{number}"
                shutil.copytree(table.folder, copy)
                cells.append(_appended(connection, copy, write, len(table.rows)))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _appended(
    connection: Any, table: Path, write: Callable[[Path, pl.DataFrame], None], rows: int
) -> str:
    """Whether a writer appends a row to a table that has so many, in a word."""
    scan = f"FROM delta_scan('{table}')"
    row = connection.execute(f"{scan} WHERE id = 1").pl()
    try:
        write(table, row.with_columns(id=pl.lit(9999, pl.Int32)))
    except Exception:
        return "refuses"
    (found,) = connection.execute(f"SELECT count(*) {scan}").fetchone()
    return "yes" if found == rows + 1 else "**wrong**"


def page(readers: list[str], writers: list[str], versions: list[str]) -> str:
    """The page of the docs."""
    dashes = "|---" * (2 + len(QUESTIONS)) + "|"
    return "\n".join(
        [
            "# Readers and writers",
            "",
            "What other engines make of tables that bronze wrote. Each was asked, in a process of"
            " its own, for all rows, their",
            "count, the row of a key, and the change data feed. *refuses* is an error that it"
            " raises; *–* is what it has no call",
            "for, or none that was tried. The tables had nine loads and a merge of updates and"
            " deletes.",
            "",
            "| reader | table | content | count | filter | feed |",
            dashes,
            *readers,
            "",
            "Where a table has deletion vectors, two readers take the count from the log, and so"
            " count rows that are deleted:",
            "",
            "- deltalake's `DeltaTable.count()`: count the rows of `QueryBuilder` or polars"
            " instead;",
            "- chDB's `count()`: it is right with `SETTINGS optimize_trivial_count_query = 0`.",
            "",
            "Appending a row:",
            "",
            f"| writer | {' | '.join(FEATURES)} |",
            "|---" * (1 + len(FEATURES)) + "|",
            *writers,
            "",
            "After a foreign append the next `bronze run` compares the table with its source, and"
            " says so. Databricks was not tried.",
            "",
            "The versions that were asked:",
            "",
            "| engine | package | version |",
            "|---|---|---|",
            *versions,
            "",
            "`BRONZE_MATRIX=write nox -s interop -- -k matrix` makes this page. Without the"
            " variable the answers of what is",
            "installed are compared with it; the versions are not, so that a newer one that"
            " answers the same changes nothing.",
            "",
        ]
    )


def miscounting(readers: list[str]) -> set[str]:
    """The readers with a wrong answer, all of them counts of tables with deletion vectors."""
    found = set()
    for line in readers:
        engine, feature, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        wrong = [one for one, cell in zip(QUESTIONS, cells, strict=True) if "wrong" in cell]
        if wrong:
            assert wrong == ["count"], line
            assert feature in ("deletion vectors", "both"), line
            found.add(engine)
    return found


def test_the_matrix_of_readers_and_writers(made: dict[str, Made], tmp_path: Path) -> None:
    """The page says what the installed engines do, and no reader is wrong but those that are known
    to count deleted rows.
    """
    installed = {name: python for name in ENGINES if (python := python_of(name))}
    readers, writers = reading(made, installed), writing(made, tmp_path)
    assert miscounting(readers) == MISCOUNTING & set(installed)
    before = PAGE.read_text().splitlines() if PAGE.exists() else []
    if os.environ.get("BRONZE_MATRIX") != "write":
        assert [line for line in readers + writers if line not in before] == []
        return
    versions = []
    for name, (_, _, package) in ENGINES.items():
        kept = [line for line in before if line.startswith(f"| {name} |")]
        if python := installed.get(name):
            versions.append(f"| {name} | {package} | {version_of(python, package)} |")
        elif kept:
            readers += kept[:-1]
            versions.append(kept[-1])
    PAGE.write_text(page(readers, writers, versions))
