"""Scores: the points that rows lose, the counts, and the examples."""

from __future__ import annotations

import datetime as dt
import json
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.errors import TableRefused
from bronze.ingest.enrich import enrich
from bronze.model.quality import POINTS, QualityRules, QualityTotals, ResolvedRule, Severity
from bronze.model.stamp import RowStamp
from bronze.model.units import Enrichment
from bronze.quality.scoring import score_rows, with_fingerprints
from tests.support.effort import examples

MOMENT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
STAMP = RowStamp("018df7a0-0000-7000-8000-000000000000", MOMENT, "shop", "batch", "a lineage")
PROVEN = settings(derandomize=True, database=None, deadline=None, max_examples=examples(20))


def criterion(name: str, holds: pl.Expr, severity: Severity = "medium") -> ResolvedRule:
    """A rule of an expression."""
    columns = tuple(holds.meta.root_names())
    return ResolvedRule(
        name, "expression", columns, severity, "config", holds=holds.meta.serialize()
    )


def nothing(height: int) -> pl.Series:
    """Rejected values of rows that have none."""
    return pl.Series([None] * height, dtype=pl.String)


ROWS = pl.DataFrame({"id": [1, 2, 3, 4], "q": [5, -1, None, -7], "s": ["a", "b", None, "a"]})
SAME = (("id", "id"), ("q", "q"), ("s", "s"))


def quality(*criteria: ResolvedRule, **more: Any) -> QualityRules:
    """The rules for `ROWS`."""
    return QualityRules(criteria, **{"names": SAME, "key": ("id",), **more})


def test_each_broken_rule_costs_the_points_of_its_severity() -> None:
    """100 minus 5, 10, 25 or 100, and never below 0; NULL breaks no rule."""
    assert POINTS == {"low": 5, "medium": 10, "high": 25, "critical": 100}
    for severity, points in POINTS.items():
        rule = criterion("positive", pl.col("q") > 0, severity)
        scores, found = score_rows(ROWS, nothing(4), STAMP, quality(rule))
        assert scores is not None
        assert scores.to_list() == [100, 100 - points, 100, 100 - points]
        assert found.total == 400 - 2 * points
    several = [criterion(str(i), pl.col("q") > 0, "high") for i in range(5)]
    scores, _ = score_rows(ROWS, nothing(4), STAMP, quality(*several))
    assert scores is not None
    assert scores.to_list() == [100, 0, 100, 0]


def test_a_rule_that_a_row_meets_changes_no_score() -> None:
    """The number of rules that a row meets does not dilute the others."""
    bad = criterion("positive", pl.col("q") > 0, "high")
    good = [criterion(str(i), pl.col("id") > 0, "critical") for i in range(20)]
    alone, _ = score_rows(ROWS, nothing(4), STAMP, quality(bad))
    among, _ = score_rows(ROWS, nothing(4), STAMP, quality(*good, bad))
    assert alone is not None
    assert among is not None
    assert alone.to_list() == among.to_list()


@pytest.mark.parametrize(("threshold", "status"), [(75, "ACTIVE"), (76, "QUARANTINED")])
def test_rows_below_the_threshold_are_quarantined(threshold: int, status: str) -> None:
    """Rows at the threshold are not."""
    wanted = quality(criterion("positive", pl.col("q") > 0, "high"), threshold=threshold)
    enriched = enrich(ROWS, nothing(4), STAMP, 3, Enrichment(quality=wanted))
    made, found = enriched.rows, enriched.findings
    assert made["data_quality_score"].to_list() == [100, 75, 100, 75]
    assert made["record_status"].cast(pl.String).to_list() == ["ACTIVE", status, "ACTIVE", status]
    assert found.quality.quarantined == (2 if status == "QUARANTINED" else 0)
    assert found.quality.flawed == 2


def test_slices_have_the_same_schema() -> None:
    """Whether or not they have a quarantined row, so that they can be concatenated."""
    wanted = Enrichment(quality=quality(criterion("positive", pl.col("q") > 0, "high")))
    parts = [enrich(ROWS[i : i + 1], nothing(1), STAMP, 3, wanted).rows for i in range(4)]
    assert pl.concat(parts).schema == parts[0].schema
    assert pl.concat(parts)["data_quality_score"].to_list() == [100, 75, 100, 75]


def test_a_rejected_value_breaks_the_schema_rule_of_its_column() -> None:
    """Whatever the name of the column and the text of the value."""
    name = 'odd "na.me\\'
    rule = ResolvedRule("schema", "schema", (name,), "medium", "derived", rejects=name)
    other = ResolvedRule("other", "schema", ("na",), "low", "derived", rejects="na")
    lines = [json.dumps([name, "NaN"]), json.dumps(["x", f'\n["na", "{name}"]'])]
    rejected = pl.Series([lines[0] + "\n", lines[1] + "\n", None, "\n".join([*lines, ""])])
    scores, found = score_rows(ROWS, rejected, STAMP, quality(rule, other))
    assert scores is not None
    assert scores.to_list() == [90, 100, 100, 90]
    assert found.failed == (2, 0)
    assert found.refused == 3


def test_examples_are_keys_only() -> None:
    """Up to five JSON objects of the columns of the key."""
    rows = pl.DataFrame({"a": range(9), "b": ["x"] * 9, "secret": ["s3cret"] * 9})
    wanted = QualityRules(
        (criterion("none", pl.col("secret") == ""),),
        names=(("a", "a"), ("b", "b"), ("secret", "secret")),
        key=("a", "b"),
    )
    _, found = score_rows(rows, nothing(9), STAMP, wanted)
    assert [json.loads(text) for text in found.examples[0]] == [
        {"a": i, "b": "x"} for i in range(5)
    ]
    _, without = score_rows(
        rows, nothing(9), STAMP, QualityRules(wanted.criteria, names=wanted.names)
    )
    assert without.examples == ((),)


def test_rules_use_the_names_of_the_source() -> None:
    """Also for a column with a different name in Bronze."""
    rows = pl.DataFrame({"id": [1, 2], "b": [1, -1]})
    wanted = QualityRules(
        (criterion("positive", pl.col("a") > 0),), names=(("id", "id"), ("a", "b")), key=("id",)
    )
    scores, found = score_rows(rows, nothing(2), STAMP, wanted)
    assert scores is not None
    assert scores.to_list() == [100, 90]
    assert found.examples == (('{"id": 2}',),)


def test_the_error_of_a_failing_expression_has_no_value() -> None:
    """It names the rule; the message of polars would quote the value that cannot be cast."""
    rows = pl.DataFrame({"s": ["1", "s3cret"]})
    wanted = QualityRules(
        (
            criterion("fine", pl.col("s") != ""),
            criterion("a number", pl.col("s").cast(pl.Int64) > 0),
        ),
        names=(("s", "s"),),
    )
    with pytest.raises(TableRefused, match="'a number' fails") as caught:
        score_rows(rows, nothing(2), STAMP, wanted)
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"
    assert "TRY_CAST" in caught.value.hint


@PROVEN
@given(
    st.lists(
        st.tuples(st.none() | st.integers(-3, 3), st.none() | st.sampled_from("abc")), max_size=30
    ),
    st.lists(st.sampled_from(list(POINTS)), min_size=3, max_size=3),
    st.integers(1, 9),
)
def test_scores_do_not_depend_on_slices(
    cells: list[tuple[int | None, str | None]], severities: list[Severity], step: int
) -> None:
    """Scores, counts and NULLs equal those of a loop over rows, for any size of slices."""
    rules = [
        criterion("positive", pl.col("q") > 0, severities[0]),
        criterion("known", pl.col("s").is_in(["a", "b"]), severities[1]),
        criterion("there", pl.col("q").is_not_null(), severities[2]),
    ]
    frame = pl.DataFrame(cells, schema={"q": pl.Int32, "s": pl.String}, orient="row")
    rows = frame.with_row_index("id")
    wanted = quality(*rules, threshold=80)
    broken = [
        (q is not None and q <= 0, s is not None and s not in "ab", q is None) for q, s in cells
    ]
    expected = [
        max(0, 100 - sum(POINTS[s] for s, bad in zip(severities, row, strict=True) if bad))
        for row in broken
    ]
    parts = [
        score_rows(rows[i : i + step], nothing(len(cells[i : i + step])), STAMP, wanted)
        for i in range(0, len(cells), step)
    ]
    scores = [
        score
        for i, (part, found) in enumerate(parts)
        for score in (part.to_list() if part is not None else [100] * found.rows)
    ]
    found = reduce(add, (found for _, found in parts), QualityTotals())
    assert scores == expected
    assert found.rows == len(cells)
    assert found.total == sum(expected)
    assert found.quarantined == sum(score < 80 for score in expected)
    assert found.flawed == sum(score < 100 for score in expected)
    if cells:
        assert found.failed == tuple(sum(row[i] for row in broken) for i in range(3))
        assert found.nulls == (
            0,
            sum(q is None for q, _ in cells),
            sum(s is None for _, s in cells),
        )
        firsts = [[i for i, row in enumerate(broken) if row[rule]][:5] for rule in range(3)]
        assert [[json.loads(key)["id"] for key in keys] for keys in found.examples] == firsts


@pytest.mark.parametrize("share", [1, 3])
def test_duplicates_have_equal_fingerprints(share: int) -> None:
    """In a sample of fingerprints either all duplicates of a row are, or none."""
    hashes = pl.Series([f"{i:032x}"[::-1] for i in range(300)] * 2)
    found = with_fingerprints(QualityTotals(rows=600), hashes, QualityRules(distinct=share))
    prints = np.frombuffer(b"".join(found.prints), np.uint64)
    assert len(prints) == 600 if share == 1 else 100 < len(prints) < 300
    _, counts = np.unique(prints, return_counts=True)
    assert set(counts) == {2}
    assert with_fingerprints(QualityTotals(rows=600), hashes, QualityRules()).prints == ()
