"""The service tells people: one outage is one message, and its notice says what to do."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from datetime import datetime
from typing import Any

import pytest

from bronze.config.settings import Settings
from bronze.demo.server import Server
from bronze.operate import beat
from bronze.operate.alerts import store
from bronze.operate.alerts.life import Condition
from bronze.operate.conditions import conditions_of
from bronze.operate.service import alarms, service, watch
from bronze.operate.tables import requests
from tests.conftest import Source
from tests.integration.operate.test_service import config, make
from tests.integration.operate.test_service_failures import stopped
from tests.support.receiver import Receiver, receiver
from tests.support.serving import Hands, serving, until

OUTAGE = ("source_unreachable", "test")


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in (
        (watch, "_LISTED_EVERY", 0.5),
        (watch, "_AGAIN", 0.2),
        (alarms, "_EVALUATED_EVERY", 0.3),
        (alarms, "_BEAT_EVERY", 0.3),
    ):
        monkeypatch.setattr(module, name, seconds)


def with_channel(database: Source, url: str, heartbeat: str = "", **sections: Any) -> Settings:
    """A config with a channel, and tables that are due all the time."""
    channel = {"kind": "webhook", "name": "own", "url": url}
    usual = {
        "alerts": {"channels": [channel], "heartbeat": heartbeat},
        "serve": {"schedule": {"full_refresh": "every 10s", "maintain": "", "verify": ""}},
        "breaker": {"threshold": 2, "pause": 1, "longest": 1},
    }
    return config(database, **{**usual, **sections})


@pytest.mark.soak
def test_an_outage_of_a_source_is_one_message(server: Server, source: Source) -> None:
    """However many tables suffer: about the source, with its cause and the first steps."""
    make(source, *(f"t{number}" for number in range(12)))
    with receiver() as inbox:
        settings = with_channel(source, inbox.url)
        hands = Hands()
        with serving(settings, hands) as own:
            until(lambda: own.landed("public.t11"))
            with stopped(server, source):
                (message,) = inbox.wait(1)
                hands.move(seconds=10)
                until(lambda: len(own.service.board.waiting) == 12)
                until(lambda: [a.key for a in own.service.overview.view.alerts] == [OUTAGE])
    assert len(inbox.requests) == 1
    notice = json.loads(message.body)
    assert (notice["kind"], notice["subject"]) == OUTAGE


def test_the_heartbeat_is_fetched_while_alerts_could_be_told(source: Source) -> None:
    """Not once the lake cannot store them."""
    make(source, "word")
    with receiver() as inbox:
        settings = with_channel(source, inbox.url, heartbeat=f"{inbox.url}/alive")
        with serving(settings) as own:
            until(lambda: [r for r in inbox.requests if r.path == "/alive"])
            own.service._alarms.error = "the lake is away"
            assert not own.service._alarms._is_well()
            own.service._alarms.error = ""
            assert own.service._alarms._is_well()
            own.service.overview.routine.fault = "Panic"
            assert not own.service._alarms._is_well()
    assert alarms.fetch("http://127.0.0.1:1/") != ""


def test_a_heartbeat_that_is_never_answered_takes_one_thread(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is tried: a service runs for months."""
    make(source, "word")
    release, begun = threading.Event(), list[str]()

    def hang(url: str) -> str:
        begun.append(url)
        release.wait(60)
        return ""

    monkeypatch.setattr(alarms, "fetch", hang)
    monkeypatch.setattr(alarms, "_FETCH_TIMEOUT", 0.05)
    with serving(config(source, alerts={"heartbeat": "http://127.0.0.1:1/"})) as own:
        until(lambda: own.service._alarms._missed)
        for _ in range(3):
            own.service._alarms._beat()
        assert begun == ["http://127.0.0.1:1/"]
        release.set()
        until(lambda: len(begun) > 1)


def test_what_was_late_since_the_last_service_was_heard_is_looked_for_at_the_start(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else has seen it; only for the time that it takes to open an alert."""
    make(source, "word")
    settings, asked = config(source), list[datetime | None]()

    def conditions(*arguments: Any) -> list[Condition]:
        asked.append(arguments[3])
        return conditions_of(*arguments)

    monkeypatch.setattr(alarms, "conditions_of", conditions)
    monkeypatch.setattr(alarms, "_TOLD_FOR", 0.5)
    with serving(settings):
        until(lambda: asked)
    last = beat.read(settings)
    assert last
    assert asked[0] is None
    asked.clear()
    with serving(settings):
        until(lambda: None in asked)
    assert asked[0] == last.at


def test_the_dashboard_shows_what_the_service_knows(source: Source) -> None:
    """It is served by the service's process, and ends with it."""
    make(source, "word")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = config(source, web={"listen": f"127.0.0.1:{port}"})
    stop = threading.Event()
    thread = threading.Thread(target=lambda: service.serve(settings, stop=stop))
    thread.start()

    def get(path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    try:
        until(lambda: "alive" in get("/live"))
        until(lambda: "public.word" in get("/"))
        until(lambda: "bronze_" in get("/metrics"))
    finally:
        stop.set()
        thread.join(20)
    assert get("/live") == ""


def test_once_tells_what_has_failed(source: Source) -> None:
    """Before it ends: a service that is started by cron evaluates its alerts as well."""
    make(source, "good")
    source.execute("CREATE VIEW bad AS SELECT 1 / 0 AS id")
    with receiver() as inbox:
        settings = config(
            source,
            source={"tables": ["good", "bad"]},
            tables={"gone": {"priority": 1}},
            alerts={"channels": [{"kind": "webhook", "name": "own", "url": inbox.url}]},
        )
        with serving(settings, once=True) as own:
            pass
        kinds = {json.loads(request.body)["kind"] for request in inbox.wait(2)}
    assert own.code == 1
    assert kinds == {"table_failed", "config_invalid"}


def told(inbox: Receiver) -> list[tuple[str, str]]:
    """What a channel has got: the act and the kind of each notice."""
    notices = [json.loads(request.body) for request in inbox.requests]
    return [(notice["act"], notice["kind"]) for notice in notices]


def run_once(settings: Settings) -> int | None:
    """The exit code of a service that does what is due, as cron starts it."""
    with serving(settings, once=True) as own:
        pass
    return own.code


def test_once_resolves_what_an_earlier_one_has_told(source: Source) -> None:
    """When it has looked at everything and finds it no more; those who were told hear it before it
    ends.
    """
    source.execute("CREATE TABLE divisor (by int)")
    source.execute("INSERT INTO divisor VALUES (0)")
    # Its run takes longer than it does until the alerts are evaluated first.
    source.execute("CREATE VIEW bad AS SELECT 1 / by AS id, pg_sleep(1)::text AS word FROM divisor")
    with receiver() as inbox:
        settings = with_channel(source, inbox.url, breaker={"threshold": 9})
        assert run_once(settings) == 1
        ((act, kind),) = told(inbox)
        run_once(settings)
        assert len(inbox.requests) == 1
        source.execute("UPDATE divisor SET by = 1")
        requests.request(settings, "now", ["bad"])
        assert run_once(settings) == 0
        assert (act, told(inbox)[1:]) == ("open", [("resolve", kind)])
        assert run_once(settings) == 0
    assert len(inbox.requests) == 2
    (alert,) = (store.load(settings) or {}).values()
    assert alert.state == "resolved"


def test_once_tells_that_a_source_is_away_and_resolves_nothing_that_it_cannot_see(
    source: Source,
) -> None:
    """Such as a table that the config has and the source does not."""
    make(source, "word")
    # A table that is due again while its source is away has failed, which is another exit code.
    rarely = {"schedule": {"full_refresh": "every 24h", "maintain": "", "verify": ""}}
    with receiver() as inbox:
        missing = with_channel(source, inbox.url, tables={"gone": {}}, serve=rarely)
        assert run_once(missing) == 0
        away = {"dsn": "host=127.0.0.1 port=1 dbname=x user=x"}
        assert run_once(with_channel(source, inbox.url, source=away, serve=rarely)) == 3
        assert told(inbox) == [("open", "config_invalid"), ("open", "source_unreachable")]
        assert run_once(with_channel(source, inbox.url, serve=rarely)) == 0
    ends = [("resolve", "config_invalid"), ("resolve", "source_unreachable")]
    assert sorted(told(inbox)[2:]) == ends


@pytest.mark.soak
def test_once_tells_which_channel_fails(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns that when it has something to tell; what was owed is sent, and that is over."""
    monkeypatch.setattr(alarms, "_SENT_WITHIN", 1)
    make(source, "word")
    with receiver() as inbox, receiver() as other:
        other.answer(500)
        settings = config(
            source,
            tables={"gone": {}},
            alerts={
                "channels": [
                    {"kind": "webhook", "name": "own", "url": inbox.url},
                    {"kind": "webhook", "name": "other", "url": other.url},
                ]
            },
        )
        for _ in range(2):
            run_once(settings)
            assert told(inbox) == [("open", "config_invalid"), ("open", "channel")]
        other.answer(200)
        run_once(settings)
    assert told(inbox)[2:] == [("resolve", "channel")]


@pytest.mark.soak
def test_once_looks_for_personal_data_and_keys(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, however soon all else is done; and finds when it is right again."""
    monkeypatch.setattr(watch, "_EXAMINED_AGAIN", 0.1)
    source.execute("CREATE TABLE person (id int PRIMARY KEY, email text)")
    with receiver() as inbox:
        settings = with_channel(source, inbox.url)
        assert run_once(settings) == 0
        assert told(inbox) == [("open", "personal_data")]
        clear = with_channel(source, inbox.url, tables={"person": {"protect": {"email": "clear"}}})
        assert run_once(clear) == 0
    assert told(inbox) == [("open", "personal_data"), ("resolve", "personal_data")]


@pytest.mark.soak
def test_once_tells_that_a_stream_is_down(source: Source) -> None:
    """As a whole, such as where another one has its slot."""
    source.execute("CREATE TABLE live (id int PRIMARY KEY)")
    source.execute("SELECT pg_create_physical_replication_slot('standby_of_alerts')")
    with receiver() as inbox:
        settings = with_channel(
            source,
            inbox.url,
            tables={"live": {"pattern": "streaming"}},
            stream={"slot": "standby_of_alerts"},
        )
        try:
            assert run_once(settings) == 1
        finally:
            source.execute("SELECT pg_drop_replication_slot('standby_of_alerts')")
    assert told(inbox) == [("open", "stream_down")]
