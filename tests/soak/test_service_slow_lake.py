"""The lake takes 2 s for each request while the service runs: one message, which late tables have
as their cause; nothing hangs, and nothing is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from bronze.operate.service.service import LEFT
from tests.conftest import Source
from tests.support.browsing import Browser, free_port
from tests.support.content import differences
from tests.support.object_store import Store, s3
from tests.support.service_process import CHANNELS, inboxes, service
from tests.support.serving import until

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(600)]

DELAY, SLA, GRACE = 2.0, 45, 30
TABLES = ("one", "two", "three")
# Those that read the lake show what is known without it.
PAGES = ("/", "/alerts", "/table?name=public.one", "/schedule", "/system", "/audit", "/metrics")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An S3; what reads the lake in the test's own process gets its options from here."""
    with s3() as made:
        for name, value in made.options.items():
            monkeypatch.setenv(name.upper(), value)
        yield made


@contextmanager
def load(dsn: str) -> Iterator[None]:
    """Inserts and updates until the block ends."""
    stopped = threading.Event()

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            number = 1000
            while not stopped.wait(0.3):
                number += 1
                for table in ("one", "live"):
                    connection.execute(f"INSERT INTO {table} VALUES ({number}, 'new')")
                    connection.execute(f"UPDATE {table} SET word = 'x' WHERE id = {number // 2}")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def answers(browser: Browser, seconds: float) -> None:
    """The slowest of /live and of the pages, which are asked for a while."""
    slowest = dict.fromkeys(("/live", *PAGES), 0.0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for page in slowest:
            began = time.monotonic()
            assert browser.get(page).status == 200, page
            slowest[page] = max(slowest[page], time.monotonic() - began)
    print({page: round(took, 2) for page, took in slowest.items()})
    assert slowest["/live"] < 2
    assert max(slowest.values()) < 12


def test_a_lake_that_is_slow_is_one_message(source: Source, store: Store, tmp_path: Path) -> None:
    """Who is told of it learns why tables are late. Pages and /live answer, a stop ends within its
    grace; when the lake is quick again, all is in it, and it is told that it is over.
    """
    for table in (*TABLES, "live"):
        source.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, word text)")
        source.execute(f"INSERT INTO {table} SELECT g, 'w' FROM generate_series(1, 500) g")
    port = free_port()
    options = "\n".join(f'{name} = "{value}"' for name, value in store.options.items())
    tables = "".join(f'[tables.{table}]\nsla = "{SLA}s"\n' for table in TABLES)
    more = f"""
[serve]
grace = "{GRACE}s"
[tables.live]
pattern = "streaming"
sla = "{SLA}s"
{tables}
[lake.options]
{options}
"""
    browser = Browser(port)
    with inboxes() as boxes, service(
        tmp_path, source.dsn, store.root, more, boxes,
        f'listen = "127.0.0.1:{port}"', full_refresh="every 20s",
    ) as own:  # fmt: skip
        own.start()
        until(lambda: differences(own.settings) == {}, 60)
        with load(source.dsn):
            store.gateway.delay = DELAY
            began = time.monotonic()
            until(lambda: all(boxes.acts("lake_slow").values()), 120)
            print("told", round(time.monotonic() - began, 1))
            assert time.monotonic() - began < 90

            def sentence() -> str:
                return browser.get("/").text

            until(lambda: "because the lake takes" in sentence(), 120)
            answers(browser, 60)
        assert boxes.acts() == {name: ["open"] for name in CHANNELS}
        began = time.monotonic()
        # What has not ended by then is left, which costs nothing but to do it again.
        code = own.stop(GRACE + 15)
        print("ended", code, round(time.monotonic() - began, 1))
        assert code in (0, LEFT)
        # It begins while the lake is slow, and knows what was told.
        own.start()
        until(lambda: browser_answers(browser), 60)
        time.sleep(20)
        store.gateway.delay = 0.0
        began = time.monotonic()
        until(lambda: differences(own.settings) == {}, 90)
        until(lambda: all(len(acts) == 2 for acts in boxes.acts().values()), 150)
        print("resolved", round(time.monotonic() - began, 1))
        assert boxes.acts("lake_slow") == {name: ["open", "resolve"] for name in CHANNELS}
        assert boxes.acts() == boxes.acts("lake_slow")
        assert own.run("verify").returncode == 0
        assert own.stop() == 0


def browser_answers(browser: Browser) -> bool:
    """Whether there is a server."""
    try:
        return browser.get("/live").status == 200
    except OSError:
        return False
