"""Rows known by their replica identity: what is left of a table's changes where rows may share a
key, be it for a moment.

PostgreSQL checks a deferrable key when the transaction ends, and a key that the config names
perhaps never. In between, two rows may have the same one: the delete of a key may mean either.
What the stream tells of a row before a change does not: either it is unique (a replica identity's
index), or it is the whole row, and rows that are alike in every column may stand for each other.
So a change takes one row away (a *move* of -1) and brings one (+1), and it is counted how many
rows with this identity there were at first, and are at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze.rows import fingerprint, metadata

SIGN, PART, LINE = "\0sign", "\0part", "\0line"
_TOKEN = ("\0high", "\0low")


@dataclass(frozen=True)
class Rows:
    """Rows by their keys: ``came`` are there now, and have changed or are new, with the `PART` and
    the `LINE` where they stand; ``went`` were in the table, and have changed or are gone. A key is
    in one of them as often as there are rows.
    """

    came: pl.DataFrame = field(repr=False)
    went: pl.DataFrame = field(repr=False)


def moves(
    rows: pl.DataFrame,
    key: Sequence[str],
    sign: int,
    part: int,
    lines: npt.NDArray[np.int64],
) -> pl.DataFrame:
    """Rows, as the texts of the columns that identify them, that come (1) or go (-1).

    Args:
        rows: one for each of ``lines``.
        key: which of their columns are the key.
        sign: 1 or -1.
        part: the piece of the batch in which they are.
        lines: their numbers there.
    """
    nothing = pl.repeat(None, rows.height, dtype=pl.String, eager=True)
    hashes = metadata.row_hashes_of(rows, nothing, rows.width)
    tokens = [
        pl.Series(name, fingerprint.of_hashes(hashes, offset))
        for name, offset in zip(_TOKEN, (0, 16), strict=True)
    ]
    return rows.select(key).with_columns(
        *tokens,
        pl.lit(sign, pl.Int32).alias(SIGN),
        pl.lit(part, pl.Int32).alias(PART),
        pl.Series(LINE, lines),
    )


def net_rows(moves: pl.DataFrame, key: Sequence[str]) -> Rows:
    """What is left of moves, in the order in which they were made."""
    high, low = (moves[name].to_numpy() for name in _TOKEN)
    order = np.lexsort((low, high))
    high, low, sign = high[order], low[order], moves[SIGN].to_numpy()[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    starts = np.flatnonzero(first)
    if not len(starts):
        return Rows(moves.select(*key, PART, LINE), moves.select(key))
    ends = np.append(starts[1:], len(order)) - 1
    counts = np.cumsum(sign, dtype=np.int64)
    counts -= np.repeat(counts[starts] - sign[starts], ends - starts + 1)
    # More go than have come: the others were in the table.
    before = np.maximum(-np.minimum.reduceat(counts, starts), 0)
    after = counts[ends] + before
    latest = np.maximum.reduceat(np.where(sign > 0, np.arange(len(order)), -1), starts)
    came = np.sort(np.repeat(order[latest], after))
    went = np.sort(np.repeat(order[starts], before))
    return Rows(moves[came].select(*key, PART, LINE), moves[went].select(key))
