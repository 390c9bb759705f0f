"""The data files of the ``add`` actions of a Delta log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from bronze.delta.read import deletion_vectors
from bronze.delta.read.content import widest
from bronze.delta.statistics import SAFE
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile

# Types of partition columns whose values are the same text in the log as everywhere.
_PLAIN = ("string", "date", "short", "int", "long")
_LIMITS: Mapping[str, int] = {"short": 2**15, "int": 2**31, "long": 2**63}


def added_file(
    add: Mapping[str, Any], partition_columns: Sequence[str], columns: Mapping[str, DeltaType]
) -> StoredFile:
    """The file of an ``add`` action.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it is not as the protocol says.
        NotImplementedError: the values of its partition are not plain texts.
    """
    stats = json.loads(add["stats"]) if add.get("stats") else {}
    low, high = (stats.get(side) or {} for side in ("minValues", "maxValues"))
    values = dict(add["partitionValues"])
    if any(columns[name].name not in _PLAIN for name in partition_columns):
        raise NotImplementedError("partition values have to be read by their type")
    rows, vector = stats.get("numRecords"), deletion_vectors.vector_of(add)
    return StoredFile(
        path=add["path"],
        size=int(add["size"]),
        rows=-1 if rows is None else int(rows) - (vector.cardinality if vector else 0),
        low=tuple(_bounds(low, columns)),
        high=tuple((name, widest(bound)) for name, bound in _bounds(high, columns)),
        partition=tuple((name, values.get(name) or None) for name in partition_columns),
        vector=vector,
        provider=add.get("clusteringProvider") or "",
    )


def _bounds(
    bounds: Mapping[str, Any], columns: Mapping[str, DeltaType]
) -> Iterable[tuple[str, Any]]:
    """The bounds of columns whose statistics can be trusted, in the order of the columns."""
    for name, kind in columns.items():
        if kind.name in SAFE and bounds.get(name) is not None:
            yield name, bound(kind.name, bounds[name])


def bound(kind: str, value: Any) -> Any:
    """A value of JSON as one of a type.

    Raises:
        ValueError, TypeError: it is none.
    """
    if kind == "date":
        return date.fromisoformat(value)
    if kind in ("timestamp", "timestamp_ntz"):
        moment = datetime.fromisoformat(value)
        if (moment.tzinfo is None) != (kind == "timestamp_ntz"):
            raise ValueError("the time zone is missing, or too much")
        return moment.astimezone(UTC) if moment.tzinfo else moment
    limit = _LIMITS.get(kind)
    if limit is not None and not -limit <= value < limit:
        raise ValueError(f"the number is beyond the range of {kind}")
    expected = {"string": str, "boolean": bool}.get(kind, int)
    if type(value) is not expected:
        raise TypeError(f"{kind} is not {expected}")
    return value
