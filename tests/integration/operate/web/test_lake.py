"""What the dashboard reads from the lake, and writes there by what an operator asks."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import bronze
from bronze.errors import ConfigError
from bronze.operate import controls
from bronze.operate.alerts import store
from bronze.operate.alerts.life import Alert, Condition
from bronze.operate.web import acting
from bronze.operate.web.facts import Facts
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
    clock = iter([0.0, 0.0, 5.0, 100.0, 100.0])
    facts = Facts(settings, lambda: next(clock))
    versions = facts.versions("bronze.bz_t").value
    assert [version.number for version in versions] == sorted(
        (version.number for version in versions), reverse=True
    )
    (change,) = [change for version in versions for change in version.changes]
    assert "b" in change
    assert versions[0].at is not None
    assert sum(version.rows for version in versions) >= 2
    # It is kept for a while; an error later leaves what was read before.
    assert facts.versions("bronze.bz_t").value is versions
    log = source.table("t") / "_delta_log"
    os.rename(log, source.table("t") / "away")  # noqa: PTH104
    (source.table("t") / "_delta_log").write_text("not a folder")
    reading = facts.versions("bronze.bz_t")
    assert reading.value == versions or reading.value == ()


def test_a_lake_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    """On the page, in place of what would be there."""
    (tmp_path / "lake").write_text("this is a file")
    facts = Facts(views.settings(tmp_path / "lake"))
    for reading in (facts.audit(), facts.silences(), facts.resolved(), facts.versions("a.b")):
        assert reading.value == ()
        assert reading.error or reading.value == ()
