"""Rules as polars expressions over the source's column names, true for rows that keep them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

import polars as pl

from bronze.config.quality import Bounds, RuleSettings
from bronze.model.columns import Column, DeltaType
from bronze.postgres.copy.read import dtype
from bronze.quality.scoring import MOMENT

_BITS = {"short": 15, "int": 31, "long": 63}
_TIMES = ("date", "timestamp", "timestamp_ntz")
_ORDERED = (*_BITS, "decimal", "float", "double", "string", *_TIMES)
_NEVER = "it could never hold"


class Unfit(Exception):
    """Why a rule cannot be used."""


def of_rule(rule: RuleSettings, column: Column) -> pl.Expr:
    """A rule about one column.

    Raises:
        Unfit: it cannot be used on this column.
    """
    value = pl.col(column.name)
    if rule.not_null:
        return value.is_not_null()
    if rule.range is not None:
        return _range(rule.range, column)
    if rule.accepted_values is not None:
        values = [_typed(column, given) for given in rule.accepted_values]
        return value.is_in(pl.Series(values, dtype=dtype(column.kind)).implode())
    if rule.freshness is not None:
        return _fresh(column, rule.freshness)
    if column.kind.name != "string":
        raise Unfit(f"column {column.name} is no text but {column.kind}")
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
    low = None if bounds.min is None else _typed(column, bounds.min, ROUND_CEILING)
    high = None if bounds.max is None else _typed(column, bounds.max, ROUND_FLOOR)
    least, most = _limits(column.kind)
    if (low is not None and most is not None and low > most) or (
        high is not None and least is not None and high < least
    ):
        raise Unfit(f"{_NEVER}: no value of {column.source_type} is in that range")
    if low is not None and high is not None and low > high:
        raise Unfit(f"{_NEVER}: min is more than max")
    # A bound that no value of the type reaches would not fit into it.
    low = max(low, least) if low is not None and least is not None else low
    high = min(high, most) if high is not None and most is not None else high
    value = pl.col(column.name)
    if column.kind.name == "float":
        return _between(value.cast(pl.Float64), low, high, pl.Float64)
    return _between(value, low, high, dtype(column.kind))


def _limits(kind: DeltaType) -> tuple[Any, Any]:
    """The least and the most that a value of a kind can be, None where there is none."""
    if kind.name in _BITS:
        return -(2 ** _BITS[kind.name]), 2 ** _BITS[kind.name] - 1
    if kind.name == "decimal":
        most = Decimal(10**kind.precision - 1).scaleb(-kind.scale, _CONTEXT)
        return -most, most
    return None, None


def _typed(column: Column, value: Any, rounding: str | None = None) -> Any:
    """A value of the config as one of the column's kind, rounded into a range where need be."""
    reader = _READERS.get(column.kind.name)
    if reader is None:
        raise Unfit(f"column {column.name} is {column.kind}, which has no values to compare with")
    found = reader(column.kind, value, rounding)
    if found is None:
        raise Unfit(f"{value!r} is no value of column {column.name}, which is {column.kind}")
    return found


_CONTEXT = Context(prec=80)


def _decimal(kind: DeltaType, value: Any, rounding: str | None) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        return None
    try:
        # A float means what it looks like.
        given = Decimal(str(value))
    except ArithmeticError:
        return None
    if not given.is_finite():
        return None
    exact = given.quantize(Decimal(1).scaleb(-kind.scale), rounding, _CONTEXT)
    return exact if rounding or (exact == given and abs(exact) <= _limits(kind)[1]) else None


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
# Functions that look at one row alone, as polars' JSON calls them; of a family without names all
# do but those that are named here as looking further.
_FAMILIES: Mapping[str, Collection[str]] = {
    "Sql": (),
    "StringExpr": ("ConcatVertical",),
    "TemporalExpr": (),
    "BinaryExpr": (),
    "ListExpr": (),
}
_ALONE = {
    "IsNull", "IsNotNull", "IsFinite", "IsInfinite", "IsNan", "IsNotNan", "IsBetween", "IsIn",
    "IsClose", "AnyHorizontal", "AllHorizontal", "Not", "Abs", "Sign", "Floor", "Ceil", "Round",
    "RoundSF", "Clip", "Pow", "Sqrt", "Log", "Log1p", "Exp", "Negate", "Coalesce", "FillNull",
    "AsStruct", "MaxHorizontal", "MinHorizontal", "SumHorizontal", "MeanHorizontal", "Truncate",
    "Trigonometry",
}  # fmt: skip


def checked(holds: pl.Expr, schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that an expression of the user's looks at.

    Raises:
        Unfit: it looks at columns that are not there or at other rows, or is no condition.
    """
    used = tuple(dict.fromkeys(holds.meta.root_names()))
    unknown = [name for name in used if name not in schema]
    if unknown:
        raise Unfit(f"there is no column {unknown[0]}")
    if not used:
        raise Unfit("it names no column")
    # Of its types polars is sure only once it has been evaluated.
    nothing = pl.DataFrame({name: [None] for name in schema}, schema=dict(schema))
    try:
        found = nothing.select(holds).schema
    except pl.exceptions.PolarsError as error:
        raise Unfit(_first_line(error)) from None
    if found.dtypes() != [pl.Boolean]:
        kinds = ", ".join(str(kind) for kind in found.dtypes())
        raise Unfit(f"it is no condition: its value is {kinds}, not Boolean")
    outside = _outside(json.loads(holds.meta.serialize(format="json")))
    if outside:
        raise Unfit(f"it looks at other rows, or does not say that it does not ({outside})")
    return used


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")


def _outside(node: Any) -> str:
    """The part of an expression (as polars' JSON has it) that may look beyond its row, or ""."""
    if not isinstance(node, dict):
        return str(node)
    ((what, inner),) = node.items()
    if what in ("Column", "Literal"):
        return ""
    if what == "Alias":
        return _outside(inner[0])
    if what == "Function":
        family, name = _named(inner["function"])
        known = family in _ALONE or (family in _FAMILIES and name not in _FAMILIES[family])
        if not known and not (family in ("", "Boolean") and name in _ALONE):
            return name or family
        return _first(inner["input"])
    if what in _PARTS:
        return _first([inner[part] for part in _PARTS[what]])
    return str(what)


def _named(function: Any) -> tuple[str, str]:
    """A function's family, if it has one, and its name."""
    if isinstance(function, str):
        return "", function
    ((family, name),) = function.items()
    return family, next(iter(name), "") if isinstance(name, (dict, list)) else str(name)


def _first(nodes: Sequence[Any]) -> str:
    return next((found for node in nodes if (found := _outside(node))), "")
