"""Reveals rows: decrypts their values for those who have the master key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from bronze.config.settings import Settings
from bronze.delta import files
from bronze.errors import BronzeError, ConfigError
from bronze.governance import audit
from bronze.postgres.copy.rows_reader import dtype
from bronze.protection import protect
from bronze.protection.lake_table import ProtectedTable, protected_table
from bronze.protection.subject.row_match import Subject
from bronze.protection.subject.row_selection import select_rows
from bronze.rows.metadata import METADATA_COLUMNS

_AUDITED_HASHES = 100


def reveal(
    settings: Settings,
    table: str,
    *,
    key: Mapping[str, str] | None = None,
    columns: Sequence[str] = (),
    limit: int = 100,
) -> pl.DataFrame:
    """The rows of a Bronze table with their encrypted values as they are in the source.

    Tokens, hashes and masks cannot be undone, and stay as they are. Each call is audited, with the
    ``row_hash`` of the first rows, also one that fails.

    Args:
        settings: the config, which names the master key.
        table: the name of the Bronze table, or of the source's.
        key: only rows whose columns have these values, given as text.
        columns: only these columns; none means all.
        limit: how many rows at most; 0 means all.

    Raises:
        ConfigError: there is no such table or column, or the master key is missing or wrong.
        Mismatch: a value was changed, or moved here from another column.
        LakeError, LakeUnreachable
    """
    request = {"columns": ", ".join(columns) or "all", "by": ", ".join(key or {}) or "none"}
    try:
        target = protected_table(settings, table)
        stored = _read_rows(target, key or {}, columns, limit)
        rows = _decrypt_columns(target, stored, columns)
    except BronzeError as error:
        audit.record(
            settings, "reveal", table, "failed", {"error": type(error).__name__, **request}
        )
        raise
    hashes = ", ".join(rows["row_hash"].head(_AUDITED_HASHES).fill_null(""))
    details = {"rows": rows.height, **request, "row_hash": hashes}
    audit.record(settings, "reveal", target.name, "succeeded", details)
    return rows if not columns else rows.select(columns)


@dataclass(frozen=True)
class RevealedTable:
    """What a Bronze table has: its ``protected`` columns, those that the source does not have, and
    how many ``rows``.
    """

    protected: tuple[str, ...]
    metadata: tuple[str, ...]
    rows: int


def revealed_table(settings: Settings, table: str) -> RevealedTable:
    """What a table of `reveal` has, by its log alone.

    Raises:
        ConfigError: there is no such table.
        LakeError, LakeUnreachable
    """
    target = protected_table(settings, table)
    return RevealedTable(
        tuple(column.column for column in target.protection.columns),
        tuple(name for name, _ in METADATA_COLUMNS),
        sum(file.rows for file in target.state.files),
    )


def _read_rows(
    table: ProtectedTable, key: Mapping[str, str], columns: Sequence[str], limit: int
) -> pl.DataFrame:
    layout = table.state.columns
    unknown = [name for name in columns if name not in dict(layout)]
    if unknown:
        raise ConfigError(
            f"The Bronze table {table.name} has no column {unknown[0]}.",
            hint=f"It has {', '.join(name for name, _ in layout)}.",
        )
    subject = select_rows(table, key)
    wanted = {*columns, *subject.columns, "row_hash"} if columns else None
    names = [name for name, _ in layout if wanted is None or name in wanted]
    frames = [pl.DataFrame(schema={name: dtype(kind) for name, kind in layout if name in names})]
    for rows in _selected_rows(table, subject, names):
        frames.append(rows)
        if limit and sum(frame.height for frame in frames) >= limit:
            return pl.concat(frames).head(limit)
    return pl.concat(frames)


def _selected_rows(
    table: ProtectedTable, subject: Subject, names: Sequence[str]
) -> Iterator[pl.DataFrame]:
    """The columns of the selected rows; a row group without any is read for the key alone."""
    layout = table.state.columns
    for file in table.state.files:
        parquet, partition = files.open_parquet(table.state.place, file), dict(file.partition)
        for group in range(parquet.num_row_groups):
            if subject.values:
                keys = files.parts(parquet, layout, subject.columns, [group], partition)
                if not any(subject.matches(pl.DataFrame(part)).any() for _, part in keys):
                    continue
            for _, part in files.parts(parquet, layout, names, [group], partition):
                rows = pl.DataFrame(part)
                yield rows.filter(subject.matches(rows)) if subject.values else rows


def _decrypt_columns(
    table: ProtectedTable, rows: pl.DataFrame, columns: Sequence[str]
) -> pl.DataFrame:
    masters = table.protection.masters
    for column in table.protection.columns:
        wanted = column.column in rows.columns and (not columns or column.column in columns)
        if wanted and column.protect.method in protect.REVEALED:
            values = protect.reveal_values(rows[column.column], column, masters, dtype(column.kind))
            rows = rows.with_columns(values.alias(column.column))
    return rows
