"""A batch of the stream: whole transactions, by table, as the messages that tell of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bronze.source.pgoutput import Described

_NONCE = 12


@dataclass
class Piece:
    """Changes of one table: messages one after another, in memory or in a file, encrypted with a
    ``cipher`` that nobody else has and that ends with this process.

    ``marks`` has, for each transaction, the number of its first change here, its position and
    the time of its commit (as in `bronze.source.pgoutput.Begin`).
    """

    lengths: npt.NDArray[np.int64]
    marks: tuple[tuple[int, int, int], ...]
    data: bytes = field(default=b"", repr=False)
    path: Path | None = None
    cipher: AESGCM | None = field(default=None, repr=False)

    def read(self) -> bytes:
        """The messages."""
        if self.path is None or self.cipher is None:
            return self.data
        sealed = memoryview(self.path.read_bytes())
        return self.cipher.decrypt(bytes(sealed[:_NONCE]), sealed[_NONCE:], None)

    def put_aside(self, path: Path, cipher: AESGCM) -> None:
        """Puts the messages into a file."""
        nonce = os.urandom(_NONCE)
        with path.open("xb") as file:
            file.write(nonce)
            file.write(cipher.encrypt(nonce, self.data, None))
        self.path, self.cipher, self.data = path, cipher, b""


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
    ``committed`` (microseconds since 1970); ``tables`` is by oid.
    """

    tables: dict[int, Gathered] = field(default_factory=dict)
    position: int = 0
    committed: int = 0
    transactions: int = 0
    changes: int = 0
    size: int = 0
    began: float = field(default_factory=time.monotonic)


def pieces(batch: Batch) -> Iterator[Piece]:
    """All pieces of a batch."""
    return (piece for gathered in batch.tables.values() for piece in gathered.pieces)


def release(batch: Batch) -> None:
    """Deletes the files of a batch."""
    for piece in pieces(batch):
        remove(piece)


def remove(piece: Piece) -> None:
    """Deletes the file of a piece, if it has one."""
    if piece.path:
        piece.path.unlink(missing_ok=True)
