"""Fingerprints of row hashes and keys, and that slices and chunks do not change them."""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.rows import fingerprint
from tests.support.effort import examples

IN_MEMORY = settings(derandomize=True, database=None, deadline=None, max_examples=examples(15))
HASHES = st.lists(st.text("0123456789abcdef", min_size=32, max_size=32), min_size=1, max_size=20)


def chunked(series: pl.Series, at: int) -> pl.Series:
    """The same values in two chunks."""
    chunks = pl.concat([series[:at], series[at:]], rechunk=False)
    assert chunks.equals(series)
    return chunks


def numbers(texts: list[str], offset: int) -> list[int]:
    """Sixteen hexadecimal digits of each text from the offset on, as little-endian integers."""
    parts = [bytes.fromhex(text[offset : offset + 16]) for text in texts]
    return [int.from_bytes(part, "little") for part in parts]


@IN_MEMORY
@given(texts=HASHES, offset=st.integers(0, 16), data=st.data())
def test_fingerprint_of_a_row_hash_is_sixteen_of_its_digits(
    texts: list[str], offset: int, data: st.DataObject
) -> None:
    """At any offset, and whether the hashes are sliced, in chunks, or filtered from among NULLs."""
    expected = numbers(texts, offset)
    series = pl.Series(texts)
    low = data.draw(st.integers(0, len(texts)))
    high = data.draw(st.integers(low, len(texts)))
    actual = fingerprint.of_hashes(series, offset)
    assert actual.dtype == np.uint64
    assert actual.tolist() == expected
    assert fingerprint.of_hashes(series[low:high], offset).tolist() == expected[low:high]
    assert fingerprint.of_hashes(chunked(series, low), offset).tolist() == expected
    gaps = pl.concat([pl.Series([None], dtype=pl.String), series]).drop_nulls()
    assert fingerprint.of_hashes(gaps, offset).tolist() == expected
    mask = [i % 2 == 0 for i in range(len(texts))]
    assert fingerprint.of_hashes(series.filter(mask), offset).tolist() == expected[::2]


MALFORMED = st.none() | st.text("0a9fAgé ", max_size=33) | st.text("0fAg", min_size=32, max_size=32)


@IN_MEMORY
@given(HASHES, st.lists(MALFORMED, max_size=3), st.randoms(), st.integers(0, 20))
def test_malformed_hashes_become_zeros(
    whole: list[str], malformed: list[str | None], random: Any, at: int
) -> None:
    """Only they: a hash has 32 hexadecimal digits of lower case, in slices and chunks as well."""
    texts: list[str | None] = [*whole, *malformed]
    random.shuffle(texts)
    pattern = re.compile("[0-9a-f]{32}")
    formed = [text is not None and pattern.fullmatch(text) is not None for text in texts]
    expected = [text if ok else "0" * 32 for text, ok in zip(texts, formed, strict=True)]
    series = pl.Series(texts, dtype=pl.String)
    for hashes, start in ((series, 0), (chunked(series, at), 0), (series[at:], at)):
        kept, known = fingerprint.with_zeros(hashes)
        assert kept.to_list() == expected[start:]
        assert known.to_list() == formed[start:]


@pytest.mark.parametrize("digits", [16, 32])
def test_well_formed_hashes_have_their_number_of_lower_case_digits(digits: int) -> None:
    """One malformed value is found among well-formed ones, also where all values together have the
    length of well-formed ones, and in any slice.
    """
    good = [f"{i:0{digits}x}" for i in range(10, 14)]
    assert fingerprint.is_well_formed(pl.Series(good), digits).to_list() == [True] * 4
    assert fingerprint.is_well_formed(pl.Series([], dtype=pl.String), digits).to_list() == []
    for bad in (
        good[0].upper(),
        good[0][:-1] + "g",
        good[0][:-2] + "é",
        good[0][:-1],
        good[0] + "0",
        "",
        None,
    ):
        series = pl.Series([*good, bad, *good], dtype=pl.String)
        expected = [True] * 4 + [False] + [True] * 4
        assert fingerprint.is_well_formed(series, digits).to_list() == expected, bad
        assert fingerprint.is_well_formed(series[3:6], digits).to_list() == [True, False, True]
        assert fingerprint.is_well_formed(series[:4], digits).all()
        zeros, known = fingerprint.with_zeros(series, digits)
        assert zeros[4] == "0" * digits
        assert known.to_list() == expected
    uneven = pl.Series([good[0][:-1], good[1] + "0"])
    assert fingerprint.is_well_formed(uneven, digits).to_list() == [False, False]


@IN_MEMORY
@given(texts=HASHES, data=st.data())
def test_halves_and_checksums_are_the_numbers_of_their_digits(
    texts: list[str], data: st.DataObject
) -> None:
    """Both halves of a row hash are read as little-endian integers, a checksum as big-endian."""
    low = data.draw(st.integers(0, len(texts)))
    halves = [list(pair) for pair in zip(numbers(texts, 0), numbers(texts, 16), strict=True)]
    assert fingerprint.halves_of(pl.Series(texts)[low:]).tolist() == halves[low:]
    sums = pl.Series([text[:16] for text in texts])
    assert fingerprint.of_checksums(sums[low:]).tolist() == [int(s, 16) for s in sums[low:]]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_hashes_are_read_in_slices(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several slices, whole and not, as of one; a malformed hash is found in any of them."""
    monkeypatch.setattr(fingerprint, "_ROWS", 4)
    texts = [f"{i * 0x1234567:016x}{i * 0x7654321:016x}" for i in range(1, count + 1)]
    hashes = pl.Series(texts)
    for offset in (0, 3, 16):
        assert fingerprint.of_hashes(hashes, offset).tolist() == numbers(texts, offset)
    halves = zip(numbers(texts, 0), numbers(texts, 16), strict=True)
    assert fingerprint.halves_of(hashes).tolist() == [list(pair) for pair in halves]
    sums = hashes.str.slice(0, 16)
    assert fingerprint.of_checksums(sums).tolist() == [int(text, 16) for text in sums]
    assert fingerprint.is_well_formed(hashes).all()
    for at in range(count):
        formed = fingerprint.is_well_formed(pl.Series([*texts[:at], "x" * 32, *texts[at + 1 :]]))
        assert formed.to_list() == [number != at for number in range(count)]


def test_no_rows_have_no_fingerprints() -> None:
    """The fingerprints of no hashes and of no keys, of any type, are an empty array."""
    assert fingerprint.of_hashes(pl.Series([], dtype=pl.String), 3).tolist() == []
    for kind in (pl.Int32, pl.String, pl.Date, pl.Decimal(9, 2)):
        actual = fingerprint.of_keys([pl.Series([], dtype=kind)])
        assert actual.tolist() == []
        assert actual.dtype == np.uint64
        assert fingerprint.of_keys([pl.Series([], dtype=kind)] * 2).tolist() == []


_INTEGERS = {
    pl.Int16: st.integers(-(2**15), 2**15 - 1),
    pl.Int32: st.integers(-(2**31), 2**31 - 1),
    pl.Int64: st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), -1, 0, 2**63 - 1]),
}


@IN_MEMORY
@given(data=st.data(), kind=st.sampled_from(sorted(_INTEGERS, key=str)))
def test_two_integers_never_share_a_fingerprint(data: st.DataObject, kind: Any) -> None:
    """The fingerprint of an integer is the number itself, also if it is negative or large."""
    values = data.draw(st.lists(_INTEGERS[kind], max_size=20, unique=True))
    actual = fingerprint.of_keys([pl.Series(values, dtype=kind)])
    assert actual.tolist() == [value % 2**64 for value in values]
    assert len(set(actual.tolist())) == len(values)


def test_fingerprint_of_an_integer_does_not_depend_on_its_width() -> None:
    """A key that was widened in the source has the fingerprints it had before."""
    actual = [
        fingerprint.of_keys([pl.Series([-5, 0, 7], dtype=kind)]).tolist()
        for kind in (pl.Int16, pl.Int32, pl.Int64)
    ]
    assert actual[0] == actual[1] == actual[2]


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
def test_fingerprint_of_a_key_does_not_depend_on_other_rows(
    frame: pl.DataFrame, data: st.DataObject
) -> None:
    """Equal keys have equal fingerprints, sliced, in chunks or reversed; different keys differ."""
    whole = fingerprint.of_keys(frame.get_columns()).tolist()
    low = data.draw(st.integers(0, frame.height))
    high = data.draw(st.integers(low, frame.height))
    assert fingerprint.of_keys(frame[low:high].get_columns()).tolist() == whole[low:high]
    parts = pl.concat([frame[:low], frame[low:]], rechunk=False)
    assert fingerprint.of_keys(parts.get_columns()).tolist() == whole
    reversed_rows = fingerprint.of_keys(frame.reverse().get_columns()).tolist()
    assert reversed_rows == whole[::-1]
    pairs = set(zip(frame.rows(), whole, strict=True))
    assert len(pairs) == len({row for row, _ in pairs}) == len({print_ for _, print_ in pairs})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["ab", "c"], ["a", "bc"]),
        (["", "x"], ["x", ""]),
        ([1, 2], [2, 1]),
        ([1, 256], [256, 1]),
    ],
)
def test_columns_of_a_key_are_not_concatenated(first: list[Any], second: list[Any]) -> None:
    """Keys whose columns are equal only when concatenated or swapped have two fingerprints."""
    columns = [pl.Series(list(pair)) for pair in zip(first, second, strict=True)]
    assert len(set(fingerprint.of_keys(columns).tolist())) == 2


@IN_MEMORY
@given(texts=HASHES, data=st.data())
def test_totals_of_parts_add_up_to_the_total(texts: list[str], data: st.DataObject) -> None:
    """In any order of the rows; the two halves of a total overflow independently."""
    series = pl.Series(texts)
    halves = [sum(numbers(texts, offset)) % 2**64 for offset in (0, 16)]
    whole = fingerprint.total(series)
    assert whole == halves[0] << 64 | halves[1]
    low = data.draw(st.integers(0, len(texts)))
    mixed = pl.Series(data.draw(st.permutations(texts)))
    parts = [fingerprint.total(part) for part in (mixed[:low], mixed[low:])]
    assert fingerprint.sum_of_totals(*parts) == whole
    assert fingerprint.sum_of_totals(whole, 0) == whole
