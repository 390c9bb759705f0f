"""Rules as polars expressions over the source's column names, true for rows that meet them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

import polars as pl

from bronze.config.sections.quality import Bounds, RuleSettings
from bronze.model.columns import Column, DeltaType
from bronze.postgres.copy.rows_reader import dtype
from bronze.quality.scoring import MOMENT

_BITS = {"short": 15, "int": 31, "long": 63}
_TIMES = ("date", "timestamp", "timestamp_ntz")
_ORDERED = (*_BITS, "decimal", "float", "double", "string", *_TIMES)
_NEVER = "it could never hold"


class Unfit(Exception):
    """Why a rule cannot be used."""


def condition_of(rule: RuleSettings, column: Column) -> pl.Expr:
    """The expression of a rule about one column.

    Raises:
        Unfit: the rule cannot be used on this column.
    """
    value = pl.col(column.name)
    if rule.not_null:
        return value.is_not_null()
    if rule.range is not None:
        return _range(rule.range, column)
    if rule.accepted_values is not None:
        values = [_typed_value(column, accepted) for accepted in rule.accepted_values]
        return value.is_in(pl.Series(values, dtype=dtype(column.kind)).implode())
    if rule.freshness is not None:
        return _fresh(column, rule.freshness)
    if column.kind.name != "string":
        raise Unfit(f"column {column.name} is not text but {column.kind}")
    if rule.pattern is not None:
        return value.str.contains(rule.pattern)
    if rule.length is None:
        raise Unfit(f"a rule of the kind {rule.kind} is about more than one row")
    low, high = rule.length.min, rule.length.max
    return _between(value.str.len_chars(), low, high, pl.UInt32)


def _between(value: pl.Expr, low: Any, high: Any, kind: Any) -> pl.Expr:
    ends = []
    if low is not None:
        ends.append(value >= pl.lit(low).cast(kind))
    if high is not None:
        ends.append(value <= pl.lit(high).cast(kind))
    return ends[0] & ends[1] if len(ends) > 1 else ends[0]


def _range(bounds: Bounds, column: Column) -> pl.Expr:
    if column.kind.name not in _ORDERED:
        raise Unfit(f"column {column.name} is {column.kind}, which has no range")
    low = None if bounds.min is None else _typed_value(column, bounds.min, ROUND_CEILING)
    high = None if bounds.max is None else _typed_value(column, bounds.max, ROUND_FLOOR)
    least, most = _limits(column.kind)
    if (low is not None and most is not None and low > most) or (
        high is not None and least is not None and high < least
    ):
        raise Unfit(f"{_NEVER}: no value of {column.source_type} is in that range")
    if low is not None and high is not None and low > high:
        raise Unfit(f"{_NEVER}: min is more than max")
    # A bound beyond the values of the type does not fit into the type.
    low = max(low, least) if low is not None and least is not None else low
    high = min(high, most) if high is not None and most is not None else high
    value = pl.col(column.name)
    if column.kind.name == "float":
        return _between(value.cast(pl.Float64), low, high, pl.Float64)
    return _between(value, low, high, dtype(column.kind))


def _limits(kind: DeltaType) -> tuple[Any, Any]:
    """The smallest and the largest value of a type, None if it has no such limit."""
    if kind.name in _BITS:
        return -(2 ** _BITS[kind.name]), 2 ** _BITS[kind.name] - 1
    if kind.name == "decimal":
        most = Decimal(10**kind.precision - 1).scaleb(-kind.scale, _CONTEXT)
        return -most, most
    return None, None


def _typed_value(column: Column, value: Any, rounding: str | None = None) -> Any:
    """A value of the config in the column's type; a bound is rounded into the range."""
    reader = _READERS.get(column.kind.name)
    if reader is None:
        raise Unfit(f"column {column.name} is {column.kind}, which has no values to compare with")
    typed = reader(column.kind, value, rounding)
    if typed is None:
        raise Unfit(f"{value!r} is not a value of column {column.name}, which is {column.kind}")
    return typed


_CONTEXT = Context(prec=80)


def _decimal(kind: DeltaType, value: Any, rounding: str | None) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        return None
    try:
        # A float means the number that is written in the config.
        number = Decimal(str(value))
    except ArithmeticError:
        return None
    if not number.is_finite():
        return None
    exact = number.quantize(Decimal(1).scaleb(-kind.scale), rounding, _CONTEXT)
    return exact if rounding or (exact == number and abs(exact) <= _limits(kind)[1]) else None


def _integer(kind: DeltaType, value: Any, rounding: str | None) -> int | None:
    if isinstance(value, str):
        return None
    whole = _decimal(DeltaType("decimal", 38, 0), value, rounding)
    if whole is None or (not rounding and abs(whole) >= 2 ** _BITS[kind.name]):
        return None
    return int(whole)


def _float(kind: DeltaType, value: Any, rounding: str | None) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return float(value)


def _date(kind: DeltaType, value: Any, rounding: str | None) -> date | None:
    return value if isinstance(value, date) and not isinstance(value, datetime) else None


def _moment(kind: DeltaType, value: Any, rounding: str | None) -> datetime | None:
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        return None
    if kind.name == "timestamp":
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    return None if value.tzinfo else value


def _of(kind: type) -> Callable[[DeltaType, Any, str | None], Any]:
    return lambda _, value, __: value if isinstance(value, kind) else None


_READERS: Mapping[str, Callable[[DeltaType, Any, str | None], Any]] = {
    **dict.fromkeys(_BITS, _integer),
    "decimal": _decimal,
    "float": _float,
    "double": _float,
    "string": _of(str),
    "boolean": _of(bool),
    "date": _date,
    "timestamp": _moment,
    "timestamp_ntz": _moment,
}


def _fresh(column: Column, seconds: int) -> pl.Expr:
    if column.kind.name not in _TIMES:
        raise Unfit(f"column {column.name} is {column.kind}, which has no age")
    value = pl.col(column.name)
    if column.kind.name != "timestamp":
        value = value.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return value >= pl.col(MOMENT) - pl.duration(seconds=seconds)


# Expressions of the user


_PARTS = {
    "BinaryExpr": ("left", "right"),
    "Ternary": ("predicate", "truthy", "falsy"),
    "Cast": ("expr",),
}
# Functions of one row, by their names in polars' JSON. Of these families all functions are, except
# for those that are listed.
_FAMILIES: Mapping[str, Collection[str]] = {
    "Sql": (),
    "StringExpr": ("ConcatVertical",),
    "TemporalExpr": (),
    "BinaryExpr": (),
    "ListExpr": (),
}
_ROW_FUNCTIONS = {
    "IsNull", "IsNotNull", "IsFinite", "IsInfinite", "IsNan", "IsNotNan", "IsBetween", "IsIn",
    "IsClose", "AnyHorizontal", "AllHorizontal", "Not", "Abs", "Sign", "Floor", "Ceil", "Round",
    "RoundSF", "Clip", "Pow", "Sqrt", "Log", "Log1p", "Exp", "Negate", "Coalesce", "FillNull",
    "AsStruct", "MaxHorizontal", "MinHorizontal", "SumHorizontal", "MeanHorizontal", "Truncate",
    "Trigonometry",
}  # fmt: skip


def columns_of(condition: pl.Expr, schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that a condition of the user reads.

    Raises:
        Unfit: it reads missing columns or other rows, or is not a condition.
    """
    used = tuple(dict.fromkeys(condition.meta.root_names()))
    unknown = [name for name in used if name not in schema]
    if unknown:
        raise Unfit(f"there is no column {unknown[0]}")
    if not used:
        raise Unfit("it names no column")
    # Only by evaluating it polars knows its type for certain.
    row = pl.DataFrame({name: [None] for name in schema}, schema=dict(schema))
    try:
        schema_of_result = row.select(condition).schema
    except pl.exceptions.PolarsError as error:
        raise Unfit(_first_line(error)) from None
    if schema_of_result.dtypes() != [pl.Boolean]:
        types = ", ".join(str(dtype) for dtype in schema_of_result.dtypes())
        raise Unfit(f"it is not a condition: its value is {types}, not Boolean")
    part = _part_beyond_row(json.loads(condition.meta.serialize(format="json")))
    if part:
        raise Unfit(f"it reads other rows, or may do so ({part})")
    return used


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def _part_beyond_row(node: Any) -> str:
    """The part of an expression (in polars' JSON) that may read other rows, or ""."""
    if not isinstance(node, dict):
        return str(node)
    ((kind, inner),) = node.items()
    if kind in ("Column", "Literal"):
        return ""
    if kind == "Alias":
        return _part_beyond_row(inner[0])
    if kind == "Function":
        family, name = _family_and_name(inner["function"])
        known = family in _ROW_FUNCTIONS or (family in _FAMILIES and name not in _FAMILIES[family])
        if not known and not (family in ("", "Boolean") and name in _ROW_FUNCTIONS):
            return name or family
        return _first_beyond_row(inner["input"])
    if kind in _PARTS:
        return _first_beyond_row([inner[part] for part in _PARTS[kind]])
    return str(kind)


def _family_and_name(function: Any) -> tuple[str, str]:
    """The family of a function, "" if it has none, and its name."""
    if isinstance(function, str):
        return "", function
    ((family, name),) = function.items()
    return family, next(iter(name), "") if isinstance(name, (dict, list)) else str(name)


def _first_beyond_row(nodes: Sequence[Any]) -> str:
    return next((part for node in nodes if (part := _part_beyond_row(node))), "")
