"""Parses the messages of PostgreSQL's logical decoding plugin pgoutput, protocol version 1.

Source: PostgreSQL's documentation, "Logical Replication Message Formats". The messages of row
changes are parsed many at once, column by column, with vectorised steps over all rows. Values are
PostgreSQL's text, and are not copied: the columns are views (Arrow's string_view) into the
messages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

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

# A change begins with the kind of message and the oid of the relation.
_HEAD = 5
_INLINE = 12
_PADDING = 16
# Up to this number of values, the views of several columns are made in one step.
_GROUP_VALUES = 1 << 16

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class RelationMessage:
    """A relation as the stream describes it.

    ``identity`` is pg_class.relreplident, ``columns`` are name, type oid and type modifier of each
    column, ``identifying`` the names of the columns that old rows have in an update or a delete
    (of a partitioned table: by the root).
    """

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[tuple[str, int, int], ...]
    identifying: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RowChanges:
    """Row changes of one relation, in the order of the stream.

    Attributes:
        kinds: `INSERT`, `UPDATE` or `DELETE` for each change.
        new: the new rows, as columns of texts; NULL for deleted rows.
        unchanged: for each column the rows with an unchanged TOAST value, which is not sent: its
            text is NULL. None where there are none.
        old: the old rows; NULL where they are not sent.
        keyed: the changes with an old row.
    """

    kinds: Bytes
    new: pl.DataFrame = field(repr=False)
    unchanged: tuple[Flags | None, ...] = field(repr=False)
    old: pl.DataFrame = field(repr=False)
    keyed: Flags = field(repr=False)


# PostgreSQL counts microseconds from 2000-01-01.
_EPOCH = 946_684_800_000_000
_IDENTITY = 1
_BEGIN = np.dtype([("", "u1"), ("position", ">i8"), ("committed", ">i8"), ("xid", ">u4")])
_COMMIT = np.dtype(
    [("", "u1"), ("flags", "u1"), ("position", ">i8"), ("end", ">i8"), ("committed", ">i8")]
)


@contextmanager
def _parsing(name: str) -> Iterator[None]:
    """Raises a `Mismatch` for a message that is too short or too long, or has invalid text."""
    try:
        yield
    except (struct.error, ValueError):
        raise Mismatch(f"The stream has a {name} message that cannot be parsed.") from None


def read_begins(messages: bytes, lengths: Numbers) -> Numbers:
    """Parses `BEGIN` messages, concatenated.

    Returns:
        For each transaction the LSN of its commit record, and the time of its commit in
        microseconds since 1970 (UTC): an array of two columns.

    Raises:
        Mismatch: they do not follow the protocol; so for the other messages.
    """
    begins = _records(messages, lengths, _BEGIN, "BEGIN")
    return np.stack([begins["position"], begins["committed"] + _EPOCH], axis=1).astype(np.int64)


def read_commits(messages: bytes, lengths: Numbers) -> Numbers:
    """Parses `COMMIT` messages, concatenated: the LSNs at which the transactions end."""
    return _records(messages, lengths, _COMMIT, "COMMIT")["end"].astype(np.int64)


def _records(messages: bytes, lengths: Numbers, kind: np.dtype[Any], name: str) -> npt.NDArray[Any]:
    with _parsing(name):
        if (lengths != kind.itemsize).any():
            raise ValueError(name)
        return np.frombuffer(messages, kind)


def read_relation(message: bytes) -> RelationMessage:
    """Parses a `RELATION` message."""
    with _parsing("RELATION"):
        (oid,) = struct.unpack_from(">I", message, 1)
        schema, name, rest = message[_HEAD:].split(b"\0", 2)
        identity, count = rest[:1], struct.unpack_from(">h", rest, 1)[0]
        at, columns, identity_columns = 3, [], set()
        for _ in range(count):
            end = rest.index(b"\0", at + 1)
            kind, modifier = struct.unpack_from(">Ii", rest, end + 1)
            columns.append((rest[at + 1 : end].decode(), kind, modifier))
            if rest[at] & _IDENTITY:
                identity_columns.add(columns[-1][0])
            at = end + 9
        if count < 0 or at != len(rest):
            raise ValueError(count)
        return RelationMessage(
            oid,
            schema.decode() or "pg_catalog",
            name.decode(),
            identity.decode(),
            tuple(columns),
            frozenset(identity_columns),
        )


def read_truncate(message: bytes) -> tuple[int, ...]:
    """Parses a `TRUNCATE` message: the oids of the truncated relations."""
    with _parsing("TRUNCATE"):
        (count,) = struct.unpack_from(">I", message, 1)
        return struct.unpack(f">{count}I", message[6:])


NO_TEXT = "\0"
"""The prefix of a value that is not valid UTF-8; no text of PostgreSQL has it. The bytes follow as
those of a bytea: ``\\x`` and hexadecimal digits."""


def read_changes(
    messages: bytes, lengths: Numbers, names: Sequence[str], any_bytes: bool = False
) -> RowChanges:
    """Parses messages that are changes of one relation.

    Args:
        messages: the concatenated messages.
        lengths: the length of each, in bytes.
        names: the relation's columns.
        any_bytes: whether values may be invalid UTF-8 (see `NO_TEXT`).

    Raises:
        Mismatch: they do not follow the protocol.
    """
    if (lengths <= _HEAD).any() or lengths.sum() != len(messages):
        raise Mismatch("The row changes in the stream do not have the length of their messages.")
    data = np.frombuffer(messages + bytes(_PADDING), np.uint8)
    limits = np.cumsum(lengths).astype(np.int64)
    starts = limits - lengths
    kinds, marker = data[starts], data[starts + _HEAD]
    if not np.isin(kinds, list(CHANGES)).all():
        raise Mismatch("A message in the stream is not a row change.")
    keyed = (marker == _KEY) | (marker == _OLD)
    after = starts + _HEAD
    old, _, ends = _rows(data, after[keyed] + 1, limits[keyed], names, any_bytes)
    # The new row of an update follows the old one.
    after[keyed] = ends
    filled = kinds != DELETE
    if (data[after[filled]] != _NEW).any():
        raise Mismatch("A change in the stream has no row.")
    new, unchanged, ends = _rows(data, after[filled] + 1, limits[filled], names, any_bytes)
    after[filled] = ends
    if (after != limits).any():
        raise Mismatch("The row changes in the stream do not have the length of their columns.")
    return RowChanges(
        kinds,
        _expand(new, filled),
        tuple(None if flags is None else _expand_flags(flags, filled) for flags in unchanged),
        _expand(old, keyed),
        keyed,
    )


def _rows(
    data: Bytes, at: Numbers, limits: Numbers, names: Sequence[str], any_bytes: bool
) -> tuple[pl.DataFrame, list[Flags | None], Numbers]:
    """Parses the rows that begin at the offsets ``at``, in messages that end at ``limits``.

    Returns:
        Their columns; for each column the rows with an unchanged TOAST value (None: no row has
        one); and the offsets at which the rows end.
    """
    counts = data[at].astype(np.int64) << 8 | data[at + 1]
    if (counts != len(names)).any():
        raise Mismatch("A row in the stream does not have the columns of its relation.")
    if not len(at):
        return _null_frame(names, 0), [None] * len(names), at
    at = at + 2
    columns: list[pl.Series] = []
    unchanged: list[Flags | None] = []
    # A step for each column costs more than the values of wide rows.
    width = max(1, _GROUP_VALUES // len(at))
    for first in range(0, len(names), width):
        group = names[first : first + width]
        kinds, starts, sizes, at = _values(data, at, limits, len(group))
        present, same = kinds == _TEXT, kinds == _UNCHANGED
        if not (present | (kinds == _NULL) | same).all():
            raise Mismatch("A value in the stream is not sent as text.")
        texts = _texts(data, starts.ravel(), sizes.ravel(), present.ravel(), any_bytes)
        height = kinds.shape[1]
        columns += [texts.slice(i * height, height).alias(name) for i, name in enumerate(group)]
        unchanged += [same[i] if some else None for i, some in enumerate(same.any(axis=1))]
    frame = pl.DataFrame(columns) if columns else pl.DataFrame(height=len(at))
    return frame, unchanged, at


def _values(
    data: Bytes, at: Numbers, limits: Numbers, count: int
) -> tuple[Bytes, Numbers, Numbers, Numbers]:
    """Locates the next ``count`` values of each row.

    Returns:
        Kind, offset and size of the values, an array of columns by rows each; and the offsets
        behind the last value of each row.
    """
    words = np.lib.stride_tricks.sliding_window_view(data, 4)
    kinds = np.empty((count, len(at)), np.uint8)
    starts, sizes = (np.empty(kinds.shape, np.int64) for _ in range(2))
    for i in range(count):
        kinds[i] = data[at]
        present = kinds[i] == _TEXT
        sizes[i] = np.where(present, words[at + 1].view(">u4")[:, 0], 0)
        starts[i] = at + _HEAD
        at = at + 1 + (_HEAD - 1) * present + sizes[i]
        # Arrow does not check where the views point to: no value may exceed its message.
        if (at > limits).any():
            raise Mismatch("A value in the stream is longer than its message.")
    return kinds, starts, sizes, at


def _texts(
    data: Bytes, starts: Numbers, sizes: Numbers, present: Flags, any_bytes: bool
) -> pl.Series:
    """Texts in ``data`` as Arrow's string_view: views of 16 bytes, which contain short texts."""
    views = np.zeros((len(starts), 16), np.uint8)
    numbers = views.view("<i4")
    numbers[:, 0] = sizes
    short = np.flatnonzero(present & (sizes <= _INLINE))
    windows = np.lib.stride_tricks.sliding_window_view(data, _INLINE)
    inside = np.arange(_INLINE) < sizes[short, None]
    views[short, 4:] = windows[starts[short]] * inside
    long = np.flatnonzero(sizes > _INLINE)
    views[long, 4:8] = windows[starts[long]][:, :4]
    numbers[long, 3] = starts[long]
    bitmap = pa.py_buffer(np.packbits(present, bitorder="little"))
    buffers = [bitmap, pa.py_buffer(views), pa.py_buffer(data)]
    texts = pa.Array.from_buffers(pa.string_view(), len(starts), buffers)
    try:
        # No later step checks that these are valid UTF-8.
        texts.validate(full=True)
    except pa.ArrowInvalid:
        if any_bytes:
            return _texts_of_any_bytes(data, starts, sizes, present)
        raise Mismatch("A value in the stream is not valid UTF-8.") from None
    return pl.Series(texts)


def _texts_of_any_bytes(data: Bytes, starts: Numbers, sizes: Numbers, present: Flags) -> pl.Series:
    """Texts in ``data``, some of them invalid UTF-8 (see `NO_TEXT`)."""

    def text(value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"{NO_TEXT}\\x{value.hex()}"

    values = zip(starts.tolist(), sizes.tolist(), present.tolist(), strict=True)
    texts = [
        text(data[at : at + size].tobytes()) if present else None for at, size, present in values
    ]
    return pl.Series(texts, dtype=pl.String)


def _expand(rows: pl.DataFrame, places: Flags) -> pl.DataFrame:
    """The rows at the places that are true, NULL at the others."""
    if places.all():
        return rows
    if not rows.width:
        return pl.DataFrame(height=len(places))
    if not places.any():
        return _null_frame(rows.columns, len(places))
    at = pl.Series(np.where(places, np.cumsum(places) - 1, -1), dtype=pl.Int64)
    return rows.select(pl.all().gather(at.set(at < 0, None)))


def _null_frame(names: Sequence[str], height: int) -> pl.DataFrame:
    if not names:
        return pl.DataFrame(height=height)
    nulls = pl.Series([None], dtype=pl.String).new_from_index(0, height)
    return pl.DataFrame([nulls.alias(name) for name in names])


def _expand_flags(flags: Flags, places: Flags) -> Flags:
    expanded = np.zeros(len(places), np.bool_)
    expanded[places] = flags
    return expanded
