"""The runbooks: what people do about each kind of alert. They are Markdown in ``runbooks``.

A scenario is a file with its response time and path; a kind of alert is the section of its name.
In commands, ``TABLE``, ``SOURCE`` and ``CHANNEL`` stand for the subject of the alert.
"""

from __future__ import annotations

import difflib
import re
import shlex
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import get_args

from bronze.config.sections.alerts import Scenarios
from bronze.errors import ConfigError
from bronze.operate.alerts.kinds import KINDS, Scenario

SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
PLACEHOLDERS = ("TABLE", "SOURCE", "CHANNEL")
"""The words in commands that stand for the subject of an alert."""

_FIRST = 3
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(?:sh|sql)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PLACEHOLDER = re.compile(rf"\b(?:{'|'.join(PLACEHOLDERS)})\b")
# What a shell would take as an end of a word is only in comments behind it.
_COMMENT = re.compile(r"\s+#\s.*$")


@dataclass(frozen=True)
class Contents:
    """What a runbook has: the kinds of alerts, and within which time somebody answers unless the
    config says otherwise, such as "15m".
    """

    scenario: str
    respond: str
    kinds: tuple[str, ...]


def contents() -> tuple[Contents, ...]:
    """What there is a runbook for."""
    defaults = Scenarios()
    return tuple(
        Contents(
            scenario,
            f"{getattr(defaults, scenario).respond // 60}m",
            tuple(kind.name for kind in KINDS.values() if kind.scenario == scenario),
        )
        for scenario in SCENARIOS
    )


def text(name: str) -> str:
    """A runbook in Markdown: of a scenario, or the section of a kind of alert.

    Raises:
        ConfigError: there is none of this name.
    """
    if name in SCENARIOS:
        return _document(name)
    kind = KINDS.get(name.replace("-", "_"))
    if kind is None:
        known = [*SCENARIOS, *KINDS]
        close = difflib.get_close_matches(name.lower().replace("-", "_"), known, 1)
        nearest = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(
            f"There is no runbook {name}{nearest}.", hint="`bronze runbook` lists all of them."
        )
    heading, _, scenario = _document(kind.scenario).partition("\n")
    introduction = scenario.partition("\n## ")[0].strip()
    return f"{heading}\n\n{introduction}\n\n{sections(kind.scenario)[kind.anchor]}\n"


def steps(kind: str, subject: str) -> tuple[str, ...]:
    """The first three steps of a kind of alert, as commands about its subject; none if the kind is
    unknown.
    """
    known = KINDS.get(kind)
    if known is None:
        return ()
    section = sections(known.scenario)[known.anchor]
    lines = (line for block in _BLOCK.findall(section) for line in block.splitlines())
    commands = (_COMMENT.sub("", line) for line in lines if line.strip())
    return tuple(_about(subject, command) for command in list(commands)[:_FIRST])


def _about(subject: str, command: str) -> str:
    # Without a subject the word itself is clearer than nothing.
    return _PLACEHOLDER.sub(lambda _: shlex.quote(subject), command) if subject else command


def sections(scenario: str) -> dict[str, str]:
    """The sections of a runbook, with their headings, by their anchors."""
    _, *parts = _SECTION.split(_document(scenario))
    return {
        name: f"## {name}\n\n{body.strip()}"
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


@cache
def _document(scenario: str) -> str:
    folder = resources.files("bronze.operate") / "runbooks"
    return (folder / f"{scenario}.md").read_text(encoding="utf-8")
