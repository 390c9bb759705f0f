"""docs/reference/commands.md: every command and option."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main
from rich.text import Text

from bronze.cli.main import app
from reference.markdown import code, document, table

_INTRODUCTION = """\
`bronze COMMAND --help` prints the same. Tables are named as `orders` or `shop.orders`. With
`--json` a command prints one JSON document on stdout, errors included. [Exit
codes](exit-codes.md) say how it ended."""


def page() -> str:
    """The page."""
    root: Any = typer.main.get_command(app)
    groups: dict[str, list[str]] = {}
    for name, command in root.commands.items():
        group = command.rich_help_panel
        groups.setdefault(group, []).extend(_command(name, command))
    parts = [_options(root)]
    for group, texts in groups.items():
        parts += [f"## {group}", *texts]
    return document("Commands", _INTRODUCTION, *parts)


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"### bronze {name}"
    yield _plain(command.help)
    if hasattr(command, "commands"):
        for inner, sub in command.commands.items():
            yield f"#### bronze {name} {inner}"
            yield from _parts(f"{name} {inner}", sub)
        if not command.invoke_without_command:
            return
    yield from _parts(name, command, with_help=False)


def _parts(name: str, command: Any, with_help: bool = True) -> Iterator[str]:
    if with_help:
        yield _plain(command.help)
    usage = [_argument(one) for one in command.params if one.param_type_name == "argument"]
    yield f"```\nbronze {' '.join([name, '[OPTIONS]', *usage])}\n```"
    yield _options(command)
    columns, _, example = _plain(command.epilog).rpartition("Example: ")
    if lines := [line.strip().split("  ", 1) for line in columns.splitlines()[1:] if line.strip()]:
        yield table(("column of its output", "meaning"), lines)
    if example:
        yield f"Example: {code(example)}"


def _options(command: Any) -> str:
    rows = []
    for one in command.params:
        if one.name == "help" or getattr(one, "hidden", False):
            continue
        is_argument = one.param_type_name == "argument"
        name = _argument(one) if is_argument else ", ".join((*one.opts, *one.secondary_opts))
        rows.append((code(name), _plain(one.help), _default(one), code(_variable(one))))
    heads = ("option", "meaning", "default", "variable")
    used = [i for i, _ in enumerate(heads) if any(row[i] for row in rows)]
    return table([heads[i] for i in used], [[row[i] for i in used] for row in rows]) if rows else ""


def _argument(one: Any) -> str:
    name = str(one.metavar or one.name).upper()
    several = f"{name}…" if one.nargs == -1 else name
    return several if one.required else f"[{several}]"


def _default(one: Any) -> str:
    value = one.default
    is_none = value is None or value is False or value == "" or "Sentinel" in type(value).__name__
    if is_none or callable(value):
        return "required" if one.required else ""
    return code(str(getattr(value, "value", value)))


def _variable(one: Any) -> str:
    names = one.envvar
    return ", ".join(names) if isinstance(names, list) else names or ""


def _plain(text: str | None) -> str:
    """A text of the help without rich's markup."""
    return Text.from_markup(text or "").plain.strip()
