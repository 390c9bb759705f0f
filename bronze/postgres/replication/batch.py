"""A batch of a stream: the pgoutput messages of whole transactions, grouped by table."""

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

from bronze.postgres.replication.pgoutput import RelationMessage

_NONCE = 12

Marks = npt.NDArray[np.int64]
"""Transactions of changes, an array of three columns: the index of the first change, and position
and commit time as of `bronze.postgres.replication.pgoutput.read_begins`."""


class Spool:
    """A temporary file for the part of a batch that exceeds the memory.

    It is encrypted with a key that only this object has, and has no name, so that nothing remains
    when the process ends, even if it is killed.
    """

    def __init__(self) -> None:
        """Creates the file in the folder for temporary files."""
        # POSIX unlinks the file once it is open, Windows deletes it when it is closed.
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it outlives this call
        self._cipher = AESGCM(AESGCM.generate_key(256))
        self._lock = threading.Lock()

    def put(self, data: bytes) -> tuple[int, int]:
        """Appends data; returns its offset and length in the file."""
        nonce = os.urandom(_NONCE)
        encrypted = memoryview(nonce + self._cipher.encrypt(nonce, data, None))
        with self._lock:
            offset = start = self._file.seek(0, os.SEEK_END)
            while offset < start + len(encrypted):
                offset += self._file.write(encrypted[offset - start :]) or 0
        return start, len(encrypted)

    def get(self, offset: int, length: int) -> bytes:
        """The data at an offset that `put` returned."""
        with self._lock:
            self._file.seek(offset)
            encrypted = bytearray()
            while len(encrypted) < length and (part := self._file.read(length - len(encrypted))):
                encrypted += part
        return self._cipher.decrypt(bytes(encrypted[:_NONCE]), memoryview(encrypted)[_NONCE:], None)

    @property
    def closed(self) -> bool:
        """Whether the file is deleted."""
        return self._file.closed

    def close(self) -> None:
        """Deletes the file."""
        self._file.close()


@dataclass
class Piece:
    """Changes of one table: concatenated messages, in ``data`` or in a spool.

    ``lengths`` are those of the messages, ``marks`` their transactions. ``spooled`` is the spool
    with the messages, and their offset and length in it.
    """

    lengths: npt.NDArray[np.int64]
    marks: Marks
    data: bytes = field(default=b"", repr=False)
    spooled: tuple[Spool, int, int] | None = None

    @property
    def size(self) -> int:
        """The bytes in memory."""
        return len(self.data) + self.lengths.nbytes + self.marks.nbytes

    def read(self) -> bytes:
        """The messages."""
        if self.spooled is None:
            return self.data
        spool, offset, length = self.spooled
        return spool.get(offset, length)

    def move_to_spool(self, spool: Spool) -> None:
        """Moves the messages into a spool."""
        self.spooled, self.data = (spool, *spool.put(self.data)), b""


@dataclass
class TableChanges:
    """The changes of one table in a batch.

    ``truncated`` is the position of the last transaction that truncated the table (None: none);
    changes before the TRUNCATE are left out. ``drifted`` says that its columns changed within the
    batch. ``oversize`` is the size in bytes of a change that is too large for the memory (0: there
    is none); then ``pieces`` is empty.
    """

    described: RelationMessage
    pieces: list[Piece] = field(default_factory=list)
    truncated: int | None = None
    drifted: bool = False
    oversize: int = 0


@dataclass
class Batch:
    """Whole transactions of a stream.

    ``tables`` is by oid. The last transaction ends at ``position`` (an LSN) and was committed at
    ``committed`` (microseconds since 1970). ``transactions`` is the number of transactions that
    changed these tables, ``changes`` that of row changes, ``size`` the bytes that these take in
    memory and in the spool. ``began`` is the monotonic time of the first transaction. ``spool`` is
    the file for messages beyond the memory.
    """

    tables: dict[int, TableChanges] = field(default_factory=dict)
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
    """Deletes the spool of a batch."""
    if batch.spool:
        batch.spool.close()
