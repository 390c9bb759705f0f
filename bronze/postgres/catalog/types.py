"""The type contract: what each PostgreSQL type becomes, and how its values travel.

The contract is total: a type that no rule names travels as PostgreSQL's own text. A rule gives four
pieces of SQL over a value ``v`` (see `bronze.model.columns.Column`): what to select, what to hash,
what to reject, and the value's text. Everything that connectorx would change silently or panic at
is cast here, in PostgreSQL, to a type that it carries exactly.

Dates are counted from 1970-01-01 where they travel as numbers (Delta's epoch).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from bronze.model.columns import Column, Kind, Wire

MAX_PRECISION = 38
INT8_PRECISION = 18

_NUMERIC_TYPMOD_HEADER = 4


@dataclass(frozen=True)
class SourceType:
    """A PostgreSQL type as the catalog names it, with domains resolved to their base.

    ``name`` is pg_type.typname, qualified by its schema unless it is pg_catalog; ``typmod`` is
    atttypmod (-1 for none); ``declared`` is format_type's text, for people; ``cast`` says that
    the column's own type is a domain, so that values need a cast to the base type; ``delimiter``
    (pg_type.typdelim) is what stands between the elements of an array of this type; ``enum`` says
    that its values are the labels of an enum.
    """

    name: str
    typmod: int
    declared: str
    element: SourceType | None = None
    cast: bool = False
    composite: bool = False
    delimiter: str = ","
    enum: bool = False

    @property
    def has_few_values(self) -> bool:
        """Whether the type itself has so few values that a length, or an end, tells which it is."""
        return (
            self.name == "bool" or self.enum or bool(self.element and self.element.has_few_values)
        )


@dataclass(frozen=True)
class Choices:
    """What the config may choose about types, for a table.

    ``decimals`` gives columns of unbounded numerics a decimal(p, s); ``arrays`` and
    ``timestamps`` choose between the two ways that the contract allows. ``encoding`` is the
    database's, which nobody chooses here.
    """

    decimals: Mapping[str, tuple[int, int]]
    arrays: Literal["array", "string"] = "array"
    timestamps: Literal["timestamp_ntz", "timestamp"] = "timestamp_ntz"
    encoding: str = "UTF8"


@dataclass(frozen=True)
class Carried:
    """How a value expression is carried: the pieces of a `Column` that depend on its type."""

    kind: Kind
    wire: Wire
    select: str
    canonical: str
    reject: str
    text: str
    element: str = ""


def _plain(kind: Kind, value: str) -> Carried:
    return Carried(kind, "same", value, value, "", f"{value}::text")


def _simple(name: str) -> Callable[[str, SourceType], Carried]:
    return lambda v, _: _plain(Kind(name), v)  # type: ignore[arg-type]


def _cast(name: str, to: str) -> Callable[[str, SourceType], Carried]:
    return lambda v, _: _plain(Kind(name), f"{v}::{to}")  # type: ignore[arg-type]


def output(value: str) -> str:
    """SQL for the text that a client would see: the type's output function.

    A cast to text is another thing for some types: inet gains a netmask, char(n) loses its blanks.
    """
    return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN concat({value}) END"


def _text(value: str, _: SourceType) -> Carried:
    return _plain(Kind("string"), output(value))


def _between(name: str, low: str, high: str) -> Callable[[str, SourceType], Carried]:
    def rule(value: str, _: SourceType) -> Carried:
        inside = f"({value} >= {low} AND {value} < {high})"
        guarded = f"CASE WHEN {inside} THEN {value} END"
        return Carried(
            Kind(name),  # type: ignore[arg-type]
            "same",
            guarded,
            guarded,
            f"NOT {inside}",
            f"{value}::text",
        )

    return rule


_date = _between("date", "'0001-01-01'::date", "'10000-01-01'::date")
_timestamp = _between("timestamp_ntz", "'0001-01-01'::timestamp", "'10000-01-01'::timestamp")
_timestamptz = _between(
    "timestamp", "'0001-01-01 00:00:00+00'::timestamptz", "'10000-01-01 00:00:00+00'::timestamptz"
)


def _numeric(value: str, source: SourceType) -> Carried:
    if source.typmod < _NUMERIC_TYPMOD_HEADER:
        return _plain(Kind("string"), f"{value}::text")
    packed = source.typmod - _NUMERIC_TYPMOD_HEADER
    precision = packed >> 16 & 0xFFFF
    scale = (packed & 0x7FF ^ 0x400) - 0x400
    kind = Kind("decimal", max(precision - min(scale, 0), scale), max(scale, 0))
    if kind.precision > MAX_PRECISION:
        return _plain(Kind("string"), f"{value}::text")
    # A numeric with a precision can hold no infinity: NaN is its only special value.
    return _decimal(kind, f"nullif({value}, 'NaN')", f"{value} = 'NaN'", value)


def _decimal(kind: Kind, guarded: str, reject: str, value: str) -> Carried:
    text = f"{value}::text"
    if kind.precision > INT8_PRECISION:
        carried = f"{guarded}::text"
        return Carried(kind, "text", carried, carried, reject, text)
    scaled = f"({guarded} * 1e{kind.scale})::int8" if kind.scale else f"({guarded})::int8"
    return Carried(kind, "unscaled", scaled, scaled, reject, text)


def _chosen_decimal(value: str, precision: int, scale: int) -> Carried:
    # NaN and infinities are not below anything.
    fits = f"(abs({value}) < 1e{precision - scale} AND round({value}, {scale}) = {value})"
    guarded = f"CASE WHEN {fits} THEN {value}::numeric({precision},{scale}) END"
    kind = Kind("decimal", precision, scale)
    return _decimal(kind, f"({guarded})", f"{fits} IS NOT TRUE AND {value} IS NOT NULL", value)


RULES: Mapping[str, Callable[[str, SourceType], Carried]] = {
    "int2": _simple("short"),
    "int4": _simple("int"),
    "int8": _simple("long"),
    "oid": _cast("long", "int8"),
    "float4": _simple("float"),
    "float8": _simple("double"),
    "numeric": _numeric,
    "bool": _simple("boolean"),
    "bytea": _simple("binary"),
    "text": _simple("string"),
    "varchar": _simple("string"),
    "name": _cast("string", "text"),
    "uuid": _cast("string", "text"),
    "json": _cast("string", "text"),
    "jsonb": _cast("string", "text"),
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
}
"""PostgreSQL's types to their rules; every type that is not here has the rule `_text`."""

# A server array of these has bounds of its own and no element semantics worth keeping.
_NOT_ARRAYS = ("int2vector", "oidvector")


def carry(value: str, source: SourceType, choices: Choices, name: str = "") -> Carried:
    """The contract for one value expression of one type; ``name`` is the column's, for choices."""
    if source.element is not None and source.name not in _NOT_ARRAYS and choices.arrays == "array":
        return _array(value, source.element, choices)
    if source.name == "numeric" and source.typmod < 0 and name in choices.decimals:
        return _chosen_decimal(value, *choices.decimals[name])
    if source.cast and source.name in RULES:
        # A domain is sent under its own name; the cast says its base type.
        value = f"{value}::{source.name}"
    if source.name == "timestamp" and choices.timestamps == "timestamp":
        carried = _timestamp(value, source)
        utc = f"(({carried.select}) AT TIME ZONE 'UTC')"
        return replace(carried, kind=Kind("timestamp"), select=utc, canonical=utc)
    return RULES.get(source.name, _text)(value, source)


# Arrays of these travel as they are; those of other types as arrays of text.
_NATIVE_ELEMENTS = ("int2", "int4", "int8", "float4", "float8", "bool", "text", "varchar")

# The microseconds since 2000 that PostgreSQL holds, since 1970: before 14, extract gives a float,
# which has no room for the microseconds of distant times.
_MICROSECONDS = "(('x' || encode({send}({{}}), 'hex'))::bit(64)::int8 + 946684800000000)::text"
_ELEMENT_TEXT: Mapping[str, str] = {
    "binary": "encode({}, 'hex')",
    "date": "({} - '1970-01-01'::date)::text",
    "timestamp": _MICROSECONDS.format(send="timestamptz_send"),
    "timestamp_ntz": _MICROSECONDS.format(send="timestamp_send"),
}


def _array(value: str, element: SourceType, choices: Choices) -> Carried:
    if element.composite:
        # unnest would take the elements apart into their fields.
        value, element = f"{value}::text[]", SourceType("text", -1, "text")
    inner = carry("e", replace(element, cast=False), replace(choices, arrays="string"))
    flat = (
        f"(array_ndims({value}) IS NULL"
        f" OR (array_ndims({value}) = 1 AND array_lower({value}, 1) = 1))"
    )
    if inner.reject:
        flat += f" AND NOT EXISTS (SELECT FROM unnest({value}) e WHERE {inner.reject})"
    text = _ELEMENT_TEXT.get(inner.kind.name, "({})::text").format(f"({inner.select})")
    if inner.wire == "unscaled":
        text = "e::text"
    guarded = f"CASE WHEN {flat} THEN {value} END"
    if element.name in _NATIVE_ELEMENTS:
        select = f"CASE WHEN {flat} THEN {value}::{element.name}[] END"
        kind = Kind("array", element=inner.kind)
        return Carried(
            kind, "same", select, guarded, f"NOT ({flat})", f"{value}::text", inner.canonical
        )
    elements = f"ARRAY(SELECT {text} FROM unnest({value}) WITH ORDINALITY AS u(e, o) ORDER BY o)"  # noqa: S608
    return Carried(
        Kind("array", element=inner.kind),
        "texts",
        f"CASE WHEN {flat} AND {value} IS NOT NULL THEN {elements} END",
        guarded,
        f"NOT ({flat})",
        f"{value}::text",
        element=inner.canonical,
    )


def contract(
    name: str,
    target: str,
    value: str,
    source: SourceType,
    choices: Choices,
    not_null: bool = False,
) -> Column:
    """The contract for one column, ``value`` being its quoted name in SQL."""
    carried = carry(value, source, choices, name)
    if choices.encoding == ANY_BYTES and _may_be_bytes(carried.kind, source):
        carried = _checked_text(carried)
    return Column(
        name=name,
        target=target,
        source_type=source.declared,
        kind=carried.kind,
        wire=carried.wire,
        select=carried.select,
        canonical=carried.canonical,
        reject=carried.reject,
        text=carried.text,
        element=carried.element,
        not_null=not_null,
        base_type=source.name,
    )


ANY_BYTES = "SQL_ASCII"
"""The encoding of a database in which a text may be any bytes."""

# In such a database each byte is a character. This is RFC 3629, as PostgreSQL has it.
_UTF8 = (
    r"^(?:[\u0001-\u007f]|[\u00c2-\u00df][\u0080-\u00bf]|\u00e0[\u00a0-\u00bf][\u0080-\u00bf]"
    r"|[\u00e1-\u00ec\u00ee\u00ef][\u0080-\u00bf]{2}|\u00ed[\u0080-\u009f][\u0080-\u00bf]"
    r"|\u00f0[\u0090-\u00bf][\u0080-\u00bf]{2}|[\u00f1-\u00f3][\u0080-\u00bf]{3}"
    r"|\u00f4[\u0080-\u008f][\u0080-\u00bf]{2})*$"
)
# Types whose texts are digits, signs and letters of PostgreSQL's own.
_ASCII = ("uuid", "numeric", "interval", "time", "timetz", "inet", "cidr", "macaddr", "pg_lsn")


def _may_be_bytes(kind: Kind, source: SourceType) -> bool:
    """Whether values of a type have texts that somebody has written."""
    if kind.name == "array":
        return _may_be_bytes(kind.of, source.element or source)
    return kind.name == "string" and source.name not in _ASCII


def _is_text(text: str) -> str:
    """The SQL condition that a text is UTF-8, in a database of `ANY_BYTES`."""
    return f"({text} COLLATE \"C\" ~ '{_UTF8}')"


def readable(text: str) -> str:
    """SQL of a text of the catalog, and of NULL where that is bytes which are no text."""
    other = f"current_setting('server_encoding') <> '{ANY_BYTES}'"
    return f"CASE WHEN {other} OR {_is_text(text)} THEN {text} END"


def _checked_text(carried: Carried) -> Carried:
    """Values whose text is no UTF-8 are rejected, and their text is that of their bytes."""
    text = f"({carried.text})"
    is_text = _is_text(text)
    reject = f"{is_text} IS FALSE"
    return replace(
        carried,
        select=f"CASE WHEN {is_text} THEN {carried.select} END",
        canonical=f"CASE WHEN {is_text} THEN {carried.canonical} END",
        reject=f"({carried.reject} OR {reject})" if carried.reject else reject,
        text=f"CASE WHEN {is_text} THEN {text} ELSE '\\x' ||"
        f" encode(convert_to({text}, '{ANY_BYTES}'), 'hex') END",
    )


_BACK: Mapping[str, str] = {
    "short": "int2",
    "int": "int4",
    "long": "int8",
    "float": "float4",
    "double": "float8",
    "boolean": "bool",
    "string": "text",
    "binary": "bytea",
    "date": "date",
    "timestamp": "timestamptz",
    "timestamp_ntz": "timestamp",
}


def of_kind(kind: Kind) -> tuple[str, SourceType]:
    """A PostgreSQL type that becomes this kind: its name in SQL, and as the catalog has it."""
    if kind.name == "decimal":
        typmod = (kind.precision << 16 | kind.scale) + _NUMERIC_TYPMOD_HEADER
        declared = f"numeric({kind.precision},{kind.scale})"
        return declared, SourceType("numeric", typmod, declared)
    if kind.name == "array":
        inner, element = of_kind(kind.of)
        return f"{inner}[]", SourceType(f"_{element.name}", -1, f"{inner}[]", element=element)
    name = _BACK[kind.name]
    return name, SourceType(name, -1, name)


def recast(column: Column, value: str, kind: Kind) -> Column:
    """A column that is carried as another kind, to which ``value`` can be cast exactly."""
    name, source = of_kind(kind)
    choices = Choices({})
    if kind.name == "decimal":
        # The source's may be an unbounded numeric, which a cast would round.
        name, source = "numeric", SourceType("numeric", -1, "numeric")
        choices = Choices({column.name: (kind.precision, kind.scale)})
    cast = contract(column.name, column.target, f"{value}::{name}", source, choices)
    return replace(
        cast,
        source_type=column.source_type,
        base_type=column.base_type,
        not_null=column.not_null,
        protect=column.protect,
    )


def absent(target: str, kind: Kind) -> Column:
    """A column that the table has and the source has not: it is NULL from now on."""
    name, source = of_kind(kind)
    return contract("", target, f"NULL::{name}", source, Choices({}))


_INTEGERS, _FLOATS = ("short", "int", "long"), ("float", "double")


def wider(one: Kind, other: Kind) -> Kind | None:
    """The narrowest kind that holds all values of both exactly, of the same family; else None."""
    for family in (_INTEGERS, _FLOATS):
        if one.name in family and other.name in family:
            return max(one, other, key=lambda kind: family.index(kind.name))
    if one.name == other.name == "decimal":
        scale = max(one.scale, other.scale)
        digits = max(one.precision - one.scale, other.precision - other.scale)
        return Kind("decimal", digits + scale, scale) if digits + scale <= MAX_PRECISION else None
    return one if one == other else None
