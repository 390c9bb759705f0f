"""Who may look and act, over real connections."""

from __future__ import annotations

import json

import pytest

from tests.integration.operate.web.conftest import OPERATOR, TOKENS, VIEWER, Begin
from tests.support.browsing import Browser

_OPERATOR_ONLY = {"operator": TOKENS["operator"]}
_PAGES = ("/", "/table?name=tests.orders", "/schedule", "/streams", "/alerts", "/system", "/audit")
_DATA = ("/metrics", "/api/v1/status", "/api/v1/tables", "/api/v1/alerts")
_NOW = {"action": "now", "subject": "tests.products", "next": "/"}


def test_on_this_machine_everybody_looks_and_nobody_acts_without_a_token(begin: Begin) -> None:
    """Pages and data need no token at a loopback address; acting needs a session."""
    browser, service = begin(tokens=_OPERATOR_ONLY)
    assert {browser.get(path).status for path in (*_PAGES, *_DATA)} == {200}
    assert "Run now" not in browser.get("/table?name=tests.products").text
    assert browser.send("/act", _NOW).status == 401
    assert (
        browser.request("POST", "/api/v1/act", b"{}", content_type="application/json").status == 401
    )
    assert service.acted == []


def test_without_an_operators_token_nobody_can_act(begin: Begin) -> None:
    """Without one in the config there are no buttons, and an empty token is a wrong one."""
    browser, service = begin()
    assert "[web] tokens.operator" in browser.get("/table?name=tests.products").text
    assert browser.sign_in("").status == 401
    assert browser.get("/", authorization="Bearer ").status == 401
    assert service.acted == []


def test_with_a_viewers_token_looking_needs_one(begin: Begin) -> None:
    """Pages lead to the login, data is refused; both tokens open them, in either way."""
    browser, _ = begin(tokens=TOKENS)
    for path in _PAGES:
        answer = browser.get(path)
        assert answer.status == 303
        assert answer.headers["location"].startswith("/login?next=%2F")
    assert {browser.get(path).status for path in (*_DATA, "/events")} == {401}
    assert browser.get("/live").status == browser.get("/ready").status == 200
    for token in (OPERATOR, VIEWER):
        assert browser.get("/api/v1/status", authorization=f"Bearer {token}").status == 200
        signed = Browser(browser.port)
        assert signed.sign_in(token).status == 303
        assert {signed.get(path).status for path in (*_PAGES, *_DATA)} == {200}


def test_a_viewer_cannot_act(begin: Begin) -> None:
    """Neither by a form nor by the token in a header."""
    browser, service = begin(tokens=TOKENS)
    browser.sign_in(VIEWER)
    page = browser.get("/table?name=tests.products")
    assert "Run now" not in page.text
    assert browser.act(_NOW).status == 403
    answer = Browser(browser.port).request(
        "POST",
        "/api/v1/act",
        json.dumps(_NOW).encode(),
        authorization=f"Bearer {VIEWER}",
        content_type="application/json",
    )
    assert answer.status == 403
    assert service.acted == []


def test_an_operator_acts_by_forms_and_by_the_token(begin: Begin) -> None:
    """What is asked for reaches the service with who asks; the next page says so once."""
    browser, service = begin(tokens=TOKENS)
    browser.sign_in(OPERATOR)
    for fields in (
        _NOW,
        {"action": "pause", "subject": "tests.products", "for": "1h", "reason": "release"},
        {"action": "resume", "subject": "tests.suppliers"},
        {"action": "reset", "subject": "tests.warehouses"},
        {"action": "acknowledge", "subject": "source_unreachable:PostgreSQL_DE"},
        {"action": "silence", "kind": "freshness", "subject": "*", "for": "1d", "reason": "move"},
    ):
        assert browser.act(fields).status == 303
    assert "freshness:* is silenced." in browser.get("/").text
    assert "is silenced." not in browser.get("/").text
    assert [acted[:2] for acted in service.acted] == [
        ("now", "tests.products"),
        ("pause", "tests.products"),
        ("resume", "tests.suppliers"),
        ("reset", "tests.warehouses"),
        ("acknowledge", "source_unreachable:PostgreSQL_DE"),
        ("silence", "freshness:*"),
    ]
    assert {acted[4] for acted in service.acted} == {"operator at 127.0.0.1"}
    answer = Browser(browser.port).request(
        "POST",
        "/api/v1/act",
        json.dumps({**_NOW, "reason": "cron"}).encode(),
        authorization=f"Bearer {OPERATOR}",
        content_type="application/json",
    )
    assert (answer.status, service.acted[-1][3]) == (200, "cron")


def test_what_cannot_be_done_is_said(begin: Begin) -> None:
    """Wrong wishes are refused with a sentence, and nothing reaches the service."""
    browser, service = begin(tokens=TOKENS)
    browser.sign_in(OPERATOR)
    for fields, sentence in (
        ({"action": "drop", "subject": "tests.products"}, "There is no such action."),
        ({"action": "now", "subject": "tests.nothing"}, "There is no table"),
        ({"action": "pause", "subject": "tests.products", "for": "1h"}, "the reason is missing"),
        (
            {"action": "pause", "subject": "tests.products", "for": "x", "reason": "r"},
            "is not a time",
        ),
        ({"action": "silence", "kind": "freshness", "subject": "*", "reason": "r"}, "needs an end"),
        (
            {"action": "pause", "subject": "tests.products", "until": "2001-01-01", "reason": "r"},
            "not in the future",
        ),
    ):
        assert browser.act(fields).status == 303
        assert sentence in browser.get("/").text
    assert service.acted == []


def test_forms_of_others_are_refused(begin: Begin) -> None:
    """Without the session's token, with that of another session, from another page, or with none
    of the headers by which a browser says where a form is from.
    """
    browser, service = begin(tokens=TOKENS)
    browser.sign_in(OPERATOR)
    other = Browser(browser.port)
    other.sign_in(OPERATOR)
    csrf = browser.get("/").field("csrf")
    assert browser.send("/act", _NOW).status == 403
    assert browser.send("/act", {**_NOW, "csrf": ""}).status == 403
    assert browser.send("/act", {**_NOW, "csrf": other.get("/").field("csrf")}).status == 403
    fields = {**_NOW, "csrf": csrf}
    for origin in (
        "http://evil.example",
        "null",
        "",
        f"http://localhost:{browser.port}",
        "http://[",
    ):
        assert browser.send("/act", fields, origin=origin).status == 403
        assert (
            browser.send("/login", {"csrf": csrf, "token": OPERATOR}, origin=origin).status == 403
        )
        assert browser.send("/logout", fields, origin=origin).status == 403
    assert browser.send("/act", fields, sec_fetch_site="cross-site").status == 403
    assert browser.send("/act", fields, content_type="text/plain").status == 415
    assert service.acted == []
    assert browser.send("/act", fields).status == 303
    assert len(service.acted) == 1


def test_a_login_needs_its_own_form(begin: Begin) -> None:
    """A right token without the form's token begins no session."""
    browser, _ = begin(tokens=TOKENS)
    assert browser.send("/login", {"token": OPERATOR}).status == 403
    browser.get("/login")
    assert browser.send("/login", {"token": OPERATOR, "csrf": "0" * 64}).status == 403
    assert browser.get("/").status == 303


def test_a_session_ends_with_signing_out(begin: Begin) -> None:
    """The cookie of before is worth nothing."""
    browser, _ = begin(tokens=TOKENS)
    browser.sign_in(OPERATOR)
    cookies = dict(browser.cookies)
    assert browser.send("/logout", {"csrf": browser.get("/").field("csrf")}).status == 303
    browser.cookies = cookies
    assert browser.get("/").status == 303


def test_cookies_are_closed_to_scripts_and_other_sites(begin: Begin) -> None:
    """HttpOnly and SameSite=Strict; Secure and bound to the host behind a proxy with TLS."""
    browser, _ = begin(tokens=TOKENS)
    for cookie in browser.sign_in(OPERATOR).set_cookies:
        assert "httponly" in cookie.lower()
        assert "samesite=strict" in cookie.lower()
    proxied, _ = begin(tokens=TOKENS, behind_proxy=True, host="bronze.example")
    origin, host = "https://bronze.example", "bronze.example"
    form = proxied.get("/login", host=host)
    fields = {"csrf": form.field("csrf"), "token": OPERATOR}
    answer = proxied.send("/login", fields, origin=origin, host=host)
    assert answer.status == 303
    assert all("secure" in cookie.lower() for cookie in (*form.set_cookies, *answer.set_cookies))
    assert any(name.startswith("__Host-") for name in proxied.cookies)
    assert "strict-transport-security" in answer.headers


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.7", ""])
def test_other_names_are_refused(begin: Begin, host: str) -> None:
    """A name that was made to point here (DNS rebinding) shows nothing; /live has nothing to show."""
    browser, _ = begin()
    for path in ("/", "/metrics", "/api/v1/status", "/login", "/events"):
        assert browser.get(path, host=host).status == 421
    assert browser.get("/live", host=host).status == 200
    for own in ("localhost:9", "127.0.0.1", "[::1]:80", "LOCALHOST."):
        assert browser.get("/", host=own).status == 200


def test_wrong_tokens_are_limited(begin: Begin) -> None:
    """After five wrong ones in a minute even the right one is refused, by form and by header;
    sessions go on, and other addresses are not touched.
    """
    browser, _ = begin(tokens=TOKENS, behind_proxy=True)
    proxy = {"x-forwarded-for": "6.6.6.6, 203.0.113.7"}
    guesser = Browser(browser.port, dict(proxy))
    statuses = [guesser.get("/api/v1/status", authorization=f"Bearer {n}").status for n in range(7)]
    assert statuses == [401] * 5 + [429] * 2
    answer = guesser.get("/api/v1/status", authorization=f"Bearer {OPERATOR}")
    assert answer.status == 429
    assert 0 < int(answer.headers["retry-after"]) <= 60
    origin = f"https://127.0.0.1:{browser.port}"
    assert guesser.sign_in(OPERATOR, origin=origin).status == 429
    # What a client says itself does not make it another address.
    liar = Browser(browser.port, {"x-forwarded-for": "1.2.3.4, 203.0.113.7"})
    assert liar.get("/api/v1/status", authorization=f"Bearer {OPERATOR}").status == 429
    other = Browser(browser.port, {"x-forwarded-for": "203.0.113.8"})
    assert other.get("/api/v1/status", authorization=f"Bearer {OPERATOR}").status == 200


def test_a_read_only_dashboard_acts_for_nobody(begin: Begin) -> None:
    """No button, no form, no token."""
    browser, service = begin(tokens=TOKENS, read_only=True)
    browser.sign_in(OPERATOR)
    assert "read-only" in browser.get("/table?name=tests.products").text
    assert browser.act(_NOW).status == 403
    answer = browser.request(
        "POST",
        "/api/v1/act",
        json.dumps(_NOW).encode(),
        authorization=f"Bearer {OPERATOR}",
        content_type="application/json",
    )
    assert answer.status == 403
    assert service.acted == []


def test_a_login_leads_to_pages_of_this_server_only(begin: Begin) -> None:
    """Whatever the address of the login said."""
    browser, _ = begin(tokens=TOKENS)
    for after in ("https://evil.example/", "//evil.example", "/\\evil.example", "/a\r\nb: c"):
        form = browser.get("/login")
        fields = {"csrf": form.field("csrf"), "token": OPERATOR, "next": after}
        assert browser.send("/login", fields).headers["location"] == "/"
    fields = {"csrf": browser.get("/login").field("csrf"), "token": OPERATOR, "next": "/alerts?a=b"}
    assert browser.send("/login", fields).headers["location"] == "/alerts?a=b"


def test_headers_leave_a_browser_no_choice(begin: Begin) -> None:
    """On pages, files, errors and data alike; and nothing of a page comes from elsewhere."""
    browser, _ = begin()
    for path in ("/", "/nowhere", "/static/page.js", "/live", "/api/v1/status", "/login"):
        headers = browser.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    assert browser.get("/").headers["cache-control"] == "no-store"
    for path in _PAGES:
        page = browser.get(path).text
        assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in page
