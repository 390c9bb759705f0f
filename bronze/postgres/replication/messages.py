"""Messages of the streaming replication protocol that arrived together, sorted out many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bronze.postgres.replication import pgoutput
from bronze.postgres.replication.pgoutput import Numbers

DATA, KEEPALIVE = b"wk"
OVERSIZE = 0
"""The kind of a row change that is too large to be received. No message of pgoutput has it."""

LARGE = 2**18
"""The bytes of messages that are handled at once. A message of this size is the last of them, and
is not copied more often than needed."""

# The header of an XLogData message: its kind, two positions and a time. With what follows, the
# kind of the pgoutput message and the oid of a row change, it is the head.
_HEADER = 25
_HEAD = _HEADER + 5


@dataclass(frozen=True)
class Messages:
    """Messages in the order in which they arrived.

    Attributes:
        kinds: `KEEPALIVE`, `OVERSIZE`, or the kind of the message of pgoutput.
        oids: the oids of the relations of row changes.
        lengths: the bytes of the messages of pgoutput.
    """

    kinds: npt.NDArray[np.uint8]
    oids: Numbers
    lengths: Numbers
    _views: Sequence[Any] = field(repr=False)
    # The joined views, or their heads if ``_is_whole`` is false, and where each begins.
    _data: npt.NDArray[np.uint8] = field(repr=False)
    _starts: Numbers = field(repr=False)
    _is_whole: bool = True

    def __len__(self) -> int:
        """The number of messages."""
        return len(self.kinds)

    def between(self, low: int, high: int) -> Messages:
        """Some messages."""
        places = slice(low, high)
        return Messages(
            self.kinds[places],
            self.oids[places],
            self.lengths[places],
            self._views[places],
            self._data,
            self._starts[places],
            self._is_whole,
        )

    def whole(self, place: int) -> bytes:
        """A message with its header."""
        return bytes(self._views[place])

    def body(self, place: int) -> bytes:
        """A message of pgoutput."""
        return bytes(self._views[place][_HEADER:])

    def joined(self, places: Numbers) -> bytes:
        """Some messages of pgoutput, one behind the other."""
        if not len(places):
            return b""
        if not self._is_whole:
            return b"".join([view[_HEADER:] for view in map(self._views.__getitem__, places)])
        lengths = self.lengths[places]
        ends = np.cumsum(lengths)
        shifts = self._starts[places] + _HEADER - (ends - lengths)
        # A step for all bytes takes less than one for each message, as most are short.
        at = np.repeat(shifts.astype(np.int32), lengths)
        at += np.arange(len(at), dtype=np.int32)
        return self._data.take(at).tobytes()


def messages_of(views: list[Any], largest: int) -> Messages:
    """Sorts messages out.

    Args:
        views: the messages, as bytes or as libpq returns them. Only the last one may be large.
        largest: the bytes that a row change may have, at least `LARGE`; a larger one is dropped but
            for its head.
    """
    lengths = np.fromiter(map(len, views), np.int64, len(views))
    heads = views
    is_whole = not len(lengths) or lengths[-1] < LARGE
    is_oversize = not is_whole and _is_oversize(views[-1], largest)
    if is_oversize:
        # Frees the rest of it.
        views[-1] = bytes(views[-1][:_HEAD])
    if not is_whole:
        heads = [*views[:-1], views[-1][:_HEAD]]
    kept = lengths.copy()
    kept[len(lengths) - (not is_whole) :] = _HEAD
    starts = np.cumsum(kept) - kept
    data = np.frombuffer(b"".join(heads) + bytes(_HEAD), np.uint8)
    kinds = np.where(data[starts] == DATA, data[starts + _HEADER], data[starts])
    if is_oversize:
        kinds[-1] = OVERSIZE
    words = np.lib.stride_tricks.sliding_window_view(data, 4)
    oids = words[starts + _HEADER + 1].view(">u4")[:, 0].astype(np.int64)
    return Messages(kinds, oids, lengths - _HEADER, views, data, starts, is_whole)


def _is_oversize(view: Any, largest: int) -> bool:
    return len(view) > largest and view[0] == DATA and view[_HEADER] in pgoutput.CHANGES
