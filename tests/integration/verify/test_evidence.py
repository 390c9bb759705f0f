"""Nothing is equal unless it was read: without tables, logs or files no verification succeeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from deltalake import DeltaTable

from bronze.verify.results import VerifyResult
from tests.acceptance.test_cli import configured, invoke
from tests.conftest import Source

TABLES = "CREATE TABLE {0} (id int PRIMARY KEY, v text); INSERT INTO {0} VALUES (1, 'a'), (2, 'b')"


def loaded(source: Source, *names: str) -> Path:
    """Tables that a run has loaded; the config."""
    for name in names:
        source.execute(TABLES.format(name))
    path = configured(source)
    assert invoke("run", "-c", path).exit_code == 0
    return path


def no_table(folder: Path) -> None:
    """Removes the table."""
    shutil.rmtree(folder)


def no_log(folder: Path) -> None:
    """Removes the table's Delta log."""
    shutil.rmtree(folder / "_delta_log")


def empty_log(folder: Path) -> None:
    """Removes all entries of the log."""
    for entry in (folder / "_delta_log").iterdir():
        entry.unlink()


def no_file(folder: Path) -> None:
    """Removes the table's file."""
    (uri,) = DeltaTable(str(folder)).file_uris()
    Path(uri).unlink()


def no_rows(folder: Path) -> None:
    """Deletes all rows, as another writer."""
    DeltaTable(str(folder)).delete()


def statuses(path: Path, *how: str) -> dict[str, str]:
    """The status of each table; the command must not exit with 0."""
    result = invoke("verify", "-c", path, "--json", *how)
    assert result.exit_code in (1, 3), how
    document = json.loads(result.stdout)
    return {table["target"]: table["status"] for table in document.get("tables", ())}


HOWS: list[tuple[str, ...]] = [(), ("--trust-hashes",), ("--at-rest",)]


def test_a_table_without_data_is_never_equal(source: Source) -> None:
    """Whatever is removed of a table, no verification calls it equal; other tables are."""
    removals: list[Callable[[Path], None]] = [no_table, no_log, empty_log, no_file, no_rows]
    names = [removal.__name__ for removal in removals]
    path = loaded(source, *names, "whole")
    for removal in removals:
        removal(source.table(removal.__name__))
    for how in HOWS:
        status = statuses(path, *how)
        assert status["bronze.bz_whole"] == "equal", how
        assert {n for n in names if status.get(f"bronze.bz_{n}") == "equal"} == set(), how


def test_an_empty_lake_is_never_equal(source: Source) -> None:
    """Neither without Bronze tables nor without a lake is a table equal."""
    path = loaded(source, "t", "u")
    for folder in (source.lake / "bronze", source.lake):
        shutil.rmtree(folder)
        for how in HOWS:
            assert "equal" not in statuses(path, *how).values(), (folder, how)


def test_a_result_without_tables_is_a_failure() -> None:
    """Where no table was verified, the exit code is 1."""
    assert VerifyResult(at_rest=True, seconds=0.0, tables=()).exit_code == 1


def test_unknown_names_and_missing_lakes_are_errors(source: Source) -> None:
    """An unknown table exits with 2, a missing lake with 1 and a sentence."""
    path = loaded(source, "t")
    for how in ((), ("--at-rest",)):
        assert invoke("verify", "nothing", "-c", path, *how).exit_code == 2
    shutil.rmtree(source.lake)
    result = invoke("verify", "-c", path, "--at-rest")
    assert result.exit_code == 1
    assert "nothing was verified" in result.stderr


def test_a_result_counts_what_was_read(source: Source) -> None:
    """How many rows and files of each side were read, in words and as JSON."""
    path = loaded(source, "t", "u")
    source.execute("DELETE FROM t WHERE id = 2")
    assert invoke("run", "-c", path).exit_code == 0
    document = json.loads(invoke("verify", "-c", path, "--json").stdout)
    result = next(table for table in document["tables"] if table["table"] == "public.t")
    fields = ("source", "target", "source_rows", "bronze_rows", "gone_rows", "bronze_files")
    assert [result[name] for name in fields] == ["test", "bronze.bz_t", 1, 1, 1, 1]
    shown = " ".join(invoke("verify", "-c", path).stdout.split())
    assert "3 rows of test hashed; 3 rows of Bronze and 1 inactive" in shown
    shown = " ".join(invoke("verify", "-c", path, "--at-rest").stdout.split())
    assert "The source was not asked; 3 rows of Bronze and 1 inactive" in shown
    assert "in 2 files of 2 tables read and hashed again." in shown
