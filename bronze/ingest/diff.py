"""The difference between the source and a Bronze table, and the files that apply it.

`difference_of` gathers what the units of a plan read. `edit_table` is a workflow of
`bronze.execution.executors` that merges a difference into the table's files, and returns what to
commit.
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
from bronze.delta.read import deletion_vectors
from bronze.delta.schema import VECTORS
from bronze.delta.write import history, insert, merge
from bronze.delta.write.changes import Changes, height
from bronze.delta.write.merge_job import Merge, Merged
from bronze.errors import Mismatch
from bronze.execution.executors import Task, Workflow
from bronze.ingest.plan import Plan
from bronze.ingest.worker import FileMerge, merge_file
from bronze.model.files import DeletionVector, StoredFile, WrittenFile
from bronze.model.stamp import RowStamp
from bronze.model.units import KnownRows, Unit, UnitResult
from bronze.printable import count
from bronze.rows.fingerprint import Fingerprints
from bronze.tables import known_rows

# How many new rows one task writes.
_INSERT_ROWS = 1_000_000


@dataclass(frozen=True)
class Difference:
    """How the source differs from the Bronze table as it was when the plan was made.

    ``changes`` are new and updated rows. ``missing`` are fingerprints of rows that the Bronze table
    has and the source has not, or has with other values; ``deletes`` are keys of deleted rows, and
    with ``delete_others`` every row that is not among the changes is deleted. Where all rows were
    read, ``bronze_rows`` and ``source_rows`` count the live rows of the table and of the source.
    """

    changes: tuple[Changes, ...]
    missing: tuple[tuple[KnownRows, Fingerprints], ...] = ()
    bronze_rows: int = 0
    source_rows: int = 0
    deletes: tuple[Changes, ...] = ()
    delete_others: bool = False

    @property
    def staged_files(self) -> tuple[WrittenFile, ...]:
        """The files that hold changes until they are merged."""
        return tuple(
            change for change in (*self.changes, *self.deletes) if isinstance(change, WrittenFile)
        )


@dataclass(frozen=True)
class Edit:
    """What to commit. ``growth`` is how many live rows the table gains, less those it loses;
    ``vector_file`` has the deletion vectors of the change.
    """

    change: Change
    inserted: int
    updated: int
    deleted: int
    growth: int
    vector_file: WrittenFile | None = None

    @property
    def commit_files(self) -> tuple[WrittenFile, ...]:
        """All files that the commit needs."""
        rewritten = (new for _, new in self.change.quiet)
        vectors = [self.vector_file] if self.vector_file else []
        return (*self.change.added, *self.change.feed, *rewritten, *vectors)


def difference_of(
    plan: Plan, stamp: RowStamp, results: Sequence[UnitResult], in_memory: int
) -> Difference:
    """The difference that the units of a plan read; changes beyond ``in_memory`` are in files.

    Raises:
        LakeError, LakeUnreachable: the changes are too large for the memory, and cannot be written.
    """
    changes = _changes(plan, stamp, results, in_memory)
    source_rows = sum(result.rows for result in results if _is_first_share(plan, result))
    if plan.target.settings.deletes == "ignore":
        return Difference(changes, source_rows=source_rows)
    missing: list[tuple[KnownRows, Fingerprints]] = []
    bronze_rows = 0
    for known, mask in _seen_masks(plan, results).items():
        fingerprints = known_rows.index_of(known)
        seen = np.unpackbits(mask, count=len(fingerprints)).astype(np.bool_)
        missing.append((known, known_rows.unmatched_fingerprints(fingerprints, seen)))
        bronze_rows += known_rows.count_distinct(fingerprints)
    return Difference(changes, tuple(missing), bronze_rows, source_rows)


def _changes(
    plan: Plan, stamp: RowStamp, results: Sequence[UnitResult], in_memory: int
) -> tuple[Changes, ...]:
    """The new and updated rows of all units, in files as soon as they are too large for memory."""
    changes: list[Changes] = [file for result in results for file in result.files]
    frames: list[pl.DataFrame] = []
    for result in results:
        frames += [] if result.frame is None else [result.frame]
        if portion.size_of(frames) > in_memory:
            changes += _spill(plan, stamp, frames)
            frames = []
    changes += [pl.concat(frames)] if frames else []
    return tuple(changes)


def _spill(plan: Plan, stamp: RowStamp, frames: Sequence[pl.DataFrame]) -> list[WrittenFile]:
    file = files.write(frames, plan.target.place, stamp.batch_id, plan.shape.stats)
    return [file] if file else []


def _is_first_share(plan: Plan, result: UnitResult) -> bool:
    """Whether a unit compared its rows with the first share of the table's fingerprints: each of
    its rows is read once for every share.
    """
    known = plan.units[result.unit].known
    return known is not None and known.share == 0


class SeenMasks:
    """Which fingerprints of a table any of its ``units`` saw, as the results come in.

    Each result has a bit for each fingerprint of its share of the table: all together would take
    more memory than the table's index, many times over.
    """

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = units
        self._masks: dict[tuple[str, ...], dict[int, npt.NDArray[np.uint8]]] = {}

    def absorb(self, result: UnitResult) -> UnitResult:
        """The result; of those with the same share, the first one has what all of them saw."""
        known = self._units[result.unit].known
        if known is None or not result.seen:
            return result
        masks = self._masks.setdefault(known.key, {})
        mask = np.frombuffer(result.seen, np.uint8)
        if known.share in masks:
            masks[known.share] |= mask
            return replace(result, seen=b"")
        masks[known.share] = mask.copy()
        return replace(result, seen=masks[known.share].data)


def _seen_masks(
    plan: Plan, results: Sequence[UnitResult]
) -> dict[KnownRows, npt.NDArray[np.uint8]]:
    """For each share of the table's fingerprints the packed bits of those that any unit saw."""
    masks: dict[KnownRows, npt.NDArray[np.uint8]] = {}
    for result in results:
        known = plan.units[result.unit].known
        if known is not None:
            mask = np.frombuffer(result.seen, np.uint8)
            if not len(masks.get(known, ())):
                masks[known] = mask
            elif len(mask):
                masks[known] = masks[known] | mask
    return masks


def edit_table(plan: Plan, stamp: RowStamp, difference: Difference, state: State) -> Workflow[Edit]:
    """Applies a difference to the files of the Bronze table, for a commit on top of ``state``.

    Raises:
        LakeError, LakeUnreachable: a file cannot be read or written.
        Mismatch: a rewritten file does not have the expected number of rows.
    """
    if plan.target.settings.history:
        return (yield from _append_versions(plan, stamp, difference, state))
    merged = yield from _merge_files(plan, stamp, difference, state)
    failpoint.reach("merged")
    changed = [m for m in merged if m.rewritten and (m.edits or not m.file)]
    feed = [m.feed for m in changed if m.feed]
    has_feed = bool(feed) or any(m.fed is not None for m in changed)
    adopted, jobs = _insert_jobs(plan, stamp, difference.changes, merged, has_feed)
    inserted: list[insert.Inserted] = yield [
        Task(insert.insert, job, plan.target.label) for job in jobs
    ]
    failpoint.reach("inserted")
    added = [m.file for m in changed if m.file]
    added += [*adopted, *(file for result in inserted for file in result.files)]
    feed += [file for result in inserted for file in result.feed]
    new_rows = sum(file.rows for file in adopted) + sum(result.rows for result in inserted)
    deleted = sum(m.deleted for m in merged)
    replaced = [m.old for m in changed]
    vector_file, marked = _write_vectors(plan, changed)
    quiet = _unchanged_rewrites(merged)
    return Edit(
        Change("MERGE", added, replaced, feed, quiet=quiet, marked=marked),
        inserted=new_rows,
        updated=sum(m.updated for m in merged),
        deleted=deleted,
        growth=new_rows + sum(m.revived for m in merged) - deleted,
        vector_file=vector_file,
    )


def _write_vectors(
    plan: Plan, merged: Sequence[Merged]
) -> tuple[WrittenFile | None, list[tuple[StoredFile, DeletionVector]]]:
    """Writes the deletion vectors of files that stay in the table into one file."""
    old = [m.old for m in merged if m.vector]
    if not old:
        return None, []
    file, vectors = deletion_vectors.write(
        plan.target.place, [m.vector for m in merged if m.vector]
    )
    return file, list(zip(old, vectors, strict=True))


def _append_versions(
    plan: Plan, stamp: RowStamp, difference: Difference, state: State
) -> Workflow[Edit]:
    """Appends the changed rows as new versions to a table that keeps history."""
    deleted_rows = [
        positions
        for known, fingerprints in difference.missing
        if len(fingerprints)
        for positions in known_rows.last_positions(replace(known, files=state.files), fingerprints)
    ]
    job = history.Append(
        into=plan.destination(stamp),
        stored=state.files,
        changes=difference.changes,
        gone=tuple(deleted_rows),
        doubting=plan.doubting,
    )
    appended = history.Appended((), 0, 0, 0)
    if difference.changes or deleted_rows:
        (appended,) = yield [Task(history.append, job, plan.target.label)]
    rewritten: list[Merged] = []
    if plan.contract.rewrite:
        rewritten = yield from _merge_files(plan, stamp, Difference(()), state)
    failpoint.reach("inserted")
    change = Change(
        "WRITE",
        appended.files,
        parameters={"mode": "Append"},
        quiet=_unchanged_rewrites(rewritten),
    )
    growth = appended.inserted - appended.deleted
    return Edit(change, appended.inserted, appended.updated, appended.deleted, growth)


def _merge_files(
    plan: Plan, stamp: RowStamp, difference: Difference, state: State
) -> Workflow[list[Merged]]:
    """Merges a difference into each file that may hold one of its rows."""
    tasks = _merge_tasks(plan, stamp, difference, state)
    merged: list[Merged] = yield [Task(merge_file, task, plan.target.label) for task in tasks]
    _check_row_counts(plan, merged)
    return merged


def _merge_tasks(
    plan: Plan, stamp: RowStamp, difference: Difference, state: State
) -> Iterator[FileMerge]:
    """A task for each file that may have to be rewritten."""
    into = plan.destination(stamp)
    stored: Sequence[StoredFile] = state.files
    # The commit that gives the table the feature cannot use it yet.
    uses_vectors = VECTORS in state.content.protocol.writer_features
    rewrite_all = plan.contract.rewrite
    # Only keys can be looked up by the bounds of a file: fingerprints may be of any file's rows.
    in_any_file = difference.delete_others or any(len(prints) for _, prints in difference.missing)
    if not (rewrite_all or in_any_file):
        keys = (*difference.changes, *difference.deletes)
        stored = merge.candidate_files(stored, keys, into.key, into.place)
    vectors = plan.target.settings.deletion_vectors and uses_vectors
    for file in stored:
        job = Merge(
            into=into,
            file=file,
            changes=difference.changes,
            deletes=difference.deletes,
            delete_others=difference.delete_others,
            on_delete=plan.target.settings.on_delete,
            rewrite=rewrite_all,
            doubting=plan.doubting,
            vectors=vectors,
        )
        yield FileMerge(job, difference.missing)


def _check_row_counts(plan: Plan, merged: Sequence[Merged]) -> None:
    """Checks that each rewritten file has the rows of the old one, less those that were removed.

    Raises:
        Mismatch: one has not.
    """
    removes = plan.target.settings.on_delete == "remove"
    for result in merged:
        before = result.old.rows
        # The log need not have the number of rows of a file.
        if not result.rewritten or before < 0:
            continue
        if result.vector:
            before = result.edits
        after = result.file.rows if result.file else 0
        others = (result.moved, result.kept)
        after += sum(frame.height for frame in others if frame is not None)
        if after != before - (result.deleted if removes else 0):
            raise Mismatch(
                f"A file of {plan.target.name} with {count(before, 'row')} was rewritten with"
                f" {after:,}.",
                hint="Nothing was committed. This is a bug in bronze: report it.",
                table=plan.target.label,
            )


def _unchanged_rewrites(merged: Sequence[Merged]) -> list[tuple[StoredFile, WrittenFile]]:
    """The files, old and new, that were rewritten without a change of their rows."""
    return [(m.old, m.file) for m in merged if m.file and not m.edits]


def _insert_jobs(
    plan: Plan,
    stamp: RowStamp,
    changes: Sequence[Changes],
    merged: Sequence[Merged],
    feed: bool,
) -> tuple[list[WrittenFile], list[insert.Insert]]:
    """The staged files that become files of the table as they are, and jobs that write the other
    new rows. With ``feed`` inserts have to be in the change data feed, too.
    """
    adopted: list[WrittenFile] = []
    groups: list[list[tuple[Changes, bytes]]] = [[]]
    rows_of_group = 0
    as_they_are = not (feed or plan.shape.partition)
    masks = insert.join_masks([m.matched for m in merged], changes)
    for change, mask in zip(changes, masks, strict=True):
        rows = height(change)
        new_rows = len(insert.unmatched_lines(mask, rows))
        if isinstance(change, WrittenFile) and new_rows == rows and as_they_are:
            adopted.append(change)
        elif new_rows:
            groups[-1].append((change, mask))
            rows_of_group += new_rows
            if rows_of_group >= _INSERT_ROWS:
                groups.append([])
                rows_of_group = 0
    *full, last = groups
    jobs = [_insert_job(plan, stamp, group, feed) for group in full]
    moved = tuple(m.moved for m in merged if m.moved is not None)
    kept = tuple(m.kept for m in merged if m.kept is not None)
    fed = tuple(m.fed for m in merged if m.fed is not None)
    if last or moved or fed:
        job = _insert_job(plan, stamp, last, feed)
        jobs.append(replace(job, moved=moved, kept=kept, fed=fed))
    return adopted, jobs


def _insert_job(
    plan: Plan,
    stamp: RowStamp,
    group: Sequence[tuple[Changes, bytes]],
    feed: bool,
) -> insert.Insert:
    """The job that writes the new rows of some changes."""
    return insert.Insert(
        into=plan.destination(stamp),
        changes=tuple(change for change, _ in group),
        matched=tuple(mask for _, mask in group),
        feed=feed,
    )
