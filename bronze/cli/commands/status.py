"""The commands that tell of the lake alone: status and report."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bronze.cli.failures import exit_codes
from bronze.cli.options import AsJson, Config
from bronze.printable import size


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


def report(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Tables; all that are known if none.")
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The file to write; - is standard output.")
    ] = Path("report.html"),
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="How many days of runs and quality to show.")
    ] = 30,
    config: Config = Path("bronze.toml"),
) -> None:
    """Write one page about the lake: freshness, runs, quality, lineage, layout, schema history."""
    from bronze.cli import output
    from bronze.config.settings import Settings
    from bronze.operate.report import page

    with exit_codes(False):
        html = page.report(Settings.from_file(config), tables or (), days=days)
        if str(out) == "-":
            typer.echo(html, nl=False)
        else:
            page.write(out, html)
            output.print_line(f"Wrote {out}: {size(len(html.encode()))}.")
