"""``governance.audit_log``: who did what, when, and with which result, as a chain of hashes.

A record's hash is SHA-256 over the hash of the record before it and all its own fields, in one
canonical encoding; with a key it is HMAC-SHA256, which needs more than the lake to compute. The
Delta log has the last hash. So a record that was changed, removed, inserted or moved contradicts
the records after it, or the Delta log.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from bronze.governance.frames import frame_of, schema_of
from bronze.model.columns import DeltaType

COLUMNS: tuple[tuple[str, DeltaType], ...] = (
    ("sequence", DeltaType("long")),
    ("recorded_timestamp", DeltaType("timestamp")),
    ("actor", DeltaType("string")),
    ("identity", DeltaType("string")),
    ("host", DeltaType("string")),
    ("action", DeltaType("string")),
    ("subject", DeltaType("string")),
    ("result", DeltaType("string")),
    ("details", DeltaType("string")),
    ("batch_id", DeltaType("string")),
    ("bronze_version", DeltaType("string")),
    ("key_id", DeltaType("string")),
    ("previous_hash", DeltaType("string")),
    ("record_hash", DeltaType("string")),
)
MEANINGS = {
    "sequence": "The number of the record, from 1 without gaps.",
    "recorded_timestamp": "When the record was written.",
    "actor": "The user of the operating system.",
    "identity": "The identity in the cloud, if there is one.",
    "host": "The machine.",
    "action": "What was done: run, stream, verify, reveal, forget, …",
    "subject": "What it was done to: a table, a config, a key.",
    "result": "How it ended, in a word.",
    "details": "More about it, as a JSON object; never a value of a row.",
    "batch_id": "The run or batch of it, if any.",
    "bronze_version": "The version of bronze that wrote it.",
    "key_id": 'The id of the key that sealed the record, "" without a key.',
    "previous_hash": "The hash of the record before it.",
    "record_hash": "SHA-256 (with a key: HMAC-SHA256) over the previous hash and all other fields.",
}
"""What each column has."""

NAME = "audit_log"
FIRST = "0" * 64
"""The hash before the first record."""

RECOVERY = ("failover", "restore")
"""The actions of a record after which a lake goes on from a copy of itself."""
CONTINUES = "continues"
"""The detail of such a record with the number of the last record that the copy has."""

_SCHEMA = schema_of(COLUMNS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ID_DIGITS = 8


@dataclass(frozen=True)
class AuditRecord:
    """One record.

    ``actor`` is the user of the operating system, ``identity`` that of the cloud, if there is one;
    ``subject`` is what the action was about (a table, a config), ``details`` a JSON object.
    ``key_id`` is the id of the key that sealed it, "" without a key.
    """

    sequence: int
    recorded_timestamp: datetime
    actor: str
    identity: str
    host: str
    action: str
    subject: str
    result: str
    details: str
    batch_id: str
    bronze_version: str
    key_id: str = ""
    previous_hash: str = ""
    record_hash: str = ""


@dataclass(frozen=True)
class Head:
    """The end of a chain: number and hash of the last record, number 0 without records."""

    sequence: int = 0
    hash: str = FIRST


def continue_chain(
    records: Iterable[AuditRecord], head: Head, key: bytes | None
) -> list[AuditRecord]:
    """The records with numbers and hashes, as they continue a chain that ends at a head."""
    chain = []
    for record in records:
        numbered = replace(
            record,
            sequence=head.sequence + 1,
            key_id=key_id(key) if key else "",
            previous_hash=head.hash,
        )
        chain.append(replace(numbered, record_hash=digest(numbered, key)))
        head = Head(chain[-1].sequence, chain[-1].record_hash)
    return chain


def digest(record: AuditRecord, key: bytes | None) -> str:
    """A record's hash as 64 hexadecimal digits; its field ``record_hash`` is not part of it."""
    *values, _ = vars(record).values()
    text = json.dumps(
        [_encode(value) for value in values], ensure_ascii=False, separators=(",", ":")
    ).encode()
    return hmac.new(key, text, "sha256").hexdigest() if key else hashlib.sha256(text).hexdigest()


def _encode(value: Any) -> Any:
    # Microseconds since 1970, as in the file.
    return (value - _EPOCH) // timedelta(microseconds=1) if isinstance(value, datetime) else value


def key_id(key: bytes) -> str:
    """The id of a key, which reveals nothing about it."""
    return hmac.new(key, b"bronze audit key", "sha256").hexdigest()[:_ID_DIGITS]


_START = Head()


def faults(
    records: Sequence[AuditRecord],
    head: Head,
    keys: Mapping[str, bytes],
    sealed: bool,
    before: Head = _START,
) -> Iterator[str]:
    """What is wrong with a chain, in words.

    Args:
        records: all records after ``before``, by number.
        head: the end of the chain in the Delta log.
        keys: the known keys, by `key_id`.
        sealed: whether the config has a key, so that records must be sealed from the first sealed
            one on.
        before: the record before the first one; by default that is the beginning.
    """
    for record in records:
        if record.sequence == before.sequence:
            yield f"record {record.sequence} is there twice"
        elif record.sequence != before.sequence + 1:
            yield f"{_span(before.sequence + 1, record.sequence - 1)} missing"
        elif record.previous_hash != before.hash:
            yield f"record {record.sequence} does not follow the one before it"
        if record.key_id and record.key_id not in keys:
            yield f"record {record.sequence} is sealed with another key, {record.key_id}"
        elif digest(record, keys.get(record.key_id)) != record.record_hash:
            yield f"record {record.sequence} was changed"
        before = Head(record.sequence, record.record_hash)
    if before.sequence < head.sequence:
        yield f"{_span(before.sequence + 1, head.sequence)} missing at the end"
    elif before != head:
        yield "the last record is not the one that the Delta log names"
    yield from _unsealed_records(records, sealed)


def _unsealed_records(records: Sequence[AuditRecord], sealed: bool) -> Iterator[str]:
    """Records without a seal that need one: anybody could have written them."""
    keyed = [record.sequence for record in records if record.key_id]
    if sealed and records and not keyed:
        yield "no record is sealed with a key, and the config has one"
    unsealed = [r.sequence for r in records if not r.key_id and keyed and r.sequence > keyed[0]]
    if unsealed:
        yield f"record {unsealed[0]} is not sealed with a key, and earlier ones are"


def _span(first: int, last: int) -> str:
    return f"record {first} is" if first == last else f"records {first} to {last} are"


def frame(records: Sequence[AuditRecord]) -> pl.DataFrame:
    """The records as a frame with `COLUMNS`."""
    return frame_of(COLUMNS, [[vars(record)[name] for name, _ in COLUMNS] for record in records])


def read(rows: pl.DataFrame) -> list[AuditRecord]:
    """The records of a frame with `COLUMNS`, by number."""
    ordered = rows.select(list(_SCHEMA)).cast(_SCHEMA).sort("sequence", "record_hash")  # type: ignore[arg-type]
    return [AuditRecord(*row) for row in ordered.iter_rows()]
