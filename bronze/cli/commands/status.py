"""The command `bronze status`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bronze.cli.failures import exit_codes
from bronze.cli.options import AsJson, Config


def status(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Tables to show with their last runs.")
    ] = None,
    config: Config = Path("bronze.toml"),
    as_json: AsJson = False,
) -> None:
    """Show what is late and why, from the lake alone; exit 1 if anything is or an alert is open."""
    from bronze.cli.output import print_json
    from bronze.cli.screens.status import StatusPage
    from bronze.config.settings import Settings
    from bronze.operate.status import status_of

    with exit_codes(as_json):
        settings = Settings.from_file(config)
        found = status_of(settings, tables or (), datetime.now(UTC))
        if as_json:
            print_json(found.document())
        else:
            StatusPage(found.view, settings.serve.timezone).show(found)
        raise typer.Exit(found.exit_code)
