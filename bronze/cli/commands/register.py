"""The command `bronze register`, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bronze.cli.failures import exit_codes, stop_on_signals
from bronze.cli.options import AsJson, Config
from bronze.printable import count

if TYPE_CHECKING:
    from bronze.unity.results import RegisterResult


def register(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Bronze tables; all in the lake if none.")
    ] = None,
    recreate: Annotated[
        bool,
        typer.Option(
            "--recreate",
            help="Make entries anew whose columns REST cannot change, with grants and tags.",
        ),
    ] = False,
    config: Config = Path("bronze.toml"),
    as_json: AsJson = False,
) -> None:
    """Register the lake's tables in Unity Catalog: columns, comments, tags, grants and lineage."""
    import bronze
    from bronze.cli import output

    with exit_codes(as_json):
        with stop_on_signals() as stop:
            result = bronze.open(config).register(tables or (), recreate=recreate, stop=stop)
        output.print_result(result) if as_json else _print(result)
        raise typer.Exit(result.exit_code)


def _print(result: RegisterResult) -> None:
    from bronze.cli.output import print_error, print_figures, print_line

    head = ("table", "status", "changes")
    rows = [(table.name, table.status, "; ".join(table.changes)) for table in result.tables]
    print_figures(head, rows, texts=head)
    for change in result.changes:
        print_line(change)
    for table in result.tables:
        for note in table.notes:
            print_line(f"{table.name}: {note}")
    for note in result.notes:
        print_line(note)
    print_line(
        f"{count(result.reads, 'read')}, {count(result.writes, 'write')} in {result.seconds:.1f} s"
    )
    # Tables of a catalog that cannot be reached have one error.
    for failure in dict.fromkeys((*result.problems, *(table.error for table in result.tables))):
        if failure:
            print_error(failure.message, failure.hint)
    if result.unrecorded:
        print_error(f"Not recorded: {result.unrecorded.message}", result.unrecorded.hint)
