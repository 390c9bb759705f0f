"""The dashboard of a real service: listeners that do not read, and a browser."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import Source
from tests.support.browsing import Browser, free_port
from tests.support.content import differences
from tests.support.service_process import CHANNELS, Service, inboxes, service
from tests.support.serving import runs_of, until

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(500)]

LISTENERS, SECONDS = 50, 60.0
CHROMIUM = os.environ.get("BRONZE_CHROMIUM", "/usr/bin/chromium")
TOKEN = "an operator's secret token"
STREAMED = '[tables.live]\npattern = "streaming"\nsla = "5m"\n'


def make(source: Source, *tables: str) -> None:
    """Tables with rows."""
    for table in tables:
        source.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, word text)")
        source.execute(f"INSERT INTO {table} SELECT g, 'w' FROM generate_series(1, 500) g")


@contextmanager
def load(dsn: str) -> Iterator[None]:
    """Changes two tables until the block ends."""
    stopped = threading.Event()

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            for number in itertools.count(1000):
                if stopped.wait(0.05):
                    return
                for table in ("live", "word"):
                    connection.execute(f"INSERT INTO {table} VALUES ({number}, 'new')")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def listening(port: int, stack: ExitStack) -> socket.socket:
    """A listener that has sent its request, and has a small buffer."""
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    return connection


def memory(own: Service) -> float:
    """The megabytes that a service takes."""
    assert own.process is not None
    pages = int(Path(f"/proc/{own.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 10**6


def slowest(browser: Browser, path: str, seconds: float) -> float:
    """The longest answer of a page that is asked for again and again."""
    found, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        assert browser.get(path).status == 200
        found = max(found, time.monotonic() - began)
        time.sleep(0.2)
    return found


def test_fifty_listeners_that_do_not_read_do_a_service_no_harm(
    source: Source, tmp_path: Path
) -> None:
    """While it loads and streams: its memory is bounded, one who reads gets each pulse, pages and
    /live answer as before, tables land when they are due.
    """
    make(source, "word", "live")
    port = free_port()
    browser = Browser(port)
    web = f'listen = "127.0.0.1:{port}"'
    with service(tmp_path, source.dsn, source.lake, STREAMED, web=web) as own:
        own.start()
        with load(source.dsn):
            until(lambda: {"landed"} <= {run.status for run in runs_of(own.settings)}, 60)
            quiet = {path: slowest(browser, path, SECONDS / 6) for path in ("/", "/live")}
            before, runs = memory(own), len(runs_of(own.settings))
            with ExitStack() as stack:
                deaf = [listening(port, stack) for _ in range(LISTENERS)]
                reader = listening(port, stack)
                pulses, took = [b""], {}

                def read() -> None:
                    while data := reader.recv(65536):
                        pulses.append(data)

                thread = threading.Thread(target=read)
                thread.start()
                for path in ("/", "/live"):
                    took[path] = slowest(browser, path, SECONDS / 2)
                grown = memory(own) - before
                assert len(deaf) == LISTENERS
                heard = b"".join(pulses).count(b"data: ")
                reader.shutdown(socket.SHUT_RDWR)
                thread.join()
        landed = len(runs_of(own.settings)) - runs
        print(f"{grown:.0f} MB more, {heard} pulses, {landed} records of runs", quiet, took)
        # Of the pulses, one comes each two seconds.
        assert heard > SECONDS / 2 / 3
        assert grown < 60
        assert landed >= SECONDS / 10 / 3
        assert took["/live"] < max(1.0, 5 * quiet["/live"])
        assert took["/"] < max(2.0, 5 * quiet["/"])
        until(lambda: differences(own.settings) == {}, 60)
        assert own.stop() == 0


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of Debian's chromium, which playwright drives."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.set_default_timeout(30_000)
        yield opened
        browser.close()


def go_to(page: Any, is_there: Callable[[str], bool]) -> None:
    """Presses Tab until the focus is on what has a name, such as a field or a button."""
    script = """() => {
        const at = document.activeElement;
        const label = at.id && document.querySelector(`label[for="${at.id}"]`);
        return (at.getAttribute("aria-label") || (label || at).textContent || "").trim();
    }"""
    names = []
    for _ in range(80):
        page.keyboard.press("Tab")
        names.append(page.evaluate(script))
        if is_there(names[-1]):
            return
    raise AssertionError(names)


def test_an_operator_with_a_browser_and_no_mouse(source: Source, tmp_path: Path, page: Any) -> None:
    """Signs in, filters, acknowledges an alert and pauses a table by keyboard alone. When the
    server is killed the page greys; when it is back, it recovers by itself.
    """
    make(source, "word", "other")
    source.execute("CREATE VIEW bad AS SELECT 1 / 0 AS id")
    head = f'[source]\nname = "test"\ndsn = "{source.dsn}"\ntables = ["word", "other", "bad"]'
    more = '[breaker]\nthreshold = 1\npause = "30m"\n'
    port = free_port()
    web = f'listen = "127.0.0.1:{port}"\ntokens = {{ operator = {{ secret = "OPERATE" }} }}'
    with inboxes() as boxes, service(tmp_path, head, source.lake, more, boxes, web) as own:
        own.environment = {**own.environment, "OPERATE": TOKEN}
        own.start()
        until(lambda: all(boxes.acts("table_quarantined").values()), 90)
        url = f"http://127.0.0.1:{port}"

        page.goto(f"{url}/login")
        go_to(page, lambda name: name.startswith("Token"))
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{url}/")

        go_to(page, lambda name: name == "Name")
        page.keyboard.type("word")
        until(lambda: "other" not in page.inner_text("#tables"), 30)
        assert "word" in page.inner_text("#tables")

        go_to(page, lambda name: name.startswith("Acknowledge"))
        page.keyboard.press("Enter")
        page.wait_for_selector("text=is acknowledged")
        until(lambda: "acknowledge" in boxes.acts("table_quarantined")["pager"], 60)

        page.goto(f"{url}/table?name=test.public.other")
        go_to(page, lambda name: name == "Reason")
        page.keyboard.type("a release")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=paused it at")

        page.goto(f"{url}/")
        page.wait_for_selector("body:not(.unheard)")
        own.kill()
        page.wait_for_selector("body.unheard", timeout=20_000)
        assert page.is_visible("#unheard")
        own.start()
        page.wait_for_selector("body:not(.unheard)", timeout=60_000)
        until(lambda: differences_of(own, "word") == {}, 60)
        assert boxes.acts("table_quarantined")["pager"] == ["open", "acknowledge"]
        assert {name: acts[:1] for name, acts in boxes.acts("table_quarantined").items()} == {
            name: ["open"] for name in CHANNELS
        }
        assert own.stop() == 0


def differences_of(own: Service, table: str) -> dict[str, str]:
    """What is wrong with one table."""
    from bronze.config import loading

    document = own.settings.model_dump(by_alias=True, exclude_unset=True)
    document["source"]["test"]["tables"] = [table]
    return differences(loading.parse(document))
