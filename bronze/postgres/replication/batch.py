"""A batch of the stream: whole transactions, by table, as the messages that tell of them."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bronze.postgres.replication.pgoutput import Described

_NONCE = 12


class Spool:
    """A file for what a batch has too much of, encrypted with a key that nobody else has.

    It has no name, so that nothing is left of it when the process has ended, however it did.
    """

    def __init__(self) -> None:
        """Makes it in the folder for temporary files."""
        # POSIX: it is unlinked as soon as it is open. Windows: it is deleted when it is closed.
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it outlives this call
        self._cipher = AESGCM(AESGCM.generate_key(256))
        self._lock = threading.Lock()

    def put(self, data: bytes) -> tuple[int, int]:
        """Adds data; gives where it is, and how long it is there."""
        nonce = os.urandom(_NONCE)
        sealed = memoryview(nonce + self._cipher.encrypt(nonce, data, None))
        with self._lock:
            place = start = self._file.seek(0, os.SEEK_END)
            while place < start + len(sealed):
                place += self._file.write(sealed[place - start :]) or 0
        return start, len(sealed)

    def get(self, place: int, length: int) -> bytes:
        """The data that were put there."""
        with self._lock:
            self._file.seek(place)
            sealed = bytearray()
            while len(sealed) < length and (part := self._file.read(length - len(sealed))):
                sealed += part
        return self._cipher.decrypt(bytes(sealed[:_NONCE]), memoryview(sealed)[_NONCE:], None)

    @property
    def closed(self) -> bool:
        """Whether it is deleted."""
        return self._file.closed

    def close(self) -> None:
        """Deletes it."""
        self._file.close()


@dataclass
class Piece:
    """Changes of one table: messages one after another, in memory or ``aside`` in a spool.

    ``marks`` has, for each transaction, the number of its first change here, its position and
    the time of its commit (as in `bronze.postgres.replication.pgoutput.Begin`).
    """

    lengths: npt.NDArray[np.int64]
    marks: tuple[tuple[int, int, int], ...]
    data: bytes = field(default=b"", repr=False)
    aside: tuple[Spool, int, int] | None = None

    def read(self) -> bytes:
        """The messages."""
        if self.aside is None:
            return self.data
        spool, place, length = self.aside
        return spool.get(place, length)

    def put_aside(self, spool: Spool) -> None:
        """Puts the messages into a spool."""
        self.aside, self.data = (spool, *spool.put(self.data)), b""


@dataclass
class Gathered:
    """What happened to one table within a batch.

    Where it was truncated, what was before is left out, and ``emptied`` is the position of that
    transaction. ``drifted`` says that its columns changed in between. Of a table with a change
    that is too large for the memory nothing else is there but its size, ``oversize`` (bytes).
    """

    described: Described
    pieces: list[Piece] = field(default_factory=list)
    emptied: int | None = None
    drifted: bool = False
    oversize: int = 0


@dataclass
class Batch:
    """Whole transactions, the last of which ends at ``position`` (an LSN) and was committed at
    ``committed`` (microseconds since 1970); ``tables`` is by oid, ``transactions`` is how many of
    them have to do with these, and ``spool`` has what is put aside.
    """

    tables: dict[int, Gathered] = field(default_factory=dict)
    position: int = 0
    committed: int = 0
    transactions: int = 0
    changes: int = 0
    size: int = 0
    began: float = field(default_factory=time.monotonic)
    spool: Spool | None = None


def pieces(batch: Batch) -> Iterator[Piece]:
    """All pieces of a batch."""
    return (piece for gathered in batch.tables.values() for piece in gathered.pieces)


def release(batch: Batch) -> None:
    """Deletes what a batch has put aside."""
    if batch.spool:
        batch.spool.close()
