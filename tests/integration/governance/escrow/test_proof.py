"""The heads in escrow contradict an audit log whose newest records were deleted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bronze.config import fingerprint, loading
from bronze.config.settings import Settings
from bronze.errors import ConfigError, LakeError
from bronze.governance import audit, audit_proof, audit_state
from bronze.governance.escrow import heads
from bronze.governance.tables.audit_log import Head
from bronze.operate.doctor import trust


def config(folder: Path, **of_audit: Any) -> Settings:
    """A config with a lake and an escrow in a folder, whose source is never connected to."""
    return loading.parse(
        {
            "source": {"name": "test", "dsn": "postgresql://u@nowhere/db"},
            "lake": {"root": str(folder / "lake")},
            "audit": {"escrow": str(folder / "escrow"), **of_audit},
        }
    )


def record(settings: Settings, count: int = 1) -> None:
    """Writes records, each in its own commit; the first also has the record of the config."""
    for _ in range(count):
        audit.record(settings, "reveal", "public.t", "succeeded")


def log_folder(settings: Settings) -> Path:
    """Where the log is."""
    return Path(audit_state.place(settings).url)


def problems(settings: Settings) -> tuple[str, ...]:
    """The problems that `--verify` finds."""
    return audit_proof.report(settings, verify=True).problems


def test_each_record_has_its_head_in_escrow_once(tmp_path: Path) -> None:
    """What is verified includes it; to put the same head again changes nothing."""
    settings = config(tmp_path)
    record(settings, 3)
    before = sorted((tmp_path / "escrow").rglob("*.json"))
    report = audit_proof.report(settings, verify=True)
    assert (report.problems, report.notes[1:]) == ((), ())
    assert (report.escrow, report.escrowed) == (str(tmp_path / "escrow"), 4)
    assert heads.put_newest(settings) == Head(4, report.head)
    assert sorted((tmp_path / "escrow").rglob("*.json")) == before
    assert len(before) == 3


def test_deleted_records_are_found_without_any_other_table(tmp_path: Path) -> None:
    """The newest ones, also if others take their numbers; all of them, also if a log begins anew;
    the service finds the former too.
    """
    settings = config(tmp_path)
    record(settings, 2)
    early = tmp_path / "early"
    shutil.copytree(log_folder(settings), early)
    record(settings, 2)
    assert problems(settings) == ()
    assert trust.lake_faults(settings) == {}

    shutil.rmtree(log_folder(settings))
    shutil.copytree(early, log_folder(settings))
    (problem,) = problems(settings)
    assert "the head of record 5, and the log ends with record 3" in problem
    assert "record 5" in trust.lake_faults(settings)["audit_broken", "service"]

    record(settings, 2)
    first, second = problems(settings)
    assert first.startswith("record 4 is not the one that the escrow has the head of")
    assert second.startswith("record 5 is not")

    shutil.rmtree(log_folder(settings))
    assert any("that log was deleted" in one for one in problems(settings))
    record(settings, 9)
    assert any("that log was deleted" in one for one in problems(settings))


def test_an_emptied_escrow_is_found(tmp_path: Path) -> None:
    """The log says from which record on it was in use; a log older than the escrow is not wrong."""
    plain = config(tmp_path, escrow="")
    record(plain)
    settings = config(tmp_path)
    report = audit_proof.report(settings, verify=True)
    assert report.problems == ()
    assert "no head yet" in report.notes[-1]
    record(settings)
    assert problems(settings) == ()
    shutil.rmtree(tmp_path / "escrow")
    (problem,) = problems(settings)
    assert "it was in use from record 3 on" in problem
    assert "had an escrow before" in audit_proof.report(plain, verify=True).notes[-1]


def test_an_escrow_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """The record is written nevertheless, and the next one makes up for the head."""
    settings = config(tmp_path)
    record(settings)
    shutil.rmtree(tmp_path / "escrow")
    (tmp_path / "escrow").write_text("a file")
    with pytest.raises(LakeError, match="no proof outside of the lake"):
        record(settings)
    assert audit_proof.report(settings).count == 3
    assert any("escrow" in one for one in problems(settings))
    (tmp_path / "escrow").unlink()
    record(settings)
    assert problems(settings) == ()


def test_options_of_the_escrow_are_checked_and_hidden() -> None:
    """A folder cannot be locked; the config's record has no secret of the store."""
    with pytest.raises(ConfigError, match="a folder cannot be locked"):
        config(Path("x"), escrow_lock="30d")
    with pytest.raises(ConfigError, match="need an escrow"):
        config(Path("x"), escrow="", escrow_lock="30d")
    secret = {"escrow": "s3://b/x", "escrow_options": {"aws_secret_access_key": "one"}}
    other = {"escrow": "s3://b/x", "escrow_options": {"aws_secret_access_key": "two"}}
    assert fingerprint.imprint(config(Path("x"), **secret)) == fingerprint.imprint(
        config(Path("x"), **other)
    )
