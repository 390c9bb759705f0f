"""The clock jumps, and both nights of summer time: nothing runs twice for a due time, or never."""

from __future__ import annotations

import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bronze.operate.service import watch
from tests.conftest import Source
from tests.integration.operate.test_service import NEVER, config, make
from tests.support.content import differences
from tests.support.service_process import CHANNELS, inboxes, service
from tests.support.serving import Hands, Serving, runs_of, serving, until

pytestmark = pytest.mark.soak

STEP = timedelta(minutes=20)
FAKETIME = Path(
    os.environ.get("BRONZE_FAKETIME", "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_BEAT_EVERY", 0.5)


def settle(own: Serving) -> None:
    """Waits until what is due now has run."""
    board = own.service.board
    with board.changed:
        board.touch()
    until(lambda: not board.is_dirty)
    until(lambda: not board.works)
    until(lambda: not board.is_dirty)


@pytest.mark.parametrize(
    ("midnight", "daily"),
    [
        # 02:30 does not exist: it runs at 03:00 summer time.
        (datetime(2026, 3, 28, 23, tzinfo=UTC), datetime(2026, 3, 29, 1, tzinfo=UTC)),
        # 02:30 comes twice: it runs at the first.
        (datetime(2026, 10, 24, 22, tzinfo=UTC), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
    ],
    ids=["spring", "autumn"],
)
def test_a_night_of_summer_time(source: Source, midnight: datetime, daily: datetime) -> None:
    """A daily table runs once, an hourly one in each hour that passes, a restart included."""
    make(source, "each_day", "each_hour")
    settings = config(
        source,
        serve={"timezone": "Europe/Berlin", "schedule": {"full_refresh": "hourly", **NEVER}},
        tables={"each_day": {"schedule": "daily 02:30"}},
    )
    hands = Hands(midnight + timedelta(minutes=5))
    for _ in range(2):
        with serving(settings, hands) as own:
            until(lambda: len(own.landed("public.each_hour")) >= 1)
            settle(own)
            for _ in range(9):
                hands.move(seconds=STEP.total_seconds())
                settle(own)
            runs = own.landed("public.each_hour"), own.landed("public.each_day")
    hourly, night = ([record.scheduled for record in records] for records in runs)
    # The first of each is due since the service knew the tables.
    assert hourly[0] == night[0]
    assert Counter(hourly[1:]) == Counter(midnight + timedelta(hours=n) for n in range(1, 7))
    assert night[1:] == [daily]
    assert differences(settings) == {}


def test_a_clock_that_jumps_two_hours_and_back(source: Source) -> None:
    """Each due time has one run at most, over a restart as well; after it all goes on."""
    make(source, "word")
    settings = config(source, serve={"schedule": {"full_refresh": "every 30m", **NEVER}})
    hands = Hands(datetime(2026, 5, 4, 12, 5, tzinfo=UTC))
    moves = [2, -2, 0.5, 0.5, -2, 2, 1, 1]
    for _ in range(2):
        with serving(settings, hands) as own:
            until(lambda: own.landed("public.word"))
            settle(own)
            for hours in moves:
                hands.move(hours=hours)
                settle(own)
            dues = [record.scheduled for record in own.runs()]
    assert len(dues) == len(set(dues))
    # Those of each hour by which it was later than ever before.
    assert max(due for due in dues if due) == datetime(2026, 5, 4, 18, 0, tzinfo=UTC)
    assert differences(settings) == {}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not FAKETIME.exists(), reason="needs Debian's package libfaketime")
def test_a_process_whose_clock_jumps_two_hours_and_back(source: Source, tmp_path: Path) -> None:
    """It is one message, and nothing runs twice for a due time; who asks for a table after it has
    it loaded, although it has run at a time that comes later.
    """
    make(source, "word")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    with inboxes() as boxes, service(tmp_path, source.dsn, source.lake, "", boxes) as own:
        plain = own.environment
        own.environment = {
            **plain,
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        own.start()
        until(lambda: differences(own.settings) == {}, 60)

        def latest() -> datetime:
            return max(run.scheduled for run in runs_of(own.settings) if run.scheduled)

        offset.write_text("+2h")
        until(lambda: all(boxes.acts("clock_jumped").values()), 90)
        until(lambda: latest() > datetime.now(UTC) + timedelta(hours=1), 60)
        offset.write_text("+0")
        own.until_logged("seconds=-7200", 60)
        source.execute("INSERT INTO word SELECT g, 'new' FROM generate_series(10001, 10010) g")
        own.environment = plain
        assert own.run("now", "word").returncode == 0
        until(lambda: differences(own.settings) == {}, 60)
        assert own.stop() == 0
        dues = [run.scheduled for run in runs_of(own.settings)]
        assert len(dues) == len(set(dues))
        assert boxes.acts("clock_jumped") == {name: ["open"] for name in CHANNELS}
