"""Checks of the lake, of the governance tables in it, and of the end of the audit log."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import log, store
from bronze.delta.storage import client
from bronze.errors import BronzeError
from bronze.governance import audit_proof
from bronze.model.locations import Place, TableName
from bronze.operate.doctor.examination import Check, Verdict, ok, problem, unknown, warning
from bronze.printable import count

_HANGS = "Check the URL of [lake] root, its endpoint, the network, and the disk under a mount."
_FEW_BYTES, _SHARE = 2 * 10**9, 0.05
_NO_BYTES = 200 * 10**6
# A checkpoint is written every 20 commits; expired entries are removed by `bronze maintain`.
_LONG, _MANY = 100, 5_000
_CHECKPOINT = re.compile(r"_delta_log/(\d{20})\.checkpoint.*\.parquet")
_TIME = 2.5
"""Seconds after which the tables that were not looked at yet are left out."""
_LISTED = 3


def lake(settings: Settings) -> Check:
    """The check of the lake as a place to read from and write to."""
    local = client.is_local(_root(settings))
    steps = ("read", "write", *(("space",) if local else ()), "logs")
    return Check("lake", lambda: _examine(settings, local), _name(settings), _HANGS, steps=steps)


def _root(settings: Settings) -> Place:
    return replace(settings.place("", ""), url=settings.lake.root)


def _name(settings: Settings) -> str:
    return f"The lake at {settings.lake.root}"


def _examine(settings: Settings, local: bool) -> Iterator[Verdict]:
    root, name = _root(settings), _name(settings)
    if local and store.is_missing(root):
        yield _missing_folder(root)
        return
    yield ok(f"{name} can be read: it has {count(len(store.folders(root)), 'schema')}.")
    store.prove_exclusive(root)
    yield ok(f"{name} can be written, and refuses a second writer of one object.")
    if local:
        yield _space(root)
    yield _logs(settings)


def _missing_folder(root: Place) -> Verdict:
    """The verdict on a folder that only the first run makes."""
    folder = Path(root.url)
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        return problem(f"{there}, a part of [lake] root, is not a folder.", "Choose another root.")
    return warning(
        f"There is no folder {folder}.",
        "The first run makes it. If it held tables: mount its disk, or give it back its name.",
    )


def _space(root: Place) -> Verdict:
    disk, volume = shutil.disk_usage(root.url), os.statvfs(root.url)
    # Some file systems have no fixed number of files.
    files = volume.f_favail / volume.f_files if volume.f_files else 1.0
    text = f"The disk of {root.url} has {disk.free / 10**9:.1f} GB free ({_percent(disk)})"
    hint = "Free space or enlarge the disk; `bronze maintain` deletes files past the retention."
    if disk.free < _NO_BYTES or files < 0.001:
        what = text if files >= 0.001 else f"{text}, and no more files fit"
        return problem(f"{what}.", hint)
    if disk.free < min(_FEW_BYTES, disk.total * _SHARE) or files < _SHARE:
        what = text if files >= _SHARE else f"{text}, and only {files:.1%} of its files are free"
        return warning(f"{what}.", hint)
    return ok(f"{text}.")


def _percent(disk: shutil._ntuple_diskusage) -> str:
    return f"{disk.free / max(disk.total, 1):.0%}"


def _logs(settings: Settings) -> Verdict:
    """The verdict on the length of the Delta logs, which every reader replays."""
    until, looked = time.monotonic() + _TIME, 0
    tables = [
        (schema, table)
        for schema in (settings.lake.schema_, GOVERNANCE)
        for table in store.folders(settings.place(schema, ""))
    ]
    long = []
    for schema, table in tables:
        if time.monotonic() > until:
            break
        looked += 1
        entries, behind = _log_length(settings.place(schema, table))
        if behind > _LONG or entries > _MANY:
            name = TableName(schema, table).label
            long.append(
                f"{name} has {count(entries, 'entry', 'entries')}, {behind:,} since its last"
                " checkpoint"
            )
    total = count(len(tables), "table")
    seen = total if looked == len(tables) else f"{looked:,} of {total}"
    if long:
        more = f"; and {len(long) - _LISTED} more" if len(long) > _LISTED else ""
        return warning(
            f"Delta logs are long: {'; '.join(long[:_LISTED])}{more}.",
            "`bronze maintain` writes checkpoints and removes expired entries.",
        )
    return ok(f"The Delta logs of {seen} are short.")


def _log_length(place: Place) -> tuple[int, int]:
    """How many entries a log has, and how many of them are later than the last checkpoint."""
    paths = store.listing(place, "_delta_log")
    entries = [int(name[1]) for name in map(log.ENTRY.fullmatch, paths) if name]
    checkpoints = [int(name[1]) for name in map(_CHECKPOINT.fullmatch, paths) if name]
    last = max(checkpoints, default=-1)
    return len(entries), sum(entry > last for entry in entries)


def governance(settings: Settings) -> Check:
    """The check of the governance tables: their logs can be read, and their files are there."""
    what = f"The folder {GOVERNANCE} of the lake at {settings.lake.root}"
    return Check("governance", lambda: _examine_governance(settings), what, _HANGS)


def _examine_governance(settings: Settings) -> Iterator[Verdict]:
    if store.is_missing(_root(settings)):
        yield unknown("There is no lake to read.")
        return
    names = store.folders(settings.place(GOVERNANCE, ""))
    # The service keeps what is no table in a folder that Delta's readers leave out.
    tables = [name for name in names if not name.startswith("_")]
    faults = [
        f"{GOVERNANCE}.{table} {fault}"
        for table in tables
        if (fault := _table_fault(settings.place(GOVERNANCE, table)))
    ]
    if faults:
        yield problem(
            f"{'; '.join(faults)}.",
            "Restore its folder from a backup. `bronze audit --verify` says what the audit log is"
            " still worth; other tables may be moved away, and are begun again.",
        )
    elif not tables:
        yield ok("There is no governance table yet: the first run makes them.")
    else:
        yield ok(f"{count(len(tables), 'governance table is', 'governance tables are')} whole.")


def _table_fault(place: Place) -> str:
    """What is wrong with a table, as what follows its name; "" if nothing is."""
    try:
        state = log.read(place)
        if state is None:
            return "has no Delta log"
        present = {unquote(path) for path in store.listing(place)}
        lost = [file.path for file in state.listed_files if unquote(file.path) not in present]
    except BronzeError as error:
        return f"cannot be read: {error.message.rstrip('.')}"
    if lost:
        more = f" and {count(len(lost) - 1, 'more file')}" if len(lost) > 1 else ""
        return f"lacks {lost[0]}{more}"
    return ""


def audit(settings: Settings) -> Check:
    """The check of the newest records of the audit log, and of their seal."""
    what = f"The audit log of the lake at {settings.lake.root}"
    return Check("audit", lambda: _examine_audit(settings), what, _HANGS)


def _examine_audit(settings: Settings) -> Iterator[Verdict]:
    if store.is_missing(_root(settings)):
        yield unknown("There is no lake to read.")
        return
    proof = audit_proof.prove_newest(settings)
    hint = "`bronze audit --verify` proves the whole log, and says what is wrong."
    if proof is None:
        if store.folders(settings.place(settings.lake.schema_, "")):
            yield problem("There are Bronze tables, and no audit log beside them.", hint)
        else:
            yield ok("Nothing is recorded yet.")
    elif proof.problems:
        yield problem(f"The audit log is not as it was written: {proof.problems[0]}.", hint)
    else:
        which = "all" if proof.checked == proof.last else f"the newest {proof.checked:,}"
        sealed = "sealed with the key" if settings.audit.key else "not sealed with a key"
        yield ok(f"The audit log has {count(proof.last, 'record')}; {which} are whole, {sealed}.")
