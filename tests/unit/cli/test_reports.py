"""What commands print on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bronze.cli import output
from bronze.cli.screens import reports
from bronze.operate.doctor.diagnosis import Diagnosis
from bronze.operate.doctor.examination import Finding


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 60 columns with colours."""
    file = io.StringIO()
    console = Console(
        file=file,
        highlight=False,
        emoji=False,
        force_terminal=True,
        color_system="standard",
        width=60,
    )
    monkeypatch.setattr(output, "_out", console)
    return file


def test_findings_are_a_table_with_coloured_states(terminal: io.StringIO) -> None:
    """Hints are below their sentences, long ones are wrapped, and no text is executed."""
    found = (
        Finding("config", "ok", "It is valid."),
        Finding(
            "lake.read", "problem", "\x1b[2JNo [red]lake[/red] " + "x" * 50, "Mount :smile: it."
        ),
    )
    reports.diagnosis(Diagnosis(found))
    text = terminal.getvalue()
    assert "\x1b[32mok" in text
    assert "\x1b[1;31mproblem" in text
    assert "\\x1b[2JNo [red]lake[/red]" in text
    assert "\x1b[2J" not in text
    assert "\x1b[2mMount :smile: it." in text
    assert "1 ok, 1 problem" in text


def test_markdown_is_rendered_on_a_terminal_alone(
    terminal: io.StringIO, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere it is printed as it is, for a pager or a file."""
    output.print_markdown("## heading\n\n**bold**")
    assert "##" not in terminal.getvalue()
    assert "bold" in terminal.getvalue()
    monkeypatch.setattr(output, "_out", Console(file=io.StringIO()))
    output.print_markdown("## heading\n\n**bold**")
    assert capsys.readouterr().out == "## heading\n\n**bold**\n"
