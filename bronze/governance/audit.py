"""The audit: what commands do is entered into ``governance.audit_log``, and can be proven.

Records are appended by compare-and-swap onto the head of the chain (see
`bronze.governance.tables.audit_log`). The head is in each commit, as a property of the table and an
app transaction, which checkpoints keep. A config that has changed since it was last at work here is
a record too: it names the keys. One of these names the log's id, which is minted when the log
begins; the lake's tables know of it, and of records (see `bronze.delta.audit_mark`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import uuid4

import polars as pl
import pyarrow as pa

from bronze import secrets
from bronze.config import fingerprint
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import audit_mark, commit, files, log, positions
from bronze.delta.log import State
from bronze.delta.positions import Position
from bronze.errors import BronzeError, ConfigError, FileDamaged
from bronze.governance import actor, audit_witnesses
from bronze.governance.tables import audit_log as book
from bronze.governance.tables.audit_log import AuditRecord, Head
from bronze.governance.writer import Page, append
from bronze.model.locations import Place
from bronze.model.results import Shown
from bronze.model.stamp import AuditMark
from bronze.version import VERSION

CONFIG = "config"
"""The action of a record that tells of a config that is new here, or has changed."""

_CHAIN = "audit"
_HEAD, _CONFIGS = "bronze.audit.head", "bronze.audit.configs"
_LOG = "bronze.audit.log"
# Of a record that says that a table knew of more records than the log had.
_AUDIT, _SHORT = "audit", "cut off"
_APPEND_ONLY = {"delta.appendOnly": "true"}
_SINCE = re.compile(r"(\d+)\s*([smhd])", re.IGNORECASE)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True)
class Event:
    """What is to be recorded; ``details`` are values that JSON knows, without any secret."""

    action: str
    subject: str
    result: str
    details: Mapping[str, Any] = field(default_factory=dict)
    batch_id: str = ""


@dataclass(frozen=True, repr=False)
class AuditReport(Shown):
    """What the audit log holds. ``records`` are those that were asked for, of ``count`` in all;
    ``head`` is the hash of the last one. ``verified`` says that the chain was checked, ``problems``
    what is wrong with it; of ``unsealed`` records at its beginning, which are older than the key of
    the config, nobody can tell who has written them.

    What it was proven by: ``place`` is where the log is, ``log`` its id, ``files`` how many files
    were read; ``tables`` Bronze tables were asked, of which ``vouching`` know of records of this
    log, up to number ``vouched``. ``notes`` say what is not proven.
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
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: nothing is known to be wrong; 1: something is."""
        return 1 if self.problems else 0


def record(
    settings: Settings,
    action: str,
    subject: str,
    result: str,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Enters one record.

    Args:
        settings: the config.
        action: what was done.
        subject: what it was done to.
        result: what came of it.
        details: what else there is to know, in values that JSON knows, without any secret.

    Raises:
        ConfigError: there is no key to seal it with, though the config names one.
        LakeError, LakeUnreachable: it cannot be written.
    """
    enter(settings, [Event(action, subject, result, details or {})])


def enter(settings: Settings, events: Sequence[Event]) -> None:
    """Enters records, in one commit. Raises as `record` does."""
    key = _key(settings)
    now = datetime.now(UTC)
    imprinted = fingerprint.imprint(settings)

    def drafted(event: Event) -> AuditRecord:
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

    def page(state: State | None) -> Page | None:
        configs = _configs(state)
        name, whole = settings.path or "python", fingerprint.fingerprint_of(imprinted)
        own = _log_id(state)
        fresh = own or uuid4().hex
        changed = []
        if configs.get(name) != whole or not own:
            changed = [_configured(state, name, imprinted, "" if own else fresh)]
        drafts = [drafted(event) for event in (*changed, *events)]
        if not drafts:
            return None
        links = book.chained(drafts, _end(state), key)
        last = Head(links[-1].sequence, links[-1].record_hash)
        notes = {
            **dict(settings.maintain.properties()),
            **_APPEND_ONLY,
            _LOG: fresh,
            _HEAD: f"{last.sequence}:{last.hash}",
            _CONFIGS: json.dumps({**configs, name: whole}, ensure_ascii=False),
        }
        facts = {"sequence": last.sequence, "hash": last.hash}
        return Page(
            book.frame(links), Position(positions.AUDIT, last.sequence), notes, {_CHAIN: facts}
        )

    append(place(settings), book.COLUMNS, page)


def place(settings: Settings) -> Place:
    """Where the records are."""
    return settings.place(GOVERNANCE, book.NAME)


def mark(settings: Settings) -> AuditMark | None:
    """The newest record, for commits to name; the log is begun where there is none.

    None where it cannot be read or begun: the tables land all the same, and that nothing could be
    recorded is said when it is tried in the end.
    """
    with suppress(BronzeError):
        if (found := _newest(settings)) is None:
            enter(settings, [])
            found = _newest(settings)
        return found
    return None


def records_lost(
    settings: Settings, known: AuditMark, tables: Mapping[str, State]
) -> tuple[str, ...]:
    """Holds tables, by their names, against the log; what is missing there is recorded, so that it
    is known when the log has grown again.

    Args:
        settings: the config.
        known: the newest record, as it was read before the tables were.
        tables: what was read of them.

    Returns:
        What to say of it.

    Raises:
        ConfigError, LakeError, LakeUnreachable: it cannot be recorded.
    """
    if not any(audit_mark.knows_more(state, known) for state in tables.values()):
        return ()
    # Others may have recorded and landed since.
    known = _newest(settings) or known
    short = [name for name, state in tables.items() if audit_mark.knows_more(state, known)]
    if short:
        details = {"last": known.sequence}
        enter(settings, [Event(_AUDIT, name, _SHORT, details) for name in short])
    return tuple(
        f"{name} knows of records that the audit log has not, which ended with record"
        f" {known.sequence}: see `bronze audit --verify`"
        for name in short
    )


def _newest(settings: Settings) -> AuditMark | None:
    state = log.read(place(settings))
    end, own = _end(state), _log_id(state)
    return AuditMark(own, end.sequence, end.hash) if end.sequence and own else None


def _log_id(state: State | None) -> str:
    return state.properties.get(_LOG, "") if state else ""


def report(
    settings: Settings,
    *,
    verify: bool = False,
    head: str = "",
    since: datetime | None = None,
    action: str = "",
    table: str = "",
) -> AuditReport:
    """Reads records, and proves them where that is asked for.

    Args:
        settings: the config.
        verify: computes the chain anew, and compares its end with the Delta log's.
        head: a hash that was kept elsewhere, which the chain must still hold.
        since: records of that time and later only.
        action: records of this action only.
        table: records about this table only: ``schema.table``, or the name alone.

    Raises:
        ConfigError: a key that the config names is not there.
        LakeError, LakeUnreachable: they cannot be read.
    """
    # The tables are asked first: what they know of is in the log by then.
    told = (
        audit_witnesses.testimony_of(settings, book.NAME) if verify else audit_witnesses.Testimony()
    )
    state = log.read(place(settings))
    records, unreadable = _read(state) if state else ([], [])
    if unreadable and not verify:
        raise BronzeError(unreadable[0], hint="See `bronze audit --verify`.")
    problems: list[str] = []
    own = _log_id(state)
    notes: tuple[str, ...] = ()
    if verify:
        problems = [*unreadable, *_proven(settings, state, records, told)]
        if head and head not in {one.record_hash for one in records}:
            problems.append("no record has the hash that was kept: the log was put back, or remade")
        keyed = settings.audit.key is not None
        notes = () if problems else tuple(audit_witnesses.notes(told, own, len(records), keyed))
    asked = tuple(
        one
        for one in records
        if (since is None or one.recorded_timestamp >= since)
        and action in ("", one.action)
        # Either part of a name may have dots.
        and (table in ("", one.subject) or one.subject.endswith(f".{table}"))
    )
    last = records[-1].record_hash if records else ""
    bare = 0
    if verify and settings.audit.key:
        bare = next((i for i, one in enumerate(records) if one.key_id), 0)
    vouching = told.vouching(own)
    return AuditReport(
        asked,
        len(records),
        last,
        verify,
        tuple(problems),
        bare,
        place(settings).url,
        own,
        len(state.files) if state else 0,
        len(told.tables),
        len(vouching),
        max(vouching.values(), default=0),
        notes,
    )


def moment(text: str) -> datetime:
    """The time that somebody means: ``7d`` or ``12h`` ago, or an ISO date or time.

    Raises:
        ConfigError: it is none.
    """
    if ago := _SINCE.fullmatch(text.strip()):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2].lower()]: int(ago[1])})
    try:
        told = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{text!r} is not a time.", hint='It looks like "7d", "12h", or "2026-05-01T08:00".'
        ) from None
    return told if told.tzinfo else told.astimezone()


def ready(settings: Settings) -> None:
    """Makes sure that records can be sealed as the config says.

    Raises:
        ConfigError: there is no key to seal them with, though the config names one.
    """
    _key(settings)


def _key(settings: Settings) -> bytes | None:
    name = settings.audit.key
    return secrets.resolve(settings.secret(name)).encode() if name else None


def _keys(settings: Settings) -> dict[str, bytes]:
    names = [name for name in (settings.audit.key, *settings.audit.former_keys) if name]
    keys = [secrets.resolve(settings.secret(name)).encode() for name in names]
    return {book.key_id(key): key for key in keys}


def _head_of(state: State | None) -> Head | None:
    """The head that the table tells of, None where it tells of none."""
    found = re.fullmatch(r"(\d+):([0-9a-f]{64})", state.properties.get(_HEAD, "") if state else "")
    return Head(int(found[1]), found[2]) if found else None


def _end(state: State | None) -> Head:
    if state is None:
        return Head()
    told = _head_of(state)
    if told is None:
        # Somebody has taken it away; the chain goes on, and `verify` tells of it.
        records, _ = _read(state)
        return Head(records[-1].sequence, records[-1].record_hash) if records else Head()
    return told


def _configs(state: State | None) -> dict[str, str]:
    try:
        return dict(json.loads(state.properties.get(_CONFIGS, "{}"))) if state else {}
    except (TypeError, ValueError):
        # Somebody has changed it; the config is recorded again.
        return {}


def _configured(state: State | None, name: str, now: Mapping[str, str], minted: str) -> Event:
    """The record of a config that is not as it was known here; it keeps a hash for each key, and
    the log's id if that is ``minted`` with it.
    """
    own = {"log": minted} if minted else {}
    records, _ = _read(state) if state else ([], [])
    known = [one for one in records if one.action == CONFIG and one.subject == name]
    try:
        then = dict(json.loads(known[-1].details)["keys"])
    except (IndexError, KeyError, TypeError, ValueError):
        # There is none, or somebody has changed it, which `verify` tells of.
        return Event(CONFIG, name, "first seen", {"keys": now, **own})
    details = {
        "added": sorted(set(now) - set(then)),
        "removed": sorted(set(then) - set(now)),
        "changed": sorted(key for key in set(now) & set(then) if now[key] != then[key]),
        "keys": now,
        **own,
    }
    return Event(CONFIG, name, "changed" if then != now else "bound", details)


def _read(state: State) -> tuple[list[AuditRecord], list[str]]:
    """All records by their numbers, and which files cannot be read."""
    frames: list[pl.DataFrame] = []
    unreadable = []
    for file in state.files:
        try:
            parquet = files.opened(state.place, file)
            rows = [pl.DataFrame(part) for _, part in files.parts(parquet, book.COLUMNS)]
            whole = [part.drop_nulls() for part in rows]
            frames += whole
            if [part.height for part in whole] != [part.height for part in rows]:
                unreadable.append(f"the file {file.path} has records that lack values")
        except (BronzeError, pa.ArrowException, OSError) as error:
            kind = type(error).__name__
            unreadable.append(f"the file {file.path} cannot be read ({kind})")
    return book.read(pl.concat(frames)) if frames else [], unreadable


def _proven(
    settings: Settings,
    state: State | None,
    records: Sequence[AuditRecord],
    tables: audit_witnesses.Testimony,
) -> Iterator[str]:
    """What is wrong with the log, by itself and by what the lake's tables know of it."""
    if not records:
        yield audit_witnesses.absence(tables, place(settings).url)
    own = _log_id(state)
    hashes = {one.sequence: one.record_hash for one in records}
    yield from audit_witnesses.faults(tables, own, hashes, max(hashes, default=0))
    for one in records:
        if (one.action, one.result) == (_AUDIT, _SHORT):
            yield (
                f"record {one.sequence} says that table {one.subject} knew of records that were"
                " taken away"
            )
    if state is None:
        return
    named = [known for one in records if (known := _minted(one))]
    if named != [own] and (own or named):
        yield "the log's id is not the one that its records tell of"
    told = _head_of(state)
    if told is None:
        yield "the Delta log does not tell where the chain ends"
    elif positions.read(state, positions.AUDIT) != told.sequence:
        yield "the Delta log tells of two ends of the chain"
    keys = _keys(settings)
    end = told or _end(state)
    yield from book.faults(records, end, keys, settings.audit.key is not None)
    try:
        yield from _broken_facts(log.infos(state.place, state.version), hashes)
    except FileDamaged as error:
        yield error.message.rstrip(".")


def _broken_facts(infos: Iterable[Mapping[str, Any]], hashes: Mapping[int, str]) -> Iterator[str]:
    """Which commits of the log tell of another record than is there."""
    for info in infos:
        fact = commit.facts_of(info).get(_CHAIN)
        if not fact:
            continue
        try:
            end = Head(int(fact["sequence"]), str(fact["hash"]))
        except (KeyError, TypeError, ValueError):
            yield "a commit does not tell where the chain ended"
            continue
        if hashes.get(end.sequence) != end.hash:
            yield f"record {end.sequence} is not the one that was committed"


def _minted(record: AuditRecord) -> str:
    """The id of the log, if this is the record which names it."""
    if record.action != CONFIG:
        return ""
    try:
        return str(dict(json.loads(record.details)).get("log", ""))
    except (TypeError, ValueError):
        return ""
