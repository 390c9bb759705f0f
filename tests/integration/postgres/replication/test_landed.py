"""The moment up to which all that was committed in the source has landed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bronze.postgres.connection.connect import Connection
from bronze.postgres.replication import slot
from bronze.postgres.replication.landed import LandedMoment, end_of_log
from tests.conftest import Source


def test_the_moment_waits_for_what_was_committed_before_it(
    source: Source, connection: Connection
) -> None:
    """It is that of the first end of the log that the stream had not passed, not a later one."""
    source.execute("CREATE TABLE t (id int)")

    def commit(number: int) -> int:
        # The servers of the tests flush commits later.
        insert = f"INSERT INTO t VALUES ({number})"
        source.execute(f"BEGIN; SET LOCAL synchronous_commit = on; {insert}; COMMIT")
        return slot.committed_position(connection)

    landed, position = LandedMoment(connection), slot.committed_position(connection)
    commit(1)
    assert landed.moment(position) is None
    asked = datetime.now(UTC)
    commit(2)
    assert landed.moment(position) is None
    between = commit(3)
    commit(4)
    moment = landed.moment(between)
    assert moment
    assert moment < asked
    now = datetime.now(UTC)
    later = landed.moment(slot.committed_position(connection) + 2**20)
    assert later
    assert now - timedelta(seconds=1) < later


def test_a_commit_that_is_not_flushed_is_after_the_end_of_the_log(
    source: Source, connection: Connection
) -> None:
    """With synchronous_commit off: the moment of the end is before the commit."""
    source.execute("CREATE TABLE t (id int)")
    connection.execute("SET synchronous_commit = off")
    unflushed = 0
    for _ in range(50):
        connection.execute("INSERT INTO public.t VALUES (1)")
        committed, written = datetime.now(UTC), slot.server_position(connection).written
        end = end_of_log(connection)
        unflushed += end.position < written
        assert end.position >= written or end.at < committed
    assert unflushed
