"""Commands with a share of the memory of their process."""

from __future__ import annotations

import re
import threading

import polars as pl
import pytest

from bronze.api import recorded
from bronze.config.settings import Settings
from bronze.execution.memory_shares import MemoryShares, Share
from bronze.model.events import Resynced, StreamEvent
from bronze.model.results import RunResult
from bronze.verify.results import VerifyResult
from tests.conftest import Source
from tests.support.content import differences

MEMORY = 512 * 10**6


def run(settings: Settings, share: Share | None = None) -> RunResult:
    """A run of all tables that are not streamed."""
    return recorded.run(settings, [], pool=None, notify=lambda _: None, share=share)


def verify(settings: Settings, share: Share) -> VerifyResult:
    """A verification of all tables."""
    return recorded.verify(
        settings,
        [],
        repair=False,
        at_rest=False,
        trust_hashes=False,
        pool=None,
        notify=lambda _: None,
        share=share,
    )


@pytest.mark.soak
def test_a_row_too_large_for_a_share_names_the_memory_that_the_process_needs(
    source: Source,
) -> None:
    """With what the hint asks for it lands beside all works that may go on, and is verified; the
    records of both runs name the same config.
    """
    source.execute("CREATE TABLE big (id int PRIMARY KEY, v text)")
    source.execute("ALTER TABLE big ALTER v SET STORAGE EXTERNAL")
    source.execute("INSERT INTO big VALUES (1, repeat('0123', 3000000)), (2, 'x')")
    settings = source.settings(run={"memory": MEMORY})
    little = MemoryShares(settings.run.memory, 1, 2)
    with little.lease("a run") as share:
        (refused,) = run(settings, share).tables
    assert refused.error
    assert "[run] memory allows 6,750,000 per row" in refused.error.message
    (asked,) = re.findall(r'to "(\d+)MB"', refused.error.hint)
    enough = MemoryShares(int(asked) * 10**6, 1, 2)
    with enough.lease("another"), enough.lease("a run") as share:
        assert [table.status for table in run(settings, share).tables] == ["landed"]
        assert [table.status for table in verify(settings, share).tables] == ["equal"]
        maintained = recorded.maintain(settings, [], pool=None, notify=lambda _: None, share=share)
    assert maintained.exit_code == 0
    assert differences(settings) == {}
    assert [table.status for table in run(settings).tables] == ["unchanged"]
    lineage = pl.read_delta(settings.place("governance", "data_lineage").url)
    assert lineage["config_hash"].n_unique() == 1


@pytest.mark.soak
def test_a_stream_keeps_within_its_share(source: Source) -> None:
    """A change that is larger than the share allows is no more held in memory: the table is
    compared with the source, and with enough memory the change is streamed.
    """
    source.execute("CREATE TABLE big (id int PRIMARY KEY, n int, v text)")
    source.execute("INSERT INTO big VALUES (1, 0, 'x')")
    settings = source.settings(tables={"big": {"pattern": "streaming"}}, run={"memory": MEMORY})
    notes: list[StreamEvent] = []

    def follow(memory: int) -> None:
        done = recorded.follow(
            settings,
            [],
            until_caught_up=True,
            stop=threading.Event(),
            notify=notes.append,
            copied=lambda _: None,
            share=MemoryShares(memory, 1, 2).stream,
        )
        assert [table.error for table in done.tables] == [None]

    follow(MEMORY)
    notes.clear()
    source.execute("UPDATE big SET n = 1, v = repeat('0123', 1500000)")
    follow(MEMORY)
    resynced = [note.message for note in notes if isinstance(note, Resynced)]
    assert len(resynced) == 1
    assert "[run] memory allows 5,517,241 in a change" in resynced[0]
    notes.clear()
    source.execute("UPDATE big SET n = 2, v = repeat('0124', 1500000)")
    follow(10**9)
    assert [note for note in notes if isinstance(note, Resynced)] == []
    assert differences(settings) == {}
