"""How a table's rows land: they are read, merged into the files that are there, and committed.

A landing is a course of `bronze.engine`: it hands out tasks, goes on with their results, and ends
with what was done to the table. Whatever it wrote and did not commit is deleted when it fails.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import tenacity

from bronze import compare, failpoint, maintain
from bronze.books import rejected as book
from bronze.config import Settings
from bronze.engine import Course, Task
from bronze.enrich import fingerprint
from bronze.enrich.fingerprint import Fingerprints
from bronze.errors import BronzeError, CommitConflict, Mismatch, SnapshotLost
from bronze.model import DataFile, Known, Origin, Place, Rejected, Stamp, TableResult, Written
from bronze.plan import Plan
from bronze.prepare import Target
from bronze.source.snapshot import Snapshot
from bronze.table import commit, files, history, layout, log, merge, store
from bronze.table.commit import Change
from bronze.table.log import State
from bronze.work import Replacing, replacing, work

GOVERNANCE = "governance"
# So many changes are merged in one go from memory; more are put into a file first.
_IN_MEMORY = 32 * 2**20
# New rows that one task writes.
_INSERT_ROWS = 1_000_000
_TRIES = 6


@dataclass
class Table:
    """A table on its way through a run."""

    target: Target
    origin: Origin
    held: Snapshot
    stamp: Stamp
    readers: int
    plan: Plan | None = None
    error: BronzeError | None = None
    written: list[Written] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def rows(self) -> int:
        """How many rows were read, each counted once; keys alone are no rows."""
        units = self.plan.units if self.plan else ()
        return sum(
            part.rows
            for part in self.written
            if not units[part.unit].keys_only
            and ((known := units[part.unit].known) is None or known.share == 0)
        )

    @property
    def rejected(self) -> list[Rejected]:
        """The values that Delta cannot hold."""
        return [record for part in self.written for record in part.rejected]

    @property
    def size(self) -> int:
        """About how many bytes are read of the source."""
        return sum(unit.estimate for unit in self.plan.units) if self.plan else 0

    @property
    def done(self) -> int:
        """About how many of them have been read."""
        if self.plan is None:
            return 0
        return sum(self.plan.units[part.unit].estimate for part in self.written)


@dataclass(frozen=True)
class Outcome:
    """What a commit did, and of which files it is made."""

    version: int
    inserted: int
    updated: int
    deleted: int
    written: tuple[DataFile, ...]


def landing(settings: Settings, table: Table) -> Course[TableResult]:
    """The course of one table.

    Returns:
        What was done; a failure of this table alone is in it.

    Raises:
        SnapshotLost: the source went away, and with it the state that all tables share.
    """
    try:
        if table.error or table.plan is None:
            return _failed(table, table.error or BronzeError("There is no plan."))
        plan = table.plan
        # The results come back through told() one by one, too: there they are counted.
        yield [Task(work, unit, table.target.label) for unit in plan.units]
        failpoint.reach("read")
        _book_rejected(settings, table)
        failpoint.reach("booked")
        commit.sweep(plan.target.place, time.time())
        land = _loaded if plan.mode == "load" else _merged
        outcome = yield from land(table, plan)
        failpoint.reach("landed")
        compare.forget(plan.target.place)
        notes = plan.notes + (yield from _laid_out(settings, table))
        return _result(table, outcome, notes)
    except BronzeError as error:
        if error.retry and not isinstance(error, CommitConflict) and not table.held.alive():
            raise SnapshotLost(
                f"The source {table.origin.name} went away in the middle of the run:"
                f" {error.message}",
                hint=error.hint,
            ) from error
        return _failed(table, error)


def _loaded(table: Table, plan: Plan) -> Course[Outcome]:
    """All rows become the table's whole content, unless they are already."""
    place, state = plan.target.place, plan.state
    data = [file for part in table.written for file in part.files]
    if state is not None and not plan.settled.rewrite:
        whole = Known(place, state.version, state.files, plan.shape.columns, (), 0)
        ((rows, total),) = yield [Task(compare.total, whole, table.target.label)]
        mine = reduce(fingerprint.added, (part.sum for part in table.written), 0)
        if (rows, total) == (table.rows, mine):
            version = commit.commit(
                place,
                state,
                Change("WRITE"),
                _facts(table),
                shape=plan.shape,
                reached=plan.reached,
            )
            store.delete(place, [file.path for file in data])
            return Outcome(version, 0, 0, 0, ())
    version = commit.replace(
        place, plan.shape, data, plan.reached, _facts(table, inserted=table.rows)
    )
    return Outcome(version, table.rows, 0, 0, tuple(data))


@dataclass(frozen=True)
class _Difference:
    """How the source differs from the table as it was when the plan was made.

    ``live`` is how many rows the table had, ``there`` how many the source has, if all of them
    were looked at.
    """

    changes: tuple[merge.Changes, ...]
    gone: tuple[tuple[Known, Fingerprints], ...]
    live: int = 0
    there: int = 0


def _merged(table: Table, plan: Plan) -> Course[Outcome]:
    """The differences become changes of the table."""
    difference = _difference(table, plan)
    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(CommitConflict),
        stop=tenacity.stop_after_attempt(_TRIES),
        wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
        reraise=True,
    ):
        with attempt:
            state = log.read(plan.target.place)
            if state is None or _moved(state, plan):
                raise CommitConflict(
                    f"Another run has landed table {table.target.label} since this one read it.",
                    hint="Run again; nothing of this run is in that table.",
                )
            land = _versioned if table.target.settings.history else _attempted
            return (yield from land(table, plan, difference, state))
    raise AssertionError("the last attempt raises")


def _moved(state: State, plan: Plan) -> bool:
    """Whether another run of ours has committed since the plan was made."""
    before = plan.state
    names = [name for name, _ in plan.reached.transactions]
    return before is not None and any(
        state.position(name) != before.position(name) for name in names
    )


def _attempted(table: Table, plan: Plan, difference: _Difference, state: State) -> Course[Outcome]:
    changes = difference.changes
    label = table.target.label
    merged: list[merge.Merged] = yield [
        Task(replacing, task, label) for task in _replacements(table, plan, difference, state)
    ]
    failpoint.reach("merged")
    found = merge.joined([one.found for one in merged], changes)
    rewritten = [one for one in merged if one.rewritten]
    feed = [one.feed for one in rewritten if one.feed]
    moved = tuple(one.moved for one in merged if one.moved is not None)
    kept, inserts = _inserts(plan, table.stamp.batch_id, changes, found, moved, bool(feed))
    inserted: list[merge.Inserted] = yield [Task(merge.insert, job, label) for job in inserts]
    quiet = [(one.old, one.file) for one in rewritten if one.file and not one.edits]
    loud = [one for one in rewritten if one.edits or not one.file]
    failpoint.reach("inserted")
    added = [one.file for one in loud if one.file]
    added += [*kept, *(file for one in inserted for file in one.files)]
    feed += [file for one in inserted for file in one.feed]
    fresh = sum(file.rows for file in kept) + sum(one.rows for one in inserted)
    updated, deleted = (sum(getattr(one, n) for one in merged) for n in ("updated", "deleted"))
    _prove(plan, merged)
    if plan.state and state.version == plan.state.version:
        revived = sum(one.revived for one in merged)
        _prove_count(table, difference, fresh + revived - deleted)
    change = Change("MERGE", added, [one.old for one in loud], feed, quiet=quiet)
    counts = {"inserted": fresh, "updated": updated, "deleted": deleted}
    try:
        version = commit.commit(
            plan.target.place,
            state,
            change,
            _facts(table, **counts),
            shape=plan.shape,
            reached=plan.reached,
        )
    except BaseException:
        spared = {change.path for change in changes if isinstance(change, DataFile)}
        mine = (*added, *feed, *(new for _, new in quiet))
        paths = [file.path for file in mine if file.path not in spared]
        with suppress(BronzeError):
            store.delete(plan.target.place, paths)
        raise
    landed = {file.path for file in added}
    staged = [change.path for change in changes if isinstance(change, DataFile)]
    with suppress(BronzeError):
        store.delete(plan.target.place, [path for path in staged if path not in landed])
    failpoint.reach("cleaned")
    written = (*added, *feed, *(new for _, new in quiet))
    return Outcome(version, fresh, updated, deleted, written)


def _versioned(table: Table, plan: Plan, difference: _Difference, state: State) -> Course[Outcome]:
    """The differences become versions of their own, behind those that are there."""
    changes, label, place = difference.changes, table.target.label, plan.target.place
    gone = [
        found
        for known, prints in difference.gone
        if len(prints)
        for found in compare.last_positions(replace(known, files=state.files), prints)
    ]
    job = history.Append(
        place=place,
        stored=state.files,
        layout=plan.shape.columns,
        key=plan.key,
        stats=plan.shape.stats,
        stamp=table.stamp,
        changes=changes,
        gone=tuple(gone),
        dates_of=plan.dates_of,
    )
    done: list[history.Appended] = []
    if changes or gone:
        done = yield [Task(history.append, job, label)]
    added = [file for one in done for file in one.files]
    inserted, updated, deleted = (
        sum(getattr(one, kind) for one in done) for kind in ("inserted", "updated", "deleted")
    )
    counts = {"inserted": inserted, "updated": updated, "deleted": deleted}
    rewritten: list[merge.Merged] = []
    if plan.settled.rewrite:
        plain = _Difference((), ())
        tasks = _replacements(table, plan, plain, state)
        rewritten = yield [Task(replacing, task, label) for task in tasks]
    quiet = [(one.old, one.file) for one in rewritten if one.file]
    _prove(plan, rewritten)
    change = Change("WRITE", added, parameters={"mode": "Append"}, quiet=quiet)
    try:
        version = commit.commit(
            place, state, change, _facts(table, **counts), shape=plan.shape, reached=plan.reached
        )
    except BaseException:
        with suppress(BronzeError):
            store.delete(place, [file.path for file in (*added, *(new for _, new in quiet))])
        raise
    with suppress(BronzeError):
        store.delete(place, [c.path for c in changes if isinstance(c, DataFile)])
    return Outcome(version, inserted, updated, deleted, (*added, *(new for _, new in quiet)))


def _difference(table: Table, plan: Plan) -> _Difference:
    """What the units have found."""
    changes: list[merge.Changes] = [f for part in table.written for f in part.files]
    frames: list[pl.DataFrame] = []
    for part in table.written:
        frames += [] if part.frame is None else [part.frame]
        if sum(frame.estimated_size() for frame in frames) > _IN_MEMORY:
            changes += _spilled(table, plan, frames)
            frames = []
    changes += [pl.concat(frames)] if frames else []
    places: dict[Known, npt.NDArray[np.uint8]] = {}
    for part in table.written:
        known = plan.units[part.unit].known
        if known is not None:
            mask = np.frombuffer(part.seen, np.uint8)
            places[known] = places[known] | mask if known in places else mask
    gone, live = [], 0
    for known, mask in places.items():
        held = compare.known(known)
        seen = np.unpackbits(mask, count=len(held)).astype(np.bool_)
        gone.append((known, compare.unseen(held, seen)))
        live += compare.distinct(held)
    there = sum(
        part.rows
        for part in table.written
        if (share := plan.units[part.unit].known) is not None and share.share == 0
    )
    return _Difference(tuple(changes), tuple(gone), live, there)


def _spilled(table: Table, plan: Plan, frames: Sequence[pl.DataFrame]) -> list[DataFile]:
    file = files.write(frames, plan.target.place, table.stamp.batch_id, plan.shape.stats)
    return [file] if file else []


def _replacements(
    table: Table, plan: Plan, difference: _Difference, state: State
) -> Iterator[Replacing]:
    """A task for each file that may have to be written anew."""
    place, changes = plan.target.place, difference.changes
    looking = any(len(gone) for _, gone in difference.gone)
    anew = plan.settled.rewrite
    wanted = (
        state.files if looking or anew else merge.candidates(state.files, changes, plan.key, place)
    )
    for file in wanted:
        job = merge.Merge(
            place=place,
            file=file,
            layout=plan.shape.columns,
            key=plan.key,
            stats=plan.shape.stats,
            stamp=table.stamp,
            changes=changes,
            on_delete=plan.target.settings.on_delete,
            anew=anew,
            dates_of=plan.dates_of,
        )
        yield Replacing(job, difference.gone)


def _inserts(
    plan: Plan,
    batch_id: str,
    changes: Sequence[merge.Changes],
    found: Sequence[bytes],
    moved: tuple[pl.DataFrame, ...],
    feed: bool,
) -> tuple[list[DataFile], list[merge.Insert]]:
    """The staged files that are the table's as they are, and jobs for the other new rows."""
    kept: list[DataFile] = []
    jobs: list[merge.Insert] = []
    group: list[tuple[merge.Changes, bytes]] = []
    size = 0

    def flush(*moved: pl.DataFrame) -> None:
        if group or moved:
            jobs.append(
                merge.Insert(
                    place=plan.target.place,
                    layout=plan.shape.columns,
                    stats=plan.shape.stats,
                    batch_id=batch_id,
                    changes=tuple(change for change, _ in group),
                    found=tuple(mask for _, mask in group),
                    feed=feed,
                    moved=moved,
                    dates_of=plan.dates_of,
                )
            )
        group.clear()

    for change, mask in zip(changes, found, strict=True):
        height = change.rows if isinstance(change, DataFile) else change.height
        new = len(merge.unfound(mask, height))
        if isinstance(change, DataFile) and new == height and not feed and not plan.dates_of:
            kept.append(change)
        elif new:
            group.append((change, mask))
            size += new
            if size >= _INSERT_ROWS:
                flush()
                size = 0
    flush(*moved)
    return kept, jobs


def _prove(plan: Plan, merged: Sequence[merge.Merged]) -> None:
    """A rewritten file has the rows of the old one, less those that were removed."""
    removes = plan.target.settings.on_delete == "remove"
    for one in merged:
        if not one.rewritten or one.old.rows < 0:
            continue
        rows = one.file.rows if one.file else 0
        rows += one.moved.height if one.moved is not None else 0
        if rows != one.old.rows - (one.deleted if removes else 0):
            raise Mismatch(
                f"A file of {plan.target.name} with {one.old.rows} rows became one with {rows}.",
                hint="Nothing was committed. This is a bug in bronze: report it.",
                table=plan.target.label,
            )


def _prove_count(table: Table, difference: _Difference, growth: int) -> None:
    """The table has as many rows as the source; two with one fingerprint would be told by it."""
    if not difference.gone or table.held.name is None:
        return
    rows = difference.live + growth
    if rows != difference.there:
        raise Mismatch(
            f"Table {table.target.label} has {difference.there} rows, and {rows} would be in"
            " Bronze.",
            hint="Nothing was committed. Run again; if it is said again, report it as a bug.",
            table=table.target.label,
        )


def _facts(table: Table, **counts: int) -> dict[str, Any]:
    return {
        "batch_id": table.stamp.batch_id,
        "source": table.origin.name,
        "table": table.target.label,
        "snapshot": table.held.name,
        "position": table.held.position,
        "loaded_at": table.stamp.loaded_at.isoformat(),
        "mode": table.plan.mode if table.plan else "",
        "rows": table.rows,
        "rejected": len(table.rejected),
        **counts,
    }


def _book_rejected(settings: Settings, table: Table) -> None:
    if not table.rejected:
        return
    place = settings.place(GOVERNANCE, book.NAME)
    frame = book.frame(
        table.rejected,
        stamp=table.stamp,
        source_table=table.target.label,
        target_table=table.target.name,
    )
    file = files.write([frame], place, table.stamp.batch_id, ())
    if file:
        commit.append(place, book.COLUMNS, file, {"batch_id": table.stamp.batch_id})


def discard(place: Place, batch_id: str) -> None:
    """Deletes what was written for a table and will not land; what did land is kept."""
    compare.forget(place)
    with suppress(BronzeError):
        commit.discard(place, batch_id)


def _failed(table: Table, error: BronzeError) -> TableResult:
    table.error = error
    discard(table.target.place, table.stamp.batch_id)
    return TableResult(
        table=table.target.label,
        target=f"{table.target.schema}.{table.target.name}",
        status="failed",
        rows_read=table.rows,
        seconds=time.monotonic() - table.began,
        error=error.failure(),
    )


def _laid_out(settings: Settings, table: Table) -> Course[tuple[str, ...]]:
    """Improves the layout where the table needs it; what hinders that is told, and no failure."""
    if not settings.maintain.auto:
        return ()
    place = table.target.place
    try:
        wish = maintain.wished(settings, table.target.settings)
        state = log.read(place)
        if state is not None and layout.needed(state, wish):
            yield from maintain.improvement(settings, place, wish, table.target.label)
    except BronzeError as error:
        return (f"the layout was not improved: {error.message}",)
    return ()


def _result(table: Table, outcome: Outcome, notes: tuple[str, ...]) -> TableResult:
    moved = outcome.inserted or outcome.updated or outcome.deleted or outcome.written
    same = not moved and table.plan is not None and table.plan.state is not None
    return TableResult(
        table=table.target.label,
        target=f"{table.target.schema}.{table.target.name}",
        status="unchanged" if same else "landed",
        rows_read=table.rows,
        inserted=outcome.inserted,
        updated=outcome.updated,
        deleted=outcome.deleted,
        rejected=len(table.rejected),
        version=outcome.version,
        files=len(outcome.written),
        bytes=sum(file.size for file in outcome.written),
        seconds=time.monotonic() - table.began,
        notes=notes,
    )
