"""What is unlike the rest of a table is told: rows that are anomalies, and a run whose rows are as
a whole unlike those of the runs before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl

from bronze.anomaly.detection import reasons_of
from bronze.anomaly.models import earlier_profiles, store_records
from bronze.config.settings import GOVERNANCE, Settings
from bronze.errors import BronzeError
from bronze.governance.tables import anomalies, profiles
from bronze.governance.tables.profiles import Scope
from bronze.model.anomaly import KEY_COLUMN, SCORE_COLUMN, Model, Monitoring
from bronze.model.stamp import RowStamp
from bronze.model.units import Findings
from bronze.tables.selection import Target

# A run is held against so many before it, once there are so many.
_HISTORY = 20
_LEAST = 5
# Beyond so many deviations it is far from them. One is the median absolute deviation, as the
# standard deviation of a normal distribution, or what is taken for chance in any case: a share of
# the usual value, or of all rows.
_FAR = 5.0
_NORMAL = 1.4826
_CHANCE = 0.05
_CHANCE_OF_NULLS = 0.01


@dataclass(frozen=True)
class Far:
    """A measure of a run that is far from what is ``usual``, by so many deviations."""

    measure: str
    column: str
    value: float
    usual: float
    deviations: float

    def __str__(self) -> str:
        what = f"{self.measure.replace('_', ' ')}{' of ' + self.column if self.column else ''}"
        return f"unusual: {what} is {self.value:,.6g}, where {self.usual:,.6g} is usual"


def far(now: Mapping[str, float], before: Sequence[Mapping[str, float]]) -> Iterator[Far]:
    """The measures that are far from those of earlier runs; none where these are too few.

    Args:
        now: a run's, as in `bronze.governance.tables.profiles.measures`.
        before: those of earlier runs.
    """
    for name, value in now.items():
        measure, _, column = name.partition(" ")
        known = [one[name] for one in before if name in one]
        few = min([now["rows"], *(one["rows"] for one in before)]) < profiles.LEAST
        if len(known) < _LEAST or (few and measure != "rows"):
            continue
        usual = float(np.median(known))
        spread = _NORMAL * float(np.median(np.abs(np.array(known) - usual)))
        chance = _CHANCE_OF_NULLS if measure == "null_share" else _CHANCE * abs(usual)
        deviations = abs(value - usual) / max(spread, chance, np.finfo(float).tiny)
        if deviations > _FAR:
            yield Far(measure, column, value, usual, min(deviations, 1e6))


def record_findings(
    settings: Settings,
    target: Target,
    stamp: RowStamp,
    watch: Monitoring,
    findings: Findings,
    scope: Scope,
) -> tuple[str, ...]:
    """Enters what was found out about rows that have landed into the books.

    The rows stand, and say themselves which of them are anomalies: so a book that cannot be
    written is told, and no failure.

    Returns:
        What there is to say about the run.
    """
    if not watch.profiled:
        return ()
    try:
        return _record(settings, target, stamp, watch, findings, scope)
    except BronzeError as error:
        return (f"the anomalies were not entered into the books: {error.message}",)


def _record(
    settings: Settings,
    target: Target,
    stamp: RowStamp,
    watch: Monitoring,
    findings: Findings,
    scope: Scope,
) -> tuple[str, ...]:
    at, profile, outliers = datetime.now(UTC), findings.profile, findings.outliers
    before = earlier_profiles(settings, target).filter(pl.col("scope") == scope).tail(_HISTORY)
    strange: list[Far] = []
    if profile.rows or scope == "whole":
        known = [json.loads(text) for text in before["measures"]]
        strange = list(far(profiles.measures(profile), known))
    records = [_runs(strange)] if strange else []
    if watch.model and outliers.count:
        records.append(_rows(watch.model, findings))
    if records:
        frame = anomalies.frame(
            pl.concat(records),
            at=at,
            stamp=stamp,
            source_table=target.label,
            target_table=target.full_name,
        )
        place = settings.place(GOVERNANCE, anomalies.NAME)
        store_records(place, anomalies.COLUMNS, frame, stamp.batch_id)
    if profile.rows or scope == "whole":
        frame = profiles.frame(
            profile,
            outliers,
            scope=scope,
            model=watch.model.version if watch.model else None,
            at=at,
            stamp=stamp,
            source_table=target.label,
            target_table=target.full_name,
        )
        place = settings.place(GOVERNANCE, profiles.NAME)
        store_records(place, profiles.COLUMNS, frame, stamp.batch_id)
    return tuple(map(str, strange))


_SCHEMA = {
    "level": pl.String,
    "row_key": pl.String,
    "anomaly_score": pl.Float64,
    "threshold": pl.Float64,
    "model_version": pl.String,
    "columns": pl.String,
}


def _rows(model: Model, findings: Findings) -> pl.DataFrame:
    """Records of the most striking rows."""
    rows = findings.outliers.rows
    return pl.DataFrame(
        {
            "level": [anomalies.ROW] * rows.height,
            "row_key": rows[KEY_COLUMN],
            "anomaly_score": rows[SCORE_COLUMN],
            "threshold": [model.threshold] * rows.height,
            "model_version": [model.version] * rows.height,
            "columns": reasons_of(model, findings.outliers),
        },
        schema=_SCHEMA,
    )


def _runs(found: Sequence[Far]) -> pl.DataFrame:
    """A record of each measure."""
    written = [
        json.dumps(
            [
                {
                    "column": f.column or None,
                    "measure": f.measure,
                    "value": f.value,
                    "usual": f.usual,
                }
            ],
            ensure_ascii=False,
        )
        for f in found
    ]
    return pl.DataFrame(
        {
            "level": [anomalies.RUN] * len(found),
            "row_key": [None] * len(found),
            "anomaly_score": [f.deviations for f in found],
            "threshold": [_FAR] * len(found),
            "model_version": [None] * len(found),
            "columns": written,
        },
        schema=_SCHEMA,
    )
