"""CHECK constraints as polars expressions, where the two mean exactly the same.

A condition is translated completely or not at all. Functions, casts that may lose information and
the order of texts (it depends on a collation) are not supported: such a condition is checked by
PostgreSQL alone. NULL satisfies a constraint in both.
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


class _Untranslatable(Exception):
    """A part of the condition has no exact translation."""


@dataclass(frozen=True)
class _Operand:
    """An operand of a comparison: a column, an expression over columns, or a constant.

    ``family`` is its group of types: only operands of one family are compared. ``value`` is None
    for a constant, which is in ``constant``. ``scale`` and ``digits`` are those of a number.
    """

    family: str
    value: pl.Expr | None
    constant: Any = None
    scale: int = 0
    digits: int = 0


def check_expression(
    text: str, columns: Sequence[Column], folding: Collection[str] = ()
) -> pl.Expr | None:
    """Translates a condition into a polars expression over the source's column names.

    Args:
        text: the condition, as ``pg_get_expr`` returns it.
        columns: the table's column contract.
        folding: columns with a nondeterministic collation, under which different texts are equal.

    Returns:
        None if the condition has no exact translation.
    """
    known = {column.name: column for column in columns if column.name not in folding}
    try:
        tree = sqlglot.parse_one(text, read="postgres")
        return _Translator(known).condition(tree)
    except (_Untranslatable, sqlglot.errors.SqlglotError):
        return None


class _Translator:
    """Translates the syntax tree of a condition on one table."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = columns

    def condition(self, node: Any) -> pl.Expr:
        """The expression of a condition.

        Raises:
            _Untranslatable: it has no exact translation.
        """
        node = node.unnest()
        if isinstance(node, exp.And):
            return self.condition(node.this) & self.condition(node.expression)
        if isinstance(node, exp.Or):
            return self.condition(node.this) | self.condition(node.expression)
        if isinstance(node, exp.Not):
            return ~self.condition(node.this)
        if isinstance(node, exp.Is):
            return self._null_or_truth_test(node)
        if type(node) in _COMPARISONS:
            return self._comparison(node)
        if isinstance(node, exp.Column):
            operand = self._value(node)
            if operand.family == "boolean" and operand.value is not None:
                return operand.value
        raise _Untranslatable

    def _null_or_truth_test(self, node: exp.Is) -> pl.Expr:
        """``IS NULL``, ``IS TRUE``, ``IS FALSE`` and their negations."""
        tested = node.expression.unnest()
        if isinstance(tested, exp.Null):
            column = self._column(node.this.unnest())
            if column.reject:
                # A rejected value is NULL in Bronze, but not in the source.
                raise _Untranslatable
            test = pl.col(column.name).is_null()
        elif isinstance(tested, exp.Boolean):
            if any(self._column(column).reject for column in node.this.find_all(exp.Column)):
                raise _Untranslatable
            test = self.condition(node.this).eq_missing(pl.lit(bool(tested.this)))
        else:
            raise _Untranslatable
        return ~test if node.args.get("negate") else test

    def _comparison(self, node: Any) -> pl.Expr:
        left, right = self._value(node.this), node.expression.unnest()
        if isinstance(node, exp.EQ) and isinstance(right, exp.Any):
            tests = [_compare(exp.EQ, left, value) for value in self._array_items(right.this)]
            return reduce(operator.or_, tests)
        if isinstance(node, exp.NEQ) and isinstance(right, exp.Anonymous) and right.name == "ALL":
            (values,) = right.expressions
            tests = [_compare(exp.NEQ, left, value) for value in self._array_items(values)]
            return reduce(operator.and_, tests)
        return _compare(type(node), left, self._value(right))

    def _array_items(self, node: Any) -> list[_Operand]:
        node = node.unnest()
        while isinstance(node, exp.Cast):
            inner = node.to.expressions
            if not (node.to.is_type("array") and inner and inner[0].is_type("text")):
                raise _Untranslatable
            node = node.this.unnest()
        if not isinstance(node, exp.Array) or not node.expressions:
            raise _Untranslatable
        return [self._value(item) for item in node.expressions]

    def _column(self, node: exp.Expression) -> Column:
        if not isinstance(node, exp.Column) or node.name not in self._columns:
            raise _Untranslatable
        return self._columns[node.name]

    def _value(self, node: Any) -> _Operand:
        node = node.unnest()
        if isinstance(node, exp.Column):
            return _column_operand(self._column(node))
        if isinstance(node, (exp.Add, exp.Sub)):
            return self._sum(node)
        if isinstance(node, exp.Length):
            text = self._value(node.this)
            if text.family != "string" or text.value is None:
                raise _Untranslatable
            return _Operand("int", text.value.str.len_chars().cast(pl.Int64))
        if isinstance(node, exp.Cast):
            return self._cast(node)
        return _constant(node)

    def _sum(self, node: exp.Add | exp.Sub) -> _Operand:
        sides = [self._value(node.this), self._value(node.expression)]
        # PostgreSQL fails on an overflow; sums of int4 values do not overflow in Int64.
        if any(side.family != "int" or side.digits > _INT4_DIGITS for side in sides):
            raise _Untranslatable
        left, right = (
            pl.lit(side.constant, pl.Int64) if side.value is None else side.value.cast(pl.Int64)
            for side in sides
        )
        return _Operand("int", left + right if isinstance(node, exp.Add) else left - right)

    def _cast(self, node: exp.Cast) -> _Operand:
        inner, to = node.this.unnest(), node.to
        if isinstance(inner, exp.Literal) and inner.is_string:
            return _typed_constant(inner.this, to)
        operand = self._value(inner)
        if operand.family == "string" and to.is_type("text"):
            return operand
        exact = to.is_type("bigint", "int", "decimal") and not to.expressions
        if operand.family == "int" and exact:
            return operand
        if operand.value is None and operand.family in ("int", "decimal"):
            if to.is_type("decimal") and not to.expressions:
                return operand
            if to.is_type("double"):
                return _double_constant(operand.constant)
        raise _Untranslatable


_INT4_DIGITS = 10
_DIGITS = {"short": 5, "int": 10, "long": 19}
_OTHER_FAMILIES = {
    "double": "double",
    "date": "date",
    "timestamp": "timestamp",
    "boolean": "boolean",
}


def _column_operand(column: Column) -> _Operand:
    kind, value = column.kind, pl.col(column.name)
    if kind.name in _INTEGERS and column.source_type in ("smallint", "integer", "bigint"):
        return _Operand("int", value, digits=_DIGITS[kind.name])
    if kind.name == "decimal":
        return _Operand("decimal", value, scale=kind.scale, digits=kind.precision)
    if kind.name == "string" and column.source_type.partition("(")[0] in _TEXTS:
        return _Operand("string", value)
    if kind.name in _OTHER_FAMILIES:
        # By the config it may be a timestamp without zone read as UTC: constants are not.
        if kind.name == "timestamp" and "without" in column.source_type:
            raise _Untranslatable
        return _Operand(kind.name, value)
    if kind.name == "timestamp_ntz":
        return _Operand("timestamp_ntz", value)
    raise _Untranslatable


def _constant(node: exp.Expression) -> _Operand:
    if isinstance(node, exp.Boolean):
        return _Operand("boolean", None, bool(node.this))
    if isinstance(node, exp.Neg):
        operand = _constant(node.this.unnest())
        if operand.family not in ("int", "decimal"):
            raise _Untranslatable
        return _number(-operand.constant)
    if isinstance(node, exp.Literal) and not node.is_string:
        return _number(Decimal(node.this))
    raise _Untranslatable


def _number(value: Decimal) -> _Operand:
    if value == value.to_integral_value() and abs(value) < _LONG:
        digits = len(str(abs(int(value))))
        return _Operand("int", None, int(value), digits=digits)
    return _Operand("decimal", None, value)


def _double_constant(value: Any) -> _Operand:
    number = float(value)
    if math.isnan(number):
        raise _Untranslatable
    return _Operand("double", None, number)


def _typed_constant(text: str, to: exp.DataType) -> _Operand:
    if to.expressions:
        raise _Untranslatable
    try:
        if to.is_type("text", "varchar"):
            return _Operand("string", None, text)
        if to.is_type("int", "bigint", "smallint", "decimal"):
            number = Decimal(text)
            if not number.is_finite():
                raise _Untranslatable
            return _number(number)
        if to.is_type("double"):
            return _double_constant(text)
        if to.is_type("boolean"):
            return _Operand("boolean", None, {"t": True, "true": True, "f": False}[text])
        if to.is_type("date"):
            return _Operand("date", None, date.fromisoformat(text))
        timestamp = datetime.fromisoformat(text)
    except (ValueError, ArithmeticError, KeyError):
        raise _Untranslatable from None
    if to.is_type("timestamptz") and timestamp.tzinfo:
        return _Operand("timestamp", None, timestamp)
    if to.is_type("timestamp") and not timestamp.tzinfo:
        return _Operand("timestamp_ntz", None, timestamp)
    raise _Untranslatable


_COMPARISONS: Mapping[type[exp.Expression], Callable[[Any, Any], Any]] = {
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
    exp.LT: operator.lt,
    exp.LTE: operator.le,
}
_EQUALITY_ONLY = ("string", "boolean")


def _compare(kind: type[exp.Expression], left: _Operand, right: _Operand) -> pl.Expr:
    if left.value is None and right.value is None:
        raise _Untranslatable
    if kind not in (exp.EQ, exp.NEQ) and left.family in _EQUALITY_ONLY:
        raise _Untranslatable
    families = {left.family, right.family}
    if families == {"int", "decimal"} or families == {"decimal"}:
        if left.scale != right.scale and left.value is not None and right.value is not None:
            raise _Untranslatable
        left, right = _matching_decimal(left, right), _matching_decimal(right, left)
    elif len(families) > 1:
        raise _Untranslatable
    comparison: pl.Expr = _COMPARISONS[kind](_polars_expression(left), _polars_expression(right))
    return comparison


def _matching_decimal(operand: _Operand, other: _Operand) -> _Operand:
    """A constant as a value of the other operand's type; other operands as they are."""
    if operand.value is not None:
        if other.value is not None and operand.family != other.family:
            raise _Untranslatable
        return operand
    number = Decimal(operand.constant)
    if other.family == "int":
        raise _Untranslatable
    places = -int(number.as_tuple().exponent) if number.is_finite() else _LONG
    whole = max(number.adjusted() + 1, 0)
    if places > other.scale or whole > other.digits - other.scale:
        raise _Untranslatable
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


def _polars_expression(operand: _Operand) -> pl.Expr:
    if operand.value is not None:
        return operand.value
    return pl.lit(operand.constant).cast(_LITERALS[operand.family])
