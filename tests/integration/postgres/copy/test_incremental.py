"""Conditions of a batch: true for every row that may be new or changed, whatever the clocks."""

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
from bronze.postgres.copy.snapshot import OpenTransactions, Snapshot
from bronze.postgres.statement import literal
from tests.conftest import FAST, Source
from tests.integration.ingest.test_patterns import BATCH, counts, land, position
from tests.support.effort import examples
from tests.support.features import with_program

SEVERAL = settings(
    max_examples=examples(6),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
HALF = 2**31
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MICRO = dt.timedelta(microseconds=1)


def snapshot(following: int, horizon: int = 0) -> Snapshot:
    """A snapshot with given transaction ids."""
    since = OpenTransactions(0, True, False, "UTC", 0, 0, False)
    return Snapshot("s", 1, 180000, horizon, following, since, "1/1/db", (), (), Mock(), Mock())


@pytest.fixture(scope="module")
def database(server: Server) -> Iterator[psycopg.Connection]:
    """A connection that evaluates expressions."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        yield connection


def xmin_results(database: psycopg.Connection, condition: str, xids: Sequence[int]) -> list[bool]:
    """Whether the condition is true, for each of some 32-bit transaction ids."""
    query = f"SELECT {condition} FROM unnest(%s::text[]) WITH ORDINALITY AS u(x, n), " + (
        "LATERAL (SELECT x::xid AS xmin) AS row ORDER BY n"
    )
    return [row[0] for row in database.execute(query, [[str(xid) for xid in xids]])]


def following(database: psycopg.Connection) -> int:
    """The next transaction id of the server, without its epoch."""
    row: Any = database.execute("SELECT txid_snapshot_xmax(txid_current_snapshot())").fetchone()
    assert row[0] < 2**32
    return int(row[0])


NEAR = st.integers(0, 2000) | st.integers(0, HALF - 10**7 - 1) | st.integers(HALF - 10**8, HALF)


@SEVERAL
@given(distance=NEAR, ages=st.lists(st.integers(0, HALF - 2000) | NEAR), epoch=st.integers(1, 9))
def test_xmin_condition_is_exact_across_the_wraparound(
    database: psycopg.Connection, distance: int, ages: list[int], epoch: int
) -> None:
    """It is true for ids from the horizon on and false for earlier ones, in any epoch."""
    now = epoch * 2**32 + following(database)
    horizon = now - distance
    condition = incremental.xmin_condition(horizon, snapshot(now))
    if condition is None:
        assert distance >= HALF - 10**7
        return
    assert distance < HALF
    ages = [age for age in [*ages, distance - 1, distance, distance + 1, 0] if age < HALF - 2000]
    xids = [now - age for age in ages if age >= 0 and (now - age) % 2**32 >= 3]
    results = xmin_results(database, condition, [xid % 2**32 for xid in xids])
    # The horizon itself may be an id that is never assigned.
    assert results == [xid >= horizon for xid in xids]


@pytest.mark.parametrize("horizon", [2**32, 2**32 + 1, 2**32 + 2, 2**32 + 3, 2**33])
def test_a_horizon_may_be_an_id_that_is_never_assigned(
    database: psycopg.Connection, horizon: int
) -> None:
    """Ids 0 to 2 are reserved: the first one after the wraparound is 3."""
    now = horizon // 2**32 * 2**32 + following(database)
    condition = incremental.xmin_condition(horizon, snapshot(now))
    assert condition is not None
    xids = [3, 4, 100, 2**32 - 1, 2**32 - 1000, 2, 1]
    assert xmin_results(database, condition, xids) == [True, True, True, False, False, False, False]


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_no_xmin_condition_for_a_distant_or_later_horizon(epoch: int) -> None:
    """Where 32-bit ids are ambiguous, or are those of another cluster, there is no condition."""
    now = snapshot(epoch * 2**32 + HALF + 100)
    far = now.following - HALF
    assert incremental.xmin_condition(now.following, now) is not None
    assert incremental.xmin_condition(far + 2 * 10**7, now) is not None
    for horizon in (far, far - 1, far + 10**6, now.following + 1, far - 2**32):
        assert incremental.xmin_condition(horizon, now) is None


# --- the wraparound itself -------------------------------------------------------------------


def _reset(server: Server, xid: int, epoch: int) -> None:
    """Sets the next transaction id of a stopped server to ``xid`` in an epoch."""
    segment = server.data / "pg_xact" / f"{xid // 2**20:04X}"
    owner = server.data.stat()
    segment.write_bytes(bytes(2**18))
    os.chown(segment, owner.st_uid, owner.st_gid)
    result = demo._run(server.data, "pg_resetwal", "-x", str(xid), "-e", str(epoch), "-D", ".")
    assert result.returncode == 0, result.stdout


@pytest.fixture
def wrapping(tmp_path: Path) -> Iterator[Source]:
    """A database whose next transaction ids are the last ones of the fifth epoch."""
    with tempfile.TemporaryDirectory(prefix="bronze-tests-") as folder:
        options = {**FAST, "autovacuum": "off"}
        server = demo.start(Path(folder) / "data", settings=options)
        try:
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("VACUUM (FREEZE)")
            server.stop()
            _reset(server, 2**32 - 60, 4)
            server = demo.start(server.data, settings=options)
            yield Source(server.dsn(), tmp_path / "lake")
        finally:
            server.stop()


@pytest.mark.soak
@with_program("pg_resetwal")
def test_changes_are_loaded_across_the_xid_wraparound(wrapping: Source) -> None:
    """After the wraparound old rows are not read again and new ones are not missed."""
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
        # The row that was committed after the last run is read, and no older one.
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


def selects(
    database: psycopg.Connection, kind: str, value: str, mark: dt.datetime, zone: str
) -> bool:
    """Whether the condition since a watermark is true for a value (SQL)."""
    condition = incremental.cursor_condition('the "cursor"', kind, (mark - EPOCH) // MICRO, zone)
    query = f'SELECT {condition} FROM (SELECT ({value})::{kind} AS "the ""cursor""") AS row'
    row: Any = database.execute(query).fetchone()
    return bool(row[0])


@SEVERAL
@given(mark=MOMENTS, later=st.integers(-(10**12), 10**12), zone=st.sampled_from(ZONES))
def test_cursor_condition_compares_times_with_the_watermark(
    database: psycopg.Connection, mark: dt.datetime, later: int, zone: str
) -> None:
    """To the microsecond, in any time zone of the session, and also for infinite times."""
    database.execute(f"SET timezone = '{zone}'")
    value = literal((mark + later * MICRO).isoformat())
    assert selects(database, "timestamptz", value, mark, zone) is (later >= 0)
    assert selects(database, "timestamptz", literal(mark.isoformat()), mark, zone)
    assert selects(database, "timestamptz", "'infinity'", mark, zone)
    assert selects(database, "timestamptz", "NULL", mark, zone)
    assert not selects(database, "timestamptz", "'-infinity'", mark, zone)


@SEVERAL
@given(mark=MOMENTS, later=LATER, zone=st.sampled_from(ZONES), utc=st.booleans())
def test_cursor_condition_never_misses_times_without_a_zone(
    database: psycopg.Connection, mark: dt.datetime, later: int, zone: str, utc: bool
) -> None:
    """Whether they are in UTC or the server's zone; times three days earlier are not read."""
    database.execute("SET timezone = 'Asia/Tokyo'")
    moment = literal((mark + later * MICRO).isoformat())
    local = f"({moment}::timestamptz AT TIME ZONE {literal('UTC' if utc else zone)})"
    for kind in incremental.ZONELESS_TYPES:
        assert selects(database, kind, local, mark, zone)
        assert selects(database, kind, "NULL", mark, zone)
        assert not selects(database, kind, literal(str(mark.date() - dt.timedelta(3))), mark, zone)


@pytest.mark.parametrize("zone", ["America/New_York", "Australia/Lord_Howe", "Europe/Berlin"])
def test_a_repeated_hour_of_local_time_is_not_missed(
    database: psycopg.Connection, zone: str
) -> None:
    """When daylight saving time ends, later rows have earlier local times."""
    zone_info = ZoneInfo(zone)
    day = dt.datetime(2023, 4, 1) if "Australia" in zone else dt.datetime(2023, 10, 28)
    hours = [(day + dt.timedelta(minutes=i)).replace(tzinfo=dt.UTC) for i in range(0, 14400, 10)]
    repeated = [
        (before, after)
        for before, after in pairwise(hours)
        if after.astimezone(zone_info).replace(tzinfo=None)
        < before.astimezone(zone_info).replace(tzinfo=None)
    ]
    (mark, later) = repeated[0]
    local = literal(str(later.astimezone(zone_info).replace(tzinfo=None)))
    assert selects(database, "timestamp", local, mark, zone)


MARKS = st.integers(0, 2 * 10**15)


@given(began=MARKS, overlap=st.none() | st.integers(0, 10**6), mark=st.none() | MARKS)
def test_a_watermark_decreases_only_if_all_rows_are_read(
    began: int, overlap: int | None, mark: int | None
) -> None:
    """It is the start of the oldest transaction less the overlap; it stays the same while there are
    prepared transactions. If all rows are read, it may decrease with the source's clock.
    """
    since = OpenTransactions(began, True, False, "UTC", began, 0, False)
    unknown = replace(since, prepared=True)
    reached = began - (overlap or 0) * 10**6
    mark_now = incremental.next_watermark(since, overlap, mark)
    assert mark_now == max(reached, -(10**18) if mark is None else mark)
    assert incremental.next_watermark(unknown, overlap, mark) == mark
    assert incremental.next_watermark(since, overlap, mark, whole=True) == reached
    whole = incremental.next_watermark(unknown, overlap, mark, whole=True)
    assert whole == (None if mark is None else min(mark, reached))
