"""How a table's rows land: they are read, merged into the files that are there, and committed.

A landing is a course of `bronze.execution.executors`: it hands out tasks, goes on with their
results, and ends with what was done to the table. Whatever it wrote and did not commit is deleted
when it fails.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

import tenacity

from bronze import failpoint
from bronze.anomaly import outliers
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, files, log, store
from bronze.delta.commit import Change
from bronze.delta.layout import optimize
from bronze.delta.log import State
from bronze.errors import BronzeError, CommitConflict, Mismatch, QualityRefused, SnapshotLost
from bronze.execution.executors import Course, Task
from bronze.governance import lineage
from bronze.governance.lineage import Entry
from bronze.governance.tables import quality as quality_book
from bronze.governance.tables import rejected_values as book
from bronze.governance.tables.profiles import Scope
from bronze.governance.tables.quality import Figure, Graded
from bronze.ingest import diff, table_run
from bronze.ingest.diff import Difference, Edit
from bronze.ingest.plan import Plan
from bronze.ingest.worker import work
from bronze.maintenance import maintain
from bronze.model.anomaly import Outliers
from bronze.model.files import DataFile
from bronze.model.locations import Origin, Place
from bronze.model.results import TableResult
from bronze.model.stamp import Stamp
from bronze.model.units import NOTHING_FOUND, Findings, Known, Rejected, Written
from bronze.postgres.copy.snapshot import Snapshot
from bronze.quality import checks
from bronze.rows import fingerprint
from bronze.tables import known_rows
from bronze.tables.selection import Target

_TRIES = 6


@dataclass
class Table:
    """A table on its way through a run."""

    target: Target
    origin: Origin
    held: Snapshot
    stamp: Stamp
    readers: int
    entry: Entry
    plan: Plan | None = None
    error: BronzeError | None = None
    written: list[Written] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    figures: tuple[Figure, ...] = ()

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
    def findings(self) -> Findings:
        """What was found out about the rows."""
        return reduce(add, (part.findings for part in self.written), NOTHING_FOUND)

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

    def begin_again(self, plan: Plan) -> Plan:
        """Lets the table be compared row by row, as its changes alone were not all."""
        known_rows.forget(self.target.place)
        self.written.clear()
        self.plan = plan.whole()
        return self.plan


@dataclass(frozen=True)
class Outcome:
    """What a commit did, and of which files it is made."""

    version: int
    inserted: int
    updated: int
    deleted: int
    written: tuple[DataFile, ...]

    @property
    def changed(self) -> bool:
        """Whether the table has other rows than before, or others of them."""
        return bool(self.inserted or self.updated or self.deleted or self.written)


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
        book_rejected(settings, table.target, table.stamp, table.rejected)
        failpoint.reach("booked")
        _grade(settings, table, plan)
        if plan.state:
            commit.sweep(plan.state, time.time())
        land = _loaded if plan.mode == "load" else _merged
        outcome = yield from land(settings, table, plan)
        failpoint.reach("landed")
        known_rows.forget(plan.target.place)
        notes = table.plan.notes + _told(settings, table, outcome)
        notes += yield from _laid_out(settings, table, outcome.changed)
        return _result(table, outcome, notes)
    except BronzeError as error:
        if error.retry and not isinstance(error, CommitConflict) and not table.held.alive():
            raise SnapshotLost(
                f"The source {table.origin.name} went away in the middle of the run:"
                f" {error.message}",
                hint=error.hint,
            ) from error
        return _failed(table, error)


def _loaded(settings: Settings, table: Table, plan: Plan) -> Course[Outcome]:
    """All rows become the table's whole content, unless they are already."""
    place, state = plan.target.place, plan.state
    data = [file for part in table.written for file in part.files]
    if state is not None and not (plan.settled.rewrite or plan.settled.anew or plan.doubting):
        whole = Known(place, state.version, state.files, plan.shape.columns, (), 0)
        ((rows, total),) = yield [Task(known_rows.total, whole, table.target.label)]
        mine = reduce(fingerprint.added, (part.sum for part in table.written), 0)
        if (rows, total) == (table.rows, mine):
            version = commit.commit(
                place,
                state,
                Change("WRITE"),
                _facts(table),
                shape=plan.shape,
                reached=plan.reached,
                audited=table.stamp.audited,
            )
            store.delete(place, [file.path for file in data])
            return Outcome(version, 0, 0, 0, ())
    facts = _facts(table, inserted=table.rows)
    version = commit.replace(
        place,
        plan.shape,
        data,
        plan.reached,
        facts,
        lambda state: _moved(state, plan),
        table.stamp.audited,
    )
    return Outcome(version, table.rows, 0, 0, tuple(data))


def _merged(settings: Settings, table: Table, plan: Plan) -> Course[Outcome]:
    """The differences between source and table become changes of the table."""
    found = diff.found(plan, table.stamp, table.written)
    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception(commit.lost_race),
        stop=tenacity.stop_after_attempt(_TRIES),
        wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
        reraise=True,
    ):
        with attempt:
            state = log.read(plan.target.place)
            if state is None or _moved(state, plan) or _misplaced(state, plan):
                raise commit.overtaken(plan.target.place)
            if plan.state and plan.state.is_same(state):
                # It knows already what it has read of the log.
                state = plan.state
            edit = yield from diff.edited(plan, table.stamp, found, state)
            if _misses(table, plan, found, edit, state):
                _forget(table, edit.written)
                plan = table.begin_again(plan)
                yield [Task(work, unit, table.target.label) for unit in plan.units]
                _grade(settings, table, plan)
                found = diff.found(plan, table.stamp, table.written)
                edit = yield from diff.edited(plan, table.stamp, found, state)
                if _misses(table, plan, found, edit, state):
                    raise _miscounted(table, found, edit)
            version = _committed(table, plan, edit, found.staged, state)
            return Outcome(version, edit.inserted, edit.updated, edit.deleted, edit.written)
    raise AssertionError("the last attempt raises")


def _misses(table: Table, plan: Plan, found: Difference, edit: Edit, state: State) -> bool:
    """Whether the table would not have as many rows as the source.

    A cursor column may have passed over rows; two rows may share a fingerprint.
    """
    comparable = found.gone and table.held.name is not None
    if not comparable or plan.state is None or state.version != plan.state.version:
        return False
    return found.live + edit.growth != found.there


def _miscounted(table: Table, found: Difference, edit: Edit) -> Mismatch:
    return Mismatch(
        f"Table {table.target.label} has {found.there} rows, and {found.live + edit.growth} would"
        " be in Bronze.",
        hint="Nothing was committed. Run again; if it is said again, report it as a bug.",
        table=table.target.label,
    )


def _committed(
    table: Table, plan: Plan, edit: Edit, staged: Sequence[DataFile], state: State
) -> int:
    place = plan.target.place
    counts = {"inserted": edit.inserted, "updated": edit.updated, "deleted": edit.deleted}
    try:
        version = commit.commit(
            place,
            state,
            edit.change,
            _facts(table, **counts),
            shape=plan.shape,
            reached=plan.reached,
            audited=table.stamp.audited,
            compared=plan.state.version if plan.state and plan.mode == "compare" else None,
        )
    except CommitConflict:
        # Only then it is certain that nobody needs them. What is staged is needed again.
        kept = {file.path for file in staged}
        _forget(table, [file for file in edit.written if file.path not in kept])
        raise
    needed = {file.path for file in edit.written}
    _forget(table, [file for file in staged if file.path not in needed])
    failpoint.reach("cleaned")
    return version


def _forget(table: Table, written: Sequence[DataFile]) -> None:
    with suppress(BronzeError):
        store.delete(table.target.place, [file.path for file in written])


def _moved(state: State | None, plan: Plan) -> bool:
    """Whether another run of ours has committed since the plan was made."""

    def held(one: State | None, name: str) -> int | None:
        return one.position(name) if one else None

    names = [name for name, _ in plan.reached.transactions]
    return any(held(state, name) != held(plan.state, name) for name in names)


def _misplaced(state: State, plan: Plan) -> bool:
    """Whether rows that are doubted are not where they were: they are known by their places alone,
    and would be found no more, and doubted no more.
    """
    if not plan.doubting or plan.state is None:
        return False
    return not {file.path for file in plan.state.files} <= {file.path for file in state.files}


def _facts(table: Table, **counts: int) -> dict[str, Any]:
    mode = table.plan.mode if table.plan else ""
    made = table.plan is not None and table.plan.state is None
    done = {"rows_read": table.rows, "rejected": len(table.rejected), **counts}
    status = "landed" if made or any(counts.values()) else "unchanged"
    return {
        "batch_id": table.stamp.batch_id,
        "source": table.origin.name,
        "table": table.target.label,
        "snapshot": table.held.name,
        "position": table.held.position,
        "loaded_at": table.stamp.loaded_at.isoformat(),
        "mode": mode,
        "rows": table.rows,
        "rejected": len(table.rejected),
        **counts,
        **lineage.told(table.entry, mode=mode, status=status, **done),
    }


def _told(settings: Settings, table: Table, outcome: Outcome) -> tuple[str, ...]:
    """Enters what was found out about the rows that have landed."""
    plan = table.plan
    if plan is None or plan.enrichment.watch is None:
        return ()
    findings = table.findings
    if not outcome.changed:
        findings = replace(findings, outliers=Outliers())
    scope: Scope = "changes" if plan.mode == "changes" else "whole"
    return outliers.told(
        settings, table.target, table.stamp, plan.enrichment.watch, findings, scope
    )


def book_rejected(
    settings: Settings, target: Target, stamp: Stamp, rejected: Sequence[Rejected]
) -> None:
    """Enters values that Delta cannot hold into ``governance.rejected_values``."""
    if not rejected:
        return
    place = settings.place(GOVERNANCE, book.NAME)
    frame = book.frame(
        rejected, stamp=stamp, source_table=target.label, target_table=target.full_name
    )
    file = files.write([frame], place, stamp.batch_id, ())
    if file:
        commit.append(place, book.COLUMNS, file, {"batch_id": stamp.batch_id})


def _grade(settings: Settings, table: Table, plan: Plan) -> None:
    """Holds the rows that were read against what is demanded of them.

    Raises:
        QualityRefused: they are not to land.
    """
    demanded = settings.demanded(table.target.settings)
    age = time.time() - table.stamp.loaded_at.timestamp()
    quality = plan.enrichment.quality
    table.figures = checks.figures(quality, table.findings.quality, demanded, age)
    # They have been counted; those of all tables of a run would not fit into its memory.
    for i, part in enumerate(table.written):
        lighter = replace(part.findings, quality=replace(part.findings.quality, prints=()))
        table.written[i] = replace(part, findings=lighter)
    said = checks.against(table.figures) if demanded.on_failure == "stop" else ""
    if said:
        raise QualityRefused(
            f"The rows of table {table.target.label} are not good enough: {said}.",
            hint="Nothing of it landed, its Bronze table is as it was. `bronze quality` shows all"
            ' figures; on_failure = "land" lets such rows land.',
            table=table.target.label,
        )


def book_quality(settings: Settings, tables: Sequence[Table]) -> None:
    """Enters how the rows fared that have landed, or were refused, into ``governance.quality``."""
    graded = [
        Graded(
            source_table=table.target.label,
            target_table=table.target.full_name,
            stamp=table.stamp,
            mode=table.plan.mode,
            as_of=table.stamp.loaded_at,
            landed=table.error is None,
            figures=table.figures,
        )
        for table in tables
        if table.figures
        and table.plan
        and (table.error is None or isinstance(table.error, QualityRefused))
    ]
    checks.enter(settings.place(GOVERNANCE, quality_book.NAME), graded)


def discard(place: Place, batch_id: str) -> None:
    """Deletes what was written for a table and will not land; what did land is kept."""
    known_rows.forget(place)
    with suppress(BronzeError):
        commit.discard(place, batch_id)


def _failed(table: Table, error: BronzeError) -> TableResult:
    table.error = error
    discard(table.target.place, table.stamp.batch_id)
    return TableResult(
        table=table.target.label,
        target=table.target.full_name,
        status="failed",
        rows_read=table.rows,
        seconds=time.monotonic() - table.began,
        error=error.failure(),
    )


def _fared(table: Table) -> dict[str, Any]:
    found = table.findings.quality
    score = round(found.total / found.rows, 2) if found.rows else None
    return {"score": score, "quarantined": found.quarantined}


def _laid_out(settings: Settings, table: Table, changed: bool) -> Course[tuple[str, ...]]:
    """Improves the layout where the table needs it; what hinders that is told, and no failure."""
    if not settings.maintain.auto:
        return ()
    place = table.target.place
    try:
        wish = maintain.wished(settings, table.target.settings)
        known = table.plan.state if table.plan else None
        # Where nothing has changed, the files are those that were found.
        state = log.read(place) if changed or known is None else known
        if state is not None and optimize.needed(state, wish):
            yield from maintain.improvement(settings, place, wish, table.target.label)
    except BronzeError as error:
        return (f"the layout was not improved: {error.message}",)
    return ()


def _result(table: Table, outcome: Outcome, notes: tuple[str, ...]) -> TableResult:
    same = not outcome.changed and table.plan is not None and table.plan.state is not None
    return TableResult(
        table=table.target.label,
        target=table.target.full_name,
        status="unchanged" if same else "landed",
        rows_read=table.rows,
        inserted=outcome.inserted,
        updated=outcome.updated,
        deleted=outcome.deleted,
        rejected=len(table.rejected),
        anomalies=table.findings.outliers.count if outcome.changed else 0,
        version=outcome.version,
        files=len(outcome.written),
        bytes=sum(file.size for file in outcome.written),
        seconds=time.monotonic() - table.began,
        schema_changes=table_run.changes(table.plan),
        notes=notes,
        **_fared(table),
    )
