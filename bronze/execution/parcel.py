"""Arguments and results of tasks, pickled in a way of their own for workers in other processes.

While polars pickles a frame it holds Python's lock, for which its threads wait while they free what
Arrow has read: a deadlock with processes as workers. So frames in a parcel are pickled as Arrow
IPC; all other frames of the user's process are pickled as usual.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import zlib
from collections import ChainMap, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
import polars as pl

T = TypeVar("T")

# A value of so many items or bytes is sent once for all tasks that have it.
_SHARED_ITEMS = 256
_SHARED_BYTES = 2**18
# So many of them are known at a time: they stay in memory meanwhile.
_KEPT = 16


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


class Packing:
    """Packs values that have large parts in common, such as the files of a table in each of its
    units. A part is given to ``share``, packed, when it is met first; what that returns stands for
    the part from then on.
    """

    def __init__(self, share: Callable[[bytes], Any]) -> None:
        self._share = share
        # By the id of a part, which is kept so that no other object gets this id.
        self._known: OrderedDict[int, tuple[Any, Any]] = OrderedDict()

    def pack(self, value: Any) -> tuple[bytes, list[Any]]:
        """The value without the parts that it shares with others, and what stands for these."""
        shared: dict[int, tuple[int, Any]] = {}

        def persistent_id(part: Any) -> int | None:
            if not _is_large(part):
                return None
            if id(part) not in shared:
                shared[id(part)] = len(shared), self._stand_in(part)
            return shared[id(part)][0]

        data = _dump(value, persistent_id)
        return data, [stand_in for _, stand_in in shared.values()]

    def _stand_in(self, part: Any) -> Any:
        if id(part) in self._known:
            self._known.move_to_end(id(part))
        else:
            data = zlib.compress(_dump(part, lambda _: None), 1)
            self._known[id(part)] = part, self._share(data)
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return self._known[id(part)][1]


def unpack(data: bytes, shared: Sequence[bytes]) -> Any:
    """A value that was packed by `Packing`, with the shared parts as these were packed."""
    return _Unpickler(io.BytesIO(data), shared).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: io.BytesIO, shared: Sequence[bytes]) -> None:
        super().__init__(data)
        self._shared = shared

    def persistent_load(self, pid: Any) -> Any:
        """The part that a number stands for."""
        return _part(self._shared[pid])


@lru_cache(_KEPT // 4)
def _part(data: bytes) -> Any:
    # All tasks of a worker have the same object, which takes memory once.
    return pickle.loads(zlib.decompress(data))  # noqa: S301 - our own bytes


def forget_parts() -> None:
    """Frees the shared parts that `unpack` has kept."""
    _part.cache_clear()


def _is_large(part: Any) -> bool:
    if isinstance(part, tuple):
        return len(part) >= _SHARED_ITEMS
    if isinstance(part, pl.DataFrame):
        return part.estimated_size() >= _SHARED_BYTES
    if isinstance(part, np.ndarray):
        return part.nbytes >= _SHARED_BYTES
    return isinstance(part, bytes) and len(part) >= _SHARED_BYTES


def _dump(value: Any, persistent_id: Callable[[Any], int | None]) -> bytes:
    out = io.BytesIO()
    _Pickler(out, persistent_id).dump(value)
    return out.getvalue()


class _Pickler(pickle.Pickler):
    dispatch_table = _TABLE

    def __init__(self, out: io.BytesIO, persistent_id: Callable[[Any], int | None]) -> None:
        super().__init__(out, pickle.HIGHEST_PROTOCOL)
        self._id_of = persistent_id

    # A method: from Python 3.13 on it cannot be set.
    def persistent_id(self, obj: Any) -> int | None:
        """What stands for an object; None for the object itself."""
        return self._id_of(obj)
