"""Net rows: counting moves by identity leads to the rows of a model in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.cdc import net_changes
from bronze.cdc.net_changes import Rows
from bronze.cdc.row_changes import LINE, PART
from tests.support.effort import examples

Row = tuple[str, str | None]
Step = tuple[str, Row, int]

_ROW = st.tuples(st.sampled_from(["1", "2", "3"]), st.sampled_from(["a", "b", None]))
_STEP = st.tuples(
    st.sampled_from(["insert", "update", "update", "delete"]), _ROW, st.integers(0, 9)
)


def net_and_model(rows: Sequence[Row], steps: Sequence[Step]) -> tuple[Rows, list[Row]]:
    """The net rows of some steps, each of the row at its place; and the model's rows after them."""
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
        net_changes.moves(
            pl.DataFrame([row for row, _ in found], {"k": pl.String, "v": pl.String}, orient="row"),
            ["k"],
            sign,
            7,
            np.array([line for _, line in found], np.int64),
        )
        for sign, found in moved.items()
    ]
    return net_changes.net_rows(pl.concat(frames).sort(LINE, maintain_order=True), ["k"]), now


def keys(frame: pl.DataFrame) -> Counter[str]:
    """How many rows there are of each key."""
    return Counter(frame["k"].to_list())


@settings(derandomize=True, database=None, max_examples=examples(50), deadline=None)
@given(rows=st.lists(_ROW, max_size=4), steps=st.lists(_STEP, max_size=12))
def test_net_rows_lead_to_the_models_rows(rows: list[Row], steps: list[Step]) -> None:
    """Whatever keys rows share: without the rows before, and with those after, the keys are those
    of the model; and the change of each row after the batch has a row that the model has.
    """
    net, now = net_and_model(rows, steps)
    before, after = Counter(k for k, _ in rows), Counter(k for k, _ in now)
    assert not keys(net.before) - before
    assert before - keys(net.before) + keys(net.after) == after
    added = Counter(steps[line][1] for part, line in net.after.select(PART, LINE).rows())
    assert not added - Counter(now)


def test_rows_that_swap_keys_are_both_kept() -> None:
    """Although both have the same key in between."""
    net, _ = net_and_model(
        [("1", "a"), ("2", "b")], [("update", ("2", "a"), 0), ("update", ("1", "b"), 0)]
    )
    assert net.after.sort("k").rows() == [("1", 7, 1), ("2", 7, 0)]
    assert keys(net.before) == Counter("12")
