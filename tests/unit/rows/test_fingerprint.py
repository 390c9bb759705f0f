"""Fingerprints: what they are of, and that they do not depend on how values lie in memory."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.rows import fingerprint

IN_MEMORY = settings(derandomize=True, database=None, deadline=None, max_examples=40)
HASHES = st.lists(st.text("0123456789abcdef", min_size=32, max_size=32), min_size=1, max_size=20)


def chunked(series: pl.Series, at: int) -> pl.Series:
    """The same values in two chunks."""
    both = pl.concat([series[:at], series[at:]], rechunk=False)
    assert both.equals(series)
    return both


def numbers(texts: list[str], offset: int) -> list[int]:
    """What the digits mean, with their bytes in the machine's order."""
    pairs = [bytes.fromhex(text[offset : offset + 16]) for text in texts]
    return [int.from_bytes(eight, "little") for eight in pairs]


@IN_MEMORY
@given(texts=HASHES, offset=st.integers(0, 16), data=st.data())
def test_a_hashs_fingerprint_is_sixteen_of_its_digits(
    texts: list[str], offset: int, data: st.DataObject
) -> None:
    """Whatever the offset, and however the hashes lie in memory: sliced, in chunks, or among NULLs
    that were filtered away.
    """
    wanted = numbers(texts, offset)
    series = pl.Series(texts)
    low = data.draw(st.integers(0, len(texts)))
    high = data.draw(st.integers(low, len(texts)))
    found = fingerprint.of_hashes(series, offset)
    assert found.dtype == np.uint64
    assert found.tolist() == wanted
    assert fingerprint.of_hashes(series[low:high], offset).tolist() == wanted[low:high]
    assert fingerprint.of_hashes(chunked(series, low), offset).tolist() == wanted
    gaps = pl.concat([pl.Series([None], dtype=pl.String), series]).drop_nulls()
    assert fingerprint.of_hashes(gaps, offset).tolist() == wanted
    mask = [i % 2 == 0 for i in range(len(texts))]
    assert fingerprint.of_hashes(series.filter(mask), offset).tolist() == wanted[::2]


def test_no_hashes_have_no_fingerprints() -> None:
    """Nothing comes of nothing, for hashes and for keys of any kind."""
    assert fingerprint.of_hashes(pl.Series([], dtype=pl.String), 3).tolist() == []
    for kind in (pl.Int32, pl.String, pl.Date, pl.Decimal(9, 2)):
        found = fingerprint.of_keys([pl.Series([], dtype=kind)])
        assert found.tolist() == []
        assert found.dtype == np.uint64
        assert fingerprint.of_keys([pl.Series([], dtype=kind)] * 2).tolist() == []


_WHOLE = {
    pl.Int16: st.integers(-(2**15), 2**15 - 1),
    pl.Int32: st.integers(-(2**31), 2**31 - 1),
    pl.Int64: st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), -1, 0, 2**63 - 1]),
}


@IN_MEMORY
@given(data=st.data(), kind=st.sampled_from(sorted(_WHOLE, key=str)))
def test_two_integers_never_share_a_fingerprint(data: st.DataObject, kind: Any) -> None:
    """Of integers the fingerprint is the number itself: none is lost, negative or large."""
    values = data.draw(st.lists(_WHOLE[kind], max_size=20, unique=True))
    found = fingerprint.of_keys([pl.Series(values, dtype=kind)])
    assert found.tolist() == [value % 2**64 for value in values]
    assert len(set(found.tolist())) == len(values)


def test_an_integer_of_any_width_is_the_same() -> None:
    """A key that became wider in the source is still the key that the table has."""
    found = [
        fingerprint.of_keys([pl.Series([-5, 0, 7], dtype=kind)]).tolist()
        for kind in (pl.Int16, pl.Int32, pl.Int64)
    ]
    assert found[0] == found[1] == found[2]


_KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pl.Int64, st.integers(-3, 3)),
    (pl.String, st.text("a\0é", max_size=3)),
    (pl.Date, st.dates(dt.date(2024, 1, 1), dt.date(2024, 1, 5))),
    (pl.Decimal(12, 2), st.integers(-5, 5).map(lambda i: Decimal(i).scaleb(-2))),
    (pl.Datetime("us", "UTC"), st.datetimes().map(lambda at: at.replace(tzinfo=dt.UTC))),
    (pl.Boolean, st.booleans()),
]


@st.composite
def keys(draw: st.DrawFn) -> pl.DataFrame:
    """Keys of one to three columns."""
    kinds = draw(st.lists(st.sampled_from(_KINDS), min_size=1, max_size=3))
    height = draw(st.integers(1, 12))
    lists = [draw(st.lists(values, min_size=height, max_size=height)) for _, values in kinds]
    return pl.DataFrame(
        [
            pl.Series(f"c{i}", values, dtype=kind)
            for i, (values, (kind, _)) in enumerate(zip(lists, kinds, strict=True))
        ]
    )


@IN_MEMORY
@given(frame=keys(), data=st.data())
def test_a_keys_fingerprint_does_not_depend_on_its_place(
    frame: pl.DataFrame, data: st.DataObject
) -> None:
    """The same key has the same fingerprint, sliced, in chunks or alone; other keys have others."""
    whole = fingerprint.of_keys(frame.get_columns()).tolist()
    low = data.draw(st.integers(0, frame.height))
    high = data.draw(st.integers(low, frame.height))
    assert fingerprint.of_keys(frame[low:high].get_columns()).tolist() == whole[low:high]
    parts = pl.concat([frame[:low], frame[low:]], rechunk=False)
    assert fingerprint.of_keys(parts.get_columns()).tolist() == whole
    back = fingerprint.of_keys(frame.reverse().get_columns()).tolist()
    assert back == whole[::-1]
    pairs = set(zip(frame.rows(), whole, strict=True))
    assert len(pairs) == len({row for row, _ in pairs}) == len({one for _, one in pairs})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab", "c"], ["a", "bc"]),
        (["", "x"], ["x", ""]),
        ([1, 2], [2, 1]),
        ([1, 256], [256, 1]),
    ],
)
def test_columns_of_a_key_do_not_run_together(one: list[Any], other: list[Any]) -> None:
    """Two keys whose columns hold the same together are two."""
    both = [pl.Series(list(pair)) for pair in zip(one, other, strict=True)]
    assert len(set(fingerprint.of_keys(both).tolist())) == 2


@IN_MEMORY
@given(texts=HASHES, data=st.data())
def test_totals_add_up(texts: list[str], data: st.DataObject) -> None:
    """The total of parts, in any order, is that of the whole; both halves overflow on their own."""
    series = pl.Series(texts)
    halves = [sum(numbers(texts, offset)) % 2**64 for offset in (0, 16)]
    whole = fingerprint.total(series)
    assert whole == halves[0] << 64 | halves[1]
    low = data.draw(st.integers(0, len(texts)))
    mixed = pl.Series(data.draw(st.permutations(texts)))
    parts = [fingerprint.total(part) for part in (mixed[:low], mixed[low:])]
    assert fingerprint.added(*parts) == whole
    assert fingerprint.added(whole, 0) == whole
