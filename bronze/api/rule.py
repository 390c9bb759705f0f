"""Quality rules that are made in Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bronze.errors import ConfigError
from bronze.model.quality import POINTS, ResolvedRule, Severity

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Rule:
    """A rule for the rows of a table, made in Python.

    Args:
        name: its name, unique in its table.
        holds: a polars expression over the source's columns that is false for rows that break
            the rule; rows for which it is NULL keep it. It is evaluated row by row.
        severity: "low", "medium", "high" or "critical"; see `bronze.model.quality.POINTS`.
        allow: the share of rows that may break it.
        allow_rows: how many rows may break it, whatever their share is.
    """

    name: str
    holds: pl.Expr = field(compare=False)
    severity: Severity = "medium"
    allow: float = 0.0
    allow_rows: int = 0

    def criterion(self) -> ResolvedRule:
        """The rule with its expression as text, as workers receive it.

        Raises:
            ConfigError: the severity, the share or the number of rows is not possible.
        """
        if not (self.severity in POINTS and 0 <= self.allow <= 1 and self.allow_rows >= 0):
            raise ConfigError(
                f"The rule {self.name!r} has the severity {self.severity!r} and allows"
                f" {self.allow!r} and {self.allow_rows!r} rows.",
                hint=f"A severity is one of {', '.join(POINTS)}; a share is from 0 to 1, a number"
                " of rows at least 0.",
            )
        serialised = self.holds.meta.serialize()
        return ResolvedRule(
            self.name,
            "expression",
            (),
            self.severity,
            "python",
            self.allow,
            holds=serialised,
            allow_rows=self.allow_rows,
        )
