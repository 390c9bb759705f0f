"""Whose root it is: that of a copy, of a lake that goes on from a copy, or of half a restore.

``_backup`` of a root says so, beside the manifests of a copy (`bronze.backup.manifest`):

- ``restore.json``: a restore into this root has not ended. No command may use it.
- ``restored.json``: the generation that a restore has put here.
- ``in_use.json``: a command has taken the root over as its lake. From then on no backup of another
  lake may write into it.

Before its first command changes it, a lake that was a copy, or was restored, gets a record in its
audit log, which says up to where its past goes: later records were lost with the lake before.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import obstore
from obstore.exceptions import BaseError

from bronze.backup import manifest
from bronze.backup.manifest import Manifest
from bronze.config.settings import Settings
from bronze.delta import log, store
from bronze.delta.storage import client
from bronze.delta.storage.store_errors import store_error
from bronze.errors import BronzeError, ConfigError, LakeError
from bronze.governance import actor, audit, audit_state
from bronze.governance.audit import Event
from bronze.governance.tables.audit_log import CONTINUES, RECOVERY
from bronze.model.locations import Place

UNFINISHED = f"{manifest.FOLDER}/restore.json"
RESTORED = f"{manifest.FOLDER}/restored.json"
IN_USE = f"{manifest.FOLDER}/in_use.json"

# Commands that only read or copy a lake, and record that in it.
_READERS = ("verify", "reveal", "backup")
_checked: set[str] = set()
_lock = threading.Lock()


# Restores


def unfinished_mark(generation: Manifest, tables: Sequence[str]) -> bytes:
    """What marks a root while a generation is restored into it."""
    document = {**_facts(generation), "tables": sorted(tables)}
    return json.dumps(document, indent=1, sort_keys=True).encode()


def _facts(generation: Manifest) -> Mapping[str, Any]:
    return {
        "format": manifest.FORMAT,
        "lake": generation.lake,
        "generation": generation.id,
        "made": generation.made.isoformat(),
        "manifest": generation.hash,
        "root": generation.root,
    }


def check_empty(root: Place, mark: bytes) -> bool:
    """Checks that a root is empty, or has what a killed restore with the same mark has left;
    whether it has.

    Raises:
        ConfigError: it is not empty.
        LakeError, LakeUnreachable: it cannot be read.
    """
    names = _names(root)
    if not names:
        return False
    there = _read(root, UNFINISHED)
    if there == mark:
        return True
    if there is not None:
        known = _document(there)
        raise ConfigError(
            f"A restore of generation {known.get('generation', '?')} into {root.url} was killed"
            " before its end, and this one is another: of other tables, or another generation.",
            hint="Repeat that restore to continue it (--at"
            f" {known.get('generation', 'ID')}), or delete what is there.",
        )
    raise ConfigError(
        f"{root.url} is not empty: it has {names[0]}.",
        hint="A restore needs a root of its own: an empty folder, or a path in a bucket that has"
        " nothing under it.",
    )


def put_mark(root: Place, mark: bytes) -> None:
    """Marks a root as unfinished.

    Raises:
        ConfigError: another restore has marked it meanwhile.
        LakeError, LakeUnreachable: it cannot be written.
    """
    if not manifest.create(root, UNFINISHED, mark) and _read(root, UNFINISHED) != mark:
        raise ConfigError(f"Another restore into {root.url} has begun meanwhile.")


def finish(root: Place, generation: Manifest) -> None:
    """Ends a restore: the root is a lake. Raises `LakeError`, `LakeUnreachable`."""
    document = {**_facts(generation), "restored": datetime.now(UTC).isoformat()}
    store.put(root, RESTORED, json.dumps(document, indent=1, sort_keys=True).encode())
    store.delete(root, [UNFINISHED])


# Failover


def check_not_in_use(copy: Place) -> None:
    """Checks that no lake has gone on from a copy.

    Raises:
        ConfigError: one has, or the root has an unfinished restore, or a restored lake.
        LakeError, LakeUnreachable: that cannot be read.
    """
    for path in (IN_USE, UNFINISHED, RESTORED):
        data = _read(copy, path)
        if data is not None:
            known = _document(data)
            since = f" since {known['at'][:19]} UTC by {known['host']}" if "at" in known else ""
            raise ConfigError(
                f"The root of the copy at {copy.url} is in use as a lake{since}: a backup would"
                " overwrite it.",
                hint="After a failover the copy is the lake: choose another [backup] root, and do"
                " not start the lake from before again.",
            )


def take_over(settings: Settings, action: str) -> None:
    """Checks that a command may use the root of its config as its lake, and takes over one that is
    a copy, or was restored. It looks once in a process.

    Args:
        settings: the config.
        action: the command, such as "run".

    Raises:
        ConfigError: the root is that of an unfinished restore, or of a copy that is not taken over
            and the command only reads.
        LakeError, LakeUnreachable: it cannot be taken over.
    """
    root = settings.lake_root
    with _lock:
        if root.url in _checked:
            return
        try:
            names = set(_names(manifest.in_folder(root, manifest.FOLDER)))
        except BronzeError:
            # The command itself finds out that the lake cannot be read, and says it in its result.
            return
        if _name(UNFINISHED) in names:
            raise _unfinished_error(root)
        is_copy = _name(manifest.IDENTITY) in names
        if _name(IN_USE) not in names and (is_copy or _name(RESTORED) in names):
            if is_copy and action in _READERS:
                raise ConfigError(
                    f"The lake at {root.url} is a copy: a {action} would write records into it.",
                    hint="`bronze backup --verify` checks a copy. To fail over to it, run `bronze"
                    " run`, `bronze stream` or `bronze serve`.",
                )
            _claim(settings, root, is_copy)
        # A root without a mark may become a copy while this process lives.
        if names:
            _checked.add(root.url)


def _unfinished_error(root: Place) -> ConfigError:
    known = _document(_read(root, UNFINISHED) or b"")
    return ConfigError(
        f"The lake at {root.url} is not whole: the restore of generation"
        f" {known.get('generation', '?')} into it has not ended.",
        hint="Repeat the restore: it continues what is there.",
    )


def _claim(settings: Settings, root: Place, is_copy: bool) -> None:
    """Records where the lake goes on from, then marks the root as in use."""
    if is_copy:
        generation = manifest.latest(root)
        if generation is None:
            raise LakeError(
                f"The copy at {root.url} has no whole generation: it cannot be used as a lake.",
                hint="Its first backup has not ended. `bronze run` with another root loads anew.",
            )
        facts: Mapping[str, Any] = _facts(generation)
    else:
        facts = _document(_read(root, RESTORED) or b"")
    state = log.read(audit_state.place(settings))
    details = {
        **{name: facts.get(name) for name in ("generation", "made", "root")},
        CONTINUES: audit_state.end(state).sequence,
    }
    audit.record_events(settings, [Event(RECOVERY[not is_copy], root.url, "succeeded", details)])
    document = {
        "format": manifest.FORMAT,
        "lake": audit_state.log_id(state),
        "generation": facts.get("generation"),
        "at": datetime.now(UTC).isoformat(),
        "host": actor.host(),
    }
    manifest.create(root, IN_USE, json.dumps(document, indent=1).encode())


def forget() -> None:
    """Forgets which roots were looked at."""
    with _lock:
        _checked.clear()


def _read(root: Place, path: str) -> bytes | None:
    try:
        return manifest.content(root, path)
    except FileNotFoundError:
        return None


def _document(data: bytes) -> Mapping[str, Any]:
    try:
        return dict(json.loads(data))
    except (ValueError, TypeError):
        return {}


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _names(place: Place) -> list[str]:
    """The names of what is right under a place."""
    if store.is_missing(place):
        return []
    prefix = client.path_in(place) or None
    try:
        listed = client.request(place, lambda opened: obstore.list_with_delimiter(opened, prefix))
    except FileNotFoundError:
        return []
    except (BaseError, OSError) as error:
        raise store_error(place, "listed", error) from None
    paths = [*listed["common_prefixes"], *(meta["path"] for meta in listed["objects"])]
    return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
