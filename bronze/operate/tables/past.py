"""The runs that the lake has records of, as the service needs them when it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bronze.config.settings import Settings
from bronze.governance import run_log
from bronze.governance.tables import runs
from bronze.governance.tables.runs import RunRecord
from bronze.operate.records import rows_of

Runs = Mapping[str, Sequence[RunRecord]]

_FIELDS = tuple(name.removesuffix("_timestamp") for name, _ in runs.COLUMNS[:-1])


def all_runs(settings: Settings) -> Mapping[str, Sequence[RunRecord]]:
    """The records that count by table (SOURCE.SCHEMA.TABLE), the earliest first; what is about no
    table is under "".

    Raises:
        LakeError, LakeUnreachable: they cannot be read.
    """
    rows = rows_of(run_log.place(settings), runs.COLUMNS)
    found: dict[str, list[RunRecord]] = {}
    if rows is not None:
        last = runs.latest(rows.lazy()).collect().sort("began_timestamp", maintain_order=True)
        for row in last.drop("recorded_timestamp").rows():
            record = RunRecord(**dict(zip(_FIELDS, row, strict=True)))
            label = record.source_table
            found.setdefault(f"{record.source_system}.{label}" if label else "", []).append(record)
    return found
