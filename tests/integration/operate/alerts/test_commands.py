"""``bronze alerts``: list, ack, silence, test, as they are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bronze.cli.main import app
from bronze.config.settings import Settings
from bronze.operate import controls
from bronze.operate.alerts import store
from bronze.operate.alerts.alerting import Alerting
from bronze.operate.alerts.life import Condition
from tests.support.receiver import Receiver, receiver

ORDERS = "table_failed:tests.orders"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """PagerDuty and a webhook in one."""
    monkeypatch.setenv("KEY", "routing")
    with receiver() as made:
        yield made


@pytest.fixture
def config(tmp_path: Path, server: Receiver) -> Path:
    """A config with two channels."""
    path = tmp_path / "bronze.toml"
    path.write_text(f"""
[source]
name = "DE"
dsn = "postgresql://me@localhost/x"
[lake]
root = "lake"
[[alerts.channels]]
kind = "pagerduty"
name = "on-call"
key = {{ secret = "KEY" }}
url = "{server.url}"
[[alerts.channels]]
kind = "webhook"
name = "team"
url = "{server.url}/team"
""")
    return path


def bronze(config: Path, *arguments: str) -> Result:
    """A command of `bronze alerts`."""
    return CliRunner().invoke(app, ["alerts", *arguments, "-c", str(config)])


def document(config: Path, *arguments: str) -> Any:
    """The JSON of a command."""
    return json.loads(bronze(config, *arguments, "--json").stdout)


def opened(config: Path, server: Receiver) -> Alerting:
    """A service whose table has failed."""
    alerting = Alerting(Settings.from_file(config))
    alerting.start()
    for _ in range(2):
        alerting.evaluate([failed()])
    server.wait(2)
    with alerting.changed:
        alerting.changed.wait_for(lambda: not any(a.owed for a in alerting.alerts.values()), 10)
    # It waits until all is stored.
    alerting.evaluate([failed()])
    return alerting


def failed() -> Condition:
    """The condition of the table."""
    return Condition(*controls.key_of(ORDERS), "critical", datetime.now(UTC), "orders failed")


def test_an_alert_is_listed_and_acknowledged(config: Path, server: Receiver) -> None:
    """The acknowledgement is in the lake and in the audit log; the service follows it, for this
    opening only.
    """
    assert bronze(config, "list").stdout == "No alert is open.\n"
    alerting = opened(config, server)
    try:
        (report,) = document(config, "list")
        assert (report["alert"], report["state"]) == (ORDERS, "open")
        assert sorted(report["told"]) == ["on-call", "team"]
        assert ORDERS in bronze(config, "list").stdout
        refused = bronze(config, "ack", "table_failed:tests.items")
        assert refused.exit_code == 2
        assert f"There are: {ORDERS}" in refused.stderr
        assert bronze(config, "ack", ORDERS, "--reason", "I look").exit_code == 0
        settings = Settings.from_file(config)
        requests = controls.read(settings)
        assert [(r.action, r.subject, r.reason) for r in requests] == [
            ("acknowledge", ORDERS, "I look")
        ]
        alerting.follow(requests)
        alerting.follow(requests)
        server.wait(4)
        for _ in range(2):
            alerting.evaluate([], at_once=True)
        server.wait(6)
        for _ in range(2):
            alerting.evaluate([failed()])
        alerting.follow(requests)
        assert alerting.alerts[failed().key].state == "open"
    finally:
        assert alerting.stop(10)
    audit = CliRunner().invoke(app, ["audit", "-c", str(config), "--json"])
    records = json.loads(audit.stdout)["records"]
    assert [(r["action"], r["subject"]) for r in records if r["action"] != "config"] == [
        ("acknowledge", ORDERS)
    ]


def test_a_silence_has_an_end_and_a_reason(config: Path, server: Receiver) -> None:
    """And is about a kind that exists; the service gets it from the lake."""
    for arguments, message in (
        (("table_failed:*", "--until", "2h"), "--reason"),
        (("table_failed:*", "--reason", "work"), "--until"),
        (("table_failed:*", "--until", "2h", "--reason", " "), "needs a reason"),
        (("tabel_failed:*", "--until", "2h", "--reason", "work"), "There is no kind of alerts"),
        (("table_failed:*", "--until", "soon", "--reason", "work"), "is not a time"),
        (("table_failed:*", "--until", "2020-01-01", "--reason", "work"), "already"),
    ):
        result = bronze(config, "silence", *arguments)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert controls.read(Settings.from_file(config)) == []
    assert bronze(config, "silence", "table_*", "--until", "2h", "--reason", "work").exit_code == 0
    (silence,) = controls.silences(controls.read(Settings.from_file(config)))
    assert (silence.kind, silence.subject, silence.reason) == ("table_*", "*", "work")
    left = silence.until - datetime.now(UTC)
    assert timedelta(minutes=119) < left <= timedelta(hours=2)
    alerting = opened(config, server)
    assert alerting.stop(10)
    assert "silenced until" in bronze(config, "list").stdout


def test_a_test_goes_the_whole_way(config: Path, server: Receiver) -> None:
    """It is sent, stored and recorded; it may be repeated at once, and touches no other alert."""
    alerting = opened(config, server)
    assert alerting.stop(10)
    for _ in range(2):
        result = document(config, "test")
        assert [(a["channel"], a["error"]) for a in result["answers"]] == [
            ("on-call", ""),
            ("team", ""),
        ]
        assert result["answers"][0]["opened"] == "202 Event processed"
    stored = store.load(Settings.from_file(config)) or {}
    states = {key[0]: alert.state for key, alert in stored.items()}
    assert states == {"table_failed": "open", "test": "resolved"}
    actions = [json.loads(request.body).get("event_action") for request in server.requests]
    assert [action for action in actions if action] == [
        "trigger",
        *["trigger", "resolve"] * 2,
    ]


def test_a_test_names_the_channel_that_fails(config: Path, server: Receiver) -> None:
    """With what it answered; the others are tried all the same."""
    server.answer(400, "invalid key")
    result = bronze(config, "test")
    assert result.exit_code == 1
    assert "on-call (pagerduty): localhost answered 400: invalid key" in result.stderr
    assert "team (webhook): localhost answered 400" in result.stderr
    config.write_text(config.read_text().split("[[alerts")[0])
    result = bronze(config, "test")
    assert (result.exit_code, "has no channels" in result.stderr) == (2, True)


def test_a_test_needs_no_lake(config: Path, server: Receiver) -> None:
    """What the channels answer is printed, and that nothing could be stored."""
    (config.parent / "lake").write_text("no folder")
    result = bronze(config, "test")
    assert result.exit_code == 1
    assert "on-call (pagerduty): opened: 202 Event processed; resolved: 202" in result.stdout
    assert "was not stored" in result.stderr
