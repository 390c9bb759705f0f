"""Arguments and results of tasks, pickled in a way of their own for workers in other processes.

While polars pickles a frame it holds Python's lock, for which its threads wait while they free what
Arrow has read: a deadlock with processes as workers. So frames in a parcel are pickled as Arrow
IPC; all other frames of the user's process are pickled as usual.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import polars as pl

T = TypeVar("T")


@dataclass(frozen=True)
class Parcel(Generic[T]):
    """A value on its way to a worker or back; within a process it is passed as it is."""

    content: T

    def __reduce__(self) -> tuple[Callable[[bytes], Parcel[T]], tuple[bytes]]:
        out = io.BytesIO()
        pickler: Any = pickle.Pickler(out, pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = _TABLE
        pickler.dump(self.content)
        return _unpack, (out.getvalue(),)


def _unpack(data: bytes) -> Parcel[Any]:
    return Parcel(pickle.loads(data))  # noqa: S301 - our own bytes


def _reduce_frame(frame: pl.DataFrame) -> tuple[Callable[[bytes], pl.DataFrame], tuple[bytes]]:
    out = io.BytesIO()
    frame.write_ipc(out)
    return _frame_of, (out.getvalue(),)


def _frame_of(data: bytes) -> pl.DataFrame:
    return pl.read_ipc(io.BytesIO(data))


def _reduce_series(series: pl.Series) -> tuple[Callable[[bytes], pl.Series], tuple[bytes]]:
    _, data = _reduce_frame(series.to_frame())
    return _series_of, data


def _series_of(data: bytes) -> pl.Series:
    return _frame_of(data).to_series()


_TABLE: Any = ChainMap(
    {pl.DataFrame: _reduce_frame, pl.Series: _reduce_series}, copyreg.dispatch_table
)
