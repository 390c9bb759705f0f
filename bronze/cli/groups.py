"""The groups of commands in the overview, and how a command is added to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer
from rich.markup import escape

BEGIN = "Begin"
LOAD = "Load"
TRUST = "Trust"
OPERATE = "Operate"
RECOVER = "Recover"


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
    help_text = escape(" ".join((command.__doc__ or "").split()))
    app.command(name, help=help_text, epilog=epilog(example, columns), rich_help_panel=group)(
        command
    )


def epilog(example: str, columns: Sequence[tuple[str, str]] = ()) -> str:
    """The end of a command's help."""
    longest = max((len(name) for name, _ in columns), default=0)
    lines = [f"  {name:{longest}}  {meaning}" for name, meaning in columns]
    parts = ["Columns of its output:\n" + "\n".join(lines)] if lines else []
    return escape("\n\n".join([*parts, f"Example: {example}"]))
