"""The key of a table: the columns that tell its rows apart, in the source and in Bronze."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.errors import TableRefused
from bronze.model.columns import KEY_TEXT, NO_KEY, Column, RowKey
from bronze.model.units import KnownRows
from bronze.postgres import statement
from bronze.postgres.catalog.relations import TABLEOID
from bronze.protection import key_text
from bronze.tables import duplicate_keys, selection
from bronze.tables.context import TableContext, ask_source
from bronze.tables.evolution import ColumnContract
from bronze.tables.selection import Target


def row_key_of(
    context: TableContext, contract: ColumnContract, state: State | None
) -> tuple[RowKey, str]:
    """The key of a table; and why it has none, "" where it has one.

    Raises:
        TableRefused: rows of the source share a key, or are NULL in it.
    """
    target = context.target
    relation = target.relation
    names = target.key
    columns = key_columns(target, contract)
    if not columns:
        return NO_KEY, relation.keyless
    table = statement.quoted(relation.schema, relation.name)
    if not relation.enforces_at_last(names):
        _check_unique(context, names, table)
    has_text = state is not None and KEY_TEXT in dict(state.columns)
    has_text = has_text or any(map(key_text.is_list, columns))
    if not has_text and (rejecting := [f"({c.reject}) IS TRUE" for c in columns if c.reject]):
        query = f"SELECT EXISTS (SELECT FROM {table} WHERE {' OR '.join(rejecting)})"  # noqa: S608
        has_text = _is_true(context, query)
    return key_text.row_key(columns, has_text), ""


def key_columns(target: Target, contract: ColumnContract) -> tuple[Column, ...]:
    """The columns of the key that the config names, or that the source has.

    Raises:
        TableRefused: one is protected by a method after which values cannot be compared.
    """
    columns = tuple(
        column for name in target.key for column in contract.columns if column.name == name
    )
    for column in columns:
        if column.protect and not column.protect.stable:
            raise unstable_key(target, column, "in its key")
    return columns


def _check_unique(context: TableContext, names: Sequence[str], table: str) -> None:
    """Checks a key that PostgreSQL does not enforce.

    Raises:
        TableRefused: rows share the key, or are NULL in it.
    """
    target = context.target
    quoted = [statement.quoted(name) for name in names]
    missing = " OR ".join(f"{name} IS NULL" for name in quoted)
    hint = (
        "Name columns that are unique and never NULL:"
        f" [tables.{selection.toml(target.relation.name)}] key = […]"
    )
    if _is_true(context, f"SELECT EXISTS (SELECT FROM {table} WHERE {missing})"):  # noqa: S608
        raise TableRefused(
            f"Rows of table {target.label} have no value in the key {', '.join(names)}.",
            hint=hint,
            table=target.label,
        )
    key = ", ".join(quoted)
    query = f"SELECT EXISTS (SELECT FROM {table} GROUP BY {key} HAVING count(*) > 1)"  # noqa: S608
    if not _is_true(context, query):
        return
    message = f"Rows of table {target.label} have the same value of the key {', '.join(names)}."
    if tables := _tables_sharing_keys(context, table, key):
        table_name = selection.toml(target.relation.name)
        key_names = ", ".join(map(selection.toml, (TABLEOID, *names)))
        message += f" They are in {_list_names(tables)}: a key does not span inheriting tables."
        hint = (
            f"[tables.{table_name}] key = [{key_names}] tells them apart, by a column with the oid"
            " of the table that a row is in."
        )
    raise TableRefused(message, hint=hint, table=target.label)


_MAX_LISTED = 5


def _list_names(names: Sequence[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _tables_sharing_keys(context: TableContext, table: str, key: str) -> list[str]:
    """The tables, one inheriting from another, that have rows with the same key."""
    relation = context.target.relation
    if (
        relation.kind != "table"
        or len(relation.parts) < 2
        or TABLEOID in context.target.settings.key
    ):
        return []
    query = f"""
        SELECT DISTINCT n.nspname || '.' || c.relname
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid IN (SELECT tableoid FROM {table} WHERE ({key}) IN (
            SELECT {key} FROM {table} GROUP BY {key} HAVING count(DISTINCT tableoid) > 1))
        ORDER BY 1
    """  # noqa: S608
    rows: list[Any] = ask_source(context, lambda holder: holder.execute(query).fetchall())
    return [str(row[0]) for row in rows]


def _is_true(context: TableContext, query: str) -> bool:
    row: Any = ask_source(context, lambda holder: holder.execute(query).fetchone())
    return bool(row[0])


def unstable_key(target: Target, column: Column, where: str) -> TableRefused:
    """The error for a column whose protected values cannot be compared; ``where`` is what it cannot
    be a part of.
    """
    method = column.protect.method if column.protect else ""
    name = selection.toml(column.name)
    return TableRefused(
        f"Column {column.name} of table {target.label} cannot be {where}: {method} leaves nothing"
        " of its values to compare.",
        hint=f'Protect it so that equal values stay equal: protect = {{ {name} = "tokenize" }}, or'
        ' "hash", or "encrypt_deterministic".',
        table=target.label,
    )


def merges_deleted_rows(target: Target, state: State, key: tuple[str, ...]) -> bool:
    """Whether the key has changed, and rows of the Bronze table share the new one."""
    known = TableProperties.read(state.properties).key
    if not key or target.settings.history or known in (None, key):
        return False
    if KEY_TEXT not in dict(state.columns):
        key = tuple(name for name in key if name != KEY_TEXT)
    if not key or not set(key) <= dict(state.columns).keys():
        return False
    return duplicate_keys.has_duplicates(
        KnownRows(target.place, state.version, state.files, state.columns, key, 0)
    )


def lacks_text(target: Target, state: State, key: RowKey) -> bool:
    """Whether the Bronze table has rows without the `KEY_TEXT` that their key needs."""
    columns = dict(state.columns)
    if not key.has_text or KEY_TEXT in columns:
        return False
    if any(map(key_text.is_list, key.columns)):
        return bool(state.files)
    names = key.names[:-1]
    if not set(names) <= columns.keys():
        return False
    return duplicate_keys.has_rows_without_key(
        KnownRows(target.place, state.version, state.files, state.columns, names, 0)
    )


def keyless_refusal(target: Target, key: Sequence[str], why: str) -> TableRefused | None:
    """Why a table cannot be loaded without a key, None where it has one or needs none.

    Args:
        target: the table.
        key: its key.
        why: why it has none.
    """
    settings = target.settings
    if key or (settings.pattern == "full_refresh" and not settings.history):
        return None
    need = f'the pattern "{settings.pattern}"'
    alternative = 'or use pattern = "full_refresh"'
    if settings.history:
        need = "a history"
        alternative = "or leave history out"
    reason = f" {why[0].upper()}{why[1:]}." if why else ""
    return TableRefused(
        f"Table {target.label} has no key, which {need} needs.{reason}",
        hint="Name columns that are unique and never NULL:"
        f" [tables.{selection.toml(target.relation.name)}] key = […]; {alternative}.",
        table=target.label,
    )
