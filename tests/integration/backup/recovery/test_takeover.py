"""Bronze goes on from a copy that the config names as its lake."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bronze.api.client import Bronze
from bronze.backup import copy, manifest
from bronze.backup.recovery import takeover
from bronze.config.settings import Settings
from bronze.errors import ConfigError, LakeError
from bronze.model.events import Resynced, StreamEvent
from bronze.model.locations import Place
from bronze.operate.service import service
from tests.conftest import Source
from tests.support.content import differences


def config(source: Source, folder: Path, lake: str, backup: str) -> Settings:
    """A config with a streamed table and one that is run; heads go into escrow."""
    takeover.forget()
    return source.settings(
        lake={"root": str(folder / lake)},
        backup={"root": str(folder / backup)},
        audit={"escrow": str(folder / "escrow")},
        tables={"s": {"pattern": "streaming"}},
    )


def copied(source: Source, folder: Path) -> Bronze:
    """A lake and its copy."""
    source.execute(
        "CREATE TABLE s (id int PRIMARY KEY, v text); CREATE TABLE r (id int PRIMARY KEY);"
        "INSERT INTO s SELECT i, 'v' FROM generate_series(1, 100) i; INSERT INTO r VALUES (1)"
    )
    opened = Bronze(config(source, folder, "lake", "copy"))
    assert opened.stream(until_caught_up=True).exit_code == 0
    assert opened.run(["r"]).exit_code == 0
    shutil.rmtree(folder / "copy")
    assert copy.back_up(opened.config).exit_code == 0
    return opened


def failed_over(source: Source, folder: Path) -> tuple[Bronze, int]:
    """The copy as a lake that has caught up, and how many tables had to be compared."""
    shutil.move(folder / "lake", folder / "lost")
    after = Bronze(config(source, folder, "copy", "next"))
    events: list[StreamEvent] = []
    assert after.stream(until_caught_up=True, notify=events.append).exit_code == 0
    assert after.run(["r"]).exit_code == 0
    return after, sum(isinstance(event, Resynced) for event in events)


@pytest.mark.soak
def test_a_slot_that_still_has_the_changes_is_followed(source: Source, tmp_path: Path) -> None:
    """The stream goes on from its position in the copy, without a comparison; the audit log says
    from which generation, and its lost records are no problem but said.
    """
    opened = copied(source, tmp_path)
    source.execute("INSERT INTO s VALUES (1000, 'x'); UPDATE s SET v = 'y' WHERE id < 10")
    # Records that the copy does not have.
    assert opened.verify(at_rest=True).exit_code == 0
    after, resynced = failed_over(source, tmp_path)
    assert resynced == 0
    assert differences(after.config) == {}
    report = after.audit(verify=True)
    assert report.problems == ()
    assert "were lost with it" in report.notes[-1]
    (record,) = after.audit(action="failover").records
    assert '"generation": 1' in record.details
    # A backup of the lake from before, when it comes back, must not write into it.
    shutil.move(tmp_path / "lost", tmp_path / "lake")
    with pytest.raises(ConfigError, match="is in use as a lake since"):
        copy.back_up(opened.config)
    assert copy.back_up(after.config).exit_code == 0


@pytest.mark.soak
def test_a_slot_that_has_moved_on_has_its_tables_compared(source: Source, tmp_path: Path) -> None:
    """What the slot does not have any more is found by a resync."""
    opened = copied(source, tmp_path)
    source.execute("INSERT INTO s VALUES (1000, 'x'); DELETE FROM s WHERE id < 10")
    assert opened.stream(until_caught_up=True).exit_code == 0
    after, resynced = failed_over(source, tmp_path)
    assert resynced == 1
    assert differences(after.config) == {}
    assert after.verify().exit_code == 0


@pytest.mark.soak
def test_what_no_lake_can_be_is_refused(source: Source, tmp_path: Path) -> None:
    """What only reads does not take a copy over, nor does a run that of no generation."""
    opened = copied(source, tmp_path)
    other = Bronze(config(source, tmp_path, "copy", "next"))
    commands: dict[str, Callable[[], object]] = {
        "verify": lambda: other.verify(at_rest=True),
        "reveal": lambda: other.reveal("s"),
        "backup": other.backup,
    }
    for name, command in commands.items():
        with pytest.raises(ConfigError, match=f"is a copy: a {name} would write"):
            command()
    assert copy.back_up(opened.config).exit_code == 0
    shutil.rmtree(tmp_path / "copy" / manifest.MANIFESTS)
    with pytest.raises(LakeError, match="has no whole generation"):
        Bronze(config(source, tmp_path, "copy", "next")).run()


@pytest.mark.soak
def test_a_service_goes_on_from_a_copy(source: Source, tmp_path: Path) -> None:
    """It takes the copy over before it begins, and refuses half a restore."""
    copied(source, tmp_path)
    source.execute("INSERT INTO s VALUES (1000, 'x')")
    shutil.move(tmp_path / "lake", tmp_path / "lost")
    after = config(source, tmp_path, "copy", "next")
    assert service.serve(after, once=True) == 0
    assert differences(after) == {}
    assert len(Bronze(after).audit(action="failover").records) == 1
    assert manifest.generations(Place(str(tmp_path / "next")))
    (tmp_path / "half" / "_backup").mkdir(parents=True)
    (tmp_path / "half" / takeover.UNFINISHED).write_text('{"generation": 1}')
    with pytest.raises(ConfigError, match="the restore of generation 1 into it has not ended"):
        service.serve(config(source, tmp_path, "half", "other"), once=True)
