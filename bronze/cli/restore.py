"""The commands about what survives a lost lake: `restore` and `drill`; and `check --drift`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from bronze.api.drift import DriftReport


def print_drift(report: DriftReport, as_json: bool) -> None:
    """Prints how the config that ran last differs from its file and its commit, and exits."""
    from bronze.cli import output

    if as_json:
        output.print_result(report)
        raise typer.Exit(report.exit_code)
    for problem in report.problems:
        output.print_error(problem)
    for note in report.notes:
        output.print_line(f"note: {note}")
    if not report.problems:
        commit = f", commit {report.commit[:12]}" if report.commit else ""
        output.print_line(f"{report.path}: no drift ({report.hash[:12]}{commit})")
    raise typer.Exit(report.exit_code)
