"""Whose data it is: the rows of a Bronze table that are meant by values of some columns.

All that is known of the table is in the lake: how it is protected, and by which keys. A protected
column is matched by what its methods and keys have made, or would have made, of the value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from typing import Any

import polars as pl

from bronze.errors import ConfigError
from bronze.model.columns import DETERMINISTIC_METHODS, KEY_TEXT, DeltaType, ProtectionRule
from bronze.model.protection import ProtectedColumn, TableProtection
from bronze.postgres.copy.literals import Read
from bronze.postgres.copy.read import dtype
from bronze.protection import keys, lake_table, plaintext, protect
from bronze.protection.lake_table import BATCH, ProtectedTable
from bronze.protection.source_rows import Original
from bronze.tables import evolution


@dataclass(frozen=True)
class Forms:
    """What may be stored for a value in a column.

    ``now`` as the column is protected now. Of what was written before that, ``sure`` stands for
    this value alone; ``possible`` may be another one's token as well, where tokens have the shape
    of values. ``clear`` is what a file has whose column is of another type than tokens are.
    """

    now: pl.Series
    sure: pl.Series
    possible: pl.Series
    clear: pl.Series | None = None

    @property
    def is_ambiguous(self) -> bool:
        """Whether it may be another one's token."""
        return self.possible is not self.sure

    @cached_property
    def texts(self) -> tuple[Texts, Texts, Texts]:
        """What records say of each of them."""
        found = [Texts(self.now.to_list())]
        for one in (self.sure, self.possible):
            found.append(found[0] if one is self.now else Texts(one.to_list()))
        return found[0], found[1], found[2]


Verdict = tuple[pl.Series, pl.Series]
"""Which rows have a value for sure, and which may have it."""


@dataclass(frozen=True)
class SelectedValues:
    """A value of a column by which rows are told.

    ``names`` are the columns that have it or had it, the latest first, ``forms`` what may be
    stored for it in each. ``texts`` are those that `KEY_TEXT` may have, where Delta cannot hold it.
    ``reused`` are columns that had it once, and have something else now. With ``is_telling`` the
    latest column tells which rows are of before: it had nothing then, and has something in each
    later row, as it is of the key. ``heirs`` are columns that have now what the first of ``names``
    had once, when it was not this value's, each with whether it tells so.
    """

    names: tuple[str, ...]
    forms: Mapping[str, Forms]
    texts: frozenset[str] = frozenset()
    reused: tuple[str, ...] = ()
    is_telling: bool = False
    heirs: tuple[tuple[str, bool], ...] = ()

    @property
    def is_ambiguous(self) -> bool:
        """Whether the time of a row or a record tells whose it is."""
        return any(forms.is_ambiguous for forms in self.forms.values())

    def among(self, rows: pl.DataFrame, settled: pl.Series) -> Verdict:
        """Which rows have it: in an older column those that have nothing in a later one.

        Args:
            rows: the rows.
            settled: which of them were written as the columns are protected now.
        """
        nothing = pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True)
        found, maybe, unsaid = nothing, nothing, ~nothing
        for name in self.names:
            if name in rows.columns:
                sure, possible = self._alike(rows[name], name, settled)
                found, maybe = found | unsaid & sure, maybe | unsaid & possible
                unsaid &= rows[name].is_null()
        for name, tells in self.heirs:
            # A file without that column is of before altogether.
            there = rows[name].is_not_null() if name in rows.columns else nothing
            later = there | _is_told(rows, name)
            found, maybe = found & later, maybe & later if tells else maybe
        for name in self.reused:
            if name in rows.columns:
                sure, possible = self._alike(rows[name], name, settled)
                before = unsaid & ~_is_told(rows, self.names[0]) if self.is_telling else ~found
                found = found | before & sure if self.is_telling else found
                maybe |= before & possible
        if self.texts and KEY_TEXT in rows.columns:
            told = rows[KEY_TEXT].map_elements(self._has_text, pl.Boolean).fill_null(False)
            found, maybe = found | told, maybe | told
        return found, found | maybe

    def _alike(self, mine: pl.Series, name: str, settled: pl.Series) -> Verdict:
        forms = self.forms.get(name)
        if forms is None:
            nothing = pl.repeat(False, len(mine), dtype=pl.Boolean, eager=True)
            return nothing, nothing
        if forms.clear is not None and mine.dtype != pl.String:
            found = _alike(mine, forms.clear)
            return found, found
        now = _alike(mine, forms.now)
        if not forms.is_ambiguous:
            return now, now
        before = [_alike(mine, one) for one in (forms.sure, forms.possible)]
        sure, possible = (settled & now | ~settled & one for one in before)
        return sure, possible

    def _has_text(self, text: str) -> bool:
        told = json.loads(text)
        names = (*self.names, *(self.reused if self.is_telling else ()))
        return next((told[n] for n in names if n in told), None) in self.texts

    def named(self, record: Mapping[str, Any], settled: bool) -> tuple[bool, bool] | None:
        """Whether a record names rows with it for sure, and whether it may; None where it says
        nothing of its columns.
        """
        for name in (*self.names, *self.reused):
            if record.get(name) is not None:
                if any(tells for _, tells in self.heirs):
                    # A record has columns of the key alone.
                    return False, False
                forms = self.forms.get(name)
                if forms is None:
                    return False, False
                now, sure, possible = forms.texts
                certain = (now if settled else sure).has(record[name])
                if name in self.reused and not self.is_telling:
                    return False, certain
                return certain, certain or (not settled and possible.has(record[name]))
        told = json.loads(record.get(KEY_TEXT) or "{}")
        names = (*self.names, *self.reused)
        found = any(told.get(n) in self.texts for n in names)
        return (found, found) if told else None

    @property
    def columns(self) -> list[str]:
        """The columns that are looked at."""
        heirs = [name for name, _ in self.heirs]
        has_text = self.texts or heirs or (self.reused and self.is_telling)
        batch = [BATCH] if self.is_ambiguous else []
        return [*self.names, *self.reused, *heirs, *([KEY_TEXT] if has_text else []), *batch]


@dataclass(frozen=True)
class Subject:
    """Rows by the values of some columns, all of which they have.

    ``since`` is the first batch whose rows were all written as the columns are protected now, ""
    where that is not known.
    """

    wanted: tuple[SelectedValues, ...]
    since: str = ""

    def among(self, rows: pl.DataFrame, is_current: bool = True) -> pl.Series:
        """Which rows they are for sure. Columns that the rows do not have, and those of other
        types, are allowed for.

        Args:
            rows: rows of a Bronze table, with at least `columns` as far as it has them.
            is_current: whether they are of the current version.
        """
        return self.verdict(rows, is_current)[0]

    def verdict(self, rows: pl.DataFrame, is_current: bool) -> Verdict:
        """Which rows they are for sure, and which may be; see `among`."""
        found = pl.repeat(True, rows.height, dtype=pl.Boolean, eager=True)
        possible, settled = found, found if is_current else self._settled_rows(rows)
        for one in self.wanted:
            sure, maybe = one.among(rows, settled)
            found, possible = found & sure, possible & maybe
        return found, possible

    def _settled_rows(self, rows: pl.DataFrame) -> pl.Series:
        if not self.since or BATCH not in rows.columns:
            return pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True)
        return (rows[BATCH] >= self.since).fill_null(False)

    def is_settled(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is of a time when the columns were protected as they are now."""
        return bool(self.since) and (record.get(BATCH) or "") >= self.since

    def named(self, record: Mapping[str, Any], settled: bool) -> tuple[bool, bool]:
        """Whether a record names such rows by the values themselves: for sure, or perhaps."""
        found = [one.named(record, settled) for one in self.wanted]
        verdicts = [one for one in found if one is not None]
        if not found or len(verdicts) < len(found):
            return False, False
        return all(sure for sure, _ in verdicts), all(maybe for _, maybe in verdicts)

    @property
    def ambiguous(self) -> frozenset[str]:
        """The columns with texts that may stand for one value or for another."""
        return frozenset(n for w in self.wanted for n, f in w.forms.items() if f.is_ambiguous)

    @property
    def columns(self) -> list[str]:
        """The columns that are looked at."""
        return list(dict.fromkeys(name for one in self.wanted for name in one.columns))


def written(value: Any) -> str:
    """A value of a row, or of a record about it, as one text."""
    plain = json.dumps(value, default=str, ensure_ascii=False)
    return str(json.loads(plain)) if plain.startswith('"') else plain


class Texts:
    """Values of rows, to be found by what records say of them."""

    def __init__(self, values: Iterable[Any]) -> None:
        """Takes them in."""
        self._known = {normal(value) for value in values}

    def has(self, told: Any) -> bool:
        """Whether what a record says of a column is one of them."""
        return not self._known.isdisjoint(spoken(told))


def normal(value: Any) -> Any:
    """What stands for a value of a row. A decimal stands for itself: it may have got more digits
    since a record was made of it.
    """
    return value if isinstance(value, Decimal) else written(value)


def spoken(told: Any) -> tuple[Any, ...]:
    """What may stand, as `normal` has it, for the value of which a record says so."""
    try:
        number = Decimal(str(told))
    except ArithmeticError:
        return (written(told),)
    return (written(told), number) if number.is_finite() else (written(told),)


def subject(
    table: ProtectedTable,
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
        found = [
            n for n in evolution.former_names(table.state.properties, name) if n in table.kinds
        ]
        read = origin.read(found[0], text) if origin else None
        wanted.append(_wanted(table, tuple(found), text, read, origin, spellings))
    is_ambiguous = any(one.is_ambiguous for one in wanted)
    return Subject(tuple(wanted), lake_table.protected_since(table) if is_ambiguous else "")


def _wanted(
    table: ProtectedTable,
    names: tuple[str, ...],
    text: str,
    read: Read | None,
    origin: Original | None,
    spellings: Callable[[str], Iterable[pl.Series]],
) -> SelectedValues:
    properties = table.state.properties
    reused = [n for n in evolution.reused_names(properties, names[0]) if n in table.kinds]
    forms: dict[str, Forms] = {}
    for name in (*names, *reused):
        value = _value(text, table.kinds[name]) if read is None else _as(read, table.kinds[name])
        if read and origin and not read.exact and not table.protected(name):
            value = _equal(origin, names[0], text, spellings(name), value)
        if value is not None:
            forms[name] = _covered(table, name, value)
    texts = {text, *([read.text] if read else [])} if not forms else set()
    if texts:
        _tellable(table, names, text)
        column = table.protected(names[0])
        if column:
            sure, shaped = _possible(pl.Series(sorted(texts)), column, table.protection)
            texts = {*sure, *shaped}
    heirs = _heirs(table, names[0])
    is_telling = names[0] in evolution.key_columns_in_source(properties) and not heirs
    fresh = [(name, name in evolution.key_columns_in_source(properties)) for name in heirs]
    fresh = [one for one in fresh if not _heirs(table, one[0])]
    return SelectedValues(names, forms, frozenset(texts), tuple(reused), is_telling, tuple(fresh))


def _heirs(table: ProtectedTable, name: str) -> list[str]:
    """The columns that have now what one had once that has something else now."""
    known = table.state.properties
    return [one for one in table.kinds if name in evolution.reused_names(known, one)]


def _is_told(rows: pl.DataFrame, name: str) -> pl.Series:
    """Which rows have a value of a column where Delta cannot hold it."""
    if KEY_TEXT not in rows.columns:
        return pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True)
    told = rows[KEY_TEXT].map_elements(lambda text: name in json.loads(text), pl.Boolean)
    return told.fill_null(False)


def _as(read: Read, kind: DeltaType) -> pl.Series | None:
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


def _tellable(table: ProtectedTable, names: Sequence[str], text: str) -> None:
    """Makes sure that rows can be told by a value that Delta cannot hold.

    Raises:
        ConfigError
    """
    known = {
        n
        for k in evolution.key_columns_in_source(table.state.properties)
        for n in evolution.former_names(table.state.properties, k)
    }
    if KEY_TEXT not in table.kinds or not known & set(names):
        raise ConfigError(
            f"What is given for column {names[0]} is no value of type {table.kinds[names[0]]}."
        )


def _covered(table: ProtectedTable, name: str, value: pl.Series) -> Forms:
    """What may be stored for a value in a column."""
    column = table.protected(name)
    value = value.alias(name)
    if column is None:
        return Forms(value, value, value)
    if not column.protect.stable:
        raise ConfigError(
            f"Rows of {table.name} cannot be told by column {name}: {column.protect.method}"
            " leaves nothing to compare.",
            hint=f"Name them by the key: {', '.join(table.key) or 'the table has none'}.",
        )
    sure, shaped = _possible(value, column, table.protection)
    ever = pl.Series(name, [*sure, *shaped], dtype=pl.String)
    if not shaped or not _was_shaped(table, column):
        return Forms(ever, ever, ever)
    used = json.loads(table.state.properties.get(keys.IDS, "{}"))
    mine = [key for key in column.keys if key.id == used.get(name)] or [column.keys[0]]
    now = protect.protect_texts(value, replace(column, keys=tuple(mine)), table.protection.masters)
    clear = None if column.kind.name == "string" else value
    return Forms(now, pl.Series(name, sure, dtype=pl.String), ever, clear)


def _was_shaped(table: ProtectedTable, column: ProtectedColumn) -> bool:
    """Whether tokens of a column have the shape of values, or had it as far as the log knows."""
    if column.protect.format:
        return True
    known = (evolution.protected_columns(one) for _, one in lake_table.history(table.state))
    earlier = (one[column.column][0] for one in known if column.column in one)
    return any(how is not None and how.format for how in earlier)


def _value(text: str, kind: DeltaType) -> pl.Series | None:
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


def _possible(
    value: pl.Series, column: ProtectedColumn, protection: TableProtection
) -> tuple[list[str], list[str]]:
    """What is, or was, stored for a value, in clear too, as it was before it was protected: what
    stands for it alone, and what may be the token of another one as well, as it has the shape of a
    value.
    """
    clear: list[Any] = plaintext.texts(value).to_list()
    sure: list[Any] = []
    shaped: list[Any] = []
    for key in column.keys:
        if key.purpose not in DETERMINISTIC_METHODS:
            continue
        one = replace(column, protect=ProtectionRule(key.purpose), keys=(key,))  # type: ignore[arg-type]
        made = protect.protect_texts(value, one, protection.masters).to_list()
        sure += made
        if key.purpose == "tokenize":
            one = replace(one, protect=ProtectionRule("tokenize", format=True))
            alike = protect.protect_texts(value, one, protection.masters).to_list()
            shaped += [other for plain, other in zip(made, alike, strict=True) if plain != other]
    (shaped if shaped else sure).extend(clear)
    return list(dict.fromkeys(sure)), list(dict.fromkeys(shaped))


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
