"""The metadata columns that bronze adds to rows, row_hash and checksum among them."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Any

import polars as pl
import pytest

from bronze.model.stamp import RowStamp
from bronze.postgres.copy.rows_reader import dtype
from bronze.rows import hashing
from bronze.rows.metadata import METADATA_COLUMNS, digests, with_metadata

MOMENT = dt.datetime(2024, 2, 29, 23, 59, 59, 999999, dt.UTC)
STAMP = RowStamp(
    "018df7a0-0000-7000-8000-000000000000", MOMENT, "shop", "full_refresh", "a lineage"
)


@pytest.fixture(autouse=True, params=[hashing._FEW, 0], ids=["few", "many"])
def _as_few_or_many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes few rows in a way of their own, and all rows as many rows are hashed."""
    monkeypatch.setattr(hashing, "_FEW", request.param)


def no_rejected_values(height: int) -> pl.Series:
    """The rejected values of rows that have none."""
    return pl.Series([None] * height, dtype=pl.String)


# A row of one text column is flags (0000), its length, its bytes. The checksums were computed with
# the reference implementation of XXH3; there is a length for each of its branches.
SUMS = [
    ("", "06df73813892fde7"),
    ("a", "3c560962aa446ab3"),
    ("abcdefg", "31a41052909590f3"),
    ("0123456789" * 2, "83b48bb7f3fd095b"),
    ("0123456789" * 15, "6f26152cce080f69"),
    ("0123456789" * 30, "ed188a9ec5f63736"),
    ("0123456789" * 120, "a94ae26fc531538c"),
]


@pytest.mark.parametrize(("text", "expected"), SUMS, ids=[str(len(text)) for text, _ in SUMS])
def test_checksum_is_xxh3_64(text: str, expected: str) -> None:
    """The checksum is XXH3-64 of the encoding, as 16 digits in big-endian order."""
    _, sums = digests(pl.DataFrame({"t": [text]}), no_rejected_values(1))
    assert sums.to_list() == [expected]


def test_checksum_of_null_and_of_a_short_number() -> None:
    """The flags and the two bytes of a smallint are hashed as four bytes."""
    _, sums = digests(
        pl.DataFrame({"n": [None, 300]}, schema={"n": pl.Int16}), no_rejected_values(2)
    )
    assert sums.to_list() == ["ac9b6337f1f1fe57", "2bdc8bc6e76c3e50"]


def test_checksums_always_have_sixteen_digits() -> None:
    """Small checksums are padded with zeros."""
    _, sums = digests(pl.DataFrame({"n": range(5000)}), no_rejected_values(5000))
    assert set(sums.str.len_chars()) == {16}
    assert sums.str.starts_with("00").any()
    assert sums.str.contains("^[0-9a-f]+$").all()


def test_row_hash_is_sha_256() -> None:
    """The row hash is the first 128 bits of SHA-256 over the encoding, as 32 digits."""
    texts = ["", "a", "é🚀", "0123456789" * 120]
    hashes, _ = digests(pl.DataFrame({"t": texts}), no_rejected_values(4))
    rows = [b"\0\0" + len(t.encode()).to_bytes(4, "big") + t.encode() for t in texts]
    assert hashes.to_list() == [hashlib.sha256(row).hexdigest()[:32] for row in rows]


def test_rejected_values_change_row_hash_and_not_checksum() -> None:
    """Rows that differ in rejected values only have different row hashes and one checksum."""
    frame = pl.DataFrame({"n": [None, None, None]}, schema={"n": pl.Int16})
    rejected = pl.Series([None, '["n", "NaN"]\n', '["n", "é"]\n'])
    hashes, sums = digests(frame, rejected)
    tails = ["", '["n", "NaN"]\n', '["n", "é"]\n']
    row = b"\0\1\0\0"
    assert hashes.to_list() == [hashlib.sha256(row + t.encode()).hexdigest()[:32] for t in tails]
    assert len(set(sums)) == 1


def test_digests_are_the_same_for_slices_and_chunks() -> None:
    """Slices and chunks of a frame have the digests of the whole frame's rows, with rejected
    values too.
    """
    frame = pl.DataFrame({"n": range(100), "t": [str(i) * (i % 7) for i in range(100)]})
    rejected = pl.Series([None if i % 3 else f'["x", "{i}"]\n' for i in range(100)])
    whole = digests(frame, rejected)
    for low, high in [(0, 100), (1, 2), (37, 90), (99, 100)]:
        part = digests(frame[low:high], rejected[low:high])
        assert [s.to_list() for s in part] == [s[low:high].to_list() for s in whole]
    chunks = pl.concat([frame[:5], frame[5:]], rechunk=False)
    texts = pl.concat([rejected[:60], rejected[60:]], rechunk=False)
    assert [s.to_list() for s in digests(chunks, texts)] == [s.to_list() for s in whole]


@pytest.mark.parametrize("height", [0, 1, 3])
def test_metadata_columns_follow_the_columns_of_the_source(height: int) -> None:
    """The columns of the source come first and unchanged, then all metadata, in their order."""
    rows = pl.DataFrame({"b": [1] * height, "a": ["x"] * height}, schema={"b": pl.Int32, "a": str})
    frame = with_metadata(rows, *digests(rows, no_rejected_values(height)), STAMP)
    assert frame.columns == ["b", "a", *(name for name, _ in METADATA_COLUMNS)]
    assert frame.height == height
    assert frame.select("b", "a").equals(rows)
    for name, kind in METADATA_COLUMNS:
        actual = frame.schema[name]
        assert actual == dtype(kind) or (kind.name == "string" and actual == pl.Enum), name
    expected: dict[str, Any] = {
        "load_timestamp": MOMENT,
        "update_timestamp": MOMENT,
        "source_system": "shop",
        "record_status": "ACTIVE",
        "batch_id": STAMP.batch_id,
        "ingestion_method": "full_refresh",
        "data_lineage": "a lineage",
        "data_quality_score": 100,
    }
    for row in frame.to_dicts():
        assert {name: row[name] for name in expected} == expected


def test_large_rows_are_hashed_like_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing rows piece by piece and joined gives the same hashes, with NULLs, lists, columns that
    were added later and rejected values.
    """
    rows = pl.DataFrame(
        {
            "n": [1, None, 3, 4],
            "t": ["a", None, "", "é" * 50],
            "l": pl.Series([["x", None], None, [], ["yy"]], dtype=pl.List(pl.String)),
            "later": [None, "b", "", None],
            "more": pl.Series([None, 5, None, 6], dtype=pl.Int32),
            "lists": pl.Series([[1], None, [], None], dtype=pl.List(pl.Int64)),
        }
    )
    rejected = pl.Series([None, '["n", "NaN"]\n', None, None], dtype=pl.String)
    slices = rows.vstack(rows).slice(3, 4), pl.concat([rejected, rejected]).slice(3, 4)
    cases = [(*pair, base) for pair in ((rows, rejected), slices) for base in (None, 3, 0)]
    cases += [(rows, no_rejected_values(4), 3)]
    expected = [digests(*case) for case in cases]
    monkeypatch.setattr(hashing, "_LARGE", -1)
    for case, (hashes, sums) in zip(cases, expected, strict=True):
        by_piece = digests(*case)
        assert by_piece[0].to_list() == hashes.to_list()
        assert by_piece[1].to_list() == sums.to_list()


@pytest.mark.parametrize("points", [[100], [40], [79, 80, 81, 100], []])
def test_rows_below_the_threshold_are_quarantined(points: list[int]) -> None:
    """Each row has its own score and status, also a single one; without scores all have the best
    score and are active.
    """
    rows = pl.DataFrame({"a": range(len(points))})
    hashes = digests(rows, no_rejected_values(len(points)))
    scores = pl.Series(points, dtype=pl.Int64)
    frame = with_metadata(rows, *hashes, STAMP, scores, 80)
    assert frame["data_quality_score"].to_list() == points
    statuses = ["QUARANTINED" if score < 80 else "ACTIVE" for score in points]
    assert frame["record_status"].to_list() == statuses
    best = with_metadata(rows, *hashes, STAMP)
    assert best.schema == frame.schema
    assert best["data_quality_score"].to_list() == [100] * len(points)
    assert best["record_status"].to_list() == ["ACTIVE"] * len(points)


@pytest.mark.parametrize("height", [0, 1, 2, 5])
def test_each_row_needs_a_hash_a_checksum_and_a_score(height: int) -> None:
    """Those of one row are not repeated for other rows, and none is left out."""
    rows = pl.DataFrame({"a": range(height)})
    hashes = pl.Series(["0" * 32] * height, dtype=pl.String)
    sums = pl.Series(["0" * 16] * height, dtype=pl.String)
    scores = pl.Series([100] * height, dtype=pl.Int64)
    assert with_metadata(rows, hashes, sums, STAMP, scores).height == height
    for wrong in {1, 3} - {height}:
        digests_ = pl.Series(["1" * 32] * wrong, dtype=pl.String)
        checksums = pl.Series(["1" * 16] * wrong, dtype=pl.String)
        points = pl.Series([50] * wrong, dtype=pl.Int64)
        for arguments in (
            (digests_, sums, STAMP),
            (hashes, checksums, STAMP),
            (hashes, sums, STAMP, points),
        ):
            with pytest.raises(ValueError, match="columns of other lengths"):
                with_metadata(rows, *arguments)
