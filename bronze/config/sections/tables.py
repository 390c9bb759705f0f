"""The sections [tables.NAME] of bronze.toml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from bronze.config.fields import Decimal, NameList, Seconds, Section, to_seconds
from bronze.config.sections.protection import ColumnProtection
from bronze.config.sections.quality import QualitySettings, RuleSettings
from bronze.config.sections.serve import ScheduleText
from bronze.model.schedule import parse_schedule
from bronze.model.stamp import IngestionMethod


def from_bool(value: object) -> object:
    """``true`` as settings that are all the default, ``false`` as none."""
    if isinstance(value, bool):
        return {} if value else None
    return value


class AnomalySettings(Section):
    """``anomalies`` of a table: ``true``, or some of these settings of anomaly detection.

    ``expected`` is the share of anomalies, ``retrain`` the age of a model in seconds.
    """

    expected: float = Field(default=0.01, gt=0, le=0.5)
    trees: int = Field(default=100, ge=10, le=1000)
    columns: NameList = ()
    retrain: Seconds = 30 * 86400
    seed: int = Field(default=7, ge=0, lt=2**31)


class TableSettings(Section):
    """[tables.NAME]: the settings of one table. Times are in seconds."""

    pattern: IngestionMethod = "full_refresh"
    cursor: str = "xmin"
    overlap: Seconds | None = None
    deletes: Literal["detect", "ignore"] | Seconds = "detect"
    on_delete: Literal["mark", "remove"] = "mark"
    history: bool = False
    deletion_vectors: bool = False
    cluster_by: Literal["auto"] | Annotated[NameList, Field(max_length=4)] = ()
    liquid: bool = False
    partition_by: str | None = None
    priority: int = Field(default=2, ge=1, le=9)
    schedule: ScheduleText | None = None
    target: str | None = Field(default=None, pattern=r"^[^/\\\s.\x00-\x1f\x7f-\x9f]+$")
    columns: NameList = ()
    key: NameList = ()
    rename: Mapping[str, str] = {}
    decimals: Mapping[str, Decimal] = {}
    arrays: Literal["array", "string"] = "array"
    timestamps: Literal["timestamp_ntz", "timestamp"] = "timestamp_ntz"
    protect: Mapping[str, ColumnProtection] = {}
    anomalies: Annotated[AnomalySettings | None, BeforeValidator(from_bool)] = None
    sla: Annotated[int, Field(ge=1), BeforeValidator(to_seconds)] | None = None
    rules: tuple[RuleSettings, ...] = ()
    quality: QualitySettings = QualitySettings()

    @model_validator(mode="after")
    def _check_pattern(self) -> TableSettings:
        if self.pattern in ("full_refresh", "streaming"):
            for name in ("cursor", "overlap", "deletes"):
                if name in self.model_fields_set:
                    raise ValueError(f'{name} is only for the patterns "batch" and "micro_batch"')
        if self.schedule is not None:
            is_continuous = parse_schedule(self.schedule).is_continuous
            if is_continuous != (self.pattern == "streaming"):
                raise ValueError(
                    f'schedule = {self.schedule!r} does not fit pattern = "{self.pattern}": tables'
                    ' of the pattern "streaming", and only they, are "continuous"'
                )
        if self.history and self.pattern == "streaming":
            raise ValueError(
                'history cannot be combined with the pattern "streaming", where the change data'
                " feed has every version of a row"
            )
        if self.history and "on_delete" in self.model_fields_set:
            raise ValueError("on_delete cannot be combined with history, which keeps deleted rows")
        if self.history and self.deletion_vectors:
            raise ValueError(
                "deletion_vectors cannot be combined with history, whose rows never change"
            )
        if self.liquid and not self.cluster_by:
            raise ValueError("liquid needs cluster_by, the columns of the clustering")
        if self.liquid and self.partition_by:
            raise ValueError("liquid cannot be combined with partition_by: Delta Lake allows one")
        if self.overlap is not None and self.cursor == "xmin":
            raise ValueError('overlap is only for a cursor column; cursor = "xmin" needs none')
        return self

    @model_validator(mode="after")
    def _check_names(self) -> TableSettings:
        dropped = {name for name, protection in self.protect.items() if protection.is_dropped}
        for name in self.columns:
            if name in dropped:
                raise ValueError(f'column {name} is listed in columns, but protect says "drop"')
        names = [rule.label for rule in self.rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rules are named {name!r}: give one of them another name")
        return self

    @property
    def cluster_columns(self) -> tuple[str, ...]:
        """The columns to cluster by, none where bronze chooses them."""
        return () if self.cluster_by == "auto" else self.cluster_by

    @property
    def method(self) -> IngestionMethod:
        """The value of the column ingestion_method."""
        return self.pattern
