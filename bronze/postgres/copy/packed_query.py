r"""The SQL that packs the rows of a split: PostgreSQL turns each column into one binary value.

The query returns one row: the number of rows, words with the NULL flags, and for each column the
values that its form takes. Fixed-length values are concatenated as PostgreSQL sends them, without
those that are NULL. Texts and bytes have different lengths, so they come in one of two ways:

- ``quick``: texts are concatenated with a separator, the byte ``\x01``. A text with this byte makes
  a separator too many. The reader sees that, and reads the split in the other way;
- otherwise: the values are concatenated, and their lengths come beside them.

Both count bytes as they are sent, in UTF-8. PostgreSQL converts the text of a whole column at once.
The separator does not change that: in every encoding of a server it is a character of its own.

All aggregates of one SELECT see the rows in one order, as parallel workers are off (`SESSION`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from bronze.model.columns import Column, DeltaType
from bronze.postgres.statement import rejected_values, select

SESSION = "SET LOCAL max_parallel_workers_per_gather = 0"
"""The setting that a session needs besides the usual ones."""

SEPARATOR = b"\x01"
FLAGS_PER_WORD = 31
# A SELECT returns at most 1,664 columns. The values of wider tables come in two arrays.
_MAX_VALUES = 1_600
_REJECTED = " AS rejected FROM "

Form = Literal["fixed", "text", "bytes", "array"]

_SEND = {
    "short": "int2send({})",
    "int": "int4send({})",
    "long": "int8send({})",
    "float": "float4send({})",
    "double": "float8send({})",
    # boolsend would take memory for each value.
    "boolean": r"CASE WHEN {0} THEN '\x01'::bytea WHEN NOT {0} THEN '\x00'::bytea END",
    "date": "date_send({})",
    "timestamp": "timestamptz_send({})",
    "timestamp_ntz": "timestamp_send({})",
}


@dataclass(frozen=True)
class Field:
    """A column of a packed query: its form, and the type of its values as they are sent.

    ``nullable`` fields have NULL flags. ``raw`` says that the values were not tested for rejected
    ones, which the reader has to find.
    """

    name: str
    form: Form
    kind: DeltaType
    nullable: bool = True
    raw: bool = False

    def source(self, quick: bool) -> str:
        """The SQL of the value of one row that is packed."""
        if self.form == "array":
            return f"array_send({self.name})"
        if self.form == "text" and not quick:
            return f"textsend({self.name})"
        return self.name

    def values(self, quick: bool) -> Iterator[tuple[str, bool]]:
        """The aggregates of the column, each with whether it is a text."""
        if self.form == "fixed":
            yield _concatenation(_SEND[self.kind.name].format(self.name)), False
        elif self.form == "text" and quick:
            yield f"string_agg(coalesce({self.name}, ''), E'\\x01')", True
        else:
            yield _concatenation(self.name), False
            yield _concatenation(f"int4send(octet_length({self.name}))"), False


@dataclass(frozen=True)
class Packing:
    """How the rows of a query are packed.

    ``rows`` is the SELECT without its WHERE, ``fields`` are its columns that are packed. If
    ``rejects`` is true, the last one is the text of rejected values; otherwise no row has any.
    """

    rows: str
    fields: tuple[Field, ...]
    quick: bool
    rejects: bool

    @cached_property
    def nullable(self) -> tuple[Field, ...]:
        """The fields that have NULL flags, in the order of their flags."""
        return tuple(field for field in self.fields if field.nullable)

    @cached_property
    def texts(self) -> tuple[bool, ...]:
        """For each value after the number of rows, whether it is a text."""
        return tuple(is_text for _, is_text in self._values)

    @property
    def in_arrays(self) -> bool:
        """Whether the values come in two arrays, those of bytes and those of text."""
        return len(self.texts) > _MAX_VALUES

    @cached_property
    def _values(self) -> tuple[tuple[str, bool], ...]:
        flags = ((_concatenation(word), False) for word in _null_flags(self.nullable))
        return (*flags, *(value for field in self.fields for value in field.values(self.quick)))

    @cached_property
    def _select(self) -> str:
        """The query up to the WHERE of the rows. The splits of a unit have it in common; with
        1,600 columns it is 200 kB of text.
        """
        values = [value for value, _ in self._values]
        if self.in_arrays:
            values = [
                f"ARRAY[{', '.join(v for v, is_text in self._values if is_text == wanted)}]"
                f"::{kind}[]"
                for wanted, kind in ((False, "bytea"), (True, "text"))
            ]
        columns = [f"{field.source(self.quick)} AS {field.name}" for field in self.fields]
        return (
            f"SELECT {', '.join(['count(*)', *values])} FROM (SELECT {', '.join(columns)}"  # noqa: S608
            f" FROM ({self.rows}"
        )

    def query(self, condition: str) -> str:
        """The query for the rows for which ``condition`` is true."""
        # OFFSET 0 prevents the planner from computing a value again for each use.
        return f"{self._select} WHERE {condition}) AS q OFFSET 0) AS s"


def guarded_packing(query: str, columns: Sequence[Column]) -> Packing:
    """How any query with these columns is packed: its values are tested for rejected ones."""
    fields = [_field(i, column) for i, column in enumerate(columns)]
    return Packing(query, (*fields, _REJECTED_FIELD), quick=False, rejects=True)


def quick_packing(query: str, columns: Sequence[Column]) -> Packing:
    """The same with separators; columns of a table are read without a test where that is possible.

    Then the reader has to look for rejected values, and reads the split again if there are any.
    """
    relation = query.rpartition(_REJECTED)[2]
    if query != select(columns, relation):
        fields = [_field(i, column) for i, column in enumerate(columns)]
        return Packing(query, (*fields, _REJECTED_FIELD), quick=True, rejects=True)
    fields = [
        _field(
            i,
            column,
            nullable=not column.not_null or bool(column.reject and not column.raw),
            raw=bool(column.raw),
        )
        for i, column in enumerate(columns)
    ]
    tested = [column for column in columns if column.reject and not column.raw]
    values = [f"{column.raw or column.select} AS c{i}" for i, column in enumerate(columns)]
    if tested:
        fields.append(_REJECTED_FIELD)
        values.append(f"{rejected_values(tested)} AS rejected")
    rows = f"SELECT {', '.join(values)} FROM {relation}"  # noqa: S608 - quoted names
    return Packing(rows, tuple(fields), quick=True, rejects=bool(tested))


def _field(number: int, column: Column, nullable: bool = True, raw: bool = False) -> Field:
    kind = _sent_kind(column)
    name = f"c{number}"
    if kind.name == "array":
        return Field(name, "array", kind, raw=raw)
    if kind.name in ("string", "binary"):
        # One NULL and one text with a separator would go unnoticed together.
        return Field(name, "text" if kind.name == "string" else "bytes", kind, raw=raw)
    return Field(name, "fixed", kind, nullable, raw)


def _sent_kind(column: Column) -> DeltaType:
    if column.wire == "unscaled":
        return DeltaType("long")
    if column.wire == "text":
        return DeltaType("string")
    if column.wire == "texts":
        return DeltaType("array", element=DeltaType("string"))
    return column.kind


_REJECTED_FIELD = Field("rejected", "text", DeltaType("string"))


def _concatenation(value: str) -> str:
    return f"string_agg({value}, ''::bytea)"


def _null_flags(nullable: Sequence[Field]) -> Iterator[str]:
    for start in range(0, len(nullable), FLAGS_PER_WORD):
        word = [f"{field.name} IS NULL" for field in nullable[start : start + FLAGS_PER_WORD]]
        bits = " + ".join(
            f"CASE WHEN {test} THEN {1 << i} ELSE 0 END" for i, test in enumerate(word)
        )
        # Most rows have no NULL; testing for that is faster than adding up the flags.
        yield rf"CASE WHEN {' OR '.join(word)} THEN int4send({bits}) ELSE '\x00000000'::bytea END"
