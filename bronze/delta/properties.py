"""The table properties in which a Bronze table says what it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bronze.errors import LakeError

T = TypeVar("T")

# Properties of a Bronze table in which it says what it was made from.
SOURCE = "bronze.source"


SCHEMA = "bronze.schema"


TABLE = "bronze.table"


OID = "bronze.oid"


KEY = "bronze.key"


BASE = "bronze.base"


NUMBERS = "bronze.columns"


DEFINITION = "bronze.definition"


PUBLISHED = "bronze.published"


PROTECT = "bronze.protect"


WIDENED = "bronze.widened"


WATCHED = "bronze.watched"


RULES = "bronze.rules"


CUT = "bronze.cut"


ENFORCED = "bronze.enforced"


FORMER = "bronze.former"


THRESHOLDS = "bronze.thresholds"


LAYOUT = "bronze.layout"


KEYED = "bronze.keyed"
"""In a table with `KEY_TEXT`: the Bronze names of the columns that the key has in the source."""


def value(held: Mapping[str, str], name: str, absent: T, parse: Callable[[str], T]) -> T:
    """What a property of a table says; ``absent`` where the table has none of this name.

    Raises:
        LakeError: ``parse`` cannot read it, as somebody else has changed it.
    """
    if name not in held:
        return absent
    try:
        return parse(held[name])
    except (ValueError, TypeError, KeyError, AttributeError, LakeError) as error:
        raise LakeError(
            f"What the Bronze table's property {name} says cannot be read: another writer has"
            " changed it.",
            hint="Set it to what it was, which older entries of the table's _delta_log say; or move"
            " the table's folder away, and a run loads it anew.",
        ) from error


def names_in(text: str) -> tuple[str, ...]:
    """A JSON array of names."""
    return tuple(_all(json.loads(text), list, str))


def mapping_in(text: str, of: type[T]) -> dict[str, T]:
    """A JSON object whose values are all of one type."""
    found: dict[str, T] = json.loads(text)
    _all(list(found.values()), list, of)
    return found


def numbers_in(text: str) -> list[int]:
    """A JSON array of numbers."""
    return list(_all(json.loads(text), list, int))


def _all(found: Any, kind: type[Any], of: type[T]) -> list[T]:
    if not isinstance(found, kind) or not all(isinstance(one, of) for one in found):
        raise ValueError("it is something else")
    return list(found)
