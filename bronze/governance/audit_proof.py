"""Reads the audit log, and proves that it is complete and unchanged.

The records prove each other by their hashes, the Delta log proves where they end, and the tables of
the lake prove that they are this lake's (see `bronze.governance.audit_witnesses`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import unquote

from bronze import secrets
from bronze.config.settings import Settings
from bronze.delta import commit, log, positions
from bronze.delta.log import State
from bronze.errors import BronzeError, ConfigError, FileDamaged, LakeError
from bronze.governance import audit_state, audit_witnesses
from bronze.governance.audit import AUDIT, CHAIN_FACT, CONFIG, CUT_OFF
from bronze.governance.audit_witnesses import Testimony
from bronze.governance.escrow import proof as escrow_proof
from bronze.governance.escrow.proof import EscrowProof
from bronze.governance.tables import audit_log
from bronze.governance.tables.audit_log import AuditRecord, Head
from bronze.model.files import StoredFile
from bronze.model.results import Shown
from bronze.printable import count

_START = Head()
_AGO = re.compile(r"([0-9]+)\s*([smhd])", re.IGNORECASE)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True, repr=False)
class AuditReport(Shown):
    """Records of the audit log. ``records`` are those that were selected, of ``count`` in all;
    ``head`` is the hash of the last one. ``verified`` says that the chain was checked, ``problems``
    are what is wrong with it. The first ``unsealed`` records are older than the config's key, so
    that nothing proves who wrote them.

    How it was verified: ``place`` is where the log is, ``log`` its id, ``files`` how many files
    were read. ``tables`` Bronze tables were read, and ``vouching`` of them know of records of this
    log, up to number ``vouched``. ``escrow`` is where heads outside of the lake were read, the
    newest that of record ``escrowed``. ``notes`` say what is not proven.
    """

    _items: ClassVar[str] = "records"

    records: tuple[AuditRecord, ...]
    count: int
    head: str
    verified: bool = False
    problems: tuple[str, ...] = ()
    unsealed: int = 0
    place: str = ""
    log: str = ""
    files: int = 0
    tables: int = 0
    vouching: int = 0
    vouched: int = 0
    escrow: str = ""
    escrowed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: no problem is known; 1: there are problems."""
        return 1 if self.problems else 0

    def _summary(self) -> Iterable[str]:
        shown = f"{len(self.records):,} of {count(self.count, 'record')}"
        if not self.verified:
            return [shown, "not verified"]
        return [shown, count(len(self.problems), "problem") if self.problems else "all whole"]


def report(
    settings: Settings,
    *,
    verify: bool = False,
    head: str = "",
    since: datetime | None = None,
    action: str = "",
    table: str = "",
) -> AuditReport:
    """Selects records, and verifies the whole log on request.

    Args:
        settings: the config.
        verify: whether to compute the chain again, and compare it with the Delta log, the tables
            of the lake, and the heads in escrow.
        head: a hash that was kept elsewhere, which the chain must contain.
        since: records of that time and later only.
        action: records of this action only.
        table: records about this table only: ``schema.table``, or the name alone.

    Raises:
        ConfigError: a key that the config names does not exist.
        LakeError, LakeUnreachable: the log cannot be read.
    """
    # Tables and escrow are read first: the records that they know of are in the log by then.
    escrow = escrow_proof.read(settings) if verify else EscrowProof()
    testimony = audit_witnesses.testimony_of(settings, audit_log.NAME) if verify else Testimony()
    place = audit_state.place(settings)
    state = log.read(place)
    records, unreadable = audit_state.records_of(state) if state else ([], [])
    if unreadable and not verify:
        raise BronzeError(unreadable[0], hint="See `bronze audit --verify`.")
    selected = AuditReport(
        tuple(one for one in records if _is_selected(one, since, action, table)),
        len(records),
        records[-1].record_hash if records else "",
        place=place.url,
        log=audit_state.log_id(state),
        files=len(state.files) if state else 0,
    )
    if not verify:
        return selected
    problems = [*unreadable, *_problems(settings, state, records, testimony)]
    problems += escrow_proof.faults(escrow, selected.log, records)
    if head and head not in {one.record_hash for one in records}:
        problems.append("no record has the hash that was kept: the log was put back or rewritten")
    return _verify_chain(settings, selected, records, testimony, escrow, problems)


@dataclass(frozen=True)
class QuickProof:
    """A proof of the ``checked`` newest records, up to number ``last``."""

    last: int
    checked: int
    problems: tuple[str, ...]


_QUICK = 20_000
"""The most records that are read to prove the newest ones."""
_COMMITS = 20
"""The most commits that are read to find the file with the newest records."""


def prove_newest(settings: Settings) -> QuickProof | None:
    """Proves the end of the log: its properties, the chain of the newest records, their seal, and
    that the escrow has no later head. Other tables are not read. None if there is no log.

    Raises:
        ConfigError: a key that the config names does not exist.
        LakeError, LakeUnreachable: the log or the escrow cannot be read.
    """
    state = log.read(audit_state.place(settings))
    if state is None:
        return None
    files, before = state.files, Head()
    whole = sum(file.rows for file in files) <= _QUICK
    if not whole:
        files = _newest_files(state) or files
    records, unreadable = audit_state.records_of(state, files)
    if records and not whole:
        records = records[_first_of_end(records) :]
        before = Head(records[0].sequence - 1, records[0].previous_hash)
    last = records[-1].sequence if records else 0
    problems = [*unreadable, *_chain_problems(settings, state, records, before)]
    problems += escrow_proof.newest_faults(settings, state)
    return QuickProof(last, len(records), tuple(problems))


def _newest_files(state: State) -> tuple[StoredFile, ...]:
    """The files of the last commit that added some, which have the newest records."""
    live = {unquote(file.path): file for file in state.files}
    for version in range(state.version, max(state.version - _COMMITS, -1), -1):
        actions = log.entry(state.place, version) or ()
        paths = [unquote(action["add"]["path"]) for action in actions if "add" in action]
        if added := tuple(live[path] for path in paths if path in live):
            return added
    return ()


def _first_of_end(records: Sequence[AuditRecord]) -> int:
    """The index of the first of those records that follow each other up to the last one."""
    starts = range(len(records) - 1, 0, -1)
    gaps = (i for i in starts if records[i].sequence > records[i - 1].sequence + 1)
    return next(gaps, 0)


def _is_selected(record: AuditRecord, since: datetime | None, action: str, table: str) -> bool:
    return (
        (since is None or record.recorded_timestamp >= since)
        and action in ("", record.action)
        # Schema and name may have dots.
        and (table in ("", record.subject) or record.subject.endswith(f".{table}"))
    )


def _verify_chain(
    settings: Settings,
    selected: AuditReport,
    records: Sequence[AuditRecord],
    testimony: Testimony,
    escrow: EscrowProof,
    problems: Sequence[str],
) -> AuditReport:
    """The report with the problems, and with what was compared."""
    sealed = settings.audit.key is not None
    vouching = testimony.vouching(selected.log)
    escrowed = escrow.last(selected.log)
    notes = [
        *audit_witnesses.notes(testimony, selected.log, len(records), sealed, escrowed),
        *escrow_proof.notes(escrow, selected.log, records),
    ]
    first_sealed = next((i for i, one in enumerate(records) if one.key_id), 0)
    return replace(
        selected,
        verified=True,
        problems=tuple(problems),
        unsealed=first_sealed if sealed else 0,
        tables=len(testimony.tables),
        vouching=len(vouching),
        vouched=max(vouching.values(), default=0),
        escrow=escrow.where,
        escrowed=escrowed,
        notes=() if problems else tuple(notes),
    )


def _problems(
    settings: Settings, state: State | None, records: Sequence[AuditRecord], testimony: Testimony
) -> Iterator[str]:
    """What is wrong with the log: by the tables of the lake, by its records, by its Delta log."""
    if not records:
        yield audit_witnesses.absence(testimony, audit_state.place(settings).url)
    log_id = audit_state.log_id(state)
    hashes = {one.sequence: one.record_hash for one in records}
    yield from audit_witnesses.faults(testimony, log_id, hashes, max(hashes, default=0))
    for one in records:
        if (one.action, one.result) == (AUDIT, CUT_OFF):
            yield (
                f"record {one.sequence} says that table {one.subject} knew of records that were"
                " taken away"
            )
    if state is None:
        return
    named = [name for one in records if (name := _log_id(one))]
    if named != [log_id] and (log_id or named):
        yield "the log's id is not the one that its records name"
    yield from _chain_problems(settings, state, records)
    try:
        yield from _commit_problems(log.infos(state.place, state.version), hashes)
    except FileDamaged as error:
        yield error.message.rstrip(".")


def _chain_problems(
    settings: Settings, state: State, records: Sequence[AuditRecord], before: Head = _START
) -> Iterator[str]:
    """What is wrong with the properties of the log's table, and with the chain of hashes, whose
    records come after ``before``.
    """
    head = None
    try:
        head = audit_state.head(state)
        if head is None:
            yield "the Delta log does not say where the chain ends"
        elif positions.read(state, positions.AUDIT) != head.sequence:
            yield "the Delta log names two ends of the chain"
    except LakeError as error:
        yield error.message.rstrip(".")
    try:
        audit_state.configs(state)
    except LakeError as error:
        yield error.message.rstrip(".")
    end = head or audit_state.end_of(records)
    sealed = settings.audit.key is not None
    yield from audit_log.faults(records, end, _keys(settings), sealed, before)


def _commit_problems(
    infos: Iterable[Mapping[str, Any]], hashes: Mapping[int, str]
) -> Iterator[str]:
    """Which commits of the log name a record that is not there."""
    for info in infos:
        fact = commit.facts_of(info).get(CHAIN_FACT)
        if not fact:
            continue
        try:
            end = Head(int(fact["sequence"]), str(fact["hash"]))
        except (KeyError, TypeError, ValueError):
            yield "a commit does not say where the chain ended"
            continue
        if hashes.get(end.sequence) != end.hash:
            yield f"record {end.sequence} is not the one that was committed"


def _log_id(record: AuditRecord) -> str:
    """The id of the log, if this record names it."""
    if record.action != CONFIG:
        return ""
    try:
        return str(dict(json.loads(record.details)).get("log", ""))
    except (TypeError, ValueError):
        return ""


def _keys(settings: Settings) -> dict[str, bytes]:
    names = [name for name in (settings.audit.key, *settings.audit.former_keys) if name]
    keys = [secrets.resolve(settings.secret(name)).encode() for name in names]
    return {audit_log.key_id(key): key for key in keys}


def moment(text: str) -> datetime:
    """A time from an argument: ``7d`` or ``12h`` ago, or an ISO date or time.

    Raises:
        ConfigError: the text is not a time.
    """
    try:
        if ago := _AGO.fullmatch(text.strip()):
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2].lower()]: int(ago[1])})
        time = datetime.fromisoformat(text)
        return time if time.tzinfo else time.astimezone()
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{text!r} is not a time.", hint='It looks like "7d", "12h", or "2026-05-01T08:00".'
        ) from None
