"""The daily snapshot of the metadata: what it has, how long it is kept, how a lake differs."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bronze.api.client import Bronze
from bronze.backup import copy
from bronze.backup.recovery import metadata
from bronze.cli.main import app
from bronze.config import fingerprint, loading
from bronze.errors import ConfigError
from bronze.protection import keys
from tests.conftest import Source

SECRET = "hidden-word"


def test_a_lake_is_compared_with_its_metadata_of_a_day(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One snapshot a day, kept for a year. What the lake lacks is told apart from what is new; no
    secret is in it.
    """
    source.execute("CREATE TABLE people (id int PRIMARY KEY, mail text)")
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
    given: dict[str, Any] = {
        "backup": {"root": str(tmp_path / "copy")},
        "tables": {"people": {"protect": {"mail": "encrypt"}}},
        "alerts": {"heartbeat": f"https://u:{SECRET}@ping.example.com/{SECRET}"},
    }
    opened = Bronze(source.settings(**given))
    assert opened.run().exit_code == 0
    folder = tmp_path / "copy" / metadata.FOLDER
    (file,) = folder.iterdir()
    text = file.read_text()
    assert SECRET not in text
    assert "https://ping.example.com/…" in text
    document = json.loads(text)
    assert document["tables"]["bronze.bz_t"]["columns"]["a"] == "string"
    assert len(document["keys"]) == len(keys.stored_keys(opened.config)[1])
    report = opened.metadata()
    assert (report.exit_code, report.lacking) == (0, ())

    year_ago = datetime.now(UTC).date() - timedelta(days=367)
    (folder / f"{year_ago}.json").write_text("{}")
    (folder / f"{year_ago + timedelta(days=2)}.json").write_text("{}")
    copied = copy.back_up(opened.config)
    assert copied.exit_code == 0
    assert len(list(folder.iterdir())) == 3
    monkeypatch.setattr(metadata, "_days", {})
    assert copy.back_up(opened.config).exit_code == 0
    assert len(list(folder.iterdir())) == 2
    assert file.read_text() == text
    with pytest.raises(ConfigError, match="has no metadata of 2020-01-01; the oldest"):
        opened.metadata(at="2020-01-01")

    source.execute("ALTER TABLE t ADD b int")
    other = Bronze(source.settings(**given, run={"workers": 1}))
    assert other.run().exit_code == 0
    (source.lake / "bronze" / "bz_people").rename(tmp_path / "away")
    report = other.metadata()
    assert report.lacking == ("bronze.bz_people: there is no such table",)
    changes = "\n".join(report.changes)
    assert "bronze.bz_t: column b is new" in changes
    assert "config: run.workers is 1, and was 2" in changes


def test_the_config_of_a_snapshot_has_names_of_secrets_only(tmp_path: Path) -> None:
    """Passwords, keys of stores and addresses with tokens are not in it; the names are."""
    file = tmp_path / "bronze.toml"
    file.write_text(
        f'[source]\nname = "t"\ndsn = "postgresql://u:{SECRET}@h/db"\n'
        f'[lake]\nroot = "s3://b/l"\noptions = {{ aws_secret_access_key = "{SECRET}" }}\n'
        '[backup]\nroot = "s3://c/l"\noptions = { aws_secret_access_key = { secret = "KC" } }\n'
        f'[[alerts.channels]]\nkind = "webhook"\nname = "w"\nurl = "https://h/{SECRET}?x"\n'
    )
    text = json.dumps(fingerprint.readable(loading.load(file)))
    assert SECRET not in text
    assert "KC" in text


def test_the_command_needs_a_copy(tmp_path: Path) -> None:
    """Without one it says what to write; --to is needed by a restore alone."""
    file = tmp_path / "bronze.toml"
    file.write_text('[source]\nname = "t"\ndsn = "postgresql://u@h/db"\n[lake]\nroot = "lake"\n')
    for arguments in (["--metadata"], ["--to", str(tmp_path / "x")]):
        answer = CliRunner().invoke(app, ["restore", "-c", str(file), *arguments])
        assert (answer.exit_code, "has no [backup]" in answer.stderr) == (2, True)
    answer = CliRunner().invoke(app, ["restore", "-c", str(file)])
    assert (answer.exit_code, "--to is missing" in answer.stderr) == (2, True)
