"""The settings of data quality: [quality], and the rules of a table."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field, model_validator

from bronze.config.fields import NameList, Seconds, Section
from bronze.library_errors import error_text
from bronze.model.quality import RuleKind, Severity

Share = Annotated[float, Field(ge=0, le=1)]


def _check_scalar(value: Any) -> Any:
    if not isinstance(value, (bool, int, float, str, date, datetime, Decimal)):
        raise ValueError("a value is a number, a string, a date, a timestamp, true or false")
    return value


Value = Annotated[Any, AfterValidator(_check_scalar)]


class QualitySettings(Section):
    """[quality]: the limits for the checks of a table as a whole. ``freshness`` is in seconds.

    ``null_share`` is checked only if it is set: a NULL that the source allows is not an error.
    ``allow_rows`` is how many rows may fail a check, and how many NULLs each column may have,
    whatever their share.
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
    """The smallest and the largest value that a column may have, both inclusive."""

    min: Value = None
    max: Value = None

    @model_validator(mode="after")
    def _check_bounds(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("min or max is missing")
        return self


class Lengths(Section):
    """The smallest and the largest number of characters of a string, both inclusive."""

    min: int | None = Field(default=None, ge=0)
    max: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check_lengths(self) -> Lengths:
        if self.min is None and self.max is None:
            raise ValueError("min or max is missing")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is more than max: the rule could never hold for any row")
        return self


class References(Section):
    """The table and the columns that must contain the values of this rule's columns."""

    table: str
    columns: NameList = ()


class RuleSettings(Section):
    """A rule for the rows of a table: of exactly one kind, on ``column`` or ``columns``."""

    name: str = ""
    column: str = ""
    columns: NameList = ()
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
    def _check_kind(self) -> RuleSettings:
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            actual = " and ".join(kinds) or "none of them"
            raise ValueError(f"a rule has exactly one of {', '.join(KINDS)}; this has {actual}")
        if self.column and self.columns:
            raise ValueError("a rule has column or columns, not both")
        if self.kind not in ("expression", "unique") and not self.on:
            raise ValueError(f"a {self.kind} rule needs a column")
        if len(self.on) > 1 and self.kind not in ("unique", "references", "expression"):
            raise ValueError(f"a {self.kind} rule has one column only")
        if self.kind == "expression" and self.on:
            raise ValueError("an expression rule names its columns itself: leave column out")
        _check_syntax(self.kind, self.pattern or self.expression or "")
        return self

    @property
    def kind(self) -> RuleKind:
        """The kind of the rule."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def on(self) -> tuple[str, ...]:
        """The columns of the rule; none if it is about the key, or an expression names them."""
        return (self.column,) if self.column else self.columns

    @property
    def label(self) -> str:
        """The name of the rule; by default its expression, or its columns and kind."""
        default = self.expression or " ".join((", ".join(self.on) or "key", self.kind))
        return self.name or default


KINDS: tuple[RuleKind, ...] = tuple(kind for kind in get_args(RuleKind) if kind != "schema")
"""The kinds of rules that a config may have; the schema is always checked."""

RULE_SECTIONS: Mapping[str, type[BaseModel]] = {
    "range": Bounds,
    "length": Lengths,
    "references": References,
}
"""The sections within a rule."""


def _check_syntax(kind: RuleKind, text: str) -> None:
    if kind not in ("pattern", "expression"):
        return
    # A config without such rules is read, and its errors are reported, without this library.
    import polars as pl

    try:
        if kind == "pattern":
            pl.Series([""]).str.contains(text)
        else:
            pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{text!r} cannot be used: {error_text(error)}") from None
