"""Tokens for a workspace's API."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError

import pytest

from bronze.errors import ConfigError, SecretsUnreachable
from bronze.model.locations import Secret, Workspace
from bronze.secrets import azure, workspace

PRINCIPAL = Workspace("https://adb.example", "oauth", "client", Secret("env", "CLIENT_SECRET"))


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The answers of the token endpoint, and before them the requests."""
    requests: list[Any] = []
    answers: list[Any] = []

    def urlopen(asked: Any, timeout: float) -> Any:
        requests.append(asked)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(json.dumps(answer).encode())

    monkeypatch.setattr(request, "urlopen", urlopen)
    monkeypatch.setenv("CLIENT_SECRET", "s3cret")
    workspace.forget(PRINCIPAL)
    yield [requests, answers]
    workspace.forget(PRINCIPAL)


def test_a_token_is_used_until_shortly_before_its_end(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no longer; the secret goes only into the header of the request."""
    requests, answers = asked
    answers += [{"access_token": name, "expires_in": 3600} for name in ("one", "two", "three")]
    assert [workspace.token(PRINCIPAL) for _ in range(5)] == ["one"] * 5
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3400)
    assert workspace.token(PRINCIPAL) == "two"
    workspace.forget(PRINCIPAL)
    assert workspace.token(PRINCIPAL) == "three"
    assert len(requests) == 3
    assert requests[0].full_url == "https://adb.example/oidc/v1/token"
    assert requests[0].data == b"grant_type=client_credentials&scope=all-apis"
    pair = requests[0].headers["Authorization"].removeprefix("Basic ")
    assert base64.b64decode(pair) == b"client:s3cret"


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (HTTPError("u", 401, "x", {}, io.BytesIO()), ConfigError, "HTTP 401"),  # type: ignore[arg-type]
        (HTTPError("u", 503, "x", {}, io.BytesIO()), SecretsUnreachable, "HTTP 503"),  # type: ignore[arg-type]
        (URLError(OSError(-2, "Name or service not known")), SecretsUnreachable, "Name or service"),
        ({"token": 1}, ConfigError, "not understood"),
    ],
)
def test_a_token_that_is_not_given(
    asked: list[Any], answer: Any, kind: type[Exception], message: str
) -> None:
    """It is told who refused it, without the secret."""
    asked[1].append(answer)
    with pytest.raises(kind, match=f"adb.example gives no token to the client client: .*{message}"):
        workspace.token(PRINCIPAL)


def test_the_identity_of_this_process_gets_tokens_of_azure_databricks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For the scope of Databricks; a server without authentication needs none."""
    scopes: list[str] = []

    def token(scope: str) -> tuple[str, float]:
        scopes.append(scope)
        return "entra", time.time() + 3600

    monkeypatch.setattr(azure, "token", token)
    where = Workspace("https://adb.azuredatabricks.net", "azure")
    assert [workspace.token(where), workspace.token(where)] == ["entra", "entra"]
    assert scopes == ["2ff814a6-3304-4ab8-85cb-cd0e6f879c1d/.default"]
    assert workspace.token(Workspace("http://localhost:8080", "none")) == ""
    workspace.forget(where)
