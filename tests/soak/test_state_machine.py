"""A state machine: whatever is done to a table, in whatever order, each pattern's Bronze table
equals a model in memory after each run, and its change data feed tells how it came to be.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bronze import failpoint
from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.layout import file_groups
from bronze.delta.write.history import KIND
from bronze.ingest import pipeline
from bronze.maintenance import maintain
from bronze.model.units import DELETED
from tests.conftest import Source
from tests.support import feed
from tests.support.content import differences
from tests.support.proxy import until

LAKES: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "removing": {"on_delete": "remove"},
    "xmin": {"pattern": "batch"},
    "cursor": {"pattern": "micro_batch", "cursor": "at"},
    "history": {"pattern": "batch", "history": True},
    "dated": {"pattern": "batch", "partition_by": "day"},
    "clustered": {"pattern": "batch", "cluster_by": ["v", "id"]},
    "streamed": {"pattern": "streaming"},
}
KEYS = st.lists(st.integers(1, 40), min_size=1, max_size=12, unique=True)
VALUES = st.sampled_from(["", "a", "é", "NaN", "x" * 50, "\x01", None])
# Keys of transactions that stay open, which nobody else waits for.
LATE = 1000
EXAMPLES = int(os.environ.get("BRONZE_SOAK_EXAMPLES", "12"))
_numbers = itertools.count()


class Death(BaseException):
    """What ends a run in the middle."""


class Machine(RuleBasedStateMachine):
    """One table of the source, and lakes of some patterns."""

    def __init__(self, source: Source, folder: Path, patch: pytest.MonkeyPatch) -> None:
        """Begins with an empty table and no lake."""
        super().__init__()
        self.number = next(_numbers)
        self.source, self.folder, self.patch = source, folder / str(self.number), patch
        self.rows: dict[int, str | None] = {}
        self.existed: set[int] = set()
        self.pending: dict[int, str | None] = {}
        self.columns = 0
        self.late = 0
        self.open: psycopg.Connection[Any] | None = None
        self.lakes: list[str] = []
        self.following = False
        self.ever: dict[str, set[int]] = {lake: set() for lake in LAKES}
        source.execute("DROP TABLE IF EXISTS t")
        source.execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz DEFAULT now(), day date)"
        )

    def teardown(self) -> None:
        """Nothing is left open, and no slot is left."""
        if self.open:
            self.open.close()
        if "streamed" in self.lakes:
            until(lambda: not self.source.execute("SELECT FROM pg_replication_slots WHERE active"))
            stream.drop(self.settings("streamed"))

    def settings(self, lake: str) -> Settings:
        """The config of one lake."""
        return self.source.settings(
            lake={"root": str(self.folder / lake)},
            tables={"t": LAKES[lake]},
            stream={"interval": 0, "slot": f"machine_{self.number}"},
        )

    # With all lakes in one story, few of them would be landed in more than once.
    @initialize(lakes=st.lists(st.sampled_from(sorted(LAKES)), min_size=1, max_size=2, unique=True))
    def choose(self, lakes: list[str]) -> None:
        """The story is about one lake, or two."""
        self.lakes = lakes

    @rule(keys=KEYS, value=VALUES)
    def write(self, keys: list[int], value: str | None) -> None:
        """Rows are inserted, or changed where they are there."""
        self.source.execute(
            "INSERT INTO t (id, v, day) SELECT k, %s, date '2024-01-01' + k %% 3"
            " FROM unnest(%s::int[]) k ON CONFLICT (id) DO UPDATE"
            " SET v = excluded.v, at = now(), day = t.day + 1",
            value,
            keys,
        )
        self.rows |= dict.fromkeys(keys, value)
        self.existed |= set(keys)

    @rule()
    def touch(self) -> None:
        """All rows are written again as they are."""
        self.source.execute("UPDATE t SET v = v WHERE id < %s", LATE)

    @rule(keys=KEYS)
    def delete(self, keys: list[int]) -> None:
        """Rows go."""
        self.source.execute("DELETE FROM t WHERE id = ANY(%s)", keys)
        for key in keys:
            self.rows.pop(key, None)

    @rule(old=st.integers(1, 40), new=st.integers(1, 40))
    def rename(self, old: int, new: int) -> None:
        """A row gets another key."""
        if old in self.rows and new not in self.rows:
            self.source.execute("UPDATE t SET id = %s, at = now() WHERE id = %s", new, old)
            self.rows[new] = self.rows.pop(old)
            self.existed.add(new)

    @precondition(lambda self: self.open is None)
    @rule(value=VALUES)
    def begin(self, value: str | None) -> None:
        """A transaction writes rows and stays open."""
        self.open = psycopg.connect(self.source.dsn)
        self.open.execute("SELECT 1")  # so that what follows are savepoints
        for _ in range(2):
            self.late += 1
            key = LATE + self.late
            with self.open.transaction():
                self.open.execute("INSERT INTO t (id, v) VALUES (%s, %s)", (key, value))
            self.pending[key] = value

    @precondition(lambda self: self.open is not None)
    @rule(commits=st.booleans())
    def end(self, commits: bool) -> None:
        """It ends, one way or the other."""
        assert self.open is not None
        if commits:
            self.open.commit()
            self.rows |= self.pending
            self.existed |= set(self.pending)
        self.open.close()
        self.open, self.pending = None, {}

    @precondition(lambda self: self.open is None)
    @rule()
    def truncate(self) -> None:
        """The table is emptied at once."""
        self.following = False
        self.source.execute("TRUNCATE t")
        self.rows = {}

    @rule(how=st.sampled_from(["", "FREEZE"]))
    def vacuum(self, how: str) -> None:
        """PostgreSQL cleans up."""
        self.source.execute(f"VACUUM {how} t")

    @precondition(lambda self: self.open is None)
    @rule(default=st.sampled_from(["", "DEFAULT 7"]))
    def add_column(self, default: str) -> None:
        """A column comes."""
        self.columns += 1
        self.following = False
        self.source.execute(f"ALTER TABLE t ADD c{self.columns} int {default}")

    @precondition(lambda self: self.open is None and self.columns)
    @rule(number=st.integers(1, 5))
    def drop_column(self, number: int) -> None:
        """A column goes, if it is there."""
        self.following = False
        self.source.execute(f"ALTER TABLE t DROP COLUMN IF EXISTS c{number}")

    @rule()
    def run(self) -> None:
        """Runs land what is there."""
        for lake in self.lakes:
            self.land(lake)

    @rule(keys=KEYS, value=VALUES)
    def write_and_run(self, keys: list[int], value: str | None) -> None:
        """What has just been written lands."""
        self.write(keys, value)
        self.run()

    @rule(keys=KEYS)
    def delete_and_run(self, keys: list[int]) -> None:
        """What has just been deleted is seen to be gone."""
        self.delete(keys)
        self.run()

    def land(self, lake: str) -> None:
        """A run lands what is there, and another one finds nothing more."""
        if lake == "streamed":
            self.stream()
            return
        found = self.settings(lake)
        before = self.positions(lake)
        (result,) = pipeline.run(found).tables
        assert result.error is None
        self.check(lake)
        assert self.positions(lake)[: len(before)] == before
        (again,) = pipeline.run(found).tables
        assert (again.status, again.files) == ("unchanged", 0)

    def stream(self) -> None:
        """A stream lands what is there, and another one finds nothing more."""
        if not self.following:
            self.finish()
        found, before = self.settings("streamed"), self.positions("streamed")
        result = stream.stream(found, until_caught_up=True)
        assert [table.error for table in result.tables if table.error] == []
        self.following = True
        self.check("streamed")
        now = self.positions("streamed")
        assert now[: len(before)] == before
        assert now == sorted(now)
        state = log.read(found.place("bronze", "bz_t"))
        assert stream.stream(found, until_caught_up=True).tables == ()
        again = log.read(found.place("bronze", "bz_t"))
        assert state is not None
        assert again is not None
        assert again.version == state.version

    def finish(self) -> None:
        """No transaction is open any more: the new slot of a resync would wait for it."""
        if self.open:
            self.end(commits=True)

    def positions(self, lake: str) -> list[int]:
        """The positions that a lake's table has reached so far."""
        return feed.positions(self.table(lake)) if self.landed(lake) else []

    def landed(self, lake: str) -> bool:
        """Whether a lake's table is there."""
        return (self.table(lake) / "_delta_log").exists()

    @rule(data=st.data(), point=st.sampled_from(failpoint.POINTS), times=st.integers(1, 3))
    def die(self, data: st.DataObject, point: str, times: int) -> None:
        """A run dies somewhere; what is visible is whole."""
        lake = data.draw(st.sampled_from(self.lakes))
        left = times
        if lake == "streamed":
            self.finish()
            self.following = False

        def reach(name: str) -> None:
            nonlocal left
            left -= name == point
            if name == point and left == 0:
                raise Death

        with self.patch.context() as patch:
            patch.setattr(failpoint, "reach", reach)
            try:
                if lake == "streamed":
                    stream.stream(self.settings(lake), until_caught_up=True)
                else:
                    pipeline.run(self.settings(lake))
                maintain.maintain(self.settings(lake))
            except Death:
                pass
        if self.landed(lake):
            assert feed.faults(self.table(lake)) == []
            self.ever[lake] |= set(pl.read_delta(str(self.table(lake)))["id"])

    @rule()
    def maintain(self) -> None:
        """Maintenance changes nothing that one can see."""
        for lake in self.lakes:
            if not self.table(lake).exists():
                continue
            before = pl.read_delta(str(self.table(lake)))
            assert maintain.maintain(self.settings(lake)).exit_code == 0
            after = pl.read_delta(str(self.table(lake)))
            assert sorted(map(repr, before.rows())) == sorted(map(repr, after.rows()))

    def table(self, lake: str) -> Path:
        """The folder of a lake's table."""
        return self.folder / lake / "bronze" / "bz_t"

    def check(self, lake: str) -> None:
        """A lake's table is what the model says."""
        frame = pl.read_delta(str(self.table(lake)))
        if KIND in frame.columns:
            frame = frame.sort("update_timestamp", maintain_order=True)
            frame = frame.unique("id", keep="last", maintain_order=True)
        assert frame["id"].is_unique().all()
        live = frame.filter(pl.col("record_status") != DELETED)
        assert dict(live.select("id", "v").rows()) == self.rows
        self.ever[lake] |= set(self.rows)
        gone = set() if lake == "removing" else self.ever[lake] - set(self.rows)
        marked = set(frame.filter(pl.col("record_status") == DELETED)["id"])
        assert gone <= marked
        # A stream lands rows, too, that come and go between two of its landings here.
        assert marked <= (self.existed - set(self.rows) if lake == "streamed" else gone)
        assert differences(self.settings(lake)) == {}
        assert feed.faults(self.table(lake)) == []


def _driven(source: Source, folder: Path, examples: int, steps: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Small files are joined sooner.
        patch.setattr(file_groups, "_MANY", 3)
        patch.setattr(file_groups, "_FEWEST", 2)

        class Here(Machine):
            def __init__(self) -> None:
                super().__init__(source, folder, patch)

        run_state_machine_as_test(
            Here,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_histories_keep_bronze_equal_at_length(source: Source, tmp_path: Path) -> None:
    """Many long random histories of a table keep Bronze equal to the source."""
    _driven(source, tmp_path, EXAMPLES, 30)
