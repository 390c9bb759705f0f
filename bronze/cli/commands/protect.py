"""The commands about personal data: reveal, forget and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bronze.cli.failures import exit_codes
from bronze.cli.groups import epilog
from bronze.cli.options import AsJson, Config, DryRun, Tables, Yes, confirm
from bronze.errors import ConfigError


def reveal(
    table: Annotated[str, typer.Argument(help="The Bronze table, or the source's.")],
    key: Annotated[
        list[str] | None, typer.Option("--key", help="Only rows like this: customer_id=42")
    ] = None,
    columns: Annotated[str, typer.Option(help="Only these columns, separated by commas.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="How many rows at most; 0 is all.")] = 100,
    all_columns: Annotated[
        bool, typer.Option("--all", help="Also the columns that bronze adds.")
    ] = False,
    config: Config = Path("bronze.toml"),
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, nothing else.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show rows with their encrypted values decrypted; the audit log records it."""
    import bronze
    from bronze.cli import output
    from bronze.cli.screens import revealed
    from bronze.protection import reveal as reveal_rows
    from bronze.protection.subject import row_selection

    with exit_codes(as_json):
        opened = bronze.open(config)
        names = [name.strip() for name in columns.split(",") if name.strip()]
        selected = row_selection.key_values(key or ())
        rows = opened.reveal(table, key=selected, columns=names, limit=limit)
        if as_json or as_csv:
            revealed.print_document(rows, "json" if as_json else "csv")
        elif rows.height or not selected:
            facts = reveal_rows.revealed_table(opened.config, table)
            hidden = () if names or all_columns else facts.metadata
            is_cut = bool(selected) and rows.height == limit
            total = None if is_cut else rows.height if selected else facts.rows
            revealed.print_rows(rows, facts.protected, hidden, total)
        if selected and not rows.height:
            output.print_error(
                "No row matches.", "Check the value, and that it is written as PostgreSQL does."
            )
            raise typer.Exit(1)


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
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = Path("bronze.toml"),
    as_json: AsJson = False,
) -> None:
    """Erase a person's rows: from the table, its older versions and its change data feed."""
    import bronze
    from bronze.cli import output
    from bronze.cli.screens import erasures
    from bronze.protection.subject import row_selection

    with exit_codes(as_json):
        opened = bronze.open(config)
        selected = row_selection.key_values(key or ())
        if old_versions:
            if dry_run:
                raise ConfigError("--dry-run shows the rows of --key, not older versions.")
            confirm(f"Delete all older versions of {table} for good?", yes)
            done = opened.delete_old_versions(table)
        else:
            if not dry_run and selected:
                what = ", ".join(selected)
                confirm(f"Erase the rows of {table} with this {what} for good?", yes)
            done = opened.forget(table, selected, ask=not without_source, dry_run=dry_run)
        output.print_result(done) if as_json else erasures.erasure_result(done, dry_run)
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


@keys_app.command(epilog=epilog("bronze keys new"))
def new() -> None:
    """Print a new master key, for BRONZE_MASTER_KEY or a secret store. It is stored nowhere."""
    from bronze.protection import keyring

    print(keyring.new_master())


@keys_app.command(epilog=epilog("bronze keys rotate customers --dry-run"))
def rotate(
    tables: Tables = None,
    reencrypt: Annotated[
        bool,
        typer.Option("--reencrypt", help="All keys; the next run reloads the tables."),
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    config: Config = Path("bronze.toml"),
    as_json: AsJson = False,
) -> None:
    """Make new keys; what the old ones have encrypted stays readable."""
    import bronze
    from bronze.cli import output
    from bronze.cli.screens import reports

    with exit_codes(as_json):
        opened = bronze.open(config)
        if reencrypt and not dry_run:
            which = ", ".join(tables or ()) or "all protected tables"
            confirm(f"Make new keys, and have the next run reload {which}?", yes)
        made = opened.rotate_keys(tables or (), reencrypt=reencrypt, dry_run=dry_run)
        if dry_run and not as_json:
            output.print_line("Would make new keys in place of these:")
        reports.keys(made, as_json)


@keys_app.command(epilog=epilog("bronze keys rewrap"))
def rewrap(config: Config = Path("bronze.toml"), as_json: AsJson = False) -> None:
    """Wrap all keys with the master key of the config; `previous` of it unwraps the old ones."""
    import bronze
    from bronze.cli.screens import results

    with exit_codes(as_json):
        results.rewrapped_keys(bronze.open(config).rewrap_keys(), as_json)
