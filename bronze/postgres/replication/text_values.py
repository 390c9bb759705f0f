"""Values as PostgreSQL's own output text become the columns that `bronze.postgres.copy.read` gives.

Logical decoding sends each value as its type's output function writes it, from a session pinned
like `bronze.postgres.connection.session_settings.PINNED`. What is held and what is rejected is the
type contract's, so that a row has the same values and the same row_hash whichever way it came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from bronze.errors import Mismatch
from bronze.model.columns import Column, Kind
from bronze.postgres.catalog.types import Choices, SourceType, carry
from bronze.postgres.copy.read import dtype, regrouped
from bronze.postgres.replication.pgoutput import NO_TEXT


@dataclass(frozen=True)
class Text:
    """A column whose values come as text.

    ``name`` is the source's, ``target`` the Bronze table's, ``source`` the type whose output
    function wrote the texts. By ``natural``, the contract's kind for that type, a value is held
    or rejected; ``kind``, the Bronze table's, is the same or wider.
    """

    name: str
    target: str
    source: SourceType
    natural: Kind
    kind: Kind


def text(column: Column, source: SourceType, choices: Choices) -> Text:
    """How a column's texts are read, ``source`` being its type.

    ``column`` is the contract's, or one recast to a wider kind. A numeric without precision of its
    own is held where it fits the kind that the Bronze table has.
    """
    natural = carry("v", source, choices, column.name).kind
    if _chosen(natural, source):
        natural = column.kind
    return Text(column.name, column.target, source, natural, column.kind)


def typed(texts: pl.DataFrame, columns: Sequence[Text]) -> tuple[pl.DataFrame, pl.Series]:
    """The rows under their target names with the dtypes of their kinds, and what was rejected.

    Args:
        texts: one column of strings for each of ``columns``, in their order; NULL is null.
        columns: what the texts are of.

    Returns:
        The rows, as many as there are in ``texts``; and for each a string as the column
        ``rejected`` of `bronze.postgres.statement`: its rejected values, null where it has none.

    Raises:
        Mismatch: PostgreSQL does not write such a text for a value of the column's type.
    """
    held: list[pl.Series] = []
    lines: dict[int, str] = {}
    for series, column in zip(texts.get_columns(), columns, strict=True):
        values, refused = _column(series, column)
        held.append(values.cast(dtype(column.kind)).alias(column.target))
        if not refused.any():
            continue
        kept = series.filter(refused).str.strip_prefix(NO_TEXT)
        for row, value in zip(refused.arg_true(), kept, strict=True):
            line = json.dumps([column.name, value], ensure_ascii=False)
            lines[row] = f"{lines.get(row, '')}{line}\n"
    rejected = pl.Series("rejected", [None], dtype=pl.String).new_from_index(0, texts.height)
    if lines:
        rejected = rejected.scatter(list(lines), list(lines.values()))
    return pl.DataFrame(held or None, height=texts.height), rejected


def _column(texts: pl.Series, column: Text) -> tuple[pl.Series, pl.Series]:
    try:
        none = texts.str.starts_with(NO_TEXT).fill_null(False)
        if not none.any():
            return _read(texts, column.natural, column.source)
        values, refused = _read(_without(texts, none), column.natural, column.source)
        return values, refused | none
    except (ValueError, pl.exceptions.InvalidOperationError, pl.exceptions.ComputeError):
        # Their messages quote values.
        raise Mismatch(
            f"Column {column.name} has a text that PostgreSQL does not write for"
            f" {column.source.declared}.",
            hint="Read the table anew: the column's type may have changed since.",
        ) from None


def _read(texts: pl.Series, kind: Kind, source: SourceType) -> tuple[pl.Series, pl.Series]:
    """Values, null where rejected, and for each whether it is; else a polars or ValueError."""
    layout = _layout(kind, source)
    if layout is None:
        return _parsed(texts, kind), _none(texts)
    fitting, beyond = layout
    refused = ~texts.str.contains(fitting).fill_null(True)
    if not texts.filter(refused).str.contains(beyond).all():
        raise ValueError("neither held nor rejected")
    texts = _without(texts, refused)
    if kind.name == "array":
        values, within = _lists(texts, kind, source)
        return values, refused | within
    return _parsed(texts, kind), refused


def _none(texts: pl.Series) -> pl.Series:
    return pl.Series([False]).new_from_index(0, len(texts))


def _without(texts: pl.Series, refused: pl.Series) -> pl.Series:
    return texts.set(refused, None) if refused.any() else texts


def _chosen(kind: Kind, source: SourceType) -> bool:
    return kind.name == "decimal" and source.typmod < 0


_DAY = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = r" [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"


def _moment(tail: str) -> tuple[str, str]:
    return f"^{_DAY}{tail}$", f"^(-?infinity|[0-9]*{_DAY}{tail}( BC)?)$"


_MOMENTS: Mapping[str, tuple[str, str]] = {
    "date": _moment(""),
    "timestamp_ntz": _moment(_TIME),
    # One without a zone may have been chosen to be in UTC.
    "timestamp": _moment(rf"{_TIME}(\+00)?"),
}


def _layout(kind: Kind, source: SourceType) -> tuple[str, str] | None:
    """Regular expressions for the texts of a kind's values, and for those that are rejected."""
    if kind.name == "array":
        token = _token(source)
        more = f"(?:{re.escape(_delimiter(source))}(?:{token}))*"
        bounds = r"(\[-?[0-9]+:-?[0-9]+\])+="
        return rf"^\{{(?:(?:{token}){more})?\}}$", rf"(?s)^({bounds}\{{.*|\{{\{{.*\}})\}}$"
    if kind.name == "decimal":
        whole = kind.precision - kind.scale
        fitting = rf"^-?0*[0-9]{{0,{whole}}}(\.[0-9]{{0,{kind.scale}}}0*)?$"
        wild = r"^(-?[0-9]+(\.[0-9]+)?|-?Infinity|NaN)$"
        return fitting, wild if _chosen(kind, source) else "^NaN$"
    return _MOMENTS.get(kind.name)


_ARROW: Mapping[str, pa.DataType] = {
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamp_ntz": pa.timestamp("us"),
}


def _parsed(texts: pl.Series, kind: Kind) -> pl.Series:
    if kind.name in _ARROW:
        if kind.name == "timestamp":
            texts = texts.str.strip_suffix("+00")
        # Ten times as fast as polars, and as exact.
        arrow = texts.to_arrow(compat_level=pl.CompatLevel.oldest())
        return pl.Series(pc.cast(arrow, _ARROW[kind.name])).cast(dtype(kind))
    if kind.name == "boolean":
        if not texts.is_in(["t", "f"]).all():
            raise ValueError("no boolean")
        return texts == "t"
    if kind.name == "binary":
        # Other bytes than hex digits would be those of another bytea_output.
        if not texts.str.starts_with("\\x").all():
            raise ValueError("no hex")
        return texts.str.slice(2).str.decode("hex")
    return texts.cast(dtype(kind))


def _delimiter(source: SourceType) -> str:
    """What stands between an array's elements."""
    return source.element.delimiter if source.element else ","


def _token(source: SourceType) -> str:
    """A regular expression for one element as an array's text has it, quoted or not."""
    return rf'"(?:[^"\\]|\\["\\])*"|[^"\\{{}}{re.escape(_delimiter(source))}]+'


def _lists(texts: pl.Series, kind: Kind, source: SourceType) -> tuple[pl.Series, pl.Series]:
    """Arrays of one dimension, null where an element is rejected, and for each whether one is."""
    tokens = texts.str.extract_all(_token(source))
    flat = _unquoted(tokens.list.explode(empty_as_null=False, keep_nulls=False))
    elements, bad = _read(flat, kind.of, source.element or source)
    if not bad.any():
        return regrouped(elements, tokens), _none(texts)
    rows = np.arange(len(texts))
    owners = np.repeat(rows, tokens.list.len().fill_null(0).to_numpy())
    refused = pl.Series(np.isin(rows, owners[bad.to_numpy()]))
    return _lists(_without(texts, refused), kind, source)[0], refused


def _unquoted(tokens: pl.Series) -> pl.Series:
    tokens = tokens.set(tokens == "NULL", None)
    if not tokens.str.starts_with('"').any():
        return tokens
    # Only a quoted token has quotes or backslashes.
    bare = tokens.str.strip_prefix('"').str.strip_suffix('"')
    return bare.str.replace_all(r'\\(["\\])', "$1")
