"""``bronze status`` on real lakes: after runs, failures and streams, with and without a service."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import bronze
from bronze.cli.main import app
from bronze.config.settings import Settings
from bronze.operate import beat
from bronze.operate.alerts import store
from bronze.operate.alerts.life import Alert, Condition, Receipt
from bronze.operate.history import History
from bronze.operate.status import status_of
from bronze.operate.view import Live
from tests.conftest import Source

NAMES = {
    "view": {"now", "sentence", "metrics", "tables", "alerts", "live", "is_alive", "sources"},
    "metric": {"name", "state", "value", "threshold", "level", "worst", "why", "recent"},
    "table": {
        *("table", "source", "target", "key", "pattern", "priority", "schedule", "state", "why"),
        *("sla", "as_of", "age", "deadline", "slack", "late", "lates", "next_due"),
        *(
            "expected",
            "expected_end",
            "running",
            "score",
            "scored_rows",
            "scored_at",
            "failed",
            "last",
            "last_read",
            "died",
            "verified",
        ),
        *("pause", "breaker"),
    },
}
TABLES = """
[tables.orders]
pattern = "micro_batch"
schedule = "hourly"
sla = "10m"
"""


@pytest.fixture
def config(source: Source, tmp_path: Path) -> Path:
    """A config of a source with two tables, one of which cannot be read."""
    source.execute("CREATE TABLE orders (id int PRIMARY KEY, word text)")
    source.execute("INSERT INTO orders SELECT n, 'word' FROM generate_series(1, 150) n")
    source.execute("CREATE VIEW broken AS SELECT 1 / 0 AS id")
    return written(source, tmp_path, TABLES)


def written(source: Source, folder: Path, tables: str) -> Path:
    """A config file."""
    path = folder / "bronze.toml"
    path.write_text(f"""
[source]
name = "shop"
dsn = "{source.dsn}"
schema = "public"
[lake]
root = "{source.lake}"
[run]
max_retries = 0
workers = 2
[stream]
interval = 0
{tables}
""")
    return path


def status(config: Path, *arguments: str) -> Result:
    """The command."""
    return CliRunner().invoke(app, ["status", "-c", str(config), *arguments])


def document(config: Path, *arguments: str) -> Any:
    """Its JSON."""
    return json.loads(status(config, "--json", *arguments).stdout)


def live(settings: Settings, age: timedelta, **facts: Any) -> None:
    """A service that was heard that long ago."""
    then = datetime.now(UTC) - age
    beat.write(settings, Live("id", "host-1", 1, "0.1", began=then - age, at=then, **facts))


def test_status_follows_the_lake(config: Path, source: Source) -> None:
    """Without a lake it cannot be reached; then it has what ran, failed, and never landed."""
    nothing = status(config)
    assert nothing.exit_code == 3
    assert "There is no lake" in nothing.output
    bronze.open(config).run()
    found = status(config)
    assert found.exit_code == 0, found.output
    assert found.output.startswith("No service has run. No table is late, but of 2 tables 1 failed")
    assert all(len(line) <= 80 for line in found.output.splitlines() if line.startswith("public."))
    by_name = {table["table"]: table for table in document(config)["tables"]}
    assert {name: table["state"] for name, table in by_name.items()} == {
        "public.orders": "fresh",
        "public.broken": "failed",
    }
    assert by_name["public.orders"]["last"]["rows_read"] == 150
    config.write_text(config.read_text() + '[tables.later]\npattern = "batch"\n')
    later = status(config, "later")
    assert "shop.public.later is never landed" in later.output
    shutil.rmtree(source.lake)
    assert status(config, "--json").exit_code == 3


def test_a_table_is_shown_with_its_last_runs(config: Path) -> None:
    """By any of its names; errors with their hints; an unknown one is an error."""
    opened = bronze.open(config)
    for _ in range(2):
        opened.run()
    page = status(config, "broken")
    assert page.exit_code == 0
    assert page.output.count("failed") >= 3
    assert "TableRefused: " in page.output
    (table,) = document(config, "bronze.bz_orders")["tables"]
    assert [run["status"] for run in table["runs"]] == ["unchanged", "landed"]
    assert set(table) == {*NAMES["table"], "runs"}
    unknown = status(config, "nope")
    assert unknown.exit_code == 2
    assert "public.orders" in unknown.output


def test_lateness_and_open_alerts_exit_with_1(config: Path) -> None:
    """A table is late an hour later; an alert that is open is shown with who was told."""
    # It is due at three o'clock, whenever the test runs.
    config.write_text(f'{config.read_text()}\n[tables.broken]\nsla = "30d"\n')
    bronze.open(config).run()
    settings, now = Settings.from_file(config), datetime.now(UTC)
    assert status_of(settings, (), now).exit_code == 0
    late = status_of(settings, (), now + timedelta(minutes=75))
    assert late.exit_code == 1
    assert late.view.sentence.startswith("No service has run. 1 of 2 tables is late; orders since")
    condition = Condition("table_failed", "shop.public.broken", "critical", now, "It failed.")
    receipts = (Receipt("open", "on-call", now, "ok"),)
    alert = Alert(condition, state="open", opened=now, seen=now, receipts=receipts)
    store.append(settings, [alert], create=True)
    shown = status(config)
    assert shown.exit_code == 1
    assert "table_failed:shop.public.broken  critical" in shown.output
    assert "told: on-call" in shown.output
    assert status(config, "orders").exit_code == 0
    assert status(config, "broken").exit_code == 1


def test_it_says_when_the_service_is_dead(config: Path) -> None:
    """And when it lives."""
    bronze.open(config).run(["orders"])
    settings = Settings.from_file(config)
    live(settings, timedelta(hours=3))
    assert status(config).output.startswith("The service on host host-1 was last heard 3 h ago. ")
    live(settings, timedelta(seconds=1))
    assert status(config).output.startswith("The one table is fresh.")


def test_a_table_that_was_dropped_is_not_shown(config: Path) -> None:
    """The service knows the tables of the catalog; what ran since it was heard is new to it."""
    bronze.open(config).run()
    settings = Settings.from_file(config)
    live(settings, timedelta(hours=3), tables=("shop.public.orders",))
    assert len(document(config)["tables"]) == 2
    live(settings, timedelta(), tables=("shop.public.orders",))
    assert [table["table"] for table in document(config)["tables"]] == ["public.orders"]


def test_the_names_in_the_json_stay(config: Path) -> None:
    """Programs read them."""
    bronze.open(config).run()
    live(Settings.from_file(config), timedelta(seconds=1))
    found = document(config)
    assert set(found) == {*NAMES["view"], "is_well"}
    assert {frozenset(metric) for metric in found["metrics"]} == {frozenset(NAMES["metric"])}
    assert [metric["name"] for metric in found["metrics"]] == [
        "freshness",
        "quality",
        "duration",
        "failed",
        "resources",
    ]
    assert {frozenset(table) for table in found["tables"]} == {frozenset(NAMES["table"])}
    assert datetime.fromisoformat(found["now"]).tzinfo


def test_a_streamed_table_is_known_by_its_checkpoints(source: Source, tmp_path: Path) -> None:
    """Fresh as of the last one, late when that is too long ago."""
    source.execute("CREATE TABLE clicks (id int PRIMARY KEY)")
    config = written(source, tmp_path, '[tables.clicks]\npattern = "streaming"\nsla = "5m"\n')
    settings = Settings.from_file(config)
    bronze.open(config).stream(until_caught_up=True)
    now = datetime.now(UTC)
    (table,) = status_of(settings, (), now).view.tables
    assert (table.table, table.state, table.target) == (
        "public.clicks",
        "fresh",
        "bronze.bz_clicks",
    )
    assert table.as_of is not None
    assert now - table.as_of < timedelta(minutes=1)
    assert status_of(settings, (), now + timedelta(minutes=6)).exit_code == 1


def test_a_history_is_kept_up_with_other_processes(config: Path) -> None:
    """With each run, and where maintenance has rewritten the files of the records."""
    opened, settings = bronze.open(config), Settings.from_file(config)
    history = History(settings)
    assert history.refresh() == frozenset()
    for _ in range(3):
        opened.run()
        assert history.refresh() == {"shop.public.orders", "shop.public.broken"}
        assert history.refresh() == frozenset()
    opened.maintain()
    opened.run(["orders"])
    assert "shop.public.orders" in history.refresh()
    anew = History(settings)
    anew.refresh()
    assert history.tables == anew.tables
    assert history.runs("shop.public.orders") == anew.runs("shop.public.orders")
    assert len(history.runs("shop.public.orders")) == 4
