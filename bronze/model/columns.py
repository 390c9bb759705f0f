"""Columns: what each is in the source and in the Bronze table, and which tell rows apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KindName = Literal[
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
class Kind:
    """What a value is in the Bronze table, in Delta's terms.

    ``precision`` and ``scale`` belong to ``decimal``, ``element`` to ``array``.
    """

    name: KindName
    precision: int = 0
    scale: int = 0
    element: Kind | None = None

    @property
    def of(self) -> Kind:
        """An array's element."""
        if self.element is None:
            raise TypeError(f"{self} is no array")
        return self.element

    def __str__(self) -> str:
        if self.name == "decimal":
            return f"decimal({self.precision},{self.scale})"
        if self.element is not None:
            return f"array<{self.element}>"
        return self.name


Wire = Literal["same", "unscaled", "text", "texts"]
"""How a value travels from PostgreSQL to us: as it is; as the integer ``value * 10**scale``; as
text to be parsed; as an array of such texts."""


ProtectMethod = Literal["encrypt", "encrypt_deterministic", "tokenize", "hash", "mask"]


STABLE = ("encrypt_deterministic", "tokenize", "hash")
"""The methods by which equal values stay equal, so that rows can be told apart by them."""


@dataclass(frozen=True)
class Protect:
    """How the values of a column are protected (see `bronze.protection.protect`).

    ``join`` names a key that several columns share; ``format`` says that tokens have the shape of
    their values, ``keep`` how many characters at the end a mask leaves.
    """

    method: ProtectMethod
    join: str = ""
    format: bool = False
    keep: int = 0

    @property
    def stable(self) -> bool:
        """Whether equal values stay equal."""
        return self.method in STABLE


_NUMBERS = ("short", "int", "long", "float", "double", "decimal")


@dataclass(frozen=True)
class Column:
    """One column of a table, with everything the stages need to carry it exactly.

    ``name`` is the source's, ``target`` the Bronze table's. ``select`` is the SQL that fetches the
    value, ``canonical`` the SQL of the value whose binary form is hashed, ``reject`` a SQL
    condition that is true for values which Delta cannot hold ("" where there are none),
    ``text`` the SQL of PostgreSQL's own text of the value, and ``element``, for arrays, the
    canonical SQL of one element ``e``. ``kind`` is that of the value as it is read and hashed,
    ``stored`` that of what the Bronze table has of it. ``base_type`` is PostgreSQL's own name of
    the type, of a domain's the type beneath it; "" of what the source has no more.
    """

    name: str
    target: str
    source_type: str
    kind: Kind
    wire: Wire
    select: str
    canonical: str
    reject: str
    text: str
    element: str = ""
    not_null: bool = False
    protect: Protect | None = None
    base_type: str = ""

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers, be they kept as text because Delta has no such type."""
        return self.kind.name in _NUMBERS or (
            self.kind.name == "string" and self.base_type == "numeric"
        )

    @property
    def stored(self) -> Kind:
        """What the value is in the Bronze table."""
        return Kind("string") if self.protect else self.kind


KEY_TEXT = "key_as_text"
"""The column that only those Bronze tables have whose key has values that Delta cannot hold or
compare: in a row with such values they are here, as a JSON object of text; elsewhere NULL."""


@dataclass(frozen=True)
class RowKey:
    """What tells the rows of a table apart: ``columns`` of the source, none where nothing does.

    ``names`` are the columns of the Bronze table by which a row is found there. Those of its key
    that are arrays are not among them; where it has `KEY_TEXT`, that is the last one.
    """

    columns: tuple[Column, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def has_text(self) -> bool:
        """Whether the table has `KEY_TEXT`."""
        return self.names[-1:] == (KEY_TEXT,)

    @property
    def source_names(self) -> tuple[str, ...]:
        """The key's columns as the source calls them."""
        return tuple(column.name for column in self.columns)


NO_KEY = RowKey()
