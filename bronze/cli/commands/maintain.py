"""The command that maintains the lake."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bronze.cli.failures import exit_codes, stop_on_signals
from bronze.cli.options import AsJson, Config


def maintain(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Bronze tables; all in the lake if none.")
    ] = None,
    upgrade: Annotated[
        bool,
        typer.Option(
            "--upgrade", help="Name the features of old tables, so that DuckDB can insert."
        ),
    ] = False,
    config: Config = Path("bronze.toml"),
    as_json: AsJson = False,
) -> None:
    """Optimize and vacuum: join small files, cluster rows, delete what is past the retention."""
    import bronze
    from bronze.cli import output
    from bronze.cli.screens import results

    with exit_codes(as_json):
        with stop_on_signals() as stop:
            result = bronze.open(config).maintain(tables or (), upgrade=upgrade, stop=stop)
        output.print_result(result) if as_json else results.maintain_result(result)
        raise typer.Exit(result.exit_code)
