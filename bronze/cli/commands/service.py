"""The commands `bronze serve`, and those that ask the service for something about tables."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bronze.cli.failures import INTERRUPTED, exit_codes, stop_on_signals
from bronze.cli.options import AsJson, Config, LogFormat, LogFormats, Quiet, set_log

if TYPE_CHECKING:
    from bronze.governance.tables.controls import Action, ControlRecord

_Tables = Annotated[list[str], typer.Argument(help="Tables (table or schema.table).")]
_Reason = Annotated[str, typer.Option(help="Why, for those who read it later.")]
_DEFAULT = Path("bronze.toml")


def serve(
    once: Annotated[
        bool,
        typer.Option("--once", help="Bring every due table up, stream until caught up, and end."),
    ] = False,
    config: Config = _DEFAULT,
    quiet: Quiet = False,
    log_format: LogFormat = LogFormats.TEXT,
) -> None:
    """Keep every table within its SLA: run what is due, stream, and tell people of trouble."""
    from bronze.config.settings import Settings
    from bronze.operate.service import service

    with exit_codes(False):
        set_log(log_format, quiet)
        settings = Settings.from_file(config)
        try:
            with stop_on_signals() as stop, _reload_on_hangup() as hangup:
                code = service.serve(settings, once=once, stop=stop, hangup=hangup)
        except KeyboardInterrupt:
            typer.echo("Interrupted. Nothing half-written is visible; start it again.", err=True)
            _leave(INTERRUPTED)
        if code == service.LEFT:
            _leave(code)
        raise typer.Exit(code)


def pause(
    tables: _Tables,
    reason: _Reason,
    until: Annotated[str, typer.Option(help='The end: "2h", or an ISO date or time.')] = "",
    config: Config = _DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Have the service not load tables; a streamed one is resynced when it comes back."""
    from bronze.cli.commands.operate import end_of

    with exit_codes(as_json):
        end = end_of(until) if until else None
        records = _request(config, "pause", tables, end, reason)
        _print(records, as_json, "paused" if end is None else f"paused until {end:%F %T} UTC")


def resume(
    tables: _Tables, reason: _Reason = "", config: Config = _DEFAULT, as_json: AsJson = False
) -> None:
    """Have the service load paused tables again; what was due meanwhile runs once."""
    with exit_codes(as_json):
        _print(_request(config, "resume", tables, None, reason), as_json, "resumed")


def run_now(
    tables: _Tables, reason: _Reason = "", config: Config = _DEFAULT, as_json: AsJson = False
) -> None:
    """Have the service run tables now, without waiting for their due time."""
    with exit_codes(as_json):
        _print(_request(config, "now", tables, None, reason), as_json, "due now")


def reset(
    tables: _Tables, reason: _Reason = "", config: Config = _DEFAULT, as_json: AsJson = False
) -> None:
    """Close the circuit breakers of tables: the service tries them again at once."""
    with exit_codes(as_json):
        _print(_request(config, "reset", tables, None, reason), as_json, "tried again")


def _request(
    config: Path, action: Action, tables: list[str], until: datetime | None, reason: str
) -> list[ControlRecord]:
    from bronze.config.settings import Settings
    from bronze.operate.tables import requests

    settings = Settings.from_file(config)
    return requests.request(settings, action, tables, until=until, reason=reason)


def _print(records: list[ControlRecord], as_json: bool, what: str) -> None:
    from dataclasses import asdict

    from bronze.cli.output import print_json, print_line

    if as_json:
        print_json([asdict(record) for record in records])
        return
    for record in records:
        print_line(f"{record.subject} is {what}, as soon as the service reads it.")


@contextmanager
def _reload_on_hangup() -> Iterator[threading.Event]:
    """An event that SIGHUP sets."""
    hangup = threading.Event()
    if not hasattr(signal, "SIGHUP"):
        yield hangup
        return
    before = signal.signal(signal.SIGHUP, lambda *_: hangup.set())
    try:
        yield hangup
    finally:
        signal.signal(signal.SIGHUP, before)


def _leave(code: int) -> None:
    """Ends the process without waiting for threads that hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
