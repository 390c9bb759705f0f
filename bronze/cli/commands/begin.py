"""The commands that begin: init, demo and check."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bronze.cli.failures import exit_codes
from bronze.cli.options import AsJson, Config, Tables
from bronze.dsn import dsn_of_environment
from bronze.errors import ConfigError


def init(
    database: Annotated[
        str,
        typer.Argument(
            metavar="DSN",
            help="The database: postgresql://user@host:5432/name. Without it PGHOST, PGPORT,"
            " PGDATABASE, PGUSER and PGSERVICE say which one.",
        ),
    ] = "",
    dsn: Annotated[str, typer.Option(help="The same as an option.")] = "",
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("bronze.toml"),
    schema: Annotated[
        list[str] | None, typer.Option(help="Schemas to survey; all with tables if none.")
    ] = None,
    name: Annotated[str, typer.Option(help="The source's name; the database's if none.")] = "",
) -> None:
    """Survey a database and write a config with comments for it."""
    from bronze.api import init as propose
    from bronze.cli import output

    with exit_codes(False):
        if database and dsn:
            raise ConfigError("The database is given twice.", hint="Leave out --dsn.")
        text = propose.propose_config(
            database or dsn or dsn_of_environment(os.environ),
            schemas=schema or (),
            name=name,
            notify=output.print_line,
        )
        propose.write_config(out, text)
        output.print_line(
            f"Wrote {out}. Review it, then: bronze check -c {out}; bronze run -c {out}"
        )


def demo(
    directory: Annotated[
        Path, typer.Option("--dir", help="Where the demo lives: source, config and lake.")
    ] = Path("bronze-demo"),
    scale: Annotated[
        float, typer.Option(min=0.001, max=10, help="1.0 is 3.3 million rows in ten tables.")
    ] = 0.02,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the source running.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop a source left running.")] = False,
) -> None:
    """Run everything on an embedded PostgreSQL with inventory data."""
    from bronze.cli import tour

    with exit_codes(False):
        tour.stop(directory) if stop else tour.run_tour(directory, scale, keep)


def check(
    tables: Tables = None,
    config: Config = Path("bronze.toml"),
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show the columns of all tables.")
    ] = False,
    drift: Annotated[
        bool, typer.Option("--drift", help="Is what ran last what the file says, and committed?")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do with each table and column, and what prevents it."""
    import bronze
    from bronze.cli import output
    from bronze.cli.screens import checks, documents

    with exit_codes(as_json):
        if drift:
            from bronze.cli.commands.copies import restore

            restore.print_drift(bronze.open(config).drift(), as_json)
        report = bronze.open(config).check(tables or ())
        if as_json:
            output.print_json(documents.check(report))
        else:
            checks.check(report, detailed=verbose or bool(tables))
        raise typer.Exit(report.exit_code)
