"""docs/reference/types.md: what each PostgreSQL type becomes in Delta, as the contract says."""

from __future__ import annotations

from collections.abc import Mapping

from bronze.model.columns import Column
from bronze.postgres.catalog.types import SourceType, TypeOptions, column_contract
from reference.markdown import code, document, table

_INTRODUCTION = """\
Every value of every PostgreSQL type arrives as PostgreSQL has it. A value that Delta cannot
hold is *rejected*: it is NULL in the Bronze table, and `governance.rejected_values` has
PostgreSQL's own text of it. Nothing is rounded, and nothing becomes NULL silently. `bronze
check TABLE` says what each column of a table becomes."""

_NOTES = """\
- A domain is as its base type.
- `arrays = "string"` makes arrays PostgreSQL's text; `timestamps = "timestamp"` reads a
  timestamp without time zone as UTC; `decimals = { ratio = "decimal(38,10)" }` is for numeric
  without precision, and rejects values that do not fit.
- In a database in `SQL_ASCII`, texts that are not UTF-8 are rejected, and kept in the form of a
  bytea.
- Whole numbers and floats become wider with the source (see [schema
  changes](../how-to/schema-changes.md))."""

_DECIMAL = 4
"""What typmods of numeric are larger by."""


def _numeric(precision: int, scale: int) -> SourceType:
    typmod = (precision << 16 | scale) + _DECIMAL
    return SourceType("numeric", typmod, f"numeric({precision},{scale})")


def _array(element: SourceType) -> SourceType:
    return SourceType(f"_{element.name}", -1, f"{element.declared}[]", element=element)


def _simple(name: str) -> SourceType:
    return SourceType(name, -1, name)


_INT4, _TEXT = _simple("int4"), _simple("text")
_EXACT, _AS_TEXT = "exact", "exact, as PostgreSQL's text"
# The types, and what is said of their values; what is rejected follows from the contract.
_TYPES: Mapping[str, tuple[SourceType, str]] = {
    "int2": (_simple("int2"), _EXACT),
    "int4": (_INT4, _EXACT),
    "int8": (_simple("int8"), _EXACT),
    "oid": (_simple("oid"), _EXACT),
    "float4": (_simple("float4"), "exact, with NaN and infinities"),
    "float8": (_simple("float8"), "exact, with NaN and infinities"),
    "numeric(12,2)": (_numeric(12, 2), _EXACT),
    "numeric(38,10)": (_numeric(38, 10), _EXACT),
    "numeric(50,2), any precision above 38": (_numeric(50, 2), _AS_TEXT),
    "numeric without precision": (_simple("numeric"), _AS_TEXT),
    "money": (_simple("money"), _AS_TEXT),
    "bool": (_simple("bool"), _EXACT),
    "bytea": (_simple("bytea"), _EXACT),
    "text": (_TEXT, _EXACT),
    "varchar": (_simple("varchar"), _EXACT),
    "char(n)": (_simple("bpchar"), "exact, padded with blanks as every client sees it"),
    "name": (_simple("name"), _EXACT),
    "citext": (_simple("public.citext"), _EXACT),
    "enum": (SourceType("public.mood", -1, "mood", enum=True), "exact, the label"),
    "uuid": (_simple("uuid"), _AS_TEXT),
    "json": (_simple("json"), "exact, byte for byte"),
    "jsonb": (_simple("jsonb"), _AS_TEXT),
    "xml": (_simple("xml"), _AS_TEXT),
    "hstore": (_simple("public.hstore"), _AS_TEXT),
    "date": (_simple("date"), _EXACT),
    "time": (_simple("time"), _AS_TEXT),
    "timetz": (_simple("timetz"), _AS_TEXT),
    "timestamp": (_simple("timestamp"), "exact, to the microsecond"),
    "timestamptz": (_simple("timestamptz"), "exact, to the microsecond, in UTC"),
    "interval": (_simple("interval"), _AS_TEXT),
    "inet, cidr, macaddr": (_simple("inet"), _AS_TEXT),
    "bit, varbit": (_simple("varbit"), _AS_TEXT),
    "int4range and other ranges": (_simple("int4range"), _AS_TEXT),
    "point and other geometric types": (_simple("point"), _AS_TEXT),
    "tsvector, tsquery": (_simple("tsvector"), _AS_TEXT),
    "composite types": (SourceType("public.pair", -1, "pair", composite=True), _AS_TEXT),
    "int4[]": (_array(_INT4), _EXACT),
    "text[]": (_array(_TEXT), _EXACT),
    "numeric(12,2)[]": (_array(_numeric(12, 2)), _EXACT),
    "timestamptz[]": (_array(_simple("timestamptz")), _EXACT),
    "anything else": (_simple("public.other"), _AS_TEXT),
}


def page() -> str:
    """The page."""
    rows = []
    for name, (source, exactness) in _TYPES.items():
        column = column_contract("c", "c", "c", source, TypeOptions({}))
        kind = str(column.kind).replace("<", "&lt;")
        rows.append((code(name), kind, exactness, rejected(column)))
    return document(
        "Types",
        _INTRODUCTION,
        table(("PostgreSQL", "Delta", "values", "rejected"), rows),
        _NOTES,
    )


def rejected(column: Column) -> str:
    """Which values of a column are rejected, in words."""
    if not column.reject:
        return ""
    kind = column.kind
    if kind.name == "array":
        inner = kind.of.name
        of_elements = {
            "decimal": ", or NaN as an element",
            "timestamp": ", or an infinite time as an element",
        }
        return "several dimensions, or a lower bound other than 1" + of_elements.get(inner, "")
    words = {
        "decimal": "NaN",
        "date": "infinite ones, and years outside 1 to 9999",
        "timestamp": "infinite ones, and years outside 1 to 9999",
        "timestamp_ntz": "infinite ones, and years outside 1 to 9999",
    }
    return words[kind.name]
