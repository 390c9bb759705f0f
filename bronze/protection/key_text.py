"""Key text: the values of a row's key that Delta cannot hold or compare, as text.

An infinite date, a decimal NaN or bytes that are not text are NULL in a Bronze table, so that two
rows may have the same key there. The column `KEY_TEXT` has such values of a row's key: a JSON
object of column names and PostgreSQL's own texts, NULL in a row without any. Of an array column,
which cannot be joined by, it has every value, as `bronze.protection.plaintext` writes it. The text
of a protected column is protected like a value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import polars as pl

from bronze.errors import Mismatch
from bronze.model.columns import KEY_TEXT, Column, RowKey
from bronze.model.protection import TableProtection
from bronze.protection import plaintext, protect


def is_list(column: Column) -> bool:
    """Whether the column is an array in the Bronze table."""
    return column.stored_type.name == "array"


def row_key(columns: Sequence[Column], has_text: bool) -> RowKey:
    """The key of these source columns, with or without `KEY_TEXT`."""
    names = tuple(column.target for column in columns if not is_list(column))
    if has_text:
        # Data skipping uses the first column, which must never be NULL.
        never_null = {column.target for column in columns if not column.reject}
        names = (*sorted(names, key=lambda name: name not in never_null), KEY_TEXT)
    return RowKey(tuple(columns), names)


def add_key_text(
    rows: pl.DataFrame,
    clear: pl.DataFrame,
    rejected: pl.Series,
    key: RowKey,
    protection: TableProtection | None,
) -> pl.DataFrame:
    """The rows with `KEY_TEXT`, if their table has it.

    Args:
        rows: as they are stored.
        clear: the same rows in clear, at least the columns of their key.
        rejected: their rejected values, as in `bronze.postgres.statement`.
        key: the key of the table.
        protection: how the table is protected.

    Raises:
        Mismatch: the table needs the column but does not have it.
    """
    parts = _parts(clear, rejected, key)
    if not key.has_text:
        if parts:
            column = next(iter(next(iter(parts.values()))))
            raise Mismatch(
                f"The key has a value that Delta cannot hold, in column {column}.",
                hint=f"The table needs a column {KEY_TEXT}, and all rows have to be compared. A"
                " stream does that by itself; after a run, run again.",
            )
        return rows
    if protection is not None:
        _protect(parts, protection)
    order = [column.target for column in key.columns]
    texts: list[str | None] = [None] * rows.height
    for row, part in parts.items():
        texts[row] = key_text({name: part[name] for name in order if name in part})
    return rows.with_columns(pl.Series(KEY_TEXT, texts, dtype=pl.String))


def _protect(parts: dict[int, dict[str, str]], protection: TableProtection) -> None:
    """Protects the texts of protected columns in ``parts``, as `_parts` returns them."""
    for column in protection.columns:
        rows = [row for row, part in parts.items() if column.column in part]
        if rows:
            clear = pl.Series([parts[row][column.column] for row in rows], dtype=pl.String)
            stored = protect.protect_texts(clear, column, protection.masters)
            for row, text in zip(rows, stored, strict=True):
                parts[row][column.column] = text


def key_text(parts: Mapping[str, str]) -> str:
    """The value of `KEY_TEXT` for texts by column name, in the order of the key."""
    return json.dumps(parts, ensure_ascii=False)


def _parts(clear: pl.DataFrame, rejected: pl.Series, key: RowKey) -> dict[int, dict[str, str]]:
    """The texts that `KEY_TEXT` has to hold: by row number, then by column name."""
    parts: dict[int, dict[str, str]] = {}
    if any(column.reject for column in key.columns) and rejected.null_count() < len(rejected):
        targets = {column.name: column.target for column in key.columns}
        for row in rejected.is_not_null().arg_true():
            for line in rejected[row].removesuffix("\n").split("\n"):
                name, text = json.loads(line)
                if name in targets:
                    parts.setdefault(row, {})[targets[name]] = text
    for column in filter(is_list, key.columns):
        for row, text in enumerate(plaintext.texts(clear[column.target])):
            if text is not None:
                parts.setdefault(row, {})[column.target] = text
    return parts
