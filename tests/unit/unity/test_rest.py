"""Requests to Unity Catalog: what is sent again, what is not, and how errors read."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from bronze.errors import CatalogUnreachable, ConfigError, SecretsUnreachable
from bronze.model.locations import Secret, Workspace
from bronze.unity.api import refusals
from bronze.unity.api.rest import Api, Refusal

WORKSPACE = Workspace("https://adb.example", "token", secret=Secret("env", "TOKEN"))


class Answer:
    """An answer of a server."""

    def __init__(self, status: int, document: Any = None, **headers: str) -> None:
        self.status, self.headers = status, {k.replace("_", "-"): v for k, v in headers.items()}
        self.data = document if isinstance(document, bytes) else json.dumps(document or {}).encode()


class Pool:
    """A connection pool that gives prepared answers, or raises them."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.sent: list[tuple[str, str, dict[str, str], Any]] = []

    def request(self, method: str, url: str, **options: Any) -> Answer:
        """The next answer."""
        body = json.loads(options["body"]) if options["body"] else None
        self.sent.append((method, url, options["headers"], body))
        assert options["redirect"] is False
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret with the token."""
    monkeypatch.setenv("TOKEN", "t0ken")


def api(*answers: Answer | Exception) -> tuple[Api, Pool, list[float]]:
    """An API with prepared answers, and the seconds that it waits."""
    pool, waits = Pool(*answers), list[float]()
    made = Api(WORKSPACE, waits.append)
    made.__dict__["_pool"] = pool
    return made, pool, waits


def refused(code: str, message: str, status: int = 400) -> Answer:
    """An answer with an error."""
    return Answer(status, {"error_code": code, "message": message})


def test_a_request_has_the_token_and_counts() -> None:
    """Reads and writes are counted apart; a listing follows its pages, empty ones too."""
    pages = [Answer(200, {"tables": [1], "next_page_token": "p2"}),
             Answer(200, {"next_page_token": "p3"}), Answer(200, {"tables": [2]})]  # fmt: skip
    client, pool, _ = api(*pages, Answer(200, b""))
    assert list(client.pages("/x", "tables", max_results=0)) == [1, 2]
    assert client.call("POST", "/y", {"ä": 1}) == {}
    assert (client.reads, client.writes) == (3, 1)
    method, url, headers, body = pool.sent[1]
    assert (method, url) == ("GET", "https://adb.example/x?max_results=0&page_token=p2")
    assert headers["Authorization"] == "Bearer t0ken"
    assert pool.sent[3][3] == {"ä": 1}
    assert body is None


@pytest.mark.parametrize("status", [408, 409, 500, 502, 504, 301])
def test_only_429_and_503_are_sent_again(status: int) -> None:
    """Anything else may have been done already."""
    client, pool, waits = api(refused("X", "y.", status))
    with pytest.raises(Refusal, match=r"^X: y$"):
        client.get("/x")
    assert (len(pool.sent), waits) == (1, [])


def test_waits_are_as_the_server_asks_and_bounded() -> None:
    """Seconds or a date, at most a minute each and three in all."""
    busy = [Answer(429, Retry_After="7"), Answer(503), Answer(429, Retry_After="999"),
            Answer(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")]  # fmt: skip
    client, _, waits = api(*busy, Answer(200, {"a": 1}))
    assert client.get("/x") == {"a": 1}
    assert waits == [7.0, 2.0, 60.0, 0.0]
    client, pool, waits = api(*[refused("LIMIT", "slow down", 429)] * 9)
    with pytest.raises(CatalogUnreachable, match=r"adb.example is busy: LIMIT: slow down"):
        client.get("/x")
    assert (len(pool.sent), len(waits)) == (6, 5)


def test_a_refused_token_is_asked_for_once_more() -> None:
    """It may have been rotated; if the new one is refused as well, that is told."""
    wrong = refused("403", "Invalid access token.", 403)
    client, pool, _ = api(wrong, Answer(200, {"a": 1}))
    assert client.get("/x") == {"a": 1}
    client, pool, _ = api(wrong, wrong)
    with pytest.raises(Refusal) as caught:
        client.get("/x")
    assert len(pool.sent) == 2
    error = refusals.error_of(caught.value, "It cannot be used", "SELECT")
    assert "check auth under [catalog]" in error.hint
    # A missing privilege has nothing to do with the token.
    client, pool, _ = api(refused("PERMISSION_DENIED", "no SELECT", 403))
    with pytest.raises(Refusal):
        client.get("/x")
    assert len(pool.sent) == 1


def causes() -> Iterator[tuple[Exception, str, str]]:
    """Errors of connections, what is said about them, and what the hint names."""
    late = ssl.SSLCertVerificationError(1, "x")
    late.verify_message = "certificate is not yet valid"
    yield late, "its certificate is not trusted: certificate is not yet valid", "the clock"
    yield TimeoutError("timed out"), "no answer within 10 s", "the network"
    yield ConnectionRefusedError(111, "Connection refused"), "Connection refused", "the network"


@pytest.mark.parametrize(("cause", "why", "hint"), [*causes()])
def test_who_cannot_be_reached_is_named_with_the_reason(
    cause: Exception, why: str, hint: str
) -> None:
    """With what to do about it."""
    from urllib3.exceptions import ProtocolError

    error = ProtocolError("x")
    error.__cause__ = cause
    client, _, _ = api(error)
    with pytest.raises(CatalogUnreachable, match=f"adb.example cannot be reached: {why}") as caught:
        client.get("/x")
    assert hint in caught.value.hint


@pytest.mark.parametrize("status", [200, 404, 303])
def test_a_host_that_is_no_workspace(status: int) -> None:
    """A page for people is no answer; a missing object is one."""
    client, _, _ = api(Answer(status, b"<html>"))
    with pytest.raises(Refusal, match="is not that of a Unity Catalog") as caught:
        client.find("/x")
    assert "without a path" in refusals.error_of(caught.value, "x").hint
    client, _, _ = api(refused("TABLE_DOES_NOT_EXIST", "x", 404))
    assert client.find("/x") is None


def test_a_missing_secret_is_a_mistake_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent without it."""
    monkeypatch.delenv("TOKEN")
    client, pool, _ = api()
    with pytest.raises((ConfigError, SecretsUnreachable)):
        client.get("/x")
    assert pool.sent == []


@pytest.mark.parametrize(
    ("code", "message", "status", "hint"),
    [
        ("PERMISSION_DENIED", "User does not have CREATE TABLE on Schema 's'", 403, "GRANT P to"),
        ("BAD_REQUEST", "[INSUFFICIENT_PERMISSIONS] Insufficient privileges", 200, "GRANT P to"),
        ("INVALID_PARAMETER_VALUE", "LOCATION_OVERLAP: x", 400, "drop its entry"),
        ("EXTERNAL_LOCATION_DOES_NOT_EXIST", "x", 404, "CREATE EXTERNAL LOCATION"),
        (
            "PRINCIPAL_DOES_NOT_EXIST",
            "Could not find principal with name x",
            404,
            "owner or grants",
        ),
        ("CATALOG_DOES_NOT_EXIST", "x", 404, "Correct name under"),
        ("TABLE_ALREADY_EXISTS", "x", 400, "cannot see"),
        ("INTERNAL_ERROR", "x", 500, ""),
    ],
)
def test_refusals_are_told_with_what_to_do(code: str, message: str, status: int, hint: str) -> None:
    """In Databricks' own words."""
    error = refusals.error_of(Refusal(status, code, message), "T cannot be created", "P")
    assert error.message == f"T cannot be created: {code}: {message}."
    assert hint in error.hint
