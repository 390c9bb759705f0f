"""JSON in the columns of governance tables."""

from __future__ import annotations

import json
from typing import TypeVar

from bronze.errors import LakeError

T = TypeVar("T")


def json_value(text: str, table: str, kind: type[T]) -> T:
    """The JSON value of a column of a governance table.

    Raises:
        LakeError: it is not JSON, or not of this kind.
    """
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise LakeError(
            f"A record of governance.{table} cannot be read: another writer has changed it.",
            hint="Restore an earlier version of the table, or delete the record.",
        )
    return value
