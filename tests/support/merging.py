"""A Bronze table in memory and on disk, to merge into."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from hypothesis import HealthCheck, Phase, settings

from bronze.delta import commit, files, log
from bronze.delta.read import deletion_vectors
from bronze.delta.schema import VECTORS_ENABLED
from bronze.delta.statistics import SAFE
from bronze.delta.write import insert, merge, merge_job
from bronze.delta.write.changes import Changes
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile, WrittenFile
from bronze.model.locations import Destination, Place
from bronze.model.stamp import RowStamp
from bronze.model.units import ACTIVE
from bronze.postgres.copy.rows_reader import dtype
from bronze.rows.metadata import METADATA_COLUMNS
from tests.support.effort import examples

ON_DISK = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=examples(12),
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
UTC = dt.UTC
BEFORE = RowStamp(
    "018df7a0-0000-7000-8000-00000000000a",
    dt.datetime(2024, 1, 1, tzinfo=UTC),
    "s",
    "batch",
    "before",
)
NOW = RowStamp(
    "018df7a0-0000-7000-8000-00000000000b",
    dt.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=UTC),
    "s",
    "micro_batch",
    "now",
)
VALUES: tuple[tuple[str, DeltaType], ...] = (
    ("x", DeltaType("double")),
    ("text", DeltaType("string")),
    ("price", DeltaType("decimal", 20, 2)),
    ("tags", DeltaType("array", element=DeltaType("string"))),
    ("raw", DeltaType("binary")),
)

Layout = tuple[tuple[str, DeltaType], ...]
Row = tuple[Any, ...]


def layout_of(*key: tuple[str, DeltaType]) -> Layout:
    """A table's columns: the first key column, the values, the other key columns, and ours."""
    return (*key[:1], *VALUES, *key[1:], *METADATA_COLUMNS)


def row(
    layout: Layout,
    key: Mapping[str, Any],
    values: Sequence[Any],
    stamp: RowStamp = BEFORE,
    **more: Any,
) -> Row:
    """A Bronze row."""
    digest = hashlib.sha256(repr((dict(key), values)).encode()).hexdigest()
    whole = {
        **key,
        **dict(zip((name for name, _ in VALUES), values, strict=True)),
        "load_timestamp": stamp.loaded_at,
        "update_timestamp": stamp.loaded_at,
        "source_system": stamp.source_system,
        "record_status": ACTIVE,
        "data_quality_score": 100,
        "batch_id": stamp.batch_id,
        "ingestion_method": stamp.method,
        "data_lineage": stamp.lineage,
        "checksum": digest[:16],
        "row_hash": digest[:32],
        **more,
    }
    return tuple(whole[name] for name, _ in layout)


def frame(layout: Layout, rows: Sequence[Row]) -> pl.DataFrame:
    """Rows as a frame."""
    schema = {name: dtype(kind) for name, kind in layout}
    return pl.DataFrame(list(rows), schema=schema, orient="row")


def bits(one: Row) -> str:
    """A row so that it can be compared to the bit: NaN equals NaN, and -0.0 is not 0.0."""
    return repr([v.astimezone(UTC) if isinstance(v, dt.datetime) else v for v in one])


def written(rows: pl.DataFrame) -> list[str]:
    """Each row's bits."""
    return [bits(one) for one in rows.rows()]


@dataclass
class Bench:
    """A table, and how changes are made to it: as `bronze.ingest.load` does it."""

    place: Place
    layout: Layout
    key: tuple[str, ...]
    dates_of: str | None = None
    vectors: bool = False

    @property
    def into(self) -> Destination:
        """The table, as the next batch writes into it."""
        return Destination(self.place, self.layout, self.key, self.stats, NOW, self.dates_of)

    @property
    def stats(self) -> tuple[str, ...]:
        """The columns with file statistics."""
        return tuple(n for n, kind in self.layout if n in self.key and kind.name in SAFE)

    @property
    def state(self) -> log.State:
        """The table as it is."""
        state = log.read(self.place)
        assert state is not None
        return state

    def create(self, contents: Sequence[Sequence[Sequence[Row]]]) -> list[str]:
        """Makes the table of files of row groups of rows; returns the files' paths."""
        made = []
        for groups in contents:
            frames = [frame(self.layout, group) for group in groups]
            file = files.write(frames, self.place, BEFORE.batch_id, self.stats)
            assert file is not None
            made.append(file)
        change = commit.Change("WRITE", made)
        notes = ((VECTORS_ENABLED, "true"),) if self.vectors else ()
        shape = commit.Shape(self.layout, self.stats, notes=notes)
        commit.commit(self.place, None, change, {"batch_id": BEFORE.batch_id}, shape=shape)
        return [file.path for file in made]

    def changed(
        self,
        changes: Sequence[Changes],
        gone: Mapping[str, Sequence[int]] | None = None,
        on_delete: merge_job.OnDelete = "mark",
        rewrite: bool = False,
        deletes: Sequence[Changes] = (),
        emptied: bool = False,
    ) -> Landed:
        """Merges changes and commits them; ``gone`` are row numbers by path."""
        gone = gone or {}
        state = self.state
        found = list(state.files)
        if not gone and not rewrite and not emptied:
            both = (*changes, *deletes)
            found = merge.candidate_files(state.files, both, self.key, self.place)
        jobs = [
            merge_job.Merge(
                into=self.into,
                file=file,
                changes=tuple(changes),
                gone=np.array(gone[file.path], np.int64) if file.path in gone else None,
                deletes=tuple(deletes),
                delete_others=emptied,
                on_delete=on_delete,
                rewrite=rewrite,
                vectors=self.vectors,
            )
            for file in found
        ]
        merged = [merge.merge(job) for job in jobs]
        rewritten = [one for one in merged if one.rewritten]
        feed = [one.feed for one in rewritten if one.feed]
        masks = insert.join_masks([one.matched for one in merged], changes)
        moved = tuple(one.moved for one in merged if one.moved is not None)
        kept = tuple(one.kept for one in merged if one.kept is not None)
        fed = tuple(one.fed for one in merged if one.fed is not None)
        inserted = insert.insert(
            insert.Insert(
                into=self.into,
                changes=tuple(changes),
                matched=masks,
                feed=bool(feed or fed),
                moved=moved,
                kept=kept,
                fed=fed,
            )
        )
        quiet = [(one.old, one.file) for one in rewritten if one.file and not one.edits]
        loud = [one for one in rewritten if one.edits or not one.file]
        added = [*(one.file for one in loud if one.file), *inserted.files]
        feed += inserted.feed
        old = [one.old for one in loud]
        marked = [one for one in loud if one.vector]
        _, made = deletion_vectors.write(self.place, [one.vector for one in marked if one.vector])
        pairs = [(one.old, vector) for one, vector in zip(marked, made, strict=True)]
        change = commit.Change("MERGE", added, old, feed, quiet=quiet, marked=pairs)
        version = commit.commit(self.place, state, change, {"batch_id": NOW.batch_id})
        return Landed(version, [file.path for file in found], merged, inserted, feed)

    def rows(self, file: WrittenFile | StoredFile) -> pl.DataFrame:
        """A data file's content as it lies there."""
        path = unquote(file.path) if isinstance(file, StoredFile) else file.path
        return pl.read_parquet(Path(self.place.url) / path, hive_partitioning=False)

    def content(self) -> Counter[str]:
        """The table's rows, as a reader finds them."""
        names = [name for name, _ in self.layout]
        return Counter(written(pl.read_delta(self.place.url).select(names)))

    def told(self, version: int) -> Counter[tuple[str, str]]:
        """What the change data feed says of a version."""
        table = DeltaTable(self.place.url)
        read = table.load_cdf(starting_version=version, ending_version=version).read_all()
        changes = pl.DataFrame(read)
        if not changes.height:
            return Counter()
        kinds = changes["_change_type"].to_list()
        rows = written(changes.select([name for name, _ in self.layout]))
        return Counter(zip(kinds, rows, strict=True))


@dataclass(frozen=True)
class Landed:
    """What one change came to."""

    version: int
    looked: list[str]
    merged: list[merge_job.Merged]
    inserted: insert.Inserted
    feed: list[WrittenFile]

    @property
    def rewritten(self) -> list[str]:
        """The paths of the files that were rewritten."""
        return [one.old.path for one in self.merged if one.rewritten]


ID: tuple[str, DeltaType] = ("id", DeltaType("long"))
PLAIN = layout_of(ID)
NOTHING = (None, "a", None, None, None)


def plain(number: int, text: str = "a", stamp: RowStamp = BEFORE, **more: Any) -> Row:
    """A row with a key of one number."""
    return row(PLAIN, {"id": number}, (None, text, None, None, None), stamp, **more)


def actions_of(place: Place, version: int, name: str) -> list[dict[str, Any]]:
    """The actions of one name in a version's log entry."""
    text = (Path(place.url) / "_delta_log" / f"{version:020}.json").read_text()
    return [a[name] for a in map(json.loads, text.splitlines()) if name in a]


def foreign(bench: Bench, path: str, table: pa.Table, stats: str | None, **options: Any) -> None:
    """Adds a file of another writer to the table."""
    target = Path(bench.place.url) / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(target, table.schema) as writer:
        if table.num_rows:
            writer.write_table(table, **options)
    add: dict[str, Any] = {
        "path": quote(path),
        "partitionValues": {},
        "size": target.stat().st_size,
        "modificationTime": 0,
        "dataChange": True,
    }
    add |= {} if stats is None else {"stats": stats}
    log.write(bench.place, bench.state.version + 1, [{"add": add}])


def stored_file(bench: Bench, path: str) -> StoredFile:
    """A file of the table as the log has it."""
    (found,) = [file for file in bench.state.files if file.path == path]
    return found


def by_pyarrow(bench: Bench) -> Counter[str]:
    """The table's rows as pyarrow finds them, which takes partition values from the log."""
    found = pl.DataFrame(DeltaTable(bench.place.url).to_pyarrow_table())
    return Counter(written(found.select([name for name, _ in bench.layout])))


DATED: Layout = (
    *PLAIN[: -len(METADATA_COLUMNS)],
    ("at", DeltaType("timestamp")),
    *METADATA_COLUMNS,
    ("at_date", DeltaType("date")),
)


def dated(number: int, at: dt.datetime | None, stamp: RowStamp = BEFORE, **more: Any) -> Row:
    """A row with a date."""
    text = f"{number} {at}"
    date = at and at.date()
    values = (None, text, None, None, None)
    return row(DATED, {"id": number, "at": at, "at_date": date}, values, stamp, **more)


def days_of(bench: Bench) -> dict[str | None, int]:
    """How many rows lie in each partition."""
    return {dict(file.partition)["at_date"]: file.rows for file in bench.state.files}


def values_of(layout: Layout, one: Row) -> dict[str, Any]:
    """A row's values by column."""
    return dict(zip((name for name, _ in layout), one, strict=True))


def feed_of(before: Row, after: Row | None) -> Iterator[tuple[str, str]]:
    """What the change data feed has to say of a row."""
    if after is None:
        yield "delete", bits(before)
    elif after is not before:
        yield "update_preimage", bits(before)
        yield "update_postimage", bits(after)


def keys_of(bench: Bench, numbers: Sequence[int], staged: bool) -> tuple[Changes, ...]:
    """Keys of deleted rows, in memory or in a file of several row groups."""
    keys = pl.DataFrame({"id": list(numbers)}, schema={"id": pl.Int64})
    if not staged:
        return (keys,)
    file = files.write(keys.iter_slices(2), bench.place, NOW.batch_id, ("id",))
    assert file is not None
    return (file,)
