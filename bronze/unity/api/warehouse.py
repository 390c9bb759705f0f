"""Runs SQL statements on a SQL warehouse, by Databricks' statement execution API."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from bronze.errors import CatalogError, CatalogUnreachable
from bronze.unity.api.rest import SQL, Api, Refusal, segment

# The API waits for a statement before it answers that it is not done: not at all, or 5 to 50 s.
_LEAST, _MOST = 5, 30
_LONGEST_PAUSE = 5.0
_DONE = ("SUCCEEDED", "CLOSED")
_WAITING = ("PENDING", "RUNNING")
_DELETED = ("DELETED", "DELETING")


@dataclass(eq=False)
class Warehouse:
    """A SQL warehouse. One that is stopped starts by itself, for which a statement waits up to
    ``wait`` seconds.
    """

    api: Api
    id: str
    wait: float
    clock: Callable[[], float] = time.monotonic
    _is_known: bool = field(default=False, init=False)

    def run(self, statement: str) -> None:
        """Runs a statement to its end.

        Raises:
            Refusal: it failed.
            CatalogError: the warehouse does not exist, or the statement was canceled.
            CatalogUnreachable: it is not done in time; it was canceled.
        """
        self._check()
        until = self.clock() + self.wait
        answer = self.api.call(
            "POST",
            f"{SQL}/statements",
            {
                "warehouse_id": self.id,
                "statement": statement,
                "wait_timeout": f"{self._answers_within}s",
                "on_wait_timeout": "CONTINUE",
                "format": "JSON_ARRAY",
                "disposition": "INLINE",
            },
        )
        path, pause = f"{SQL}/statements/{segment(answer['statement_id'])}", 1.0
        while (state := _state(answer)) in _WAITING:
            if self.clock() >= until:
                self._cancel(path, state)
            self.api.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            answer = self.api.get(path)
        if state in _DONE:
            return
        error = answer["status"].get("error") or {}
        if state == "FAILED":
            text = " ".join(str(error.get("message", "")).split())
            raise Refusal(200, str(error.get("error_code", state)), text.rstrip("."))
        raise CatalogError(
            f"A statement on the SQL warehouse {self.id} was not run: it is {state}.",
            hint="Somebody has canceled it, or the warehouse was stopped: run it again.",
        )

    @property
    def _answers_within(self) -> int:
        return 0 if self.wait < _LEAST else min(int(self.wait), _MOST)

    def _check(self) -> None:
        """Checks once that the warehouse is there, as far as its rights allow."""
        if self._is_known:
            return
        try:
            found = self.api.get(f"{SQL}/warehouses/{segment(self.id)}")
        except Refusal as refusal:
            if refusal.status == 403:
                # CAN USE is enough to run statements, and says nothing about reading its state.
                found = {}
            elif refusal.status in (400, 404) and refusal.code:
                raise self._missing(str(refusal)) from None
            else:
                raise
        if found.get("state") in _DELETED:
            raise self._missing(f"it is {found['state']}")
        self._is_known = True

    def _missing(self, why: str) -> CatalogError:
        return CatalogError(
            f"There is no SQL warehouse {self.id} at {self.api.host}: {why}.",
            hint="Correct warehouse under [catalog]; without one, bronze registers by REST.",
        )

    def _cancel(self, path: str, state: str) -> None:
        with suppress(Refusal, CatalogError):
            self.api.call("POST", f"{path}/cancel", {})
        doing = "has not started" if state == "PENDING" else "has not run a statement"
        raise CatalogUnreachable(
            f"The SQL warehouse {self.id} {doing} within {self.wait:.0f} s; the statement was"
            " canceled.",
            hint="Start it and run this again, or set wait under [catalog] to a longer time.",
        )


def _state(answer: Any) -> str:
    return str(answer["status"]["state"])
