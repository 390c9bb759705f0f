"""Columns in the source and in the Bronze table, and the key of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DeltaTypeName = Literal[
    "short",
    "int",
    "long",
    "float",
    "double",
    "boolean",
    "decimal",
    "string",
    "binary",
    "date",
    "timestamp",
    "timestamp_ntz",
    "array",
]


@dataclass(frozen=True)
class DeltaType:
    """A data type of Delta Lake.

    ``precision`` and ``scale`` belong to ``decimal``, ``element`` to ``array``.
    """

    name: DeltaTypeName
    precision: int = 0
    scale: int = 0
    element: DeltaType | None = None

    @property
    def of(self) -> DeltaType:
        """The type of the elements of an array."""
        if self.element is None:
            raise TypeError(f"{self} is not an array")
        return self.element

    def __str__(self) -> str:
        if self.name == "decimal":
            return f"decimal({self.precision},{self.scale})"
        if self.element is not None:
            return f"array<{self.element}>"
        return self.name


WireFormat = Literal["same", "unscaled", "text", "texts"]
"""How PostgreSQL sends a value: unchanged; as the integer ``value * 10**scale``; as text that is
parsed here; as an array of such texts."""


ProtectMethod = Literal["encrypt", "encrypt_deterministic", "tokenize", "hash", "mask"]


DETERMINISTIC_METHODS = ("encrypt_deterministic", "tokenize", "hash")
"""The methods that protect equal values alike, so that a column stays usable as a key."""


@dataclass(frozen=True)
class ProtectionRule:
    """How the values of a column are protected (see `bronze.protection.protect`).

    ``join`` names a data key that several columns share; ``format`` says that tokens keep the
    format of their values, ``keep`` how many characters at the end a mask does not hide.
    """

    method: ProtectMethod
    join: str = ""
    format: bool = False
    keep: int = 0

    @property
    def stable(self) -> bool:
        """Whether equal values are protected alike."""
        return self.method in DETERMINISTIC_METHODS


_NUMBERS = ("short", "int", "long", "float", "double", "decimal")


@dataclass(frozen=True)
class Column:
    """One column of a table, with everything the stages need to load it exactly.

    ``name`` is the name in the source, ``target`` the name in the Bronze table. All SQL is of
    PostgreSQL: ``select`` reads the value, ``canonical`` is the value that is hashed in its binary
    form, ``reject`` is a condition that is true for values which Delta cannot hold ("" if there are
    none), ``text`` is PostgreSQL's text of the value, and ``element``, for arrays, the canonical
    SQL of one element ``e``. ``kind`` is the type of the value as it is read and hashed,
    ``stored_type`` the type in the Bronze table. ``base_type`` is PostgreSQL's name of the type,
    for a domain that of its base type; "" if the source no longer has the column. ``raw`` reads the
    value without testing whether it is rejected: a value that is rejected then makes PostgreSQL
    raise an error, or its reader sees it ("" if neither is so, or no value is rejected).
    """

    name: str
    target: str
    source_type: str
    kind: DeltaType
    wire: WireFormat
    select: str
    canonical: str
    reject: str
    text: str
    element: str = ""
    not_null: bool = False
    protect: ProtectionRule | None = None
    base_type: str = ""
    raw: str = ""

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers, even if Delta can hold them as text only."""
        return self.kind.name in _NUMBERS or (
            self.kind.name == "string" and self.base_type == "numeric"
        )

    @property
    def stored_type(self) -> DeltaType:
        """The type of the column in the Bronze table."""
        return DeltaType("string") if self.protect else self.kind


KEY_TEXT = "key_as_text"
"""A column of Bronze tables with a key that can have values which Delta cannot hold or compare. A
row with such values has them here, as a JSON object of texts; other rows have NULL."""


@dataclass(frozen=True)
class RowKey:
    """The key of a table: ``columns`` of the source that identify a row, none if it has no key.

    ``names`` are the columns of the Bronze table that identify a row there: the key without its
    arrays and, if the table has it, `KEY_TEXT` as the last one.
    """

    columns: tuple[Column, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def has_text(self) -> bool:
        """Whether the table has `KEY_TEXT`."""
        return self.names[-1:] == (KEY_TEXT,)

    @property
    def source_names(self) -> tuple[str, ...]:
        """The names of the key's columns in the source."""
        return tuple(column.name for column in self.columns)


NO_KEY = RowKey()
