"""What the dashboard reads from the lake, and writes there by what an operator asks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import bronze
from bronze.errors import ConfigError
from bronze.governance import run_log, writer
from bronze.governance.tables import runs
from bronze.governance.tables.runs import RunRecord
from bronze.operate import controls
from bronze.operate.alerts import store
from bronze.operate.alerts.life import Alert, Condition
from bronze.operate.freshness import Late
from bronze.operate.web import acting
from bronze.operate.web.lake import daily
from bronze.operate.web.lake.facts import KEPT, Facts, Reading
from tests.conftest import Source
from tests.support import views

_BY = "operator at 10.0.0.1"


def test_acts_are_requests_with_a_record_of_who_asked(tmp_path: Path) -> None:
    """Each is in governance.controls and in the audit log, by whoever the dashboard names."""
    settings = views.settings(tmp_path)
    now = datetime.now(UTC)
    alert = Alert(Condition("freshness", "t", "critical", now, "t is late."), "open", opened=now)
    store.append(settings, [alert], create=True)
    until = now + timedelta(hours=1)
    acting.act(settings, "pause", "t", until, "release", _BY)
    acting.act(settings, "now", "t", None, "", _BY)
    acting.act(settings, "acknowledge", "freshness:t", None, "", _BY)
    acting.act(settings, "silence", "freshness:*", until, "move", _BY)
    records = controls.read(settings)
    assert [(record.action, record.subject) for record in records] == [
        ("pause", "t"),
        ("now", "t"),
        ("acknowledge", "freshness:t"),
        ("silence", "freshness:*"),
    ]
    assert {record.actor for record in records} == {_BY}
    facts = Facts(settings)
    assert [silence.reason for silence in facts.silences().value] == ["move"]
    logged = [record for record in facts.audit().value if record.action != "config"]
    assert [record.action for record in logged] == ["silence", "acknowledge", "now", "pause"]
    assert all(_BY in record.details for record in logged)


def test_acts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """A pause without a reason, a silence without an end, an alert that is not open."""
    settings = views.settings(tmp_path)
    for action, subject in (("pause", "t"), ("silence", "freshness:*"), ("acknowledge", "a:b")):
        with pytest.raises(ConfigError):
            acting.act(settings, action, subject, None, "", _BY)  # type: ignore[arg-type]
    assert controls.read(settings) == []


def test_versions_and_schema_changes_are_those_of_the_log(source: Source) -> None:
    """The last versions of a table, the newest first, with what changed of its columns."""
    settings = source.settings()
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a int)")
    source.execute("INSERT INTO t VALUES (1, 2)")
    opened = bronze.Bronze(settings)
    opened.run()
    source.execute("ALTER TABLE t ADD COLUMN b text")
    source.execute("INSERT INTO t VALUES (2, 3, 'x')")
    opened.run()
    now = [0.0]
    facts = Facts(settings, lambda: now[0])
    versions = facts.versions("bronze.bz_t").value
    assert [version.number for version in versions] == sorted(
        (version.number for version in versions), reverse=True
    )
    changes = [change for version in versions for change in version.changes]
    assert changes == ["column b was added", "created with 2 columns"]
    assert versions[0].at is not None
    assert sum(version.rows for version in versions) >= 2
    # It is kept for a while; an error later leaves what was read before.
    entry = source.table("t") / "_delta_log" / f"{0:020}.json"
    entry.write_text("{")
    assert facts.versions("bronze.bz_t").value is versions
    now[0] = KEPT + 1
    reading = facts.versions("bronze.bz_t")
    assert reading.error
    assert reading.value == versions


def test_days_are_those_of_the_records(tmp_path: Path) -> None:
    """Each day of the zone has its longest run, its rows, its lowest score, what failed, and for
    how long the table was late; other tables and records that do not count are left out.
    """
    settings = views.settings(tmp_path)
    table = replace(views.well().tables[0], schedule="daily 02:00", sla=3600.0)
    now = datetime(2026, 3, 10, 12, tzinfo=UTC)
    began = RunRecord("r", "run", now, source_table=table.table, target_table=table.target)
    records = []
    # At one o'clock UTC it is two in Berlin. On the 8th it fails, and lands three hours late.
    for day, hours, status in (
        (7, 1, "landed"),
        (8, 1, "failed"),
        (8, 5, "landed"),
        (9, 1, "landed"),
    ):
        moment = datetime(2026, 3, day, hours, 0, 1, tzinfo=UTC)
        record = replace(began, run_id=f"{day}-{hours}", began=moment)
        end = replace(
            record,
            status=status,  # type: ignore[arg-type]
            ended=moment + timedelta(seconds=10 * day),
            as_of=moment if status == "landed" else None,
            seconds=10.0 * day,
            inserted=day,
            score=90.0 + hours,
        )
        records += [record, end, replace(end, target_table="inventory_bronze.other", inserted=99)]
    records.append(replace(records[1], run_id="v", command="verify", seconds=999.0))
    for record in records:
        frame = runs.frame([record])
        writer.append_rows(run_log.place(settings), runs.COLUMNS, frame, "", stats=())
    reading = Facts(settings).days(table, now)
    assert [(d.day.day, d.runs, d.failed, d.seconds, d.rows, d.score) for d in reading.value] == [
        (7, 1, 0, 70.0, 7, 91.0),
        (8, 2, 1, 80.0, 16, 91.0),
        (9, 1, 0, 90.0, 9, 91.0),
        (10, 0, 0, None, 0, None),
    ]
    # From 03:00 in Berlin to 06:01:21; and on the 10th from 03:00 on.
    assert [d.late for d in reading.value] == [0.0, 3 * 3600 + 81, 0.0, 10 * 3600]


def test_lateness_is_of_the_days_of_the_zone() -> None:
    """A time over the night of a change of the clocks is split at the midnights there."""
    zone = ZoneInfo("Europe/Berlin")
    begin = datetime(2026, 3, 28, 22, tzinfo=UTC)
    late = Late(begin, begin + timedelta(hours=30))
    days = daily.with_lateness({}, [late], zone, begin)
    assert [(day.day.day, day.late / 3600) for day in days] == [(28, 1), (29, 23), (30, 6)]


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    """On the page, in place of what would be there; what does not exist yet is nothing."""
    settings = views.settings(tmp_path)
    names = ("runs", "controls", "alerts", "audit_log")
    table = views.well().tables[0]
    facts = Facts(settings)
    assert not any(reading.error for reading in _readings(facts))
    assert facts.days(table, datetime.now(UTC)).value == []
    for name in names:
        log = tmp_path / "governance" / name / "_delta_log"
        log.mkdir(parents=True)
        (log / f"{0:020}.json").write_text("{")
    (tmp_path / "a" / "b" / "_delta_log").mkdir(parents=True)
    (tmp_path / "a" / "b" / "_delta_log" / f"{0:020}.json").write_text("{")
    for reading in _readings(Facts(settings)):
        assert reading.value == ()
        assert reading.error
    assert Facts(settings).days(table, datetime.now(UTC)).error


def _readings(facts: Facts) -> list[Reading[Any]]:
    return [facts.audit(), facts.silences(), facts.resolved(), facts.versions("a.b")]
