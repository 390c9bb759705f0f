"""Drills the recovery: restores the newest generation of the copy, and shows that it can be used.

A drill restores into a scratch root, verifies all files and hashes at rest, reads all tables,
unwraps all data keys with the master key, decrypts a value, and deletes the root. The wrapped keys
are in the lake, the master key is not: without it a drill fails, as a recovery would.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import polars as pl

from bronze import stopping
from bronze.backup import manifest
from bronze.backup.manifest import Manifest
from bronze.backup.recovery import restore
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import files, log, store
from bronze.delta.storage import client
from bronze.errors import BronzeError, ConfigError, LakeError, Stopped
from bronze.governance import actor, audit, records, writer
from bronze.governance.audit import Event
from bronze.governance.tables import drills
from bronze.governance.tables.drills import DrillOutcome, DrillRecord
from bronze.model.locations import Place
from bronze.model.results import Failure, Shown
from bronze.postgres.copy.rows_reader import dtype
from bronze.protection import keyring, keys, protect
from bronze.protection.lake_table import ProtectedTable, protected_table
from bronze.tables import lake
from bronze.verify import verify
from bronze.version import VERSION

# What a drill that was killed has left is deleted by a later one.
_LEFT_AFTER = timedelta(days=1)
_NAME_FORMAT = "drill-%Y%m%dT%H%M%SZ"
_MOST_NAMES = 5


@dataclass(frozen=True, repr=False)
class DrillResult(Shown):
    """The result of a drill: its record, the seconds of its ``stages``, the scratch ``root``, and
    ``unrecorded``, why the record is not in ``governance.drills``. ``notes`` are for the user.
    """

    _items: ClassVar[str] = ""

    record: DrillRecord
    stages: tuple[tuple[str, float], ...]
    root: str
    unrecorded: Failure | None = None
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: passed within rto and rpo; 1: not, or it could not be recorded."""
        return int(self.record.result != "passed" or self.unrecorded is not None)

    def _summary(self) -> Iterable[str]:
        return [f"generation {self.record.generation}", self.record.result]

    def _row(self, item: DrillResult) -> Mapping[str, Any]:
        record = item.record
        return {
            "result": record.result,
            "copy of": record.made,
            "recovered in": f"{record.recovery_seconds:.1f} s (rto {record.rto_seconds:,} s)",
            "lost": f"{record.lost_seconds:.1f} s (rpo {record.rpo_seconds:,} s)",
            "took": ", ".join(f"{name} in {seconds:.1f} s" for name, seconds in item.stages),
            "tables": record.tables,
            "rows": record.rows,
            "objects": record.objects,
            "bytes": record.bytes,
            "decrypted": record.decrypted,
            "scratch root": item.root,
        }

    def _messages(self) -> Iterator[str]:
        if self.record.message:
            yield self.record.message
        yield from super()._messages()


@dataclass
class _Figures:
    """What a drill has found out so far."""

    generation: Manifest | None = None
    lost: float = 0.0
    tables: int = 0
    objects: int = 0
    bytes: int = 0
    rows: int = 0
    decrypted: str = ""
    stages: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Takes the time of a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.stages.append((name, round(time.monotonic() - began, 3)))


def drill(settings: Settings, to: str = "", *, stop: threading.Event | None = None) -> DrillResult:
    """Restores the newest generation, uses it, and deletes it again.

    Args:
        settings: the config.
        to: a root for scratch lakes instead of ``[backup] scratch``.
        stop: ends the drill when it is set; what it has restored is deleted.

    Raises:
        ConfigError: there is no copy, or the scratch root cannot be used.
        Stopped: it was stopped.
    """
    base = _scratch(settings, to)
    began, started = datetime.now(UTC), time.monotonic()
    name = f"{began.strftime(_NAME_FORMAT)}-{uuid4().hex[:8]}"
    figures, message = _Figures(), ""
    scratch = settings.with_lake_at(f"{base}/{name}")
    _delete_left(settings.with_lake_at(base).lake_root, began)
    try:
        with stopping.scope(stop):
            _use(settings, scratch, figures, stop)
    except (ConfigError, Stopped) as error:
        # Without a copy there is nothing to drill.
        if figures.generation is None or isinstance(error, Stopped):
            raise
        message = f"{error.message} {error.hint}".strip()
    except BronzeError as error:
        message = f"{error.message} {error.hint}".strip()
    finally:
        seconds = time.monotonic() - started
        with stopping.unstoppable(), figures.stage("deleted"):
            notes = tuple(_delete(scratch.lake_root))
    record = _record(settings, figures, began, seconds, message)
    unrecorded = _enter(settings, record)
    return DrillResult(record, tuple(figures.stages), scratch.lake.root, unrecorded, notes)


def _scratch(settings: Settings, to: str) -> str:
    if to or settings.backup.scratch:
        return (to or settings.backup.scratch).rstrip("/")
    if not settings.backup.root:
        raise ConfigError(
            "The config has no [backup]: there is no copy to restore.",
            hint='Name it: [backup] root = "s3://another-bucket/lake"',
        )
    return f"{settings.backup.root.rstrip('/')}-drill"


def _use(
    settings: Settings, scratch: Settings, figures: _Figures, stop: threading.Event | None
) -> None:
    """Restores the newest generation and uses it.

    Raises:
        BronzeError: something of it cannot be used.
    """
    copy = restore.copy_of(settings)
    figures.generation = restore.generation_of(copy)
    figures.lost = _lost_seconds(settings, figures.generation)
    with figures.stage("restored"):
        done = restore.restore(
            settings, scratch.lake.root, at=str(figures.generation.id), stop=stop
        )
    figures.tables, figures.objects, figures.bytes = len(done.tables), done.objects, done.bytes
    for table in done.tables:
        if table.error:
            raise LakeError(f"Table {table.target} is not restored: {table.error.message}")
    with figures.stage("verified"):
        _verify(scratch, stop)
    with figures.stage("read"):
        figures.rows = sum(_rows_of(scratch, figures.generation))
    with figures.stage("decrypted"):
        figures.decrypted = _decrypt(scratch)


def _verify(scratch: Settings, stop: threading.Event | None) -> None:
    result = verify.verify(scratch, at_rest=True, stop=stop)
    wrong = [table for table in result.tables if table.status != "equal"]
    if wrong:
        names = ", ".join(table.target for table in wrong[:_MOST_NAMES])
        why = wrong[0].error.message if wrong[0].error else "files or hashes are not as written"
        raise LakeError(f"The restored tables are not whole ({names}): {why}")


def _rows_of(scratch: Settings, generation: Manifest) -> Iterator[int]:
    """Reads all rows of each table with another library than the one that wrote them."""
    for table in generation.tables:
        place = scratch.place(table.schema, table.name)
        with log.mapped_errors(place, "read"):
            rows = pl.scan_delta(client.delta_table(place))
            # No column of a Delta table has an empty name.
            counts = rows.select(pl.all().null_count(), pl.len().alias(""))
            counted = counts.collect(engine="streaming")
        if table.schema != GOVERNANCE:
            yield int(counted[""][0])


def _decrypt(scratch: Settings) -> str:
    """Unwraps all keys, and decrypts a value; the name of its column.

    Raises:
        ConfigError: the master key is missing, or another one.
        Mismatch: a value cannot be decrypted.
    """
    used = keys.current_keys(keys.stored_keys(scratch)[1])
    for versions in used.values():
        for key in versions:
            # A key that this process has unwrapped before would prove nothing.
            keyring.unwrap.__wrapped__(key, scratch.masters)
    for found in lake.tables_of(scratch, scratch.lake.schema_):
        if not found.is_bronze:
            continue
        table = protected_table(scratch, found.target)
        for column in table.protection.columns:
            if column.protect.method in protect.REVEALED:
                stored = _first_value(table, column.column)
                if stored.len():
                    masters, kind = table.protection.masters, dtype(column.kind)
                    protect.reveal_values(stored, column, masters, kind)
                    return f"{table.name}.{column.column}"
    return ""


def _first_value(table: ProtectedTable, name: str) -> pl.Series:
    """The first value of a column that is not NULL, or none."""
    values = pl.Series(name, [], pl.String)
    for file in table.state.files:
        parquet = files.open_parquet(table.state.place, file)
        for _, part in files.parts(parquet, table.state.columns, [name]):
            values = pl.DataFrame(part)[name].drop_nulls().head(1)
            if values.len():
                return values
    return values


def _lost_seconds(settings: Settings, generation: Manifest) -> float:
    """How many seconds of changes the copy lacks: those since the generation, if a table of the
    lake has changed since, or the lake cannot be read.
    """
    since = max(0.0, (datetime.now(UTC) - generation.made).total_seconds())
    copied = {table.table.label: table.version for table in generation.tables}
    try:
        for table in lake.tables_of(settings, settings.lake.schema_):
            if table.state is None or table.state.version > copied.get(table.target, -1):
                return since
    except BronzeError:
        return since
    return 0.0 if any(name.startswith(settings.lake.schema_) for name in copied) else since


def _record(
    settings: Settings, figures: _Figures, began: datetime, seconds: float, message: str
) -> DrillRecord:
    limits, generation = settings.backup, figures.generation
    result: DrillOutcome = "passed"
    if message:
        result = "failed"
    elif seconds > limits.rto:
        result = "too slow"
        message = f"The recovery took {seconds:.0f} s, and rto is {limits.rto} s."
    elif figures.lost > limits.rpo:
        result = "too old"
        message = (
            f"The newest generation lacks the changes of {figures.lost:.0f} s, and rpo is"
            f" {limits.rpo} s."
        )
    return DrillRecord(
        drill_id=uuid4().hex,
        began=began,
        ended=datetime.now(UTC),
        result=result,
        message=message,
        generation=generation.id if generation else 0,
        made=generation.made if generation else None,
        recovery_seconds=round(seconds, 3),
        lost_seconds=round(figures.lost, 3),
        rto_seconds=limits.rto,
        rpo_seconds=limits.rpo,
        tables=figures.tables,
        objects=figures.objects,
        bytes=figures.bytes,
        rows=figures.rows,
        decrypted=figures.decrypted,
        actor=actor.user(),
        host=actor.host(),
        bronze_version=VERSION,
    )


def _enter(settings: Settings, record: DrillRecord) -> Failure | None:
    """Enters a drill in the lake's ``governance.drills`` and its audit log; why that failed."""
    details = {
        "generation": record.generation,
        "recovery_seconds": record.recovery_seconds,
        "lost_seconds": record.lost_seconds,
        **({"message": record.message} if record.message else {}),
    }
    try:
        # A lake that was lost must not begin anew with nothing but its drills.
        if not store.folders(settings.place(settings.lake.schema_, "")):
            raise LakeError(
                f"There is no lake at {settings.lake.root} to record the drill in.",
                hint="`bronze restore` restores it.",
            )
        place = settings.place(GOVERNANCE, drills.NAME)
        writer.append_rows(place, drills.COLUMNS, drills.frame(record), record.drill_id)
        audit.record_events(settings, [Event("drill", "", record.result, details)])
    except BronzeError as error:
        return error.failure()
    return None


def last(settings: Settings) -> DrillRecord | None:
    """The newest drill in the lake, None if there was none.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    rows = records.rows_of(settings.place(GOVERNANCE, drills.NAME), drills.COLUMNS)
    known: Sequence[DrillRecord] = drills.records(rows) if rows is not None else ()
    return known[-1] if known else None


# The scratch root


def _delete(root: Place) -> Iterator[str]:
    """Deletes a lake that a drill has restored; why that failed, in a sentence."""
    try:
        if client.is_local(root):
            folder = Path(root.url)
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                folder.parent.rmdir()
        else:
            store.delete(root, store.listing(root))
    except LakeError as error:
        yield f"The scratch root {root.url} could not be deleted: {error.message}"


def _delete_left(base: Place, now: datetime) -> None:
    """Deletes what drills have left that were killed long ago."""
    with suppress(LakeError):
        for name in store.folders(base):
            try:
                made = datetime.strptime(name.rpartition("-")[0], _NAME_FORMAT)
            except ValueError:
                continue
            if now - made.replace(tzinfo=UTC) > _LEFT_AFTER:
                list(_delete(manifest.in_folder(base, name)))
