"""What each kind of command does where the audit log cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bronze
from bronze.operate.alerts.life import Key
from bronze.operate.conditions import SERVICE
from bronze.operate.doctor import trust
from bronze.operate.service.service import serve
from bronze.operate.validation.validate import validate
from tests.conftest import Source

BROKEN: Key = ("audit_broken", SERVICE)


@pytest.fixture
def opened(source: Source) -> bronze.Bronze:
    """A lake with a table of two rows, of which an older version has only one."""
    source.execute("CREATE TABLE orders (id int PRIMARY KEY, word text)")
    source.execute("INSERT INTO orders VALUES (1, 'one')")
    opened = bronze.Bronze(source.settings())
    opened.run()
    source.execute("INSERT INTO orders VALUES (2, 'two')")
    opened.run()
    return opened


@pytest.fixture
def log(opened: bronze.Bronze) -> Path:
    """The Delta log of the audit log."""
    return Path(opened.config.lake.root) / "governance" / "audit_log" / "_delta_log"


def damage(log: Path) -> None:
    """Has the last entry end in the middle."""
    last = max(log.glob("*.json"))
    last.write_text(last.read_text(encoding="utf-8")[:50], encoding="utf-8")


def put_away(log: Path) -> None:
    """Has the lake not answer about the audit log."""
    log.rename(log.with_name("away"))
    log.touch()


@pytest.mark.parametrize(
    ("harm", "kind"), [(damage, bronze.LakeError), (put_away, bronze.LakeUnreachable)]
)
def test_what_tells_of_the_lake_or_cannot_be_undone_is_refused(
    opened: bronze.Bronze, log: Path, harm: Callable[[Path], None], kind: type[bronze.LakeError]
) -> None:
    """With a sentence that names the audit log, before anything is revealed, erased or deleted."""
    harm(log)
    before = sorted(str(path) for path in Path(opened.config.lake.root).rglob("*"))
    commands: list[Callable[[], Any]] = [
        lambda: opened.forget("orders", {"id": "1"}, ask=False),
        lambda: opened.delete_old_versions("orders"),
        lambda: opened.reveal("orders"),
        opened.quality,
        opened.audit,
        opened.report,
        lambda: opened.dbt_sources(ask=False),
    ]
    for command in commands:
        with pytest.raises(bronze.LakeError, match=r"audit_log could not be read: .*\.") as raised:
            command()
        assert isinstance(raised.value, kind)
        assert raised.value.hint
    assert sorted(str(path) for path in Path(opened.config.lake.root).rglob("*")) == before
    assert opened.table("orders").collect().height == 2


@pytest.mark.parametrize("harm", [damage, pytest.param(put_away, marks=pytest.mark.soak)])
def test_rows_land_and_are_compared_and_the_result_says_that_it_is_not_recorded(
    opened: bronze.Bronze, source: Source, log: Path, harm: Callable[[Path], None]
) -> None:
    """The exit code is 1, and the validation says of the audit log that it is unknown."""
    harm(log)
    source.execute("INSERT INTO orders VALUES (3, 'three')")
    run, verified = opened.run(), opened.verify()
    assert [table.status for table in run.tables] == ["landed"]
    assert [table.status for table in verified.tables] == ["equal"]
    validated = validate(opened.config)
    assert [check.state for check in validated.checks if check.name == "audit log"] == ["unknown"]
    for result in (run, verified, opened.maintain(), validated):
        assert result.unrecorded
        assert "audit_log could not be read: " in result.unrecorded.message
        assert result.exit_code == 1
    assert opened.table("orders").collect().height == 3


def test_a_service_goes_on_and_tells_that_the_audit_log_is_damaged(
    opened: bronze.Bronze, log: Path
) -> None:
    """A log that only cannot be reached now is not called damaged."""
    damage(log)
    assert serve(opened.config, once=True) in (0, 1)
    assert "audit_log could not be read" in trust.lake_faults(opened.config)[BROKEN]
    log.joinpath(max(path.name for path in log.glob("*.json"))).unlink()
    put_away(log)
    with pytest.raises(bronze.LakeUnreachable):
        trust.lake_faults(opened.config)


def test_a_table_of_a_later_format_is_refused_where_the_audit_log_cannot_say_so(
    opened: bronze.Bronze, source: Source, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each table knows its own format."""
    source.execute("INSERT INTO orders VALUES (3, 'three')")
    monkeypatch.setattr("bronze.delta.commit.FORMAT", 2)
    monkeypatch.setattr("bronze.delta.log.FORMAT", 2)
    opened.run()
    monkeypatch.undo()
    damage(log)
    with pytest.raises(bronze.LakeError, match="in format 2; this is bronze"):
        opened.table("orders")
