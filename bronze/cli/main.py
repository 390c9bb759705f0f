"""The command line: parses arguments, calls `bronze.api`, prints what it returns.

The commands are in `bronze.cli.commands`, a module per group; what they print is in
`bronze.cli.screens`. Imports of the work itself are made when a command runs, so that ``--help``
answers at once.
"""

from __future__ import annotations

import gc
import os

import typer

from bronze.cli.commands import begin, load, maintain, operate, protect, service, trust
from bronze.cli.commands.status import status

app = typer.Typer(
    name="bronze",
    help="PostgreSQL tables become Delta Lake Bronze tables: every row once, every value exact.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(load.run)
app.command()(begin.check)
app.command()(load.stream)
app.command()(trust.verify)
app.command()(maintain.maintain)
app.command()(protect.reveal)
app.command()(protect.forget)
service.add_to(app)
app.command()(status)
app.add_typer(operate.alerts_app, name="alerts")
app.command()(operate.doctor)
app.command()(operate.runbook)
app.add_typer(protect.keys_app, name="keys")
app.command()(trust.audit)
app.command()(trust.quality)
app.command()(begin.init)
app.command()(begin.demo)


def main() -> None:
    """The console script."""
    # Garbage collection of imported objects takes a tenth of a short run.
    gc.set_threshold(50_000)
    # pydantic would read the metadata of every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    try:
        app()
    finally:
        # The interpreter would search all objects for cycles twice before it ends.
        gc.freeze()
