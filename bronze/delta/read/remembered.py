"""The contents of logs in object stores that this process has read or written.

A log that is remembered is read again by one listing and its new entries alone. Each remembered
content has the identity of its last entry, so that a log that was replaced is noticed. Logs in
local folders are not remembered: to read them costs little.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bronze.delta.storage import client
from bronze.model.locations import Place

if TYPE_CHECKING:
    from bronze.delta.read.replay import Replayed

RECENT = 30.0
"""Seconds for which a content may be committed to without another look at the log. They are few:
after a retention, entries of the log are deleted, and a commit could take the place of one."""

# The most data files of all remembered contents together: one takes about 2 kB.
_MOST_FILES = 20_000


@dataclass(frozen=True)
class _Memory:
    content: Replayed
    at: float


_contents: OrderedDict[Place, _Memory] = OrderedDict()
_lock = threading.Lock()


def put(place: Place, content: Replayed | None) -> None:
    """Remembers the content of a log as it is now; forgets the log if it is None."""
    if client.is_local(place):
        return
    with _lock:
        _contents.pop(place, None)
        if content is None:
            return
        _contents[place] = _Memory(content, time.monotonic())
        size = sum(len(memory.content.adds) for memory in _contents.values())
        while size > _MOST_FILES:
            _, oldest = _contents.popitem(last=False)
            size -= len(oldest.content.adds)


def get(place: Place) -> Replayed | None:
    """The content that is remembered, however old it is."""
    with _lock:
        memory = _contents.get(place)
        return memory.content if memory else None


def recent(place: Place) -> Replayed | None:
    """The content that was read or written in the last `RECENT` seconds."""
    with _lock:
        memory = _contents.get(place)
        fresh = memory is not None and time.monotonic() - memory.at < RECENT
        return memory.content if memory and fresh else None


def outdate(place: Place) -> None:
    """Has the next reader look at the log: another writer has committed."""
    with _lock:
        if memory := _contents.get(place):
            _contents[place] = replace(memory, at=-RECENT)


def within(root: Place) -> Mapping[Place, Replayed]:
    """The contents of the logs in a folder and its options, by their places."""
    prefix = root.url.rstrip("/") + "/"
    with _lock:
        return {
            place: memory.content
            for place, memory in _contents.items()
            if place.url.startswith(prefix) and place.options == root.options
        }


def forget() -> None:
    """Forgets all contents."""
    with _lock:
        _contents.clear()
