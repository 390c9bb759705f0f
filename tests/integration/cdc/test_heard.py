"""Whether the source is heard, and up to which moment all that was committed has landed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bronze.cdc import apply_loop
from bronze.demo.server import Server
from bronze.model.events import BatchApplied, Heard, SlotRetains, StreamEvent, Waiting
from tests.conftest import Source
from tests.support.proxy import proxied
from tests.support.streams import TABLE, settings, streaming, until


@pytest.fixture
def talking(source: Source, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A streamed table, of a server that is asked for a sign of life several times a second."""
    source.execute(TABLE)
    source.execute("INSERT INTO t (id) VALUES (1)")
    database = source.execute("SELECT current_database()")[0][0]
    source.execute(f"ALTER DATABASE {database} SET wal_sender_timeout = '800ms'")
    monkeypatch.setattr(apply_loop, "_HEARD_INTERVAL", 0.1)
    return source


def heard(steps: list[StreamEvent]) -> list[Heard]:
    """The events that say that the source was heard."""
    return [step for step in steps if isinstance(step, Heard)]


def test_a_quiet_source_is_fresh(talking: Source) -> None:
    """Without any change the moment of what has landed goes on; the slot is reported, too."""
    before = datetime.now(UTC)
    with streaming(settings(talking)) as steps:
        until(lambda: len({event.as_of for event in heard(steps)} - {None}) > 3)
        moments = [event.as_of for event in heard(steps) if event.as_of]
        talking.execute("INSERT INTO t (id) VALUES (2)")
        until(lambda: any(isinstance(step, BatchApplied) for step in steps))
        (batch,) = [step for step in steps if isinstance(step, BatchApplied)]
    assert moments == sorted(moments)
    assert before - timedelta(seconds=1) < moments[0] < moments[-1] < batch.committed
    assert all(event.at < datetime.now(UTC) for event in heard(steps))
    assert {event.tables for event in heard(steps)} == {("public.t",)}
    assert {step.message for step in steps} == {""}
    (slot, *_) = [step for step in steps if isinstance(step, SlotRetains)]
    assert slot.bytes < slot.budget


def test_a_silent_source_is_not_fresh(talking: Source, server: Server) -> None:
    """The connection is there, but nothing comes: no moment goes on, and the failure is named."""
    database = talking.execute("SELECT current_database()")[0][0]
    with proxied(server) as proxy:
        given = settings(Source(proxy.dsn(database), talking.lake), retry_delay=1)
        with streaming(given) as steps:
            until(lambda: heard(steps) and heard(steps)[-1].as_of)
            proxy.stall()
            silent = datetime.now(UTC)
            until(lambda: any(isinstance(step, Waiting) for step in steps))
            events = heard(steps)
            (waiting,) = [step for step in steps if isinstance(step, Waiting)]
            talking.execute("INSERT INTO t (id) VALUES (2)")
            until(lambda: any(isinstance(step, BatchApplied) for step in steps))
            until(lambda: len(heard(steps)) > len(events))
    # What had arrived by then may be looked at a moment later.
    silent += timedelta(seconds=0.3)
    assert max(event.at for event in events) <= silent
    assert max(event.as_of for event in events if event.as_of) <= silent
    assert waiting.error
    assert waiting.error.kind == "SourceUnreachable"
    assert waiting.again_in
    assert datetime.now(UTC) - silent > timedelta(seconds=0.8)


@pytest.mark.soak
def test_changes_that_wait_for_the_lake_have_not_landed(talking: Source) -> None:
    """The failure says that it is the lake; the moment goes on once it is back."""
    with streaming(settings(talking, retry_delay=1)) as steps:
        until(lambda: heard(steps) and heard(steps)[-1].as_of)
        talking.lake.rename(talking.lake.with_name("away"))
        talking.execute("INSERT INTO t (id) VALUES (2)")
        until(lambda: sum(isinstance(step, Waiting) for step in steps) > 1)
        events = heard(steps)
        talking.lake.with_name("away").rename(talking.lake)
        until(lambda: any(isinstance(step, BatchApplied) for step in steps))
        (batch,) = [step for step in steps if isinstance(step, BatchApplied)]
        until(lambda: (heard(steps)[-1].as_of or batch.committed) > batch.committed)
    assert max(event.as_of for event in events if event.as_of) < batch.committed
    assert {s.error.kind for s in steps if isinstance(s, Waiting) and s.error} == {
        "LakeUnreachable"
    }
