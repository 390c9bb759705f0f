"""The command line: parses arguments, calls `bronze.api`, prints what it returns.

The commands are in `bronze.cli.commands`, a module per group; what they print is in
`bronze.cli.screens`. Imports of the work itself are made when a command runs, so that ``--help``
answers at once.
"""

from __future__ import annotations

import gc
import os
from typing import Annotated

import typer
import typer.main

from bronze.cli.commands import begin, load, maintain, operate, protect, reference, service, trust
from bronze.cli.commands.copies import backup, restore
from bronze.cli.commands.integrations.dbt import dbt_rules, dbt_sources
from bronze.cli.commands.integrations.deploy import deploy
from bronze.cli.commands.register import register
from bronze.cli.commands.status import report, status
from bronze.cli.commands.validate import validate
from bronze.cli.groups import BEGIN, LOAD, OPERATE, RECOVER, TRUST, add, tidy
from bronze.version import VERSION

app = typer.Typer(
    name="bronze",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    epilog="First steps: bronze demo; or bronze init DSN, then bronze check, then bronze run.\n"
    "Completion of commands and options in your shell: bronze --install-completion",
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"bronze {VERSION}")
        raise typer.Exit


@app.callback()
def overview(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """PostgreSQL tables become Delta Lake Bronze tables: every row once, every value exact."""


_ROWS = (
    ("read", "rows read from the source"),
    ("inserted", "rows new in the Bronze table"),
    ("updated", "rows with other values than before; deleted: gone"),
    ("rejected", "values Delta cannot hold, kept in rejected_values"),
    ("anomalies", "rows unlike the others, by the table's model"),
    ("files, size", "what was written"),
    ("s, v", "seconds that the table took; its version in Delta"),
)
_FIGURES = (
    ("rows, score", "rows of the last run, and their average score of 100"),
    ("below 100", "rows that break a rule; quarantined: below the threshold"),
    ("unmet", "rules and checks that were not met"),
    ("age", "since the moment of the source that the table shows"),
)
_PROOF = (
    ("source, Bronze", "rows on each side"),
    ("missing, extra", "rows that only the source has, or only Bronze"),
    ("different", "rows with other values; altered: with other values than their hash"),
    ("s, v", "seconds that the table took; its version in Delta"),
)
_MAINTAINED = (
    ("files, now", "data files before and after"),
    ("rewritten", "size of the files that were joined or clustered"),
    ("expired, freed", "files past the retention that were deleted, and their size"),
    ("log", "entries of the log that were deleted"),
)

add(app, BEGIN, begin.demo, "bronze demo --keep")
add(app, BEGIN, begin.init, "bronze init postgresql://reader@db.example.com:5432/shop")
add(app, BEGIN, begin.check, "bronze check orders")
add(app, BEGIN, reference.schema, "bronze schema --out bronze.schema.json")
add(app, LOAD, load.run, "bronze run orders customers", columns=_ROWS)
add(app, LOAD, load.stream, "bronze stream --until-caught-up", columns=_ROWS)
add(app, LOAD, service.serve, "bronze serve")
add(app, TRUST, trust.verify, "bronze verify orders", columns=_PROOF)
add(app, TRUST, trust.quality, "bronze quality orders --trend 7", columns=_FIGURES)
add(app, TRUST, validate, "bronze validate --junit report.xml")
add(app, TRUST, trust.audit, "bronze audit --since 7d --verify")
add(app, TRUST, protect.reveal, "bronze reveal customers --key customer_id=42")
add(app, TRUST, protect.forget, "bronze forget customers --key customer_id=42 --dry-run")
app.add_typer(protect.keys_app, name="keys", rich_help_panel=TRUST)
add(app, OPERATE, status, "bronze status orders")
add(app, OPERATE, report, "bronze report -o report.html --days 7")
app.add_typer(operate.alerts_app, name="alerts", rich_help_panel=OPERATE)
add(app, OPERATE, service.pause, 'bronze pause orders --reason "migration" --until 2h')
add(app, OPERATE, service.resume, "bronze resume orders")
add(app, OPERATE, service.run_now, "bronze now orders", name="now")
add(app, OPERATE, maintain.maintain, "bronze maintain", columns=_MAINTAINED)
add(app, OPERATE, register, "bronze register orders")
add(app, OPERATE, deploy, "bronze deploy kubernetes --out deploy")
add(app, OPERATE, dbt_sources, "bronze dbt-sources -o models/sources.yml")
add(app, OPERATE, dbt_rules, "bronze dbt-rules models/schema.yml")
add(app, RECOVER, backup.backup, "bronze backup --verify --sample 5%")
add(app, RECOVER, restore.restore, "bronze restore --at 12h --to s3://lake/restored")
add(app, RECOVER, restore.drill, "bronze drill")
add(app, RECOVER, operate.doctor, "bronze doctor source lake")
add(app, RECOVER, reference.explain, "bronze explain source_busy")
add(app, RECOVER, operate.runbook, "bronze runbook table_failed")
add(app, RECOVER, service.reset, "bronze reset orders")


def main() -> None:
    """The console script."""
    # Garbage collection of imported objects takes a tenth of a short run.
    gc.set_threshold(50_000)
    # rich would write codes of terminals into files and pipes.
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "PY_COLORS"):
        os.environ.pop(name, None)
    # pydantic would read the metadata of every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    command = typer.main.get_command(app)
    tidy(command)
    try:
        command()
    finally:
        # The interpreter would search all objects for cycles twice before it ends.
        gc.freeze()
