"""The rules that rows are checked by, and the results: values that travel to workers and back.

The score of a row is 100 minus the points of each rule that it breaks, and at least 0. The points
depend on the severity of the rule (`POINTS`). So an additional rule changes the scores only of rows
that break it, and nothing is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["low", "medium", "high", "critical"]

BEST_SCORE = 100
POINTS: dict[Severity, int] = {"low": 5, "medium": 10, "high": 25, "critical": 100}
"""How many points a row loses by breaking a rule. By default a row with a score below 80 is
quarantined: one rule of severity high, three of medium or five of low are enough."""

RuleKind = Literal[
    "not_null",
    "unique",
    "range",
    "length",
    "pattern",
    "accepted_values",
    "references",
    "freshness",
    "expression",
    "schema",
]
SET_RULE_KINDS = ("unique", "references")
"""The kinds of rules that need other rows: a single row cannot be checked by them."""

RuleOrigin = Literal["config", "python", "derived"]
Evaluation = Literal["rows", "proven", "counted", "none"]
"""How a rule is evaluated: row by row; not at all, because PostgreSQL enforces it; by a count in
PostgreSQL, because too many rows break it to list them; or not at all, as streams cannot."""

MAX_EXAMPLES = 5
"""How many keys of rows that break a rule are kept as examples."""


@dataclass(frozen=True)
class ResolvedRule:
    """One rule, resolved for the run of a table.

    ``columns`` are names in the source. ``holds`` is a serialised polars expression over them that
    is false for rows that break the rule (NULL does not); it is empty if there is nothing to
    evaluate. Rejected values of the column ``rejects`` break the rule. ``allow`` is the share of
    rows that may break it, ``allow_rows`` their number, whatever the share. ``counted`` is how many
    rows were checked in PostgreSQL, and how many of them break the rule.
    """

    name: str
    kind: RuleKind
    columns: tuple[str, ...]
    severity: Severity
    origin: RuleOrigin
    allow: float = 0.0
    evaluation: Evaluation = "rows"
    holds: bytes = field(default=b"", repr=False)
    rejects: str = ""
    counted: tuple[int, int] = (0, 0)
    allow_rows: int = 0


@dataclass(frozen=True)
class QualityRules:
    """All rules that the rows of a table are checked by.

    ``names`` are the names of the columns in the source and in the Bronze table, in their order.
    ``key`` are the columns of the key, by target name, that examples may show. ``distinct`` is for
    finding duplicate rows: one in ``distinct`` fingerprints is kept; with 0 none are.
    """

    criteria: tuple[ResolvedRule, ...] = ()
    threshold: int = 80
    names: tuple[tuple[str, str], ...] = ()
    key: tuple[str, ...] = ()
    distinct: int = 0

    @property
    def has_renames(self) -> bool:
        """Whether any column has a different name in the Bronze table."""
        return any(source != target for source, target in self.names)


@dataclass(frozen=True)
class QualityTotals:
    """The results of checking rows. Parts can be added.

    ``total`` is the sum of the scores, ``flawed`` how many rows have less than 100, ``refused`` how
    many have a rejected value. ``failed`` and ``examples`` (keys as JSON objects) are by rule,
    ``nulls`` by column. ``prints`` are fingerprints of rows, as arrays of 64-bit integers.
    """

    rows: int = 0
    total: int = 0
    flawed: int = 0
    quarantined: int = 0
    refused: int = 0
    failed: tuple[int, ...] = ()
    examples: tuple[tuple[str, ...], ...] = ()
    nulls: tuple[int, ...] = ()
    prints: tuple[bytes, ...] = field(default=(), repr=False)

    def __add__(self, other: QualityTotals) -> QualityTotals:
        if not self.rows or not other.rows:
            return self if self.rows else other
        return QualityTotals(
            self.rows + other.rows,
            self.total + other.total,
            self.flawed + other.flawed,
            self.quarantined + other.quarantined,
            self.refused + other.refused,
            tuple(a + b for a, b in zip(self.failed, other.failed, strict=True)),
            tuple(
                (a + b)[:MAX_EXAMPLES] for a, b in zip(self.examples, other.examples, strict=True)
            ),
            tuple(a + b for a, b in zip(self.nulls, other.nulls, strict=True)),
            self.prints + other.prints,
        )
