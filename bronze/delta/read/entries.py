"""The entries of a Delta log: the actions of single commits, and what these say of themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from obstore.exceptions import BaseError

from bronze.delta import store
from bronze.delta.storage import client
from bronze.delta.storage.store_errors import store_error
from bronze.errors import FileDamaged
from bronze.model.locations import Place

Action = Mapping[str, Any]

ENTRY = re.compile(r"_delta_log/(\d{20})\.json")
"""The path of an entry, in a table's folder."""

CONCURRENT = 16
"""Tables, and entries of one, that are read at a time from an object store."""

RESTORE = (
    "If entries of its _delta_log are missing or were changed, restore them from a backup; or move"
    " the table's folder away, and the next run loads it again."
)
"""The hint about a log that cannot be read."""


def infos(place: Place, latest: int | None = None) -> Iterator[Action]:
    """The infos of all commits up to a version, as far as the log goes back, in any order.

    Raises:
        FileDamaged: an entry cannot be read.
        LakeError, LakeUnreachable
    """
    named = map(ENTRY.fullmatch, store.listing(place, "_delta_log"))
    versions = (int(name[1]) for name in named if name)
    wanted = (version for version in versions if latest is None or version <= latest)
    yield from (info_of(actions) for _, actions in entries(place, wanted) if actions is not None)


def info(place: Place, version: int) -> Action | None:
    """The info of one commit, None if the log no longer has it.

    Raises:
        LakeError, LakeUnreachable
    """
    actions = entry(place, version)
    return None if actions is None else info_of(actions)


def entry(place: Place, version: int) -> Sequence[Action] | None:
    """The actions of one commit, None if the log no longer has it. Raises as `entries` does."""
    return next(actions for _, actions in entries(place, (version,)))


def entries(place: Place, versions: Iterable[int]) -> Iterator[tuple[int, Sequence[Action] | None]]:
    """The actions of some commits by their versions, None for one that the log no longer has.

    Raises:
        FileDamaged: an entry cannot be read; a checkpoint may replace it.
        LakeError, LakeUnreachable
    """
    for version, path, text in _texts(place, versions):
        if text is None:
            yield version, None
            continue
        try:
            actions = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            actions = []
        if not actions or not all(map(_is_action, actions)):
            raise FileDamaged(
                f"The file {path} of the table at {place.url} is not an entry of a Delta log.",
                hint=RESTORE,
            )
        yield version, actions


def _texts(place: Place, versions: Iterable[int]) -> Iterator[tuple[int, str, bytes | None]]:
    """Versions, the paths of their entries, and their content, None for one that is missing; those
    of an object store are read several at a time.
    """

    def text(version: int) -> tuple[int, str, bytes | None]:
        path = f"_delta_log/{version:020}.json"
        try:
            return version, path, store.get(place, path)
        except FileNotFoundError:
            return version, path, None
        except (BaseError, OSError) as error:
            raise store_error(place, "read", error) from None

    if client.is_local(place):
        yield from map(text, versions)
        return
    remaining = iter(versions)
    with ThreadPoolExecutor(CONCURRENT) as pool:
        while some := list(islice(remaining, CONCURRENT)):
            yield from pool.map(text, some) if len(some) > 1 else map(text, some)


def _is_action(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and all(isinstance(one, dict) for one in found.values())
        and all(
            isinstance(found[k].get("path"), str) for k in ("add", "remove", "cdc") if k in found
        )
    )


def info_of(actions: Sequence[Action]) -> Action:
    """The info in the actions of a commit; empty without one."""
    found: Action = next((a["commitInfo"] for a in actions if "commitInfo" in a), {})
    return found
