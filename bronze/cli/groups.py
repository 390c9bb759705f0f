"""The groups of commands in the overview, and how a command is added to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer
from rich.markup import escape

BEGIN = "Begin"
LOAD = "Load"
TRUST = "Trust"
OPERATE = "Operate"
RECOVER = "Recover"
_LINE = 63
"""What a terminal of 80 columns has room for beside the name of a command."""


def add(
    app: typer.Typer,
    group: str,
    command: Callable[..., None],
    example: str,
    *,
    name: str | None = None,
    columns: Sequence[tuple[str, str]] = (),
) -> None:
    """Adds a command to a group. Its help ends with what the ``columns`` of its output mean, and an
    ``example``.
    """
    text = escape(" ".join((command.__doc__ or "").split()))
    app.command(
        name,
        help=text,
        short_help=_beginning(text),
        epilog=epilog(example, columns),
        rich_help_panel=group,
    )(command)


def _beginning(text: str) -> str:
    """The part of a help that fits into a line of the overview: up to a colon or semicolon, of a
    long one up to its last comma.
    """
    for end in (": ", "; "):
        text = text.partition(end)[0]
    if len(text) > _LINE:
        text = text.rpartition(", ")[0] or text
    return f"{text.removesuffix('.')}."


def tidy(command: Any) -> None:
    """Has the help of a command and of those below it show no type beside a flag, which takes no
    value, and leave out the options about completion, which the end of the overview names.
    """
    # It is made when it is asked for, and kept.
    asking = command.get_help_option(typer.Context(command, **command.context_settings))
    for option in (*command.params, asking):
        if getattr(option, "is_flag", False):
            option.metavar = ""
        if option.name in ("install_completion", "show_completion"):
            option.hidden = True
    for below in getattr(command, "commands", {}).values():
        tidy(below)


def epilog(example: str, columns: Sequence[tuple[str, str]] = ()) -> str:
    """The end of a command's help."""
    longest = max((len(name) for name, _ in columns), default=0)
    lines = [f"  {name:{longest}}  {meaning}" for name, meaning in columns]
    parts = ["Columns of its output:\n" + "\n".join(lines)] if lines else []
    return escape("\n\n".join([*parts, f"Example: {example}"]))
