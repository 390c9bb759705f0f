"""How the values of a table are protected."""

from __future__ import annotations

from dataclasses import dataclass, field

from bronze.model.columns import DeltaType, ProtectionRule
from bronze.model.locations import Secret


@dataclass(frozen=True)
class DataKey:
    """A data key as it is stored in the lake: wrapped by the master key with the id ``master``.

    It is for one ``purpose``, one ``column`` and one ``table``; if ``table`` is "", for all columns
    that share the key named ``column``.
    """

    id: str
    table: str
    column: str
    purpose: str
    wrapped: str = field(repr=False)
    master: str


@dataclass(frozen=True)
class ProtectedColumn:
    """A protected column: ``column`` is its name in the Bronze table, ``name`` in the source ("" if
    it is not there). The first of ``keys`` protects new values, the others earlier ones.
    """

    column: str
    name: str
    kind: DeltaType
    protect: ProtectionRule
    keys: tuple[DataKey, ...] = ()


@dataclass(frozen=True)
class TableProtection:
    """How the rows of a table are protected.

    ``row_hash`` is the data key of the row hashes, None if no column is protected; ``masters`` are
    references to the master keys.
    """

    columns: tuple[ProtectedColumn, ...]
    row_hash: DataKey | None
    masters: tuple[Secret, ...]
