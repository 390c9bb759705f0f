"""The latest quality figures of tables, read from the newest files of ``governance.quality``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import files, log
from bronze.governance.tables import quality as quality_table
from bronze.governance.tables.quality import Figure
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.quality import checks, report

_SCORE = ("evaluated_timestamp", "target_table", "kind", "rule", "checked", "measured")
_SCORE_COLUMNS = tuple(column for column in quality_table.COLUMNS if column[0] in _SCORE)


@dataclass(frozen=True)
class Score:
    """The average ``score`` of the ``rows`` of a table that were evaluated at a time."""

    evaluated: datetime
    rows: int
    score: float


@dataclass(frozen=True)
class LatestFigures:
    """The figures of the last run or batches of a table, which were evaluated at a time."""

    evaluated: datetime
    figures: tuple[Figure, ...]

    @property
    def failing(self) -> tuple[Figure, ...]:
        """Those of rules that rows fail, and of checks that are not met, the most failures first.

        That of freshness is not among them: it is of the time of the run.
        """
        found = [
            figure
            for figure in self.figures
            if (figure.failed if figure.kind != "check" else figure.passed is False)
            and figure.rule != checks.FRESHNESS
        ]
        return tuple(sorted(found, key=lambda figure: (-(figure.share or 0), figure.rule)))


def scores_in(place: Place, file: StoredFile) -> Iterator[tuple[str, Score]]:
    """The scores that a file of ``governance.quality`` has of rows, by the Bronze tables.

    Raises:
        FileDamaged, LakeUnreachable: it cannot be read.
    """
    is_score = (pl.col("kind") == "check") & (pl.col("rule") == checks.SCORE)
    has_rows = (pl.col("checked") > 0) & pl.col("measured").is_not_null()
    for _, part in files.parts(files.open_parquet(place, file), _SCORE_COLUMNS):
        for row in pl.DataFrame(part).filter(is_score, has_rows).iter_rows(named=True):
            score = Score(row["evaluated_timestamp"], row["checked"], row["measured"])
            yield row["target_table"], score


def figures_of(settings: Settings, target: str) -> LatestFigures | None:
    """The latest figures of a Bronze table by its full name, None if there are none.

    Raises:
        LakeError, LakeUnreachable: they cannot be read.
    """
    place = settings.place(GOVERNANCE, quality_table.NAME)
    state = log.read(place)
    last: pl.DataFrame | None = None
    written = pl.col("evaluated_timestamp")
    for file in state.files if state else ():
        # Part by part: those of all tables may be millions.
        for _, part in files.parts(files.open_parquet(place, file), quality_table.COLUMNS):
            rows = pl.DataFrame(part).filter(pl.col("target_table") == target)
            rows = rows if last is None else pl.concat([last, rows])
            last = rows.filter(pl.col("batch_id") == pl.col("batch_id").get(written.arg_max()))
    if last is None or not last.height:
        return None
    return LatestFigures(last["evaluated_timestamp"][0], report.figures(last))
