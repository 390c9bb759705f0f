"""Alerting as a whole: real channels, a real lake; deadlines, retries, kills."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bronze.config import loading
from bronze.config.settings import Settings
from bronze.failpoint import ALERT_POINTS
from bronze.operate.alerts import store
from bronze.operate.alerts.alerting import Advisors, Alerting
from bronze.operate.alerts.delivery import Terms
from bronze.operate.alerts.kinds import CHANNEL, KINDS
from bronze.operate.alerts.life import Alert, Condition, Key, Silence
from bronze.operate.breaker import Limits
from tests.support.receiver import Receiver, post_office, receiver

FAST = Terms(deadline=0.5, pause=0.05, limits=Limits(threshold=3, pause=0.2, longest=0.4))
ORDERS: Key = ("table_failed", "tests.orders")


@pytest.fixture(autouse=True)
def routing_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret of PagerDuty."""
    monkeypatch.setenv("KEY", "routing")


def document(lake: Path, *channels: dict[str, Any], **alerts: Any) -> dict[str, Any]:
    """A config with channels."""
    return {
        "source": {"name": "DE", "dsn": "postgresql://me@localhost/x"},
        "lake": {"root": str(lake)},
        "alerts": {"channels": list(channels), **alerts},
    }


def pager(url: str, name: str = "on-call") -> dict[str, Any]:
    """A PagerDuty channel."""
    return {"kind": "pagerduty", "name": name, "key": {"secret": "KEY"}, "url": url}


def hook(url: str, name: str = "team") -> dict[str, Any]:
    """A webhook."""
    return {"kind": "webhook", "name": name, "url": url}


def wrong(key: Key = ORDERS) -> Condition:
    """Something that is wrong."""
    return Condition(*key, KINDS[key[0]].level, datetime.now(UTC), f"{key[1]} failed")


@contextmanager
def alerting(settings: Settings, **more: Any) -> Iterator[Alerting]:
    """Alerting that is started and stopped."""
    made = Alerting(settings, **{"terms": FAST, **more})
    made.start()
    try:
        yield made
    finally:
        assert made.stop(10)


def open_alert(made: Alerting, *conditions: Condition) -> None:
    """Two evaluations with conditions."""
    for _ in range(2):
        made.evaluate(conditions, at_once=True)


def until(made: Alerting, is_so: Callable[[], bool], seconds: float = 15) -> None:
    """Waits until something is so."""
    with made.changed:
        assert made.changed.wait_for(is_so, seconds)


def events(server: Receiver) -> list[tuple[str, str]]:
    """What PagerDuty has got: the action and the key of each event."""
    bodies = [json.loads(request.body) for request in server.requests]
    return [(body["event_action"], body["dedup_key"]) for body in bodies]


def stored(settings: Settings) -> dict[Key, Alert]:
    """The alerts in the lake."""
    return store.load(settings) or {}


def acts(server: Receiver) -> list[tuple[str, str]]:
    """What a webhook has got: the act and the kind of each notice."""
    bodies = [json.loads(request.body) for request in server.requests]
    return [(body["act"], body["kind"]) for body in bodies]


def test_an_alert_is_opened_acknowledged_and_resolved_everywhere(tmp_path: Path) -> None:
    """Each channel gets each act once, and the lake has all of it."""
    with receiver() as server, receiver() as web:
        settings = loading.parse(document(tmp_path, pager(server.url), hook(web.url)))
        advisors = Advisors(lambda _: ["port 5432 is closed"], lambda _: list("abcd"))
        with alerting(settings, advisors=advisors) as made:
            open_alert(made, wrong())
            server.wait(1), web.wait(1)
            assert made.acknowledge(ORDERS, "ada", datetime.now(UTC))
            server.wait(2), web.wait(2)
            open_alert(made)
            server.wait(3), web.wait(3)
            until(made, lambda: not made.alerts[ORDERS].owed)
    assert [action for action, _ in events(server)] == ["trigger", "acknowledge", "resolve"]
    assert len({key for _, key in events(server)}) == 1
    assert [act for act, _ in acts(web)] == ["open", "acknowledge", "resolve"]
    text = json.loads(web.requests[0].body)["text"]
    assert "port 5432 is closed" in text
    assert "By itself: the next run" in text
    assert "  3. c" in text
    assert "  4." not in text
    last = stored(settings)[ORDERS]
    assert (last.state, last.by, last.owed, len(last.receipts)) == ("resolved", "ada", (), 6)


def test_a_condition_reaches_pagerduty_quickly(tmp_path: Path) -> None:
    """Within a second of the evaluation that opens it, stored before."""
    with receiver() as server:
        settings = loading.parse(document(tmp_path, pager(server.url)))
        with alerting(settings) as made:
            made.evaluate([wrong()])
            began = time.time()
            made.evaluate([wrong()])
            (request,) = server.wait(1)
            milliseconds = (request.at - began) * 1000
            print(f"condition to PagerDuty: {milliseconds:.0f} ms")
            assert milliseconds < 2000


def test_a_restart_neither_repeats_nor_forgets(tmp_path: Path) -> None:
    """The next process resolves what the one before has opened; nothing is opened again."""
    with receiver() as server:
        settings = loading.parse(document(tmp_path, pager(server.url)))
        with alerting(settings) as made:
            open_alert(made, wrong())
            until(made, lambda: bool(made.alerts[ORDERS].receipts))
        with alerting(settings) as made:
            open_alert(made, wrong())
            assert made.alerts[ORDERS].is_open
        with alerting(settings) as made:
            open_alert(made)
            server.wait(2)
            until(made, lambda: not made.alerts[ORDERS].owed)
    assert [action for action, _ in events(server)] == ["trigger", "resolve"]
    assert len({key for _, key in events(server)}) == 1


def test_a_channel_that_fails_is_told_by_the_others(tmp_path: Path) -> None:
    """When it is back, it gets what is still open, and not that it failed."""
    with receiver() as server, receiver() as web:
        server.answer(500, "no")
        settings = loading.parse(document(tmp_path, pager(server.url), hook(web.url)))
        with alerting(settings) as made:
            open_alert(made, wrong())
            deadline = time.monotonic() + 10
            while not (made.troubles().get("on-call") and len(server.requests) > 3):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            open_alert(made, wrong())
            web.wait(2)
            assert "answered 500: no" in json.loads(web.requests[1].body)["title"]
            server.answer(202, "{}")
            until(made, lambda: not made.alerts[ORDERS].owed)
            assert made.troubles() == {}
            open_alert(made, wrong())
            web.wait(3)
    assert acts(web) == [("open", "table_failed"), ("open", CHANNEL), ("resolve", CHANNEL)]
    assert {action for action, _ in events(server)} == {"trigger"}
    assert len({key for _, key in events(server)}) == 1


def test_what_is_resolved_before_it_was_sent_is_not_sent(tmp_path: Path) -> None:
    """A channel that refused the opening hears nothing when it is back."""
    with receiver() as server:
        url = server.url
    settings = loading.parse(document(tmp_path, pager(url)))
    with alerting(settings) as made:
        open_alert(made, wrong())
        deadline = time.monotonic() + 10
        while not made.troubles():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        open_alert(made)
        assert made.alerts[ORDERS].state == "resolved"
        until(made, lambda: not made.alerts[ORDERS].owed)
        until(made, lambda: True)
    assert stored(settings)[ORDERS].receipts == ()


def drip(connection: socket.socket) -> None:
    """A byte a second, for as long as somebody reads."""
    with suppress(OSError):
        for byte in itertools.cycle(b"220-slow "):
            connection.sendall(bytes([byte]))
            time.sleep(0.1)


def test_a_tarpit_and_a_name_that_is_never_resolved_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline holds for the whole send; the other channels are not kept waiting, and the
    number of attempts that hang is bounded.
    """
    release, resolve = threading.Event(), socket.getaddrinfo

    def slow(host: Any, *arguments: Any, **more: Any) -> Any:
        if host == "never.example.com":
            release.wait(60)
        return resolve(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with post_office() as office, receiver() as server:
        office.speak = drip
        mail = {
            "kind": "email",
            "name": "mail",
            "server": f"localhost:{office.port}",
            "tls": "none",
            "sender": "bronze@example.com",
            "to": "ada@example.com",
        }
        nowhere = hook("http://never.example.com:1/", "nowhere")
        settings = loading.parse(document(tmp_path, mail, nowhere, pager(server.url)))
        with alerting(settings) as made:
            began = time.monotonic()
            open_alert(made, wrong())
            server.wait(1)
            assert time.monotonic() - began < 3
            while len(made.troubles()) < 2:
                assert time.monotonic() - began < 10
                time.sleep(0.02)
            assert {t.error for t in made.troubles().values()} == {"no answer within 0.5 s"}
            while ["earlier" in t.error for t in made.troubles().values()] != [True] * 2:
                assert time.monotonic() - began < 20
                time.sleep(0.05)
            hanging = [t for t in threading.enumerate() if t.name.startswith("bronze-send-")]
            assert len(hanging) <= 6
            began = time.monotonic()
        assert time.monotonic() - began < 5
        release.set()
        office.speak = None
        assert events(server)[0][0] == "trigger"
    for thread in hanging:
        thread.join(10)


def test_a_lake_that_is_gone_keeps_no_message_back(tmp_path: Path) -> None:
    """What could not be stored is stored when it is back; it was sent once."""
    lake = tmp_path / "lake"
    lake.write_text("no folder")
    with receiver() as server:
        settings = loading.parse(document(lake, pager(server.url)))
        made = Alerting(settings, terms=FAST)
        made.start()
        open_alert(made, wrong(("lake_unreachable", "")))
        server.wait(1)
        assert made.storage_error
        lake.unlink()
        deadline = time.monotonic() + 15
        while made.storage_error or not stored(settings):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        open_alert(made, wrong(("lake_unreachable", "")))
        assert made.stop(10)
        assert len(server.requests) == 1
    assert stored(settings)["lake_unreachable", ""].is_open


def test_a_new_config_keeps_the_alerts_that_could_not_be_stored(tmp_path: Path) -> None:
    """What was sent while the lake was away is not sent again, and resolved as what it was."""
    lake = tmp_path / "lake"
    lake.write_text("no folder")
    key: Key = ("lake_unreachable", "")
    with receiver() as server:
        settings = loading.parse(document(lake, pager(server.url)))
        before = Alerting(settings, terms=FAST)
        before.start()
        open_alert(before, wrong(key))
        server.wait(1)
        until(before, lambda: not before.alerts[key].owed)
        before.stop(1)
        after = Alerting(settings, terms=FAST, known=before.alerts)
        after.start()
        open_alert(after, wrong(key))
        lake.unlink()
        deadline = time.monotonic() + 15
        while after.storage_error or not stored(settings):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        open_alert(after)
        server.wait(2)
        assert after.stop(10)
        (opened, first), (resolved, last) = events(server)
        assert (opened, resolved, first) == ("trigger", "resolve", last)
    assert not stored(settings)[key].is_open


def test_a_lake_that_hangs_keeps_no_message_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given a moment; the process ends in time without it."""
    release, append = threading.Event(), store.append

    def hang(*arguments: Any, **more: Any) -> None:
        release.wait(60)
        append(*arguments, **more)

    monkeypatch.setattr(store, "append", hang)
    monkeypatch.setattr("bronze.operate.alerts.alerting._STORED_WITHIN", 0.1)
    with receiver() as server:
        settings = loading.parse(document(tmp_path, pager(server.url)))
        made = Alerting(settings, terms=FAST)
        made.start()
        open_alert(made, wrong())
        server.wait(1, seconds=5)
        began = time.monotonic()
        assert not made.stop(0.3)
        assert time.monotonic() - began < 2
        release.set()
        assert made.stop(10)
    assert stored(settings)[ORDERS].is_open


def test_alerts_of_an_earlier_process_are_resolved_though_they_were_read_late(
    tmp_path: Path,
) -> None:
    """The lake was away at the start: what was opened twice is resolved twice."""
    lake = tmp_path / "lake"
    with receiver() as server:
        settings = loading.parse(document(lake, pager(server.url)))
        with alerting(settings) as made:
            open_alert(made, wrong())
            until(made, lambda: bool(made.alerts[ORDERS].receipts))
        shutil.move(lake, tmp_path / "away")
        lake.write_text("no folder")
        made = Alerting(settings, terms=FAST)
        made.start()
        open_alert(made, wrong())
        server.wait(2)
        lake.unlink()
        shutil.move(tmp_path / "away", lake)
        server.wait(3)
        open_alert(made)
        server.wait(4)
        assert made.stop(10)
    (first, second) = dict.fromkeys(key for _, key in events(server))
    assert events(server) == [
        ("trigger", first),
        ("trigger", second),
        ("resolve", first),
        ("resolve", second),
    ]


def test_silenced_alerts_are_stored_and_sent_when_the_silence_ends(tmp_path: Path) -> None:
    """What is still open then."""
    with receiver() as server:
        settings = loading.parse(document(tmp_path, pager(server.url)))
        now = datetime.now(UTC)
        silence = Silence("table_*", "*", now + timedelta(minutes=5), "work")
        with alerting(settings) as made:
            for seconds in (0, 10):
                made.evaluate([wrong()], [silence], now + timedelta(seconds=seconds))
            assert stored(settings)[ORDERS].state == "open"
            assert server.requests == []
            made.evaluate([wrong()], [silence], now + timedelta(minutes=5))
            server.wait(1)


def test_a_thousand_alerts_of_one_outage_are_one_message(tmp_path: Path) -> None:
    """Also in the lake."""
    down = wrong(("source_unreachable", "DE"))
    tables = [
        Condition("table_failed", f"t{n}", "critical", down.since, "failed", causes=(down.key,))
        for n in range(1000)
    ]
    with receiver() as server:
        settings = loading.parse(document(tmp_path, pager(server.url)))
        with alerting(settings) as made:
            open_alert(made, down, *tables)
            server.wait(1)
            until(made, lambda: not made.alerts[down.key].owed)
            open_alert(made)
            server.wait(2)
            until(made, lambda: not made.alerts[down.key].owed)
    assert [action for action, _ in events(server)] == ["trigger", "resolve"]
    assert "1,000 other alerts" in server.requests[0].body.decode()
    assert list(stored(settings)) == [down.key]


CHILD = """
import json, sys, time
from datetime import UTC, datetime, timedelta
from bronze.config import loading
from bronze.operate.alerts.alerting import Alerting
from bronze.operate.alerts.delivery import Terms
from bronze.operate.alerts.life import Condition
made = Alerting(loading.parse(json.loads(sys.argv[1])), terms=Terms(pause=0.05))
made.start()
now = datetime.now(UTC)
conditions = [Condition("table_failed", "tests.orders", "critical", now, "failed")]
for what in (conditions, conditions, [], []) if sys.argv[2] == "all" else ([], []):
    made.evaluate(what, at_once=True)
    with made.changed:
        made.changed.wait_for(lambda: not any(a.owed for a in made.alerts.values()), 10)
assert made.stop(10)
"""


@pytest.mark.soak
@pytest.mark.parametrize(
    "point",
    [*(f"{p}:{n}" for p in ("sending", "answered") for n in (1, 2)), "alerted:2", "alerted:4"]
    + [f"{p}:{n}" for p in ("file", "commit", "committed") for n in (1, 2, 3, 4)],
)
def test_a_kill_at_any_step_loses_no_alert(point: str, tmp_path: Path) -> None:
    """The next process resolves what was opened, under the same key; nothing stays owed."""
    assert point.partition(":")[0] in (*ALERT_POINTS, "file", "commit", "committed")
    with receiver() as server:
        made = json.dumps(document(tmp_path, pager(server.url)))
        command = [sys.executable, "-c", CHILD, made]
        env = {**os.environ, "BRONZE_FAILPOINT": point}
        killed = subprocess.run([*command, "all"], env=env, check=False)
        assert killed.returncode == -signal.SIGKILL
        # Nothing is wrong any more when the next process begins.
        subprocess.run([*command, "none"], check=True)
        settings = loading.parse(json.loads(made))
        alerts = stored(settings)
        got = events(server)
    assert len({key for _, key in got}) <= 1
    if got:
        assert got[-1][0] == "resolve"
    for alert in alerts.values():
        assert (alert.state, alert.owed) == ("resolved", ())


@pytest.mark.soak
@pytest.mark.parametrize(
    "point",
    ["file:1", "commit:1", "committed:1", "alerted:2", "sending:1", "answered:1", "committed:2"],
)
def test_what_goes_on_after_a_kill_is_told_once(point: str, tmp_path: Path) -> None:
    """The next process finds the same thing wrong: one incident, which is resolved at the end."""
    with receiver() as server:
        command = [sys.executable, "-c", CHILD, json.dumps(document(tmp_path, pager(server.url)))]
        env = {**os.environ, "BRONZE_FAILPOINT": point}
        killed = subprocess.run([*command, "all"], env=env, check=False)
        assert killed.returncode == -signal.SIGKILL
        subprocess.run([*command, "all"], check=True)
        got = events(server)
    assert len({key for _, key in got}) == 1
    assert [action for action, _ in got][-1] == "resolve"
    assert [action for action, _ in got].count("trigger") == (2 if point == "answered:1" else 1)


def test_the_table_is_readable_by_anybody(tmp_path: Path) -> None:
    """Each change is a row, with the id of the opening that channels know it by."""
    with receiver() as server:
        settings = loading.parse(document(tmp_path, pager(server.url)))
        with alerting(settings) as made:
            open_alert(made, wrong())
            until(made, lambda: bool(made.alerts[ORDERS].receipts))
    rows = pl.read_delta(str(tmp_path / "governance" / "alerts")).sort("recorded_timestamp")
    assert set(rows["alert_id"]) == {events(server)[0][1]}
    assert rows["state"].to_list() == ["open", "open"]
    assert json.loads(rows["receipts"][-1])[0]["answer"] == "202 Event processed"
