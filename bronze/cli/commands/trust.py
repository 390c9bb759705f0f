"""The commands that prove and show what is in the lake: verify, quality and audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bronze.cli.failures import exit_codes, stop_on_signals
from bronze.cli.options import (
    AsJson,
    Config,
    DryRun,
    LogFormat,
    LogFormats,
    Quiet,
    Verbose,
    Yes,
    confirm,
    set_log,
)


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
    dry_run: DryRun = False,
    yes: Yes = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_format: LogFormat = LogFormats.TEXT,
    as_json: AsJson = False,
) -> None:
    """Prove that Bronze equals the source, or name the rows that differ."""
    import bronze
    from bronze.api.display import progress
    from bronze.cli import output
    from bronze.cli.screens import results

    with exit_codes(as_json):
        set_log(log_format, quiet, verbose)
        opened = bronze.open(config)
        if repair and not dry_run:
            confirm("Verify, and reload in Bronze what differs from the source?", yes)
        with stop_on_signals() as stop, progress.progress(as_json, verifying=True) as shown:
            result = opened.verify(
                tables or (),
                repair=repair and not dry_run,
                at_rest=at_rest,
                trust_hashes=trust_hashes,
                notify=shown.notify,
                stop=stop,
            )
        output.print_result(result) if as_json else results.verify_result(result, quiet)
        if repair and dry_run and not as_json:
            results.tables_to_repair(result)
        raise typer.Exit(result.exit_code)


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
    from bronze.cli import output
    from bronze.cli.screens import documents, reports

    with exit_codes(as_json):
        report = bronze.open(config).quality(tables or (), trend=trend)
        if as_json:
            output.print_json(documents.quality(report))
        else:
            reports.quality(report, trend)
        raise typer.Exit(report.exit_code)


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
    from bronze.cli import output
    from bronze.cli.screens import documents, reports
    from bronze.governance.audit_proof import moment

    with exit_codes(as_json):
        report = bronze.open(config).audit(
            verify=verify or bool(head),
            head=head,
            since=moment(since) if since else None,
            action=action,
            table=table,
        )
        output.print_json(documents.audit(report)) if as_json else reports.audit(report)
        raise typer.Exit(report.exit_code)
