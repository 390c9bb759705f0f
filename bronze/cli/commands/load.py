"""The commands that load: run and stream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bronze.cli.commands.options import AsJson, Config, Tables
from bronze.cli.failures import exit_codes, stop_on_signals


def run(
    tables: Tables = None, config: Config = Path("bronze.toml"), as_json: AsJson = False
) -> None:
    """Load tables from PostgreSQL into the lake from one snapshot."""
    import bronze
    from bronze.api import progress
    from bronze.cli import output
    from bronze.cli.screens import results

    with exit_codes(as_json):
        opened = bronze.open(config)
        with stop_on_signals() as stop, progress.progress(as_json) as notify:
            result = opened.run(tables or (), notify=notify, stop=stop)
        output.print_result(result) if as_json else results.run_result(result)
        raise typer.Exit(result.exit_code)


def stream(
    tables: Tables = None,
    config: Config = Path("bronze.toml"),
    until_caught_up: Annotated[
        bool,
        typer.Option(
            "--until-caught-up", help="End when all that is committed now has been applied."
        ),
    ] = False,
    drop: Annotated[
        bool, typer.Option("--drop", help="Drop slot and publication; the Bronze tables stay.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Apply the changes of tables whose pattern is "streaming", within seconds."""
    import bronze
    from bronze.api import progress
    from bronze.cli import output
    from bronze.cli.screens import results

    with exit_codes(as_json):
        opened = bronze.open(config)
        if drop:
            dropped = opened.drop_stream(tables or ())
            results.dropped_stream(dropped, as_json)
            return
        with stop_on_signals() as stop, progress.progress(as_json) as copied:
            result = opened.stream(
                tables or (),
                until_caught_up=until_caught_up,
                stop=stop,
                notify=progress.stream_log(as_json),
                copied=copied,
            )
        output.print_result(result) if as_json else results.stream_result(result)
        raise typer.Exit(result.exit_code)
