"""Registering as a command and after runs: exit codes, sentences and records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bronze.api import recorded, registration
from bronze.cli.main import app
from bronze.config import loading
from bronze.config.settings import Settings
from bronze.errors import CatalogError, CatalogUnreachable, LakeUnreachable
from bronze.governance import audit
from bronze.governance.audit import Event
from bronze.model.results import RunResult, TableResult
from bronze.unity import register as registering
from bronze.unity.results import RegisteredTable, RegisterResult

CATALOG = {"host": "https://adb.example", "name": "main", "auth": "azure", "after_runs": True}
LANDED = TableResult("public.t", "shop.bz_t", "landed", version=0)
RUN = RunResult("batch", 1, 0.0, (LANDED,), notes=("before",))
DONE = RegisteredTable("shop.bz_t", "main.shop.bz_t", "adb.example", "created", ("created at x",))
DENIED = CatalogError("Table t cannot be created: PERMISSION_DENIED: x.", hint="GRANT it")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A config that registers after runs."""
    document = {"source": {"dsn": "postgresql:///x"}, "lake": {"root": str(tmp_path)}}
    return loading.parse({**document, "catalog": CATALOG})


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """What is recorded."""
    found: list[Event] = []
    monkeypatch.setattr(audit, "record_events", lambda _, more: found.extend(more))
    return found


def answer(monkeypatch: pytest.MonkeyPatch, done: Any) -> list[Any]:
    """Has a registration give a result, or raise an error; its arguments."""
    asked: list[Any] = []

    def register(settings: Settings, tables: Any, *more: Any, **_: Any) -> RegisterResult:
        asked.append(([table.target for table in tables], *map(list, more)))
        if isinstance(done, Exception):
            raise done
        result: RegisterResult = done
        return result

    monkeypatch.setattr(registering, "register_tables", register)
    monkeypatch.setattr(registering, "register", register)
    return asked


@pytest.mark.parametrize(
    ("done", "note"),
    [
        (
            CatalogUnreachable("adb cannot be reached.", hint="Check."),
            "adb cannot be reached. Check.",
        ),
        (LakeUnreachable("The lake is away."), "The lake is away."),
        (RuntimeError("a value"), "A fault inside bronze: RuntimeError. Report it."),
        (
            RegisterResult(
                1.0, (replace(DONE, status="failed", error=DENIED.failure()),), writes=1
            ),
            "Table t cannot be created: PERMISSION_DENIED: x. GRANT it",
        ),
        (
            RegisterResult(1.0, (), problems=(DENIED.failure(),)),
            "Table t cannot be created: PERMISSION_DENIED: x. GRANT it",
        ),
    ],
)
def test_no_failure_of_the_catalog_fails_a_run(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, events: list[Event], done: Any, note: str
) -> None:
    """It is a sentence among the notes and a record; the result is that of the run."""
    asked = answer(monkeypatch, done)
    result = registration.after_run(settings, RUN)
    assert asked == [(["shop.bz_t"], [""])]
    assert result.notes == ("before", f"Not registered in Unity Catalog: {note}")
    assert (result.exit_code, result.tables) == (0, RUN.tables)
    (event,) = events
    assert (event.action, event.batch_id) == ("register", "batch")
    assert event.result in ("failed", "incomplete")


def test_a_run_without_news_asks_nobody(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, events: list[Event]
) -> None:
    """Nor does one record that nothing was written; what was written is recorded."""
    asked = answer(
        monkeypatch, RegisterResult(1.0, (replace(DONE, status="unchanged", changes=()),))
    )
    unchanged = replace(RUN, tables=(replace(LANDED, status="unchanged"),))
    assert registration.after_run(settings, unchanged) == unchanged
    assert asked == []
    assert registration.after_run(settings, RUN) == RUN
    assert (len(asked), events) == (1, [])
    answer(monkeypatch, RegisterResult(1.0, (DONE,), writes=3))
    assert registration.after_run(settings, RUN) == RUN
    assert events[0].details["changes"]["main.shop.bz_t"] == ["created at x"]


def test_the_command_shows_what_was_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, events: list[Event]
) -> None:
    """Changes, notes and errors, and the exit code; a lake out of its reach is 2."""
    config = tmp_path / "bronze.toml"
    config.write_text(
        '[source]\ndsn = "postgresql:///x"\n[lake]\nroot = "lake"\n[catalog]\n'
        'host = "https://adb.example"\nname = "main"\nauth = "azure"\n'
    )
    failed = replace(DONE, status="failed", error=DENIED.failure(), notes=("a note",))
    result = RegisterResult(0.5, (DONE, failed), ("schema main.shop created",), reads=4, writes=2)
    counts = "2 tables, 1 created, 1 failed, 4 reads, 2 writes"
    assert repr(result) == f"<RegisterResult: {counts}, exit code 1>"
    answer(monkeypatch, result)
    shown = CliRunner().invoke(app, ["register", "-c", str(config)])
    assert shown.exit_code == 1
    for text in ("main.shop.bz_t", "created at x", "schema main.shop created", "a note",
                 "4 reads, 2 writes", "PERMISSION_DENIED", "GRANT it"):  # fmt: skip
        assert text in shown.output
    monkeypatch.undo()
    (tmp_path / "lake").mkdir()
    refused = CliRunner().invoke(app, ["register", "-c", str(config)])
    assert refused.exit_code == 2
    assert "which Databricks cannot reach" in refused.output
    assert recorded.outcome(result) == "incomplete"
