"""Layout: the same rows in better files, whoever else writes, at a cost that follows new rows."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from decimal import Decimal
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import obstore
import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from uuid_utils import uuid7

from bronze.delta import commit, file_names, files, log, store
from bronze.delta.layout import hilbert, optimize, rewrite
from bronze.delta.layout.optimize import OptimizeResult, TableLayout
from bronze.errors import CommitConflict, LakeError, Mismatch
from bronze.model.columns import DeltaType
from bronze.model.locations import Place
from tests.support.effort import examples
from tests.support.sent import Sent

MEMORY = 64 * 2**20
COLUMNS = (
    ("id", DeltaType("long")),
    ("place", DeltaType("int")),
    ("name", DeltaType("string")),
    ("day", DeltaType("date")),
    ("at", DeltaType("timestamp")),
    ("naive", DeltaType("timestamp_ntz")),
    ("flag", DeltaType("boolean")),
    ("price", DeltaType("decimal", 38, 10)),
    ("ratio", DeltaType("double")),
    ("raw", DeltaType("binary")),
    ("list", DeltaType("array", element=DeltaType("decimal", 12, 2))),
)
TYPES: dict[str, Any] = {
    "id": pl.Int64,
    "place": pl.Int32,
    "name": pl.String,
    "day": pl.Date,
    "at": pl.Datetime("us", "UTC"),
    "naive": pl.Datetime("us"),
    "flag": pl.Boolean,
    "price": pl.Decimal(38, 10),
    "ratio": pl.Float64,
    "raw": pl.Binary,
    "list": pl.List(pl.Decimal(12, 2)),
}
SHAPE = commit.Shape(COLUMNS, ("id", "place"))
SMALL = TableLayout(("id", "place"), target=20_000)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where a table will be."""
    return Place(str(tmp_path / "t"))


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "_PAUSE", 0)


@cache
def rows(count: int, seed: int = 0) -> pl.DataFrame:
    """Rows of all kinds, with NULLs, NaN and equal ones among them."""
    draw = np.random.default_rng(seed)
    ratios = [float("nan"), -0.0, 0.0, float("inf"), 1.5, None]
    found = []
    for i in draw.integers(0, 1000, count).tolist():
        day = dt.date(2024, 1, 1) + dt.timedelta(days=i % 90)
        moment = dt.datetime(1, 1, 1) + dt.timedelta(days=i * 700, microseconds=i)
        values = (i, i % 7, f"é🚀{i}" * (i % 4), day, moment.replace(tzinfo=dt.UTC), moment)
        more = (i % 2 == 0, Decimal(i) / 7, ratios[i % 6], bytes([i % 256]) * (i % 5))
        lists = [Decimal(i), None] if i % 5 else []
        found.append((*values, *more, lists) if i % 11 else (None,) * len(TYPES))
    rounded = [
        (*r[:7], None if r[7] is None else r[7].quantize(Decimal("1e-10")), *r[8:]) for r in found
    ]
    return pl.DataFrame(rounded, schema=TYPES, orient="row")


def put(place: Place, frame: pl.DataFrame, shape: commit.Shape = SHAPE) -> int:
    """Appends rows as one file, making the table when it is not there."""
    state = log.read(place)
    file = files.write(frame.iter_slices(200), place, str(uuid7()), shape.stats)
    assert file is not None
    change = commit.Change("WRITE", [file])
    return commit.commit(place, state, change, {}, shape=None if state else shape)


def foreign(place: Place, frame: pl.DataFrame) -> None:
    """Appends rows as another writer does."""
    write_deltalake(place.url, frame.to_arrow(), mode="append")


def on(pool: Executor) -> optimize.Each:
    """Runs jobs on a pool; the results come as they are ready."""

    def each(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        for future in as_completed([pool.submit(work, job) for job in jobs]):
            yield future.result()

    return each


def here(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterable[Any]:
    """Runs jobs one after the other, the last one first."""
    return map(work, reversed(jobs))


def improve(
    place: Place, wish: TableLayout = SMALL, each: optimize.Each = here, memory: int = MEMORY
) -> OptimizeResult:
    """Improves once."""
    return optimize.optimize_table(place, wish, batch_id=str(uuid7()), memory=memory, each=each)


def content(place: Place) -> Counter[str]:
    """The table's rows as a multiset, every value to the bit."""
    # polars takes the values of partitions from folders rather than from the log.
    return multiset(pl.DataFrame(DeltaTable(place.url).to_pyarrow_table()))


def multiset(frame: pl.DataFrame) -> Counter[str]:
    """Rows as a multiset."""
    return Counter(map(repr, frame.select(sorted(frame.columns)).iter_rows()))


def state_of(place: Place) -> log.State:
    """The table as it is."""
    state = log.read(place)
    assert state is not None
    return state


def unlisted(place: Place) -> set[str]:
    """Parquet files in the folder that no entry of the log has added."""
    entries = [path.read_text() for path in (Path(place.url) / "_delta_log").glob("*.json")]
    known = "".join(entries)
    return {p.name for p in Path(place.url).rglob("*.parquet") if p.name not in known}


def test_clustered_rows_are_the_same_rows(place: Place) -> None:
    """Rows of all kinds are as before, the feed shows no change, and a second call does nothing."""
    for seed in range(4):
        put(place, rows(500, seed))
    before = content(place)
    done = improve(place)
    state = state_of(place)
    assert content(place) == before
    assert (done.version, done.rows) == (state.version, 2000)
    assert (done.files_before, done.files_after) == (4, len(state.files))
    assert (done.bytes_after, done.rewritten) == (sum(f.size for f in state.files),) * 2
    assert {file_names.cluster_of(f.path) is None for f in state.files} == {False}
    feed = DeltaTable(place.url).load_cdf(starting_version=state.version)
    assert pl.DataFrame(feed.read_all()).height == 0
    assert not optimize.is_needed(state, SMALL)
    assert improve(place) == OptimizeResult()
    assert unlisted(place) == set()


def test_large_rows_are_not_joined_in_one_row_group(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are joined, and each row group has some bytes, or one row."""
    monkeypatch.setattr(files, "_GROUP_BYTES", 20_000)
    monkeypatch.setattr(rewrite, "_GROUP_BYTES", 20_000)
    for seed in range(8):
        frame = rows(20, seed)
        put(place, frame.with_columns(pl.lit("x" * 15_000).alias("name")))
    before = content(place)
    assert improve(place, TableLayout((), 200_000)).rows == 160
    assert content(place) == before
    for file in state_of(place).files:
        footer = pq.read_metadata(Path(place.url) / file.path)
        assert {footer.row_group(i).num_rows for i in range(footer.num_row_groups)} == {1}


@pytest.mark.parametrize("kind", [name for name, k in COLUMNS if k.name not in ("binary", "array")])
def test_any_sortable_kind_clusters(place: Place, kind: str) -> None:
    """Each kind that has an order can be clustered by."""
    put(place, rows(300, 1))
    put(place, rows(300, 2))
    before = content(place)
    assert improve(place, TableLayout((kind,), 4_000)).rows == 600
    assert content(place) == before


@settings(derandomize=True, database=None, max_examples=examples(3), deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 150), st.booleans(), st.booleans()), min_size=1, max_size=9),
    st.sampled_from([(), ("id",), ("name", "id"), ("flag", "at", "price", "day")]),
    st.integers(1_000, 30_000),
    st.sampled_from([25_000, MEMORY]),
)
def test_optimize_never_changes_rows(
    appends: list[tuple[int, bool, bool]], by: tuple[str, ...], target: int, memory: int
) -> None:
    """However rows are added and files improved, the table holds just the rows that came."""
    with TemporaryDirectory() as folder:
        place = Place(folder + "/t")
        expected: Counter[str] = Counter()
        for seed, (count, is_foreign, then) in enumerate(appends):
            frame = rows(count, seed)
            expected += multiset(frame)
            (foreign if is_foreign and seed else put)(place, frame)
            if then:
                improve(place, TableLayout(by, target), memory=memory)
                assert not optimize.is_needed(state_of(place), TableLayout(by, target)) or by == ()
        assert content(place) == expected
        assert unlisted(place) == set()


@pytest.mark.parametrize(
    ("memory", "group"),
    [
        pytest.param(40_000, 2**24, marks=pytest.mark.soak),
        (100_000, 2**24),
        pytest.param(400_000, 2**24, marks=pytest.mark.soak),
        pytest.param(100_000, 3_000, marks=pytest.mark.soak),
    ],
)
def test_groups_larger_than_the_memory_are_sorted_in_files(
    place: Place, memory: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With little memory no job holds much, and the outcome is the same: rows, and their order;
    where rows are large, too, so that what lies between becomes several row groups.
    """
    monkeypatch.setattr(files, "_GROUP_BYTES", group)
    for seed in range(3):
        put(place, rows(700, seed))
    before = content(place)
    most = 0
    honest = hilbert.along

    def along(frame: pl.DataFrame, by: Any) -> Any:
        nonlocal most
        most = max(most, frame.to_arrow().nbytes)
        return honest(frame, by)

    monkeypatch.setattr(rewrite, "along", along)
    wish = TableLayout(("id",), 20_000)
    assert improve(place, wish, memory=memory).rows == 2100
    assert content(place) == before
    assert unlisted(place) == set()
    bounds = sorted((dict(f.low)["id"], dict(f.high)["id"]) for f in state_of(place).files)
    assert len(bounds) > 2
    assert all(b[1] <= a[0] + 5 for b, a in itertools.pairwise(bounds))
    assert most < memory


def test_small_files_are_joined_and_large_ones_left_alone(place: Place) -> None:
    """Without columns to cluster by only small files are rewritten, neighbours together."""
    put(place, rows(4000).with_columns(id=pl.lit(-5, pl.Int64)))
    (large,) = state_of(place).files
    for start in (0, 50, 10, 60, 20, 70, 30, 80, 40, 90):
        put(place, rows(300, start).with_columns(id=pl.Series(np.arange(300) % 10 + start)))
    before = content(place)
    small = max(file.size for file in state_of(place).files if file != large)
    wish = TableLayout((), target=small * 4)
    done = improve(place, wish)
    state = state_of(place)
    assert content(place) == before
    assert large in state.files
    assert 2 <= len(state.files) <= 4
    spans = sorted((dict(f.low)["id"], dict(f.high)["id"]) for f in state.files if f != large)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(spans))
    assert done.rows == 3000
    assert not optimize.is_needed(state, wish)


def test_few_small_files_are_left_alone(place: Place) -> None:
    """A rewrite which would not at least halve the number of small files is not made."""
    for seed in range(4):
        put(place, rows(300, seed))
    sizes = [file.size for file in state_of(place).files]
    assert not optimize.is_needed(state_of(place), TableLayout((), target=round(min(sizes) / 0.8)))
    assert optimize.is_needed(state_of(place), TableLayout((), target=sum(sizes)))
    DeltaTable(place.url).restore(1)
    assert not optimize.is_needed(state_of(place), TableLayout((), target=sum(sizes)))


@pytest.mark.parametrize("by", [(), ("id", "place")])
def test_the_cost_follows_the_new_rows(place: Place, by: tuple[str, ...]) -> None:
    """Over many appends a row is rewritten a few times, and there are always few files."""
    shape = commit.Shape(COLUMNS[:2], ("id", "place"))
    new, written, most = 0, 0, 0
    for seed in range(20):
        draw = np.random.default_rng(seed)
        numbers = {"id": draw.integers(0, 2**40, 500), "place": draw.integers(0, 9, 500)}
        put(place, pl.DataFrame(numbers).cast({"place": pl.Int32}), shape)
        new += state_of(place).files[0].size if not seed else 0
        done = improve(place, TableLayout(by, 40_000))
        written += done.rewritten
        most = max(most, len(state_of(place).files))
    total = sum(file.size for file in state_of(place).files)
    assert written < 5 * total
    assert most <= 12 + total // 40_000
    assert content(place).total() == 20 * 500


def test_filters_skip_more_files(place: Place) -> None:
    """Points and ranges of every column to cluster by are in few files afterwards."""
    shape = commit.Shape(COLUMNS[:2], ("id", "place"))
    draw = np.random.default_rng(3)
    for _ in range(16):
        numbers = {"id": draw.integers(0, 10**6, 1000), "place": draw.integers(0, 50, 1000)}
        put(place, pl.DataFrame(numbers).cast({"place": pl.Int32}), shape)

    def skipped(column: str, value: int) -> float:
        stored = state_of(place).files
        hit = [f for f in stored if dict(f.low)[column] <= value <= dict(f.high)[column]]
        return 1 - len(hit) / len(stored)

    assert max(skipped("id", 500_000), skipped("place", 25)) == 0
    size = sum(file.size for file in state_of(place).files)
    improve(place, TableLayout(("id", "place"), size // 16))
    assert min(skipped("id", 500_000), skipped("place", 25)) > 0.6
    assert len(state_of(place).files) == 16


def test_statistics_are_kept_for_the_columns_to_cluster_by(place: Place) -> None:
    """A column that had no statistics gets them in the same commit; odd names are understood."""
    odd = "a `b`, c"
    columns = (
        ("id", DeltaType("long")),
        (odd, DeltaType("int")),
        ("price", DeltaType("decimal", 12, 2)),
    )
    frame = pl.DataFrame(
        {"id": range(900), odd: range(900), "price": [Decimal(1)] * 900},
        schema={"id": pl.Int64, odd: pl.Int32, "price": pl.Decimal(12, 2)},
    )
    shape = commit.Shape(columns, ("id",), notes=(("bronze.note", "x"),))
    for _ in range(3):
        put(place, frame, shape)
    before = state_of(place)
    improve(place, TableLayout((odd, "price"), 2_000))
    state = state_of(place)
    assert state.properties == {
        **before.properties,
        "delta.dataSkippingStatsColumns": "`id`,`a ``b``, c`",
    }
    assert {name for file in state.files for name, _ in file.low} == {"id", odd}
    for _ in range(3):
        put(place, frame, shape)
    assert improve(place, TableLayout((odd, "price"), 2_000)).version == state.version + 4
    assert state_of(place).properties == state.properties


def test_partitions_are_never_mixed(tmp_path: Path) -> None:
    """Each file keeps its partition, also where that is NULL or has an odd name."""
    for by in ((), ("id", "part"), ("part",)):
        place = Place(str(tmp_path / str(len(by)) / "t"))
        parts = ["a b/é%", None, "c"]
        for seed in range(9):
            frame = pl.DataFrame({"id": range(seed, 900 + seed), "part": parts * 300})
            write_deltalake(place.url, frame.to_arrow(), mode="append", partition_by=["part"])
        before = content(place)
        done = improve(place, TableLayout(by, 20_000))
        assert done.files_before == 27
        assert done.files_after == 3
        assert content(place) == before
        found = Counter(dict(file.partition)["part"] for file in state_of(place).files)
        assert set(found) == set(parts)
        assert not optimize.is_needed(state_of(place), TableLayout(by, 20_000))


@pytest.mark.parametrize("by", [(), ("id",)])
def test_partitions_stay_in_their_folders(place: Place, by: tuple[str, ...]) -> None:
    """Readers that take a partition's value from the folder's name, as polars, see the same."""
    days = [dt.date(2024, 1, day) for day in (1, 2, 3)]
    for seed in range(9):
        frame = pl.DataFrame({"id": range(seed, 900 + seed), "day": days * 300})
        write_deltalake(place.url, frame.to_arrow(), mode="append", partition_by=["day"])
    before = multiset(pl.read_delta(place.url))
    assert improve(place, TableLayout(by, 20_000)).files_after == 3
    assert all(file.path.startswith("day=2024-01-0") for file in state_of(place).files)
    assert multiset(pl.read_delta(place.url)) == before


def test_files_of_other_writers_and_older_schemas_are_conformed(place: Place) -> None:
    """Columns that a file does not have are NULL, and types are the table's."""
    put(
        place,
        rows(300).drop("name", "list"),
        commit.Shape(tuple(c for c in COLUMNS if c[0] not in ("name", "list")), ("id",)),
    )
    for seed in range(4):
        more = rows(300, seed).to_arrow()
        write_deltalake(place.url, more, mode="append", schema_mode="merge")
    before = content(place)
    assert improve(place, TableLayout(("name", "id"), 5_000)).rows == 1500
    assert content(place) == before


def test_files_of_another_clustering_are_rewritten(place: Place) -> None:
    """Files of another clustering are new files again, of which a call takes up to its budget."""
    for seed in range(8):
        put(place, rows(800, seed))
    before = content(place)
    improve(place)
    total = sum(file.size for file in state_of(place).files)
    wish = TableLayout(("name",), 20_000, budget=total // 3)
    calls = []
    while optimize.is_needed(state_of(place), wish):
        calls.append(improve(place, wish))
        assert calls[-1].rewritten < wish.budget * 1.3
        assert len(calls) < 9
    assert len(calls) > 1
    assert content(place) == before


SPAWN = partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context("spawn"))


@pytest.mark.parametrize("pools", [Sent, pytest.param(SPAWN, marks=pytest.mark.soak)])
def test_processes_run_the_jobs(place: Place, pools: Callable[[int], Executor]) -> None:
    """Jobs and their results travel to other processes and back."""
    for seed in range(3):
        put(place, rows(400, seed))
    before = content(place)
    with pools(2) as pool:
        assert improve(place, TableLayout(("id", "name"), 6_000), on(pool), 30_000).rows == 1200
    assert content(place) == before


def during(place: Place, monkeypatch: pytest.MonkeyPatch, act: Callable[[int], object]) -> None:
    """Calls a function before each try to commit, with its number."""
    honest, tries = commit.commit, 0

    def slow(*args: Any, **kwargs: Any) -> int:
        nonlocal tries
        tries += 1
        with monkeypatch.context() as patch:
            patch.setattr(commit, "commit", honest)
            act(tries)
        return honest(*args, **kwargs)

    monkeypatch.setattr(commit, "commit", slow)


def test_an_append_between_read_and_commit(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another writer adds meanwhile is neither lost nor doubled, and nothing is done again."""
    for seed in range(4):
        put(place, rows(500, seed))
    before = content(place)
    works: list[str] = []

    def each(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterable[Any]:
        works.append(work.__name__)
        return map(work, jobs)

    during(place, monkeypatch, lambda n: foreign(place, rows(50, 9)) if n < 3 else None)
    done = improve(place, each=each)
    assert (done.version, done.files_after) == (6, len(state_of(place).files))
    assert works == ["survey", "write"]
    assert content(place) == before + multiset(rows(50, 9)) + multiset(rows(50, 9))
    assert unlisted(place) == set()


def test_a_file_deleted_between_read_and_commit_is_not_restored(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was rewritten meanwhile is not restored: the work is repeated."""
    for seed in range(4):
        put(place, rows(500, seed))
    during(place, monkeypatch, lambda n: DeltaTable(place.url).delete("place = 3") if n == 1 else 0)
    assert improve(place).version == 5
    assert set(pl.read_delta(place.url)["place"].to_list()) == {0, 1, 2, 4, 5, 6, None}
    assert unlisted(place) == set()


def test_partitions_that_are_still_valid_are_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another writer has rewritten one partition, the work on the others is kept."""
    place = Place(str(tmp_path / "t"))
    for _ in range(9):
        frame = pl.DataFrame({"id": range(900), "part": ["a", "b", "c"] * 300})
        write_deltalake(place.url, frame.to_arrow(), mode="append", partition_by=["part"])
    during(place, monkeypatch, lambda n: DeltaTable(place.url).delete("part='a'") if n == 1 else 0)
    done = improve(place, TableLayout(("id",), 20_000))
    assert (done.files_before, done.files_after, done.rows) == (18, 2, 5400)
    left = pl.DataFrame(DeltaTable(place.url).to_pyarrow_table())["part"]
    assert Counter(left.to_list()) == {"b": 2700, "c": 2700}
    assert unlisted(place) == set()


def test_a_concurrent_writer_that_always_wins(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some tries it gives up, and leaves neither changes nor files."""
    for seed in range(4):
        put(place, rows(500, seed))
    during(place, monkeypatch, lambda _: foreign(place, rows(1)))
    with pytest.raises(CommitConflict) as caught:
        improve(place)
    assert caught.value.hint
    assert {file_names.cluster_of(file.path) for file in state_of(place).files} == {None}
    assert unlisted(place) == set()


def test_a_commit_with_a_lost_response_deletes_no_file(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that succeeded though the store reports a conflict deletes no file."""
    for seed in range(4):
        put(place, rows(500, seed))
    before = content(place)
    honest = obstore.put

    def twice(*args: Any, **kwargs: Any) -> Any:
        honest(*args, **kwargs)
        return honest(*args, **kwargs)

    monkeypatch.setattr(obstore, "put", twice)
    assert improve(place).version == 4
    assert content(place) == before


def test_concurrent_optimizations_keep_all_rows(place: Place) -> None:
    """However they interleave with each other and a writer, the rows are those that came."""
    put(place, rows(900))
    expected = content(place)
    start = threading.Barrier(3)

    def work(number: int) -> None:
        start.wait()
        for seed in range(8):
            if number:
                improve(place, TableLayout(("id",), 15_000))
            else:
                foreign(place, rows(300, seed))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    for seed in range(8):
        expected += multiset(rows(300, seed))
    assert content(place) == expected
    assert unlisted(place) == set()


@pytest.mark.parametrize(
    ("by", "memory"), [((), MEMORY), (("id", "name"), 50_000), (("id", "name"), MEMORY)]
)
def test_a_rewrite_that_loses_a_row_is_not_committed(
    place: Place, monkeypatch: pytest.MonkeyPatch, by: tuple[str, ...], memory: int
) -> None:
    """If what was written is not what was read nothing is committed, and no file is left."""
    for seed in range(8):
        put(place, rows(120, seed))
    honest = files.write

    def careless(frames: Iterable[pl.DataFrame], *args: Any) -> Any:
        return honest((frame.slice(0, len(frame) - 1) for frame in frames), *args)

    monkeypatch.setattr(files, "write", careless)
    with pytest.raises(Mismatch) as caught:
        improve(place, TableLayout(by, 20_000), memory=memory)
    assert caught.value.hint
    assert state_of(place).version == 7
    assert unlisted(place) == set()


def test_a_wrong_row_count_in_the_log_stops_the_rewrite(place: Place) -> None:
    """Rows that the log counts and a file does not have stop the rewrite."""
    for seed in range(8):
        put(place, rows(300, seed))
    entry = Path(place.url) / "_delta_log" / f"{3:020}.json"
    entry.write_text(entry.read_text().replace('numRecords\\": 300', 'numRecords\\": 299'))
    with pytest.raises(Mismatch, match=r"2399, 2400"):
        improve(place)
    assert unlisted(place) == set()


@pytest.mark.parametrize("kill", ["spread", pytest.param("write", marks=pytest.mark.soak)])
def test_files_of_a_killed_optimization_are_swept(
    place: Place, monkeypatch: pytest.MonkeyPatch, kill: str
) -> None:
    """Files of one that died are named by its batch, and swept like those of any run that died."""
    for seed in range(3):
        put(place, rows(1000, seed))
    before = content(place)

    def dying(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        for number, job in enumerate(jobs):
            if work.__name__ == kill and number:
                monkeypatch.setattr(store, "delete", lambda *_: None)
                raise KeyboardInterrupt
            yield work(job)

    with monkeypatch.context() as patch:
        patch.setattr(rewrite, "_ROOM", 12)
        with pytest.raises(KeyboardInterrupt):
            improve(place, TableLayout(("id",), 10_000), dying, 200_000)
    monkeypatch.undo()
    left = unlisted(place)
    assert left
    assert None not in {file_names.batch_of(name) for name in left}
    later = dt.datetime.now().timestamp() + 2 * 24 * 3600
    assert commit.sweep(state_of(place), later) == len(left)
    assert content(place) == before


@pytest.mark.parametrize(
    "by", [("nothing",), ("list",), ("raw",), ("id", "place", "name", "day", "at")]
)
def test_columns_that_have_no_order_are_refused(place: Place, by: tuple[str, ...]) -> None:
    """A column that is not there or cannot be sorted is named, and so are too many of them."""
    put(place, rows(10))
    with pytest.raises(LakeError, match=by[0]) as caught:
        improve(place, TableLayout(by))
    assert caught.value.hint


@pytest.mark.parametrize("feature", ["columnMapping", "rowTracking"])
def test_tables_with_unknown_features_are_refused(place: Place, feature: str) -> None:
    """A table with features that a rewrite does not know is left as it is."""
    for seed in range(8):
        put(place, rows(300, seed))
    reader = [feature] if feature != "rowTracking" else []
    protocol = {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": [*reader, "timestampNtz"],
        "writerFeatures": [feature, "timestampNtz", "domainMetadata"],
    }
    entry = Path(place.url) / "_delta_log" / f"{8:020}.json"
    entry.write_text(json.dumps({"protocol": protocol}) + "\n")
    before = set(Path(place.url).rglob("*"))
    with pytest.raises(LakeError, match=feature):
        improve(place)
    assert set(Path(place.url).rglob("*")) == before


def test_optimize_of_a_missing_table_does_nothing(place: Place) -> None:
    """A place without a table is no error."""
    assert improve(place) == OptimizeResult()
