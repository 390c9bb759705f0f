"""Chooses the versions of all tables that make up one moment.

- Streamed tables: the versions that the last checkpoint of their stream names, so that they are at
  one position of the source. A table that was not changed since has its newest version.
- Other tables: the newest version, but none of a run that goes on: its tables land one by one.
- Governance tables: ``streams`` and ``data_lineage`` say positions and versions of the others. They
  are read before the other tables, so that they are never ahead of them. All others are read after
  them, the audit log last: a table never names a record, a key or a model that the copy lacks.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import polars as pl

from bronze.backup import manifest, table_log
from bronze.backup.manifest import Manifest, Moment, TableCopy
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, file_names, files, log, store
from bronze.delta.log import State
from bronze.delta.positions import STREAM
from bronze.errors import BronzeError, FileDamaged, LakeError
from bronze.governance.frames import schema_of
from bronze.governance.tables import audit_log, data_lineage, runs, streams
from bronze.governance.tables.streams import Versions
from bronze.model.files import StoredFile
from bronze.model.locations import Place, TableName

T = TypeVar("T")
R = TypeVar("R")

# Files of checkpoints that are read at a time, until a whole series is there.
_FILES = 20
# A run without an end that began earlier than this has died.
_RUN_AGE = timedelta(hours=6)
_RUN_COLUMNS = ("run_id", "batch_id", "command", "target_table", "status", "began_timestamp",
                "recorded_timestamp")  # fmt: skip
_CONCURRENT = 8
# Versions of the lineage that are looked at until one is not ahead of the tables.
_LINEAGE_VERSIONS = 100


@dataclass(frozen=True)
class Chosen:
    """A table and its version. ``same`` is the table of the last generation if it has not changed
    since; ``error`` is why no version could be chosen, and the one of the last generation counts.
    """

    table: TableName
    place: Place
    version: int
    moment: Moment
    same: TableCopy | None = None
    error: BronzeError | None = None


@dataclass(frozen=True)
class Choice:
    """The tables of a generation in the order in which they are copied; ``excluded`` says of others
    why they are not in it.
    """

    made: datetime
    tables: tuple[Chosen, ...]
    excluded: Mapping[str, str] = field(default_factory=dict)


def choose(settings: Settings, lake: Place, last: Manifest | None) -> Choice:
    """The versions of all tables of the lake as of now.

    Args:
        settings: the config.
        lake: the root of the lake.
        last: the last generation.

    Raises:
        LakeError, LakeUnreachable: the lake cannot be listed, or governance cannot be read.
    """
    made = datetime.now(UTC)
    choosing = _Choosing(settings, lake, last, made)
    names = _tables_of(lake)
    early = [TableName(GOVERNANCE, name) for name in (streams.NAME, data_lineage.NAME)]
    late = [name for name in names if name.schema == GOVERNANCE and name not in early]
    audit = TableName(GOVERNANCE, audit_log.NAME)
    late.sort(key=lambda name: name == audit)
    governance = Moment("governance", as_of=made)
    pinned = {name: choosing.newest(name) for name in early if name in names}
    checkpoints = _last_checkpoints(settings, pinned.get(early[0]))
    data = _each(
        [name for name in names if name.schema != GOVERNANCE],
        lambda name: choosing.data_table(name, checkpoints),
    )
    others = [choosing.newest(name) for name in late]
    tables = [chosen for chosen in data if chosen is not None]
    if (lineage := pinned.get(early[1])) is not None:
        pinned[early[1]] = choosing.lineage_behind(lineage, tables)
    first = [replace(c, moment=governance) for c in reversed(others) if c is not None]
    final = [replace(c, moment=governance) for c in pinned.values() if c is not None]
    chosen = (*first, *tables, *final)
    return Choice(made, chosen, {**choosing.excluded, **choosing.vanished(chosen)})


def _tables_of(lake: Place) -> list[TableName]:
    """All folders of tables in the lake, in a fixed order."""
    schemas = [name for name in store.folders(lake) if not name.startswith(("_", "."))]
    places = {schema: manifest.in_folder(lake, schema) for schema in schemas}
    return [
        TableName(schema, name)
        for schema, place in places.items()
        for name in store.folders(place)
        if not name.startswith(("_", "."))
    ]


@dataclass(frozen=True)
class _Checkpoint:
    """The last checkpoint of a stream, and the versions of its tables by their full names."""

    moment: Moment
    position: int
    versions: Versions


def _last_checkpoints(settings: Settings, chosen: Chosen | None) -> list[_Checkpoint]:
    state = _state_of(chosen)
    if state is None:
        return []
    last: dict[tuple[str, str], _Checkpoint] = {}
    for record, versions in streams.with_versions(_newest_records(state)):
        moment = Moment(
            "stream",
            record["source_system"],
            record["stream"],
            record["position"],
            record["recorded_timestamp"],
        )
        # Records of earlier releases have the names of tables alone.
        named = {n if "." in n else f"{settings.lake.schema_}.{n}": v for n, v in versions.items()}
        key = (record["source_system"], record["stream"])
        last[key] = _Checkpoint(moment, record["position"], named)
    return list(last.values())


def _state_of(chosen: Chosen | None) -> State | None:
    return log.read(chosen.place) if chosen is not None and chosen.error is None else None


def _newest_records(state: State) -> pl.DataFrame:
    """The records of the newest files, with the whole of the last series of each stream."""
    newest = sorted(
        state.files, key=lambda file: file_names.batch_of(file.path) or "", reverse=True
    )
    records = pl.DataFrame(schema=schema_of(streams.COLUMNS))
    for start in range(0, len(newest), _FILES):
        records = pl.concat([records, *_rows(state, newest[start : start + _FILES])])
        last = records.sort("recorded_timestamp").group_by("stream", "source_system").last()
        begun = records.filter(pl.col("number") == 1)["series"].implode()
        if last["series"].drop_nulls().is_in(begun).all():
            break
    return records


def _rows(state: State, stored: Iterable[StoredFile]) -> list[pl.DataFrame]:
    return [
        pl.DataFrame(part)
        for file in stored
        for _, part in files.parts(files.open_parquet(state.place, file), streams.COLUMNS)
    ]


class _Choosing:
    """Chooses versions, one table at a time."""

    def __init__(
        self, settings: Settings, lake: Place, last: Manifest | None, now: datetime
    ) -> None:
        self._settings, self._lake, self._now = settings, lake, now
        self._last = {table.table: table for table in last.tables} if last else {}
        self._running: Mapping[tuple[str, str], datetime] | None = None
        self._runs = Moment("runs", as_of=now)
        self._lock = threading.Lock()
        self.excluded: dict[str, str] = {}

    def newest(self, name: TableName) -> Chosen | None:
        """A table at its newest version, None if there is no such table."""
        place, last = manifest.in_folder(self._lake, f"{name.schema}/{name.name}"), None
        try:
            last = self._last.get(name)
            version = table_log.latest_version(place, last.version if last else 0)
            if version is None:
                return None
            chosen = Chosen(name, place, version, self._runs)
            return self._compared(chosen, last) if last else chosen
        except BronzeError as error:
            return Chosen(name, place, last.version if last else -1, self._runs, last, error)

    def _compared(self, chosen: Chosen, last: TableCopy) -> Chosen:
        """The table, compared with that of the last generation.

        Raises:
            LakeError: it is another table, or was restored to an earlier version.
        """
        digest = table_log.entry_hash(chosen.place, last.version) if last.entry else ""
        if chosen.version < last.version or (digest and digest != last.entry):
            raise LakeError(
                f"Table {chosen.table.label} is not the one that was copied before, or was restored"
                f" to an earlier version: it is at version {chosen.version}, and the copy at"
                f" version {last.version}.",
                hint="The copy keeps the one from before. To copy this one, choose another [backup]"
                " root, or move the table's folder in the copy away.",
            )
        is_same = chosen.version == last.version and bool(digest)
        return replace(chosen, same=last) if is_same else chosen

    def data_table(self, name: TableName, checkpoints: Sequence[_Checkpoint]) -> Chosen | None:
        """A table of rows at the version of its moment, None if it is not in the generation."""
        chosen = self.newest(name)
        if chosen is None or chosen.error is not None:
            return chosen
        try:
            for checkpoint in checkpoints:
                if name.label in checkpoint.versions:
                    streamed = self._at_checkpoint(chosen, checkpoint)
                    if streamed is not None:
                        return streamed
            return self._before_runs(chosen)
        except BronzeError as error:
            return replace(chosen, same=self._last.get(name), error=error)

    def _at_checkpoint(self, chosen: Chosen, checkpoint: _Checkpoint) -> Chosen | None:
        """A streamed table at a checkpoint, None if it is not streamed any more."""
        positions: Mapping[str, int]
        if chosen.same is not None:
            positions = chosen.same.positions
        else:
            positions = table_log.read(chosen.place, chosen.version).positions
        reached = _stream_position(positions)
        if reached is None:
            return None
        version = checkpoint.versions[chosen.table.label]
        if reached <= checkpoint.position:
            return replace(chosen, moment=checkpoint.moment)
        if version is None or version > chosen.version:
            note = "it waits for a resync, or is ahead of the checkpoint"
            return replace(chosen, moment=Moment("table", as_of=self._now, note=note))
        return self._at(replace(chosen, moment=checkpoint.moment), version)

    def _at(self, chosen: Chosen, version: int) -> Chosen:
        """A table at another version."""
        last = self._last.get(chosen.table)
        is_same = last is not None and last.version == version and bool(last.entry)
        return replace(chosen, version=version, same=last if is_same else None)

    def _before_runs(self, chosen: Chosen) -> Chosen | None:
        """A table before a run that goes on has landed it; None if that run made it."""
        running = self._running_batches()
        batches = {batch for target, batch in running if target == chosen.table.label}
        if not batches:
            return chosen
        began = min(running[key] for key in running if key[0] == chosen.table.label)
        version = _version_before(chosen, batches, began)
        if version is None:
            self.excluded[chosen.table.label] = "it is being loaded for the first time"
            return None
        return self._at(chosen, version)

    def _running_batches(self) -> Mapping[tuple[str, str], datetime]:
        """When the runs that go on began, by their targets and batches."""
        with self._lock:
            if self._running is None:
                state = log.read(self._settings.place(GOVERNANCE, runs.NAME))
                self._running = _running(state, self._now) if state else {}
            return self._running

    def vanished(self, chosen: Sequence[Chosen]) -> dict[str, str]:
        """The tables of the last generation that the lake no longer has."""
        there = {found.table for found in chosen}
        reason = "the lake no longer has it, and earlier generations do"
        return {
            name.label: reason
            for name in self._last
            if name not in there and name.label not in self.excluded
        }

    def lineage_behind(self, lineage: Chosen, tables: Sequence[Chosen]) -> Chosen:
        """The lineage at a version that has no commit of a table which the generation lacks."""
        versions = {f"bronze/lineage/{c.table.label}": c.version for c in tables}
        chosen = lineage
        for _ in range(_LINEAGE_VERSIONS):
            if chosen.same is not None or chosen.error is not None or chosen.version <= 0:
                break
            try:
                positions = table_log.read(chosen.place, chosen.version).positions
            except FileDamaged:
                return lineage
            if all(positions.get(name, -1) <= v for name, v in versions.items()):
                return chosen
            chosen = self._at(chosen, chosen.version - 1)
        return chosen


def at_newest(chosen: Chosen, note: str) -> Chosen:
    """A table at its newest version, as the files of the chosen one are gone.

    Raises:
        LakeError, LakeUnreachable: its log cannot be read.
    """
    version = table_log.latest_version(chosen.place, chosen.version)
    moment = replace(chosen.moment, kind="table", as_of=datetime.now(UTC), note=note)
    if version == chosen.version or version is None:
        return chosen
    return replace(chosen, version=version, moment=moment, same=None)


def _stream_position(positions: Mapping[str, int]) -> int | None:
    """The position up to which a stream was applied, None if a run came after."""
    suffix = f"/{STREAM}"
    for name, value in positions.items():
        if name.endswith(suffix):
            timeline = name.removesuffix(suffix).rpartition("/")[0]
            if positions.get(timeline) == value:
                return value
    return None


def _running(state: State, now: datetime) -> dict[tuple[str, str], datetime]:
    """When the runs that have not ended began, by their targets and batches."""
    oldest = int((now - 2 * _RUN_AGE).timestamp() * 1000)
    recent = [file for file in state.files if _written(file) >= oldest]
    wanted = [column for column in runs.COLUMNS if column[0] in _RUN_COLUMNS]
    parts = [
        pl.DataFrame(part)
        for file in recent
        for _, part in files.parts(files.open_parquet(state.place, file), wanted)
    ]
    if not parts:
        return {}
    records = pl.concat(parts).filter(pl.col("command") == "run")
    last = records.sort("recorded_timestamp").group_by("target_table", "run_id").last()
    # A later run of the same table says that the one before has died.
    newest = last.sort("began_timestamp").group_by("target_table").last()
    began = newest.filter(
        (pl.col("status") == "began") & (pl.col("began_timestamp") > now - _RUN_AGE)
    )
    # Tables of the run that have landed are held back as long as others have not.
    running = last.join(began.select("run_id").unique(), on="run_id", how="semi")
    return {
        (row["target_table"], row["batch_id"]): row["began_timestamp"]
        for row in running.iter_rows(named=True)
    }


def _written(file: StoredFile) -> int:
    """When a file was written, in milliseconds since 1970; by its batch, a UUIDv7 (RFC 9562)."""
    batch = (file_names.batch_of(file.path) or "").replace("-", "")
    try:
        return int(batch[:12], 16)
    except ValueError:
        return 2**63


def _version_before(chosen: Chosen, batches: set[str], began: datetime) -> int | None:
    """The version before the first commit of some batches, None if that is the table's first."""
    version, result = chosen.version, chosen.version
    since = began.timestamp() * 1000
    while version >= 0:
        actions = log.entry(chosen.place, version)
        if actions is None:
            break
        info: Mapping[str, Any] = next((a["commitInfo"] for a in actions if "commitInfo" in a), {})
        if commit.facts_of(info).get("batch_id") in batches:
            result = version - 1
        stated = info.get("timestamp")
        if isinstance(stated, int) and stated < since:
            break
        version -= 1
    return result if result >= 0 else None


def _each(items: Sequence[T], work: Callable[[T], R]) -> list[R]:
    """The results of a function that waits for the store, several at a time."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(_CONCURRENT) as pool:
        context = contextvars.copy_context
        return list(pool.map(lambda item: context().run(work, item), items))
