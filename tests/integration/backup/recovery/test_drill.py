"""A drill restores the newest generation, uses all of it, and says how long that took."""

from __future__ import annotations

import json
import time
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from bronze.api.client import Bronze
from bronze.backup import copy
from bronze.backup.recovery import drill
from bronze.cli.main import app
from bronze.config.sections.protection import MASTER_KEY
from bronze.config.settings import Settings
from tests.conftest import Source


def config(source: Source, folder: Path, **backup: object) -> Settings:
    """A config with a protected column and a copy."""
    return source.settings(
        backup={"root": str(folder / "copy"), **backup},
        tables={"people": {"protect": {"mail": "encrypt"}}},
    )


@pytest.fixture
def copied(source: Source, tmp_path: Path) -> Bronze:
    """A lake with an encrypted column, and its copy."""
    source.execute(
        "CREATE TABLE people (id int PRIMARY KEY, mail text);"
        "CREATE TABLE t (id int PRIMARY KEY, rows int);"
        "INSERT INTO people VALUES (1, NULL), (2, 'ada@example.com'); INSERT INTO t VALUES (1)"
    )
    opened = Bronze(config(source, tmp_path))
    assert opened.run().exit_code == 0
    return opened


def test_a_drill_uses_the_copy_and_is_recorded(
    source: Source, copied: Bronze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes; without the master key, or with a changed byte, it fails with a sentence; above
    rto and rpo it says which. Nothing of a drill stays, and each is in ``governance.drills``.
    """
    passed = copied.drill()
    record = passed.record
    assert (passed.exit_code, record.result, record.message) == (0, "passed", "")
    assert (record.rows, record.decrypted) == (3, "bronze.bz_people.mail")
    assert record.lost_seconds == 0
    assert record.bytes > 1000
    assert [name for name, _ in passed.stages] == [
        "restored",
        "verified",
        "read",
        "decrypted",
        "deleted",
    ]
    assert not (tmp_path / "copy-drill").exists()
    assert copied.audit(action="drill").records[-1].result == "passed"

    with monkeypatch.context() as context:
        context.delenv(MASTER_KEY)
        keyless = copied.drill()
    assert (keyless.exit_code, keyless.record.result) == (1, "failed")
    assert MASTER_KEY in keyless.record.message
    assert not (tmp_path / "copy-drill").exists()

    source.execute("INSERT INTO t VALUES (2)")
    assert Bronze(source.settings(tables={"people": {"protect": {"mail": "encrypt"}}})).run()
    monkeypatch.setattr(drill, "_lost_seconds", lambda *_: 16 * 60.0)
    assert copied.drill().record.result == "too old"
    slow = Bronze(config(source, tmp_path, rto="1s"))
    monkeypatch.setattr(drill, "_decrypt", lambda _: time.sleep(1.1))
    assert slow.drill().record.result == "too slow"
    rows = pl.read_delta(str(source.lake / "governance" / "drills")).sort("began_timestamp")
    assert rows["result"].to_list() == ["passed", "failed", "too old", "too slow"]
    last = drill.last(slow.config)
    assert last
    assert last.result == "too slow"


@pytest.mark.soak
def test_a_damaged_copy_and_a_lost_lake_are_said(
    source: Source, copied: Bronze, tmp_path: Path
) -> None:
    """A changed byte fails the drill; changes that the copy lacks count from its generation on; a
    lake that is gone does not begin anew with a drill.
    """
    source.execute("INSERT INTO t VALUES (2)")
    alone = source.settings(tables={"people": {"protect": {"mail": "encrypt"}}})
    assert Bronze(alone).run().exit_code == 0
    assert copied.drill().record.lost_seconds > 0
    file = next((tmp_path / "copy" / "bronze" / "bz_t").glob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[80] ^= 1
    file.write_bytes(data)
    failed = copied.drill()
    assert failed.record.result == "failed"
    assert file.name in failed.record.message
    source.lake.rename(tmp_path / "lost")
    lost = copied.drill()
    assert lost.unrecorded
    assert "restores it" in lost.unrecorded.hint
    assert not source.lake.exists()


@pytest.mark.soak
def test_the_command_prints_and_exits(source: Source, copied: Bronze, tmp_path: Path) -> None:
    """With --json one document; the exit code is 1 where it has not passed."""
    file = tmp_path / "bronze.toml"
    file.write_text(
        f'[source]\nname = "test"\ndsn = "{source.dsn}"\n[lake]\nroot = "{source.lake}"\n'
        f'[backup]\nroot = "{tmp_path}/copy"\nrpo = "1s"\n'
    )
    answer = CliRunner().invoke(app, ["drill", "-c", str(file), "--json"])
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["record"]["result"] == "passed"
    source.execute("INSERT INTO t VALUES (2)")
    alone = source.settings(tables={"people": {"protect": {"mail": "encrypt"}}})
    assert Bronze(alone).run().exit_code == 0
    time.sleep(1.1)
    answer = CliRunner().invoke(app, ["drill", "-c", str(file)])
    assert answer.exit_code == 1
    assert "too old" in answer.stdout
    assert "lacks the changes" in answer.stderr
    assert copy.back_up(copied.config).exit_code == 0
