"""A generation of the copy is restored into an empty root, and equals what was copied."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from bronze.api.client import Bronze
from bronze.backup.recovery import takeover
from bronze.config.sections.backup import BackupSettings
from bronze.config.settings import Settings
from bronze.errors import ConfigError, FileDamaged
from tests.conftest import Source

ROWS = """
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE other (id int PRIMARY KEY);
INSERT INTO t SELECT i, repeat('v', i % 50) FROM generate_series(1, 2000) i;
INSERT INTO other SELECT generate_series(1, 10);
"""


@pytest.fixture
def copied(source: Source, tmp_path: Path) -> Bronze:
    """A lake of two tables with two generations in its copy; the lake has gone on since."""
    source.execute(ROWS)
    opened = Bronze(source.settings(backup={"root": str(tmp_path / "copy")}))
    assert opened.run().exit_code == 0
    source.execute("UPDATE t SET v = 'new' WHERE id <= 100; DELETE FROM t WHERE id > 1900")
    assert opened.run().exit_code == 0
    source.execute("INSERT INTO t VALUES (9999, 'after the copy')")
    assert Bronze(source.settings()).run().exit_code == 0
    return opened


def sums(folder: Path, version: int | None = None) -> tuple[int, int]:
    """The number of rows of a table, and the sum of their hashes."""
    rows = pl.read_delta(str(folder), version=version)
    return rows.height, int(rows["row_hash"].hash(0).cast(pl.Int128).sum())


def recorded_run(opened: Bronze) -> int:
    """The exit code of a run without a copy after it."""
    return Bronze(opened.config.model_copy(update={"backup": BackupSettings()})).run().exit_code


def at(opened: Bronze, root: Path) -> Bronze:
    """The same config with another lake."""
    takeover.forget()
    return Bronze(opened.config.with_lake_at(str(root)))


def test_a_restore_equals_its_generation(copied: Bronze, tmp_path: Path) -> None:
    """By version, count and sums of hashes, also of earlier versions; at rest nothing is wrong; the
    lake itself is not needed; the next run goes on from it, and says so in the audit log.
    """
    lake = Path(copied.config.lake.root)
    expected = {v: sums(lake / "bronze" / "bz_t", v) for v in (0, 1)}
    shutil.move(lake, tmp_path / "lost")
    dry = copied.restore(str(tmp_path / "new"), dry_run=True)
    assert not (tmp_path / "new").exists()
    result = copied.restore(str(tmp_path / "new"))
    assert (result.exit_code, result.generation, dry.objects) == (0, 2, result.objects)
    table = tmp_path / "new" / "bronze" / "bz_t"
    assert DeltaTable(str(table)).version() == 1
    assert {v: sums(table, v) for v in (0, 1)} == expected
    restored = at(copied, tmp_path / "new")
    assert restored.verify(at_rest=True).exit_code == 0
    first = copied.restore(str(tmp_path / "first"), ["bz_t"], at="1")
    names = {table.target for table in first.tables if not table.target.startswith("governance.")}
    assert (first.generation, names) == (1, {"bronze.bz_t"})
    assert sums(tmp_path / "first" / "bronze" / "bz_t") == expected[0]

    assert recorded_run(restored) == 0
    assert restored.verify().exit_code == 0
    (record,) = restored.audit(action="restore").records
    assert '"generation": 2' in record.details
    assert restored.audit(verify=True).problems == ()


def test_a_root_that_is_not_empty_is_refused(copied: Bronze, tmp_path: Path) -> None:
    """Also if it is a restored lake, the lake, the copy or inside of it; and names that are not
    there, times before the first generation.
    """
    new = tmp_path / "new"
    new.mkdir()
    (new / "a file").touch()
    assert copied.config.copy_root
    inside = f"{copied.config.copy_root.url}/deep"
    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((str(new),), {}, "is not empty: it has a file"),
        ((copied.config.lake.root,), {}, "is not empty"),
        ((copied.config.copy_root.url,), {}, "one inside the other"),
        ((inside,), {}, "one inside the other"),
        ((str(tmp_path),), {}, "one inside the other"),
        ((str(tmp_path / "x"), ["bz_nothing"]), {}, "has no table bz_nothing"),
        ((str(tmp_path / "x"),), {"at": "9"}, "Generation 9 .* does not exist"),
        ((str(tmp_path / "x"),), {"at": "2020-01-01"}, "no generation of"),
        ((str(tmp_path / "x"),), {"at": "soon"}, "is not a time"),
        (("ftp://x/y",), {}, "cannot be the root of a lake"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ConfigError, match=message):
            copied.restore(*arguments, **options)
    assert not (tmp_path / "x").exists()
    assert copied.restore(str(tmp_path / "y")).exit_code == 0
    with pytest.raises(ConfigError, match="is not empty"):
        copied.restore(str(tmp_path / "y"))


@pytest.mark.soak
def test_a_changed_byte_of_the_copy_is_found(copied: Bronze, tmp_path: Path) -> None:
    """The restore ends with the file's name, and the root stays unfinished."""
    assert copied.config.copy_root
    file = next((Path(copied.config.copy_root.url) / "bronze" / "bz_t").glob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(FileDamaged, match=file.name):
        copied.restore(str(tmp_path / "new"))
    with pytest.raises(ConfigError, match="is not whole"):
        at(copied, tmp_path / "new").run()


def config_file(settings: Settings, folder: Path) -> Path:
    """A config file for the copy."""
    assert settings.copy_root
    file = folder / "bronze.toml"
    file.write_text(
        f'[source]\nname = "test"\ndsn = "postgresql://u@nowhere/db"\n'
        f'[lake]\nroot = "{folder}/gone"\n[backup]\nroot = "{settings.copy_root.url}"\n'
    )
    return file


def killed_restore(config: Path, to: Path, failpoint: str) -> None:
    """A restore that is killed at a failpoint."""
    command = [sys.executable, "-m", "bronze", "restore", "-c", str(config), "--to", str(to)]
    done = subprocess.run(command, env={**os.environ, "BRONZE_FAILPOINT": failpoint})
    assert done.returncode == -signal.SIGKILL


@pytest.mark.soak
def test_a_killed_restore_is_continued(copied: Bronze, tmp_path: Path) -> None:
    """By the same restore alone; what is whole is not copied again, and no command uses a half."""
    config, root = config_file(copied.config, tmp_path), tmp_path / "new"
    killed_restore(config, root, "restored:6")
    for command in ("run", "verify", "maintain"):
        with pytest.raises(ConfigError, match="is not whole: the restore of generation 2"):
            getattr(at(copied, root), command)()
    for tables, moment in ((["bz_t"], ""), ([], "1")):
        with pytest.raises(ConfigError, match="was killed before its end, and this one is another"):
            copied.restore(str(root), tables, at=moment)
    result = copied.restore(str(root))
    assert sum(table.copied for table in result.tables) in (result.objects - 6, result.objects - 5)
    assert "was killed before" in result.notes[0]
    assert at(copied, root).verify(at_rest=True).exit_code == 0


@pytest.mark.soak
def test_a_restore_may_be_killed_at_every_object(copied: Bronze, tmp_path: Path) -> None:
    """Killed anywhere, the next one ends it."""
    config = config_file(copied.config, tmp_path)
    total = copied.restore(str(tmp_path / "x"), dry_run=True).objects
    for number in range(1, total, 7):
        root = tmp_path / f"new{number}"
        killed_restore(config, root, f"restored:{number}")
        assert copied.restore(str(root)).exit_code == 0
        assert at(copied, root).verify(at_rest=True).exit_code == 0
