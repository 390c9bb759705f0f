"""Options that several commands have."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bronze.printable import visible

Config = Annotated[
    Path,
    typer.Option("-c", "--config", envvar="BRONZE_CONFIG", help="The config file."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]
Tables = Annotated[
    list[str] | None,
    typer.Argument(help="Tables (table or schema.table); all of the config if none."),
]


class LogFormats(StrEnum):
    """The formats of the log."""

    TEXT = "text"
    JSON = "json"


Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print warnings and errors only.")]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Log the progress of each table as well.")
]
LogFormat = Annotated[
    LogFormats,
    typer.Option(
        "--log-format",
        envvar="BRONZE_LOG_FORMAT",
        help="Lines of the log on stderr, where it is not a terminal: text, or JSON.",
    ),
]
Yes = Annotated[
    bool, typer.Option("-y", "--yes", help="Do not ask. Off a terminal nobody is asked anyway.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")]


def set_log(log_format: LogFormats, quiet: bool = False, verbose: bool = False) -> None:
    """Sets which lines of the log this process writes, and how."""
    from bronze.api.display.log_lines import LOG

    LOG.format = "json" if log_format is LogFormats.JSON else "text"
    LOG.level = "warning" if quiet else "debug" if verbose else "info"
    LOG.run = ""


def confirm(question: str, yes: bool) -> None:
    """Asks before something that cannot be undone: on a terminal only, unless ``yes``.

    Raises:
        typer.Exit: the answer was no.
    """
    if yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not typer.confirm(visible(question), err=True):
        typer.echo("Nothing was done.", err=True)
        raise typer.Exit(1)
