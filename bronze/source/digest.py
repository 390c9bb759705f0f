"""The canonical encoding of a row in PostgreSQL's SQL, and the hash over it.

The format is defined in `bronze.enrich.encoding`, which computes the same bytes from the values
that we read; this is its independent twin, for proof.
"""

from __future__ import annotations

from collections.abc import Sequence

from bronze.model import Column, Kind
from bronze.source.statement import rejected

_FLAGS_PER_WORD = 15

# kind: how its fixed part is sent, and what stands in it for NULL
_FIXED = {
    "short": ("int2send({})", "0::int2"),
    "int": ("int4send({})", "0"),
    "long": ("int8send({})", "0::int8"),
    "float": ("float4send(coalesce(nullif({}, 'NaN'), 'NaN'))", "'NaN'::float4"),
    "double": ("float8send(coalesce(nullif({}, 'NaN'), 'NaN'))", "'NaN'::float8"),
    "boolean": ("boolsend({})", "false"),
    "date": ("date_send({})", "'2000-01-01'::date"),
    "timestamp": ("timestamptz_send({})", "'2000-01-01 00:00:00+00'::timestamptz"),
    "timestamp_ntz": ("timestamp_send({})", "'2000-01-01'::timestamp"),
}


def row_hash(columns: Sequence[Column], relation: str, where: str, base: int | None = None) -> str:
    """A query for ``row_hash`` (32 hexadecimal digits) of the rows of ``relation``.

    It is the unkeyed hash; rows come in no order. Selects one column of text. ``base`` is how
    many of the columns the table began with, None being all.
    """
    values = [f"{column.canonical} AS v{i}" for i, column in enumerate(columns)]
    values.append(f"{rejected(columns)} AS r")
    # OFFSET 0 keeps the planner from computing each value once per use.
    return (
        f"SELECT left(encode(sha256({encoding(columns, base)}"  # noqa: S608 - made of quoted names
        " || convert_to(coalesce(r, ''), 'UTF8')), 'hex'), 32) AS row_hash"
        f" FROM (SELECT {', '.join(values)} FROM {relation} WHERE {where} OFFSET 0) AS s"
    )


def encoding(columns: Sequence[Column], base: int | None = None) -> str:
    """The SQL of the canonical encoding (bytea) of the values v0, v1 and so on."""
    fields = [(f"v{i}", column.kind, column.element) for i, column in enumerate(columns)]
    base = len(fields) if base is None else base
    later = [
        f"CASE WHEN v{i} IS NULL THEN ''::bytea"
        f" ELSE int2send({i}::int2) || {_joined(_parts([fields[i]]))} END"
        for i in range(base, len(fields))
    ]
    return _joined([*_parts(fields[:base]), *later])


def _parts(fields: Sequence[tuple[str, Kind, str]]) -> list[str]:
    flags = []
    for start in range(0, len(fields), _FLAGS_PER_WORD):
        word = fields[start : start + _FLAGS_PER_WORD]
        bits = " + ".join(f"({v} IS NULL)::int4 * {1 << i}" for i, (v, _, _) in enumerate(word))
        flags.append(f"int2send(({bits})::int2)")
    fixed = [_fixed(*field) for field in fields]
    variable = [_variable(*field) for field in fields if _is_variable(field[1])]
    return flags + fixed + variable


def _is_variable(kind: Kind) -> bool:
    return kind.name not in _FIXED and not _is_short_decimal(kind)


def _is_short_decimal(kind: Kind) -> bool:
    return kind.name == "decimal" and kind.precision <= 18


def _fixed(value: str, kind: Kind, _: str) -> str:
    if kind.name == "array":
        return f"int4send(coalesce(cardinality({value}), 0))"
    if _is_variable(kind):
        return f"int4send(coalesce(octet_length({value}), 0))"
    send, zero = _FIXED["long" if _is_short_decimal(kind) else kind.name]
    return send.format(f"coalesce({value}, {zero})")


def _variable(value: str, kind: Kind, element: str) -> str:
    if kind.name == "array":
        inner = _joined(_parts([("x", kind.of, "")]))
        return (
            f"coalesce((SELECT string_agg({inner}, ''::bytea ORDER BY o) FROM"  # noqa: S608
            f" (SELECT {element} AS x, o FROM unnest({value}) WITH ORDINALITY AS u(e, o)) AS w),"
            " ''::bytea)"
        )
    if kind.name == "binary":
        return f"coalesce({value}, ''::bytea)"
    return f"convert_to(coalesce({value}, ''), 'UTF8')"


def _joined(parts: Sequence[str]) -> str:
    # A balanced tree: a thousand columns as one chain would nest too deep, and copy each byte
    # once per column.
    if len(parts) < 2:
        return parts[0] if parts else "''::bytea"
    middle = len(parts) // 2
    return f"({_joined(parts[:middle])} || {_joined(parts[middle:])})"
