"""The messages of PostgreSQL's logical decoding plugin pgoutput, protocol version 1.

Source: PostgreSQL's documentation, "Logical Replication Message Formats". Row changes come one
message each; they are kept as they come, and taken apart for many rows at once: column after
column, the numbers of all rows in one step. Values are PostgreSQL's text, and are not copied: the
columns are views (Arrow's string_view) into the messages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
# So many values, of one column or of several, are made views of at once.
_TOGETHER = 1 << 16

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
    """A relation as the stream has it: its columns' names, type oids and modifiers; and the names
    of those whose old values come with an update or a delete (for a partitioned table: the root's).
    """

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[tuple[str, int, int], ...]
    told: frozenset[str] = frozenset()


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
_IDENTITY = 1
_BEGIN = struct.Struct(">xQqI")
_COMMIT = struct.Struct(">xBQQq")


@contextmanager
def _whole(what: str) -> Iterator[None]:
    """A message that is too short, too long or no text is a mismatch."""
    try:
        yield
    except (struct.error, ValueError):
        raise Mismatch(f"The stream has a message {what} that cannot be read.") from None


def begin(message: bytes) -> Begin:
    """Reads the message `BEGIN`.

    Raises:
        Mismatch: it is not what the protocol says; so for the other messages.
    """
    with _whole("BEGIN"):
        position, committed, _ = _BEGIN.unpack(message)
        return Begin(position, committed + _EPOCH)


def commit(message: bytes) -> int:
    """Reads the message `COMMIT`: the LSN at which the transaction ends."""
    with _whole("COMMIT"):
        _, _, end, _ = _COMMIT.unpack(message)
        return int(end)


def relation(message: bytes) -> Described:
    """Reads the message `RELATION`."""
    with _whole("RELATION"):
        (oid,) = struct.unpack_from(">I", message, 1)
        schema, name, rest = message[_HEAD:].split(b"\0", 2)
        identity, count = rest[:1], struct.unpack_from(">h", rest, 1)[0]
        at, columns, told = 3, [], set()
        for _ in range(count):
            end = rest.index(b"\0", at + 1)
            kind, modifier = struct.unpack_from(">Ii", rest, end + 1)
            columns.append((rest[at + 1 : end].decode(), kind, modifier))
            if rest[at] & _IDENTITY:
                told.add(columns[-1][0])
            at = end + 9
        if count < 0 or at != len(rest):
            raise ValueError(count)
        return Described(
            oid,
            schema.decode() or "pg_catalog",
            name.decode(),
            identity.decode(),
            tuple(columns),
            frozenset(told),
        )


def truncate(message: bytes) -> tuple[int, ...]:
    """Reads the message `TRUNCATE`: the oids of the relations that are emptied."""
    with _whole("TRUNCATE"):
        (count,) = struct.unpack_from(">I", message, 1)
        return struct.unpack(f">{count}I", message[6:])


NO_TEXT = "\0"
"""What a value begins with whose bytes are no UTF-8, which no text does; they follow as those of a
bytea: ``\\x`` and hexadecimal digits."""


def changes(
    messages: bytes, lengths: Numbers, names: Sequence[str], any_bytes: bool = False
) -> Changes:
    """Takes messages apart that are changes of one relation.

    Args:
        messages: one after another.
        lengths: the length of each, in bytes.
        names: the relation's columns.
        any_bytes: whether values may be bytes that are no UTF-8 (see `NO_TEXT`).

    Raises:
        Mismatch: they are not what the protocol says.
    """
    if (lengths <= _HEAD).any() or lengths.sum() != len(messages):
        raise Mismatch("The changes in the stream are longer or shorter than they say.")
    data = np.frombuffer(messages + bytes(_PADDING), np.uint8)
    limits = np.cumsum(lengths).astype(np.int64)
    starts = limits - lengths
    kinds, marker = data[starts], data[starts + _HEAD]
    if not np.isin(kinds, list(CHANGES)).all():
        raise Mismatch("A message in the stream is no change of a row.")
    keyed = (marker == _KEY) | (marker == _OLD)
    after = starts + _HEAD
    old, _, ends = _tuples(data, after[keyed] + 1, limits[keyed], names, any_bytes)
    # Behind the old row of an update comes the new one.
    after[keyed] = ends
    filled = kinds != DELETE
    if (data[after[filled]] != _NEW).any():
        raise Mismatch("A change in the stream has no row.")
    new, unchanged, ends = _tuples(data, after[filled] + 1, limits[filled], names, any_bytes)
    after[filled] = ends
    if (after != limits).any():
        raise Mismatch("The changes in the stream are longer or shorter than their columns.")
    return Changes(
        kinds,
        _spread(new, filled),
        tuple(None if flags is None else _placed(flags, filled) for flags in unchanged),
        _spread(old, keyed),
        keyed,
    )


def _tuples(
    data: Bytes, at: Numbers, limits: Numbers, names: Sequence[str], any_bytes: bool
) -> tuple[pl.DataFrame, list[Flags | None], Numbers]:
    """The columns of the rows that begin at ``at``, what of them is unchanged, and their ends.

    None of them goes beyond the end of its message, which is in ``limits``.
    """
    counts = data[at].astype(np.int64) << 8 | data[at + 1]
    if (counts != len(names)).any():
        raise Mismatch("A row in the stream has other columns than its relation.")
    if not len(at):
        return _nothing(names, 0), [None] * len(names), at
    at = at + 2
    columns: list[pl.Series] = []
    unchanged: list[Flags | None] = []
    words = np.lib.stride_tricks.sliding_window_view(data, 4)
    # A step for each column and each piece costs more than the values of wide rows.
    together = max(1, _TOGETHER // len(at))
    for first in range(0, len(names), together):
        group = names[first : first + together]
        kinds = np.empty((len(group), len(at)), np.uint8)
        starts, sizes = (np.empty(kinds.shape, np.int64) for _ in range(2))
        for i in range(len(group)):
            kinds[i] = data[at]
            there = kinds[i] == _TEXT
            sizes[i] = np.where(there, words[at + 1].view(">u4")[:, 0], 0)
            starts[i] = at + _HEAD
            at = at + 1 + (_HEAD - 1) * there + sizes[i]
            # The views are not looked at again: what they say is read, whatever it is.
            if (at > limits).any():
                raise Mismatch("A value in the stream is longer than its message.")
        there, same = kinds == _TEXT, kinds == _UNCHANGED
        if not (there | (kinds == _NULL) | same).all():
            raise Mismatch("A value in the stream is no text.")
        texts = _viewed(data, starts.ravel(), sizes.ravel(), there.ravel(), any_bytes)
        size = kinds.shape[1]
        columns += [texts.slice(i * size, size).alias(name) for i, name in enumerate(group)]
        unchanged += [same[i] if found else None for i, found in enumerate(same.any(axis=1))]
    frame = pl.DataFrame(columns) if columns else pl.DataFrame(height=len(at))
    return frame, unchanged, at


def _viewed(
    data: Bytes, starts: Numbers, sizes: Numbers, there: Flags, any_bytes: bool
) -> pl.Series:
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
    texts = pa.Array.from_buffers(pa.string_view(), len(starts), buffers)
    try:
        # Nobody after us looks whether these are strings.
        texts.validate(full=True)
    except pa.ArrowInvalid:
        if any_bytes:
            return _of_bytes(data, starts, sizes, there)
        raise Mismatch("A value in the stream is no text in UTF-8.") from None
    return pl.Series(texts)


def _of_bytes(data: Bytes, starts: Numbers, sizes: Numbers, there: Flags) -> pl.Series:
    """Texts in ``data``, some of which are none."""

    def text(value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"{NO_TEXT}\\x{value.hex()}"

    values = zip(starts.tolist(), sizes.tolist(), there.tolist(), strict=True)
    found = [text(data[at : at + size].tobytes()) if some else None for at, size, some in values]
    return pl.Series(found, dtype=pl.String)


def _spread(rows: pl.DataFrame, places: Flags) -> pl.DataFrame:
    """Rows at the places that are true; NULL at the others."""
    if places.all():
        return rows
    if not rows.width:
        return pl.DataFrame(height=len(places))
    if not places.any():
        return _nothing(rows.columns, len(places))
    at = pl.Series(np.where(places, np.cumsum(places) - 1, -1), dtype=pl.Int64)
    return rows.select(pl.all().gather(at.set(at < 0, None)))


def _nothing(names: Sequence[str], height: int) -> pl.DataFrame:
    if not names:
        return pl.DataFrame(height=height)
    nothing = pl.Series([None], dtype=pl.String).new_from_index(0, height)
    return pl.DataFrame([nothing.alias(name) for name in names])


def _placed(flags: Flags, places: Flags) -> Flags:
    whole = np.zeros(len(places), np.bool_)
    whole[places] = flags
    return whole
