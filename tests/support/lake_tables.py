"""Bronze tables in a folder, without a source and a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bronze.delta import commit, log
from bronze.model.columns import Column, DeltaType, ProtectionRule
from bronze.model.locations import Place
from bronze.rows.metadata import METADATA_COLUMNS
from bronze.tables.evolution import protection_property

Columns = Sequence[tuple[str, DeltaType]]


def make(
    root: Path, name: str, columns: Columns, protect: Mapping[str, ProtectionRule] | None = None
) -> None:
    """Makes ``bz_<name>`` of the source table ``public.<name>``, or gives it other columns."""
    place = Place(str(root / "shop" / f"bz_{name}"))
    known = {"bronze.source": "crm", "bronze.table": f"public.{name}", "bronze.schema": "public"}
    numbers = {column: number for number, (column, _) in enumerate(columns, 1)}
    protected = [_column(column, kind, (protect or {}).get(column)) for column, kind in columns]
    notes = {
        **known,
        "bronze.oid": "16400",
        "bronze.columns": json.dumps(numbers),
        "bronze.protect": protection_property(protected),
    }
    shape = commit.Shape(
        (*columns, *METADATA_COLUMNS), (columns[0][0],), notes=tuple(notes.items())
    )
    commit.commit(place, log.read(place), commit.Change("WRITE", []), {}, shape=shape)


def _column(name: str, kind: DeltaType, protect: ProtectionRule | None) -> Column:
    return Column(name, name, "", kind, "same", "", "", "", "", protect=protect)
