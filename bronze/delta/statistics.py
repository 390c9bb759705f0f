"""File statistics for data skipping, by which no reader can miss a row.

Only columns of types that all readers order alike, and that JSON can hold exactly, get them. A
bound may be wider than the data, never narrower.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import polars as pl

SAFE = ("short", "int", "long", "boolean", "string", "date", "timestamp", "timestamp_ntz")
"""The types that get statistics."""

# As other writers of Delta do: longer bounds cost more than they save.
_PREFIX = 32
_LAST = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


@dataclass
class Statistics:
    """Bounds and NULL counts of ``columns`` over all frames that were added."""

    columns: tuple[str, ...]
    rows: int = 0
    low: dict[str, Any] = field(default_factory=dict)
    high: dict[str, Any] = field(default_factory=dict)
    nulls: dict[str, int] = field(default_factory=dict)

    def add(self, frame: pl.DataFrame) -> None:
        """Widens the statistics by the rows of ``frame``."""
        self.rows += frame.height
        for name in self.columns:
            series = frame[name]
            self.nulls[name] = self.nulls.get(name, 0) + series.null_count()
            for bounds, value, wider in (
                (self.low, series.min(), min),
                (self.high, series.max(), max),
            ):
                if value is not None:
                    bounds[name] = wider(bounds[name], value) if name in bounds else value

    def json(self) -> str:
        """The statistics in Delta's JSON."""
        low = {name: lower_bound(value) for name, value in self.low.items()}
        high = {name: upper_bound(value) for name, value in self.high.items()}
        return json.dumps(
            {
                "numRecords": self.rows,
                "minValues": low,
                "maxValues": {k: v for k, v in high.items() if v is not None},
                "nullCount": self.nulls,
            },
            ensure_ascii=False,
        )


def lower_bound(value: Any) -> Any:
    """A JSON value that is not greater than ``value``."""
    return value[:_PREFIX] if isinstance(value, str) else _json_value(value)


def upper_bound(value: Any) -> Any:
    """A JSON value that is not less than ``value``; None if there is no short one."""
    if not isinstance(value, str) or len(value) <= _PREFIX:
        return _json_value(value)
    prefix = value[:_PREFIX]
    while prefix:
        following = ord(prefix[-1]) + 1
        if following in _SURROGATES:
            following = _SURROGATES.stop
        if following <= _LAST:
            return prefix[:-1] + chr(following)
        prefix = prefix[:-1]
    return None


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        moment = value.replace(tzinfo=None).isoformat(timespec="microseconds")
        return f"{moment}Z" if value.tzinfo else moment
    if isinstance(value, date):
        return value.isoformat()
    return value
