"""The commands that load: run and stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bronze.cli.failures import exit_codes, stop_on_signals
from bronze.cli.options import (
    AsJson,
    Config,
    DryRun,
    LogFormat,
    LogFormats,
    Quiet,
    Tables,
    Verbose,
    Yes,
    confirm,
    set_log,
)
from bronze.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bronze.api.client import Bronze
    from bronze.model.events import StreamEvent


def run(
    tables: Tables = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(help='Also all tables of this pattern: "batch", "micro_batch", …'),
    ] = None,
    config: Config = Path("bronze.toml"),
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_format: LogFormat = LogFormats.TEXT,
    as_json: AsJson = False,
) -> None:
    """Load tables from PostgreSQL into the lake from one snapshot."""
    import bronze
    from bronze.api.display import progress
    from bronze.cli import output
    from bronze.cli.screens import results

    with exit_codes(as_json):
        set_log(log_format, quiet, verbose)
        opened = bronze.open(config)
        names = tables or []
        if pattern:
            from bronze.tables import selection

            names = [*names, *map(selection.of_pattern, pattern)]
        with stop_on_signals() as stop, progress.progress(as_json) as shown:
            result = opened.run(names, notify=shown.notify, planned=shown.planned, stop=stop)
        output.print_result(result) if as_json else results.run_result(result, quiet)
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
    dry_run: DryRun = False,
    yes: Yes = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    log_format: LogFormat = LogFormats.TEXT,
    as_json: AsJson = False,
) -> None:
    """Apply the changes of tables whose pattern is "streaming", within seconds."""
    import bronze
    from bronze.api.display import progress
    from bronze.cli import output
    from bronze.cli.screens import results

    with exit_codes(as_json):
        set_log(log_format, quiet, verbose)
        opened = bronze.open(config)
        if drop:
            _drop(opened, tables or (), dry_run, yes, as_json)
            return
        if dry_run:
            raise ConfigError("--dry-run is for --drop.", hint="`bronze check` shows the rest.")
        log = progress.stream_log(as_json, opened.stream_name(tables or ()))
        with stop_on_signals() as stop, progress.progress(as_json, "Connecting") as copied:

            def note(event: StreamEvent) -> None:
                copied.begun()
                log(event)

            result = opened.stream(
                tables or (),
                until_caught_up=until_caught_up,
                stop=stop,
                notify=note,
                copied=copied.notify,
            )
        output.print_result(result) if as_json else results.stream_result(result, quiet)
        raise typer.Exit(result.exit_code)


def _drop(opened: Bronze, tables: Sequence[str], dry_run: bool, yes: bool, as_json: bool) -> None:
    from bronze.cli.screens import results

    name = opened.stream_name(tables)
    if dry_run:
        results.stream_to_drop(name, as_json)
        return
    confirm(
        f"Drop the replication slot {name} and its publication? The next stream compares all of its"
        " tables with the source.",
        yes,
    )
    results.dropped_stream(opened.drop_stream(tables), as_json)
