"""Events as lines on stderr: text in a fixed order, or one JSON object a line."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from bronze.printable import visible, visible_json

LogFormat = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]

_AMBIGUOUS = re.compile(r"[\s=\"']")
_ORDER: Mapping[Level, int] = {"debug": 0, "info": 1, "warning": 2, "error": 3}


class LogLines:
    """Writes events as lines on stderr: time, level, event, the table, other facts in the order in
    which they are given, and the run's id last. Times are UTC, with their zone.

    ``format`` is ``text`` or ``json``; events below the ``level`` are not written; ``run`` is the
    id of the run of this process, "" where there is none or several.
    """

    def __init__(self) -> None:
        self.format: LogFormat = "text"
        self.level: Level = "info"
        self.run = ""
        self._lock = threading.Lock()

    def debug(self, event: str, **facts: object) -> None:
        """Writes what only somebody who searches for a fault wants to know."""
        self._write("debug", event, facts)

    def info(self, event: str, **facts: object) -> None:
        """Writes what happened."""
        self._write("info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        """Writes what needs attention."""
        self._write("warning", event, facts)

    def error(self, event: str, **facts: object) -> None:
        """Writes what failed."""
        self._write("error", event, facts)

    def _write(self, level: Level, event: str, facts: Mapping[str, object]) -> None:
        if _ORDER[level] < _ORDER[self.level]:
            return
        ordered = {"table": facts["table"], **facts} if "table" in facts else dict(facts)
        if self.run:
            ordered["run"] = self.run
        moment = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
        if self.format == "json":
            document = {"ts": moment, "level": level, "event": event, **ordered}
            text = visible_json(json.dumps(document, ensure_ascii=False, default=str))
        else:
            pairs = (f"{name}={_quoted(fact)}" for name, fact in ordered.items())
            text = visible(" ".join((moment, level, _quoted(event), *pairs)))
        # One write for a line, so that those of several threads do not mix.
        # A reader that has gone (``| head``) does not end the work.
        with self._lock, suppress(OSError, ValueError):
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def _quoted(fact: object) -> str:
    """The text of a fact, in quotes where a reader could not tell where it ends."""
    if isinstance(fact, str) and fact and not _AMBIGUOUS.search(fact):
        return fact
    return repr(fact)


LOG = LogLines()
