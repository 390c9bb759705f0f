"""What the service looks at in the lake: the last drill of a recovery, and the escrow."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bronze.config import loading
from bronze.config.settings import GOVERNANCE, Settings
from bronze.governance import audit, writer
from bronze.governance.escrow import heads
from bronze.governance.tables import drills
from bronze.governance.tables.drills import DrillRecord
from bronze.operate.conditions import SERVICE
from bronze.operate.service.board import Board
from bronze.operate.service.timing import Clock
from bronze.operate.service.watch import Watch

NOW = datetime.now(UTC)
DRILL = DrillRecord(
    "1", NOW, NOW, "failed", "The master key is missing.", 7, NOW, 61.5, 30.0, 7200, 900,
    3, 40, 10**6, 1000, "", "ada", "host", "0.1",
)  # fmt: skip


def config(folder: Path) -> Settings:
    """A config with an escrow, whose source is never connected to."""
    return loading.parse(
        {
            "source": {"name": "test", "dsn": "postgresql://u@127.0.0.1:1/db"},
            "lake": {"root": str(folder / "lake")},
            "audit": {"escrow": str(folder / "escrow")},
        }
    )


def looked(watch: Watch) -> dict[str, str]:
    """What is wrong after two looks, by the kinds of alerts."""
    board = watch._board
    for _ in range(2):
        watch._examine()
    return {kind: text for (kind, subject), (_, text) in board.faults.items() if subject == SERVICE}


def board_of(settings: Settings) -> Board:
    """The board of a service whose lake was read."""
    board = Board(settings, Clock(), False, NOW)
    board.unread = ""
    return board


def test_a_drill_that_failed_is_told_until_one_passes(tmp_path: Path) -> None:
    """With its reason; its figures are in what the service knows."""
    settings = config(tmp_path)
    audit.record(settings, "run", "", "succeeded")
    watch = Watch(board_of(settings))
    assert looked(watch) == {}
    assert watch._board.live().drill is None
    place = settings.place(GOVERNANCE, drills.NAME)
    writer.append_rows(place, drills.COLUMNS, drills.frame(DRILL), "1")
    assert "The master key is missing" in looked(watch)["drill_failed"]
    facts = watch._board.live().drill
    assert facts
    assert (facts.passed, facts.recovery, facts.lost) == (False, 61.5, 30.0)
    later = replace(DRILL, drill_id="2", began=datetime.now(UTC), result="passed", message="")
    writer.append_rows(place, drills.COLUMNS, drills.frame(later), "2")
    assert looked(watch) == {}


def test_the_head_goes_into_escrow_without_a_new_record(tmp_path: Path) -> None:
    """As a head that could not be put there when it was recorded; a fault is told until then."""
    settings = config(tmp_path)
    audit.record(settings, "run", "", "succeeded")
    shutil.rmtree(tmp_path / "escrow")
    (tmp_path / "escrow").write_text("a file")
    watch = Watch(board_of(settings))
    assert watch._put_into_escrow() == 60.0
    assert "no proof outside of the lake" in looked(watch)["audit_broken"]
    (tmp_path / "escrow").unlink()
    assert watch._put_into_escrow() == 1800.0
    assert looked(watch) == {}
    stored = heads.stored_heads(settings)
    assert stored
    assert [head.sequence for heads in stored.logs.values() for head in heads] == [2]
