"""The commands about personal data: reveal, forget and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bronze.cli.commands.options import AsJson, Config, Tables
from bronze.cli.failures import exit_codes


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
    from bronze.cli.screens import reports
    from bronze.protection.subject import row_selection

    with exit_codes(as_json):
        names = [name.strip() for name in columns.split(",") if name.strip()]
        rows = bronze.open(config).reveal(
            table, key=row_selection.key_values(key or ()), columns=names, limit=limit
        )
        reports.revealed_rows(rows, "json" if as_json else "csv" if as_csv else "")


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
    from bronze.cli import output
    from bronze.cli.screens import results
    from bronze.protection.subject import row_selection

    with exit_codes(as_json):
        opened = bronze.open(config)
        if old_versions:
            done = opened.delete_old_versions(table)
        else:
            done = opened.forget(table, row_selection.key_values(key or ()), ask=not without_source)
        output.print_result(done) if as_json else results.erasure_result(done)
        raise typer.Exit(done.exit_code)


keys_app = typer.Typer(
    help="The keys that protect personal data.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@keys_app.callback()
def keys(
    context: typer.Context, config: Config = Path("bronze.toml"), as_json: AsJson = False
) -> None:
    """List the keys, without their secrets."""
    import bronze
    from bronze.cli.screens import reports

    if context.invoked_subcommand is None:
        with exit_codes(as_json):
            reports.keys(bronze.open(config).keys(), as_json)
        return
    sources = {context.get_parameter_source(name) for name in ("config", "as_json")}
    if any(source and source.name == "COMMANDLINE" for source in sources):
        raise typer.BadParameter("options come after the command: bronze keys rotate -c …")


@keys_app.command()
def new() -> None:
    """Print a new master key, for BRONZE_MASTER_KEY or a secret store. It is stored nowhere."""
    from bronze.protection import keyring

    print(keyring.new_master())


@keys_app.command()
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
    from bronze.cli.screens import reports

    with exit_codes(as_json):
        reports.keys(bronze.open(config).rotate_keys(tables or (), reencrypt=reencrypt), as_json)


@keys_app.command()
def rewrap(config: Config = Path("bronze.toml"), as_json: AsJson = False) -> None:
    """Wrap all keys with the master key [protection] key; previous unwraps the old ones."""
    import bronze
    from bronze.cli.screens import results

    with exit_codes(as_json):
        results.rewrapped_keys(bronze.open(config).rewrap_keys(), as_json)
