"""A lake without a source: tables of rows that are written as a run or a stream writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import uuid_utils

from bronze.backup import copy
from bronze.backup.results import BackupResult
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, files, log
from bronze.delta.commit import Change, Shape
from bronze.delta.positions import Position
from bronze.governance import audit, writer
from bronze.governance.tables import runs, streams
from bronze.governance.tables.runs import RunRecord
from bronze.governance.tables.streams import Checkpoint
from bronze.model.columns import DeltaType
from bronze.model.locations import Place
from bronze.protection import row_removal

COLUMNS = (("id", DeltaType("long")), ("word", DeltaType("string")))
HISTORY = "7000000000000000001-1-5"
OID = 16384


@dataclass
class SmallLake:
    """A lake in ``folder``/lake with a copy in ``folder``/copy."""

    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0

    @property
    def settings(self) -> Settings:
        """Its config."""
        root = {"root": str(self.folder / "copy")}
        return Settings.from_dict(
            {
                "source": {"name": "shop", "dsn": "postgresql://nobody@nowhere/shop"},
                "lake": {"root": str(self.folder / "lake"), "schema": "bronze"},
                "backup": {**root, **self.options},
            }
        )

    @property
    def lake(self) -> Path:
        """The folder of the lake."""
        return self.folder / "lake"

    @property
    def copy(self) -> Path:
        """The folder of the copy."""
        return self.folder / "copy"

    def place(self, name: str = "bz_orders") -> Place:
        """A table."""
        return self.settings.place("bronze", name)

    def begin(self) -> SmallLake:
        """Gives the lake an audit log, by which it is known."""
        audit.record(self.settings, "run", "", "succeeded")
        return self

    def append(
        self, *words: str, name: str = "bz_orders", position: int | None = None, batch: str = ""
    ) -> int:
        """Appends rows to a table in one commit, as a stream does with a position; its version."""
        place = self.place(name)
        state = log.read(place)
        ids = range(self.number, self.number + len(words))
        self.number += len(words)
        rows = pl.DataFrame(
            {"id": list(ids), "word": list(words)}, schema_overrides={"id": pl.Int64}
        )
        batch = batch or str(uuid_utils.uuid7())
        file = files.write([rows], place, batch, ("id",))
        assert file is not None
        reached = None
        if position is not None:
            reached = Position(HISTORY, position, ((f"{OID}/stream", position),))
        shape = Shape(COLUMNS, ("id",)) if state is None else None
        change = Change("WRITE", [file])
        return commit.commit(
            place, state, change, {"batch_id": batch}, shape=shape, reached=reached
        )

    def checkpoint(self, position: int, versions: Mapping[str, int | None]) -> None:
        """Records a checkpoint of the stream, as a series of its own."""
        tables = ", ".join(
            f'"bronze.{name}": {"null" if v is None else v}' for name, v in versions.items()
        )
        record = Checkpoint(
            "bronze_shop", "shop", position, None, str(uuid_utils.uuid7()), 1, 1, 0, 0.0,
            f"{{{tables}}}", str(uuid_utils.uuid7()), 1,
        )  # fmt: skip
        writer.append_rows(
            self.settings.place(GOVERNANCE, streams.NAME),
            streams.COLUMNS,
            streams.frame(record),
            record.batch_id,
        )

    def note_run(self, run: str, batch: str, **statuses: str) -> None:
        """Records what a run did to tables of these names."""
        records = [
            RunRecord(
                run, "run", datetime.now(UTC), status=status, batch_id=batch,  # type: ignore[arg-type]
                source_system="shop", source_table=f"public.{name}",
                target_table=f"bronze.bz_{name}",
            )
            for name, status in statuses.items()
        ]  # fmt: skip
        writer.append_rows(
            self.settings.place(GOVERNANCE, runs.NAME),
            runs.COLUMNS,
            runs.frame(records),
            str(uuid_utils.uuid7()),
        )

    def erase(self, word: str) -> None:
        """Removes the rows with a word from all versions, as `forget` does."""
        row_removal.remove_records(self.place(), lambda rows: rows["word"] == word, ["word"])

    def back_up(self) -> BackupResult:
        """Makes a generation."""
        return copy.back_up(self.settings)

    def words(self, root: Path, version: int | None = None, name: str = "bz_orders") -> list[str]:
        """The words of a table, read by deltalake."""
        from deltalake import DeltaTable

        table = DeltaTable(str(root / "bronze" / name), version=version)
        return sorted(table.to_pyarrow_table()["word"].to_pylist())

    def objects(self, root: Path, under: str = "") -> dict[str, bytes]:
        """All objects under a folder, with their bytes."""
        folder = root / under
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


def manifests(lake: SmallLake) -> Sequence[Path]:
    """The files of the manifests, the oldest first."""
    return sorted((lake.copy / "_backup" / "manifests").iterdir())
