"""The command line: parses arguments, calls `bronze.api`, prints what it returns.

Imports of the work itself are made when a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Annotated

import typer

from bronze.cli import operate, restore, service
from bronze.cli.backup import backup
from bronze.cli.deploy import deploy
from bronze.cli.failures import exit_codes, stop_on_signals
from bronze.cli.register import register
from bronze.cli.status import status
from bronze.cli.validate import validate

app = typer.Typer(
    name="bronze",
    help="PostgreSQL tables become Delta Lake Bronze tables: every row once, every value exact.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[
    Path,
    typer.Option("-c", "--config", envvar="BRONZE_CONFIG", help="The config file."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]
Tables = Annotated[
    list[str] | None,
    typer.Argument(help="Tables (table or schema.table); all of the config if none."),
]


@app.command()
def run(
    tables: Tables = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(help='Also all tables of this pattern: "batch", "micro_batch", …'),
    ] = None,
    config: Config = Path("bronze.toml"),
    as_json: AsJson = False,
) -> None:
    """Load tables from PostgreSQL into the lake from one snapshot."""
    import bronze
    from bronze.api import progress
    from bronze.cli import output, results

    with exit_codes(as_json):
        opened = bronze.open(config)
        names = tables or []
        if pattern:
            from bronze.tables import selection

            names = [*names, *map(selection.of_pattern, pattern)]
        with stop_on_signals() as stop, progress.progress(as_json) as notify:
            result = opened.run(names, notify=notify, stop=stop)
        output.print_result(result) if as_json else results.run_result(result)
        raise typer.Exit(result.exit_code)


@app.command()
def check(
    tables: Tables = None,
    config: Config = Path("bronze.toml"),
    drift: Annotated[
        bool, typer.Option("--drift", help="Is what ran last what the file says, and committed?")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a run would do with each table and column, and what prevents it."""
    import bronze
    from bronze.cli import output, reports

    with exit_codes(as_json):
        if drift:
            restore.print_drift(bronze.open(config).drift(), as_json)
        report = bronze.open(config).check(tables or ())
        output.print_result(report) if as_json else reports.check(report)
        raise typer.Exit(report.exit_code)


@app.command()
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
    from bronze.cli import output, results

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


@app.command()
def verify(
    tables: Annotated[
        list[str] | None,
        typer.Argument(help="Tables (table or schema.table); all of the config, or lake, if none."),
    ] = None,
    config: Config = Path("bronze.toml"),
    repair: Annotated[
        bool, typer.Option("--repair", help="Reload what differs, then verify again.")
    ] = False,
    at_rest: Annotated[
        bool,
        typer.Option("--at-rest", help="Check files and checksums; needs no source."),
    ] = False,
    trust_hashes: Annotated[
        bool,
        typer.Option(
            "--trust-hashes",
            help="Trust the hashes in Bronze to be those of the values: faster, and"
            " blind to values that were changed beneath them.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prove that Bronze equals the source, or name the rows that differ."""
    import bronze
    from bronze.api import progress
    from bronze.cli import output, results

    with exit_codes(as_json):
        opened = bronze.open(config)
        with stop_on_signals() as stop, progress.progress(as_json) as notify:
            result = opened.verify(
                tables or (),
                repair=repair,
                at_rest=at_rest,
                trust_hashes=trust_hashes,
                notify=notify,
                stop=stop,
            )
        output.print_result(result) if as_json else results.verify_result(result)
        raise typer.Exit(result.exit_code)


@app.command()
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
    from bronze.cli import output, results

    with exit_codes(as_json):
        with stop_on_signals() as stop:
            result = bronze.open(config).maintain(tables or (), upgrade=upgrade, stop=stop)
        output.print_result(result) if as_json else results.maintain_result(result)
        raise typer.Exit(result.exit_code)


@app.command()
def reveal(
    table: Annotated[str, typer.Argument(help="The Bronze table, or the source's.")],
    key: Annotated[
        list[str] | None, typer.Option("--key", help="Only rows like this: customer_id=42")
    ] = None,
    columns: Annotated[str, typer.Option(help="Only these columns, separated by commas.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="How many rows at most; 0 is all.")] = 100,
    config: Config = Path("bronze.toml"),
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, nothing else.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show rows with their encrypted values decrypted; the audit log records it."""
    import bronze
    from bronze.cli import reports
    from bronze.protection.subject import row_selection

    with exit_codes(as_json):
        names = [name.strip() for name in columns.split(",") if name.strip()]
        rows = bronze.open(config).reveal(
            table, key=row_selection.key_values(key or ()), columns=names, limit=limit
        )
        reports.revealed_rows(rows, "json" if as_json else "csv" if as_csv else "")


@app.command()
def forget(
    table: Annotated[str, typer.Argument(help="The Bronze table, or the source's.")],
    key: Annotated[
        list[str] | None, typer.Option("--key", help="The person's rows: customer_id=42")
    ] = None,
    without_source: Annotated[
        bool, typer.Option("--without-source", help="Do not ask whether the source has them.")
    ] = False,
    old_versions: Annotated[
        bool, typer.Option("--old-versions", help="Only delete the older versions of the table.")
    ] = False,
    config: Config = Path("bronze.toml"),
    as_json: AsJson = False,
) -> None:
    """Erase a person's rows: from the table, its older versions and its change data feed."""
    import bronze
    from bronze.cli import output, results
    from bronze.protection.subject import row_selection

    with exit_codes(as_json):
        opened = bronze.open(config)
        if old_versions:
            done = opened.delete_old_versions(table)
        else:
            done = opened.forget(table, row_selection.key_values(key or ()), ask=not without_source)
        output.print_result(done) if as_json else results.erasure_result(done)
        raise typer.Exit(done.exit_code)


service.add_to(app)
restore.add_to(app)
app.command()(status)
app.command()(register)
app.command()(validate)
app.command()(deploy)
app.add_typer(operate.alerts_app, name="alerts")
app.command()(operate.doctor)
app.command()(operate.runbook)
app.command()(backup)

_keys = typer.Typer(
    help="The keys that protect personal data.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(_keys, name="keys")


@_keys.callback()
def keys(
    context: typer.Context, config: Config = Path("bronze.toml"), as_json: AsJson = False
) -> None:
    """List the keys, without their secrets."""
    import bronze
    from bronze.cli import reports

    if context.invoked_subcommand is None:
        with exit_codes(as_json):
            reports.keys(bronze.open(config).keys(), as_json)
        return
    sources = {context.get_parameter_source(name) for name in ("config", "as_json")}
    if any(source and source.name == "COMMANDLINE" for source in sources):
        raise typer.BadParameter("options come after the command: bronze keys rotate -c …")


@_keys.command()
def new() -> None:
    """Print a new master key, for BRONZE_MASTER_KEY or a secret store. It is stored nowhere."""
    from bronze.protection import keyring

    print(keyring.new_master())


@_keys.command()
def rotate(
    tables: Tables = None,
    reencrypt: Annotated[
        bool,
        typer.Option("--reencrypt", help="All keys; the next run reloads the tables."),
    ] = False,
    config: Config = Path("bronze.toml"),
    as_json: AsJson = False,
) -> None:
    """Make new keys; what the old ones have encrypted stays readable."""
    import bronze
    from bronze.cli import reports

    with exit_codes(as_json):
        reports.keys(bronze.open(config).rotate_keys(tables or (), reencrypt=reencrypt), as_json)


@_keys.command()
def rewrap(config: Config = Path("bronze.toml"), as_json: AsJson = False) -> None:
    """Wrap all keys with the master key [protection] key; previous unwraps the old ones."""
    import bronze
    from bronze.cli import results

    with exit_codes(as_json):
        results.rewrapped_keys(bronze.open(config).rewrap_keys(), as_json)


@app.command()
def audit(
    config: Config = Path("bronze.toml"),
    verify: Annotated[
        bool, typer.Option("--verify", help="Prove that no record was changed, added or removed.")
    ] = False,
    head: Annotated[str, typer.Option(help="With --verify: a hash that was noted earlier.")] = "",
    since: Annotated[
        str, typer.Option(help='Records since then: "7d", "12h", or an ISO date or time.')
    ] = "",
    action: Annotated[str, typer.Option(help="Records of this action: run, schema, …")] = "",
    table: Annotated[str, typer.Option(help="Records about this table.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show who did what and when, and prove that the audit log is complete."""
    import bronze
    from bronze.cli import output, reports
    from bronze.governance.audit_proof import moment

    with exit_codes(as_json):
        report = bronze.open(config).audit(
            verify=verify or bool(head),
            head=head,
            since=moment(since) if since else None,
            action=action,
            table=table,
        )
        output.print_result(report) if as_json else reports.audit(report)
        raise typer.Exit(report.exit_code)


@app.command()
def quality(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Tables; all with figures if none.")
    ] = None,
    config: Config = Path("bronze.toml"),
    trend: Annotated[
        int, typer.Option(min=1, help="How many of the last runs of each table to show.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Show the quality figures of tables, by rule, from the lake."""
    import bronze
    from bronze.cli import output, reports

    with exit_codes(as_json):
        report = bronze.open(config).quality(tables or (), trend=trend)
        output.print_result(report) if as_json else reports.quality(report, trend)
        raise typer.Exit(report.exit_code)


@app.command()
def init(
    dsn: Annotated[str, typer.Option(help="The database: postgresql://user@host:5432/name")],
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
        text = propose.propose_config(
            dsn, schemas=schema or (), name=name, notify=output.print_line
        )
        propose.write_config(out, text)
        output.print_line(
            f"Wrote {out}. Review it, then: bronze check -c {out}; bronze run -c {out}"
        )


@app.command()
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
    """Run everything on an embedded PostgreSQL with an inventory database."""
    from bronze.cli import tour

    with exit_codes(False):
        tour.stop(directory) if stop else tour.run_tour(directory, scale, keep)


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
