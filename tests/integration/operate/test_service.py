"""The service: what is due runs once, in the right order, and as operators ask."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import bronze
from bronze.cli.main import app
from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.operate import beat, controls
from bronze.operate.metrics import processing_of
from bronze.operate.tables import requests
from bronze.operate.tables.guards import table_subject
from tests.conftest import Source
from tests.support.content import differences
from tests.support.serving import Hands, serving, until

NOON = datetime(2026, 3, 2, 12, 0, 1, tzinfo=UTC)
NEVER = {"maintain": "", "verify": ""}


def make(source: Source, *names: str) -> None:
    """Tables with a few rows."""
    for name in names:
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, word text)")
        source.execute(f"INSERT INTO {name} SELECT g, 'w' || g FROM generate_series(1, 20) g")


def config(database: Source, **sections: Any) -> Settings:
    """A config whose tables are due each hour, and without chores."""
    serve = {"schedule": {"full_refresh": "hourly", **NEVER}, **sections.pop("serve", {})}
    return database.settings(serve=serve, **sections)


@pytest.mark.soak
def test_due_tables_run_once_and_the_urgent_one_first(source: Source) -> None:
    """One run at once: three tables that were due at different times run by priority."""
    make(source, "low", "urgent", "usual")
    settings = config(
        source,
        serve={"runs": 1},
        tables={
            "low": {"priority": 5, "schedule": "every 50m"},
            "urgent": {"priority": 1, "schedule": "every 35m"},
            "usual": {"priority": 2, "schedule": "hourly"},
        },
    )
    with serving(settings, Hands(NOON - timedelta(hours=1)), once=True) as first:
        pass
    assert len(first.runs()) == 3
    with serving(settings, Hands(NOON + timedelta(minutes=25))) as own:
        until(lambda: len(own.landed("public.low")) == 2)
        runs = own.runs()[3:]
        order = [record.source_table for record in runs]
        dues = {record.source_table: record.scheduled for record in runs}
    assert own.code == 0
    assert order == ["public.urgent", "public.usual", "public.low"]
    assert dues["public.usual"] == NOON.replace(second=0)
    assert {record.reason for record in own.runs()} == {"schedule"}
    assert differences(settings) == {}


def test_tables_due_in_the_same_second_are_one_run(source: Source) -> None:
    """They have one snapshot and one run id."""
    make(source, "one", "two", "three")
    settings = config(source)
    with serving(settings, Hands(NOON)) as own:
        until(lambda: len(own.runs()) == 3 and own.landed("public.three"))
    assert len({record.run_id for record in own.runs()}) == 1


def test_a_restart_repeats_nothing_and_missed_times_run_once(source: Source) -> None:
    """A due time runs once over restarts; three missed hours are one run."""
    make(source, "word")
    settings = config(source)
    with serving(settings, Hands(NOON), once=True) as first:
        pass
    with serving(settings, Hands(NOON + timedelta(minutes=20)), once=True) as second:
        pass
    assert (first.code, second.code) == (0, 0)
    assert len(second.runs()) == 1
    with serving(settings, Hands(NOON + timedelta(hours=3)), once=True) as third:
        pass
    assert third.code == 0
    begun, later = [record.scheduled for record in third.runs()]
    assert begun
    assert begun >= NOON
    assert later == NOON.replace(second=0) + timedelta(hours=3)


def test_the_first_run_of_a_table_is_due_when_the_service_first_knows_it(source: Source) -> None:
    """Not at the due time before that, which would be an alert about how long it took."""
    make(source, "word")
    began = datetime.now(UTC)
    daily = f"daily {began - timedelta(hours=6):%H:%M}"
    settings = config(source, serve={"schedule": {"full_refresh": daily, **NEVER}})
    with serving(settings, once=True) as own:
        pass
    (run,) = own.runs()
    assert run.scheduled
    assert began <= run.scheduled <= run.began
    (table,) = own.service.overview.view.tables
    took = processing_of(table, datetime.now(UTC))
    assert took
    assert took < 60


def test_once_exits_like_a_run(source: Source) -> None:
    """0 where all tables land, 1 where one fails, 3 where the source cannot be reached."""
    make(source, "good")
    source.execute("CREATE VIEW broken AS SELECT 1 / 0 AS id")
    settings = config(source, source={"tables": ["good", "broken"]})
    with serving(settings, Hands(NOON), once=True) as own:
        pass
    assert own.code == 1
    assert own.landed("public.good")
    away = config(source, source={"dsn": "host=127.0.0.1 port=1 dbname=x user=x"})
    with serving(away, Hands(NOON + timedelta(hours=1)), once=True) as own:
        pass
    assert own.code == 3


def test_once_fails_where_a_due_table_is_quarantined(source: Source) -> None:
    """It has brought up what it could: a cron job has to know that a table was left out."""
    source.execute("CREATE VIEW bad AS SELECT 1 / 0 AS id")
    settings = config(
        source, breaker={"threshold": 1, "pause": "3h", "longest": "3h"}, source={"tables": ["bad"]}
    )
    with serving(settings, Hands(NOON), once=True):
        pass
    with serving(settings, Hands(NOON + timedelta(hours=1)), once=True) as own:
        pass
    assert len(own.runs()) == 1
    assert own.code == 1


def test_a_paused_table_does_not_run_until_it_is_resumed(source: Source) -> None:
    """Who paused it is said; what was due meanwhile runs once."""
    make(source, "held", "free")
    settings = config(source)
    with serving(settings, Hands(NOON), once=True):
        pass
    requests.request(settings, "pause", ["held"], reason="a test")
    hands = Hands(NOON + timedelta(hours=1))
    with serving(settings, hands) as own:
        until(lambda: len(own.landed("public.free")) == 2)
        why = own.service.board.live().waiting["test.public.held"]
        assert len(own.landed("public.held")) == 1
        requests.request(settings, "resume", ["held"])
        own.look()
        until(lambda: len(own.landed("public.held")) == 2)
    assert why.endswith(": a test")
    assert why.startswith("it is paused by ")


def test_now_runs_a_table_at_once(source: Source) -> None:
    """Without its due time; a second request runs it again, a restart does not."""
    make(source, "word")
    settings = config(source)
    with serving(settings, once=True):
        pass
    with serving(settings) as own:
        requests.request(settings, "now", ["word"])
        own.look()
        until(lambda: len(own.landed("public.word")) == 2)
    with serving(settings, once=True) as own:
        pass
    assert [record.reason for record in own.runs()] == ["schedule", "command"]


def test_a_request_about_an_unknown_table_names_the_nearest(source: Source) -> None:
    """A pause needs a reason; ``now`` is not for streamed tables."""
    make(source, "orders", "live")
    settings = config(source, tables={"live": {"pattern": "streaming"}})
    with pytest.raises(ConfigError, match=r"no table order .*did you mean orders\?"):
        requests.request(settings, "pause", ["order"], reason="x")
    with pytest.raises(ConfigError, match="needs a reason"):
        requests.request(settings, "pause", ["orders"])
    with pytest.raises(ConfigError, match="is streamed"):
        requests.request(settings, "now", ["live"])


@pytest.mark.soak
def test_a_table_that_fails_again_and_again_is_quarantined_and_reset(source: Source) -> None:
    """The others go on; after `bronze reset` it is tried at once, and lands."""
    make(source, "good")
    source.execute("CREATE TABLE divisor (by int)")
    source.execute("INSERT INTO divisor VALUES (0)")
    source.execute("CREATE VIEW bad AS SELECT 1 / by AS id FROM divisor")
    settings = config(
        source,
        breaker={"threshold": 2, "pause": "1h"},
        source={"tables": ["good", "bad"]},
        serve={"schedule": {"full_refresh": "every 10s", **NEVER}},
    )
    hands = Hands(NOON)
    with serving(settings, hands) as own:
        board = own.service.board
        until(lambda: len(own.landed("public.good")) == 1)
        hands.move(seconds=10)
        until(lambda: table_subject("test.public.bad") in board.guards.breakers)
        until(lambda: board.guards.of(table_subject("test.public.bad")).until is not None)
        count = len([r for r in own.runs() if r.source_table == "public.bad"])
        hands.move(seconds=10)
        until(lambda: len(own.landed("public.good")) == 3)
        assert len([r for r in own.runs() if r.source_table == "public.bad"]) == count == 2
        assert "quarantined" in board.live().waiting["test.public.bad"]
        source.execute("UPDATE divisor SET by = 1")
        requests.request(settings, "reset", ["bad"])
        own.look()
        until(lambda: own.landed("public.bad"))
        assert table_subject("test.public.bad") not in board.guards.breakers


def test_a_reset_table_is_tried_at_once(source: Source) -> None:
    """Without waiting for its next due time."""
    source.execute("CREATE TABLE divisor (by int)")
    source.execute("INSERT INTO divisor VALUES (0)")
    source.execute("CREATE VIEW bad AS SELECT 1 / by AS id FROM divisor")
    settings = config(source, breaker={"threshold": 1, "pause": "1h"}, source={"tables": ["bad"]})
    with serving(settings, Hands(NOON)) as own:
        guards = own.service.board.guards
        until(lambda: guards.of(table_subject("test.public.bad")).until is not None)
        source.execute("UPDATE divisor SET by = 1")
        requests.request(settings, "reset", ["bad"])
        own.look()
        until(lambda: own.landed("public.bad"))
    assert [record.reason for record in own.runs()] == ["schedule", "retry"]


def test_chores_run_when_they_are_due(source: Source) -> None:
    """Verification and maintenance of the lake, not before something was loaded."""
    make(source, "word")
    schedule = {"maintain": "every 20s", "verify": "every 20s"}
    settings = config(source, serve={"schedule": {"full_refresh": "hourly", **schedule}})
    with serving(settings) as own:
        until(lambda: own.landed("public.word"))
    with serving(settings, Hands(datetime.now(UTC) + timedelta(seconds=30))) as own:
        until(lambda: not own.service.board.unread)
        names = ("maintain", "verify test")
        until(lambda: all(own.service.board.state(n).begun_for for n in names))
        until(lambda: not own.service.board.works)
        assert all(own.service.board.state(name).failure is None for name in names)


def test_the_service_writes_what_it_knows_into_the_lake(source: Source) -> None:
    """While it runs and when it stops, so that others need no connection to it."""
    make(source, "word")
    settings = config(source)
    assert beat.read(settings) is None
    with serving(settings, Hands(NOON)) as own:
        until(lambda: beat.read(settings))
        live = beat.read(settings)
        assert live is not None
        assert live.service == own.service.board.service
        assert not live.is_stopping
    live = beat.read(settings)
    assert live is not None
    assert live.is_stopping


def test_a_config_that_is_wrong_changes_nothing_and_a_right_one_does(
    source: Source, tmp_path: Path
) -> None:
    """Both while the service runs; what is wrong is a condition until it is right again."""
    make(source, "word", "more")
    file = tmp_path / "bronze.toml"
    text = f"""
[source]
name = "test"
dsn = "{source.dsn}"
tables = ["word"]
[lake]
root = "{source.lake}"
[serve.schedule]
full_refresh = "hourly"
maintain = ""
verify = ""
"""
    file.write_text(text)
    with serving(Settings.from_file(file)) as own:
        until(lambda: own.landed("public.word"))
        board = own.service.board
        file.write_text(text.replace("hourly", "sometimes"))
        own.look()
        until(lambda: board.config_error)
        assert "sometimes" in board.config_error
        assert board.settings.serve.schedule.full_refresh == "hourly"
        file.write_text(text.replace('"word"', '"word", "more"'))
        own.hangup.set()
        until(lambda: own.landed("public.more"))
        assert board.config_error == ""
        assert len(own.landed("public.word")) == 1


def test_pool_max_that_is_too_low_is_refused(source: Source) -> None:
    """At the start, with the number that would do."""
    make(source, "live")
    settings = config(
        source,
        source={"pool": {"max": 4}},
        tables={"live": {"pattern": "streaming"}},
    )
    with pytest.raises(ConfigError, match="at least 6 connections"), serving(settings):
        pass


@pytest.mark.soak
def test_two_services_of_one_lake_are_wasteful_and_never_wrong(source: Source) -> None:
    """Each runs what is due; the content is equal."""
    make(source, "one", "two")
    settings = config(source)
    hands = Hands(NOON)
    with serving(settings, hands) as own, serving(settings, hands) as other:
        until(lambda: own.landed("public.one") and own.landed("public.two"))
        requests.request(settings, "now", ["one", "two"])
        own.look()
        other.look()
        until(lambda: len(own.landed("public.two")) >= 3)
        until(lambda: not own.service.board.works and not other.service.board.works)
    assert (own.code, other.code) == (0, 0)
    assert differences(settings) == {}


def test_a_run_that_takes_too_long_is_stopped_and_has_failed(source: Source) -> None:
    """[serve] timeout; it is not tried again before its next due time."""
    source.execute("CREATE VIEW slow AS SELECT 1 AS id, pg_sleep(60)::text AS word")
    settings = config(source, serve={"timeout": 1, "schedule": {"full_refresh": "hourly", **NEVER}})
    with serving(settings, Hands(NOON)) as own:
        board = own.service.board
        until(lambda: board.state("test.public.slow").failure)
        state = board.state("test.public.slow")
        assert state.failure is not None
        assert state.failure.kind == "TookTooLong"
        assert state.retry_at is None
        assert board.guards.of(table_subject("test.public.slow")).failures == 1


def test_the_commands_ask_the_service(source: Source, tmp_path: Path) -> None:
    """`bronze pause`, `resume`, `now` and `reset` write requests; a wrong name is refused."""
    make(source, "orders")
    file = tmp_path / "bronze.toml"
    file.write_text(
        f"""
[source]
name = "test"
dsn = "{source.dsn}"
[lake]
root = "{source.lake}"
"""
    )
    run = CliRunner().invoke
    where = ["-c", str(file)]
    assert run(app, ["pause", "orders", "--until", "2h", "--reason", "move", *where]).exit_code == 0
    for command in ("resume", "now", "reset"):
        assert run(app, [command, "orders", *where]).exit_code == 0
    wrong = run(app, ["now", "order", *where])
    assert wrong.exit_code == 2
    assert "did you mean orders?" in wrong.output
    settings = Settings.from_file(file)
    requested = controls.read(settings)
    assert [record.action for record in requested] == ["pause", "resume", "now", "reset"]
    assert {record.subject for record in requested} == {"test.public.orders"}
    assert requested[0].until is not None
    audited = bronze.open(file).audit().records
    assert {"pause", "resume", "now", "reset"} <= {record.action for record in audited}
