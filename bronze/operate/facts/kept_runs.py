"""The last records of runs, kept in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO

import polars as pl

from bronze.governance.tables.runs import RunRecord
from bronze.operate.facts import run_reader

COMPRESSED_AFTER = 4_000
JOINED_AFTER = 20
MOST_PARTS = 100


@dataclass(frozen=True)
class KeptRuns:
    """Rows of records in the order in which they were written: many of them compressed, the newest
    as they are.
    """

    packed: tuple[bytes, ...] = ()
    unpacked: tuple[pl.DataFrame, ...] = ()

    @property
    def is_scattered(self) -> bool:
        """Whether these are many small parts: to read all from the lake again makes them few."""
        return len(self.packed) > MOST_PARTS

    def with_rows(self, rows: pl.DataFrame) -> KeptRuns:
        """These rows and more."""
        kept = self
        for part in rows.iter_slices(COMPRESSED_AFTER):
            kept = kept._with_part(part)
        return kept

    def _with_part(self, rows: pl.DataFrame) -> KeptRuns:
        unpacked = (*self.unpacked, rows)
        if sum(frame.height for frame in unpacked) >= COMPRESSED_AFTER:
            buffer = BytesIO()
            pl.concat(unpacked).write_ipc(buffer, compression="zstd")
            return KeptRuns((*self.packed, buffer.getvalue()))
        if len(unpacked) > JOINED_AFTER:
            # Each frame of a few rows takes as much memory and time as one of hundreds.
            unpacked = (pl.concat(unpacked, rechunk=True),)
        return KeptRuns(self.packed, unpacked)

    def frames(self, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
        """The rows, a part at a time, with these columns or all."""
        for packed in self.packed:
            yield pl.read_ipc(BytesIO(packed), columns=columns)
        for frame in self.unpacked:
            yield frame if columns is None else frame.select(columns)

    def records(self, wanted: pl.Expr, most: int) -> tuple[RunRecord, ...]:
        """The records that count and are wanted, the last of each table, the earliest first."""
        frames = [frame.filter(wanted) for frame in self.frames()]
        if not frames:
            return ()
        is_last = pl.int_range(pl.len()).reverse().over(run_reader.TABLE) < most
        return tuple(run_reader.of_rows(run_reader.merge(frames).filter(is_last)))

    def unsteady(self, keys: Iterable[str], most: int) -> list[str]:
        """Those of tables among whose last runs one has failed or has only begun, by their keys."""
        marks = [
            frame.filter(pl.col("command") == "run").select(
                run_reader.hash_of(run_reader.RUN).alias("run"),
                run_reader.KEY.hash().alias("key"),
                pl.col("status").is_in(["began", "failed"]).alias("is_unsteady"),
                run_reader.TIME,
            )
            for frame in self.frames([*run_reader.RUN, "status", run_reader.TIME])
        ]
        if not marks:
            return []
        rows = pl.concat(marks).sort(run_reader.TIME, maintain_order=True)
        rows = rows.unique("run", keep="last", maintain_order=True)
        is_last = pl.int_range(pl.len()).reverse().over("key") < most
        unsteady = rows.filter(is_last & pl.col("is_unsteady"))["key"]
        names = pl.Series(list(keys), dtype=pl.String)
        return names.filter(names.hash().is_in(unsteady.unique().implode())).to_list()
