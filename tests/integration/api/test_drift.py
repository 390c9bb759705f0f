"""What ran last against the config's file and its commit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from typer.testing import CliRunner

from bronze.api.client import Bronze
from bronze.cli.main import app
from bronze.config import fingerprint, loading
from bronze.config.settings import Settings

CONFIG = """
[source]
name = "test"
dsn = "postgresql://u@nowhere:1/db"
connect_timeout = 1
[lake]
root = "lake"
[run]
max_retries = 0
"""


def git(folder: Path, *arguments: str) -> None:
    """Runs git in a folder."""
    names = ("user.name=a", "user.email=a@b", "commit.gpgsign=false")
    options = [part for name in names for part in ("-c", name)]
    command = ["git", "-C", str(folder), *options, *arguments]
    subprocess.run(command, check=True, capture_output=True)


def maintained(file: Path) -> Settings:
    """The config of a file, after a command that has recorded it."""
    settings = loading.load(file)
    assert Bronze(settings).maintain().exit_code == 0
    return settings


def problems(file: Path) -> list[str]:
    """What `bronze check --drift` finds."""
    answer = CliRunner().invoke(app, ["check", "--drift", "--json", "-c", str(file)])
    document = json.loads(answer.output)
    assert answer.exit_code == (1 if document["problems"] else 0)
    found: list[str] = document["problems"]
    return found


def test_what_runs_is_compared_with_file_and_commit(tmp_path: Path) -> None:
    """Each state of the file has its sentence, with the keys; values are in none of them."""
    file = tmp_path / "bronze.toml"
    file.write_text(CONFIG)
    assert problems(file) == []
    settings = maintained(file)
    details = json.loads(Bronze(settings).audit(action="maintain").records[-1].details)
    assert set(details["config"]) == {"path", "hash"}
    assert problems(file) == []

    git(tmp_path, "init", "-q")
    (untracked,) = problems(file)
    assert "is not committed" in untracked
    git(tmp_path, "add", "bronze.toml")
    git(tmp_path, "commit", "-qm", "one")
    assert problems(file) == []
    maintained(file)
    details = json.loads(Bronze(settings).audit(action="maintain").records[-1].details)
    assert details["config"]["file"] == "committed"
    assert len(details["config"]["commit"]) == 40

    file.write_text(CONFIG + 'workers = 3\n[stream]\nslot = "secret_name"\n')
    running, uncommitted = problems(file)
    assert "not what the file says" in running
    assert running.endswith(": run.workers, stream.slot.")
    assert "secret_name" not in running
    assert "not committed" in uncommitted
    maintained(file)
    uncommitted, running = problems(file)
    assert "changes that are not committed" in uncommitted
    assert "not what is committed" in running
    git(tmp_path, "commit", "-qam", "two")
    assert problems(file) == []


def test_a_file_that_was_replaced_after_it_was_read_is_said(tmp_path: Path) -> None:
    """The commit of the file on disk says nothing about the config that runs."""
    file = tmp_path / "bronze.toml"
    file.write_text(CONFIG)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "bronze.toml")
    git(tmp_path, "commit", "-qm", "one")
    settings = loading.load(file)
    assert fingerprint.file_version(settings).state == "committed"
    file.write_text(CONFIG + "workers = 3\n")
    git(tmp_path, "commit", "-qam", "two")
    assert fingerprint.file_version(settings).state == "replaced"
    assert (
        fingerprint.file_version(
            loading.parse({"source": {"name": "t", "dsn": ""}, "lake": {"root": "x"}})
        ).state
        == ""
    )
