"""Test cases that share runs: many tables cost a run little more than one."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bronze.ingest import pipeline
from bronze.model.results import TableResult
from tests.conftest import Source
from tests.support.content import differences

# Yields what its table has of its own in the config, and is sent what the run came to.
Story = Generator[dict[str, Any], TableResult, None]
_TABLE = re.compile(r"\bt\b")


class Unproven(dict[str, Any]):
    """What a table has of its own, for a run that may fail or leave it unlike its source."""


@dataclass(frozen=True)
class Case(Source):
    """A database with the tables of many stories, each of which calls its own ``t``."""

    name: str

    def execute(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Runs one statement, committed, on the story's table."""
        return super().execute(self.named(statement), *arguments)

    def table(self, name: str) -> Path:
        """The folder of a Bronze table."""
        return super().table(self.named(name))

    def named(self, text: str) -> str:
        """A text with the true name of the story's table."""
        return _TABLE.sub(self.name, text)


def together(*cases: Any) -> Callable[[Callable[..., Story]], Callable[[Source], None]]:
    """Makes a story a test, which tells it of all cases at once."""

    def decorated(story: Callable[..., Story]) -> Callable[[Source], None]:
        def test(source: Source) -> None:
            tell(source, story, *cases)

        test.__name__, test.__module__ = story.__name__, story.__module__
        test.__doc__ = story.__doc__
        return test

    return decorated


def tell(source: Source, story: Callable[..., Story], *cases: Any) -> None:
    """Tells a story of several cases at once, and names those that go wrong."""
    told: dict[str, tuple[Any, Story]] = {}
    for number, case in enumerate(cases):
        about = Case(source.dsn, source.lake, f"t_{number}", session=source.session)
        told[about.name] = case, story(about, *(case if isinstance(case, tuple) else [case]))
    outcomes: dict[str, TableResult | AssertionError | None] = dict.fromkeys(told)
    wrong: list[Exception] = []
    with ExitStack() as stack:
        for _, one in told.values():
            stack.callback(one.close)
        while outcomes:
            waiting = {}
            for name, outcome in outcomes.items():
                case, one = told[name]
                try:
                    waiting[name] = _continued(one, outcome)
                except StopIteration:
                    pass
                except Exception as error:
                    error.add_note(f"In the case {case!r}.")
                    wrong.append(error)
            outcomes = _landed(source, waiting, len(waiting) < len(told)) if waiting else {}
    if wrong:
        raise ExceptionGroup(f"{len(wrong)} of {len(told)} cases went wrong", wrong)


def _continued(story: Story, outcome: TableResult | AssertionError | None) -> dict[str, Any]:
    if outcome is None:
        return next(story)
    return story.throw(outcome) if isinstance(outcome, Exception) else story.send(outcome)


def _landed(
    source: Source, waiting: dict[str, dict[str, Any]], ended: bool
) -> dict[str, TableResult | AssertionError | None]:
    # As long as no story has ended, their tables are all that a run may find.
    only = {"tables": list(waiting)} if ended else {}
    run = pipeline.run(source.settings(source=only, tables=waiting))
    results = {result.table.removeprefix("public."): result for result in run.tables}
    assert results.keys() == waiting.keys()
    proven = {name: own for name, own in waiting.items() if not isinstance(own, Unproven)}
    only = {"tables": list(proven)}
    faults = differences(source.settings(source=only, tables=proven)) if proven else {}
    outcomes: dict[str, TableResult | AssertionError | None] = dict(results)
    for name in proven:
        fault = results[name].error or faults.get(f"public.{name}")
        if fault:
            outcomes[name] = AssertionError(fault)
    return outcomes
