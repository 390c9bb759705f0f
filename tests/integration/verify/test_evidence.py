"""Nothing that was not looked at is proven: without its evidence no proof says equal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable

from bronze.verify.results import VerifyResult
from tests.acceptance.test_cli import configured, invoke
from tests.conftest import Source

TABLES = "CREATE TABLE {0} (id int PRIMARY KEY, v text); INSERT INTO {0} VALUES (1, 'a'), (2, 'b')"


def landed(source: Source) -> Path:
    """Two tables that a run has taken; the config."""
    for name in ("t", "u"):
        source.execute(TABLES.format(name))
    path = configured(source)
    assert invoke("run", "-c", path).exit_code == 0
    return path


def no_lake(source: Source) -> None:
    """All of the lake."""
    shutil.rmtree(source.lake)


def no_tables(source: Source) -> None:
    """All Bronze tables; the books are still there."""
    shutil.rmtree(source.lake / "bronze")


def no_table(source: Source) -> None:
    """One of them."""
    shutil.rmtree(source.table("t"))


def no_log(source: Source) -> None:
    """The log of one."""
    shutil.rmtree(source.table("t") / "_delta_log")


def empty_log(source: Source) -> None:
    """All entries of its log."""
    for entry in (source.table("t") / "_delta_log").iterdir():
        entry.unlink()


def no_file(source: Source) -> None:
    """Its file."""
    (uri,) = DeltaTable(str(source.table("t"))).file_uris()
    Path(uri).unlink()


def no_rows(source: Source) -> None:
    """Its rows, by another writer."""
    DeltaTable(str(source.table("t"))).delete()


EVIDENCE = [no_lake, no_tables, no_table, no_log, empty_log, no_file, no_rows]


@pytest.mark.parametrize("removed", EVIDENCE)
def test_without_its_evidence_nothing_is_equal(
    source: Source, removed: Callable[[Source], None]
) -> None:
    """Whatever is taken away: neither proof exits with 0, nor calls that table equal."""
    path = landed(source)
    removed(source)
    for how in ((), ("--trust-hashes",), ("--at-rest",)):
        given = invoke("verify", "-c", path, "--json", *how)
        assert given.exit_code in (1, 3), how
        document = json.loads(given.stdout)
        states = {t["target"]: t["status"] for t in document.get("tables", ())}
        assert states.get("bronze.bz_t") != "equal", how


def test_a_proof_of_no_table_is_none() -> None:
    """Where nothing was looked at, nothing is equal."""
    assert VerifyResult(at_rest=True, seconds=0.0, tables=()).exit_code == 1


def test_what_was_not_found_is_no_proof(source: Source) -> None:
    """A wrong name, or an empty lake, is said to be none; nothing is proven by it."""
    path = landed(source)
    for how in ((), ("--at-rest",)):
        assert invoke("verify", "nothing", "-c", path, *how).exit_code == 2
    no_lake(source)
    given = invoke("verify", "-c", path, "--at-rest")
    assert given.exit_code == 1
    assert "nothing was proven" in given.stderr


def test_a_proof_says_what_it_rests_on(source: Source) -> None:
    """How many rows and files of which side were looked at, in words and as JSON."""
    path = landed(source)
    source.execute("DELETE FROM t WHERE id = 2")
    assert invoke("run", "-c", path).exit_code == 0
    given = json.loads(invoke("verify", "-c", path, "--json").stdout)
    table = next(one for one in given["tables"] if one["table"] == "public.t")
    looked = ("source", "target", "source_rows", "bronze_rows", "gone_rows", "bronze_files")
    assert [table[name] for name in looked] == ["test", "bronze.bz_t", 1, 1, 1, 1]
    shown = " ".join(invoke("verify", "-c", path).stdout.split())
    assert "3 rows of test were hashed; 3 rows of Bronze and 1 inactive ones" in shown
    shown = " ".join(invoke("verify", "-c", path, "--at-rest").stdout.split())
    assert "The source was not asked; 3 rows of Bronze and 1 inactive ones" in shown
    assert "in 2 files of 2 tables were read, and hashed again." in shown
