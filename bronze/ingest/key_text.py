"""The keys of rows as text, where Delta cannot hold or compare a value of theirs.

An infinite date, NaN as a decimal or bytes that are no text are NULL in a Bronze table, and rows
that differ in nothing else look alike there. `KEY_TEXT` has such values of a row's key: a JSON
object of the columns' names and PostgreSQL's own texts, NULL in a row without any. Of a column of
arrays, which nothing can join by, it has every value, as `bronze.protection.plaintext` writes it.
The text of a protected column is protected like a value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import polars as pl

from bronze.errors import Mismatch
from bronze.model.columns import KEY_TEXT, Column, RowKey
from bronze.model.protection import Protection
from bronze.protection import plaintext, protect


def is_list(column: Column) -> bool:
    """Whether what the Bronze table has of a column are lists."""
    return column.stored.name == "array"


def row_key(columns: Sequence[Column], has_text: bool) -> RowKey:
    """What tells rows apart by these columns of the source, with or without `KEY_TEXT`."""
    names = tuple(column.target for column in columns if not is_list(column))
    if has_text:
        # What is never NULL comes first: by it files are passed over.
        whole = {column.target for column in columns if not column.reject}
        names = (*sorted(names, key=lambda name: name not in whole), KEY_TEXT)
    return RowKey(tuple(columns), names)


def with_text(
    rows: pl.DataFrame,
    clear: pl.DataFrame,
    rejected: pl.Series,
    key: RowKey,
    protection: Protection | None,
) -> pl.DataFrame:
    """The rows with `KEY_TEXT`, where their table has it.

    Args:
        rows: as they are stored.
        clear: the same rows' key, at least, in clear.
        rejected: their rejected values as in `bronze.postgres.statement`.
        key: what tells them apart.
        protection: how the table is protected.

    Raises:
        Mismatch: the table does not have the column, and would need it.
    """
    parts = _parts(clear, rejected, key)
    if not key.has_text:
        if parts:
            raise Mismatch(
                "The key has a value that Delta cannot hold, in column"
                f" {next(iter(next(iter(parts.values()))))}.",
                hint=f"All rows are compared, and the table gets a column {KEY_TEXT}. Run again"
                " where that has not been done.",
            )
        return rows
    protected = {c.column: c for c in protection.columns} if protection else {}
    masters = protection.masters if protection else ()
    for name in {name for part in parts.values() for name in part} & protected.keys():
        at = [row for row, part in parts.items() if name in part]
        clear_texts = pl.Series([parts[row][name] for row in at], dtype=pl.String)
        covered = protect.covered(clear_texts, protected[name], masters)
        for row, text in zip(at, covered, strict=True):
            parts[row][name] = text
    order = [column.target for column in key.columns]
    texts: list[str | None] = [None] * rows.height
    for row, part in parts.items():
        texts[row] = key_text({name: part[name] for name in order if name in part})
    return rows.with_columns(pl.Series(KEY_TEXT, texts, dtype=pl.String))


def key_text(parts: Mapping[str, str]) -> str:
    """Texts by the names of their columns, in the order of the key, as `KEY_TEXT` has them."""
    return json.dumps(parts, ensure_ascii=False)


def _parts(clear: pl.DataFrame, rejected: pl.Series, key: RowKey) -> dict[int, dict[str, str]]:
    """By a row's number the texts, by column, of what is to be told as text of its key."""
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
