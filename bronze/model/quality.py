"""What the rows of a table are held against, and how they fared: values that travel to workers
and back.

A row's score is 100 less the points of each rule that it breaks, and at least 0. The points are
those of the rule's severity (`POINTS`). So a rule more or less changes no row's score that keeps
it, and nothing is rounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["low", "medium", "high", "critical"]

BEST = 100
POINTS: dict[Severity, int] = {"low": 5, "medium": 10, "high": 25, "critical": 100}
"""What a row loses by breaking a rule. A row with less than 80 is quarantined by default: one rule
of severity high, three of medium or five of low are enough for that."""

Kind = Literal[
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
SPANNING = ("unique", "references")
"""The kinds that no row can be held against alone."""

Origin = Literal["config", "python", "derived"]
Evaluation = Literal["rows", "proven", "counted", "none"]
"""How a rule is evaluated: row by row; not at all, as PostgreSQL sees to it; counted in PostgreSQL,
as too many rows break it to know each; or not at all, as it cannot be in a stream."""

EXAMPLES = 5


@dataclass(frozen=True)
class Criterion:
    """One rule as it is settled for a table's run.

    ``columns`` are the source's names. ``holds`` is a serialised polars expression over them that
    is false for rows that break the rule (NULL keeps it); it is empty where there is nothing to
    evaluate. ``rejects`` is the column whose rejected values break it. ``allow`` is the share of
    rows that may break it, ``allow_rows`` how many may whatever their share is. ``counted`` is how
    many rows were looked at in PostgreSQL, and how many of them break it.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...]
    severity: Severity
    origin: Origin
    allow: float = 0.0
    evaluation: Evaluation = "rows"
    holds: bytes = field(default=b"", repr=False)
    rejects: str = ""
    counted: tuple[int, int] = (0, 0)
    allow_rows: int = 0


@dataclass(frozen=True)
class Quality:
    """What the rows of a table are held against.

    ``names`` are the source's and the Bronze table's names of its columns, in their order.
    ``key`` are the key's target names that may be told as examples. ``distinct`` asks for
    duplicates of whole rows: one in so many fingerprints is kept; 0 asks for none.
    """

    criteria: tuple[Criterion, ...] = ()
    threshold: int = 80
    names: tuple[tuple[str, str], ...] = ()
    key: tuple[str, ...] = ()
    distinct: int = 0

    @property
    def renamed(self) -> bool:
        """Whether any column has another name in the Bronze table."""
        return any(source != target for source, target in self.names)


@dataclass(frozen=True)
class Scored:
    """How rows fared. Those of parts may be added up.

    ``total`` is the sum of their scores, ``flawed`` how many have less than 100, ``refused`` how
    many have a rejected value. ``failed`` and ``examples`` (keys as JSON objects) are by
    criterion, ``nulls`` by column. ``prints`` are fingerprints of rows, as arrays of 64 bits.
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

    def __add__(self, other: Scored) -> Scored:
        if not self.rows or not other.rows:
            return self if self.rows else other
        return Scored(
            self.rows + other.rows,
            self.total + other.total,
            self.flawed + other.flawed,
            self.quarantined + other.quarantined,
            self.refused + other.refused,
            tuple(a + b for a, b in zip(self.failed, other.failed, strict=True)),
            tuple((a + b)[:EXAMPLES] for a, b in zip(self.examples, other.examples, strict=True)),
            tuple(a + b for a, b in zip(self.nulls, other.nulls, strict=True)),
            self.prints + other.prints,
        )
