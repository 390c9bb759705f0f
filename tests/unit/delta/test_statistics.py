"""File statistics: bounds that hold, and lookups that lose no row by them."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pytest
from deltalake import DeltaTable, QueryBuilder
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bronze.delta import commit, files, positions
from bronze.delta.statistics import SAFE, Statistics, lower_bound, upper_bound
from bronze.model.columns import DeltaType
from bronze.model.files import WrittenFile
from bronze.model.locations import Place
from bronze.postgres.copy.rows_reader import dtype
from tests.support.effort import examples

FIXED = settings(derandomize=True, database=None, deadline=None, max_examples=examples(20))
ON_DISK = settings(
    FIXED,
    max_examples=examples(3),
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
UTC = dt.UTC

# The last code point before the surrogates and the first after, the last of all, marks that
# combine, characters of every length in UTF-8.
_SHARP = "a\x01\x7fé\u0301\ud7ff\ue000\uffff\U00010000🚀\U0010ffff"
_long = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "a" * 30, "é" * 31, "\U0010ffff" * 31, "\ud7ff" * 32, "k" * 32]),
    st.text(_SHARP, max_size=3),
    st.text(_SHARP, max_size=3),
)
_MOMENTS = st.datetimes() | st.sampled_from([dt.datetime.min, dt.datetime.max])

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "short": st.integers(-(2**15), 2**15 - 1),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**53, 2**53 + 1, -(2**63)]),
    "boolean": st.booleans(),
    "string": _long,
    "date": st.dates() | st.sampled_from([dt.date.min, dt.date.max]),
    "timestamp": _MOMENTS.map(lambda moment: moment.replace(tzinfo=UTC)),
    "timestamp_ntz": _MOMENTS,
}
COLUMNS = tuple((f"v.{name}", DeltaType(name)) for name in SAFE)  # type: ignore[arg-type]
ROWS = st.lists(st.tuples(*(st.none() | VALUES[name] for name in SAFE)), max_size=5)


def order(value: Any) -> Any:
    """What readers order values by: strings by their bytes."""
    return value.encode() if isinstance(value, str) else value


def parsed(kind: str, written: Any) -> Any:
    """A bound in Delta's JSON as a value."""
    if kind == "date":
        return dt.date.fromisoformat(written)
    if kind.startswith("timestamp"):
        return dt.datetime.fromisoformat(written)
    return written


def test_every_safe_kind_is_tried() -> None:
    """The tests here leave no kind out."""
    assert VALUES.keys() == set(SAFE)


@FIXED
@given(text=_long)
def test_a_string_lies_between_its_bounds(text: str) -> None:
    """Bounds of a string are short, and hold in code point order as in the order of bytes."""
    low, high = lower_bound(text), upper_bound(text)
    assert len(low) <= 32
    assert order(low) <= order(text)
    assert low <= text
    if high is not None:
        assert len(high) <= 32
        assert order(high) >= order(text)
        assert high >= text
    else:
        assert text.startswith("\U0010ffff" * 32)


@pytest.mark.parametrize(
    ("text", "high"),
    [
        ("a" * 32, "a" * 32),
        ("a" * 33, "a" * 31 + "b"),
        ("a" * 31 + "\ud7ff" + "x", "a" * 31 + "\ue000"),
        ("a" * 31 + "\U0010ffff" + "x", "a" * 30 + "b"),
        ("a" + "\U0010ffff" * 40, "b"),
        ("\U0010ffff" * 33, None),
        ("", ""),
    ],
)
def test_the_upper_bound_of_a_string_is_an_incremented_prefix(text: str, high: str | None) -> None:
    """A long string's upper bound is its prefix made one greater, or there is none."""
    assert upper_bound(text) == high


@FIXED
@given(groups=st.lists(ROWS, min_size=1, max_size=3))
def test_bounds_hold_over_all_row_groups(groups: list[list[tuple[Any, ...]]]) -> None:
    """Every value of every frame lies between the file's bounds, and NULLs are counted."""
    statistics = Statistics(tuple(name for name, _ in COLUMNS))
    for group in groups:
        statistics.add(_frame(group))
    stats = json.loads(statistics.json())
    rows = list(itertools.chain.from_iterable(groups))
    assert stats["numRecords"] == len(rows)
    for i, (name, kind) in enumerate(COLUMNS):
        values = [row[i] for row in rows if row[i] is not None]
        assert stats["nullCount"][name] == len(rows) - len(values)
        assert (name in stats["minValues"]) == bool(values)
        if values:
            assert order(parsed(kind.name, stats["minValues"][name])) <= min(map(order, values))
        if name in stats["maxValues"]:
            assert order(parsed(kind.name, stats["maxValues"][name])) >= max(map(order, values))


def _frame(rows: Sequence[tuple[Any, ...]]) -> pl.DataFrame:
    lists = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    return pl.DataFrame(
        [
            pl.Series(name, list(values), dtype=dtype(kind))
            for (name, kind), values in zip(COLUMNS, lists, strict=True)
        ]
    )


Row = dict[str, Any]
Check = tuple[str, str, Any]

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "BETWEEN": lambda value, ends: ends[0] <= value <= ends[1],
    "IN": lambda value, several: value in several,
}


def by_hand(rows: Sequence[Row], check: Check) -> set[int]:
    """The ids of the rows that meet a condition."""
    name, test, wanted = check
    if test == "IS NULL":
        return {row["id"] for row in rows if row[name] is None}
    compare = _COMPARE[test]
    return {row["id"] for row in rows if row[name] is not None and compare(row[name], wanted)}


def by_sql(folder: Path, check: Check) -> set[int]:
    """What the Delta reader in Rust finds."""
    name, test, wanted = check
    kind = next(kind for other, kind in COLUMNS if other == name).name
    several = wanted if isinstance(wanted, tuple) else (wanted,)
    texts = [_literal(kind, value) for value in several if value is not None]
    written = {
        "IS NULL": "IS NULL",
        "BETWEEN": f"BETWEEN {' AND '.join(texts)}",
        "IN": f"IN ({', '.join(texts)})",
    }.get(test) or f"{test} {texts[0]}"
    table = DeltaTable(str(folder))
    query = f'SELECT id FROM t WHERE "{name}" {written}'
    found = QueryBuilder().register("t", table).execute(query).read_all()
    return {row[0] for row in pl.DataFrame(found).rows()}


def _literal(kind: str, value: Any) -> str:
    text = str(value).replace("'", "''")
    arrow = {
        "short": "Int16",
        "int": "Int32",
        "long": "Int64",
        "boolean": "Boolean",
        "string": "Utf8View",
        "date": "Date32",
        "timestamp": 'Timestamp(Microsecond, Some("UTC"))',
        "timestamp_ntz": "Timestamp(Microsecond, None)",
    }[kind]
    if isinstance(value, dt.datetime):
        text = value.isoformat()
    return f"arrow_cast('{text}', '{arrow}')"


def by_pyarrow(folder: Path, check: Check) -> set[int]:
    """What pyarrow finds, whose dataset carries the statistics as guarantees."""
    name, test, wanted = check
    table = DeltaTable(str(folder))
    arrow = pa.schema(table.schema().to_arrow()).field(name).type
    column = pc.field(name)
    if test == "IS NULL":
        condition = column.is_null()
    elif test == "BETWEEN":
        low, high = (pa.scalar(end, arrow) for end in wanted)
        condition = (column >= low) & (column <= high)
    elif test == "IN":
        condition = column.isin(pa.array(wanted, arrow))
    else:
        condition = getattr(operator, _COMPARE[test].__name__)(column, pa.scalar(wanted, arrow))
    # pyarrow's own file system: threads in Python's may outlive the interpreter.
    root = pyarrow.fs.SubTreeFileSystem(str(folder), pyarrow.fs.LocalFileSystem())
    found = table.to_pyarrow_dataset(filesystem=root).to_table(columns=["id"], filter=condition)
    return set(found["id"].to_pylist())


def by_polars(folder: Path, check: Check) -> set[int]:
    """What polars finds."""
    name, test, wanted = check
    kind = dtype(next(kind for other, kind in COLUMNS if other == name))
    column = pl.col(name)
    if test == "IS NULL":
        condition = column.is_null()
    elif test == "BETWEEN":
        low, high = (pl.lit(end, kind) for end in wanted)
        condition = column.is_between(low, high)
    elif test == "IN":
        condition = column.is_in(pl.Series(list(wanted), dtype=kind).implode())
    else:
        condition = getattr(operator, _COMPARE[test].__name__)(column, pl.lit(wanted, kind))
    found = pl.scan_delta(str(folder)).filter(condition).select("id").collect()
    return set(found["id"].to_list())


def landed(place: Place, batches: Sequence[Sequence[Sequence[tuple[Any, ...]]]]) -> list[Row]:
    """Writes a file for each batch, with a row group for each group, and commits them."""
    numbers = itertools.count()
    rows: list[Row] = []
    written: list[WrittenFile] = []
    stats = tuple(name for name, _ in COLUMNS)
    for groups in batches:
        frames = []
        for group in groups:
            frame = _frame(group)
            ids = [next(numbers) for _ in range(frame.height)]
            frames.append(frame.with_columns(pl.Series("id", ids, dtype=pl.Int64)))
            rows += frames[-1].to_dicts()
        file = files.write(frames, place, "batch", stats)
        written += [file] if file else []
    columns = (*COLUMNS, ("id", DeltaType("long")))
    shape = commit.Shape(tuple(columns), tuple(stats))
    commit.replace(place, shape, written, positions.Position("t", 1), {})
    return rows


@st.composite
def conditions(draw: st.DrawFn, rows: Sequence[Row]) -> Check:
    """A condition on one column, with values that are there."""
    name, _ = draw(st.sampled_from(COLUMNS))
    there = [row[name] for row in rows if row[name] is not None]
    if not there:
        return name, "IS NULL", None
    test = draw(st.sampled_from([*_COMPARE, "IS NULL"]))
    one, other = draw(st.sampled_from(there)), draw(st.sampled_from(there))
    if test == "IS NULL":
        return name, test, None
    if test == "BETWEEN":
        return name, test, (one, other) if order(one) <= order(other) else (other, one)
    return name, test, (one, other) if test == "IN" else one


_lakes = itertools.count()


@ON_DISK
@given(
    batches=st.lists(st.lists(ROWS, min_size=1, max_size=2), min_size=1, max_size=4),
    data=st.data(),
)
def test_no_reader_loses_a_row(
    tmp_path: Path, batches: list[list[list[tuple[Any, ...]]]], data: st.DataObject
) -> None:
    """Lookups of what is there find it, with every reader that skips files by statistics."""
    folder = tmp_path / str(next(_lakes))
    rows = landed(Place(str(folder)), batches)
    for _ in range(6):
        check = data.draw(conditions(rows))
        wanted = by_hand(rows, check)
        found = {
            reader.__name__: reader(folder, check) for reader in (by_sql, by_pyarrow, by_polars)
        }
        assert found == dict.fromkeys(found, wanted), check
