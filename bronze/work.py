"""What a worker does with a unit: read → enrich → files.

It knows nothing of other units and keeps nothing, so it runs in a thread, a process or on another
machine alike, and may run twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import polars as pl
import tenacity

from bronze.enrich.stamp import stamped
from bronze.errors import SourceUnreachable
from bronze.model import Rejected, Unit, Written
from bronze.source import read
from bronze.table import files

_TRIES = 4
_MAX_DELAY = 8.0


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(SourceUnreachable),
    stop=tenacity.stop_after_attempt(_TRIES),
    wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=_MAX_DELAY),
    reraise=True,
)
def work(unit: Unit) -> Written:
    """Reads a unit's slices and writes them as one file beside the table.

    A connection that is cut is made anew and the unit begun again; nothing of it was visible.

    Raises:
        SourceError, LakeError
    """
    began = time.monotonic()
    found: list[Rejected] = []
    file = files.write(_bronze_rows(unit, found), unit.place, unit.stamp.batch_id, unit.stats)
    rows = file.rows if file else 0
    return Written(unit.number, rows, file, tuple(found), time.monotonic() - began)


def _bronze_rows(unit: Unit, found: list[Rejected]) -> Iterator[pl.DataFrame]:
    frames = read.rows(unit.origin, unit.session, unit.query, unit.slices, unit.columns, unit.table)

    def enriched(read_slice: tuple[pl.DataFrame, pl.Series]) -> pl.DataFrame:
        rows, rejected = read_slice
        found.extend(_rejections(rows, rejected, unit))
        return stamped(rows, rejected, unit.stamp)

    # Unlike a loop, map keeps no slice while the next one is read.
    return map(enriched, frames)


def _rejections(rows: pl.DataFrame, rejected: pl.Series, unit: Unit) -> Iterator[Rejected]:
    if rejected.null_count() == len(rejected):
        return
    where = rejected.is_not_null()
    kept = rows.filter(where)
    keys = kept.select(unit.key).rows(named=True) if unit.key else [{}] * kept.height
    for key, lines in zip(keys, rejected.filter(where), strict=True):
        written = json.dumps(key, default=str, ensure_ascii=False)
        for line in lines.removesuffix("\n").split("\n"):
            column, text = json.loads(line)
            yield Rejected(column, written, text)
