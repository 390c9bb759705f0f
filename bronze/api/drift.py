"""Whether the config that runs is the one on disk, and the one that is committed.

Each command records the hash of its config, and the commit of the git repository that the config's
file is in. `drift` compares the newest of these records with the file, and with its commit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from bronze.config import fingerprint
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.errors import ConfigError
from bronze.governance import audit, audit_state
from bronze.governance.tables.audit_log import AuditRecord
from bronze.model.results import Shown
from bronze.printable import count

_KEY = "config"
_NAMED = 8
_STATES = {
    "changed": "has changes that are not committed",
    "untracked": "lies in a git repository and is not committed",
    "unknown": "lies in a git repository that cannot be read: git is missing, or refuses it",
}


def config_version(settings: Settings) -> Mapping[str, Any]:
    """The details of a record with the config that a command had: its hash, and the commit."""
    file = fingerprint.file_version(settings)
    git = {"commit": file.commit, "file": file.state} if file.state else {}
    return {_KEY: {"path": settings.path, "hash": _hash(fingerprint.imprint(settings)), **git}}


@dataclass(frozen=True)
class RunningConfig:
    """The config of the newest record of a command: ``record`` is its number. ``commit`` and
    ``file`` are of its file then, as of `bronze.config.fingerprint.FileVersion`; ``hashes`` are
    those of its keys, None if they are not known.
    """

    record: int
    recorded: datetime
    action: str
    actor: str
    path: str
    hash: str
    commit: str
    file: str
    hashes: Mapping[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True, repr=False)
class DriftReport(Shown):
    """Whether what runs is what is on disk and committed. ``hash``, ``commit`` and ``file`` are of
    the config's file now; ``problems`` are sentences, ``notes`` what could not be compared.
    """

    _items: ClassVar[str] = ""

    path: str
    hash: str
    commit: str
    file: str
    running: RunningConfig | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: what runs is what is on disk and committed; 1: it is not."""
        return 1 if self.problems else 0

    def _summary(self) -> Iterable[str]:
        found = count(len(self.problems), "problem") if self.problems else "no drift"
        return [self.path, found]

    def _row(self, item: DriftReport) -> Mapping[str, Any]:
        ran = item.running
        return {
            "file": f"{item.hash[:12]} {item.file}".rstrip(),
            "commit": item.commit[:12],
            "ran last": f"{ran.hash[:12]} {ran.file}".rstrip() if ran else "",
            "by": f"{ran.action} of {ran.actor}" if ran else "",
            "at": ran.recorded if ran else None,
        }


def drift(settings: Settings) -> DriftReport:
    """Compares the config that ran last with its file and with the commit of the file.

    Raises:
        LakeError, LakeUnreachable: the audit log cannot be read.
    """
    state = log.read(audit_state.place(settings))
    running = _running(audit_state.records_of(state)[0]) if state else None
    file, hashes = fingerprint.file_version(settings), fingerprint.imprint(settings)
    problems, notes = list[str](), list[str]()
    if running is None:
        notes.append("No command has recorded its config yet: only the file can be looked at.")
    elif running.hash != _hash(hashes):
        problems.append(_difference(running, "what the file says", hashes))
    if not file.state:
        notes.append("The config is in no git repository: it was compared with its file alone.")
    elif file.state in _STATES:
        problems.append(f"{settings.path} {_STATES[file.state]}.")
    problems += _committed_problems(settings, running, file.state)
    return DriftReport(
        settings.path,
        _hash(hashes),
        file.commit,
        file.state,
        running,
        tuple(problems),
        tuple(notes),
    )


def _committed_problems(
    settings: Settings, running: RunningConfig | None, state: str
) -> Iterator[str]:
    """How the config that ran last differs from the committed one, where the file does too."""
    if running is None or state != "changed":
        return
    file = Path(settings.path)
    content = fingerprint.git(file.parent, "show", f"HEAD:./{file.name}")
    try:
        committed = _imprint_of(content, file) if content is not None else None
    except ConfigError as error:
        yield f"The committed file is not valid: {error.message}"
        return
    if committed is not None and running.hash != _hash(committed):
        yield _difference(running, "what is committed", committed)


def _imprint_of(content: bytes, file: Path) -> dict[str, str]:
    from bronze.config import loading

    return fingerprint.imprint(loading.parse_file(content, file, f"{file.name} of HEAD"))


def _difference(running: RunningConfig, other: str, hashes: Mapping[str, str]) -> str:
    """A sentence with the keys in which the config that ran last differs from another."""
    when = running.recorded.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    commit = f", at commit {running.commit[:12]}" if running.commit else ""
    keys = ""
    if running.hashes is not None and _hash(running.hashes) == running.hash:
        names = {*running.hashes, *hashes}
        different = sorted(n for n in names if running.hashes.get(n) != hashes.get(n))
        more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
        keys = f": {', '.join(different[:_NAMED])}{more}"
    return (
        f"What ran last is not {other} (record {running.record}, {running.action}, {when}, by"
        f" {running.actor}{commit}){keys}."
    )


def _running(records: Sequence[AuditRecord]) -> RunningConfig | None:
    """The config of the newest command, None if no record has one."""
    for record in reversed(records):
        try:
            version = dict(dict(json.loads(record.details))[_KEY])
            path, digest = str(version["path"]), str(version["hash"])
        except (KeyError, TypeError, ValueError):
            continue
        return RunningConfig(
            record.sequence,
            record.recorded_timestamp,
            record.action,
            f"{record.actor}@{record.host}",
            path,
            digest,
            str(version.get("commit", "")),
            str(version.get("file", "")),
            audit.hashes_in(records, path or "python"),
        )
    return None


def _hash(hashes: Mapping[str, str]) -> str:
    return fingerprint.fingerprint_of(hashes)
