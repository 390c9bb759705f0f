"""Copies of the lake: by a command, with its audit record, and after a run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from threading import Event as Stop
from typing import TYPE_CHECKING, Any

from bronze.backup.recovery import takeover
from bronze.config.settings import Settings
from bronze.errors import BronzeError, ConfigError, Stopped
from bronze.governance import audit
from bronze.governance.audit import Event
from bronze.model.results import RunResult

if TYPE_CHECKING:
    from bronze.backup.copy import Notify
    from bronze.backup.results import BackupResult
    from bronze.protection.erasure_result import ErasureResult


def back_up(settings: Settings, *, notify: Notify, stop: Stop | None) -> BackupResult:
    """`bronze.backup.copy.back_up`. A copy of which there is no record is a whole one."""
    from bronze.backup import copy

    takeover.take_over(settings, "backup")
    try:
        done = copy.back_up(settings, notify=notify, stop=stop)
    except ConfigError:
        raise
    except BronzeError as error:
        outcome = "interrupted" if isinstance(error, Stopped) else "failed"
        failure = {"error": type(error).__name__, "message": error.message}
        with suppress(BronzeError):
            audit.record_events(settings, [Event("backup", "", outcome, failure)])
        raise
    details: dict[str, Any] = {
        "generation": done.generation,
        "objects": done.objects,
        "bytes": done.bytes,
        "seconds": round(done.seconds, 3),
        **({"expired": done.expired} if done.expired else {}),
        **({"erasures": len(done.erasures)} if done.erasures else {}),
    }
    outcome = "incomplete" if done.exit_code else "succeeded"
    try:
        audit.record_events(settings, [Event("backup", "", outcome, details)])
    except BronzeError as error:
        return replace(done, unrecorded=error.failure())
    return done


def after_run(settings: Settings, done: RunResult, stop: Stop | None) -> RunResult:
    """The result of a run, after the lake was copied if the config has [backup].

    The tables are loaded even if the lake cannot be copied: the result says so.
    """
    if not settings.backup.root or (stop is not None and stop.is_set()):
        return done
    from bronze.backup import copy

    try:
        copied = copy.back_up(settings, stop=stop)
    except BronzeError as error:
        return replace(done, copy_error=error.failure())
    failed = next((table.error for table in copied.tables if table.error), None)
    notes = tuple(
        f"{erasure.table}: an erasure of {erasure.at:%Y-%m-%d} has not reached the copy:"
        f" {erasure.reason}"
        for erasure in copied.erasures
    )
    return replace(done, copy_error=failed, notes=(*done.notes, *notes))


def after_erasure(settings: Settings, done: ErasureResult) -> ErasureResult:
    """The result of an erasure, with a note on what it means for the copy of the lake."""
    if not settings.backup.root:
        return done
    if done.is_found:
        note = (
            "the copy of the lake still has what was erased: the next backup deletes it there, and"
            " `bronze backup` does so now"
        )
    elif settings.backup.keep > settings.maintain.retention:
        note = (
            "the copy of the lake keeps versions for longer than the lake: `bronze forget"
            f" {done.target} --old-versions`, then `bronze backup`, deletes them there too"
        )
    else:
        return done
    return replace(done, notes=(*done.notes, note))
