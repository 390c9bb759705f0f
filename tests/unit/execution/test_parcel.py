"""What goes to workers and comes back, whichever process they are in."""

from __future__ import annotations

import copyreg
import datetime as dt
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import polars as pl

from bronze import portion
from bronze.execution.executors import Task, drive
from bronze.execution.parcel import Packing, Parcel, forget_parts, unpack
from tests.support.sent import Sent

FRAME = pl.DataFrame(
    {
        "a": [1, None],
        "t": ["x", None],
        "d": [Decimal("1.50"), None],
        "l": [[1, None], None],
        "b": [b"\x00", None],
        "at": [dt.datetime(2026, 1, 1, tzinfo=dt.UTC), None],
    }
)


@dataclass(frozen=True)
class Job:
    """A task's argument with a frame deep inside."""

    parts: tuple[dict[str, Any], ...]


def test_frames_go_as_arrow_has_them() -> None:
    """With all their types, wherever they are, and not by polars' own way."""
    for one in (FRAME, FRAME.head(0), pl.concat([FRAME, FRAME], rechunk=False)):
        data = pickle.dumps(Parcel(Job(({"rows": one, "column": one["t"]},))))
        assert data.count(b"ARROW1") == 4
        (part,) = pickle.loads(data).content.parts  # noqa: S301 - its own
        assert part["rows"].equals(one)
        assert part["rows"].schema == one.schema
        assert part["column"].equals(one["t"])
        assert part["column"].name == "t"


def test_other_frames_of_the_process_are_pickled_as_usual() -> None:
    """Whoever imports bronze keeps polars' own pickling of what is theirs."""
    assert not {pl.DataFrame, pl.Series} & set(copyreg.dispatch_table)
    assert b"ARROW1" not in pickle.dumps(portion.without_enums(FRAME))


def _back(job: Job) -> tuple[Job, ...]:
    return (job, job)


def test_arguments_and_results_are_sent_as_parcels(monkeypatch: Any) -> None:
    """An argument and a result never meet polars' own pickling; within a process nothing is one."""

    def never(*_: object) -> None:
        raise AssertionError("polars pickles")

    for kind in (pl.DataFrame, pl.Series):
        for name in ("__getstate__", "__reduce_ex__"):
            monkeypatch.setattr(kind, name, never)
    job = Job(({"rows": FRAME},))

    def course() -> Any:
        (found,) = yield [Task(_back, job, "t")]
        return found

    with Sent(1) as pool:
        (found,) = drive(pool, [course()], 1)
    assert [one.parts[0]["rows"].equals(FRAME) for one in found] == [True, True]
    with ThreadPoolExecutor(1) as threads:
        ((one, other),) = drive(threads, [course()], 1)
    assert one is job
    assert other is job


def test_parts_that_values_have_in_common_are_sent_once() -> None:
    """A long tuple, a large frame and long bytes go once for all values that have them, and whoever
    unpacks these has one object.
    """
    files = tuple(f"{number}.parquet" for number in range(1000))
    text = b"x" * 2**19
    rows = pl.DataFrame({"a": range(100_000)})
    sent: list[bytes] = []

    def share(data: bytes) -> bytes:
        sent.append(data)
        return data

    packing = Packing(share)
    packed = [packing.pack((number, files, [rows], text, "few")) for number in range(3)]
    assert len(sent) == 3
    assert max(len(data) for data, _ in packed) < 200
    values = [unpack(data, shared) for data, shared in packed]
    assert [value[0] for value in values] == [0, 1, 2]
    assert all(value[1] == files and value[2][0].equals(rows) for value in values)
    assert values[0][1] is values[2][1]
    forget_parts()
