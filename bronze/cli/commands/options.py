"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[
    Path,
    typer.Option("-c", "--config", envvar="BRONZE_CONFIG", help="The config file."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]
Tables = Annotated[
    list[str] | None,
    typer.Argument(help="Tables (table or schema.table); all of the config if none."),
]
