"""Whose data it is: the rows of a Bronze table that are meant by values of some columns.

All that is known of the table is in the lake: how it is protected, and by which keys. A protected
column is matched by what its methods and keys have made, or would have made, of the value.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import polars as pl

from bronze import drift, keys
from bronze.books.keys import Record
from bronze.enrich import key_text, plaintext, protect
from bronze.errors import ConfigError
from bronze.model import KEY_TEXT, STABLE, DataKey, Kind, Protect, Protected, Protection
from bronze.settings import Settings
from bronze.source.read import dtype
from bronze.table import log, store
from bronze.table.log import State


@dataclass(frozen=True)
class Held:
    """A Bronze table as it lies in the lake; ``label`` is the source's table that it holds."""

    name: str
    label: str
    source: str
    state: State
    protection: Protection

    @property
    def key(self) -> tuple[str, ...]:
        """The names of its key's columns."""
        return tuple(json.loads(self.state.properties.get(drift.KEY, "[]")))

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each column's values before they are protected."""
        return dict(self.state.columns) | {c.column: c.kind for c in self.protection.columns}

    def again(self) -> Held:
        """The table as it is now."""
        state = log.read(self.state.place)
        return replace(self, state=state or self.state)


def held(settings: Settings, table: str) -> Held:
    """The Bronze table of a name, its own or the source table's.

    Raises:
        ConfigError: there is no such table.
        LakeError, LakeUnreachable
    """
    schema, found = settings.lake.schema_, list[tuple[str, str, State]]()
    for name in store.folders(settings.place(schema, "")):
        state = log.read(settings.place(schema, name))
        if state and (label := state.properties.get(drift.TABLE)):
            found.append((name, label, state))
    own = [one for one in found if table in (one[0], f"{schema}.{one[0]}")]
    full = [one for one in found if table == one[1]]
    short = [one for one in found if table == one[1].rpartition(".")[2]]
    meant = own or full or short
    if not meant:
        raise ConfigError(
            f"There is no Bronze table {table} in {settings.lake.root}.",
            hint=f"There are {', '.join(name for name, _, _ in found) or 'none'}.",
        )
    if len(meant) > 1:
        names = [name for name, _, _ in meant]
        raise ConfigError(
            f"Several Bronze tables hold a table {table}: {', '.join(names)}.",
            hint=f"Name one of them, such as {names[0]}.",
        )
    ((name, label, state),) = meant
    return _held(settings, f"{schema}.{name}", label, state)


def _held(settings: Settings, name: str, label: str, state: State) -> Held:
    records = keys.held(settings)[1]
    columns = []
    for column, (how, kind) in drift.protected(state.properties).items():
        if how:
            mine = _keys(records, name, column, how)
            columns.append(Protected(column, column, kind, how, mine))
    protection = Protection(tuple(columns), None, settings.masters)
    return Held(name, label, state.properties.get(drift.SOURCE, ""), state, protection)


def _keys(records: Sequence[Record], table: str, column: str, how: Protect) -> tuple[DataKey, ...]:
    """All keys that values of a column may have been protected with, the latest first."""
    mine = {(table, column), ("", how.join)} if how.join else {(table, column)}
    found = [r.key for r in reversed(records) if (r.key.table, r.key.column) in mine]
    return tuple(sorted(found, key=lambda key: key.purpose != how.method))


@dataclass(frozen=True)
class Subject:
    """Rows by the values of some columns: of each what may be stored for it now, and what may have
    been ``ever``.
    """

    stored: Mapping[str, pl.Series]
    ever: Mapping[str, pl.Series]

    @property
    def condition(self) -> pl.Expr:
        """The condition that is true for the rows."""
        return pl.all_horizontal(
            *(pl.col(name).is_in(values.implode()) for name, values in self.stored.items())
        ).fill_null(False)

    @property
    def columns(self) -> list[str]:
        """The columns that the condition looks at."""
        return list(self.stored)

    @property
    def texts(self) -> dict[str, set[str]]:
        """What may ever have been stored, as texts."""
        return {name: {str(v) for v in values} for name, values in self.ever.items()}

    def earlier(self, rows: pl.DataFrame) -> pl.Expr:
        """The condition that is true for the rows in a file of any version, whose columns may have
        been of other types.
        """
        alike = [_alike(rows[name], values) for name, values in self.ever.items()]
        return pl.all_horizontal(*(pl.lit(mine) for mine in alike))


def subject(table: Held, given: Mapping[str, str]) -> Subject:
    """The rows whose columns have some values, given as text.

    A value of the key that Delta cannot hold is found by `KEY_TEXT`, if all of the key is given.

    Raises:
        ConfigError: there is no such column, its values cannot be matched, or the text is none.
    """
    kinds, protected = table.kinds, {c.column: c for c in table.protection.columns}
    beyond: dict[str, list[str]] = {}
    stored: dict[str, pl.Series] = {}
    ever: dict[str, pl.Series] = {}
    used = json.loads(table.state.properties.get(keys.IDS, "{}"))
    for name, text in given.items():
        if name not in kinds:
            raise ConfigError(
                f"The Bronze table {table.name} has no column {name}.",
                hint=f"It has {', '.join(kinds)}.",
            )
        column = protected.get(name)
        value = _value(text, kinds[name])
        if value is None:
            known = drift.keyed(table.state.properties)
            if KEY_TEXT not in kinds or name not in known or not given.keys() >= set(known):
                raise ConfigError(
                    f"What is given for column {name} is no value of type {kinds[name]}."
                )
            texts = pl.Series([text])
            beyond[name] = _possible(texts, column, table.protection) if column else [text]
            continue
        value = value.alias(name)
        if column is None:
            stored[name] = ever[name] = value
        elif column.protect.stable:
            possible = _possible(value, column, table.protection)
            ever[name] = pl.Series(name, possible, dtype=pl.String)
            stored[name] = ever[name]
            now = tuple(key for key in column.keys if key.id == used.get(name))
            if column.protect.format and now:
                # What is shaped like a value may be the token of another one by another key.
                one = replace(column, keys=now)
                stored[name] = protect.covered(value, one, table.protection.masters)
        else:
            raise ConfigError(
                f"Rows of {table.name} cannot be told by column {name}: {column.protect.method}"
                " leaves nothing to compare.",
                hint=f"Name them by the key: {', '.join(table.key) or 'the table has none'}.",
            )
    if beyond:
        order = [name for name in drift.keyed(table.state.properties) if name in beyond]
        texts_of = [beyond[name] for name in order]
        parts = (dict(zip(order, one, strict=True)) for one in itertools.product(*texts_of))
        told = [key_text.written(part) for part in parts]
        stored[KEY_TEXT] = ever[KEY_TEXT] = pl.Series(told, dtype=pl.String)
    return Subject(stored, ever)


def _value(text: str, kind: Kind) -> pl.Series | None:
    """A text as a value, None where it is none."""
    try:
        value = plaintext.values(pl.Series([text]), dtype(kind))
        return value if _is(text, value[0]) else None
    except (pl.exceptions.PolarsError, ValueError, ArithmeticError):
        return None


def _is(text: str, value: Any) -> bool:
    """Whether a text is what it was read as: not any text is false, and no digit may be lost."""
    if isinstance(value, bool):
        return text in ("true", "false")
    return Decimal(text) == value if isinstance(value, Decimal) else value is not None


def _alike(mine: pl.Series, values: pl.Series) -> pl.Series:
    """Which of the values of a file's column are among some, whatever its type was."""
    if values.dtype == pl.String:
        mine = plaintext.texts(mine)
    return mine.cast(values.dtype, strict=False).is_in(values.implode()).fill_null(False)


def _possible(value: pl.Series, column: Protected, protection: Protection) -> list[str]:
    """What is, or was, stored for a value; in clear too, as it was before it was protected."""
    found: list[Any] = plaintext.texts(value).to_list()
    for key in column.keys:
        if key.purpose not in STABLE:
            continue
        for shaped in (False, True) if key.purpose == "tokenize" else (False,):
            how = Protect(key.purpose, format=shaped)  # type: ignore[arg-type]
            one = replace(column, protect=how, keys=(key,))
            found += protect.covered(value, one, protection.masters).to_list()
    return list(dict.fromkeys(found))


def parsed(given: Sequence[str]) -> dict[str, str]:
    """``["a=1", "b=x"]`` as a mapping.

    Raises:
        ConfigError: one of them has no equals sign.
    """
    pairs = [text.partition("=") for text in given]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise ConfigError(
            f"{wrong[0]!r} names no value.", hint='Rows are named so: --key "customer_id=42"'
        )
    return {name.strip(): value for name, _, value in pairs}
