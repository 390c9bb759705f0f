"""Whose data it is: the rows of a Bronze table that are meant by values of some columns.

All that is known of the table is in the lake: how it is protected, and by which keys. A protected
column is matched by what its methods and keys have made, or would have made, of the value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import polars as pl

from bronze.config.settings import Settings
from bronze.delta import log, properties, store
from bronze.delta.log import State
from bronze.errors import ConfigError
from bronze.governance.tables.keys import Record
from bronze.model.columns import KEY_TEXT, STABLE, Kind, Protect
from bronze.model.protection import DataKey, Protected, Protection
from bronze.postgres.copy.literals import Read
from bronze.postgres.copy.read import dtype
from bronze.protection import keys, plaintext, protect
from bronze.protection.source_rows import Original
from bronze.tables import evolution


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
        return tuple(json.loads(self.state.properties.get(properties.KEY, "[]")))

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind of each column's values before they are protected."""
        return dict(self.state.columns) | {c.column: c.kind for c in self.protection.columns}

    @property
    def original(self) -> tuple[str, str]:
        """The schema and the name of the source's table."""
        return evolution.table_of(self.state.properties)

    def protected(self, name: str) -> Protected | None:
        """How a column is protected, None where it is in clear."""
        return next((c for c in self.protection.columns if c.column == name), None)

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
        if state and (label := state.properties.get(properties.TABLE)):
            found.append((name, label, state))
    own = [one for one in found if table in (one[0], f"{schema}.{one[0]}")]
    full = [one for one in found if table == one[1]]
    short = [one for one in found if table == evolution.table_of(one[2].properties)[1]]
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
    for column, (how, kind) in evolution.protected(state.properties).items():
        if how:
            mine = _keys(records, name, column, how)
            columns.append(Protected(column, column, kind, how, mine))
    protection = Protection(tuple(columns), None, settings.masters)
    return Held(name, label, state.properties.get(properties.SOURCE, ""), state, protection)


def _keys(records: Sequence[Record], table: str, column: str, how: Protect) -> tuple[DataKey, ...]:
    """All keys that values of a column may have been protected with, the latest first."""
    mine = {(table, column), ("", how.join)} if how.join else {(table, column)}
    found = [r.key for r in reversed(records) if (r.key.table, r.key.column) in mine]
    return tuple(sorted(found, key=lambda key: key.purpose != how.method))


@dataclass(frozen=True)
class Wanted:
    """A value of a column by which rows are told.

    ``names`` are the columns that have it or had it, the latest first; by each of them ``stored``
    is what may be stored for it now, ``ever`` what may have been. ``texts`` are those that
    `KEY_TEXT` may have, where Delta cannot hold it.
    """

    names: tuple[str, ...]
    stored: Mapping[str, pl.Series]
    ever: Mapping[str, pl.Series]
    texts: frozenset[str] = frozenset()

    def among(self, rows: pl.DataFrame, ever: bool) -> pl.Series:
        """Which rows have it: in an older column those that have nothing in a later one."""
        found = pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True)
        unsaid = ~found
        for name in self.names:
            if name in rows.columns:
                mine, values = rows[name], (self.ever if ever else self.stored).get(name)
                if values is not None:
                    found |= unsaid & _alike(mine, values)
                unsaid &= mine.is_null()
        if self.texts and KEY_TEXT in rows.columns:
            found |= rows[KEY_TEXT].map_elements(self._is_told, pl.Boolean).fill_null(False)
        return found

    def _is_told(self, text: str) -> bool:
        told = json.loads(text)
        return next((told[n] for n in self.names if n in told), None) in self.texts

    def named(self, record: Mapping[str, Any]) -> bool | None:
        """Whether a record names rows with it; None where it says nothing of its columns."""
        for name in self.names:
            if record.get(name) is not None:
                values = self.ever.get(name)
                return values is not None and said(record[name], values.to_list())
        told = json.loads(record.get(KEY_TEXT) or "{}")
        return any(told.get(n) in self.texts for n in self.names) if told else None

    @property
    def columns(self) -> list[str]:
        """The columns that are looked at."""
        return [*self.names, *([KEY_TEXT] if self.texts else [])]


@dataclass(frozen=True)
class Subject:
    """Rows by the values of some columns, all of which they have."""

    wanted: tuple[Wanted, ...]

    def among(self, rows: pl.DataFrame, ever: bool = False) -> pl.Series:
        """Which rows they are, with what may be stored for the values now, or may ever have been.
        Columns that the rows do not have, and those of other types, are allowed for.
        """
        found = pl.repeat(True, rows.height, dtype=pl.Boolean, eager=True)
        for one in self.wanted:
            found &= one.among(rows, ever)
        return found

    def named(self, record: Mapping[str, Any]) -> bool:
        """Whether a record names such rows by the values themselves."""
        found = [one.named(record) for one in self.wanted]
        return bool(found) and all(found)

    @property
    def columns(self) -> list[str]:
        """The columns that are looked at."""
        return list(dict.fromkeys(name for one in self.wanted for name in one.columns))


def written(value: Any) -> str:
    """A value of a row, or of a record about it, as one text."""
    plain = json.dumps(value, default=str, ensure_ascii=False)
    return str(json.loads(plain)) if plain.startswith('"') else plain


def said(record: Any, values: Iterable[Any]) -> bool:
    """Whether what a record says of a column is one of some values of rows."""
    for value in values:
        if isinstance(value, Decimal):
            # It may have got more digits since.
            with suppress(ArithmeticError):
                if Decimal(str(record)) == value:
                    return True
        elif written(record) == written(value):
            return True
    return False


def subject(
    table: Held,
    given: Mapping[str, str],
    origin: Original | None = None,
    spellings: Callable[[str], Iterable[pl.Series]] = lambda _: (),
) -> Subject:
    """The rows whose columns have some values, given as text.

    Args:
        table: the Bronze table.
        given: texts by the names of its columns.
        origin: by whose types texts are read; without it they are taken as Bronze has them.
        spellings: what a column has in all files of the table, for types of which equal values
            may have several texts.

    Raises:
        ConfigError: there is no such column, its values cannot be matched, or the text is none.
    """
    wanted = []
    for name, text in given.items():
        if name not in table.kinds:
            raise ConfigError(
                f"The Bronze table {table.name} has no column {name}.",
                hint=f"It has {', '.join(table.kinds)}.",
            )
        found = [n for n in evolution.names_of(table.state.properties, name) if n in table.kinds]
        read = origin.read(found[0], text) if origin else None
        wanted.append(_wanted(table, tuple(found), text, read, origin, spellings))
    return Subject(tuple(wanted))


def _wanted(
    table: Held,
    names: tuple[str, ...],
    text: str,
    read: Read | None,
    origin: Original | None,
    spellings: Callable[[str], Iterable[pl.Series]],
) -> Wanted:
    stored: dict[str, pl.Series] = {}
    ever: dict[str, pl.Series] = {}
    for name in names:
        value = _value(text, table.kinds[name]) if read is None else _as(read, table.kinds[name])
        if read and origin and not read.exact and not table.protected(name):
            value = _equal(origin, names[0], text, spellings(name), value)
        if value is not None:
            stored[name], ever[name] = _covered(table, name, value)
    texts = {text, *([read.text] if read else [])} if not stored else set()
    if texts:
        _tellable(table, names, text)
        column = table.protected(names[0])
        if column:
            texts = set(_possible(pl.Series(sorted(texts)), column, table.protection))
    return Wanted(names, stored, ever, frozenset(texts))


def _as(read: Read, kind: Kind) -> pl.Series | None:
    """A value as one of a Bronze table's column, which may be of a wider type."""
    if read.value is None:
        return None
    if kind.name == "string" and read.value.dtype != pl.String:
        return plaintext.texts(read.value)
    try:
        return read.value.cast(dtype(kind))
    except pl.exceptions.PolarsError:
        return None


def _equal(
    origin: Original, name: str, text: str, held: Iterable[pl.Series], value: pl.Series | None
) -> pl.Series | None:
    """The values of a column that are equal to a text by its type."""
    found = [] if value is None else [value]
    for values in held:
        texts = origin.texts(name, values)
        alike = texts.is_in(pl.Series(origin.equal(name, text, texts.to_list())).implode())
        found.append(values.filter(alike))
    same = [one for one in found if found and one.dtype == found[0].dtype]
    return pl.concat([one.rename("") for one in same]) if same else None


def _tellable(table: Held, names: Sequence[str], text: str) -> None:
    """Makes sure that rows can be told by a value that Delta cannot hold.

    Raises:
        ConfigError
    """
    known = {
        n
        for k in evolution.keyed(table.state.properties)
        for n in evolution.names_of(table.state.properties, k)
    }
    if KEY_TEXT not in table.kinds or not known & set(names):
        raise ConfigError(
            f"What is given for column {names[0]} is no value of type {table.kinds[names[0]]}."
        )


def _covered(table: Held, name: str, value: pl.Series) -> tuple[pl.Series, pl.Series]:
    """What may be stored for a value in a column now, and what may ever have been."""
    column = table.protected(name)
    value = value.alias(name)
    if column is None:
        return value, value
    if not column.protect.stable:
        raise ConfigError(
            f"Rows of {table.name} cannot be told by column {name}: {column.protect.method}"
            " leaves nothing to compare.",
            hint=f"Name them by the key: {', '.join(table.key) or 'the table has none'}.",
        )
    ever = pl.Series(name, _possible(value, column, table.protection), dtype=pl.String)
    used = json.loads(table.state.properties.get(keys.IDS, "{}"))
    now = tuple(key for key in column.keys if key.id == used.get(name))
    if column.protect.format and now:
        # What is shaped like a value may be the token of another one by another key.
        one = replace(column, keys=now)
        return protect.covered(value, one, table.protection.masters), ever
    return ever, ever


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
    if values.dtype == pl.String or isinstance(values.dtype, pl.List):
        mine, values = plaintext.texts(mine), plaintext.texts(values)
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
