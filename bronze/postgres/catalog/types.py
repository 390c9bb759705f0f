"""The column contract: what each PostgreSQL type becomes in Delta, and how its values are read.

The contract covers every type: one without a rule is read as PostgreSQL's text. A rule gives four
SQL expressions over a value (see `bronze.model.columns.Column`): what to select, what to hash, when
the value is rejected, and its text. Types that connectorx changes silently or panics on are cast in
PostgreSQL to a type that it reads exactly.

Dates and times that are read as numbers count from 1970-01-01, the epoch of Delta.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from bronze.model.columns import Column, DeltaType, WireFormat

MAX_PRECISION = 38
_INT8_PRECISION = 18

_NUMERIC_TYPMOD_HEADER = 4


@dataclass(frozen=True)
class SourceType:
    """A PostgreSQL type from the catalog; a domain is resolved to its base type.

    ``name`` is pg_type.typname, qualified by its schema unless that is pg_catalog; ``typmod`` is
    atttypmod (-1 for none); ``declared`` is format_type's text, for messages; ``element`` is the
    type of an array's elements; ``cast`` says that the column's type is a domain, whose values need
    a cast to the base type; ``delimiter`` (pg_type.typdelim) separates the elements of an array of
    this type; ``enum`` says that it is an enum.
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
        """Whether the type has so few values that the length or end of a value reveals it."""
        return (
            self.name == "bool" or self.enum or bool(self.element and self.element.has_few_values)
        )


@dataclass(frozen=True)
class TypeOptions:
    """A table's type options in the config, and the encoding of its database.

    ``decimals`` gives columns of numerics without precision a decimal(p, s); ``arrays`` and
    ``timestamps`` say which of two types arrays and timestamps without zone become.
    """

    decimals: Mapping[str, tuple[int, int]]
    arrays: Literal["array", "string"] = "array"
    timestamps: Literal["timestamp_ntz", "timestamp"] = "timestamp_ntz"
    encoding: str = "UTF8"


@dataclass(frozen=True)
class ValueSql:
    """The SQL of a value of some type, and what it becomes: the parts of a `Column` by its type."""

    kind: DeltaType
    wire: WireFormat
    select: str
    canonical: str
    reject: str
    text: str
    element: str = ""
    raw: str = ""


def _plain_value(kind: DeltaType, value: str) -> ValueSql:
    return ValueSql(kind, "same", value, value, "", f"{value}::text")


def _same_value(name: str) -> Callable[[str, SourceType], ValueSql]:
    return lambda v, _: _plain_value(DeltaType(name), v)  # type: ignore[arg-type]


def _cast(name: str, to: str) -> Callable[[str, SourceType], ValueSql]:
    return lambda v, _: _plain_value(DeltaType(name), f"{v}::{to}")  # type: ignore[arg-type]


def output_text(value: str) -> str:
    """SQL for a value's text by its type's output function, as a client receives it.

    A cast to text differs for some types: it adds a netmask to an inet, and strips a char(n).
    """
    return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN concat({value}) END"


def _text(value: str, _: SourceType) -> ValueSql:
    return _plain_value(DeltaType("string"), output_text(value))


def _in_range(name: str, low: str, high: str) -> Callable[[str, SourceType], ValueSql]:
    def rule(value: str, _: SourceType) -> ValueSql:
        inside = f"({value} >= {low} AND {value} < {high})"
        guarded = f"CASE WHEN {inside} THEN {value} END"
        return ValueSql(
            DeltaType(name),  # type: ignore[arg-type]
            "same",
            guarded,
            guarded,
            f"NOT {inside}",
            f"{value}::text",
            raw=value,
        )

    return rule


_date = _in_range("date", "'0001-01-01'::date", "'10000-01-01'::date")
_timestamp = _in_range("timestamp_ntz", "'0001-01-01'::timestamp", "'10000-01-01'::timestamp")
_timestamptz = _in_range(
    "timestamp", "'0001-01-01 00:00:00+00'::timestamptz", "'10000-01-01 00:00:00+00'::timestamptz"
)


def _numeric(value: str, source: SourceType) -> ValueSql:
    if source.typmod < _NUMERIC_TYPMOD_HEADER:
        return _plain_value(DeltaType("string"), f"{value}::text")
    packed = source.typmod - _NUMERIC_TYPMOD_HEADER
    precision = packed >> 16 & 0xFFFF
    scale = (packed & 0x7FF ^ 0x400) - 0x400
    kind = DeltaType("decimal", max(precision - min(scale, 0), scale), max(scale, 0))
    if kind.precision > MAX_PRECISION:
        return _plain_value(DeltaType("string"), f"{value}::text")
    # A numeric with a precision cannot be infinite: NaN is its only special value.
    return _decimal(kind, f"nullif({value}, 'NaN')", f"{value} = 'NaN'", value)


def _decimal(kind: DeltaType, guarded: str, reject: str, value: str) -> ValueSql:
    text = f"{value}::text"
    if kind.precision > _INT8_PRECISION:
        digits = f"{guarded}::text"
        return ValueSql(kind, "text", digits, digits, reject, text, raw=text)
    scaled = _scaled(guarded, kind.scale)
    raw = _scaled(value, kind.scale)
    return ValueSql(kind, "unscaled", scaled, scaled, reject, text, raw=raw)


def _scaled(value: str, scale: int) -> str:
    return f"({value} * 1e{scale})::int8" if scale else f"({value})::int8"


def _decimal_by_config(value: str, precision: int, scale: int) -> ValueSql:
    # NaN and infinities fail the comparison.
    fits = f"(abs({value}) < 1e{precision - scale} AND round({value}, {scale}) = {value})"
    guarded = f"CASE WHEN {fits} THEN {value}::numeric({precision},{scale}) END"
    kind = DeltaType("decimal", precision, scale)
    reject = f"{fits} IS NOT TRUE AND {value} IS NOT NULL"
    # Without its guard, a value of more digits would be rounded, and nobody would see it.
    return replace(_decimal(kind, f"({guarded})", reject, value), raw="")


_RULES: Mapping[str, Callable[[str, SourceType], ValueSql]] = {
    "int2": _same_value("short"),
    "int4": _same_value("int"),
    "int8": _same_value("long"),
    "oid": _cast("long", "int8"),
    "float4": _same_value("float"),
    "float8": _same_value("double"),
    "numeric": _numeric,
    "bool": _same_value("boolean"),
    "bytea": _same_value("binary"),
    "text": _same_value("string"),
    "varchar": _same_value("string"),
    "name": _cast("string", "text"),
    "uuid": _cast("string", "text"),
    "json": _cast("string", "text"),
    "jsonb": _cast("string", "text"),
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
}
"""The rules by type name; other types have the rule `_text`."""

# Internal types of the catalog: arrays with bounds from 0, read as text.
_NOT_ARRAYS = ("int2vector", "oidvector")


def value_sql(value: str, source: SourceType, choices: TypeOptions, name: str = "") -> ValueSql:
    """The rule of a type applied to a value; ``name`` is the column's, to look up its options."""
    if source.element is not None and source.name not in _NOT_ARRAYS and choices.arrays == "array":
        return _array(value, source.element, choices)
    if source.name == "numeric" and source.typmod < 0 and name in choices.decimals:
        return _decimal_by_config(value, *choices.decimals[name])
    if source.cast and source.name in _RULES:
        # A domain's values have the domain as type; the cast makes it the base type.
        value = f"{value}::{source.name}"
    if source.name == "timestamp" and choices.timestamps == "timestamp":
        without_zone = _timestamp(value, source)
        utc = f"(({without_zone.select}) AT TIME ZONE 'UTC')"
        raw = f"({without_zone.raw} AT TIME ZONE 'UTC')"
        return replace(
            without_zone, kind=DeltaType("timestamp"), select=utc, canonical=utc, raw=raw
        )
    return _RULES.get(source.name, _text)(value, source)


# Arrays of these types are read as they are, those of other types as arrays of text.
_NATIVE_ELEMENTS = ("int2", "int4", "int8", "float4", "float8", "bool", "text", "varchar")

# PostgreSQL's microseconds since 2000, as those since 1970: before 14, extract returns a float, in
# which distant times lose microseconds.
_MICROSECONDS = "(('x' || encode({send}({{}}), 'hex'))::bit(64)::int8 + 946684800000000)::text"
_ELEMENT_TEXT: Mapping[str, str] = {
    "binary": "encode({}, 'hex')",
    "date": "({} - '1970-01-01'::date)::text",
    "timestamp": _MICROSECONDS.format(send="timestamptz_send"),
    "timestamp_ntz": _MICROSECONDS.format(send="timestamp_send"),
}


def _array(value: str, element: SourceType, choices: TypeOptions) -> ValueSql:
    if element.composite:
        # unnest would split the elements into their fields.
        value, element = f"{value}::text[]", SourceType("text", -1, "text")
    inner = value_sql("e", replace(element, cast=False), replace(choices, arrays="string"))
    valid = (
        f"(array_ndims({value}) IS NULL"
        f" OR (array_ndims({value}) = 1 AND array_lower({value}, 1) = 1))"
    )
    if inner.reject:
        valid += f" AND NOT EXISTS (SELECT FROM unnest({value}) e WHERE {inner.reject})"
    native = element.name in _NATIVE_ELEMENTS
    if native:
        select = f"CASE WHEN {valid} THEN {value}::{element.name}[] END"
    else:
        select = f"CASE WHEN {valid} AND {value} IS NOT NULL THEN {_texts(value, inner)} END"
    return ValueSql(
        kind=DeltaType("array", element=inner.kind),
        wire="same" if native else "texts",
        select=select,
        canonical=f"CASE WHEN {valid} THEN {value} END",
        reject=f"NOT ({valid})",
        text=f"{value}::text",
        element=inner.canonical,
        raw=f"{value}::{element.name}[]" if native else "",
    )


def _texts(value: str, inner: ValueSql) -> str:
    """The SQL of an array of the texts of an array's elements."""
    text = _ELEMENT_TEXT.get(inner.kind.name, "({})::text").format(f"({inner.select})")
    if inner.wire == "unscaled":
        text = "e::text"
    return f"ARRAY(SELECT {text} FROM unnest({value}) WITH ORDINALITY AS u(e, o) ORDER BY o)"  # noqa: S608 - made of constants


def column_contract(
    name: str,
    target: str,
    value: str,
    source: SourceType,
    choices: TypeOptions,
    not_null: bool = False,
) -> Column:
    """The contract of one column.

    Args:
        name: its name in the source.
        target: its name in the Bronze table.
        value: the SQL of its values, usually its quoted name.
        source: its type.
        choices: the table's type options.
        not_null: whether it is NOT NULL.
    """
    expression = value_sql(value, source, choices, name)
    if choices.encoding == SQL_ASCII and _has_user_text(expression.kind, source):
        expression = _rejecting_invalid_text(expression)
    return Column(
        name=name,
        target=target,
        source_type=source.declared,
        kind=expression.kind,
        wire=expression.wire,
        select=expression.select,
        canonical=expression.canonical,
        reject=expression.reject,
        text=expression.text,
        element=expression.element,
        not_null=not_null,
        base_type=source.name,
        raw=expression.raw,
    )


SQL_ASCII = "SQL_ASCII"
"""The encoding of a database in which a text may be bytes of any encoding."""

# In such a database each byte is a character. Valid UTF-8 by RFC 3629, as PostgreSQL checks it.
_UTF8 = (
    r"^(?:[\u0001-\u007f]|[\u00c2-\u00df][\u0080-\u00bf]|\u00e0[\u00a0-\u00bf][\u0080-\u00bf]"
    r"|[\u00e1-\u00ec\u00ee\u00ef][\u0080-\u00bf]{2}|\u00ed[\u0080-\u009f][\u0080-\u00bf]"
    r"|\u00f0[\u0090-\u00bf][\u0080-\u00bf]{2}|[\u00f1-\u00f3][\u0080-\u00bf]{3}"
    r"|\u00f4[\u0080-\u008f][\u0080-\u00bf]{2})*$"
)
# Types whose texts PostgreSQL makes of ASCII characters.
_ASCII = ("uuid", "numeric", "interval", "time", "timetz", "inet", "cidr", "macaddr", "pg_lsn")


def _has_user_text(kind: DeltaType, source: SourceType) -> bool:
    """Whether values of a type contain text of users, which may not be valid UTF-8."""
    if kind.name == "array":
        return _has_user_text(kind.of, source.element or source)
    return kind.name == "string" and source.name not in _ASCII


def _is_utf8(text: str) -> str:
    """The SQL condition that a text is valid UTF-8, in a database with the encoding `SQL_ASCII`."""
    return f"({text} COLLATE \"C\" ~ '{_UTF8}')"


def valid_text(text: str) -> str:
    """SQL for a text of the catalog, NULL where it is not valid UTF-8."""
    other_encoding = f"current_setting('server_encoding') <> '{SQL_ASCII}'"
    return f"CASE WHEN {other_encoding} OR {_is_utf8(text)} THEN {text} END"


def _rejecting_invalid_text(expression: ValueSql) -> ValueSql:
    """Rejects values whose text is not valid UTF-8, and gives their bytes in hex as text."""
    text = f"({expression.text})"
    is_utf8 = _is_utf8(text)
    reject = f"{is_utf8} IS FALSE"
    return replace(
        expression,
        select=f"CASE WHEN {is_utf8} THEN {expression.select} END",
        canonical=f"CASE WHEN {is_utf8} THEN {expression.canonical} END",
        reject=f"({expression.reject} OR {reject})" if expression.reject else reject,
        text=f"CASE WHEN {is_utf8} THEN {text} ELSE '\\x' ||"
        f" encode(convert_to({text}, '{SQL_ASCII}'), 'hex') END",
    )


_TYPE_OF_KIND: Mapping[str, str] = {
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


def type_of_kind(kind: DeltaType) -> tuple[str, SourceType]:
    """A PostgreSQL type that becomes this kind: its name in SQL, and the type."""
    if kind.name == "decimal":
        typmod = (kind.precision << 16 | kind.scale) + _NUMERIC_TYPMOD_HEADER
        declared = f"numeric({kind.precision},{kind.scale})"
        return declared, SourceType("numeric", typmod, declared)
    if kind.name == "array":
        inner, element = type_of_kind(kind.of)
        return f"{inner}[]", SourceType(f"_{element.name}", -1, f"{inner}[]", element=element)
    name = _TYPE_OF_KIND[kind.name]
    return name, SourceType(name, -1, name)


def recast_column(column: Column, value: str, kind: DeltaType) -> Column:
    """The contract of a column that is read as another kind, to which ``value`` casts exactly."""
    name, source = type_of_kind(kind)
    choices = TypeOptions({})
    if kind.name == "decimal":
        # The column may be a numeric without precision, which a cast would round.
        name, source = "numeric", SourceType("numeric", -1, "numeric")
        choices = TypeOptions({column.name: (kind.precision, kind.scale)})
    cast = column_contract(column.name, column.target, f"{value}::{name}", source, choices)
    return replace(
        cast,
        source_type=column.source_type,
        base_type=column.base_type,
        not_null=column.not_null,
        protect=column.protect,
    )


def absent_column(target: str, kind: DeltaType) -> Column:
    """The contract of a column that the source no longer has: NULL in new rows."""
    name, source = type_of_kind(kind)
    return column_contract("", target, f"NULL::{name}", source, TypeOptions({}))


_INTEGERS, _FLOATS = ("short", "int", "long"), ("float", "double")


def common_kind(one: DeltaType, other: DeltaType) -> DeltaType | None:
    """The narrowest kind of the same family with all values of both, exactly; None if none has."""
    for family in (_INTEGERS, _FLOATS):
        if one.name in family and other.name in family:
            return max(one, other, key=lambda kind: family.index(kind.name))
    if one.name == other.name == "decimal":
        scale = max(one.scale, other.scale)
        digits = max(one.precision - one.scale, other.precision - other.scale)
        return (
            DeltaType("decimal", digits + scale, scale) if digits + scale <= MAX_PRECISION else None
        )
    return one if one == other else None
