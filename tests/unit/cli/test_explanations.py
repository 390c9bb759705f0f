"""bronze explain: every kind of error is explained, in words that its messages have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from bronze import errors
from bronze.cli.explanations import command_for, explain, explanations
from bronze.cli.main import app
from bronze.errors import BronzeError
from bronze.operate import runbook

ROOT = Path(__file__).parents[3]
_LEAST = 6


def run(*arguments: str) -> Result:
    """The result of a command."""
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})


def test_every_kind_is_explained() -> None:
    """Each class of errors, what is interrupted and a bug; nothing else."""
    classes = {
        name
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, BronzeError)
    }
    assert {one.kind for one in explanations().values()} == {*classes, "Interrupted", "Bug"}
    for one in explanations().values():
        assert one.meaning.endswith(".")
        assert one.causes
        assert one.steps
        assert one.retry
        for name in one.runbooks:
            assert runbook.text(name)


def test_messages_are_those_of_the_code() -> None:
    """Each part of a frequent message between its names is in a text of the package, so that
    whoever searches for a message finds it.
    """
    sources = (path.read_text("utf-8") for path in (ROOT / "bronze").rglob("*.py"))
    # Texts over several lines are one, and values are ellipses.
    everything = re.sub(r"\{[^{}]*\}", "…", re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources)))
    checked, unknown = 0, []
    for one in explanations().values():
        for message in one.messages:
            for part in re.split(r"…|\(did|\?\)", message.text):
                words = part.strip(" .,:()")
                if len(words) >= _LEAST:
                    checked += 1
                    unknown += [] if words in everything else [(one.name, words)]
    assert unknown == []
    assert checked > 50


def test_a_kind_is_found_by_its_word_and_by_its_class() -> None:
    """However it is spelt; and a wrong word names near ones."""
    for name in ("source_busy", "SourceBusy", "source-busy", "source busy", "SOURCE_BUSY"):
        assert explain(name).kind == "SourceBusy", name
    near = run("explain", "SourceBuzy")
    assert near.exit_code == 2
    assert "did you mean source_busy" in near.stderr
    assert "did you mean" in run("explain", "permission").stderr
    assert "`bronze explain` lists all of them." in run("explain", "zzz").stderr


def test_the_command_says_what_it_means_and_what_to_do() -> None:
    """All parts of it, and as a document; alone it lists all kinds."""
    shown = run("explain", "table_refused").stdout
    assert shown.startswith("table_refused (TableRefused), exit code 1\n")
    for part in ("Usual causes", "What to do", "Does it help to retry?", "Frequent messages"):
        assert f"\n{part}\n" in shown
    document = json.loads(run("explain", "table_refused", "--json").stdout)
    assert document["exit_code"] == 1
    listed = run("explain").stdout
    assert all(name in listed for name in explanations())
    assert len(json.loads(run("explain", "--json").stdout)) == len(explanations())


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("LakeUnreachable", "bronze explain lake_unreachable"),
        ("Interrupted", "bronze explain interrupted"),
        ("ZeroDivisionError", "bronze explain bug"),
        ("Failure", "bronze explain bug"),
    ],
)
def test_a_kind_has_its_command(kind: str, command: str) -> None:
    """What is none of bronze's kinds is a bug; each command can be typed."""
    assert command_for(kind) == command
    assert explain(command.rpartition(" ")[2])


def test_an_error_names_the_command_that_explains_it(tmp_path: Path) -> None:
    """Below the hint, and in the document of --json."""
    missing = run("run", "-c", str(tmp_path / "no.toml"), "--json")
    assert missing.exit_code == 2
    assert missing.stderr.splitlines()[-1] == "  bronze explain config_error"
    assert json.loads(missing.stdout)["error"]["explain"] == "bronze explain config_error"
