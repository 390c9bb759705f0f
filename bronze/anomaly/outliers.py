"""Records anomalies: rows that differ from the others of their table, and runs whose rows as a
whole differ from those of earlier runs.
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
from bronze.governance.json_values import json_value
from bronze.governance.tables.anomaly import anomalies, profiles
from bronze.governance.tables.anomaly.profiles import Scope
from bronze.model.anomaly import KEY_COLUMN, SCORE_COLUMN, Model, Monitoring
from bronze.model.stamp import RowStamp
from bronze.model.units import Findings
from bronze.tables.selection import Target

# A run is compared with at most _HISTORY and at least _MIN_HISTORY earlier runs.
_HISTORY = 20
_MIN_HISTORY = 5
# The number of deviations beyond which a measure is unusual. A deviation is the median absolute
# deviation, scaled to the standard deviation of a normal distribution, but at least a share of the
# usual value (for NULLs a share of all rows), which counts as chance.
_MAX_DEVIATIONS = 5.0
_NORMAL = 1.4826
_CHANCE = 0.05
_CHANCE_OF_NULLS = 0.01


@dataclass(frozen=True)
class UnusualMeasure:
    """A measure of a run, its ``usual`` value, and their difference in deviations."""

    measure: str
    column: str
    value: float
    usual: float
    deviations: float

    def __str__(self) -> str:
        name = f"{self.measure.replace('_', ' ')}{' of ' + self.column if self.column else ''}"
        return f"unusual: {name} is {self.value:,.6g}, where {self.usual:,.6g} is usual"


def unusual_measures(
    now: Mapping[str, float], before: Sequence[Mapping[str, float]]
) -> Iterator[UnusualMeasure]:
    """The measures that differ from those of earlier runs; none if there are too few runs.

    Args:
        now: the measures of a run, see `bronze.governance.tables.anomaly.profiles.measures`.
        before: the measures of earlier runs.
    """
    for name, value in now.items():
        measure, _, column = name.partition(" ")
        known = [earlier[name] for earlier in before if name in earlier]
        few_rows = min([now["rows"], *(earlier["rows"] for earlier in before)]) < profiles.MIN_ROWS
        if len(known) < _MIN_HISTORY or (few_rows and measure != "rows"):
            continue
        usual = float(np.median(known))
        spread = _NORMAL * float(np.median(np.abs(np.array(known) - usual)))
        chance = _CHANCE_OF_NULLS if measure == "null_share" else _CHANCE * abs(usual)
        deviations = abs(value - usual) / max(spread, chance, np.finfo(float).tiny)
        if deviations > _MAX_DEVIATIONS:
            yield UnusualMeasure(measure, column, value, usual, min(deviations, 1e6))


def record_findings(
    settings: Settings,
    target: Target,
    stamp: RowStamp,
    watch: Monitoring,
    findings: Findings,
    scope: Scope,
) -> tuple[str, ...]:
    """Records the anomalies and the profile of committed rows in governance tables.

    A record that cannot be written is a message and not a failure, as the rows are committed, with
    their scores.

    Returns:
        Messages about the run for the user.
    """
    if not watch.profiled:
        return ()
    try:
        return _record(settings, target, stamp, watch, findings, scope)
    except BronzeError as error:
        return (f"the anomalies were not recorded: {error.message}",)


def _record(
    settings: Settings,
    target: Target,
    stamp: RowStamp,
    watch: Monitoring,
    findings: Findings,
    scope: Scope,
) -> tuple[str, ...]:
    now, profile, outliers = datetime.now(UTC), findings.profile, findings.outliers
    unusual: list[UnusualMeasure] = []
    is_profiled = bool(profile.rows) or scope == "whole"
    if is_profiled:
        earlier = earlier_profiles(settings, target).filter(pl.col("scope") == scope)
        texts = earlier.tail(_HISTORY)["measures"]
        before = [json_value(text, profiles.NAME, dict) for text in texts]
        unusual = list(unusual_measures(profiles.measures(profile), before))
    records = [_run_records(unusual)] if unusual else []
    if watch.model and outliers.count:
        records.append(_row_records(watch.model, findings))
    if records:
        frame = anomalies.frame(
            pl.concat(records),
            at=now,
            stamp=stamp,
            source_table=target.label,
            target_table=target.full_name,
        )
        place = settings.place(GOVERNANCE, anomalies.NAME)
        store_records(place, anomalies.COLUMNS, frame, stamp.batch_id)
    if is_profiled:
        frame = profiles.frame(
            profile,
            outliers,
            scope=scope,
            model=watch.model.version if watch.model else None,
            at=now,
            stamp=stamp,
            source_table=target.label,
            target_table=target.full_name,
        )
        place = settings.place(GOVERNANCE, profiles.NAME)
        store_records(place, profiles.COLUMNS, frame, stamp.batch_id)
    return tuple(map(str, unusual))


_SCHEMA = {
    "level": pl.String,
    "row_key": pl.String,
    "anomaly_score": pl.Float64,
    "threshold": pl.Float64,
    "model_version": pl.String,
    "columns": pl.String,
}


def _row_records(model: Model, findings: Findings) -> pl.DataFrame:
    """Records of the outliers with the highest scores."""
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


def _run_records(unusual: Sequence[UnusualMeasure]) -> pl.DataFrame:
    """A record of each measure."""
    details = [
        {
            "column": measure.column or None,
            "measure": measure.measure,
            "value": measure.value,
            "usual": measure.usual,
        }
        for measure in unusual
    ]
    return pl.DataFrame(
        {
            "level": [anomalies.RUN] * len(unusual),
            "row_key": [None] * len(unusual),
            "anomaly_score": [measure.deviations for measure in unusual],
            "threshold": [_MAX_DEVIATIONS] * len(unusual),
            "model_version": [None] * len(unusual),
            "columns": [json.dumps([one], ensure_ascii=False) for one in details],
        },
        schema=_SCHEMA,
    )
