"""Sessions, tokens and names, by a clock that is moved."""

from __future__ import annotations

import pytest

from bronze.config.sections.serve import WebSettings
from bronze.operate.web import access
from bronze.operate.web.access import Access, Attempts, Tokens


class _Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def _access(clock: _Clock, **web: object) -> Access:
    return Access(WebSettings.model_validate(web), Tokens(None, None), clock)


def test_sessions_end_when_they_are_idle_or_old() -> None:
    """After half a day without a request, and after a week in any case."""
    clock = _Clock()
    known = _access(clock)
    secret = known.begin("operator")
    clock.now += access.IDLE
    assert known.session(secret)
    clock.now += access.IDLE + 1
    assert known.session(secret) is None
    secret, end = known.begin("viewer"), clock.now + access.LONGEST
    while clock.now <= end:
        assert known.session(secret)
        clock.now += access.IDLE
    assert known.session(secret) is None
    assert known.session("") is None


def test_sessions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many the oldest end."""
    monkeypatch.setattr(access, "_SESSIONS", 3)
    known = _access(_Clock())
    secrets = [known.begin("viewer") for _ in range(4)]
    assert [bool(known.session(secret)) for secret in secrets] == [False, True, True, True]


def test_forms_belong_to_one_session() -> None:
    """The token of a form is of its cookie, and of this process."""
    known, other = _access(_Clock()), _access(_Clock())
    first, second = known.begin("operator"), known.begin("operator")
    assert known.is_form_of(first, known.form_token(first))
    assert not known.is_form_of(first, known.form_token(second))
    assert not known.is_form_of(first, other.form_token(first))
    assert not known.is_form_of("", known.form_token(""))
    assert not known.is_form_of(first, "\u00e4\ud800")


def test_wrong_tokens_are_counted_by_network_and_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five a minute; an IPv6 network is one address; what is kept is bounded."""
    clock = _Clock()
    attempts = Attempts(clock)
    for number in range(5):
        assert attempts.wait("2001:db8::1") == 0
        attempts.add(f"2001:db8::{number}")
        clock.now += 1
    assert attempts.wait("2001:db8::ffff") == pytest.approx(55)
    assert attempts.wait("2001:db8:0:1::1") == attempts.wait("nonsense") == 0
    clock.now += 55.1
    assert attempts.wait("2001:db8::1") == 0
    monkeypatch.setattr(access, "_ADDRESSES", 10)
    for number in range(50):
        attempts.add(f"10.0.0.{number}")
    assert len(attempts._wrong) == 10


def test_a_token_has_one_role() -> None:
    """An empty one has none, also where no token is set."""
    tokens = Tokens(access._hash("o" * 16), access._hash("v" * 16))
    assert [tokens.role(token) for token in ("o" * 16, "v" * 16, "", "o" * 15)] == [
        "operator",
        "viewer",
        "nobody",
        "nobody",
    ]
    assert Tokens(None, None).role("") == "nobody"


def test_names_of_the_server() -> None:
    """On this machine its own names alone; elsewhere addresses, too, and the configured host."""
    local = _access(_Clock(), listen="127.0.0.1:8080")
    assert local.knows_host("localhost:8080")
    assert not local.knows_host("10.0.0.1:8080")
    elsewhere = _access(
        _Clock(),
        listen="0.0.0.0:8080",
        behind_proxy=True,
        host="bronze.example:8443",
        tokens={"viewer": {"secret": "V"}},
    )
    for name in ("bronze.example", "BRONZE.example:8443", "10.0.0.1", "[2001:db8::1]:80"):
        assert elsewhere.knows_host(name)
    for name in ("evil.example", "bronze.example.evil", ""):
        assert not elsewhere.knows_host(name)
    assert elsewhere.is_own_origin("https://bronze.example:8443", "internal:8080")
    assert not elsewhere.is_own_origin("http://bronze.example", "bronze.example")
    assert not elsewhere.is_own_origin("https://evil.example", "bronze.example")
