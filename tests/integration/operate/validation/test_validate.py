"""``bronze validate`` on real lakes: what is well, what is not, and what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
from typer.testing import CliRunner

import bronze
from bronze.cli.main import app
from bronze.config.settings import Settings
from bronze.operate.validation.validate import validate
from tests.conftest import Source

ROWS = "INSERT INTO orders SELECT n, 'word' FROM generate_series(1, 200) n"


@pytest.fixture
def settings(source: Source) -> Settings:
    """A source with a table of 200 rows, which is loaded."""
    source.execute("CREATE TABLE orders (id int PRIMARY KEY, word text)")
    source.execute(ROWS)
    loaded = source.settings()
    assert bronze.Bronze(loaded).run().exit_code == 0
    return loaded


def states(result: Any) -> dict[tuple[str, str], str]:
    """The state of each check, by its name and subject."""
    return {(check.name, check.subject): check.state for check in result.checks}


def test_every_check_of_a_sound_lake_is_measured_and_passes(
    settings: Settings, source: Source, tmp_path: Path
) -> None:
    """A lake that was just loaded passes all checks, as a command, as JSON and as JUnit XML."""
    config = tmp_path / "bronze.toml"
    config.write_text(
        f'[source]\nname = "test"\ndsn = "{source.dsn}"\nschema = "public"\n'
        f'[lake]\nroot = "{source.lake}"\n'
    )
    junit = tmp_path / "out" / "validation.xml"
    done = CliRunner().invoke(app, ["validate", "-c", str(config), "--json", "--junit", str(junit)])
    checks = json.loads(done.stdout)["checks"]
    assert {check["state"] for check in checks} == {"pass"}, checks
    assert done.exit_code == 0
    assert all(check["value"] is not None for check in checks)
    assert [(check["group"], check["name"]) for check in checks] == [
        ("quality", "null share"),
        ("quality", "duplicates"),
        ("quality", "schema compliance"),
        ("quality", "freshness"),
        ("quality", "score"),
        ("quality", "failed records"),
        ("schema", "column contract"),
        ("schema", "stored as written"),
        ("performance", "duration"),
        ("performance", "small read"),
        ("security", "personal data"),
        ("security", "audit log"),
        ("security", "TLS"),
        ("security", "secrets"),
    ]
    suite = ElementTree.parse(junit).getroot()[0]  # noqa: S314 - it is our own
    assert suite.attrib["tests"] == str(len(checks))
    assert suite.attrib["failures"] == suite.attrib["skipped"] == "0"
    (record,) = bronze.Bronze(settings).audit(action="validate").records
    assert record.result == "succeeded"


def test_each_fault_fails_its_check_and_no_other(settings: Settings, source: Source) -> None:
    """NULLs, duplicates, personal columns, changes of other writers and passwords are found."""
    source.execute("ALTER TABLE orders ADD email text")
    source.execute("UPDATE orders SET word = NULL WHERE id <= 60")
    source.execute("UPDATE orders SET email = 'a' || id || '@example.com'")
    bronze.Bronze(settings).run()
    rows = pl.read_delta(str(source.table("orders")))
    rows.head(10).write_delta(str(source.table("orders")), mode="append")
    named = source.settings(alerts={"heartbeat": "https://user:word@example.com/beat"})

    result = validate(named)
    failed = {name for (name, _), state in states(result).items() if state == "fail"}
    assert failed == {"null share", "duplicates", "stored as written", "personal data", "secrets"}
    assert result.exit_code == 1
    values = {check.name: check.value for check in result.checks}
    assert values["duplicates"] == pytest.approx(10 / 210)
    assert values["null share"] == pytest.approx((60 + 10) / (210 * 3))


@pytest.mark.soak
def test_without_its_source_a_lake_is_measured_all_the_same(settings: Settings) -> None:
    """What needs the source is unknown; a password in clear is found, and not printed."""
    clear = settings.source["test"].model_copy(
        update={"dsn": "postgresql://bronze:hunter2@127.0.0.1:1/none"}
    )
    broken = settings.model_copy(update={"source": {"test": clear}, "path": "bronze.toml"})
    away = validate(broken)
    assert {name for (name, _), state in states(away).items() if state == "unknown"} == {
        "column contract",
        "personal data",
        "TLS",
    }
    assert states(away)["secrets", "config"] == "fail"
    assert "hunter2" not in str(away.checks)
