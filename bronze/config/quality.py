"""What a config demands of the rows of its tables: [quality], and the rules of a table."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

import polars as pl
from pydantic import AfterValidator, BaseModel, Field, model_validator

from bronze.config.fields import Names, Seconds, Section
from bronze.library_errors import plain
from bronze.model.quality import Kind, Severity

Share = Annotated[float, Field(ge=0, le=1)]


def _plain(value: Any) -> Any:
    if not isinstance(value, (bool, int, float, str, date, datetime, Decimal)):
        raise ValueError("a value is a number, a text, a date, a time stamp, true or false")
    return value


Value = Annotated[Any, AfterValidator(_plain)]


class QualitySettings(Section):
    """What is demanded of a table as a whole. ``freshness`` is in seconds.

    ``null_share`` is demanded where it is given: a NULL that the source allows is no fault by
    itself. ``allow_rows`` is how many rows may fail a check whatever their share is, and how many
    NULLs each column may have.
    """

    threshold: int = Field(default=80, ge=0, le=100)
    derive: bool = True
    on_failure: Literal["land", "stop"] = "land"
    null_share: Share | None = None
    duplicates: Share = 0.01
    allow_rows: int = Field(default=0, ge=0)
    schema_compliance: Share = 1.0
    freshness: Seconds = 1800


class Bounds(Section):
    """What a value lies between; both ends belong to it."""

    min: Value = None
    max: Value = None

    @model_validator(mode="after")
    def _some(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("min or max is missing")
        return self


class Lengths(Section):
    """How many characters a text has."""

    min: int | None = Field(default=None, ge=0)
    max: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _some(self) -> Lengths:
        if self.min is None and self.max is None:
            raise ValueError("min or max is missing")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is more than max: the rule could never hold")
        return self


class References(Section):
    """The columns of another table among whose values those of this one have to be."""

    table: str
    columns: Names = ()


class RuleSettings(Section):
    """A rule: on ``column`` or ``columns``, of exactly one kind."""

    name: str = ""
    column: str = ""
    columns: Names = ()
    severity: Severity = "medium"
    allow: Share = 0.0
    allow_rows: int = Field(default=0, ge=0)
    not_null: Literal[True] | None = None
    unique: Literal[True] | None = None
    range: Bounds | None = None
    length: Lengths | None = None
    pattern: str | None = None
    accepted_values: tuple[Value, ...] | None = Field(default=None, min_length=1)
    references: References | None = None
    freshness: Seconds | None = None
    expression: str | None = None

    @model_validator(mode="after")
    def _one(self) -> RuleSettings:
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            said = f"is {' and '.join(kinds)}" if kinds else "is of no kind"
            raise ValueError(f"a rule is of exactly one kind of {', '.join(KINDS)}; this {said}")
        if self.column and self.columns:
            raise ValueError("a rule has column or columns, not both")
        needed = self.kind not in ("expression", "unique")
        if needed and not self.on:
            raise ValueError(f"a rule of the kind {self.kind} needs a column")
        if len(self.on) > 1 and self.kind not in ("unique", "references", "expression"):
            raise ValueError(f"a rule of the kind {self.kind} is about one column")
        if self.kind == "expression" and self.on:
            raise ValueError("an expression names its columns itself: leave column out")
        _compiles(self.kind, self.pattern or self.expression or "")
        return self

    @property
    def kind(self) -> Kind:
        """Its one kind."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def on(self) -> tuple[str, ...]:
        """The columns that it is about; none where that is the key, or the expression says it."""
        return (self.column,) if self.column else self.columns

    @property
    def called(self) -> str:
        """Its name, or one made of what it says."""
        what = self.expression or " ".join((", ".join(self.on) or "key", self.kind))
        return self.name or what


KINDS: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "schema")
"""The kinds that a config may name; the schema is always looked at."""

PARTS: Mapping[str, type[BaseModel]] = {
    "range": Bounds,
    "length": Lengths,
    "references": References,
}
"""The sections within a rule."""


def _compiles(kind: Kind, text: str) -> None:
    try:
        if kind == "pattern":
            pl.Series([""]).str.contains(text)
        elif kind == "expression":
            pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{text!r} cannot be used: {plain(error)}") from None
