"""What pgoutput sends for a database, message by message, from a real slot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np
import psycopg

from bronze.postgres.connection import connect
from bronze.postgres.replication import pgoutput, slot
from bronze.postgres.replication.pgoutput import RelationMessage, RowChanges
from tests.conftest import Source

_FRAME = 25
PUBLICATION = "everything"


@dataclass
class Wire:
    """A stream of a database from the moment at which it was opened."""

    source: Source
    sender: connect.Connection
    writer: psycopg.Connection[tuple[object, ...]]
    relations: dict[int, RelationMessage] = field(default_factory=dict)

    def heard(self) -> list[bytes]:
        """The messages since the last call, up to all that is committed by now."""
        # What is not on the server's disk is not streamed; the flush of this commit takes the
        # ones before with it.
        self.writer.execute("INSERT INTO wire_end VALUES (1)")
        found: list[bytes] = []
        while True:
            size, data = self.sender.pgconn.get_copy_data(0)
            assert size > 0, self.sender.pgconn.get_error_message()
            message = bytes(data)
            if message[:1] != b"w":
                continue
            found.append(message[_FRAME:])
            kind, body = found[-1][0], found[-1]
            if kind == pgoutput.RELATION:
                described = pgoutput.read_relation(body)
                self.relations[described.oid] = described
            elif kind == pgoutput.COMMIT and self._ends(found):
                return found

    def _ends(self, found: Sequence[bytes]) -> bool:
        described = self.relations.get(oid(found[-2]))
        return found[-2][0] == pgoutput.INSERT and described is not None and _is_end(described)

    def raw(self, name: str) -> list[bytes]:
        """The changes of one table since the last call, of whatever kind."""
        own = [number for number, one in self.relations.items() if one.name == name]
        found = self.heard()
        own += [number for number, one in self.relations.items() if one.name == name]
        return [body for body in found if body[0] in pgoutput.CHANGES and oid(body) in own]

    def changes(self, name: str) -> RowChanges:
        """The changes of one table since the last call, taken apart."""
        messages = self.raw(name)
        return apart(messages, self.names(name))

    def names(self, name: str) -> list[str]:
        """A table's columns as the stream has described them."""
        (described,) = [one for one in self.relations.values() if one.name == name]
        return [column for column, _, _ in described.columns]


def _is_end(described: RelationMessage) -> bool:
    return described.name == "wire_end"


def oid(message: bytes) -> int:
    """The relation that a change is of."""
    return int.from_bytes(message[1:5], "big")


def apart(messages: Sequence[bytes], names: Sequence[str]) -> RowChanges:
    """Messages, all changes of one relation, taken apart."""
    lengths = np.fromiter(map(len, messages), np.int64, len(messages))
    return pgoutput.read_changes(b"".join(messages), lengths, names)


def slot_of(source: Source) -> str:
    """A slot's name that no other test has: slots belong to the whole server."""
    return f"{psycopg.conninfo.conninfo_to_dict(source.dsn)['dbname']}_slot"


def opened(source: Source) -> connect.Connection:
    """Makes publication and slot of all tables; the connection can stream."""
    source.execute(f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")
    sender = slot.walsender(source.settings().origin("test"))
    slot.create(sender, slot_of(source), temporary=False, failover=False)
    return sender


@contextmanager
def wire(source: Source) -> Iterator[Wire]:
    """Streams what happens in all tables of a database from now on."""
    source.execute("CREATE TABLE wire_end (n int)")
    with (
        closing(opened(source)) as sender,
        psycopg.connect(source.dsn, autocommit=True) as writer,
    ):
        writer.execute("SET synchronous_commit = on")
        sender.pgconn.exec_(
            f"START_REPLICATION SLOT {slot_of(source)} LOGICAL 0/0"
            f" (proto_version '1', publication_names '{PUBLICATION}')".encode()
        )
        yield Wire(source, sender, writer)
