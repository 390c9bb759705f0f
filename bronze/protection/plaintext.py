"""The text of a value, which is what gets protected, and the value of such a text.

The text depends on the value alone: equal values of an int and a bigint, or of decimals with more
or fewer digits, have the same text. Different values of a column have different texts.
"""

from __future__ import annotations

from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from bronze import portion

_HEX = "\\x"
_ZONE = "+00"
_FIELD = "v"


def texts(values: pl.Series) -> pl.Series:
    """The texts of values of any type; NULL for NULL."""
    kind = values.dtype
    if kind == pl.String:
        return values
    if kind == pl.Binary:
        return (_HEX + values.bin.encode("hex")).alias(values.name)
    if isinstance(kind, pl.Decimal):
        text = values.cast(pl.String)
        return text.str.strip_chars_end("0").str.strip_suffix(".") if kind.scale else text
    if isinstance(kind, pl.Datetime):
        text = values.dt.replace_time_zone(None).cast(pl.String)
        return (text + _ZONE).alias(values.name) if kind.time_zone else text
    if isinstance(kind, pl.List):
        return _list_texts(values)
    return values.cast(pl.String)


def values(texts: pl.Series, kind: Any) -> pl.Series:
    """The values of texts that `texts` made, in the polars type ``kind``."""
    if kind == pl.String:
        return texts
    if kind == pl.Binary:
        return texts.str.strip_prefix(_HEX).str.decode("hex")
    if kind == pl.Date or isinstance(kind, pl.Datetime):
        # Polars misreads years of five digits, and is slower.
        plain = texts.str.strip_suffix(_ZONE).to_arrow(compat_level=pl.CompatLevel.oldest())
        arrow = pa.date32() if kind == pl.Date else pa.timestamp("us")
        return pl.Series(texts.name, pc.cast(plain, arrow)).cast(kind)
    if isinstance(kind, pl.List):
        return _list_values(texts, kind)
    if kind == pl.Boolean:
        # `protect` may have padded it to the length of "false".
        return texts.str.strip_chars_end() == "true"
    return texts.cast(kind)


def _list_texts(lists: pl.Series) -> pl.Series:
    flat = texts(lists.list.explode(empty_as_null=False, keep_nulls=False))
    frame = pl.DataFrame({_FIELD: portion.regroup_like(flat, lists)})
    made = frame.select(pl.struct(_FIELD).struct.json_encode()).to_series()
    return made.set(lists.is_null(), None).alias(lists.name)


def _list_values(texts: pl.Series, kind: pl.List) -> pl.Series:
    layout = pl.Struct({_FIELD: pl.List(pl.String)})
    lists = texts.str.json_decode(layout).struct.field(_FIELD)
    flat = lists.list.explode(empty_as_null=False, keep_nulls=False)
    return portion.regroup_like(values(flat, kind.inner), lists).alias(texts.name)
