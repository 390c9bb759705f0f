"""The commands for dbt: what it reads of the lake, and its data tests as rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bronze.cli.failures import exit_codes
from bronze.cli.options import Config


def dbt_sources(
    tables: Annotated[
        list[str] | None, typer.Argument(help="Bronze tables; all in the lake if none.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A file, which is replaced; else stdout.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask PostgreSQL for its comments.")
    ] = False,
    config: Config = Path("bronze.toml"),
) -> None:
    """Write the sources.yml of dbt: types, comments, freshness, and rules as data tests."""
    import bronze

    with exit_codes(False):
        _write(bronze.open(config).dbt_sources(tables or (), ask=not offline), out)


def dbt_rules(
    file: Annotated[Path, typer.Argument(help="A schema file of dbt, such as schema.yml.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A file, which is replaced; else stdout.")
    ] = None,
    config: Config = Path("bronze.toml"),
) -> None:
    """Print the data tests of dbt as rules for bronze.toml, where they mean the same."""
    from bronze.api.dbt import rules_text
    from bronze.config.settings import Settings

    with exit_codes(False):
        # A config that is still to be written has no names of sections.
        settings = Settings.from_file(config) if config.exists() else None
        _write(rules_text.rules_text(file, settings), out)


def _write(text: str, out: Path | None) -> None:
    from bronze.cli import output
    from bronze.errors import ConfigError

    if out is None:
        output.print_document(text)
        return
    try:
        out.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(f"The file {out} cannot be written: {error.strerror}.") from None
    output.print_line(f"Wrote {out}.")
