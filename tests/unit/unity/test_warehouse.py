"""Statements on a SQL warehouse: each state that the API documents, and how long one waits."""

from __future__ import annotations

from typing import Any

import pytest

from bronze.errors import CatalogError, CatalogUnreachable
from bronze.unity.api.rest import Refusal
from bronze.unity.api.warehouse import Warehouse


class Server:
    """An API whose statement has one state after the other; its clock goes on as it is waited."""

    host = "adb.example"

    def __init__(self, *states: str, warehouse: Any = None, error: Any = None) -> None:
        self.states, self.error = list(states), error
        self.house = {"state": "STOPPED"} if warehouse is None else warehouse
        self.asked: list[tuple[str, str, Any]] = []
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    def get(self, path: str) -> Any:
        """GET."""
        return self.call("GET", path)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The state of the warehouse, or of the statement."""
        self.asked.append((method, path, body))
        if "/warehouses/" in path:
            if isinstance(self.house, Exception):
                raise self.house
            return self.house
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {"statement_id": "s 1", "status": {"state": state, "error": self.error}}


def run(server: Server, wait: float = 600) -> None:
    """Runs a statement."""
    Warehouse(server, "w", wait, lambda: server.now).run("SELECT 1")  # type: ignore[arg-type]


@pytest.mark.parametrize("last", ["SUCCEEDED", "CLOSED"])
def test_a_statement_is_waited_for(last: str) -> None:
    """A stopped warehouse starts by itself; it is asked every few seconds whether it is done."""
    server = Server("PENDING", "PENDING", "RUNNING", "RUNNING", last)
    run(server)
    (_, path, body), *polls = server.asked[1:]
    assert path == "/api/2.0/sql/statements"
    assert body == {
        "warehouse_id": "w", "statement": "SELECT 1", "wait_timeout": "30s",
        "on_wait_timeout": "CONTINUE", "format": "JSON_ARRAY", "disposition": "INLINE",
    }  # fmt: skip
    assert polls == [("GET", "/api/2.0/sql/statements/s%201", None)] * 4
    assert server.now == 1 + 2 + 4 + 5


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("PENDING", "has not started within 60 s"),
        ("RUNNING", "has not run a statement within 60 s"),
    ],
)
def test_one_that_is_not_done_in_time_is_canceled(state: str, words: str) -> None:
    """Nobody waits for ever."""
    server = Server(state)
    with pytest.raises(CatalogUnreachable, match=words):
        run(server, wait=60)
    assert server.asked[-1][:2] == ("POST", "/api/2.0/sql/statements/s%201/cancel")
    assert server.now <= 65


def test_failures_are_in_the_words_of_databricks() -> None:
    """One that was canceled by somebody is no success either."""
    error = {"error_code": "BAD_REQUEST", "message": "[PARSE_SYNTAX_ERROR]\nnear 'x'. "}
    with pytest.raises(Refusal, match=r"^BAD_REQUEST: \[PARSE_SYNTAX_ERROR\] near 'x'$"):
        run(Server("FAILED", error=error))
    with pytest.raises(CatalogError, match="was not run: it is CANCELED"):
        run(Server("CANCELED"))


@pytest.mark.parametrize(
    "warehouse",
    [
        {"state": "DELETED"},
        {"state": "DELETING"},
        Refusal(404, "RESOURCE_DOES_NOT_EXIST", "x"),
        Refusal(400, "INVALID_PARAMETER_VALUE", "w is not a valid endpoint id"),
    ],
)
def test_a_warehouse_that_is_not_there(warehouse: Any) -> None:
    """No statement is sent to it."""
    server = Server("SUCCEEDED", warehouse=warehouse)
    with pytest.raises(CatalogError, match=r"There is no SQL warehouse w at adb\.example"):
        run(server)
    assert len(server.asked) == 1


def test_who_may_use_it_need_not_see_its_state() -> None:
    """CAN USE is enough."""
    run(Server("SUCCEEDED", warehouse=Refusal(403, "PERMISSION_DENIED", "CAN VIEW")))
