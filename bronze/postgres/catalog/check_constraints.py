"""CHECK constraints as polars expressions, where the two mean exactly the same.

A condition is translated whole or not at all. What is not among the few forms below (a function, a
cast that may lose something, an order of texts, which depends on a collation) is left out: then
PostgreSQL alone sees to it. NULL keeps a constraint in both.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import reduce
from typing import Any

import polars as pl
import sqlglot
from sqlglot import exp

from bronze.model.columns import Column

_INTEGERS = ("short", "int", "long")
_LONG = 2**63
_TEXTS = ("text", "character varying")


class _Unknown(Exception):
    """It is not understood exactly."""


@dataclass(frozen=True)
class _Operand:
    """A value: ``family`` says with what it may be compared, ``constant`` is None for columns."""

    family: str
    value: pl.Expr | None
    constant: Any = None
    scale: int = 0
    digits: int = 0


def translated(
    text: str, columns: Sequence[Column], folding: Collection[str] = ()
) -> pl.Expr | None:
    """A condition as PostgreSQL writes it, as an expression over the source's column names.

    Args:
        text: the condition, as ``pg_get_expr`` gives it.
        columns: the table's contract.
        folding: columns whose collation takes different texts for equal.

    Returns:
        None where it is not understood exactly.
    """
    known = {column.name: column for column in columns if column.name not in folding}
    try:
        tree = sqlglot.parse_one(text, read="postgres")
        return _Reader(known).truth(tree)
    except (_Unknown, sqlglot.errors.SqlglotError):
        return None


class _Reader:
    """Reads a tree of a known table."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = columns

    def truth(self, node: Any) -> pl.Expr:
        """A condition."""
        node = node.unnest()
        if isinstance(node, exp.And):
            return self.truth(node.this) & self.truth(node.expression)
        if isinstance(node, exp.Or):
            return self.truth(node.this) | self.truth(node.expression)
        if isinstance(node, exp.Not):
            return ~self.truth(node.this)
        if isinstance(node, exp.Is):
            return self._is(node)
        if type(node) in _ORDER:
            return self._compared(node)
        if isinstance(node, exp.Column):
            found = self._value(node)
            if found.family == "boolean" and found.value is not None:
                return found.value
        raise _Unknown

    def _is(self, node: exp.Is) -> pl.Expr:
        """``IS NULL``, ``IS TRUE``, ``IS FALSE`` and their opposites."""
        what = node.expression.unnest()
        if isinstance(what, exp.Null):
            column = self._column(node.this.unnest())
            if column.reject:
                # A rejected value is none in Bronze.
                raise _Unknown
            said = pl.col(column.name).is_null()
        elif isinstance(what, exp.Boolean):
            if any(self._column(column).reject for column in node.this.find_all(exp.Column)):
                raise _Unknown
            said = self.truth(node.this).eq_missing(pl.lit(bool(what.this)))
        else:
            raise _Unknown
        return ~said if node.args.get("negate") else said

    def _compared(self, node: Any) -> pl.Expr:
        left, right = self._value(node.this), node.expression.unnest()
        if isinstance(node, exp.EQ) and isinstance(right, exp.Any):
            each = [_related(exp.EQ, left, value) for value in self._listed(right.this)]
            return reduce(operator.or_, each)
        if isinstance(node, exp.NEQ) and isinstance(right, exp.Anonymous) and right.name == "ALL":
            (values,) = right.expressions
            each = [_related(exp.NEQ, left, value) for value in self._listed(values)]
            return reduce(operator.and_, each)
        return _related(type(node), left, self._value(right))

    def _listed(self, node: Any) -> list[_Operand]:
        node = node.unnest()
        while isinstance(node, exp.Cast):
            inner = node.to.expressions
            if not (node.to.is_type("array") and inner and inner[0].is_type("text")):
                raise _Unknown
            node = node.this.unnest()
        if not isinstance(node, exp.Array) or not node.expressions:
            raise _Unknown
        return [self._value(item) for item in node.expressions]

    def _column(self, node: exp.Expression) -> Column:
        if not isinstance(node, exp.Column) or node.name not in self._columns:
            raise _Unknown
        return self._columns[node.name]

    def _value(self, node: Any) -> _Operand:
        node = node.unnest()
        if isinstance(node, exp.Column):
            return _of_column(self._column(node))
        if isinstance(node, (exp.Add, exp.Sub)):
            return self._sum(node)
        if isinstance(node, exp.Length):
            text = self._value(node.this)
            if text.family != "string" or text.value is None:
                raise _Unknown
            return _Operand("int", text.value.str.len_chars().cast(pl.Int64))
        if isinstance(node, exp.Cast):
            return self._cast(node)
        return _constant(node)

    def _sum(self, node: exp.Add | exp.Sub) -> _Operand:
        sides = [self._value(node.this), self._value(node.expression)]
        # PostgreSQL would refuse what does not fit; of narrow integers all sums fit.
        if any(side.family != "int" or side.digits > _NARROW for side in sides):
            raise _Unknown
        one, other = (
            pl.lit(side.constant, pl.Int64) if side.value is None else side.value.cast(pl.Int64)
            for side in sides
        )
        return _Operand("int", one + other if isinstance(node, exp.Add) else one - other)

    def _cast(self, node: exp.Cast) -> _Operand:
        inner, to = node.this.unnest(), node.to
        if isinstance(inner, exp.Literal) and inner.is_string:
            return _typed(inner.this, to)
        found = self._value(inner)
        if found.family == "string" and to.is_type("text"):
            return found
        if found.family == "int" and to.is_type("bigint", "int", "decimal") and not to.expressions:
            return found
        if found.value is None and found.family in ("int", "decimal"):
            if to.is_type("decimal") and not to.expressions:
                return found
            if to.is_type("double"):
                return _double(found.constant)
        raise _Unknown


_NARROW = 10
_DIGITS = {"short": 5, "int": 10, "long": 19}
_SAME = {"double": "double", "date": "date", "timestamp": "timestamp", "boolean": "boolean"}


def _of_column(column: Column) -> _Operand:
    kind, value = column.kind, pl.col(column.name)
    if kind.name in _INTEGERS and column.source_type in ("smallint", "integer", "bigint"):
        return _Operand("int", value, digits=_DIGITS[kind.name])
    if kind.name == "decimal":
        return _Operand("decimal", value, scale=kind.scale, digits=kind.precision)
    if kind.name == "string" and column.source_type.partition("(")[0] in _TEXTS:
        return _Operand("string", value)
    if kind.name in _SAME:
        # The config may take a time without zone as one in UTC; constants would be another thing.
        if kind.name == "timestamp" and "without" in column.source_type:
            raise _Unknown
        return _Operand(kind.name, value)
    if kind.name == "timestamp_ntz":
        return _Operand("timestamp_ntz", value)
    raise _Unknown


def _constant(node: exp.Expression) -> _Operand:
    if isinstance(node, exp.Boolean):
        return _Operand("boolean", None, bool(node.this))
    if isinstance(node, exp.Neg):
        found = _constant(node.this.unnest())
        if found.family not in ("int", "decimal"):
            raise _Unknown
        return _number(-found.constant)
    if isinstance(node, exp.Literal) and not node.is_string:
        return _number(Decimal(node.this))
    raise _Unknown


def _number(value: Decimal) -> _Operand:
    if value == value.to_integral_value() and abs(value) < _LONG:
        digits = len(str(abs(int(value))))
        return _Operand("int", None, int(value), digits=digits)
    return _Operand("decimal", None, value)


def _double(value: Any) -> _Operand:
    number = float(value)
    if math.isnan(number):
        raise _Unknown
    return _Operand("double", None, number)


def _typed(text: str, to: exp.DataType) -> _Operand:
    if to.expressions:
        raise _Unknown
    try:
        if to.is_type("text", "varchar"):
            return _Operand("string", None, text)
        if to.is_type("int", "bigint", "smallint", "decimal"):
            number = Decimal(text)
            if not number.is_finite():
                raise _Unknown
            return _number(number)
        if to.is_type("double"):
            return _double(text)
        if to.is_type("boolean"):
            return _Operand("boolean", None, {"t": True, "true": True, "f": False}[text])
        if to.is_type("date"):
            return _Operand("date", None, date.fromisoformat(text))
        moment = datetime.fromisoformat(text)
    except (ValueError, ArithmeticError, KeyError):
        raise _Unknown from None
    if to.is_type("timestamptz") and moment.tzinfo:
        return _Operand("timestamp", None, moment)
    if to.is_type("timestamp") and not moment.tzinfo:
        return _Operand("timestamp_ntz", None, moment)
    raise _Unknown


_ORDER: Mapping[type[exp.Expression], Callable[[Any, Any], Any]] = {
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
    exp.LT: operator.lt,
    exp.LTE: operator.le,
}
_UNORDERED = ("string", "boolean")


def _related(how: type[exp.Expression], left: _Operand, right: _Operand) -> pl.Expr:
    if left.value is None and right.value is None:
        raise _Unknown
    if how not in (exp.EQ, exp.NEQ) and left.family in _UNORDERED:
        raise _Unknown
    families = {left.family, right.family}
    if families == {"int", "decimal"} or families == {"decimal"}:
        if left.scale != right.scale and left.value is not None and right.value is not None:
            raise _Unknown
        left, right = _fitting(left, right), _fitting(right, left)
    elif len(families) > 1:
        raise _Unknown
    found: pl.Expr = _ORDER[how](_expression(left), _expression(right))
    return found


def _fitting(one: _Operand, other: _Operand) -> _Operand:
    """A number as a constant of the other's type, where it is one."""
    if one.value is not None:
        if other.value is not None and one.family != other.family:
            raise _Unknown
        return one
    number = Decimal(one.constant)
    if other.family == "int":
        raise _Unknown
    places = -int(number.as_tuple().exponent) if number.is_finite() else _LONG
    whole = max(number.adjusted() + 1, 0)
    if places > other.scale or whole > other.digits - other.scale:
        raise _Unknown
    return _Operand("decimal", pl.lit(number).cast(pl.Decimal(other.digits, other.scale)))


_LITERALS: Mapping[str, Any] = {
    "int": pl.Int64,
    "string": pl.String,
    "boolean": pl.Boolean,
    "double": pl.Float64,
    "date": pl.Date,
    "timestamp": pl.Datetime("us", "UTC"),
    "timestamp_ntz": pl.Datetime("us"),
}


def _expression(operand: _Operand) -> pl.Expr:
    if operand.value is not None:
        return operand.value
    return pl.lit(operand.constant).cast(_LITERALS[operand.family])
