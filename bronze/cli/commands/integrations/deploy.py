"""The command `bronze deploy`: the files of a deployment, filled from the config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bronze.cli.failures import exit_codes
from bronze.cli.options import AsJson, Config
from bronze.printable import count


def deploy(
    target: Annotated[
        str,
        typer.Argument(
            help="container, kubernetes, systemd, databricks, azure-devops, github, gitlab,"
            " airflow, dagster, prefect or grafana."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="An empty folder; by default deploy-TARGET.")
    ] = None,
    config: Config = Path("bronze.toml"),
    as_json: AsJson = False,
) -> None:
    """Write the files of a deployment into an empty folder, without any secret."""
    from bronze.cli import output
    from bronze.config.settings import Settings
    from bronze.deploy import writer

    with exit_codes(as_json):
        settings = Settings.from_file(config)
        written = writer.write(settings, target, out or Path(f"deploy-{target}"))
        if as_json:
            output.print_result(written)
            return
        output.print_line(f"Wrote {count(len(written.files), 'file')} into {written.folder}. Next:")
        for number, step in enumerate(written.next, 1):
            output.print_line(f"  {number}. {step}")
