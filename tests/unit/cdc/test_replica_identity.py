"""Rows known by their identity: what is left of moves is what a table in memory has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.cdc import replica_identity
from bronze.cdc.replica_identity import LINE, PART, Rows
from tests.support.effort import examples

Row = tuple[str, str | None]
Step = tuple[str, Row, int]

_ROW = st.tuples(st.sampled_from(["1", "2", "3"]), st.sampled_from(["a", "b", None]))
_STEP = st.tuples(
    st.sampled_from(["insert", "update", "update", "delete"]), _ROW, st.integers(0, 9)
)


def played(rows: Sequence[Row], steps: Sequence[Step]) -> tuple[Rows, list[Row]]:
    """What is left of some steps, each in the row at its place; and the model's rows at the end."""
    now = list(rows)
    moved: dict[int, list[tuple[Row, int]]] = {-1: [], 1: []}
    for line, (action, new, place) in enumerate(steps):
        if action != "insert":
            if not now:
                continue
            moved[-1].append((now.pop(place % len(now)), line))
        if action != "delete":
            now.append(new)
            moved[1].append((new, line))
    frames = [
        replica_identity.moves(
            pl.DataFrame([row for row, _ in found], {"k": pl.String, "v": pl.String}, orient="row"),
            ["k"],
            sign,
            7,
            np.array([line for _, line in found], np.int64),
        )
        for sign, found in moved.items()
    ]
    return replica_identity.net_rows(pl.concat(frames).sort(LINE, maintain_order=True), ["k"]), now


def keys(frame: pl.DataFrame) -> Counter[str]:
    """How many rows there are of each key."""
    return Counter(frame["k"].to_list())


@settings(derandomize=True, database=None, max_examples=examples(50), deadline=None)
@given(rows=st.lists(_ROW, max_size=4), steps=st.lists(_STEP, max_size=12))
def test_rows_are_counted_whatever_keys_they_share(rows: list[Row], steps: list[Step]) -> None:
    """What went and what came turn the keys of the rows at first into those of the model's at the
    end; and each row that came stands where one like it was made that is there.
    """
    found, now = played(rows, steps)
    before, after = Counter(k for k, _ in rows), Counter(k for k, _ in now)
    assert not keys(found.went) - before
    assert before - keys(found.went) + keys(found.came) == after
    brought = Counter(steps[line][1] for part, line in found.came.select(PART, LINE).rows())
    assert not brought - Counter(now)


def test_rows_that_swap_keys_are_both_there() -> None:
    """Though in between both have the same one."""
    found, _ = played(
        [("1", "a"), ("2", "b")], [("update", ("2", "a"), 0), ("update", ("1", "b"), 0)]
    )
    assert found.came.sort("k").rows() == [("1", 7, 1), ("2", 7, 0)]
    assert keys(found.went) == Counter("12")
