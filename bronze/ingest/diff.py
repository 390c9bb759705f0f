"""The difference between the source and a table, and the edit of the table that makes it none.

An edit is a course of `bronze.execution.executors` that ends with what there is to commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze import failpoint, portion
from bronze.delta import files
from bronze.delta.commit import Change
from bronze.delta.log import State
from bronze.delta.write import history, insert, merge
from bronze.delta.write.changes import Changes
from bronze.errors import Mismatch
from bronze.execution.executors import Task, Workflow
from bronze.ingest.plan import Plan
from bronze.ingest.worker import FileMerge, merge_file
from bronze.model.files import DataFile, Stored
from bronze.model.stamp import Stamp
from bronze.model.units import Known, Written
from bronze.rows.fingerprint import Fingerprints
from bronze.tables import known_rows

# So many changes are merged in one go from memory; more are put into a file first.
_IN_MEMORY = 32 * 2**20
# New rows that one task writes.
_INSERT_ROWS = 1_000_000


@dataclass(frozen=True)
class Difference:
    """How the source differs from the table as it was when the plan was made.

    ``changes`` are the rows that the table does not hold as they are, ``gone`` what it holds and
    the source has no more (or otherwise); ``deletes`` are the keys of such rows, and with
    ``emptied`` they are all that are not among the changes. ``live`` is how many rows the table
    had, ``there`` how many the source has, where all of them were looked at.
    """

    changes: tuple[Changes, ...]
    gone: tuple[tuple[Known, Fingerprints], ...] = ()
    live: int = 0
    there: int = 0
    deletes: tuple[Changes, ...] = ()
    emptied: bool = False

    @property
    def staged(self) -> tuple[DataFile, ...]:
        """The changes that lie in files."""
        both = (*self.changes, *self.deletes)
        return tuple(change for change in both if isinstance(change, DataFile))


@dataclass(frozen=True)
class Edit:
    """What there is to commit. ``growth`` is by how many the table's live rows become more."""

    change: Change
    inserted: int
    updated: int
    deleted: int
    growth: int

    @property
    def written(self) -> tuple[DataFile, ...]:
        """All files that the commit needs."""
        rewritten = (new for _, new in self.change.quiet)
        return (*self.change.added, *self.change.feed, *rewritten)


def difference_of(plan: Plan, stamp: Stamp, written: Sequence[Written]) -> Difference:
    """What the units of a plan have found.

    Raises:
        LakeError, LakeUnreachable: the changes are too many for memory, and cannot be written.
    """
    changes: list[Changes] = [f for part in written for f in part.files]
    frames: list[pl.DataFrame] = []
    for part in written:
        frames += [] if part.frame is None else [part.frame]
        if portion.size_of(frames) > _IN_MEMORY:
            changes += _spill(plan, stamp, frames)
            frames = []
    changes += [pl.concat(frames)] if frames else []
    places: dict[Known, npt.NDArray[np.uint8]] = {}
    for part in written:
        known = plan.units[part.unit].known
        if known is not None:
            mask = np.frombuffer(part.seen, np.uint8)
            places[known] = places[known] | mask if known in places else mask
    gone, live = [], 0
    if plan.target.settings.deletes == "ignore":
        places = {}
    for known, mask in places.items():
        held = known_rows.known(known)
        seen = np.unpackbits(mask, count=len(held)).astype(np.bool_)
        gone.append((known, known_rows.unseen(held, seen)))
        live += known_rows.distinct(held)
    there = sum(
        part.rows
        for part in written
        if (share := plan.units[part.unit].known) is not None and share.share == 0
    )
    return Difference(tuple(changes), tuple(gone), live, there)


def _spill(plan: Plan, stamp: Stamp, frames: Sequence[pl.DataFrame]) -> list[DataFile]:
    file = files.write(frames, plan.target.place, stamp.batch_id, plan.shape.stats)
    return [file] if file else []


def edit_table(plan: Plan, stamp: Stamp, difference: Difference, state: State) -> Workflow[Edit]:
    """The differences become changes of the rows that are there.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read or written.
        Mismatch: a file has not the rows that it should have.
    """
    if plan.target.settings.history:
        return (yield from _append_versions(plan, stamp, difference, state))
    changes, label = difference.changes, plan.target.label
    merged: list[merge.Merged] = yield [
        Task(merge_file, task, label) for task in _merge_tasks(plan, stamp, difference, state.files)
    ]
    _check_row_counts(plan, merged)
    failpoint.reach("merged")
    known = insert.joined([one.found for one in merged], changes)
    loud = [one for one in merged if one.rewritten and (one.edits or not one.file)]
    feed = [one.feed for one in loud if one.feed]
    moved = tuple(one.moved for one in merged if one.moved is not None)
    kept, jobs = _insert_jobs(plan, stamp.batch_id, changes, known, moved, bool(feed))
    inserted: list[insert.Inserted] = yield [Task(insert.insert, job, label) for job in jobs]
    failpoint.reach("inserted")
    added = [one.file for one in loud if one.file]
    added += [*kept, *(file for one in inserted for file in one.files)]
    feed += [file for one in inserted for file in one.feed]
    new = sum(file.rows for file in kept) + sum(one.rows for one in inserted)
    deleted = sum(one.deleted for one in merged)
    return Edit(
        Change("MERGE", added, [one.old for one in loud], feed, quiet=_unchanged_rewrites(merged)),
        inserted=new,
        updated=sum(one.updated for one in merged),
        deleted=deleted,
        growth=new + sum(one.revived for one in merged) - deleted,
    )


def _unchanged_rewrites(merged: Sequence[merge.Merged]) -> list[tuple[Stored, DataFile]]:
    """Files that were written anew though no row has changed."""
    return [(one.old, one.file) for one in merged if one.file and not one.edits]


def _append_versions(
    plan: Plan, stamp: Stamp, difference: Difference, state: State
) -> Workflow[Edit]:
    """The differences become versions of their own, behind those that are there."""
    changes, label, place = difference.changes, plan.target.label, plan.target.place
    gone = [
        found
        for known, prints in difference.gone
        if len(prints)
        for found in known_rows.last_positions(replace(known, files=state.files), prints)
    ]
    job = history.Append(
        place=place,
        stored=state.files,
        layout=plan.shape.columns,
        key=plan.key,
        stats=plan.shape.stats,
        stamp=stamp,
        changes=changes,
        gone=tuple(gone),
        dates_of=plan.dates_of,
        doubting=plan.doubting,
    )
    done: list[history.Appended] = []
    if changes or gone:
        done = yield [Task(history.append, job, label)]
    rewritten: list[merge.Merged] = []
    if plan.contract.rewrite:
        tasks = _merge_tasks(plan, stamp, Difference(()), state.files)
        rewritten = yield [Task(merge_file, task, label) for task in tasks]
    _check_row_counts(plan, rewritten)
    failpoint.reach("inserted")
    added = [file for one in done for file in one.files]
    inserted, updated, deleted = (
        sum(getattr(one, kind) for one in done) for kind in ("inserted", "updated", "deleted")
    )
    change = Change(
        "WRITE", added, parameters={"mode": "Append"}, quiet=_unchanged_rewrites(rewritten)
    )
    return Edit(change, inserted, updated, deleted, inserted - deleted)


def _merge_tasks(
    plan: Plan, stamp: Stamp, difference: Difference, stored: Sequence[Stored]
) -> Iterator[FileMerge]:
    """A task for each file that may have to be written anew."""
    place, changes = plan.target.place, difference.changes
    looking = difference.emptied or any(len(gone) for _, gone in difference.gone)
    anew = plan.contract.rewrite
    keys = (*changes, *difference.deletes)
    wanted = stored if looking or anew else merge.candidates(stored, keys, plan.key, place)
    for file in wanted:
        job = merge.Merge(
            place=place,
            file=file,
            layout=plan.shape.columns,
            key=plan.key,
            stats=plan.shape.stats,
            stamp=stamp,
            changes=changes,
            deletes=difference.deletes,
            emptied=difference.emptied,
            on_delete=plan.target.settings.on_delete,
            anew=anew,
            dates_of=plan.dates_of,
            doubting=plan.doubting,
        )
        yield FileMerge(job, difference.gone)


def _insert_jobs(
    plan: Plan,
    batch_id: str,
    changes: Sequence[Changes],
    found: Sequence[bytes],
    moved: tuple[pl.DataFrame, ...],
    feed: bool,
) -> tuple[list[DataFile], list[insert.Insert]]:
    """The staged files that are the table's as they are, and jobs for the other new rows."""
    kept: list[DataFile] = []
    jobs: list[insert.Insert] = []
    group: list[tuple[Changes, bytes]] = []
    size = 0

    def flush(*moved: pl.DataFrame) -> None:
        if group or moved:
            jobs.append(
                insert.Insert(
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
        new = len(insert.unfound(mask, height))
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


def _check_row_counts(plan: Plan, merged: Sequence[merge.Merged]) -> None:
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
