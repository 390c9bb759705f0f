"""Errors of a command: the sentence or document on the terminal, and the exit code."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import typer

from bronze.api.display.log_lines import LOG
from bronze.cli.explanations import BUG, command_for
from bronze.cli.wrapping import wrapped
from bronze.errors import BronzeError
from bronze.model.results import Failure
from bronze.printable import VisibleFormatter, visible, visible_json

INTERRUPTED = 130
_BUG = 70
_DEBUG = "BRONZE_DEBUG"
_REPORT = "This is a bug in it: run again with BRONZE_DEBUG=1 and report what it prints."


@contextmanager
def exit_codes(as_json: bool) -> Iterator[None]:
    """Prints an error as a sentence, or as a document, and exits with its code."""
    signal.signal(signal.SIGTERM, _interrupt)
    if _DEBUG in os.environ:
        logging.basicConfig(level=logging.INFO)
        logging.getLogger("bronze").setLevel(logging.DEBUG)
    _log_visibly()
    try:
        yield
    except BronzeError as error:
        _print_document(as_json, error.failure())
        _print_error(f"Error: {error.message}", error.hint, command_for(type(error).__name__))
        raise typer.Exit(error.exit_code) from None
    except typer.Exit:
        raise
    except Exception as error:
        if _DEBUG in os.environ:
            raise
        _print_document(as_json, Failure(type(error).__name__, "A fault inside bronze.", _REPORT))
        _print_error(
            f"Error: {type(error).__name__} inside bronze. {_REPORT}", "", command_for(BUG)
        )
        raise typer.Exit(_BUG) from None
    except BaseException as error:
        # polars raises a panic for an interrupt during a query.
        if "KeyboardInterrupt" not in f"{type(error).__name__} {error}":
            raise
        _print_document(as_json, Failure("Interrupted", "Interrupted.", "Run it again."))
        typer.echo("Interrupted. Nothing half-written is visible; run it again.", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the next one interrupts at once."""
    stop = threading.Event()

    def handle(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_visibly() -> None:
    """Has the default handlers of logging write control characters as visible text."""
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(VisibleFormatter(logging.BASIC_FORMAT))
    if logging.lastResort:
        logging.lastResort.setFormatter(VisibleFormatter())


def _print_document(as_json: bool, failure: Failure) -> None:
    if as_json:
        document = {**asdict(failure), "explain": command_for(failure.kind)}
        print(visible_json(json.dumps({"error": document}, ensure_ascii=False)))


def _print_error(message: str, hint: str, explain: str) -> None:
    """Without `bronze.cli.output`, as its imports may be what failed."""
    if LOG.format == "json":
        LOG.error(message, **({"hint": hint} if hint else {}), explain=explain)
        return
    typer.secho(_lines(visible(message)), fg=typer.colors.RED, err=True)
    if hint:
        typer.echo(_lines(f"  {visible(hint)}"), err=True)
    if "bronze explain" not in hint:
        typer.secho(f"  {explain}", dim=True, err=True)


def _lines(text: str) -> str:
    """A text as a terminal has room for it."""
    if not sys.stderr.isatty():
        return text
    return wrapped(text, shutil.get_terminal_size().columns)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
