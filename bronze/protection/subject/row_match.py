"""Which rows and records have the selected values: for certain, or possibly.

In a protected column a value is stored as one of several texts, by the methods and keys that the
column has had. A token with the format of values may be the token of another value too, or
another row's value in clear: such a match is possible, and certain only if the time of the row
says how the column was protected when it was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from bronze.model.columns import KEY_TEXT
from bronze.protection import plaintext
from bronze.protection.lake_table import BATCH
from bronze.protection.subject.recorded_values import ValueSet

Match = tuple[pl.Series, pl.Series]
"""Which rows match for certain, and which match at least possibly."""


@dataclass(frozen=True)
class StoredForms:
    """What a column may store for a value.

    ``now`` is stored as the column is protected now. Of what was written before, ``certain`` is
    stored for this value alone; ``possible`` may be the token of another value as well, where
    tokens have the format of values. ``clear`` is what a file has in which the column is not text.
    """

    now: pl.Series
    certain: pl.Series
    possible: pl.Series
    clear: pl.Series | None = None

    @property
    def is_ambiguous(self) -> bool:
        """Whether some of it may be the token of another value."""
        return self.possible is not self.certain

    @cached_property
    def value_sets(self) -> tuple[ValueSet, ValueSet, ValueSet]:
        """``now``, ``certain`` and ``possible``, to be looked up by what records say."""
        now = ValueSet(self.now.to_list())
        certain, possible = (
            now if forms is self.now else ValueSet(forms.to_list())
            for forms in (self.certain, self.possible)
        )
        return now, certain, possible


@dataclass(frozen=True)
class SelectedValue:
    """A value of a column by which rows are selected.

    Attributes:
        names: the Bronze columns that have the value, or had it before a rename, the latest first.
        forms: what may be stored for the value, by column.
        texts: what `KEY_TEXT` may hold of it, where Delta cannot hold the value.
        reused: columns that had the value once, and that have something else now.
        is_dated: whether the latest column tells later rows from earlier ones: as it is part of
            the key, it has a value in each later row, and none in an earlier one.
        successors: columns that have now what the first of ``names`` had before it was reused,
            each with whether it is part of the key, so that it tells later rows from earlier ones.
    """

    names: tuple[str, ...]
    forms: Mapping[str, StoredForms]
    texts: frozenset[str] = frozenset()
    reused: tuple[str, ...] = ()
    is_dated: bool = False
    successors: tuple[tuple[str, bool], ...] = ()

    @property
    def is_ambiguous(self) -> bool:
        """Whether a match depends on when a row or a record was written."""
        return any(forms.is_ambiguous for forms in self.forms.values())

    def matches(self, rows: pl.DataFrame, recent: pl.Series) -> Match:
        """Which rows have the value. An older column counts where the later ones are NULL.

        Args:
            rows: the rows.
            recent: which of them were written as the columns are protected now.
        """
        nothing = _none_of(rows)
        certain, possible, is_open = nothing, nothing, ~nothing
        for name in self.names:
            if name in rows.columns:
                sure, maybe = self._column_matches(rows[name], name, recent)
                certain, possible = certain | is_open & sure, possible | is_open & maybe
                is_open &= rows[name].is_null()
        for name, is_key in self.successors:
            # A file without the successor is older than the reuse altogether.
            has_value = rows[name].is_not_null() if name in rows.columns else nothing
            later = has_value | _has_key_text(rows, name)
            certain, possible = certain & later, possible & later if is_key else possible
        for name in self.reused:
            if name in rows.columns:
                sure, maybe = self._column_matches(rows[name], name, recent)
                if self.is_dated:
                    earlier = is_open & ~_has_key_text(rows, self.names[0])
                    certain |= earlier & sure
                else:
                    earlier = ~certain
                possible |= earlier & maybe
        if self.texts and KEY_TEXT in rows.columns:
            by_text = rows[KEY_TEXT].map_elements(self._is_key_text, pl.Boolean).fill_null(False)
            certain, possible = certain | by_text, possible | by_text
        return certain, certain | possible

    def _column_matches(self, values: pl.Series, name: str, recent: pl.Series) -> Match:
        forms = self.forms.get(name)
        if forms is None:
            nothing = pl.repeat(False, len(values), dtype=pl.Boolean, eager=True)
            return nothing, nothing
        if forms.clear is not None and values.dtype != pl.String:
            matches = _is_any_of(values, forms.clear)
            return matches, matches
        now = _is_any_of(values, forms.now)
        if not forms.is_ambiguous:
            return now, now
        earlier = [_is_any_of(values, stored) for stored in (forms.certain, forms.possible)]
        certain, possible = (recent & now | ~recent & matches for matches in earlier)
        return certain, possible

    def _is_key_text(self, key_text: str) -> bool:
        texts = json.loads(key_text)
        names = (*self.names, *(self.reused if self.is_dated else ()))
        return next((texts[name] for name in names if name in texts), None) in self.texts

    def key_match(self, key: Mapping[str, Any], is_recent: bool) -> tuple[bool, bool] | None:
        """Whether a key in a record has the value for certain, and whether it may; None where it
        has none of the value's columns.
        """
        for name in (*self.names, *self.reused):
            if key.get(name) is not None:
                if any(is_key for _, is_key in self.successors):
                    # A record has columns of the key alone.
                    return False, False
                forms = self.forms.get(name)
                if forms is None:
                    return False, False
                now, certain, possible = forms.value_sets
                is_certain = (now if is_recent else certain).has(key[name])
                if name in self.reused and not self.is_dated:
                    return False, is_certain
                return is_certain, is_certain or (not is_recent and possible.has(key[name]))
        texts = json.loads(key.get(KEY_TEXT) or "{}")
        is_match = any(texts.get(name) in self.texts for name in (*self.names, *self.reused))
        return (is_match, is_match) if texts else None

    @property
    def columns(self) -> list[str]:
        """The columns that have to be read."""
        successors = [name for name, _ in self.successors]
        has_text = self.texts or successors or (self.reused and self.is_dated)
        batch = [BATCH] if self.is_ambiguous else []
        return [
            *(*self.names, *self.reused, *successors),
            *([KEY_TEXT] if has_text else []),
            *batch,
        ]


@dataclass(frozen=True)
class Subject:
    """Selects the rows that have all of some values of columns.

    ``since`` is the first batch that wrote all its rows with the present protection of the columns;
    "" where it is not known.
    """

    values: tuple[SelectedValue, ...]
    since: str = ""

    def matches(self, rows: pl.DataFrame, is_current: bool = True) -> pl.Series:
        """Which rows are selected for certain. The rows may lack some columns, or have them in
        other types.

        Args:
            rows: rows of a Bronze table, with at least those of `columns` that it has.
            is_current: whether they are of the current version.
        """
        return self.match(rows, is_current)[0]

    def match(self, rows: pl.DataFrame, is_current: bool) -> Match:
        """Which rows are selected for certain, and which may be; see `matches`."""
        everything = ~_none_of(rows)
        certain, possible = everything, everything
        recent = everything if is_current else self._recent_rows(rows)
        for value in self.values:
            sure, maybe = value.matches(rows, recent)
            certain, possible = certain & sure, possible & maybe
        return certain, possible

    def _recent_rows(self, rows: pl.DataFrame) -> pl.Series:
        if not self.since or BATCH not in rows.columns:
            return _none_of(rows)
        return (rows[BATCH] >= self.since).fill_null(False)

    def is_recent(self, record: Mapping[str, Any]) -> bool:
        """Whether a record was written when the columns were protected as they are now."""
        return bool(self.since) and (record.get(BATCH) or "") >= self.since

    def key_match(self, key: Mapping[str, Any], is_recent: bool) -> tuple[bool, bool]:
        """Whether a key in a record has the selected values: for certain, and possibly."""
        matches = (value.key_match(key, is_recent) for value in self.values)
        verdicts = [verdict for verdict in matches if verdict is not None]
        if not verdicts or len(verdicts) < len(self.values):
            return False, False
        return all(sure for sure, _ in verdicts), all(maybe for _, maybe in verdicts)

    @property
    def ambiguous(self) -> frozenset[str]:
        """The columns in which one text may be stored for several values."""
        return frozenset(
            name
            for value in self.values
            for name, forms in value.forms.items()
            if forms.is_ambiguous
        )

    @property
    def columns(self) -> list[str]:
        """The columns that have to be read."""
        return list(dict.fromkeys(name for value in self.values for name in value.columns))


def _none_of(rows: pl.DataFrame) -> pl.Series:
    return pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True)


def _has_key_text(rows: pl.DataFrame, name: str) -> pl.Series:
    """Which rows have a value of a column that Delta cannot hold."""
    if KEY_TEXT not in rows.columns:
        return _none_of(rows)
    has_text = rows[KEY_TEXT].map_elements(lambda text: name in json.loads(text), pl.Boolean)
    return has_text.fill_null(False)


def _is_any_of(values: pl.Series, wanted: pl.Series) -> pl.Series:
    """Which values of a file's column are among the wanted ones, whatever type the file has."""
    if wanted.dtype == pl.String or isinstance(wanted.dtype, pl.List):
        values, wanted = plaintext.texts(values), plaintext.texts(wanted)
    return values.cast(wanted.dtype, strict=False).is_in(wanted.implode()).fill_null(False)
