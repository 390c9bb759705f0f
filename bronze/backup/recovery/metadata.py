"""Daily snapshots of the metadata of a lake, beside its copy: kept for a year.

The first backup of a day (UTC) puts ``_backup/metadata/<date>.json``: of each table schema,
properties and version, which keys there are, by their ids, and what the config says, with the names
of secrets only. So a lake can be compared with what it was, long after its generations have
expired.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar

from bronze.backup import manifest
from bronze.backup.manifest import Manifest
from bronze.backup.recovery import restore
from bronze.config import fingerprint
from bronze.config.settings import Settings
from bronze.delta import log, store
from bronze.errors import BronzeError, ConfigError
from bronze.governance.audit_proof import moment
from bronze.model.locations import Place, TableName
from bronze.model.results import Shown
from bronze.printable import count
from bronze.protection import keys
from bronze.version import VERSION

FOLDER = f"{manifest.FOLDER}/metadata"
KEPT = timedelta(days=366)

_NAME = re.compile(rf"{FOLDER}/(\d{{4}}-\d\d-\d\d)\.json")
_days: dict[str, date] = {}
_lock = threading.Lock()


@dataclass(frozen=True)
class TableMetadata:
    """The metadata of a table: ``columns`` are the names and types of its columns. ``error`` is why
    it could not be read.
    """

    id: str = ""
    version: int = -1
    columns: Mapping[str, str] = field(default_factory=dict)
    partition: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Metadata:
    """The metadata of a lake at a time. ``generation`` is the one that was made then, 0 for a lake
    as it is now; ``tables`` are by their full names, ``keys`` (table, column and purpose) by their
    ids, ``config`` has the values that the config gave by their places.
    """

    taken: str
    bronze: str
    root: str
    generation: int
    tables: Mapping[str, TableMetadata]
    keys: Mapping[str, Sequence[str]]
    config: Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class MetadataReport(Shown):
    """A snapshot, and how a lake differs from it: ``lacking`` is what the lake does not have any
    more, ``changes`` is what is new or other. ``root`` is the lake's, ``days`` are the snapshots.
    """

    _items: ClassVar[str] = ""

    snapshot: Metadata
    root: str
    days: tuple[str, ...]
    lacking: tuple[str, ...]
    changes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0: the lake has all that the snapshot has; 1: it lacks something."""
        return int(bool(self.lacking))

    def _summary(self) -> Iterable[str]:
        snapshot = self.snapshot
        parts = [snapshot.taken, f"generation {snapshot.generation}"]
        parts += [count(len(snapshot.tables), "table"), count(len(snapshot.keys), "key")]
        return [*parts, f"{len(self.lacking):,} lacking", f"{len(self.changes):,} changed"]

    def _row(self, item: MetadataReport) -> Mapping[str, Any]:
        snapshot = item.snapshot
        return {
            "lake": snapshot.root,
            "compared with": item.root,
            "written by": f"bronze {snapshot.bronze}",
            "snapshots": f"{count(len(item.days), 'day')} since {item.days[0]}",
            "tables": [f"{name} v{table.version}" for name, table in snapshot.tables.items()],
            "config": count(len(snapshot.config), "value"),
        }

    def _messages(self) -> Iterator[str]:
        yield from (f"lacking: {text}" for text in self.lacking)
        yield from (f"changed: {text}" for text in self.changes)


def put_daily(
    settings: Settings,
    copy: Place,
    generation: Manifest,
    put: Callable[[str, bytes], bool],
    delete: Callable[[Place, list[str]], None],
) -> None:
    """Puts the snapshot of the day that a generation was made on, unless it is there, and deletes
    those older than a year.

    Args:
        settings: the config.
        copy: the root of the copy.
        generation: the generation that was just made.
        put: puts an object into the copy, if absent.
        delete: deletes objects of the copy.

    Raises:
        LakeError, LakeUnreachable: the lake cannot be read, or the copy not be written.
    """
    day = generation.made.astimezone(UTC).date()
    with _lock:
        if _days.get(copy.url) == day:
            return
    there = _dates(copy)
    if day not in there:
        snapshot = of_lake(settings, generation.id)
        data = json.dumps({"format": manifest.FORMAT, **asdict(snapshot)}, ensure_ascii=False)
        put(_path(day), data.encode())
    delete(copy, [_path(known) for known in there if day - known > KEPT])
    with _lock:
        _days[copy.url] = day


def of_lake(settings: Settings, generation: int = 0) -> Metadata:
    """The metadata of a lake as it is now.

    Raises:
        LakeError, LakeUnreachable: it cannot be listed.
    """
    root = settings.lake_root
    tables = {
        TableName(schema, name).label: _table(settings.place(schema, name))
        for schema in store.folders(root)
        if not schema.startswith(("_", "."))
        for name in store.folders(manifest.in_folder(root, schema))
        if not name.startswith(("_", "."))
    }
    records = keys.key_reports(keys.stored_keys(settings)[1])
    return Metadata(
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        bronze=VERSION,
        root=root.url,
        generation=generation,
        tables=tables,
        keys={key.id: (key.table, key.column, key.purpose) for key in records},
        config=fingerprint.readable(settings),
    )


def _table(place: Place) -> TableMetadata:
    try:
        state = log.read(place)
        if state is None:
            return TableMetadata(error="there is no table")
        return TableMetadata(
            id=state.content.metadata.id,
            version=state.version,
            columns=_columns(state.content.metadata.schema),
            partition=state.partition or "",
            properties=dict(state.properties),
        )
    except BronzeError as error:
        return TableMetadata(error=error.message)


def _columns(schema: Any) -> dict[str, str]:
    """The columns of a schema as Delta writes it."""
    document = json.loads(schema) if isinstance(schema, str) else schema
    return {column["name"]: json.dumps(column["type"]).strip('"') for column in document["fields"]}


def report(settings: Settings, at: str = "", to: str = "") -> MetadataReport:
    """Compares a lake with a snapshot of its metadata.

    Args:
        settings: the config.
        at: a time: the newest snapshot of that day or before counts; the newest of all if empty.
        to: the root of the lake to compare; that of the config if empty.

    Raises:
        ConfigError: there is no copy, or no such snapshot.
        FileDamaged, LakeError, LakeUnreachable: the snapshot or the lake cannot be read.
    """
    copy = restore.copy_of(settings)
    days = _dates(copy)
    latest = moment(at).astimezone(UTC).date() if at else date.max
    known = [day for day in days if day <= latest]
    if not known:
        oldest = f"; the oldest is of {days[0]}" if days else ""
        raise ConfigError(
            f"The copy at {copy.url} has no metadata of {at or 'any day'}{oldest}.",
            hint="The first `bronze backup` of a day puts it there.",
        )
    snapshot = _read(copy, known[-1])
    compared = settings.with_lake_at(to) if to else settings
    lacking, changes = list[str](), list[str]()
    for is_lacking, text in _differences(snapshot, of_lake(compared)):
        (lacking if is_lacking else changes).append(text)
    return MetadataReport(
        snapshot,
        compared.lake.root,
        tuple(day.isoformat() for day in days),
        tuple(lacking),
        tuple(changes),
    )


def _path(day: date) -> str:
    return f"{FOLDER}/{day.isoformat()}.json"


def _dates(copy: Place) -> list[date]:
    names = map(_NAME.fullmatch, store.listing(copy, FOLDER))
    return sorted(date.fromisoformat(name[1]) for name in names if name)


def _read(copy: Place, day: date) -> Metadata:
    try:
        document = json.loads(manifest.content(copy, _path(day)))
        tables = {n: TableMetadata(**table) for n, table in document.pop("tables").items()}
        document.pop("format")
        return Metadata(tables=tables, **document)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        raise manifest.damage_error(copy, _path(day), "is not a snapshot of metadata") from None


def _differences(snapshot: Metadata, now: Metadata) -> Iterator[tuple[bool, str]]:
    """How a lake differs from a snapshot: sentences, and whether the lake lacks something."""
    for name, before in snapshot.tables.items():
        after = now.tables.get(name)
        if after is None:
            yield True, f"{name}: there is no such table"
        elif after.error and not before.error:
            yield True, f"{name}: {after.error}"
        elif not before.error:
            yield from ((lacks, f"{name}: {text}") for lacks, text in _changes(before, after))
    for name in now.tables.keys() - snapshot.tables.keys():
        yield False, f"{name}: the table is new"
    for key, use in snapshot.keys.items():
        if key not in now.keys:
            yield True, f"the key {key} is missing ({'.'.join(filter(None, use))})"
    if new := len(now.keys.keys() - snapshot.keys.keys()):
        yield False, f"{count(new, 'key is', 'keys are')} new"
    for place, value in now.config.items():
        if snapshot.config.get(place) != value:
            before_text = json.dumps(snapshot.config.get(place), ensure_ascii=False)
            text = json.dumps(value, ensure_ascii=False)
            yield False, f"config: {place} is {text}, and was {before_text}"
    for place in snapshot.config.keys() - now.config.keys():
        yield False, f"config: {place} is not set any more"


def _changes(before: TableMetadata, after: TableMetadata) -> Iterator[tuple[bool, str]]:
    if after.id != before.id:
        yield True, "it is another table of the same name"
    elif after.version < before.version:
        yield True, f"it is at version {after.version}, and was at {before.version}"
    elif after.version > before.version:
        yield False, f"it is at version {after.version}, and was at {before.version}"
    for column, kind in before.columns.items():
        if column not in after.columns:
            yield True, f"column {column} is missing"
        elif after.columns[column] != kind:
            yield False, f"column {column} is {after.columns[column]}, and was {kind}"
    for column in after.columns.keys() - before.columns.keys():
        yield False, f"column {column} is new"
    if after.partition != before.partition:
        old, new = before.partition or "nothing", after.partition or "nothing"
        yield False, f"it is partitioned by {new}, and was by {old}"
    changed = sorted(
        name
        for name in {*before.properties, *after.properties}
        if before.properties.get(name) != after.properties.get(name)
    )
    if changed:
        yield False, f"properties changed: {', '.join(changed)}"
