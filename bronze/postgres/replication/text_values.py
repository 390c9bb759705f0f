"""Parses the texts of logical decoding into columns as `bronze.postgres.copy.rows_reader` reads.

Logical decoding sends each value as the text of its type's output function, in a session with the
settings of `bronze.postgres.connection.session_settings.PINNED`. The column contract decides which
values are rejected, so that a row has the same values and row hash in a load and in a stream.
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

from bronze import portion
from bronze.errors import Mismatch
from bronze.model.columns import Column, DeltaType
from bronze.postgres.catalog.types import SourceType, TypeOptions, value_sql
from bronze.postgres.copy.rows_reader import dtype
from bronze.postgres.replication.pgoutput import NO_TEXT


@dataclass(frozen=True)
class TextColumn:
    """A column whose values come as text.

    ``name`` is its name in the source, ``target`` the one in the Bronze table, ``source`` the type
    whose output function made the texts. A value that ``natural``, the contract's kind for that
    type, cannot represent is rejected; ``kind``, that of the Bronze table, is the same or wider.
    """

    name: str
    target: str
    source: SourceType
    natural: DeltaType
    kind: DeltaType


def text_column(column: Column, source: SourceType, choices: TypeOptions) -> TextColumn:
    """How the texts of a column are parsed.

    A numeric without precision is rejected where it does not fit the kind of the Bronze table.

    Args:
        column: the contract's, or one recast to a wider kind.
        source: its type.
        choices: the table's type options.
    """
    natural = value_sql("v", source, choices, column.name).kind
    if _is_decimal_by_config(natural, source):
        natural = column.kind
    return TextColumn(column.name, column.target, source, natural, column.kind)


def parse_texts(
    texts: pl.DataFrame, columns: Sequence[TextColumn]
) -> tuple[pl.DataFrame, pl.Series]:
    """Parses rows of texts.

    Args:
        texts: a column of strings for each of ``columns``, in their order; NULL is null.
        columns: the columns of the texts.

    Returns:
        The rows under their target names, with the dtypes of their kinds; and for each row its
        rejected values, as in the column ``rejected`` of `bronze.postgres.statement` (null: none).

    Raises:
        Mismatch: a text is not one that PostgreSQL writes for a value of the column's type.
    """
    parsed: list[pl.Series] = []
    lines: dict[int, str] = {}
    for series, column in zip(texts.get_columns(), columns, strict=True):
        values, rejected = _parse_column(series, column)
        parsed.append(values.cast(dtype(column.kind)).alias(column.target))
        if not rejected.any():
            continue
        rejected_texts = series.filter(rejected).str.strip_prefix(NO_TEXT)
        for row, value in zip(rejected.arg_true(), rejected_texts, strict=True):
            line = json.dumps([column.name, value], ensure_ascii=False)
            lines[row] = f"{lines.get(row, '')}{line}\n"
    values_rejected = pl.Series("rejected", [None], dtype=pl.String)
    values_rejected = values_rejected.new_from_index(0, texts.height)
    if lines:
        values_rejected = values_rejected.scatter(list(lines), list(lines.values()))
    return pl.DataFrame(parsed or None, height=texts.height), values_rejected


def _parse_column(texts: pl.Series, column: TextColumn) -> tuple[pl.Series, pl.Series]:
    try:
        invalid = texts.str.starts_with(NO_TEXT).fill_null(False)
        if not invalid.any():
            return _parse_checked(texts, column.natural, column.source)
        values, rejected = _parse_checked(
            _null_where(texts, invalid), column.natural, column.source
        )
        return values, rejected | invalid
    except (ValueError, pl.exceptions.InvalidOperationError, pl.exceptions.ComputeError):
        # Their messages quote values.
        raise Mismatch(
            f"Column {column.name} has a text that PostgreSQL does not write for"
            f" {column.source.declared}.",
            hint="Load the table again: the column's type may have changed.",
        ) from None


def _parse_checked(
    texts: pl.Series, kind: DeltaType, source: SourceType
) -> tuple[pl.Series, pl.Series]:
    """The values, null where rejected, and which are rejected.

    Raises:
        ValueError, polars.exceptions.PolarsError: a text is not of the type.
    """
    patterns = _patterns(kind, source)
    if patterns is None:
        return _parse(texts, kind), _all_false(texts)
    valid, rejectable = patterns
    rejected = ~texts.str.contains(valid).fill_null(True)
    if not texts.filter(rejected).str.contains(rejectable).all():
        raise ValueError("text of no value of the type")
    texts = _null_where(texts, rejected)
    if kind.name == "array":
        values, in_elements = _parse_arrays(texts, kind, source)
        return values, rejected | in_elements
    return _parse(texts, kind), rejected


def _all_false(texts: pl.Series) -> pl.Series:
    return pl.Series([False]).new_from_index(0, len(texts))


def _null_where(texts: pl.Series, rejected: pl.Series) -> pl.Series:
    return texts.set(rejected, None) if rejected.any() else texts


def _is_decimal_by_config(kind: DeltaType, source: SourceType) -> bool:
    return kind.name == "decimal" and source.typmod < 0


_DAY = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = r" [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"


def _time_patterns(tail: str) -> tuple[str, str]:
    return f"^{_DAY}{tail}$", f"^(-?infinity|[0-9]*{_DAY}{tail}( BC)?)$"


_TIME_PATTERNS: Mapping[str, tuple[str, str]] = {
    "date": _time_patterns(""),
    "timestamp_ntz": _time_patterns(_TIME),
    # By the config it may be a timestamp without zone, read as UTC.
    "timestamp": _time_patterns(rf"{_TIME}(\+00)?"),
}


def _patterns(kind: DeltaType, source: SourceType) -> tuple[str, str] | None:
    """Regular expressions for the texts of valid and of rejected values; None: all are valid."""
    if kind.name == "array":
        element = _element_pattern(source)
        more = f"(?:{re.escape(_delimiter(source))}(?:{element}))*"
        bounds = r"(\[-?[0-9]+:-?[0-9]+\])+="
        return rf"^\{{(?:(?:{element}){more})?\}}$", rf"(?s)^({bounds}\{{.*|\{{\{{.*\}})\}}$"
    if kind.name == "decimal":
        whole = kind.precision - kind.scale
        valid = rf"^-?0*[0-9]{{0,{whole}}}(\.[0-9]{{0,{kind.scale}}}0*)?$"
        rejectable = r"^(-?[0-9]+(\.[0-9]+)?|-?Infinity|NaN)$"
        return valid, rejectable if _is_decimal_by_config(kind, source) else "^NaN$"
    return _TIME_PATTERNS.get(kind.name)


_ARROW: Mapping[str, pa.DataType] = {
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamp_ntz": pa.timestamp("us"),
}


def _parse(texts: pl.Series, kind: DeltaType) -> pl.Series:
    if kind.name in _ARROW:
        if kind.name == "timestamp":
            texts = texts.str.strip_suffix("+00")
        # Ten times as fast as the cast of polars, and as exact.
        arrow = texts.to_arrow(compat_level=pl.CompatLevel.oldest())
        return pl.Series(pc.cast(arrow, _ARROW[kind.name])).cast(dtype(kind))
    if kind.name == "boolean":
        if not texts.is_in(["t", "f"]).all():
            raise ValueError("not a boolean")
        return texts == "t"
    if kind.name == "binary":
        # Another prefix would mean another bytea_output.
        if not texts.str.starts_with("\\x").all():
            raise ValueError("not in hex format")
        return texts.str.slice(2).str.decode("hex")
    return texts.cast(dtype(kind))


def _delimiter(source: SourceType) -> str:
    """The separator of an array's elements."""
    return source.element.delimiter if source.element else ","


def _element_pattern(source: SourceType) -> str:
    """A regular expression for an element in an array's text, quoted or not."""
    return rf'"(?:[^"\\]|\\["\\])*"|[^"\\{{}}{re.escape(_delimiter(source))}]+'


def _parse_arrays(
    texts: pl.Series, kind: DeltaType, source: SourceType
) -> tuple[pl.Series, pl.Series]:
    """Arrays of one dimension, null where an element is rejected, and which those are."""
    tokens = texts.str.extract_all(_element_pattern(source))
    flat = _unquote(tokens.list.explode(empty_as_null=False, keep_nulls=False))
    elements, rejected_elements = _parse_checked(flat, kind.of, source.element or source)
    if not rejected_elements.any():
        return portion.regroup_like(elements, tokens), _all_false(texts)
    rows = np.arange(len(texts))
    owners = np.repeat(rows, tokens.list.len().fill_null(0).to_numpy())
    rejected = pl.Series(np.isin(rows, owners[rejected_elements.to_numpy()]))
    return _parse_arrays(_null_where(texts, rejected), kind, source)[0], rejected


def _unquote(tokens: pl.Series) -> pl.Series:
    tokens = tokens.set(tokens == "NULL", None)
    if not tokens.str.starts_with('"').any():
        return tokens
    # Only a quoted element contains quotes or backslashes.
    unquoted = tokens.str.strip_prefix('"').str.strip_suffix('"')
    return unquoted.str.replace_all(r'\\(["\\])', "$1")
