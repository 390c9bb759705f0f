"""The public interface: what can be imported from bronze, and how it is typed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import bronze

NAMES = """
AuditReport BackupResult Bronze BronzeError CatalogError CatalogUnreachable CheckReport
CommitConflict Config ConfigError DriftReport DrillResult EngineLost ErasureResult Failure
FileDamaged KeyReport LakeError LakeUnreachable MaintainResult MaintainedTable MetadataReport
Mismatch Overtaken QualityRefused QualityReport RegisterResult RegisteredTable RestoreResult Rule
RunResult SecretsUnreachable SnapshotLost SnapshotRefused VerifiedCopy
SourceBusy SourceError SourceRefused SourceRewound SourceUnreachable Stopped StreamResult
TableContested TableRefused TableResult TableVanished VerifiedTable VerifyResult __version__ open
"""
SCRIPT = """
from datetime import datetime

import bronze

config = bronze.Config.from_dict({"source": {"dsn": "postgresql:///shop"}, "lake": {"root": "l"}})
lake: bronze.Bronze = bronze.Bronze(config)
lake = bronze.open({"source": {"dsn": "postgresql:///shop"}, "lake": {"root": "lake"}})
lake = lake.with_rules({"orders": []})


def work() -> int:
    try:
        run = lake.run(["orders"], notify=lambda event: print(event.table, event.message))
    except bronze.SourceUnreachable as error:
        print(error.hint)
        return error.exit_code
    for table in run.tables:
        print(table.table, table.inserted + table.updated, table.error and table.error.message)
    stream = lake.stream(until_caught_up=True, notify=lambda event: print(event.message))
    proof = lake.verify(repair=True)
    print([row.key for table in proof.tables for row in table.rows])
    erased = lake.forget("orders", {"id": "42"})
    print(erased.rows, lake.quality(trend=3).tables, lake.audit(since=datetime.now()).records)
    print([table.changes for table in lake.register(["orders"], recreate=True).tables])
    copy, drill = lake.backup(), lake.drill()
    print(copy.generation, lake.verify_backup().faults, drill.exit_code, lake.drift().exit_code)
    print(lake.restore("elsewhere", dry_run=True).tables, lake.metadata().exit_code)
    print(lake.check().problems, [key.current for key in lake.keys()], lake.maintain().tables)
    print(lake.tables(), lake.table("orders").select("id").collect().height)
    print(lake.reveal("orders").height, lake.rotate_keys(), lake.rewrap_keys(), lake.drop_stream())
    return max(run.exit_code, stream.exit_code, proof.exit_code, erased.exit_code)
"""


def test_the_public_names_are_these() -> None:
    """Users notice an added or removed name: it has to be deliberate."""
    assert sorted(bronze.__all__) == sorted(NAMES.split())
    for name in bronze.__all__:
        assert getattr(bronze, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = bronze.missing


def test_public_methods_say_what_they_do() -> None:
    """Each has a docstring that names its arguments and errors, and refers to no inner module."""
    for name, method in inspect.getmembers(bronze.Bronze, inspect.isfunction):
        if name.startswith("_"):
            continue
        said = inspect.getdoc(method) or ""
        given = [one for one in inspect.signature(method).parameters if one != "self"]
        assert "Raises:" in said, name
        assert "bronze." not in said, name
        missing = [one for one in given if f"{one}:" not in said]
        assert not missing or len(given) == 1, (name, missing)


@pytest.mark.types
def test_a_users_script_is_typed(tmp_path: Path) -> None:
    """Mypy --strict passes a script that uses every method, and finds no Any in the results."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    options = ["--strict", "--disallow-any-expr", "--no-incremental", "--cache-dir", "/dev/null"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
