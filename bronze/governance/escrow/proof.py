"""Verifies the audit log by its heads in escrow.

Whoever can write to the whole lake can delete the newest records, or the log and all tables. The
heads in escrow are elsewhere, and contradict it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bronze.config import fingerprint
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.log import State
from bronze.errors import BronzeError
from bronze.governance import audit_state
from bronze.governance.escrow import heads
from bronze.governance.escrow.heads import StoredHead, StoredHeads
from bronze.governance.tables.audit_log import CONTINUES, RECOVERY, AuditRecord
from bronze.printable import count

_KEY = "audit.escrow"
_MAX_LOGS = 3


@dataclass(frozen=True)
class EscrowProof:
    """The heads in escrow, None if the config has no escrow or they could not be read;
    ``unreadable`` is why not.
    """

    stored: StoredHeads | None = None
    unreadable: str = ""

    @property
    def where(self) -> str:
        """The place of the escrow, "" if none was read."""
        return self.stored.where if self.stored else ""

    def last(self, log_id: str) -> int:
        """The newest record of a log that has a head in escrow, 0 without any."""
        return self.stored.last(log_id) if self.stored else 0


def read(settings: Settings) -> EscrowProof:
    """Reads the escrow. It has to be read before the log is, which has all its records by then."""
    try:
        return EscrowProof(heads.stored_heads(settings))
    except BronzeError as error:
        return EscrowProof(unreadable=error.message)


def faults(proof: EscrowProof, log_id: str, records: Sequence[AuditRecord]) -> Iterator[str]:
    """Where the heads contradict a log, in words.

    Args:
        proof: the heads.
        log_id: the log's id, "" if it has none.
        records: all its records.
    """
    if proof.unreadable:
        yield proof.unreadable.rstrip(".")
    stored = proof.stored
    if stored is None:
        return
    yield from _contradictions(stored.where, _contradicting(stored, log_id, records)[0], records)
    others = [other for other in stored.logs if other != log_id]
    if others:
        named = ", ".join(f"{one} (up to record {stored.last(one)})" for one in others[:_MAX_LOGS])
        more = f" and {len(others) - _MAX_LOGS} more" if len(others) > _MAX_LOGS else ""
        yield (
            f"the escrow at {stored.where} has heads of another audit log, {named}{more}: that log"
            " was deleted or replaced, or another lake uses this escrow"
        )
    if stored.deleted:
        yield (
            f"the lock of the escrow at {stored.where} has kept"
            f" {count(stored.deleted, 'head that was', 'heads that were')} deleted"
        )
    if log_id not in stored.logs and (named_by := _first_with_escrow(records)):
        yield (
            f"the escrow at {stored.where} has no head of this log, and it was in use from record"
            f" {named_by} on: its heads were deleted, or could never be put there"
        )


def _contradicting(
    stored: StoredHeads, log_id: str, records: Sequence[AuditRecord]
) -> tuple[list[StoredHead], list[StoredHead]]:
    """The heads that a log does not have; and those of them that were lost with an earlier lake, as
    this one goes on from a copy of it.
    """
    hashes = {one.sequence: one.record_hash for one in records}
    recoveries = [one for one in records if one.action in RECOVERY]
    strange, lost = list[StoredHead](), list[StoredHead]()
    for head in stored.logs.get(log_id, ()):
        if hashes.get(head.sequence) != head.hash:
            is_lost = any(
                head.sequence > _continues(one) and head.put < one.recorded_timestamp
                for one in recoveries
            )
            (lost if is_lost else strange).append(head)
    return strange, lost


def _continues(recovery: AuditRecord) -> int:
    """The last record that a lake had when it went on from a copy."""
    try:
        return int(dict(json.loads(recovery.details))[CONTINUES])
    except (KeyError, TypeError, ValueError):
        # It explains nothing.
        return sys.maxsize


def _contradictions(
    where: str, strange: Sequence[StoredHead], records: Sequence[AuditRecord]
) -> Iterator[str]:
    last = records[-1].sequence if records else 0
    newest = max((head.sequence for head in strange), default=0)
    if newest > last:
        yield (
            f"the escrow at {where} has the head of record {newest}, and the log ends with record"
            f" {last}: the newest records were taken away"
        )
    for head in strange:
        if head.sequence <= last:
            yield f"record {head.sequence} is not the one that the escrow has the head of"


def notes(proof: EscrowProof, log_id: str, records: Sequence[AuditRecord]) -> Iterator[str]:
    """What heads in escrow do not prove of a log without faults, in sentences."""
    stored = proof.stored
    if stored is None:
        if _first_with_escrow(records):
            yield "The log had an escrow before, and the config has none: see its config records."
    elif log_id not in stored.logs:
        yield f"The escrow at {stored.where} has no head yet: the next record puts one there."
    elif lost := _contradicting(stored, log_id, records)[1]:
        known = {one.action: one for one in records if one.action in RECOVERY}
        named = "; ".join(f"record {one.sequence}, {name}" for name, one in known.items())
        yield (
            f"Records up to {max(head.sequence for head in lost)} of the lake before were lost with"
            f" it, as this lake goes on from a copy ({named})."
        )


def _first_with_escrow(records: Sequence[AuditRecord]) -> int:
    """The number of the first record of a config with an escrow, 0 without any."""
    for record in records:
        if record.action == "config":
            try:
                keys = dict(dict(json.loads(record.details)).get("keys") or {})
            except (TypeError, ValueError):
                # Another writer has changed the record, which its hash says.
                continue
            if keys.get(_KEY, fingerprint.EMPTY_TEXT) != fingerprint.EMPTY_TEXT:
                return record.sequence
    return 0


def newest_faults(settings: Settings, state: State) -> Iterator[str]:
    """Whether the escrow has heads of records after the last one of a log, in words.

    Raises:
        BronzeError: the escrow or the log cannot be read.
    """
    log_id, last = audit_state.log_id(state), audit_state.end(state).sequence
    if not log_id or not (later := heads.heads_after(settings, log_id, last)):
        return
    # Other processes may have recorded since; and a lake that goes on from a copy has lost some.
    newest = log.read(audit_state.place(settings))
    records = audit_state.records_of(newest)[0] if newest else []
    stored = StoredHeads(settings.audit.escrow, {log_id: later})
    strange, _ = _contradicting(stored, log_id, records)
    yield from _contradictions(stored.where, strange, records)
