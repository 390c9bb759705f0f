"""Conditions for what changed: true for every row that may be new, whatever the clocks say."""

from __future__ import annotations

import datetime as dt
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bronze.demo import server as demo
from bronze.demo.server import Server
from bronze.postgres.copy import incremental
from bronze.postgres.copy.snapshot import Since, Snapshot
from bronze.postgres.statement import literal
from tests.conftest import FAST, Source
from tests.integration.ingest.test_patterns import BATCH, counts, land, position
from tests.support.features import with_program

SEVERAL = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HALF = 2**31
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MICRO = dt.timedelta(microseconds=1)


def snapshot(following: int, horizon: int = 0) -> Snapshot:
    """A snapshot of which only the transaction ids matter."""
    since = Since(0, True, False, "UTC", 0, 0, False)
    return Snapshot("s", 1, 180000, horizon, following, since, "here", (), (), Mock())


@pytest.fixture(scope="module")
def asking(server: Server) -> Iterator[psycopg.Connection]:
    """A connection to ask for the values of expressions."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        yield connection


def held(asking: psycopg.Connection, condition: str, xids: Sequence[int]) -> list[bool]:
    """For which 32-bit ids the condition is true."""
    query = f"SELECT {condition} FROM unnest(%s::text[]) WITH ORDINALITY AS u(x, n), " + (
        "LATERAL (SELECT x::xid AS xmin) AS row ORDER BY n"
    )
    return [row[0] for row in asking.execute(query, [[str(xid) for xid in xids]])]


def following(asking: psycopg.Connection) -> int:
    """The next transaction id of the server, without its epoch."""
    row: Any = asking.execute("SELECT txid_snapshot_xmax(txid_current_snapshot())").fetchone()
    assert row[0] < 2**32
    return int(row[0])


NEAR = st.integers(0, 2000) | st.integers(0, HALF - 10**7 - 1) | st.integers(HALF - 10**8, HALF)


@SEVERAL
@given(distance=NEAR, ages=st.lists(st.integers(0, HALF - 2000) | NEAR), epoch=st.integers(1, 9))
def test_xmin_is_compared_across_the_wraparound(
    asking: psycopg.Connection, distance: int, ages: list[int], epoch: int
) -> None:
    """True for each id from the horizon on, false for those before, 64 bits or the last 32."""
    now = epoch * 2**32 + following(asking)
    horizon = now - distance
    condition = incremental.by_xmin(horizon, snapshot(now))
    if condition is None:
        assert distance >= HALF - 10**7
        return
    assert distance < HALF
    ages = [age for age in [*ages, distance - 1, distance, distance + 1, 0] if age < HALF - 2000]
    xids = [now - age for age in ages if age >= 0 and (now - age) % 2**32 >= 3]
    found = held(asking, condition, [xid % 2**32 for xid in xids])
    # The horizon itself may be an id that is never given out.
    assert found == [xid >= horizon for xid in xids]


@pytest.mark.parametrize("horizon", [2**32, 2**32 + 1, 2**32 + 2, 2**32 + 3, 2**33])
def test_a_horizon_that_is_no_transaction(asking: psycopg.Connection, horizon: int) -> None:
    """Ids 0 to 2 are never given out: at the wraparound the first is 3."""
    now = horizon // 2**32 * 2**32 + following(asking)
    condition = incremental.by_xmin(horizon, snapshot(now))
    assert condition is not None
    xids = [3, 4, 100, 2**32 - 1, 2**32 - 1000, 2, 1]
    assert held(asking, condition, xids) == [True, True, True, False, False, False, False]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_too_long_ago_or_not_yet(epoch: int) -> None:
    """Where ids cannot be told apart, or come from another history, there is no condition."""
    now = snapshot(epoch * 2**32 + HALF + 100)
    far = now.following - HALF
    assert incremental.by_xmin(now.following, now) is not None
    assert incremental.by_xmin(far + 2 * 10**7, now) is not None
    for horizon in (far, far - 1, far + 10**6, now.following + 1, far - 2**32):
        assert incremental.by_xmin(horizon, now) is None


# --- the wraparound itself -------------------------------------------------------------------


def _reset(server: Server, xid: int, epoch: int) -> None:
    """Makes ``xid`` of an epoch the next transaction id of a server that is stopped."""
    segment = server.data / "pg_xact" / f"{xid // 2**20:04X}"
    owner = server.data.stat()
    segment.write_bytes(bytes(2**18))
    os.chown(segment, owner.st_uid, owner.st_gid)
    done = demo._run(server.data, "pg_resetwal", "-x", str(xid), "-e", str(epoch), "-D", ".")
    assert done.returncode == 0, done.stdout


@pytest.fixture
def wrapping(tmp_path: Path) -> Iterator[Source]:
    """A database whose next transaction ids are the last of their 32 bits, in the fifth epoch."""
    with tempfile.TemporaryDirectory(prefix="bronze-tests-") as folder:
        own = {**FAST, "autovacuum": "off"}
        server = demo.start(Path(folder) / "data", settings=own)
        try:
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("VACUUM (FREEZE)")
            server.stop()
            _reset(server, 2**32 - 60, 4)
            server = demo.start(server.data, settings=own)
            yield Source(server.dsn(), tmp_path / "lake")
        finally:
            server.stop()


@with_program("pg_resetwal")
def test_changes_land_across_the_wraparound(wrapping: Source) -> None:
    """Ids begin anew at 3: rows from before are not read again, those from after not missed."""
    source = wrapping
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.execute("INSERT INTO t SELECT i, 'v' FROM generate_series(1, 20) i")
    horizons = [position(source, land(source, BATCH).version)["xmin"]]
    for number in range(4):
        source.execute(
            "DO $$ BEGIN FOR i IN 1..20 LOOP PERFORM txid_current(); COMMIT; END LOOP; END $$"
        )
        source.execute(f"UPDATE t SET v = 'n{number}' WHERE id = {number + 1}")
        with psycopg.connect(source.dsn) as late:
            late.execute("INSERT INTO t VALUES (%s)", [100 + number])
            result = land(source, BATCH)
        # What was committed late by the run before is read here, and nothing older.
        assert counts(result) == (1 if number else 0, 1, 0)
        assert result.rows_read <= 3
        horizons.append(position(source, result.version)["xmin"])
    assert horizons == sorted(horizons)
    assert horizons[0] < 5 * 2**32 < horizons[-1]


# --- cursors ---------------------------------------------------------------------------------

ZONES = ["UTC", "America/New_York", "Europe/Berlin", "Pacific/Kiritimati", "Pacific/Pago_Pago",
         "Asia/Kathmandu", "Australia/Lord_Howe"]  # fmt: skip
MOMENTS = st.datetimes(dt.datetime(1999, 1, 1), dt.datetime(2050, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=dt.UTC)
)
LATER = st.integers(0, 10**6) | st.integers(0, 3 * 10**11)


def asked(asking: psycopg.Connection, kind: str, value: str, mark: dt.datetime, zone: str) -> bool:
    """Whether the condition since a mark is true for a value, which is given as SQL."""
    condition = incremental.by_cursor('the "cursor"', kind, (mark - EPOCH) // MICRO, zone)
    query = f'SELECT {condition} FROM (SELECT ({value})::{kind} AS "the ""cursor""") AS row'
    row: Any = asking.execute(query).fetchone()
    return bool(row[0])


@SEVERAL
@given(mark=MOMENTS, later=st.integers(-(10**12), 10**12), zone=st.sampled_from(ZONES))
def test_a_time_is_held_against_the_mark(
    asking: psycopg.Connection, mark: dt.datetime, later: int, zone: str
) -> None:
    """To the microsecond, in whatever zone the session is; the infinite times are compared too."""
    asking.execute(f"SET timezone = '{zone}'")
    value = literal((mark + later * MICRO).isoformat())
    assert asked(asking, "timestamptz", value, mark, zone) is (later >= 0)
    assert asked(asking, "timestamptz", literal(mark.isoformat()), mark, zone)
    assert asked(asking, "timestamptz", "'infinity'", mark, zone)
    assert asked(asking, "timestamptz", "NULL", mark, zone)
    assert not asked(asking, "timestamptz", "'-infinity'", mark, zone)


@SEVERAL
@given(mark=MOMENTS, later=LATER, zone=st.sampled_from(ZONES), utc=st.booleans())
def test_a_time_without_zone_is_never_taken_for_an_earlier_one(
    asking: psycopg.Connection, mark: dt.datetime, later: int, zone: str, utc: bool
) -> None:
    """Whether it is UTC or the server's local time; a day that long ago is past is not read."""
    asking.execute("SET timezone = 'Asia/Tokyo'")
    moment = literal((mark + later * MICRO).isoformat())
    local = f"({moment}::timestamptz AT TIME ZONE {literal('UTC' if utc else zone)})"
    for kind in incremental.ZONELESS:
        assert asked(asking, kind, local, mark, zone)
        assert asked(asking, kind, "NULL", mark, zone)
        assert not asked(asking, kind, literal(str(mark.date() - dt.timedelta(3))), mark, zone)


@pytest.mark.parametrize("zone", ["America/New_York", "Australia/Lord_Howe", "Europe/Berlin"])
def test_an_hour_that_comes_twice_is_not_missed(asking: psycopg.Connection, zone: str) -> None:
    """When clocks go back, later rows have earlier local times."""
    place = ZoneInfo(zone)
    day = dt.datetime(2023, 4, 1) if "Australia" in zone else dt.datetime(2023, 10, 28)
    hours = [(day + dt.timedelta(minutes=i)).replace(tzinfo=dt.UTC) for i in range(0, 14400, 10)]
    backs = [
        (one, other)
        for one, other in pairwise(hours)
        if other.astimezone(place).replace(tzinfo=None) < one.astimezone(place).replace(tzinfo=None)
    ]
    (mark, later) = backs[0]
    local = literal(str(later.astimezone(place).replace(tzinfo=None)))
    assert asked(asking, "timestamp", local, mark, zone)


MARKS = st.integers(0, 2 * 10**15)


@given(began=MARKS, overlap=st.none() | st.integers(0, 10**6), mark=st.none() | MARKS)
def test_a_watermark_never_goes_back(began: int, overlap: int | None, mark: int | None) -> None:
    """It is the oldest beginning, less the overlap, and stays while nobody knows what is open.

    Where all rows are read, it goes back with the source's clock, also then.
    """
    since = Since(began, True, False, "UTC", began, 0, False)
    unknown = replace(since, prepared=True)
    reached = began - (overlap or 0) * 10**6
    found = incremental.watermark(since, overlap, mark)
    assert found == max(reached, -(10**18) if mark is None else mark)
    assert incremental.watermark(unknown, overlap, mark) == mark
    assert incremental.watermark(since, overlap, mark, whole=True) == reached
    whole = incremental.watermark(unknown, overlap, mark, whole=True)
    assert whole == (None if mark is None else min(mark, reached))
