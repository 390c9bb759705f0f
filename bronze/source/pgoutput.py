"""The messages of PostgreSQL's logical decoding plugin pgoutput, protocol version 1.

Source: PostgreSQL's documentation, "Logical Replication Message Formats". Row changes come one
message each; they are kept as they come, and taken apart for many rows at once: column after
column, the numbers of all rows in one step. Values are PostgreSQL's text, and are not copied: the
columns are views (Arrow's string_view) into the messages.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from bronze.errors import Mismatch

BEGIN, COMMIT, RELATION, TRUNCATE = b"BCRT"
INSERT, UPDATE, DELETE = b"IUD"
CHANGES = frozenset((INSERT, UPDATE, DELETE))
_NEW, _KEY, _OLD = b"NKO"
_TEXT, _NULL, _UNCHANGED = b"tnu"

# The kind of message and the relation's oid come first.
_HEAD = 5
_INLINE = 12
_PADDING = 16

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Begin:
    """A transaction begins: ``position`` is the LSN of its commit record, ``committed`` the time
    of its commit in microseconds since 1970 (UTC).
    """

    position: int
    committed: int


@dataclass(frozen=True)
class Described:
    """A relation as the stream has it: its columns' names, type oids and modifiers."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Changes:
    """Row changes of one relation, in the order in which they were made.

    Attributes:
        kinds: `INSERT`, `UPDATE` or `DELETE` for each change.
        new: the columns (texts) of the rows as they are now; NULL for deleted rows.
        unchanged: for each column the rows whose value was not sent, as it is large and the same
            as before; None where there are none. Their text is NULL.
        old: the columns of the rows as they were, as far as they are sent; NULL elsewhere.
        keyed: the changes that have such an old row at all.
    """

    kinds: Bytes
    new: pl.DataFrame = field(repr=False)
    unchanged: tuple[Flags | None, ...] = field(repr=False)
    old: pl.DataFrame = field(repr=False)
    keyed: Flags = field(repr=False)


# PostgreSQL counts microseconds from 2000-01-01.
_EPOCH = 946_684_800_000_000
_BEGIN = struct.Struct(">xQqI")
_COMMIT = struct.Struct(">xBQQq")


def begin(message: bytes) -> Begin:
    """Reads the message `BEGIN`."""
    position, committed, _ = _BEGIN.unpack(message)
    return Begin(position, committed + _EPOCH)


def commit(message: bytes) -> int:
    """Reads the message `COMMIT`: the LSN at which the transaction ends."""
    _, _, end, _ = _COMMIT.unpack(message)
    return int(end)


def relation(message: bytes) -> Described:
    """Reads the message `RELATION`."""
    data = message
    (oid,) = struct.unpack_from(">I", data, 1)
    schema, name, rest = data[_HEAD:].split(b"\0", 2)
    identity, count = rest[:1], struct.unpack_from(">h", rest, 1)[0]
    at, columns = 3, []
    for _ in range(count):
        end = rest.index(b"\0", at + 1)
        kind, modifier = struct.unpack_from(">Ii", rest, end + 1)
        columns.append((rest[at + 1 : end].decode(), kind, modifier))
        at = end + 9
    return Described(
        oid, schema.decode() or "pg_catalog", name.decode(), identity.decode(), tuple(columns)
    )


def truncate(message: bytes) -> tuple[int, ...]:
    """Reads the message `TRUNCATE`: the oids of the relations that are emptied."""
    (count,) = struct.unpack_from(">I", message, 1)
    return struct.unpack_from(f">{count}I", message, 6)


def changes(messages: bytes, lengths: Numbers, names: Sequence[str]) -> Changes:
    """Takes messages apart that are changes of one relation.

    Args:
        messages: one after another.
        lengths: the length of each, in bytes.
        names: the relation's columns.

    Raises:
        Mismatch: they are not what the protocol says.
    """
    data = np.frombuffer(messages + bytes(_PADDING), np.uint8)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    kinds, marker = data[starts], data[starts + _HEAD]
    keyed = (marker == _KEY) | (marker == _OLD)
    after = starts + _HEAD
    old, _, ends = _tuples(data, after[keyed] + 1, names)
    # Behind the old row of an update comes the new one.
    after[keyed] = ends
    filled = kinds != DELETE
    if (data[after[filled]] != _NEW).any():
        raise Mismatch("A change in the stream has no row.")
    new, unchanged, ends = _tuples(data, after[filled] + 1, names)
    after[filled] = ends
    if (after != starts + lengths).any():
        raise Mismatch("The changes in the stream are longer or shorter than their columns.")
    return Changes(
        kinds,
        _spread(new, filled),
        tuple(None if flags is None else _placed(flags, filled) for flags in unchanged),
        _spread(old, keyed),
        keyed,
    )


def _tuples(
    data: Bytes, at: Numbers, names: Sequence[str]
) -> tuple[pl.DataFrame, list[Flags | None], Numbers]:
    """The columns of the rows that begin at ``at``, what of them is unchanged, and their ends."""
    counts = data[at].astype(np.int64) << 8 | data[at + 1]
    if (counts != len(names)).any():
        raise Mismatch("A row in the stream has other columns than its relation.")
    at = at + 2
    columns: list[pl.Series] = []
    unchanged: list[Flags | None] = []
    words = np.lib.stride_tricks.sliding_window_view(data, 4)
    for name in names:
        kind = data[at]
        there = kind == _TEXT
        if not (there | (kind == _NULL) | (kind == _UNCHANGED)).all():
            raise Mismatch("A value in the stream is no text.")
        sizes = np.where(there, words[np.where(there, at + 1, 0)].view(">u4")[:, 0], 0)
        sizes = sizes.astype(np.int64)
        columns.append(_viewed(data, at + _HEAD, sizes, there).alias(name))
        same = kind == _UNCHANGED
        unchanged.append(same if same.any() else None)
        at = np.where(there, at + _HEAD + sizes, at + 1)
    frame = pl.DataFrame(columns) if columns else pl.DataFrame(height=len(at))
    return frame, unchanged, at


def _viewed(data: Bytes, starts: Numbers, sizes: Numbers, there: Flags) -> pl.Series:
    """Texts in ``data``, as Arrow's string_view: 16 bytes each, short ones within them."""
    views = np.zeros((len(starts), 16), np.uint8)
    numbers = views.view("<i4")
    numbers[:, 0] = sizes
    short = np.flatnonzero(there & (sizes <= _INLINE))
    windows = np.lib.stride_tricks.sliding_window_view(data, _INLINE)
    inside = np.arange(_INLINE) < sizes[short, None]
    views[short, 4:] = windows[starts[short]] * inside
    long = np.flatnonzero(sizes > _INLINE)
    views[long, 4:8] = windows[starts[long]][:, :4]
    numbers[long, 3] = starts[long]
    bitmap = pa.py_buffer(np.packbits(there, bitorder="little"))
    buffers = [bitmap, pa.py_buffer(views), pa.py_buffer(data)]
    return pl.Series(pa.Array.from_buffers(pa.string_view(), len(starts), buffers))


def _spread(rows: pl.DataFrame, places: Flags) -> pl.DataFrame:
    """Rows at the places that are true; NULL at the others."""
    if places.all():
        return rows
    if not places.any():
        nothing = [pl.lit(None, pl.String).alias(name) for name in rows.columns]
        return pl.DataFrame({"at": places}).select(nothing)
    at = pl.Series(np.where(places, np.cumsum(places) - 1, -1), dtype=pl.Int64)
    return rows.select(pl.all().gather(at.set(at < 0, None)))


def _placed(flags: Flags, places: Flags) -> Flags:
    whole = np.zeros(len(places), np.bool_)
    whole[places] = flags
    return whole
