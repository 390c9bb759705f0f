"""The service is killed at each failpoint: the next one does what was in flight again, and nobody
hears of an alert twice, or never.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest

from bronze import failpoint
from bronze.config import loading
from tests.conftest import Source
from tests.soak.test_service_kills import openings, repeated, triggered
from tests.support.content import differences
from tests.support.service_process import CHANNELS, Inboxes, inboxes, service
from tests.support.serving import until

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(2400)]

POINTS = (*failpoint.POINTS, *failpoint.ALERT_POINTS)
MORE = """
[breaker]
threshold = 2
pause = "5h"
longest = "5h"
[tables.live]
pattern = "streaming"
sla = "10m"
[tables.word]
history = true
sla = "10m"
[tables.added]
pattern = "batch"
sla = "10m"
"""


@contextmanager
def load(dsn: str, numbers: Iterator[int]) -> Iterator[None]:
    """Changes all tables until the block ends."""
    stopped = threading.Event()

    def work() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not stopped.wait(0.05):
                number = next(numbers)
                connection.execute(f"INSERT INTO added VALUES ({number}, 'new')")
                for table in ("live", "word"):
                    connection.execute(f"INSERT INTO {table} VALUES ({number}, 'new')")
                    connection.execute(f"UPDATE {table} SET word = 'x' WHERE id = {number // 2}")
                    connection.execute(f"DELETE FROM {table} WHERE id = {number - 50}")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def everybody_heard(boxes: Inboxes, about: str) -> bool:
    """Whether each channel was told of something."""
    return all(boxes.acts(about).values())


def test_a_service_that_is_killed_at_any_failpoint(source: Source, tmp_path: Path) -> None:
    """Of loads, of a stream, of maintenance, and of alerts, while the source changes."""
    for table in ("live", "word", "added"):
        source.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, word text)")
        source.execute(f"INSERT INTO {table} SELECT g, 'w' FROM generate_series(1, 1000) g")
    source.execute("CREATE VIEW bad AS SELECT 1 / 0 AS id")
    names = ["live", "word", "added"]
    head = f'[source]\nname = "test"\ndsn = "{source.dsn}"\ntables = {[*names, "bad"]}'
    killed, numbers = list[float](), itertools.count(1001)
    with inboxes() as boxes, service(
        tmp_path, head.replace("'", '"'), source.lake, MORE, boxes, maintain="every 10s",
        batch="every 10s",
    ) as own:  # fmt: skip
        document = own.settings.model_dump(by_alias=True, exclude_unset=True)
        document["source"]["test"]["tables"] = names
        healthy, plain = loading.parse(document), dict(own.environment)
        for point in POINTS:
            if point in failpoint.ALERT_POINTS:
                # Something new to tell.
                with own.file.open("a") as file:
                    file.write(f"[tables.no_table_{point}]\npriority = 1\n")
            own.environment = {**plain, "BRONZE_FAILPOINT": point}
            own.start()
            with load(source.dsn, numbers):
                end = time.monotonic() + 180
                while own.is_alive() and time.monotonic() < end:
                    time.sleep(0.1)
            assert own.process is not None
            assert own.process.poll() == -signal.SIGKILL, point
            killed.append(time.time())
            own.environment = plain
            own.start()
            until(own.has_begun, 60)
            until(lambda: differences(healthy) == {}, 120)
            print(point, end=" ", flush=True)
            assert own.stop() == 0
        own.start()
        until(own.has_begun, 60)
        until(lambda: set(openings(healthy)) == triggered(boxes), 90)
        for about in ("public.bad", *(f"no_table_{p}" for p in failpoint.ALERT_POINTS)):
            until(partial(everybody_heard, boxes, about), 60)
        assert own.stop() == 0
    assert boxes.acts("public.bad") == {name: ["open"] for name in CHANNELS}
    assert repeated(boxes, killed) == []
    assert differences(healthy) == {}
