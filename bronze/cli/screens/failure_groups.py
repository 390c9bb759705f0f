"""Errors and notes of many tables, with those of one cause together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bronze.api.display.log_lines import LOG
from bronze.cli.output import print_error, print_explain, print_hint, print_line

if TYPE_CHECKING:
    from bronze.model.results import Failure

_NAME = "…"
_GRANT = re.compile(r'(?<= ON )"(?:[^"]|"")+"\."(?:[^"]|"")+"(?= TO )')
_MOST_NAMES = 10


@dataclass(frozen=True)
class Group:
    """A message of several ``tables``, in which an ellipsis is the name of each; of one table it is
    the message itself. ``hint`` is as the message; its GRANT names all of the tables.
    """

    message: str
    hint: str
    tables: tuple[str, ...]
    grants: tuple[str, ...] = ()


def groups_of(messages: Iterable[tuple[str, str, str]]) -> list[Group]:
    """The groups of messages, each of a table, with a hint; in the order of their first ones."""
    groups: dict[tuple[str, str], Group] = {}
    originals: dict[tuple[str, str], tuple[str, str]] = {}
    for table, message, hint in messages:
        short = table.rpartition(".")[2]
        grants = tuple(dict.fromkeys(_GRANT.findall(f"{message} {hint}")))
        cause = _without(_GRANT.sub(_NAME, message), table, short)
        advice = _without(_GRANT.sub(_NAME, hint), table, short)
        originals.setdefault((cause, advice), (message, hint))
        known = groups.get((cause, advice), Group(cause, advice, ()))
        groups[cause, advice] = replace(
            known, tables=(*known.tables, table), grants=(*known.grants, *grants)
        )
    return [_complete(group, originals[key]) for key, group in groups.items()]


def _complete(group: Group, original: tuple[str, str]) -> Group:
    if len(group.tables) == 1:
        return replace(group, message=original[0], hint=original[1])
    if group.grants:
        names = ", ".join(group.grants)
        return replace(
            group,
            message=group.message.replace(f" ON {_NAME} TO ", f" ON {names} TO "),
            hint=group.hint.replace(f" ON {_NAME} TO ", f" ON {names} TO "),
        )
    return group


def _without(text: str, table: str, short: str) -> str:
    """A text with an ellipsis instead of each mention of a table."""
    for name in (table, short):
        text = re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w])", _NAME, text)
    return text


def print_failures(errors: Mapping[str, Failure | None], verb: str = "failed") -> None:
    """Prints the errors of tables, those of one cause together; stopped ones in one line. The
    ``verb`` says what several tables have in common.
    """
    if LOG.format == "json":
        for table, error in errors.items():
            if error:
                LOG.error(error.message, table=table, kind=error.kind, hint=error.hint)
        return
    stopped = [table for table, error in errors.items() if error and error.kind == "Stopped"]
    failures = (
        (table, error.message, error.hint)
        for table, error in errors.items()
        if error and table not in stopped
    )
    for group in groups_of(failures):
        if len(group.tables) == 1:
            (table,) = group.tables
            print_error(
                group.message if table in group.message else f"{table}: {group.message}",
                group.hint,
            )
        else:
            print_error(f"{len(group.tables):,} tables {verb}: {group.message}")
            print_hint(f"tables: {names_of(group.tables)}")
            print_hint(group.hint)
    print_explain(error.kind for table, error in errors.items() if error and table not in stopped)
    if stopped:
        print_error(
            f"Stopped before the end: {names_of(stopped)}.",
            "What had landed before stays, and nothing half-written is visible. Run it again.",
        )


def print_notes(notes: Iterable[tuple[str, str]], word: str = "note") -> None:
    """Prints notes on tables, equal ones once with the tables that have them."""
    for group in groups_of((table, note, "") for table, note in notes):
        if len(group.tables) == 1:
            (table,) = group.tables
            print_line(f"{word}: {table}: {group.message}")
        else:
            print_line(f"{word} on {len(group.tables):,} tables: {group.message}")
            print_line(f"  {names_of(group.tables)}", "dim")


def names_of(tables: Iterable[str]) -> str:
    """The first names of tables, and how many more there are."""
    names = list(tables)
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
