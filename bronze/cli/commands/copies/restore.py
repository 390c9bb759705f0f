"""The commands about what survives a lost lake: `restore` and `drill`; and `check --drift`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bronze.cli.failures import exit_codes, stop_on_signals
from bronze.cli.options import AsJson, Config
from bronze.printable import count, size

if TYPE_CHECKING:
    from bronze.api.drift import DriftReport
    from bronze.backup.recovery.drill import DrillResult
    from bronze.backup.recovery.metadata import MetadataReport
    from bronze.backup.recovery.restore import RestoreResult

_DEFAULT = Path("bronze.toml")


def restore(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Bronze tables; all of the generation if none.")
    ] = None,
    to: Annotated[str, typer.Option(help="The root to restore into; it has to be empty.")] = "",
    at: Annotated[
        str, typer.Option(help='A generation, or a time: "7", "12h", "2026-05-01T08:00".')
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be restored.")
    ] = False,
    metadata: Annotated[
        bool,
        typer.Option(
            "--metadata",
            help="Only show the metadata of a day (schemas, properties, versions, keys, config),"
            " and how the lake differs from it.",
        ),
    ] = False,
    config: Config = _DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Restore a generation of the copy ([backup]) into an empty root, each object by its hash."""
    import bronze
    from bronze.cli import output

    if not to and not metadata:
        raise typer.BadParameter("--to is missing: the root to restore into")
    with exit_codes(as_json):
        opened = bronze.open(config)
        if metadata:
            report = opened.metadata(at=at, to=to)
            output.print_result(report) if as_json else _print_metadata(report)
            raise typer.Exit(report.exit_code)
        with stop_on_signals() as stop:
            result = opened.restore(to, tables or (), at=at, dry_run=dry_run, stop=stop)
        output.print_result(result) if as_json else _print_restored(result)
        raise typer.Exit(result.exit_code)


def _print_metadata(report: MetadataReport) -> None:
    from bronze.cli import output

    snapshot = report.snapshot
    rows = [
        [name, str(table.version), str(len(table.columns)), str(len(table.properties))]
        for name, table in snapshot.tables.items()
    ]
    output.print_figures(("Bronze table", "version", "columns", "properties"), rows)
    output.print_line(
        f"The lake at {snapshot.root}, {snapshot.taken}, generation {snapshot.generation}:"
        f" {count(len(snapshot.tables), 'table')}, {count(len(snapshot.keys), 'key')},"
        f" {count(len(snapshot.config), 'value')}"
        f" of the config; the copy has {_days(len(report.days))} since {report.days[0]}"
    )
    for text in report.changes:
        output.print_line(text)
    for text in report.lacking:
        output.print_error(text)
    if not report.lacking:
        output.print_line(f"The lake at {report.root} has all of it.")


def _days(number: int) -> str:
    return f"snapshots of {number:,} days" if number > 1 else "the snapshot of one day"


def _print_restored(result: RestoreResult) -> None:
    from bronze.cli import output

    rows = [
        [
            table.target,
            str(table.version),
            f"{table.objects:,}",
            size(table.bytes),
            "not restored" if table.error else "" if result.is_dry else f"{table.copied:,}",
        ]
        for table in result.tables
    ]
    output.print_figures(("Bronze table", "version", "objects", "size", "copied"), rows)
    for table in result.tables:
        if table.error:
            output.print_error(f"{table.target}: {table.error.message}", table.error.hint)
    for note in result.notes:
        output.print_line(note)
    made = result.made.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    done = "would be restored into" if result.is_dry else "is restored into"
    output.print_line(
        f"Generation {result.generation}, made {made}, {done} {result.root}:"
        f" {count(result.objects, 'object')}, {size(result.bytes)}, {result.seconds:.1f} s"
    )
    if not result.is_dry and not result.exit_code:
        output.print_line("To go on from it, name it as root under [lake].")


def print_drift(report: DriftReport, as_json: bool) -> None:
    """Prints how the config that ran last differs from its file and its commit, and exits."""
    from bronze.cli import output

    if as_json:
        output.print_result(report)
        raise typer.Exit(report.exit_code)
    for problem in report.problems:
        output.print_error(problem)
    for note in report.notes:
        output.print_line(f"note: {note}")
    if not report.problems:
        commit = f", commit {report.commit[:12]}" if report.commit else ""
        output.print_line(f"{report.path}: no drift ({report.hash[:12]}{commit})")
    raise typer.Exit(report.exit_code)


def drill(
    to: Annotated[str, typer.Option(help="The root for the scratch lake.")] = "",
    config: Config = _DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Rehearse a recovery: restore the newest copy, verify, read, decrypt and delete it."""
    import bronze
    from bronze.cli import output

    with exit_codes(as_json):
        with stop_on_signals() as stop:
            result = bronze.open(config).drill(to, stop=stop)
        output.print_result(result) if as_json else _print_drill(result)
        raise typer.Exit(result.exit_code)


def _print_drill(result: DrillResult) -> None:
    from bronze.cli import output

    record = result.record
    stages = ", ".join(f"{name} in {seconds:.1f} s" for name, seconds in result.stages)
    output.print_line(
        f"Generation {record.generation}: {count(record.tables, 'table')},"
        f" {count(record.rows, 'row')}, {count(record.objects, 'object')}, {size(record.bytes)}"
    )
    output.print_line(f"{stages}")
    output.print_line(f"decrypted: {record.decrypted or 'the lake has no encrypted value'}")
    output.print_line(
        f"{record.recovery_seconds:.1f} s to recover (rto {record.rto_seconds:,} s),"
        f" {record.lost_seconds:.0f} s lost (rpo {record.rpo_seconds:,} s): {record.result}",
        "green" if record.result == "passed" else "red",
    )
    for note in result.notes:
        output.print_error(note)
    if record.message:
        output.print_error(record.message)
    if result.unrecorded:
        output.print_error(
            f"The drill could not be recorded: {result.unrecorded.message}", result.unrecorded.hint
        )
