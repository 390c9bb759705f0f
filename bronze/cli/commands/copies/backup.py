"""The command `bronze backup`: copies the lake, lists the copies, and proves them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bronze.cli.failures import exit_codes, stop_on_signals
from bronze.cli.options import AsJson, Config
from bronze.printable import count, size

if TYPE_CHECKING:
    from bronze.backup.manifest import Manifest
    from bronze.backup.results import BackupResult, VerifiedCopy


def backup(
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the copy back, and compare it with its hashes.")
    ] = False,
    sample: Annotated[
        str, typer.Option(help='With --verify: read a part of the data files, such as "5%".')
    ] = "",
    list_: Annotated[
        bool, typer.Option("--list", help="List the generations of the copy.")
    ] = False,
    config: Config = Path("bronze.toml"),
    as_json: AsJson = False,
) -> None:
    """Copy what has changed in the lake to [backup] root, as of one moment."""
    import bronze
    from bronze.cli import output
    from bronze.errors import ConfigError

    with exit_codes(as_json):
        opened = bronze.open(config)
        if (sample and not verify) or (list_ and verify):
            raise ConfigError(
                "--sample goes with --verify, and --list alone.", hint="bronze backup --help"
            )
        if list_:
            _print_generations(opened.generations(), as_json)
            return
        with stop_on_signals() as stop:
            if verify:
                proof = opened.verify_backup(sample=sample or "100%", stop=stop)
                output.print_result(proof) if as_json else _print_proof(proof)
                raise typer.Exit(proof.exit_code)
            result = opened.backup(stop=stop)
        output.print_result(result) if as_json else _print_backup(result)
        raise typer.Exit(result.exit_code)


def _print_backup(result: BackupResult) -> None:
    from bronze.cli.output import print_error, print_line

    print_line(
        f"Generation {result.generation} of {result.made:%Y-%m-%d %H:%M:%S} UTC:"
        f" {count(len(result.tables), 'table')}, {count(result.total_objects, 'object')},"
        f" {size(result.total_bytes)}"
    )
    print_line(
        f"{count(result.objects, 'object')} copied, {size(result.bytes)}, in {result.seconds:.1f} s"
    )
    if result.behind is not None:
        print_line(f"The copy was {_duration(result.behind)} behind.")
    if result.expired:
        print_line(f"{count(result.expired, 'generation')} past the retention deleted.")
    for name, reason in result.excluded.items():
        print_line(f"{name} is not in it: {reason}")
    for table in result.tables:
        if table.error:
            state = f"stays at version {table.version}" if table.version is not None else "is not"
            print_error(f"{table.target} {state} in the copy: {table.error.message}",
                        table.error.hint)  # fmt: skip
    if result.erasures:
        print_error(
            f"{count(len(result.erasures), 'erasure has', 'erasures have')} not reached the copy:"
        )
    for erasure in result.erasures:
        print_error(f"{erasure.table}, of {erasure.at:%Y-%m-%d %H:%M:%S} UTC: {erasure.reason}")
    if result.unrecorded:
        print_error(
            f"The audit log has no record of it: {result.unrecorded.message}",
            result.unrecorded.hint,
        )


def _print_proof(proof: VerifiedCopy) -> None:
    from bronze.cli.output import print_error, print_line

    for fault in proof.faults:
        print_error(fault)
    found = count(len(proof.faults), "fault") if proof.faults else "no fault"
    print_line(
        f"{count(proof.generations, 'generation')}, {proof.objects:,} of"
        f" {count(proof.total_objects, 'object')}"
        f" read ({size(proof.bytes)}) in {proof.seconds:.1f} s: {found}"
    )


def _print_generations(generations: tuple[Manifest, ...], as_json: bool) -> None:
    from bronze.cli.output import print_figures, print_json, print_line

    if as_json:
        print_json(
            [
                {"id": g.id, "made": g.made.isoformat(), "tables": len(g.tables),
                 "objects": g.objects, "bytes": g.bytes}
                for g in generations
            ]
        )  # fmt: skip
        return
    if not generations:
        print_line("There is no generation yet.")
        return
    rows = [
        (str(g.id), f"{g.made:%Y-%m-%d %H:%M:%S}", str(len(g.tables)), f"{g.objects:,}",
         size(g.bytes))
        for g in generations
    ]  # fmt: skip
    print_figures(("generation", "made (UTC)", "tables", "objects", "size"), rows)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days"
