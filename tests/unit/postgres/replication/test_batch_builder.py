"""Messages of a stream become batches: the same, however many of them arrive at once."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bronze.errors import Mismatch, SourceRewound
from bronze.postgres.replication import batch_builder
from bronze.postgres.replication import messages as arriving
from bronze.postgres.replication.batch import Batch
from bronze.postgres.replication.batch_builder import BatchBuilder
from bronze.postgres.replication.messages import OVERSIZE, messages_of
from bronze.postgres.replication.rewind import KnownTransactions

TABLES = (1, 2, 70_000)
OTHER = 9
LARGEST = 400
EPOCH = 946_684_800_000_000


def framed(body: bytes) -> bytes:
    """A message of pgoutput as the server sends it."""
    return b"w" + bytes(24) + body


def begin(number: int) -> bytes:
    """The begin of a transaction at position ``number * 100``."""
    return struct.pack(">cQqI", b"B", number * 100, number, number)


def commit(number: int) -> bytes:
    """Its end, at the position after it."""
    return struct.pack(">cBQQq", b"C", 0, number * 100, number * 100 + 1, number)


def change(kind: bytes, oid: int, content: bytes) -> bytes:
    """A row change."""
    return kind + struct.pack(">I", oid) + content


def relation(oid: int, columns: tuple[str, ...] = ("k",)) -> bytes:
    """A description of a relation."""
    head = struct.pack(">cI", b"R", oid) + b"s\0t\0d" + struct.pack(">h", len(columns))
    ends = (b"\1" + name.encode() + b"\0" + struct.pack(">Ii", 25, -1) for name in columns)
    return head + b"".join(ends)


def truncate(*oids: int) -> bytes:
    """A TRUNCATE of some relations."""
    return struct.pack(f">cIB{len(oids)}I", b"T", len(oids), 0, *oids)


@dataclass
class Expected:
    """What a batch has of a table."""

    changes: list[tuple[bytes, int, int]] = field(default_factory=list)
    truncated: int | None = None
    drifted: bool = False
    oversize: int = 0


def model(stream: list[bytes]) -> tuple[dict[int, Expected], int]:
    """The tables of the batch of a stream, and the number of its transactions, one by one."""
    tables: dict[int, Expected] = {}
    columns: dict[int, bytes] = {}
    position = committed = transactions = 0
    relevant = False
    for body in stream:
        kind, oid = body[:1], struct.unpack_from(">I", body, 1)[0]
        if kind == b"B":
            relevant = False
            position, committed = struct.unpack_from(">Qq", body, 1)
        elif kind == b"C":
            transactions += relevant
        elif kind == b"R":
            if oid in tables:
                tables[oid].drifted |= columns[oid] != body
            columns[oid] = body
        elif kind == b"T":
            for other in struct.unpack_from(f">{oid}I", body, 6):
                if other in TABLES:
                    table = tables.setdefault(other, Expected())
                    table.changes, table.truncated, relevant = [], position, True
        elif kind in b"IUD" and oid in TABLES:
            table = tables.setdefault(oid, Expected())
            relevant = True
            if len(framed(body)) > LARGEST:
                table.changes = []
                table.oversize = max(table.oversize, len(body))
            elif not table.oversize:
                table.changes.append((body, position, committed + EPOCH))
    return tables, transactions


def contents(batch: Batch) -> dict[int, Expected]:
    """What a batch has of its tables."""
    found: dict[int, Expected] = {}
    for oid, gathered in batch.tables.items():
        changes: list[tuple[bytes, int, int]] = []
        for piece in gathered.pieces:
            data, at = piece.read(), 0
            assert piece.marks[0, 0] == 0
            assert (np.diff(piece.marks[:, 1]) != 0).all()
            numbers = np.searchsorted(piece.marks[:, 0], np.arange(len(piece.lengths)), "right")
            for length, number in zip(piece.lengths.tolist(), numbers.tolist(), strict=True):
                _, position, committed = piece.marks[number - 1].tolist()
                changes.append((data[at : at + length], position, committed))
                at += length
            assert at == len(data)
        found[oid] = Expected(changes, gathered.truncated, gathered.drifted, gathered.oversize)
    return found


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Whole transactions, with everything that may be in them."""
    stream = [relation(oid) for oid in (*TABLES, OTHER)]
    oids = st.sampled_from((*TABLES, OTHER))
    usual = st.builds(
        change, st.sampled_from([b"I", b"U", b"D"]), oids, st.binary(min_size=0, max_size=40)
    )
    rare = st.one_of(
        st.builds(lambda oid, size: change(b"I", oid, bytes(size)), oids, st.integers(380, 500)),
        st.builds(truncate, oids, oids),
        st.builds(relation, oids, st.sampled_from([("k",), ("k", "v")])),
        st.sampled_from([b"O" + bytes(12), b"Y" + bytes(30), b"M" + bytes(20)]),
    )
    few = st.lists(usual | usual | usual | rare, max_size=8)
    for number, bodies in enumerate(draw(st.lists(few, min_size=1, max_size=8)), 1):
        stream += [begin(number), *bodies, commit(number)]
    return stream


@given(stream=streams(), data=st.data())
def test_a_batch_does_not_depend_on_how_many_messages_arrive_at_once(
    stream: list[bytes], data: st.DataObject
) -> None:
    """Also in several pieces, in memory and spooled, and with large messages at the end."""
    piece = data.draw(st.sampled_from([40, 200, 10**6]))
    memory = data.draw(st.sampled_from([0, 100, 10**6]))
    large = data.draw(st.sampled_from([60, LARGEST]))
    with pytest.MonkeyPatch.context() as patch, closing(BatchBuilder(TABLES, memory)) as builder:
        patch.setattr(batch_builder, "_PIECE", piece)
        patch.setattr(arriving, "LARGE", large)
        for chunk in _chunks([framed(body) for body in stream], large, data):
            builder.add(messages_of(chunk, LARGEST))
        assert not builder.is_open
        batch = builder.take()
        tables, transactions = model(stream)
        assert contents(batch) == tables
        assert batch.transactions == transactions
        ends = [body for body in stream if body[:1] == b"C"]
        assert batch.position == len(ends) * 100 + 1
        assert batch.committed == len(ends) + EPOCH
        kept = sum(len(p.data) for gathered in batch.tables.values() for p in gathered.pieces)
        assert kept <= memory
        assert builder.take().tables == {}


def _chunks(stream: list[bytes], large: int, data: st.DataObject) -> Iterator[list[Any]]:
    """The stream in portions; a large message is the last of one, as a view."""
    chunk: list[Any] = []
    for message in stream:
        is_large = len(message) >= large
        chunk.append(memoryview(message) if is_large else message)
        if is_large or data.draw(st.integers(0, 3)) == 0:
            yield chunk
            chunk = []
    yield chunk


@pytest.mark.soak
@pytest.mark.parametrize("at_once", [1, 10])
def test_the_size_of_a_batch_is_its_memory_however_its_changes_arrive(at_once: int) -> None:
    """Also if they trickle in, so that each portion has a few changes of each table."""
    row = struct.pack(">chcI", b"N", 1, b"t", 4) + b"text"
    with closing(BatchBuilder(TABLES, 10**9)) as builder:
        builder.add(messages_of([framed(relation(oid)) for oid in TABLES], LARGEST))
        tracemalloc.start()
        try:
            for number in range(1, 1000):
                changes = [change(b"I", oid, row) for oid in TABLES for _ in range(at_once)]
                bodies = [begin(number), *changes, commit(number)]
                builder.add(messages_of([framed(body) for body in bodies], LARGEST))
            arrived, size = tracemalloc.get_traced_memory()[0], builder.size
            batch = builder.take()
            packed = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert size / 2 < arrived < size * 2
        assert batch.size / 2 < packed < batch.size * 2


def test_no_bytes_of_an_oversize_change_are_kept() -> None:
    """Only its head, which names the table, and its size."""
    arrived = messages_of([framed(change(b"I", 1, bytes(2 * arriving.LARGE)))], LARGEST)
    assert arrived.kinds.tolist() == [OVERSIZE]
    assert arrived.oids.tolist() == [1]
    assert arrived.lengths.tolist() == [2 * arriving.LARGE + 5]
    assert len(arrived.whole(0)) < 50


@pytest.mark.parametrize(
    "stream",
    [
        [change(b"I", 1, b"x")],
        [begin(1), commit(1), change(b"I", 1, b"x")],
        [begin(1), begin(2), change(b"I", 1, b"x")],
        [begin(1)[:-1]],
        [begin(1), commit(1) + b"\0"],
        [begin(1), change(b"I", 3, b"x")],
    ],
)
def test_messages_that_do_not_follow_the_protocol_are_refused(stream: list[bytes]) -> None:
    """A change outside of a transaction, of an unknown relation, or a message of another size."""
    builder = BatchBuilder((1, 3), 100)
    builder.add(messages_of([framed(relation(1))], LARGEST))
    with pytest.raises(Mismatch):
        builder.add(messages_of([framed(body) for body in stream], LARGEST))


def test_transactions_that_the_server_has_to_send_again_are_checked_one_by_one() -> None:
    """The second of three that arrive at once differs; without it, nothing is left to check."""
    stream = [framed(body) for number in (1, 2, 3) for body in (begin(number), commit(number))]
    known = KnownTransactions(301, 3 + EPOCH, ((101, 1 + EPOCH), (201, 3 + EPOCH)))
    with pytest.raises(SourceRewound):
        BatchBuilder((), 100, known).add(messages_of(stream, LARGEST))
    ends = ((101, 1 + EPOCH), (201, 2 + EPOCH), (301, 3 + EPOCH))
    builder = BatchBuilder((), 100, KnownTransactions(301, 3 + EPOCH, ends))
    builder.add(messages_of(stream[:4], LARGEST))
    assert builder.past is not None
    assert builder.past.ends == ends[2:]
    builder.add(messages_of(stream[4:], LARGEST))
    assert builder.past is None
