"""Selects rows of a Bronze table by values of columns, given as text.

All that is needed to know about the table is in the lake: how its columns are protected, with which
keys, and what they were called before. A protected column is compared with what its methods and
keys have made, or would have made, of the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import polars as pl

from bronze.delta.properties import TableProperties
from bronze.errors import ConfigError
from bronze.model.columns import DETERMINISTIC_METHODS, KEY_TEXT, DeltaType, ProtectionRule
from bronze.model.protection import ProtectedColumn, TableProtection
from bronze.postgres.copy.literals import Read
from bronze.postgres.copy.rows_reader import dtype
from bronze.protection import lake_table, plaintext, protect
from bronze.protection.lake_table import ProtectedTable
from bronze.protection.subject.row_match import SelectedValue, StoredForms, Subject
from bronze.protection.subject.source_rows import Original
from bronze.tables import evolution

Spellings = Callable[[str], Iterable[pl.Series]]
"""What a column has in all files of a table, and what records have of it."""


def key_values(pairs: Sequence[str]) -> dict[str, str]:
    """``["a=1", "b=x"]`` as a mapping.

    Raises:
        ConfigError: one of them has no equals sign.
    """
    parts = [text.partition("=") for text in pairs]
    if wrong := [name for name, sign, _ in parts if not sign]:
        raise ConfigError(
            f"The key {wrong[0]!r} has no value.",
            hint='Write the column and its value: --key "customer_id=42"',
        )
    return {name.strip(): value for name, _, value in parts}


def select_rows(
    table: ProtectedTable,
    key: Mapping[str, str],
    origin: Original | None = None,
    spellings: Spellings = lambda _: (),
) -> Subject:
    """The rows whose columns have some values.

    Args:
        table: the Bronze table.
        key: the values, as text, by the names of its columns.
        origin: the table of the source, which reads the texts by its types; without it they are
            read as Bronze has them.
        spellings: where to look for other texts of a value, for types in which equal values may
            have several texts.

    Raises:
        ConfigError: there is no such column, its values cannot be compared, or a text is not a
            value of its type.
        LakeError: a property of the table cannot be read.
    """
    values = []
    for name, text in key.items():
        if name not in table.kinds:
            raise ConfigError(
                f"The Bronze table {table.name} has no column {name}.",
                hint=f"It has {', '.join(table.kinds)}.",
            )
        names = evolution.former_names(table.state.properties, name)
        names = tuple(former for former in names if former in table.kinds)
        values.append(_selected_value(table, names, text, origin, spellings))
    is_ambiguous = any(value.is_ambiguous for value in values)
    return Subject(tuple(values), lake_table.protected_since(table) if is_ambiguous else "")


def _selected_value(
    table: ProtectedTable,
    names: tuple[str, ...],
    text: str,
    origin: Original | None,
    spellings: Spellings,
) -> SelectedValue:
    properties = table.state.properties
    read = origin.read(names[0], text) if origin else None
    reused = tuple(n for n in evolution.reused_names(properties, names[0]) if n in table.kinds)
    forms: dict[str, StoredForms] = {}
    for name in (*names, *reused):
        kind = table.kinds[name]
        value = _parse(text, kind) if read is None else _convert(read, kind)
        if read and origin and not read.exact and not table.protection_of(name):
            value = _equal_values(origin, names[0], text, spellings(name), value)
        if value is not None:
            forms[name] = _stored_forms(table, name, value)
    texts = frozenset[str]() if forms else _key_texts(table, names, text, read)
    key = evolution.key_columns_in_source(properties)
    successors = _successors(table, names[0])
    final = [name for name in successors if not _successors(table, name)]
    return SelectedValue(
        names,
        forms,
        texts,
        reused,
        is_dated=names[0] in key and not successors,
        successors=tuple((name, name in key) for name in final),
    )


def _successors(table: ProtectedTable, name: str) -> list[str]:
    """The columns that have now what one had before its name was reused."""
    properties = table.state.properties
    return [other for other in table.kinds if name in evolution.reused_names(properties, other)]


def _parse(text: str, kind: DeltaType) -> pl.Series | None:
    """A text as a value, None where it is not one of the type."""
    try:
        value = plaintext.values(pl.Series([text]), dtype(kind))
        return value if _is_exact(text, value[0]) else None
    except (pl.exceptions.PolarsError, ValueError, ArithmeticError):
        return None


def _is_exact(text: str, value: Any) -> bool:
    """Whether a text was read exactly: other texts than "false" are not false, and no digit may be
    lost.
    """
    if isinstance(value, bool):
        return text in ("true", "false")
    return Decimal(text) == value if isinstance(value, Decimal) else value is not None


def _convert(read: Read, kind: DeltaType) -> pl.Series | None:
    """A value in the type of a Bronze column, which may be wider."""
    if read.value is None:
        return None
    if kind.name == "string" and read.value.dtype != pl.String:
        return plaintext.texts(read.value)
    try:
        return read.value.cast(dtype(kind))
    except pl.exceptions.PolarsError:
        return None


def _equal_values(
    origin: Original, name: str, text: str, stored: Iterable[pl.Series], value: pl.Series | None
) -> pl.Series | None:
    """The stored values of a column that are equal to a text by the column's type."""
    equal = [] if value is None else [value]
    for values in stored:
        texts = origin.texts(name, values)
        matches = texts.is_in(pl.Series(origin.equal(name, text, texts.to_list())).implode())
        equal.append(values.filter(matches))
    same_type = [values for values in equal if values.dtype == equal[0].dtype]
    return pl.concat([values.rename("") for values in same_type]) if same_type else None


def _key_texts(
    table: ProtectedTable, names: Sequence[str], text: str, read: Read | None
) -> frozenset[str]:
    """What `KEY_TEXT` may hold of a value that Delta cannot hold.

    Raises:
        ConfigError: the column is not part of the key, so that its value is nowhere.
    """
    properties = table.state.properties
    key = evolution.key_columns_in_source(properties)
    in_key = {former for name in key for former in evolution.former_names(properties, name)}
    if KEY_TEXT not in table.kinds or in_key.isdisjoint(names):
        kind = table.kinds[names[0]]
        raise ConfigError(f"The value given for column {names[0]} is not of type {kind}.")
    texts = {text, *([read.text] if read else [])}
    column = table.protection_of(names[0])
    if column:
        certain, shaped = _possible_texts(pl.Series(sorted(texts)), column, table.protection)
        texts = {*certain, *shaped}
    return frozenset(texts)


def _stored_forms(table: ProtectedTable, name: str, value: pl.Series) -> StoredForms:
    """What a column may store for a value.

    Raises:
        ConfigError: its method does not keep equal values equal.
    """
    column = table.protection_of(name)
    value = value.alias(name)
    if column is None:
        return StoredForms(value, value, value)
    if not column.protect.stable:
        raise ConfigError(
            f"Rows of {table.name} cannot be selected by column {name}: {column.protect.method}"
            " does not keep equal values equal.",
            hint=f"Select them by the key: {', '.join(table.key) or 'the table has none'}.",
        )
    certain, shaped = _possible_texts(value, column, table.protection)
    possible = pl.Series(name, [*certain, *shaped], dtype=pl.String)
    if not shaped or not _had_format(table, column):
        return StoredForms(possible, possible, possible)
    current = TableProperties.read(table.state.properties).key_ids.get(name)
    latest = [key for key in column.keys if key.id == current] or [column.keys[0]]
    column = replace(column, keys=tuple(latest))
    now = protect.protect_texts(value, column, table.protection.masters)
    clear = None if column.kind.name == "string" else value
    return StoredForms(now, pl.Series(name, certain, dtype=pl.String), possible, clear)


def _had_format(table: ProtectedTable, column: ProtectedColumn) -> bool:
    """Whether tokens of a column keep the format of values, or did in any version in the log."""
    if column.protect.format:
        return True
    for _, properties in lake_table.history(table.state):
        rule, _ = evolution.protected_columns(properties).get(column.column, (None, None))
        if rule is not None and rule.format:
            return True
    return False


def _possible_texts(
    value: pl.Series, column: ProtectedColumn, protection: TableProtection
) -> tuple[list[str], list[str]]:
    """What is, or was, stored for a value: texts that stand for it alone, and texts with the format
    of values, which may be the token of another value too. What was stored before the column was
    protected is among them.
    """
    clear: list[Any] = plaintext.texts(value).to_list()
    certain: list[Any] = []
    shaped: list[Any] = []
    for key in column.keys:
        if key.purpose not in DETERMINISTIC_METHODS:
            continue
        with_key = replace(column, protect=ProtectionRule(key.purpose), keys=(key,))  # type: ignore[arg-type]
        texts = protect.protect_texts(value, with_key, protection.masters).to_list()
        certain += texts
        if key.purpose == "tokenize":
            with_format = replace(with_key, protect=ProtectionRule("tokenize", format=True))
            tokens = protect.protect_texts(value, with_format, protection.masters).to_list()
            shaped += [token for text, token in zip(texts, tokens, strict=True) if text != token]
    (shaped if shaped else certain).extend(clear)
    return list(dict.fromkeys(certain)), list(dict.fromkeys(shaped))
