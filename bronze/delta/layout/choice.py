"""Chooses the columns to cluster a table by (``cluster_by = "auto"``), by counting on its rows.

A sample of the rows is cut into as many files as the table has by its target size: in the order in
which the rows arrived, along the present clustering, and along the Hilbert curve through each
single candidate and each pair of them. For each cut, the bounds of the files say which share of
them filters skip. The best candidate is chosen where it skips so much more than the present layout
that a rewrite is worth it; a clustering that was chosen has to be beaten clearly. The table is
looked at again when it has doubled, or the queries are others: so the choice does not flap.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from bronze.delta import actions, commit, files
from bronze.delta.layout.hilbert import along, scales
from bronze.delta.log import State
from bronze.delta.properties import CLUSTERING, TableProperties
from bronze.delta.read.clustering import CLUSTERED, Columns
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.printable import count

FEWEST_FILES = 4
"""A table of fewer files of the target size has nothing to skip."""
GROWTH = 2.0
"""A table is looked at again when it is this many times as large."""
# The gain, in the share of bytes that a filter skips, for which a table is rewritten: it pays after
# as many filters over the whole table as it goes into 1. A choice that exists has to be beaten by
# more.
_WORTH, _BEATEN = 0.10, 0.15
_SAMPLE = 20_000
_CANDIDATES = 8
_PROBES = 24
_WIDTH = 0.05
# The row groups of a file that are read.
_LOOKS = 8
_MOST_PARTS = 128
# Values of a text that many rows share are filtered by, as states and codes are.
_FEW = 1_000


@dataclass(frozen=True)
class Queries:
    """The filters of a query log: how often each column of the table is compared with a value, and
    whether with single ones (``points``) or ranges; none where there is no log.
    """

    points: Mapping[str, int] = field(default_factory=dict)
    ranges: Mapping[str, int] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """What the choice depends on: which columns are filtered, and about how often."""
        total = sum(self.points.values()) + sum(self.ranges.values())
        parts = {
            f"{kind} {name}": round(10 * count / total)
            for kind, counts in (("point", self.points), ("range", self.ranges))
            for name, count in counts.items()
        }
        return json.dumps(parts, sort_keys=True) if total else ""


@dataclass(frozen=True)
class Choice:
    """What was chosen: the columns (none if nothing is worth it), why, the bytes that the table had
    then, and the fingerprint of the queries.
    """

    by: tuple[str, ...]
    why: str
    size: int
    queries: str

    @classmethod
    def read(cls, text: str) -> Choice | None:
        """The choice in a property; None if there is none that can be read."""
        try:
            value = json.loads(text)
            return cls(tuple(map(str, value["by"])), value["why"], value["size"], value["queries"])
        except (ValueError, TypeError, LookupError, RecursionError):
            return None

    @property
    def text(self) -> str:
        """The choice as a property."""
        value = {"by": self.by, "why": self.why, "size": self.size, "queries": self.queries}
        return json.dumps(value, ensure_ascii=False)


Steps = Generator[tuple[Any, Sequence[Any]], list[Any], Choice]


@dataclass(frozen=True)
class Sampling:
    """The job to sample every ``step``-th row of a file; ``number`` is its place by arrival."""

    place: Place
    file: StoredFile
    layout: Columns
    number: int
    step: int


@dataclass(frozen=True)
class Question:
    """The job to choose: the samples by arrival, the key, the present choice, how many files the
    table has by its target size, its bytes, and the filters of its queries.
    """

    samples: tuple[pl.DataFrame, ...] = field(repr=False)
    key: tuple[str, ...]
    present: tuple[str, ...]
    parts: int
    size: int
    queries: Queries


@dataclass(frozen=True)
class _Filter:
    """The filters on a column and their weight."""

    column: str
    weight: float
    is_range: bool
    reason: str


def chosen(state: State) -> tuple[str, ...]:
    """The columns of the table that bronze has chosen to cluster it by."""
    stored = Choice.read(TableProperties.read(state.properties).clustering_choice)
    known = {name for name, kind in state.columns if kind.name in CLUSTERED}
    return tuple(name for name in stored.by if name in known) if stored else ()


def is_needed(state: State, target: int, queries: Queries) -> bool:
    """Whether the columns are to be chosen, or looked at again; only the log is read."""
    size = sum(file.size for file in state.files)
    if size < target * FEWEST_FILES:
        return False
    stored = Choice.read(TableProperties.read(state.properties).clustering_choice)
    return stored is None or size >= stored.size * GROWTH or stored.queries != queries.fingerprint


def steps(state: State, target: int, queries: Queries) -> Steps:
    """Yields functions with their jobs, gets their results in any order, writes the choice into the
    properties of the table, and returns it.

    Raises:
        CommitConflict: another writer committed since ``state`` was read.
        LakeError, LakeUnreachable: the table cannot be read or written.
    """
    state.writable()
    known = TableProperties.read(state.properties)
    source = set(known.numbers) or {name for name, _ in state.columns}
    unfit = {name for name, (rule, _) in known.protection.items() if not rule.stable}
    unfit |= {name for name, _ in state.columns if name not in source or name == state.partition}
    samples = yield sample, samplings(state.place, state.files, state.columns, unfit)
    size = sum(file.size for file in state.files)
    question = Question(
        samples=tuple(frame for _, frame in sorted(samples, key=lambda one: one[0])),
        key=known.key or (),
        present=chosen(state),
        parts=round(size / target),
        size=size,
        queries=queries,
    )
    results: list[Choice] = yield choose, [question]
    now = int(time.time() * 1000)
    info = actions.commit_info("SET TBLPROPERTIES", {}, False, {}, now)
    notes = {CLUSTERING: results[0].text}
    metadata = actions.table_actions(state, state.columns, state.partition, notes, now)
    commit.commit_actions(state, [info, *metadata], now)
    return results[0]


def samplings(
    place: Place, stored: Sequence[StoredFile], columns: Columns, unfit: Collection[str]
) -> list[Sampling]:
    """The jobs to sample a table; columns that are ``unfit``, or of other types, are left out."""
    layout = [(n, kind) for n, kind in columns if kind.name in CLUSTERED and n not in unfit]
    step = max(1, sum(max(file.rows, 0) for file in stored) // _SAMPLE)
    # The log has the latest file first.
    return [Sampling(place, f, layout, n, step) for n, f in enumerate(reversed(stored))]


def sample(job: Sampling) -> tuple[int, pl.DataFrame]:
    """Some rows of a file, in their order.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    parquet = files.open_parquet(job.place, job.file)
    empty = pl.DataFrame(files.conform(pl.DataFrame().to_arrow(), job.layout, {}, 0))
    count = parquet.num_row_groups
    groups = range(0, count, -(-count // _LOOKS) or 1)
    step = max(1, job.step * len(groups) // max(1, count))
    found = files.parts(parquet, job.layout, None, groups, dict(job.file.partition))
    return job.number, pl.concat([empty, *(pl.DataFrame(t)[::step] for _, t in found)])


def choose(job: Question) -> Choice:
    """Chooses the columns."""
    frame = pl.concat(job.samples)
    parts = int(min(max(job.parts, FEWEST_FILES), _MOST_PARTS, max(1, frame.height // 50)))
    asked = filters_of(frame, job.key, job.queries)
    fingerprint = job.queries.fingerprint
    if not asked or parts < FEWEST_FILES:
        return Choice(job.present, "no column is worth it", job.size, fingerprint)
    present = tuple(name for name in job.present if name in frame.columns)
    now = skipped_share(frame, present, asked, parts)
    names = [one.column for one in asked][:_CANDIDATES]
    tried = [*((name,) for name in names), *itertools.permutations(names, 2)]
    # The curve treats its columns alike but for ties: one order of each pair is enough.
    tried = [by for by in tried if len(by) == 1 or names.index(by[0]) < names.index(by[1])]
    shares = {by: skipped_share(frame, by, asked, parts) for by in tried}
    best = max(shares, key=lambda by: (round(shares[by], 3), -len(by), by == present))
    gain = shares[best] - now
    if best == present or gain < (_BEATEN if present else _WORTH):
        why = _kept(present, now, best, shares[best])
        return Choice(present, why, job.size, fingerprint)
    reasons = "; ".join(f"{one.column} {one.reason}" for one in asked if one.column in best)
    why = (
        f"filters skip {shares[best]:.0%} of the bytes instead of {now:.0%}, so that the rewrite"
        f" pays after {count(max(1, round(1 / gain)), 'read')} ({reasons})"
    )
    return Choice(best, why, job.size, fingerprint)


def _kept(present: Sequence[str], now: float, best: Sequence[str], share: float) -> str:
    kept = f"by {', '.join(present)}" if present else "in the order of arrival"
    return (
        f"filters skip {now:.0%} of the bytes {kept}, and {share:.0%} by {', '.join(best)}: a"
        " rewrite is not worth it"
    )


def filters_of(frame: pl.DataFrame, key: Sequence[str], queries: Queries) -> list[_Filter]:
    """The filters to expect, those of the most weight first: those of the query log; without one,
    by the key, the type and the number of values of each column.
    """
    lower = {name.lower(): name for name in frame.columns}
    total = sum(queries.points.values()) + sum(queries.ranges.values())
    logged = [
        _Filter(lower[name.lower()], count, is_range, f"is in {count:,} of {total:,} filters")
        for counts, is_range in ((queries.points, False), (queries.ranges, True))
        for name, count in counts.items()
        if name.lower() in lower
    ]
    guessed = [one for name in frame.columns if (one := _guess(frame[name], key))]
    found = [one for one in logged or guessed if frame[one.column].n_unique() > 1]
    return sorted(found, key=lambda one: (-one.weight, one.column))


def _guess(values: pl.Series, key: Sequence[str]) -> _Filter | None:
    """The filters to expect on a column of which nothing is known but its values."""
    name, distinct = values.name, values.n_unique()
    if name in key:
        return _Filter(name, 1.0, False, "is of the key")
    if values.dtype.is_temporal():
        return _Filter(name, 1.0, True, "is a time")
    is_unique = distinct > values.len() * 0.9
    if values.dtype.is_integer() and not is_unique:
        return _Filter(name, 1.0, False, f"has {count(distinct, 'value')} in a sample")
    if distinct <= _FEW and not is_unique:
        return _Filter(name, 0.5, False, f"has {count(distinct, 'value')} in a sample")
    return None


def skipped_share(
    frame: pl.DataFrame, by: Sequence[str], asked: Sequence[_Filter], parts: int
) -> float:
    """The weighted share of files that filters skip, were the rows cut along the curve through
    ``by`` into ``parts``; without columns, in their own order.
    """
    ordered = frame[along(frame, scales(frame, by))[0]] if by else frame
    number = pl.Series("part", np.arange(frame.height) * parts // frame.height)
    columns = list(dict.fromkeys(one.column for one in asked))
    bounds = (
        ordered.select(columns)
        .with_columns(number)
        .group_by("part", maintain_order=True)
        .agg(
            *(pl.col(n).min().alias(f"{n}\0low") for n in columns),
            *(pl.col(n).max().alias(f"{n}\0high") for n in columns),
        )
    )
    weight = sum(one.weight for one in asked)
    return sum(one.weight * _skipped(frame[one.column], bounds, one) for one in asked) / weight


def _skipped(values: pl.Series, bounds: pl.DataFrame, asked: _Filter) -> float:
    """The mean share of files that points, or ranges of some width, of a column skip."""
    known = values.drop_nulls().sort()
    low, high = bounds[f"{asked.column}\0low"], bounds[f"{asked.column}\0high"]
    width = int(len(known) * _WIDTH) if asked.is_range else 0
    shares: list[Any] = []
    for place in np.linspace(0, len(known) - 1 - width, _PROBES).astype(int).tolist():
        outside = (high < known[place]) | (low > known[place + width])
        # A file of NULLs alone has no bounds, and nothing to find.
        shares.append(outside.fill_null(True).mean())
    return float(np.mean(shares))
