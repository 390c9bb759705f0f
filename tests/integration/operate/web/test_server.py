"""The server as a whole: how it starts and stops, and what does it no harm."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from bronze.errors import ConfigError, LakeUnreachable
from bronze.operate.web import events, guard, server, site
from bronze.operate.web.lake import facts
from tests.integration.operate.web.conftest import OPERATOR, TOKENS, Begin
from tests.support import views
from tests.support.browsing import Browser, free_port
from tests.support.views import Service


def _start(tmp_path: Path, **web: Any) -> server.Server:
    service = Service(views.night())
    settings = views.settings(tmp_path / "lake", web=web)
    return server.start(settings, view=service.look, runs=service.runs, act=service.act)


@contextmanager
def _connection(port: int, text: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(text)
        yield connection


def _wait(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(20)
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def test_a_port_in_use_is_a_sentence(tmp_path: Path) -> None:
    """And so are an address of another machine, and a name that does not exist."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}'?: another program has this port"):
            _start(tmp_path, listen=f"127.0.0.1:{port}")
    elsewhere = {"behind_proxy": True, "tokens": TOKENS}
    with pytest.raises(ConfigError, match="does not have this address"):
        _start(tmp_path, listen="192.0.2.1:8080", **elsewhere)
    with pytest.raises(ConfigError, match=r"listen = 'no-such-host.invalid:8080': "):
        _start(tmp_path, listen="no-such-host.invalid:8080", **elsewhere)


@pytest.mark.parametrize(
    ("operator", "viewer", "words"),
    [
        ("short", "a token that is long", "has to have at least 16"),
        ("sixteen or more \u00e4", "a token that is long", "printable ASCII"),
        ("a token that is long", "a token that is long", "are the same"),
        (None, "a token that is long", "OPERATE is not set"),
    ],
)
def test_bad_tokens_are_refused_at_the_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operator: str | None,
    viewer: str,
    words: str,
) -> None:
    """The sentence says what is wrong, and nothing of the token."""
    monkeypatch.setenv("VIEW", viewer)
    monkeypatch.delenv("OPERATE")
    if operator is not None:
        monkeypatch.setenv("OPERATE", operator)
    with pytest.raises(ConfigError, match=words) as caught:
        _start(tmp_path, listen=f"127.0.0.1:{free_port()}", tokens=TOKENS)
    assert operator is None or operator not in str(caught.value)


def test_a_proxy_makes_it_public(tmp_path: Path) -> None:
    """Behind a proxy a loopback address is reached from elsewhere, and needs tokens."""
    with pytest.raises(ConfigError, match="from other machines by the proxy: set tokens"):
        views.settings(tmp_path, web={"listen": "127.0.0.1:8080", "behind_proxy": True})


def test_it_serves_tls(tmp_path: Path) -> None:
    """With a certificate and a key; other files are refused with a sentence."""
    authority, port = trustme.CA(), free_port()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    files = {"certificate": str(certificate), "key": str(key)}
    running = _start(tmp_path, listen=f"127.0.0.1:{port}", **files)
    try:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
        assert running.url == f"https://127.0.0.1:{port}"
    finally:
        running.stop()
    for wrong in (str(tmp_path / "no.pem"), str(certificate)):
        with pytest.raises(ConfigError, match=r"and its key .* cannot be used"):
            _start(tmp_path, listen=f"127.0.0.1:{port}", certificate=str(certificate), key=wrong)


def test_it_starts_again_at_once(tmp_path: Path) -> None:
    """After a stop the port is free, with a listener and a connection still open."""
    port = free_port()
    for _ in range(2):
        running = _start(tmp_path, listen=f"127.0.0.1:{port}")
        listening = f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        with _connection(port, listening) as listener, _connection(port):
            assert listener.recv(100).startswith(b"HTTP/1.1 200")
            began = time.monotonic()
            running.stop()
            # Listeners are told to go: after three seconds they would be cut off.
            assert time.monotonic() - began < 2.8
        assert not running.is_alive


def test_live_answers_while_the_service_hangs(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are given up with a sentence; /live does not look at anything."""
    monkeypatch.setattr(site.Site.work, "__defaults__", (0.3,))
    release = threading.Event()

    class Hanging(Service):
        def look(self) -> Any:
            release.wait(30)
            return self.view

    browser, _ = begin(Hanging(views.night()))
    try:
        for path in ("/", "/ready", "/metrics", "/api/v1/status", "/", "/"):
            answer = browser.get(path)
            assert answer.status == 503
            assert "did not answer within" in answer.text
        began = time.monotonic()
        assert all(browser.get("/live").status == 200 for _ in range(20))
        assert time.monotonic() - began < 5
    finally:
        release.set()


@pytest.mark.soak
def test_a_lake_that_hangs_leaves_the_first_page(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that read it say so, with what is known without it; however many there are, those that
    do not read it are as before.
    """
    monkeypatch.setattr(facts, "_ANSWERED_WITHIN", 0.1)
    release = threading.Event()

    def hang(*_: object) -> None:
        release.wait(30)

    monkeypatch.setattr(facts, "_versions", hang)
    monkeypatch.setattr("bronze.operate.controls.read", hang)
    monkeypatch.setattr("bronze.governance.audit_state.place", hang)
    browser, _ = begin()
    try:
        for path in ("/alerts", "/audit", "/table?name=tests.orders") * 3:
            answer = browser.get(path)
            assert answer.status == 200
            assert "The lake has not answered" in answer.text
        for path in ("/", "/schedule", "/streams", "/system", "/metrics", "/ready"):
            assert browser.get(path).status == 200
    finally:
        release.set()


def test_what_a_slow_lake_was_asked_for_is_shown_when_it_has_answered(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked once, though several look meanwhile, and what was read before stays shown."""
    monkeypatch.setattr(facts, "_ANSWERED_WITHIN", 0.1)
    release, asked = threading.Event(), []

    def read(*_: object) -> list[Any]:
        asked.append(release.wait(30))
        return []

    monkeypatch.setattr("bronze.operate.controls.read", read)
    browser, _ = begin()
    try:
        for _ in range(3):
            assert "The lake has not answered" in browser.get("/alerts").text
    finally:
        release.set()
    assert _wait(lambda: "The lake has not answered" not in browser.get("/alerts").text)
    assert asked == [True]


def test_errors_of_the_lake_are_sentences(begin: Begin) -> None:
    """What an act could not write is said to the operator, by form and by token."""
    refusal = LakeUnreachable("The lake cannot be written.", hint="Check the mount.")
    browser, _ = begin(Service(views.night(), refuse=refusal), tokens=TOKENS)
    browser.sign_in(OPERATOR)
    browser.act({"action": "now", "subject": "tests.products"})
    assert "The lake cannot be written. Check the mount." in browser.get("/").text
    answer = browser.request(
        "POST",
        "/api/v1/act",
        b'{"action": "now", "subject": "tests.products"}',
        authorization=f"Bearer {OPERATOR}",
        content_type="application/json",
    )
    assert answer.status == 502
    assert json.loads(answer.body)["hint"] == "Check the mount."


def test_requests_are_bounded(begin: Begin) -> None:
    """Long bodies, long and many headers, other methods, what is not HTTP."""
    browser, service = begin(tokens=TOKENS)
    browser.sign_in(OPERATOR)
    csrf = browser.get("/").field("csrf")
    fields = {"csrf": csrf, "action": "now", "subject": "tests.products"}
    assert browser.send("/act", {**fields, "reason": "x" * guard.LONGEST_BODY}).status == 413
    assert browser.send("/act", {**fields, **{f"f{n}": "" for n in range(100)}}).status == 400
    assert browser.request("PUT", "/act").status == 405
    assert browser.request("OPTIONS", "/").status == 405
    assert browser.request("POST", "/").status == 405
    assert browser.request("HEAD", "/").body == b""
    for text in (
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 2 * guard.LONGEST_HEAD,
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 20_000,
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n",
    ):
        with _connection(browser.port) as connection:
            try:
                connection.sendall(text)
                status = connection.recv(100).split(b" ")[1:2]
            except ConnectionError:
                status = [b"400"]
            assert status[0] in (b"400", b"421", b"431")
    assert service.acted == []
    assert browser.get("/").status == 200


@pytest.mark.soak
def test_slow_clients_are_ended(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends no request, one that drips its headers, one whose body does not come, and one
    that does not take the page.
    """
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.6)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.6)
    monkeypatch.setattr(guard, "RESPONSE_SECONDS", 2.0)
    browser, service = begin(tokens={"operator": TOKENS["operator"]})
    host = f"Host: 127.0.0.1:{browser.port}\r\n".encode()
    browser.sign_in(OPERATOR)
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    form = (
        b"POST /act HTTP/1.1\r\n" + host + b"Content-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: 100\r\nOrigin: http://127.0.0.1:%d\r\nCookie: %s\r\n\r\ncsrf="
        % (browser.port, cookie.encode())
    )
    with (
        _connection(browser.port) as silent,
        _connection(browser.port, b"GET / HTTP/1.1\r\n") as dripping,
        _connection(browser.port, form) as waiting,
    ):
        for _ in range(8):
            time.sleep(0.1)
            try:
                dripping.sendall(b"X: y\r\n")
            except ConnectionError:
                break
        assert waiting.recv(100).startswith(b"HTTP/1.1 408")
        assert _is_closed(silent)
        assert _is_closed(dripping)
        assert _is_closed(waiting)
    many = (b"GET /api/v1/runs?table=tests.products HTTP/1.1\r\n" + host + b"\r\n") * 200
    with _connection(browser.port) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(0.2)
        assert _wait(lambda: _is_refused(deaf, many))
    assert browser.get("/").status == 200
    assert service.acted == []


def test_a_connection_that_is_used_stays(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short requests with pauses between them, for longer than a request may take."""
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.5)
    browser, _ = begin()
    connection = http.client.HTTPConnection("127.0.0.1", browser.port, timeout=20)
    with closing(connection):
        connection.connect()
        first = connection.sock
        for _ in range(10):
            connection.request("GET", "/live")
            assert connection.getresponse().read() == b"alive\n"
            time.sleep(0.1)
        assert connection.sock is first


def _is_refused(connection: socket.socket, text: bytes) -> bool:
    """Whether a connection whose client does not read has been ended."""
    try:
        connection.sendall(text)
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return False


def test_fifty_listeners_that_do_not_read_do_no_harm(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are as quick as without them, one who reads gets its pulses, and there is a limit."""
    monkeypatch.setattr(events, "PULSE", 0.05)
    browser, service = begin()
    request = f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{browser.port}\r\n\r\n".encode()
    with ExitStack() as stack:
        for _ in range(50):
            deaf = stack.enter_context(_connection(browser.port))
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(request)
        reader = stack.enter_context(_connection(browser.port, request))
        pulses = b""
        while pulses.count(b"data: ") < 3:
            pulses += reader.recv(65536)
        digest = json.loads(pulses.split(b"data: ")[1].split(b"\n")[0])[0]
        service.view = replace(service.view, sentence="All is well again.")
        while pulses.rsplit(b"data: ", 1)[1].count(digest.encode()):
            pulses += reader.recv(65536)
        began = time.monotonic()
        assert all(browser.get("/").status == 200 for _ in range(10))
        assert time.monotonic() - began < 10
        more = [stack.enter_context(_connection(browser.port, request)) for _ in range(20)]
        statuses = [one.recv(12) for one in more]
        assert statuses.count(b"HTTP/1.1 503") == 50 + 1 + 20 - events.LISTENERS
    # Who has gone makes room.
    assert _wait(lambda: _listens(browser.port))


def _listens(port: int) -> bool:
    request = f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    with _connection(port, request) as one:
        return one.recv(12) == b"HTTP/1.1 200"


def test_a_listener_is_ended_with_its_session(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has signed out gets no pulse any more."""
    monkeypatch.setattr(events, "PULSE", 0.05)
    browser, _ = begin(tokens=TOKENS)
    browser.sign_in(OPERATOR)
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    head = f"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n\r\n".encode()
    with _connection(browser.port, head) as listener:
        assert listener.recv(12) == b"HTTP/1.1 200"
        browser.send("/logout", {"csrf": browser.get("/").field("csrf")})
        text, end = b"", time.monotonic() + 20
        while not text.endswith(b"0\r\n\r\n"):
            part = listener.recv(65536)
            assert part
            assert time.monotonic() < end
            text += part


def test_too_many_connections_are_refused(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """And when some have gone, there is room again."""
    monkeypatch.setattr(guard, "CONNECTIONS", 10)
    browser, _ = begin()
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(_connection(browser.port))
        assert _wait(lambda: _status(browser) in (0, 503))
    assert _wait(lambda: _status(browser) == 200)


def _status(browser: Browser) -> int:
    try:
        return browser.get("/live").status
    except (OSError, http.client.HTTPException):
        return 0
