"""Repair: what differs is taken anew from the source.

First leave the table what a comparison would not see: rows that are there more than once, and
files that are lost or cannot be read. Then all rows are compared, as a run does it, in the snapshot
of the proof, and those in Bronze are held against their own hashes, too: only what differs lands.
What a history had in lost files, or in rows that were altered, is lost; the result says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import uuid_utils

from bronze.config.settings import Settings
from bronze.delta import commit, files, log, properties, store
from bronze.delta.commit import Change, Shape
from bronze.delta.layout import optimize
from bronze.delta.log import State
from bronze.delta.write import merge
from bronze.errors import BronzeError, CommitConflict, TableRefused
from bronze.execution import executors
from bronze.execution.executors import Task, Workflow
from bronze.governance import lineage
from bronze.ingest import pipeline
from bronze.ingest.pipeline import Notify, worker_pool
from bronze.ingest.table_run import TableRun
from bronze.model.files import StoredFile
from bronze.model.results import Failure, TableResult
from bronze.model.units import KnownRows
from bronze.tables import duplicate_keys, row_format
from bronze.tables.selection import Target
from bronze.verify.claim import Claim, carried_columns
from bronze.verify.results import VerifiedTable

Rows = dict[StoredFile, list[npt.NDArray[np.int64]]]
"""Numbers of rows, by the file that has them."""


@dataclass
class Damage:
    """What is wrong with a table's files.

    ``rows`` are numbers of rows to be cut out. ``altered`` rows are not as they were written, and
    ``wrong`` ones not as the source has them: a comparison takes them anew. ``gone`` are altered
    rows that are marked as deleted, which nobody has any more. ``lost`` files are to
    leave the table, ``stale`` ones, of which the log says what is not so, to be written anew.
    """

    rows: Rows = field(default_factory=dict)
    altered: Rows = field(default_factory=dict)
    wrong: Rows = field(default_factory=dict)
    gone: Rows = field(default_factory=dict)
    lost: list[StoredFile] = field(default_factory=list)
    stale: list[StoredFile] = field(default_factory=list)

    def add_all(self, other: Damage) -> None:
        """Adds other damage of the same table."""
        for mine, theirs in (
            (self.rows, other.rows),
            (self.altered, other.altered),
            (self.wrong, other.wrong),
            (self.gone, other.gone),
        ):
            for file, numbers in theirs.items():
                mine.setdefault(file, []).extend(numbers)
        self.lost += other.lost
        self.stale += other.stale

    def whole(self) -> Damage:
        """The same, with all rows that are wrong to be cut out."""
        cut = Damage(lost=self.lost, stale=self.stale)
        for some in (self.rows, self.wrong):
            cut.add_all(Damage(rows=some))
        return cut

    def cut(self, history: bool) -> Rows:
        """The rows to be cut out: of a history altered versions, too, as none takes their place."""
        both = Damage()
        for some in (self.rows, self.gone, *([self.altered] if history else [])):
            both.add_all(Damage(rows=some))
        return both.rows


@dataclass(frozen=True)
class RepairResult:
    """What a repair did to a table: it cut out rows, and files with so many rows by the log, and
    landed others; ``has_cut`` says that it committed such a cut, even of no rows. ``error`` is why
    it could not do all of it, ``unrecorded`` why what it did could not be entered into the books.
    """

    cut: int = 0
    gone: int = 0
    files: tuple[str, ...] = ()
    file_rows: int = 0
    history: bool = False
    landed: TableResult | None = None
    error: Failure | None = None
    streamed: bool = False
    unrecorded: Failure | None = None
    has_cut: bool = False

    def failed(self, error: BronzeError) -> RepairResult:
        """The same, when something else could not be done; the first error is the one to tell."""
        return replace(self, error=self.error or error.failure())


def repair_tables(
    settings: Settings,
    wanting: Sequence[tuple[Claim, Damage]],
    pool: Executor | None,
    notify: Notify,
) -> dict[str, RepairResult]:
    """Repairs tables; what was done to each, by its target, and what hindered it."""
    done: dict[str, RepairResult] = {}
    if not wanting:
        return done
    batch_id = str(uuid_utils.uuid7())
    try:
        store.prove_writable(settings.place(settings.lake.schema_, ""))
    except BronzeError as error:
        return {claim.target: RepairResult(error=error.failure()) for claim, _ in wanting}
    limit = min(claim.given.readers for claim, _ in wanting)
    with worker_pool(settings, pool, limit, ()) as workers:
        courses = [_cut(claim, damage, batch_id) for claim, damage in wanting]
        done.update(executors.drive(workers, courses, limit))
    # What was cut out has to land again, whatever came in between.
    claims = [claim for claim, _ in wanting]
    again = [c for c in claims if done[c.target].error is None or done[c.target].has_cut]
    _land(settings, again, done, pool, notify)
    return done


def _land(
    settings: Settings,
    claims: Sequence[Claim],
    done: dict[str, RepairResult],
    pool: Executor | None,
    notify: Notify,
) -> None:
    """Has tables compared with the source as a whole; what comes of it is noted in ``done``."""
    batch_id = str(uuid_utils.uuid7())
    tables: list[TableRun] = []
    for claim in claims:
        try:
            tables += _planned(settings, claim, batch_id)
        except BronzeError as error:
            done[claim.target] = done[claim.target].failed(error)
    if not tables:
        return
    ledger = lineage.LineageLedger(settings)
    entries = {table.entry.record.target_table: table.entry for table in tables}
    try:
        for result in pipeline.load_tables(settings, tables, pool, notify):
            before = done[result.target]
            done[result.target] = replace(before, landed=result, error=before.error or result.error)
            ledger.add(lineage.with_result(entries[result.target], result))
    except BronzeError as error:
        for target in entries:
            if done[target].landed is None:
                done[target] = done[target].failed(error)
    ledger.unwritten = pipeline.record_quality(settings, tables)
    _, unrecorded = ledger.closed()
    for target in entries:
        done[target] = replace(done[target], unrecorded=unrecorded)


def _planned(settings: Settings, claim: Claim, batch_id: str) -> list[TableRun]:
    """The run of one table, which compares all rows."""
    given = claim.given
    slots = settings.source[given.origin.name].pool.readers

    def fitted(target: Target) -> Target:
        there = carried_columns(given, target)
        if target.settings.pattern != "streaming":
            return there
        own = {"pattern": "full_refresh", "key": claim.key.source_names}
        return replace(there, settings=target.settings.model_copy(update=own))

    targets = [given.target]
    return pipeline.plan_tables(
        settings, given.origin, given.held, targets, batch_id, slots, fitted, doubting=True
    )


def _cut(claim: Claim, damage: Damage, batch_id: str) -> Workflow[tuple[str, RepairResult]]:
    """Cuts out what is damaged."""
    place = claim.given.target.place
    done = RepairResult(history=claim.history, streamed=_is_streamed(claim))
    try:
        if claim.error:
            raise claim.error
        refused = _refused(claim)
        if refused:
            raise refused
        if damage.lost:
            state = _state(claim, damage.lost)
            # Nobody can tell what these rows were; the next commit tells what they are.
            change = Change("DELETE", removed=damage.lost, is_data=False)
            commit.commit(place, state, change, _facts(claim, batch_id), shape=_open(state))
            done = replace(
                done,
                files=tuple(f.path for f in damage.lost if not files.is_outside(f.path)),
                file_rows=sum(max(file.rows, 0) for file in damage.lost),
                has_cut=True,
            )
        rows = {**{file: [] for file in damage.stale}, **damage.cut(claim.history)}
        if rows:
            count = yield from _rows_cut(claim, rows, batch_id)
            gone = sum(len(part) for parts in damage.gone.values() for part in parts)
            done = replace(done, cut=count, gone=gone, has_cut=True)
        twins = yield from _twins_cut(claim, batch_id)
        return claim.target, replace(done, cut=done.cut + twins)
    except BronzeError as error:
        with suppress(BronzeError):
            commit.discard(place, batch_id)
        return claim.target, done.failed(error)


def _rows_cut(claim: Claim, rows: Rows, batch_id: str) -> Workflow[int]:
    place = claim.given.target.place
    state = _state(claim, list(rows))
    jobs = [
        merge.Merge(
            place=place,
            file=file,
            layout=row_format.columns_as_written(state.columns, state.properties),
            key=(),
            stats=tuple(n for n in optimize.statistics(state) if n in dict(state.columns)),
            stamp=replace(claim.given.stamp, batch_id=batch_id),
            changes=(),
            gone=np.unique(np.concatenate([np.empty(0, np.int64), *numbers])),
            on_delete="remove",
            anew=True,
        )
        for file, numbers in rows.items()
    ]
    done: list[merge.Merged] = yield [Task(merge.merge, job, claim.label) for job in jobs]
    change = Change(
        "DELETE",
        added=[one.file for one in done if one.file and one.edits],
        # Of a file that has no rows, whatever the log says, nothing is written anew.
        removed=[one.old for one in done if one.edits or not one.file],
        feed=[one.feed for one in done if one.feed],
        quiet=[(one.old, one.file) for one in done if one.file and not one.edits],
    )
    commit.commit(place, state, change, _facts(claim, batch_id), shape=_open(state))
    return sum(one.deleted for one in done)


def _twins_cut(claim: Claim, batch_id: str) -> Workflow[int]:
    """Leaves one row of each key: by it rows are found, and one of several would stay as it is."""
    state = log.read(claim.given.target.place)
    if state is None or claim.history or not claim.names:
        return 0
    known = KnownRows(state.place, state.version, state.files, claim.layout, claim.names, 0)
    (twins,) = yield [Task(duplicate_keys.twins, known, claim.label)]
    rows = {file: [numbers] for file, numbers in twins if len(numbers)}
    return (yield from _rows_cut(claim, rows, batch_id)) if rows else 0


def _open(state: State) -> Shape:
    """The table as it is, which says that all its rows are to be compared."""
    columns = row_format.columns_as_written(state.columns, state.properties)
    return Shape(columns, optimize.statistics(state), state.partition, ((properties.CUT, "true"),))


def _state(claim: Claim, wanted: Sequence[StoredFile]) -> State:
    """The table as it is now, which must still have the files that are meant.

    Raises:
        CommitConflict: somebody else has written them anew.
    """
    state = log.read(claim.given.target.place)
    if state is None or not {file.path for file in wanted} <= {file.path for file in state.named}:
        raise CommitConflict(
            f"Another writer committed to the table at {claim.given.target.place.url} first.",
            hint="Verify again; nothing of this repair is in that table.",
        )
    return state


def _is_streamed(claim: Claim) -> bool:
    return claim.given.target.settings.pattern == "streaming"


def _refused(claim: Claim) -> TableRefused | None:
    """Why a table cannot be repaired, None where it can."""
    if claim.state is None and _is_streamed(claim):
        return TableRefused(
            f"Table {claim.label} is streamed, and not there yet.",
            hint="`bronze stream` copies it.",
            table=claim.label,
        )
    return None


def _facts(claim: Claim, batch_id: str) -> Mapping[str, Any]:
    return {
        "batch_id": batch_id,
        "source": claim.given.origin.name,
        "table": claim.label,
        "mode": "repair",
    }


def with_repair(
    result: VerifiedTable, done: Mapping[str, RepairResult], before: VerifiedTable
) -> VerifiedTable:
    """What a table is after its repair, with what the repair did; ``before`` is what it was."""
    one = done.get(result.target)
    if one is None:
        return result
    landed = one.landed
    counts = (landed.inserted, landed.updated, landed.deleted) if landed else ()
    earlier = [note for note in before.notes if note.startswith(_REPAIRED)]
    told = one.error is None or one.has_cut or any(counts)
    notes = [*earlier, *([_describe(one, counts)] if told else []), *_losses(one)]
    if one.streamed and (one.error is None or one.has_cut):
        notes.append("the stream compares this table once when it goes on")
    if one.error and one.has_cut and not _is_landed(one):
        notes.append(
            f"{one.cut + one.file_rows:,} rows were cut out and not brought back: verify again"
        )
    return replace(
        result,
        # What is left may well be sound: rows may be missing all the same.
        status="failed" if one.error and result.status == "equal" else result.status,
        repaired=before.repaired + one.cut + sum(counts),
        notes=(*notes, *result.notes),
        error=result.error or one.error or one.unrecorded,
    )


def _is_landed(one: RepairResult) -> bool:
    return one.landed is not None and one.landed.error is None


_REPAIRED = "repaired: "


def _describe(one: RepairResult, counts: Sequence[int]) -> str:
    said = f"{_REPAIRED}{one.cut:,} rows cut out"
    if one.files:
        said += f", {len(one.files)} files dropped"
    if counts:
        said += ", {:,} inserted, {:,} updated, {:,} deleted".format(*counts)
    return said


def _losses(one: RepairResult) -> list[str]:
    """What no repair can bring back."""
    lost = []
    if one.files and one.history:
        lost.append(
            f"the earlier versions of rows in {', '.join(one.files)} are lost ({one.file_rows:,}"
            " versions by the log): the source has the last ones alone"
        )
    elif one.files:
        lost.append(
            f"rows of {', '.join(one.files)} that have gone from the source are lost, and when its"
            " other rows landed first"
        )
    if one.gone and not one.history:
        lost.append(
            f"{one.gone:,} rows that had gone from the source, and had been altered, are lost; the"
            " table's earlier versions have them until they expire"
        )
    if one.cut and one.history:
        lost.append(
            f"{one.cut:,} versions that had been altered are lost to the history; the table's"
            " earlier versions have them until they expire"
        )
    return lost
