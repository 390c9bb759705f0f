"""What the governance tables tell of runs and streams, read once and then kept up.

Of each table only what is needed all the time lies in memory as values; its last records do so
compressed. One thread at a time may refresh a `History`; any thread may read it meanwhile, and sees
what was known before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import polars as pl

from bronze import portion
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta.log import State
from bronze.governance.frames import frame_of
from bronze.governance.tables import quality as quality_table
from bronze.governance.tables import runs as runs_table
from bronze.governance.tables import streams as streams_table
from bronze.governance.tables.runs import Command, RunRecord
from bronze.operate.facts import added as additions
from bronze.operate.facts import essential_runs, run_reader
from bronze.operate.facts.added import Added
from bronze.operate.facts.half_hours import Figures
from bronze.operate.facts.kept_runs import KeptRuns
from bronze.operate.facts.table_history import Histories, SourceHistory, TableHistory, key_of
from bronze.quality import latest
from bronze.quality.latest import Score

_LAST_FILES = 100
_MOST_ROWS = 500_000
_AT_A_TIME = 500


@dataclass(frozen=True)
class StreamPoint:
    """The last checkpoint of a source's stream. All that was committed up to ``as_of`` has landed
    in the Bronze tables ``targets``, by their full names; those of all records of its ``series``.
    """

    source: str
    recorded: datetime
    as_of: datetime
    lag_bytes: int
    lag_seconds: float
    targets: frozenset[str] = frozenset()
    series: str | None = None


class History:
    """What is known of all tables and streams of a lake."""

    def __init__(self, settings: Settings) -> None:
        """A history that knows nothing yet; `refresh` reads it."""
        self._runs_state: State | None = None
        self._histories = Histories(())
        # Other threads read it: it is replaced, never changed.
        self._kept = KeptRuns()
        self._points: Mapping[str, StreamPoint] = {}
        self._scores: Mapping[str, Score] = {}
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Goes on with another config of the same lake, which may have other sources."""
        self._names = self._histories.names = tuple(settings.source)
        self._runs_place = settings.place(GOVERNANCE, runs_table.NAME)
        self._streams_place = settings.place(GOVERNANCE, streams_table.NAME)
        # The last checkpoint of a source that is new may be an old one.
        self._streams_state: State | None = None
        self._scores_state: State | None = None
        self._scores_place = settings.place(GOVERNANCE, quality_table.NAME)

    @property
    def tables(self) -> Mapping[str, TableHistory]:
        """The tables that have records, by their keys: "SOURCE.SCHEMA.TABLE"."""
        return self._histories.tables

    @property
    def sources(self) -> Mapping[str, SourceHistory]:
        """The sources that runs have read."""
        return self._histories.sources

    @property
    def streams(self) -> Mapping[str, StreamPoint]:
        """The last checkpoint of each source's stream."""
        return self._points

    @property
    def scores(self) -> Mapping[str, Score]:
        """The last scores of rows of streamed tables, by the full names of their Bronze tables."""
        return self._scores

    @property
    def half_hours(self) -> Mapping[datetime, Figures]:
        """The worst figures of the runs that ended in the half hours of the last day."""
        return self._histories.half_hours.figures

    @property
    def chores(self) -> Mapping[tuple[str, str], datetime]:
        """The latest due times that verifications and maintenance began for, by the command and the
        source, "" for maintenance.
        """
        return self._histories.chores

    @property
    def in_flight(self) -> Mapping[str, tuple[RunRecord, ...]]:
        """The runs that have only begun, by their ids: they go on, or their processes died."""
        found: dict[str, tuple[RunRecord, ...]] = {}
        for table in self.tables.values():
            for record in table.open:
                found[record.run_id] = (*found.get(record.run_id, ()), record)
        return found

    def refresh(self, *, streams: bool = True) -> frozenset[str]:
        """Reads what was added to the lake since the last call.

        Args:
            streams: whether checkpoints are read, too: a log with a commit each second; and the
                scores of streamed rows.

        Returns:
            The keys of the tables that have new records.

        Raises:
            LakeError, LakeUnreachable: it cannot be read; what was known stays.
        """
        since = None if self._kept.is_scattered else self._runs_state
        added = additions.added_since(self._runs_place, since)
        changed = self._read_all(added) if added.is_whole else self._read_new(added)
        self._runs_state = added.state
        if streams:
            self._refresh_streams()
            self.refresh_scores()
        return changed

    def refresh_scores(self) -> None:
        """Reads the scores of streamed rows that were added to the lake since the last call: of
        tables in the last checkpoints, as all others have them in their runs.

        Raises:
            LakeError, LakeUnreachable: they cannot be read; what was known stays.
        """
        streamed = {target for point in self._points.values() for target in point.targets}
        if not streamed:
            return
        added = additions.added_since(self._scores_place, self._scores_state)
        scores = dict(self._scores)
        rows = 0
        for file in added.files:
            # The newest files come first, and those of all runs may be many.
            if rows > _MOST_ROWS or (added.is_whole and streamed <= scores.keys()):
                break
            rows += max(file.rows, 0)
            for target, score in latest.scores_in(self._scores_place, file):
                known = scores.get(target)
                if target in streamed and (known is None or known.evaluated <= score.evaluated):
                    scores[target] = score
        self._scores, self._scores_state = scores, added.state

    def add(self, rows: pl.DataFrame) -> frozenset[str]:
        """Adds rows with the columns of ``governance.runs``; the keys of their tables."""
        rows = rows.sort("recorded_timestamp", maintain_order=True)
        self._kept = self._kept.with_rows(rows)
        return self._histories.add(run_reader.of_rows(rows))

    def runs(
        self, key: str, command: Command = "run", most: int = run_reader.LAST
    ) -> tuple[RunRecord, ...]:
        """The last records that count of a table's runs, the earliest first."""
        wanted = (key == run_reader.KEY) & (pl.col("command") == command)
        return self._kept.records(wanted, most)[-most:]

    def all_runs(
        self,
        command: Command = "run",
        most: int = run_reader.LAST,
        keys: Collection[str] | None = None,
    ) -> Mapping[str, Sequence[RunRecord]]:
        """The last runs of all tables or of some, by their keys: a kilobyte of memory for each."""
        wanted = pl.col("command") == command
        if keys is not None:
            wanted &= run_reader.KEY.is_in(list(keys))
        found: dict[str, list[RunRecord]] = {}
        for record in self._kept.records(wanted, most):
            found.setdefault(key_of(record), []).append(record)
        return found

    def unsteady_runs(self, most: int) -> Mapping[str, Sequence[RunRecord]]:
        """The last runs of the tables among whose last runs one has failed or has only begun, by
        their keys.
        """
        keys = self._kept.unsteady(self.tables, most)
        return self.all_runs(most=most, keys=keys) if keys else {}

    def _read_all(self, added: Added) -> frozenset[str]:
        known = frozenset(self.tables)
        parts = run_reader.last_records(self._runs_place, added.files)
        self._kept, self._histories = _read_once(parts, self._names)
        portion.release()
        return known | frozenset(self.tables)

    def _read_new(self, added: Added) -> frozenset[str]:
        parts = [
            part
            for file in added.files
            for part in additions.parts_of(self._runs_place, file, runs_table.COLUMNS)
        ]
        return self.add(pl.concat(parts)) if parts else frozenset()

    def _refresh_streams(self) -> None:
        added = additions.added_since(self._streams_place, self._streams_state)
        self._streams_state = added.state
        known = {} if added.is_whole else dict(self._points)
        for record, versions in streams_table.with_versions(self._checkpoints(added, known)):
            point = _point(record, versions)
            before = known.get(point.source)
            if before and before.series == point.series and point.series is not None:
                point = replace(point, targets=before.targets | point.targets)
            if before is None or point.recorded >= before.recorded:
                known[point.source] = point
        self._points = known

    def _checkpoints(self, added: Added, known: Mapping[str, StreamPoint]) -> pl.DataFrame:
        """The newest records of each source, back to one from which all tables are known."""
        rows = frame_of(streams_table.COLUMNS, [])
        # One is made each second. Every hundredth has all tables, and the newest files come first.
        for file in added.files[:_LAST_FILES]:
            parts = additions.parts_of(self._streams_place, file, streams_table.COLUMNS)
            rows = pl.concat([rows, *parts])
            last = rows.sort("recorded_timestamp").group_by("source_system").last()
            begun = {*rows.filter(pl.col("number") == 1)["series"], None}
            begun |= {point.series for point in known.values()}
            if set(self._names) <= set(last["source_system"]) and set(last["series"]) <= begun:
                break
        return rows


def _read_once(parts: Iterable[pl.DataFrame], names: Sequence[str]) -> tuple[KeptRuns, Histories]:
    """What `run_reader.last_records` gives, kept, and the histories: few of many records become
    objects for them.
    """
    kept, histories, marks = KeptRuns(), Histories(names), []
    for part in parts:
        marks.append(essential_runs.marks_of(part))
        kept = kept.with_rows(part)
    if marks:
        is_essential = essential_runs.is_essential(pl.concat(marks))
        histories.add(_records(kept, is_essential))
    return kept, histories


def _records(kept: KeptRuns, is_chosen: pl.Series) -> Iterator[RunRecord]:
    begin = 0
    for frame in kept.frames():
        chosen = frame.filter(is_chosen[begin : begin + frame.height])
        begin += frame.height
        for rows in chosen.iter_slices(_AT_A_TIME):
            yield from run_reader.of_rows(rows)


def _point(row: Mapping[str, Any], versions: Iterable[str]) -> StreamPoint:
    recorded, committed = row["recorded_timestamp"], row["source_commit_timestamp"]
    # Without a transaction it is a heartbeat: there was nothing left to apply.
    has_caught_up = not row["lag_bytes"] or committed is None
    return StreamPoint(
        source=row["source_system"],
        recorded=recorded,
        as_of=recorded if has_caught_up else committed,
        lag_bytes=row["lag_bytes"] or 0,
        lag_seconds=row["lag_seconds"] or 0.0,
        targets=frozenset(versions),
        series=row["series"],
    )
