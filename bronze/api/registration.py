"""Registering tables in Unity Catalog, as a command and after runs, with its records."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from threading import Event as Stop
from typing import Any

from bronze import stopping
from bronze.api import recorded
from bronze.config.settings import Settings
from bronze.errors import BronzeError
from bronze.governance import audit
from bronze.governance.audit import Event
from bronze.model.locations import TableName
from bronze.model.results import EXIT_CODES, Failure, RunResult
from bronze.printable import count
from bronze.tables import lake
from bronze.unity import register as registering
from bronze.unity.results import RegisterResult

_ACTION = "register"
_MOST_NOTES = 5


def register(
    settings: Settings, tables: Sequence[str], *, recreate: bool, stop: Stop | None = None
) -> RegisterResult:
    """`bronze.unity.register.register`, with its record in the audit log."""

    def work() -> RegisterResult:
        with stopping.scope(stop):
            return registering.register(settings, tables, recreate=recreate)

    return recorded.run_and_record(
        settings,
        _ACTION,
        tables,
        work,
        lambda done: [_event(done, {**recorded.arguments(tables), "recreate": recreate})],
    )


def after_run(settings: Settings, run: RunResult, stop: Stop | None = None) -> RunResult:
    """The result of a run after the tables that it loaded were registered, where the config says
    so. Whatever goes wrong is a note and a record: it does not change the result of the run.

    Args:
        settings: the config.
        run: the run. What it has not changed is registered as it is.
        stop: ends the registration when it is set.
    """
    landed = [table.target for table in run.tables if table.status == "landed"]
    if not landed or run.exit_code == EXIT_CODES["Stopped"]:
        return run
    catalogs = {name: one for name, one in settings.catalog.items() if one.after_runs}
    try:
        with stopping.scope(stop):
            # Not all tables of the lake are read for those of a run.
            tables = [lake.table_of(settings, TableName(*name.split(".", 1))) for name in landed]
            done = registering.register_tables(settings, tables, catalogs)
    except Exception as error:
        failure = _failure(error)
        details = {"error": failure.kind, "message": failure.message}
        with suppress(BronzeError):
            audit.record_events(settings, [Event(_ACTION, "", "failed", details, run.batch_id)])
        return replace(run, notes=(*run.notes, _sentence(failure)))
    if done.writes or done.exit_code:
        with suppress(BronzeError):
            event = _event(done, {"asked": landed})
            audit.record_events(settings, [replace(event, batch_id=run.batch_id)])
    return replace(run, notes=(*run.notes, *_notes(done)))


def _notes(done: RegisterResult) -> list[str]:
    """What a run says about a registration: only what did not succeed."""
    errors = [table.error for table in done.tables if table.error]
    failures = list(dict.fromkeys((*done.problems, *errors)))
    sentences = [_sentence(failure) for failure in failures[:_MOST_NOTES]]
    if len(failures) > _MOST_NOTES:
        more = len(failures) - _MOST_NOTES
        sentences.append(
            f"{count(more, 'more error')} of Unity Catalog: `bronze register` shows them."
        )
    return sentences


def _sentence(failure: Failure) -> str:
    return f"Not registered in Unity Catalog: {failure.message} {failure.hint}".rstrip()


def _failure(error: Exception) -> Failure:
    if isinstance(error, BronzeError):
        return error.failure()
    # Messages of libraries may quote what was sent.
    name = type(error).__name__
    return Failure(name, f"A fault inside bronze: {name}.", "Report it.")


def _event(done: RegisterResult, arguments: dict[str, Any]) -> Event:
    """The record of a registration."""
    failed = {t.name: t.error.kind for t in done.tables if t.error}
    changes = {t.name: list(t.changes) for t in done.tables if t.changes}
    details = {
        "seconds": round(done.seconds, 3),
        **{key: value for key, value in arguments.items() if value},
        "tables": len(done.tables),
        **({"changes": {"": list(done.changes), **changes}} if changes or done.changes else {}),
        **({"failed": failed} if failed else {}),
        **({"problems": [one.message for one in done.problems]} if done.problems else {}),
    }
    return Event(_ACTION, "", recorded.outcome(done), details)
