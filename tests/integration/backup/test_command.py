"""`bronze backup` with a source: after runs, with a stream, in the service, and after `forget`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from bronze.api.client import Bronze
from bronze.backup import copy, manifest, proof
from bronze.cli.main import app
from bronze.config.settings import Settings
from bronze.failpoint import BACKUP_POINTS
from bronze.verify import verify
from tests.conftest import Source
from tests.support.serving import Hands, serving, until
from tests.support.streams import caught_up

pytestmark = pytest.mark.soak

TABLE = """
CREATE TABLE customers (id int PRIMARY KEY, email text NOT NULL, at timestamptz DEFAULT now());
INSERT INTO customers SELECT i, 'c' || i || '@example.org' FROM generate_series(1, 500) i;
"""


def configured(source: Source, folder: Path, **sections: Any) -> Settings:
    """A config with a copy."""
    backup = {"root": str(folder / "copy"), **sections.pop("backup", {})}
    return source.settings(backup=backup, **sections)


def holding(root: Path, text: str) -> list[str]:
    """The objects that hold a text in their bytes, or decoded from Parquet."""
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.suffix == ".parquet":
                data += pl.read_parquet(path).write_json().encode()
            if text.encode() in data:
                found.append(str(path))
    return found


def test_what_is_forgotten_is_in_no_generation(source: Source, tmp_path: Path) -> None:
    """Run, change, run: the person's address is in two generations and in governance; after
    `forget` and a backup no file of the copy holds it, and the copy verifies against the source.
    """
    source.execute(TABLE)
    settings = configured(source, tmp_path)
    bronze = Bronze(settings)
    assert bronze.run().copy_error is None
    source.execute("UPDATE customers SET email = 'zoltan@nowhere.invalid' WHERE id = 7")
    assert bronze.run().exit_code == 0
    source.execute("DELETE FROM customers WHERE id = 7")
    assert bronze.run().exit_code == 0
    root = tmp_path / "copy"
    assert holding(root, "zoltan@nowhere.invalid")
    assert len(bronze.generations()) == 3
    erased = bronze.forget("customers", {"email": "zoltan@nowhere.invalid"})
    assert (erased.exit_code, erased.rows) == (0, 1)
    assert any("the copy of the lake still has" in note for note in erased.notes)
    done = bronze.backup()
    assert (done.exit_code, done.erasures) == (0, ())
    assert holding(root, "zoltan@nowhere.invalid") == []
    assert bronze.verify_backup().faults == ()
    failed_over = source.settings(lake={"root": str(root)})
    assert verify.verify(failed_over).exit_code == 0
    assert verify.verify(failed_over, at_rest=True).exit_code == 0
    assert Bronze(failed_over).audit(verify=True).exit_code == 0


def test_a_stream_is_copied_at_its_checkpoint(source: Source, tmp_path: Path) -> None:
    """All tables of it have one position, which is that of the copied checkpoints."""
    source.execute(TABLE + "CREATE TABLE orders AS SELECT g AS id FROM generate_series(1, 9) g;")
    source.execute("ALTER TABLE orders ADD PRIMARY KEY (id)")
    streaming = {"pattern": "streaming"}
    settings = configured(source, tmp_path, tables={"customers": streaming, "orders": streaming})
    caught_up(settings)
    source.execute("INSERT INTO customers VALUES (1000, 'new@example.org')")
    caught_up(settings)
    done = copy.back_up(settings)
    root = settings.copy_root
    assert root is not None
    generation = manifest.read(root, done.generation)
    moments = {
        generation.moments[table.moment]
        for table in generation.tables
        if table.schema != "governance"
    }
    (moment,) = moments
    assert (moment.kind, moment.source) == ("stream", next(iter(settings.source)))
    assert all(
        max(table.positions.values()) >= (moment.position or 0)
        for table in generation.tables
        if table.schema != "governance"
    )
    failed_over = source.settings(
        lake={"root": str(tmp_path / "copy")},
        tables={"customers": streaming, "orders": streaming},
    )
    source.execute("DELETE FROM customers WHERE id < 10")
    caught_up(failed_over)
    assert verify.verify(failed_over).exit_code == 0


def test_a_backup_may_be_killed_anywhere(source: Source, tmp_path: Path) -> None:
    """At each failpoint, several times: there are only whole generations, and the next pass has all
    of the lake.
    """
    source.execute(TABLE)
    settings = configured(source, tmp_path, backup={"keep": "1h"})
    Bronze(settings.model_copy(update={"backup": type(settings.backup)()})).run()
    config = tmp_path / "bronze.toml"
    config.write_text(_toml(settings))
    for number, point in enumerate((*BACKUP_POINTS, "copying", "copied"), 1):
        source.execute("UPDATE customers SET at = now() WHERE id = %s", number)
        plain = settings.model_copy(update={"backup": type(settings.backup)()})
        Bronze(plain).run()
        if point.startswith("purg"):
            Bronze(plain).delete_old_versions("customers")
        env = {**os.environ, "BRONZE_FAILPOINT": f"{point}:{1 + number % 2 * 3}"}
        if point in ("sealing", "sealed") or point.startswith("purg"):
            env["BRONZE_FAILPOINT"] = point
        command = [sys.executable, "-m", "bronze", "backup", "-c", str(config)]
        ended = subprocess.run(command, env=env, capture_output=True, check=False)
        assert ended.returncode == -9, (point, ended.stderr)
        if manifest.generations(settings.copy_root):  # type: ignore[arg-type]
            assert all("is missing" not in f for f in proof.verify_copy(settings).faults), point
    assert copy.back_up(settings).exit_code == 0
    assert proof.verify_copy(settings).faults == ()
    failed_over = source.settings(lake={"root": str(tmp_path / "copy")})
    assert verify.verify(failed_over).exit_code == 0


def _toml(settings: Settings) -> str:
    document = settings.model_dump(mode="json", by_alias=True, exclude_unset=True)
    ((name, own),) = document["source"].items()
    return "\n".join(
        [
            "[source]", f"name = {json.dumps(name)}", f"dsn = {json.dumps(own['dsn'])}",
            f"schema = {json.dumps(own.get('schema', ['public']))}",
            "[lake]", f"root = {json.dumps(document['lake']['root'])}",
            *(f"{k} = {json.dumps(v)}" for k, v in document["lake"].items() if k == "schema"),
            "[backup]", f"root = {json.dumps(document['backup']['root'])}", 'keep = "1h"',
        ]
    )  # fmt: skip


def test_the_service_makes_copies(source: Source, tmp_path: Path) -> None:
    """Each `every`, beside the runs; a copy that cannot be written is an alert."""
    source.execute(TABLE)
    settings = configured(
        source,
        tmp_path,
        backup={"every": "10s"},
        serve={"schedule": {"full_refresh": "every 1m", "maintain": "", "verify": ""}},
    )
    root = settings.copy_root
    assert root is not None
    with serving(settings, Hands()) as own:
        until(lambda: manifest.generations(root), 60)
        first = manifest.generations(root)[-1]
        until(lambda: manifest.generations(root)[-1] > first + 1, 60)
    assert own.code == 0
    assert proof.verify_copy(settings).faults == ()


def test_the_command_prints_what_it_did(source: Source, tmp_path: Path) -> None:
    """Generations, figures, faults and erasures, as text and as JSON; status counts erasures."""
    source.execute(TABLE)
    settings = configured(source, tmp_path)
    config = tmp_path / "bronze.toml"
    config.write_text(_toml(settings))
    assert Bronze(settings).run().exit_code == 0

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*words, "-c", str(config)])
        return done.exit_code, done.output

    code, text = run("backup")
    assert (code, "Generation 2 of" in text, "behind" in text) == (0, True, True)
    code, text = run("backup", "--json")
    assert (code, json.loads(text)["generation"]) == (0, 3)
    assert [g["id"] for g in json.loads(run("backup", "--list", "--json")[1])] == [1, 2, 3]
    code, text = run("backup", "--verify", "--sample", "50%")
    assert (code, "no fault" in text) == (0, True)
    Bronze(settings).delete_old_versions("customers")
    assert "1 erasure of" in run("status")[1]
    assert run("backup")[0] == 0
    assert "erasure" not in run("status")[1]
    next((tmp_path / "copy").rglob("part-*.parquet")).unlink()
    code, text = run("backup", "--verify")
    assert (code, "is missing" in text) == (1, True)
