"""What `bronze deploy` writes: into empty folders only, filled from the config, without secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bronze.cli.main import app
from bronze.config.settings import Settings
from bronze.deploy import writer
from bronze.errors import ConfigError
from tests.unit.deploy.configs import SHOP, settings


@pytest.mark.parametrize("target", writer.TARGETS)
def test_a_target_is_filled_and_has_no_secret(target: str) -> None:
    """No placeholder stays, no value of a secret is in it, and three to five steps follow."""
    files = writer.render(settings(), target)
    steps = files["NEXT"].replace("@FOLDER@", "").splitlines()
    assert 3 <= len(steps) <= 5
    for name, text in files.items():
        text = text.replace("@FOLDER@", "")
        assert not writer._VALUE.search(text), (name, writer._VALUE.search(text))
        assert "hunter2" not in text
        assert not name.endswith(".template")


def test_a_folder_with_files_is_not_overwritten(tmp_path: Path) -> None:
    """The command writes into an empty folder, and refuses the second time."""
    config = tmp_path / "bronze.toml"
    config.write_text('[source]\ndsn = "postgresql://db/shop"\n[lake]\nroot = "lake"\n')
    arguments = ["deploy", "systemd", "-c", str(config), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0
    written = json.loads(done.stdout)
    assert sorted(written["files"]) == sorted(p.name for p in (tmp_path / "out").iterdir())
    (tmp_path / "out" / "bronze.service").write_text("mine")
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "is not an empty folder" in again.output
    assert (tmp_path / "out" / "bronze.service").read_text() == "mine"
    unknown = CliRunner().invoke(app, ["deploy", "mainframe", "-c", str(config)])
    assert unknown.exit_code == 2
    assert "There is no target mainframe" in unknown.output


def test_names_of_secrets_and_extras_follow_from_the_config() -> None:
    """Environment variables are named, of other providers nothing; extras are those it needs."""
    assert writer.secret_names(settings()) == ("BRONZE_MASTER_KEY", "KPassword", "KSlack")
    vault = {"provider": "azure-key-vault", "vault": "https://v.vault.azure.net"}
    elsewhere = settings(secrets=vault, tables={})
    assert writer.secret_names(elsewhere) == ()
    assert writer._extras(settings(source={**SHOP["source"], "auth": "rds-iam", "password": None}))
    assert writer._extras(settings(run={"engine": "dask://scheduler:8786"})) == {"serve", "dask"}


def test_a_schedule_that_cron_does_not_have_is_refused() -> None:
    """Seven hours do not divide a day."""
    document = {**SHOP, "serve": {"schedule": {"batch": "every 7h"}}}
    with pytest.raises(ConfigError, match="cannot be written as five fields"):
        writer.render(Settings.from_dict(document), "kubernetes")
