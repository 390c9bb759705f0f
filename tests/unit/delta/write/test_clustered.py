"""Clustered writes: every row once, along the curve, in little memory, with nothing left behind."""

from __future__ import annotations

import datetime as dt
import resource
import tempfile
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze import failpoint, stopping
from bronze.delta import file_names
from bronze.delta.write import clustered
from bronze.errors import LakeError, Stopped
from bronze.model.columns import DeltaType
from bronze.model.files import WrittenFile
from bronze.model.locations import Destination, Place
from bronze.model.units import Clustering
from tests.support.effort import examples
from tests.support.merging import NOW

LAYOUT = (
    ("id", DeltaType("long")),
    ("name", DeltaType("string")),
    ("price", DeltaType("decimal", 12, 2)),
    ("day", DeltaType("date")),
    ("flag", DeltaType("boolean")),
    ("status", DeltaType("string")),
)
BY = ("name", "price")


def destination(folder: Path) -> Destination:
    """A table in a folder."""
    return Destination(Place(str(folder)), LAYOUT, ("id",), BY[:1], NOW)


def rows(count: int, names: int, start: int = 0) -> pl.DataFrame:
    """Rows with some NULL, some values that are equal, and one column of an enum."""
    numbers = range(start, start + count)
    return pl.DataFrame(
        {
            "id": pl.Series(numbers, dtype=pl.Int64),
            "name": [f"n{i * 7919 % names:05}" if i % 11 else None for i in numbers],
            "price": pl.Series(
                [Decimal(i * 31 % 997) if i % 13 else None for i in numbers],
                dtype=pl.Decimal(12, 2),
            ),
            "day": [dt.date(2026, 1, 1) + dt.timedelta(i % 365) for i in numbers],
            "flag": [i % 3 == 0 for i in numbers],
            "status": pl.Series(
                ["ACTIVE" if i % 5 else "DELETED" for i in numbers],
                dtype=pl.Enum(["ACTIVE", "DELETED"]),
            ),
        },
        schema_overrides={"name": pl.String, "day": pl.Date, "flag": pl.Boolean},
    )


def read(folder: Path, written: tuple[WrittenFile, ...]) -> list[pl.DataFrame]:
    """The rows of each file."""
    return [pl.read_parquet(folder / file.path).cast({"status": pl.String}) for file in written]


@settings(max_examples=examples(8), deadline=None)
@given(
    parts=st.lists(st.integers(0, 400), max_size=8),
    names=st.sampled_from([1, 3, 5000]),
    memory=st.sampled_from([1, 30_000, 10**8]),
    estimate=st.sampled_from([0, 10**5, 10**9]),
)
def test_every_row_is_written_once(
    parts: list[int], names: int, memory: int, estimate: int
) -> None:
    """Whatever fits into the memory, however wrong the estimate, and if all values are equal: the
    rows are those that came, and the files those of one cluster.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = [rows(count, names, sum(parts[:i])) for i, count in enumerate(parts)]
        how = Clustering(BY, 10**6, memory)
        written = clustered.write(iter(frames), destination(folder), how, estimate)
        assert sum(file.rows for file in written) == sum(parts)
        assert len(list(folder.rglob("*.parquet"))) == len(written)
        assert len({file_names.cluster_of(file.path) for file in written}) == bool(written)
        if written:
            found = pl.concat(read(folder, written)).sort("id")
            assert found.equals(pl.concat(frames).cast({"status": pl.String}))


def test_filters_on_each_column_skip_files(tmp_path: Path) -> None:
    """The rows come in another order, in frames, and only a few of them fit into the memory."""
    frames = [rows(1000, 5000, start) for start in (0, 16000, 8000, 24000, 4000, 20000, 12000)]
    how = Clustering(BY, 20_000, 300_000)
    written = clustered.write(iter(frames), destination(tmp_path), how, 7 * 10**5)
    assert len(written) >= 6
    for column, value in (("name", "n02500"), ("price", Decimal(500))):
        parts = read(tmp_path, written)
        bounds = [part.select(low=pl.min(column), high=pl.max(column)) for part in parts]
        hits = pl.concat(bounds).filter(pl.lit(value).is_between("low", "high")).height
        assert 0 < hits <= len(written) * 0.7


def test_files_of_a_failed_write_are_deleted(tmp_path: Path) -> None:
    """Nothing is written before the last row was read; and nothing where the scratch file cannot
    grow, which an error says.
    """

    def failing() -> Iterator[pl.DataFrame]:
        yield rows(1000, 50)
        raise ValueError("no more")

    how = Clustering(BY, 10**6, 10_000)
    with pytest.raises(ValueError, match="no more"):
        clustered.write(failing(), destination(tmp_path), how, 10**5)
    assert list(tmp_path.rglob("*.parquet")) == []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    frames = [rows(5000, 50, start) for start in range(0, 20000, 5000)]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        with pytest.raises(LakeError) as raised:
            clustered.write(iter(frames), destination(tmp_path), how, 10**5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "TMPDIR" in raised.value.hint
    assert list(tmp_path.rglob("*.parquet")) == []


def test_files_before_a_stop_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is asked to stop when its first file is complete."""
    stop = threading.Event()
    monkeypatch.setattr(failpoint, "reach", lambda _: stop.set())
    how = Clustering(BY, 10**6, 10_000)
    with stopping.scope(stop), pytest.raises(Stopped):
        clustered.write(iter([rows(5000, 50)]), destination(tmp_path), how, 10**5)
    assert stop.is_set()
    assert list(tmp_path.rglob("*.parquet")) == []


def test_a_missing_scratch_folder_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to set."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(LakeError, match="scratch file: No such file") as raised:
        clustered.write(iter([]), destination(tmp_path), Clustering(BY, 10**6, 10**6), 0)
    assert "TMPDIR" in raised.value.hint
