"""What goes to a worker, and comes back: as it is, or as bytes where that is another process.

As polars pickles a frame it holds Python's lock, for which its threads wait as they free what Arrow
has read: with workers that are processes both would wait for ever. So frames go as Arrow writes
them, whichever executor it is; other frames of the user's process are pickled as polars does it.
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
    """Something that is opened where it arrives; within a process it is what was put into it."""

    content: T

    def __reduce__(self) -> tuple[Callable[[bytes], Parcel[T]], tuple[bytes]]:
        out = io.BytesIO()
        pickler: Any = pickle.Pickler(out, pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = _TABLE
        pickler.dump(self.content)
        return _arrived, (out.getvalue(),)


def _arrived(data: bytes) -> Parcel[Any]:
    return Parcel(pickle.loads(data))  # noqa: S301 - our own bytes


def _sent(frame: pl.DataFrame) -> tuple[Callable[[bytes], pl.DataFrame], tuple[bytes]]:
    out = io.BytesIO()
    frame.write_ipc(out)
    return _received, (out.getvalue(),)


def _received(data: bytes) -> pl.DataFrame:
    return pl.read_ipc(io.BytesIO(data))


def _sent_alone(series: pl.Series) -> tuple[Callable[[bytes], pl.Series], tuple[bytes]]:
    _, data = _sent(series.to_frame())
    return _received_alone, data


def _received_alone(data: bytes) -> pl.Series:
    return _received(data).to_series()


_TABLE: Any = ChainMap({pl.DataFrame: _sent, pl.Series: _sent_alone}, copyreg.dispatch_table)
