"""How the values of a table are protected."""

from __future__ import annotations

from dataclasses import dataclass, field

from bronze.model.columns import Kind, Protect
from bronze.model.locations import Secret


@dataclass(frozen=True)
class DataKey:
    """A key for data as the lake keeps it: wrapped by the master key ``master`` (its id).

    It serves one ``purpose`` for one ``column`` of one ``table`` ("": for all columns that share
    the key called ``column``).
    """

    id: str
    table: str
    column: str
    purpose: str
    wrapped: str = field(repr=False)
    master: str


@dataclass(frozen=True)
class Protected:
    """A protected column: ``column`` is the Bronze table's, ``name`` the source's ("": it has
    none). The first of ``keys`` is for new values, the others for those that are there.
    """

    column: str
    name: str
    kind: Kind
    protect: Protect
    keys: tuple[DataKey, ...] = ()


@dataclass(frozen=True)
class Protection:
    """How the rows of a table are protected.

    ``row_hash`` is the key of the hashes of rows, None where no column is protected; ``masters``
    say where the keys are found that wrap all others.
    """

    columns: tuple[Protected, ...]
    row_hash: DataKey | None
    masters: tuple[Secret, ...]
