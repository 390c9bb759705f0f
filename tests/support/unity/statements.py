"""SQL warehouses and the Statement Execution API 2.0.

Rules from the documentation of the API (the docstring of
``databricks.sdk.service.sql.StatementExecutionAPI``): ``wait_timeout`` is 0s or 5s to 50s; a
statement that fails is answered with 200 and the state FAILED; a stopped warehouse starts by
itself, and statements are PENDING until it runs; after the timeout CONTINUE leaves it, CANCEL
cancels it.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from tests.support.unity.refusals import Refusal, check_enum, check_fields, invalid
from tests.support.unity.sql import Interpreter, SqlError

_WAIT = re.compile(r"(\d+)s")
_OPTIONAL = (
    "wait_timeout", "on_wait_timeout", "format", "disposition", "catalog", "schema", "byte_limit",
    "row_limit", "parameters", "query_tags",
)  # fmt: skip


@dataclass
class Warehouse:
    """A warehouse; a stopped one needs ``start`` seconds to run. ``users`` may use it, None for
    all. A statement runs for ``seconds``.
    """

    id: str
    state: str = "RUNNING"
    start: float = 0.0
    seconds: float = 0.0
    users: set[str] | None = None
    runs_at: float = 0.0

    def wake(self) -> None:
        """Starts it if it is stopped."""
        if self.state == "STOPPED":
            self.state, self.runs_at = "STARTING", time.monotonic() + self.start

    def current(self) -> str:
        """Its state."""
        if self.state == "STARTING" and time.monotonic() >= self.runs_at:
            self.state = "RUNNING"
        return self.state


@dataclass
class _Statement:
    """A statement of a caller and what became of it."""

    id: str
    caller: str
    text: str
    warehouse: Warehouse
    state: str = "PENDING"
    began: float = 0.0
    error: dict[str, str] = field(default_factory=dict)
    sql_state: str = ""
    rows: list[list[str]] = field(default_factory=list)


@dataclass
class Statements:
    """The statements that were executed; ``texts`` in their order."""

    interpreter: Interpreter
    warehouses: dict[str, Warehouse] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    _known: dict[str, _Statement] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def warehouse(self, name: str, caller: str) -> Warehouse:
        """A warehouse that a caller may use.

        Raises:
            Refusal: there is none, it is deleted, or not for the caller.
        """
        found = self.warehouses.get(name)
        if found is None or found.state == "DELETED":
            raise Refusal(404, "RESOURCE_DOES_NOT_EXIST", f"SQL warehouse {name} does not exist.")
        if found.users is not None and caller not in found.users:
            raise Refusal(
                403, "PERMISSION_DENIED",
                f"You do not have permission to use the SQL Warehouse {name}.",
            )  # fmt: skip
        return found

    def described(self, name: str, caller: str) -> dict[str, Any]:
        """GET /warehouses/{id}.

        Raises:
            Refusal: as `warehouse` does.
        """
        found = self.warehouse(name, caller)
        return {"id": found.id, "name": f"warehouse {name}", "state": found.current()}

    def execute(self, caller: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST /statements.

        Raises:
            Refusal: the request is not accepted.
        """
        check_fields(body, ("statement", "warehouse_id"), _OPTIONAL)
        check_enum(
            "on_wait_timeout", body.get("on_wait_timeout", "CONTINUE"), ("CONTINUE", "CANCEL")
        )
        check_enum("format", body.get("format", "JSON_ARRAY"), ("JSON_ARRAY",))
        check_enum("disposition", body.get("disposition", "INLINE"), ("INLINE",))
        match = _WAIT.fullmatch(str(body.get("wait_timeout", "10s")))
        if match is None or not (int(match[1]) == 0 or 5 <= int(match[1]) <= 50):
            raise invalid("wait_timeout must be 0s, or between 5s and 50s")
        warehouse = self.warehouse(body["warehouse_id"], caller)
        warehouse.wake()
        made = _Statement(str(uuid.uuid4()), caller, body["statement"], warehouse)
        self._known[made.id] = made
        deadline = time.monotonic() + int(match[1])
        while self._step(made) in ("PENDING", "RUNNING") and time.monotonic() < deadline:
            time.sleep(0.02)
        if made.state in ("PENDING", "RUNNING") and body.get("on_wait_timeout") == "CANCEL":
            made.state = "CANCELED"
        return self._answer(made)

    def status(self, caller: str, number: str) -> dict[str, Any]:
        """GET /statements/{id}.

        Raises:
            Refusal: there is none of this caller.
        """
        statement = self._find(caller, number)
        self._step(statement)
        return self._answer(statement)

    def cancel(self, caller: str, number: str) -> None:
        """POST /statements/{id}/cancel.

        Raises:
            Refusal: there is none of this caller.
        """
        statement = self._find(caller, number)
        with self._lock:
            if statement.state in ("PENDING", "RUNNING"):
                statement.state = "CANCELED"

    def _find(self, caller: str, number: str) -> _Statement:
        statement = self._known.get(number)
        if statement is None or statement.caller != caller:
            raise Refusal(404, "NOT_FOUND", f"The statement {number} was not found.")
        return statement

    def _step(self, statement: _Statement) -> str:
        with self._lock:
            if statement.state == "PENDING":
                if statement.warehouse.current() == "DELETED":
                    self._fail(statement, "BAD_REQUEST", "The warehouse was deleted.", "")
                elif statement.warehouse.current() == "RUNNING":
                    statement.state, statement.began = "RUNNING", time.monotonic()
            elapsed = time.monotonic() - statement.began
            if statement.state == "RUNNING" and elapsed >= statement.warehouse.seconds:
                self._run(statement)
            return statement.state

    def _run(self, statement: _Statement) -> None:
        self.texts.append(statement.text)
        try:
            statement.rows = self.interpreter.execute(statement.caller, statement.text)
            statement.state = "SUCCEEDED"
        except SqlError as error:
            self._fail(statement, "BAD_REQUEST", error.message, error.state)

    @staticmethod
    def _fail(statement: _Statement, code: str, message: str, state: str) -> None:
        statement.state, statement.sql_state = "FAILED", state
        statement.error = {"error_code": code, "message": message}

    @staticmethod
    def _answer(statement: _Statement) -> dict[str, Any]:
        status: dict[str, Any] = {"state": statement.state}
        if statement.error:
            status["error"] = statement.error
            if statement.sql_state:
                status["sql_state"] = statement.sql_state
        answer: dict[str, Any] = {"statement_id": statement.id, "status": status}
        if statement.state == "SUCCEEDED":
            count = len(statement.rows)
            answer["manifest"] = {
                "format": "JSON_ARRAY", "total_chunk_count": 1, "total_row_count": count,
                "truncated": False,
            }  # fmt: skip
            answer["result"] = {
                "chunk_index": 0, "row_offset": 0, "row_count": count,
                "data_array": statement.rows,
            }  # fmt: skip
        return answer
