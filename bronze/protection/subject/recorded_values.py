"""Compares values of rows with the values that governance records have of them, which are JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any


class ValueSet:
    """Values of rows, to be looked up by what a record says."""

    def __init__(self, values: Iterable[Any]) -> None:
        """Keeps each value once, in its comparable form."""
        self._values = {comparable(value) for value in values}

    def has(self, recorded: Any) -> bool:
        """Whether one of the values is the one that a record has."""
        return not self._values.isdisjoint(comparables(recorded))


def record_text(value: Any) -> str:
    """A value of a row, or of a record about it, as one text."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return str(json.loads(text)) if text.startswith('"') else text


def comparable(value: Any) -> Any:
    """The form in which a value of a row is compared. A decimal is its own: it may have more digits
    than when a record was written about it.
    """
    return value if isinstance(value, Decimal) else record_text(value)


def comparables(recorded: Any) -> tuple[Any, ...]:
    """The forms, as `comparable` makes them, of the values that a record may mean."""
    try:
        number = Decimal(str(recorded))
    except ArithmeticError:
        return (record_text(recorded),)
    return (record_text(recorded), number) if number.is_finite() else (record_text(recorded),)
