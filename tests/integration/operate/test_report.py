"""``bronze report`` on a real lake: without its source, and without some governance tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bronze
from bronze.cli.main import app
from tests.conftest import Source

_SECRET = "zanzibar-4711"


@pytest.fixture
def config(source: Source, tmp_path: Path) -> Path:
    """A config of two tables that have run twice; a row of one is in quarantine."""
    source.execute("CREATE TABLE orders (id int PRIMARY KEY, word text)")
    source.execute(
        f"INSERT INTO orders SELECT n, CASE n WHEN 7 THEN '{_SECRET}' ELSE 'good' END"
        " FROM generate_series(1, 150) n"
    )
    source.execute('CREATE TABLE "<b>odd</b>" (id int PRIMARY KEY)')
    path = tmp_path / "bronze.toml"
    path.write_text(f"""
[source]
name = "shop"
dsn = "{source.dsn}"
[lake]
root = "{source.lake}"
[[tables.orders.rules]]
name = "good words"
column = "word"
accepted_values = ["good"]
severity = "critical"
""")
    lake = bronze.open(path)
    lake.run().raise_for_status()
    source.execute("ALTER TABLE orders ADD COLUMN price int")
    source.execute("UPDATE orders SET price = 1 WHERE id < 50")
    lake.run().raise_for_status()
    return path


def test_a_lake_is_reported_without_its_source(config: Path, tmp_path: Path) -> None:
    """Its tables, runs, rules and schema changes, but no value of a row, also of one in quarantine;
    what a missing governance table would tell is a sentence.
    """
    text = config.read_text()
    config.write_text(text.replace("dsn = ", 'dsn = "postgresql://nobody@127.0.0.1:1/none" # '))
    path = bronze.open(config).report(tmp_path / "report.html")
    page = path.read_text()
    assert "public.orders" in page
    assert "good words" in page
    assert "1 of 150" in page
    assert "column price was added" in page
    assert "&lt;b&gt;odd&lt;/b&gt;" in page
    assert "<b>odd" not in page
    assert _SECRET not in page
    lake = Path(bronze.open(config).config.lake.root)
    for name in ("quality", "data_lineage", "profiles"):
        shutil.rmtree(lake / "governance" / name, ignore_errors=True)
    shutil.rmtree(lake / "governance" / "runs" / "_delta_log")
    (lake / "governance" / "runs" / "_delta_log").mkdir()
    page = bronze.open(config).report(tmp_path / "report.html").read_text()
    assert "No rows were scored in the last 30 days." in page


def test_the_command_writes_a_file_or_standard_output(config: Path, tmp_path: Path) -> None:
    """Of some tables if they are named; a name that is unknown is an error with a hint."""
    runner, out = CliRunner(), tmp_path / "r.html"
    done = runner.invoke(app, ["report", "-c", str(config), "-o", str(out), "--days", "7"])
    assert (done.exit_code, done.stdout.startswith(f"Wrote {out}: ")) == (0, True)
    assert "(7 days)" in out.read_text()
    one = runner.invoke(app, ["report", "orders", "-c", str(config), "-o", "-"])
    assert one.stdout.startswith("<!doctype html>")
    assert "public.orders" in one.stdout
    assert "odd&lt;" not in one.stdout
    wrong = runner.invoke(app, ["report", "nothing", "-c", str(config), "-o", str(out)])
    assert wrong.exit_code == 2
    assert "There is no table nothing" in wrong.output
