"""The audit log: each command records in ``governance.audit_log`` what it did.

Records are appended by compare-and-swap to the end of the chain of hashes (see
`bronze.governance.tables.audit_log`); each commit stores the new end as a table property and as an
app transaction, which checkpoints keep. A config that has changed since it last recorded something
here gets a record with the names of its changed keys. The first such record names the log's id,
which is generated when the log begins; the lake's tables store this id and the number of a record
(see `bronze.delta.audit_mark`). `bronze.governance.audit_proof` verifies all this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from bronze import secrets
from bronze.config import fingerprint
from bronze.config.settings import Settings
from bronze.delta import audit_mark, log, positions
from bronze.delta.log import State
from bronze.delta.positions import Position
from bronze.errors import BronzeError
from bronze.governance import actor, audit_state
from bronze.governance.escrow import heads
from bronze.governance.tables import audit_log
from bronze.governance.tables.audit_log import AuditRecord, Head
from bronze.governance.writer import Page, append
from bronze.model.stamp import AuditMark
from bronze.version import VERSION

CONFIG = "config"
"""The action of a record about a config that is new or has changed."""

AUDIT, CUT_OFF = "audit", "cut off"
"""Action and result of a record saying that a table knew of more records than the log had."""

CHAIN_FACT = "audit"
"""The key of a commit's facts with the end of the chain."""

_APPEND_ONLY = {"delta.appendOnly": "true"}


@dataclass(frozen=True)
class Event:
    """What to record; ``details`` are JSON values without any secret."""

    action: str
    subject: str
    result: str
    details: Mapping[str, Any] = field(default_factory=dict)
    batch_id: str = ""


def record(
    settings: Settings,
    action: str,
    subject: str,
    result: str,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Writes one record.

    Args:
        settings: the config.
        action: what was done.
        subject: the table or config that it was done to.
        result: the result in a word.
        details: JSON values without any secret.

    Raises:
        ConfigError: the key that the config names does not exist.
        LakeError, LakeUnreachable: the record cannot be written, or its head cannot be put into
            escrow.
    """
    record_events(settings, [Event(action, subject, result, details or {})])


def record_events(settings: Settings, events: Sequence[Event]) -> None:
    """Writes records in one commit, then puts their head into escrow. Raises as `record` does."""
    key = _key(settings)
    now = datetime.now(UTC)
    pages: list[Page | None] = []

    def page(state: State | None) -> Page | None:
        pages.append(_page(settings, state, events, now, key))
        return pages[-1]

    append(audit_state.place(settings), audit_log.COLUMNS, page)
    if pages[-1] is not None:
        fact = pages[-1].facts[CHAIN_FACT]
        head = Head(fact["sequence"], fact["hash"])
        heads.put(settings, pages[-1].notes[audit_state.LOG_ID], head)


def _page(
    settings: Settings,
    state: State | None,
    events: Sequence[Event],
    now: datetime,
    key: bytes | None,
) -> Page | None:
    """The records to append to the log in its present state; None if there are none."""
    configs, existing_id = audit_state.configs(state), audit_state.log_id(state)
    log_id = existing_id or uuid4().hex
    config, hashes = settings.path or "python", fingerprint.imprint(settings)
    whole = fingerprint.fingerprint_of(hashes)
    if configs.get(config) != whole or not existing_id:
        events = [_config_event(state, config, hashes, "" if existing_id else log_id), *events]
    if not events:
        return None
    drafts = [_draft(event, now) for event in events]
    records = audit_log.continue_chain(drafts, audit_state.end(state), key)
    end = audit_state.end_of(records)
    notes = {
        **dict(settings.maintain.properties()),
        **_APPEND_ONLY,
        audit_state.LOG_ID: log_id,
        audit_state.HEAD: f"{end.sequence}:{end.hash}",
        audit_state.CONFIGS: json.dumps({**configs, config: whole}, ensure_ascii=False),
    }
    return Page(
        audit_log.frame(records),
        Position(positions.AUDIT, end.sequence),
        notes,
        {CHAIN_FACT: {"sequence": end.sequence, "hash": end.hash}},
    )


def _draft(event: Event, now: datetime) -> AuditRecord:
    """The record of an event before it has a number and a hash."""
    return AuditRecord(
        sequence=0,
        recorded_timestamp=now,
        actor=actor.user(),
        identity=actor.identity(),
        host=actor.host(),
        action=event.action,
        subject=event.subject,
        result=event.result,
        details=json.dumps(event.details, ensure_ascii=False, sort_keys=True, default=str),
        batch_id=event.batch_id,
        bronze_version=VERSION,
    )


def _config_event(
    state: State | None, config: str, hashes: Mapping[str, str], new_log_id: str
) -> Event:
    """The event of a config that differs from its last record: it has a hash of each key.

    ``new_log_id`` is the log's id if it begins with this record.
    """
    log = {"log": new_log_id} if new_log_id else {}
    before = recorded_hashes(state, config)
    if before is None:
        return Event(CONFIG, config, "first seen", {"keys": hashes, **log})
    common = set(hashes) & set(before)
    details = {
        "added": sorted(set(hashes) - common),
        "removed": sorted(set(before) - common),
        "changed": sorted(key for key in common if hashes[key] != before[key]),
        "keys": hashes,
        **log,
    }
    return Event(CONFIG, config, "changed" if before != hashes else "bound", details)


def recorded_hashes(state: State | None, config: str) -> dict[str, str] | None:
    """The hashes in the last record about a config; None without a record that can be read."""
    records, _ = audit_state.records_of(state) if state else ([], [])
    return hashes_in(records, config)


def hashes_in(records: Sequence[AuditRecord], config: str) -> dict[str, str] | None:
    """The same, in records that were read."""
    about = [one for one in records if (one.action, one.subject) == (CONFIG, config)]
    try:
        hashes = dict(json.loads(about[-1].details)["keys"])
    except (IndexError, KeyError, TypeError, ValueError):
        # Another writer has changed the record, which `verify` reports.
        return None
    return {str(key): value for key, value in hashes.items()}


def mark(settings: Settings) -> AuditMark | None:
    """The newest record, for commits to name; begins the log if there is none.

    None if the log cannot be read or begun: the tables are loaded nevertheless, and the command's
    own record, written at its end, fails with the reason.
    """
    with suppress(BronzeError):
        place = audit_state.place(settings)
        newest = _newest(log.recent(place))
        if newest is None:
            record_events(settings, [])
            newest = _newest(log.read(place))
        return newest
    return None


def records_lost(
    settings: Settings, known: AuditMark, tables: Mapping[str, State]
) -> tuple[str, ...]:
    """Compares the records that tables know of with the log. Missing ones are recorded, so that
    this stays known when the log has grown again.

    Args:
        settings: the config.
        known: the newest record, as read before the tables were.
        tables: the states of tables, by their names.

    Returns:
        Messages for the user.

    Raises:
        ConfigError, LakeError, LakeUnreachable: it cannot be recorded.
    """
    if not any(audit_mark.knows_more(state, known) for state in tables.values()):
        return ()
    # Other processes may have recorded and committed since.
    known = _newest(log.read(audit_state.place(settings))) or known
    short = [name for name, state in tables.items() if audit_mark.knows_more(state, known)]
    if short:
        details = {"last": known.sequence}
        record_events(settings, [Event(AUDIT, name, CUT_OFF, details) for name in short])
    return tuple(
        f"{name} knows of records that are missing in the audit log, which ended with record"
        f" {known.sequence}: see `bronze audit --verify`"
        for name in short
    )


def _newest(state: State | None) -> AuditMark | None:
    end, log_id = audit_state.end(state), audit_state.log_id(state)
    return AuditMark(log_id, end.sequence, end.hash) if end.sequence and log_id else None


def refuse_newer_lake(settings: Settings, *, is_needed: bool = True) -> None:
    """Checks that no later release has recorded a command in a format that this one does not know.

    Args:
        settings: the config.
        is_needed: whether the command needs the log. One that lands or reads rows goes on with a
            log that is damaged, and says in its result that it is not recorded; that the lake
            cannot be read it finds out by itself.

    Raises:
        LakeError: one has, or the log is needed and damaged.
        LakeUnreachable: the log is needed, and the lake cannot be read.
    """
    try:
        state = log.read(audit_state.place(settings))
    except BronzeError:
        if is_needed:
            raise
        return
    if state is not None:
        state.refuse_newer()


def check_key(settings: Settings) -> None:
    """Checks that records can be sealed as the config says.

    Raises:
        ConfigError: the key that the config names does not exist.
    """
    _key(settings)


def _key(settings: Settings) -> bytes | None:
    name = settings.audit.key
    return secrets.resolve(settings.secret(name)).encode() if name else None
