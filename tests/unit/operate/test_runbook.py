"""The runbooks: every kind of alert has its section, and every command in them can be typed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from bronze.cli.main import app
from bronze.config.sections.alerts import Scenarios
from bronze.errors import ConfigError
from bronze.operate import runbook
from bronze.operate.alerts.kinds import KINDS
from bronze.operate.runbook import PLACEHOLDERS, SCENARIOS

# typer may have click's classes in it, or be built on click.
_COMMAND: Any = typer.main.get_command(app)
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(bronze [^`]+)`")
HOSTILE = 'it\'s; "$(rm -rf ~)" `x` \\1 TABLE'


def commands(text: str) -> Iterator[list[str]]:
    """The lines of a text's blocks, as a shell splits them."""
    for block in _BLOCK.findall(text):
        for line in block.splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def parse(words: Sequence[str]) -> None:
    """Parses the arguments of a command of bronze, and of its command, without running it."""
    command, arguments = _COMMAND, list(words[1:])
    while arguments and hasattr(command, "resolve_command"):
        _, command, arguments = command.resolve_command(command.context_class(command), arguments)
    command.make_context(command.name, arguments)


def test_every_kind_has_a_section_in_its_scenario_and_every_section_a_kind() -> None:
    """Kinds, scenarios of the config, files and anchors are equal."""
    assert set(SCENARIOS) == set(Scenarios.model_fields)
    for scenario in SCENARIOS:
        anchors = {kind.anchor for kind in KINDS.values() if kind.scenario == scenario}
        assert set(runbook.sections(scenario)) == anchors
    assert [set(book.kinds) for book in runbook.contents()] == [
        {kind.name for kind in KINDS.values() if kind.scenario == scenario}
        for scenario in SCENARIOS
    ]


def test_a_section_says_what_an_alert_says() -> None:
    """What bronze does by itself is the sentence of the kind; steps, and when to escalate."""
    for kind in KINDS.values():
        section = runbook.sections(kind.scenario)[kind.anchor]
        flat = " ".join(section.split())
        assert f"**By itself:** {kind.by_itself}. " in flat
        assert "**Means:**" in section
        assert "**Escalate**" in section
        assert "# validate" in section
        assert "# investigate" in section or kind.name == "test"


def test_the_response_time_of_a_runbook_is_the_default_of_the_config() -> None:
    """It is in the file's first lines, and in the list."""
    for book in runbook.contents():
        seconds = getattr(Scenarios(), book.scenario).respond
        assert f"Respond within {seconds // 60} minutes." in runbook.text(book.scenario)
        assert book.respond == f"{seconds // 60}m"


def test_every_command_of_the_runbooks_can_be_typed() -> None:
    """Commands of bronze parse, in blocks and in sentences."""
    named = set()
    for scenario in SCENARIOS:
        text = runbook.text(scenario)
        inline = [shlex.split(command) for command in _INLINE.findall(text.replace("\n", " "))]
        lines = [words for words in commands(text) if words[0] == "bronze"]
        for words in [*lines, *inline]:
            named.add(words[1])
            # A sentence may name a command without its arguments.
            if words in lines or len(words) > 2:
                parse(words)
    assert named <= set(_COMMAND.commands)


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    """An unknown command, an unknown option and a missing argument do not parse."""
    for line in ("bronze heal", "bronze verify --mend", "bronze forget", "bronze alerts ack"):
        with pytest.raises(_USAGE_ERROR):
            parse(line.split())


def test_the_first_steps_of_an_alert_are_commands_about_its_subject() -> None:
    """Each kind has one to three; the subject is one word of them, whatever is in its name."""
    about = 0
    for kind in KINDS.values():
        steps = runbook.steps(kind.name, HOSTILE)
        assert 1 <= len(steps) <= 3
        plain = runbook.steps(kind.name, "")
        assert len(plain) == len(steps)
        for step, template in zip(steps, plain, strict=True):
            words = shlex.split(template)
            assert "#" not in words
            expected = [HOSTILE if word in PLACEHOLDERS else word for word in words]
            assert shlex.split(step) == expected
            about += HOSTILE in expected
    assert about > 10
    assert runbook.steps("unknown", "x") == ()


def test_placeholders_are_words_of_their_own() -> None:
    """Inside of quotes a name could end the quotes."""
    for scenario in SCENARIOS:
        for words in commands(runbook.text(scenario)):
            for word in words:
                names = re.findall(rf"\b(?:{'|'.join(PLACEHOLDERS)})\b", word)
                assert not names or word in PLACEHOLDERS


def test_a_runbook_is_found_by_scenario_kind_and_anchor() -> None:
    """A kind has its section below the introduction; an unknown name gets the nearest."""
    assert runbook.text("outage").startswith("# Outage")
    assert runbook.text("slot_lost") == runbook.text("slot-lost")
    assert runbook.text("slot_lost").startswith("# Outage")
    assert "Respond within 10 minutes" in runbook.text("slot_lost")
    assert runbook.text("slot_lost").count("\n## ") == 1
    with pytest.raises(ConfigError, match=r"no runbook slot-lots \(did you mean slot_lost\?\)"):
        runbook.text("slot-lots")


def test_the_command_lists_and_prints_runbooks() -> None:
    """Without a name all scenarios with their kinds and times; an unknown name exits with 2."""

    def run(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["runbook", *arguments], catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    code, out, _ = run()
    assert code == 0
    assert "security: somebody answers within 5m\n  audit_broken\n" in out
    assert all(f"\n  {kind}\n" in out for kind in KINDS)
    assert [one["scenario"] for one in json.loads(run("--json")[1])] == [*SCENARIOS]
    code, out, _ = run("audit_broken")
    assert (code, out.rstrip("\n")) == (0, runbook.text("audit_broken").rstrip("\n"))
    assert json.loads(run("audit_broken", "--json")[1]) == {"text": runbook.text("audit_broken")}
    code, _, error = run("outrage")
    assert (code, "no runbook outrage (did you mean outage?)" in error) == (2, True)
