"""Verifies the audit log by its heads in escrow.

Whoever can write to the whole lake can delete the newest records, or the log and all tables. The
heads in escrow are elsewhere, and contradict it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bronze.config import fingerprint
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.log import State
from bronze.errors import BronzeError
from bronze.governance import audit_state
from bronze.governance.escrow import heads
from bronze.governance.escrow.heads import StoredHeads
from bronze.governance.tables.audit_log import AuditRecord

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
    hashes = {one.sequence: one.record_hash for one in records}
    yield from _contradictions(stored, log_id, hashes)
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
            f"{stored.deleted} heads in the escrow at {stored.where} were deleted, and their lock"
            " kept them"
        )
    if log_id not in stored.logs and (named_by := _first_with_escrow(records)):
        yield (
            f"the escrow at {stored.where} has no head of this log, and it was in use from record"
            f" {named_by} on: its heads were deleted, or could never be put there"
        )


def _contradictions(stored: StoredHeads, log_id: str, hashes: Mapping[int, str]) -> Iterator[str]:
    last = max(hashes, default=0)
    if stored.last(log_id) > last:
        yield (
            f"the escrow at {stored.where} has the head of record {stored.last(log_id)}, and the"
            f" log ends with record {last}: the newest records were taken away"
        )
    for head in stored.logs.get(log_id, ()):
        if head.sequence <= last and hashes.get(head.sequence) != head.hash:
            yield f"record {head.sequence} is not the one that the escrow has the head of"


def notes(proof: EscrowProof, log_id: str, records: Sequence[AuditRecord]) -> Iterator[str]:
    """What heads in escrow do not prove of a log without faults, in sentences."""
    stored = proof.stored
    if stored is None:
        if _first_with_escrow(records):
            yield "The log had an escrow before, and the config has none: see its config records."
    elif log_id not in stored.logs:
        yield f"The escrow at {stored.where} has no head yet: the next record puts one there."


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
    # Other processes may have recorded since.
    last = audit_state.end(log.read(audit_state.place(settings))).sequence
    newest = max(head.sequence for head in later)
    if newest > last:
        yield (
            f"the escrow at {settings.audit.escrow} has the head of record {newest}, and the log"
            f" ends with record {last}: the newest records were taken away"
        )
