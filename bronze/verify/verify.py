"""The proof that Bronze equals the source, and what stands against it.

In one snapshot of each source PostgreSQL hashes every row; of Bronze every file is read, and every
row hashed again by its values (see `bronze.verify.digests`). Both are summed up by buckets (see
`bronze.verify.buckets`). Only where buckets differ rows are named, by key and digest, and held
against each other. Whoever trusts the hashes in Bronze rows has these taken instead.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import uuid_utils

from bronze.config.settings import Settings
from bronze.delta.layout import vacuum
from bronze.errors import BronzeError, TableRefused
from bronze.execution import budget, executors
from bronze.execution.executors import Task, Workflow
from bronze.ingest import units
from bronze.ingest.pipeline import Notify, lock_relief, worker_pool
from bronze.model.events import TableProgress
from bronze.model.units import KnownRows
from bronze.verify import at_rest as rest
from bronze.verify import buckets, evidence, file_check
from bronze.verify import repair as mend
from bronze.verify.buckets import Sums
from bronze.verify.claim import Claim, claims_of_bronze, claims_of_source
from bronze.verify.digests import Basis
from bronze.verify.evidence import FILE, ROW, BucketSums, FileTask, NamedRows, Sharing, SourceTask
from bronze.verify.file_check import Inspected, Resting
from bronze.verify.repair import Damage
from bronze.verify.results import FaultyFile, VerifiedTable, VerifyResult
from bronze.verify.row_diff import LISTED, RowDifferences, compare_rows, doubled


def verify(
    settings: Settings,
    tables: Sequence[str] = (),
    *,
    repair: bool = False,
    at_rest: bool = False,
    trust_hashes: bool = False,
    pool: Executor | None = None,
    notify: Notify = lambda _: None,
) -> VerifyResult:
    """Holds Bronze tables against the source, or (``at_rest``) against what they say of themselves.

    Args:
        settings: the config.
        tables: names (``table`` or ``schema.table``) to look at only; none takes all of the config,
            or at rest all in the lake.
        repair: whether what differs is taken anew, and verified again.
        at_rest: whether files and checksums are looked at, for which no source is needed.
        trust_hashes: whether the hashes that Bronze rows have are taken for those of their values.
        pool: where to do the work instead of the config's engine.
        notify: is told of progress, from this thread.

    Raises:
        ConfigError, SourceError, LakeError: nothing could be found out at all.
    """
    began = time.monotonic()
    if at_rest:
        results = rest.verify_at_rest(settings, tables, pool, notify)
        if repair:
            results = _repaired_at_rest(settings, results, pool, notify)
    else:
        with ExitStack() as stack:
            batch_id = str(uuid_utils.uuid7())
            claims = claims_of_source(settings, tables, batch_id, stack)
            how = _How(repair, trust_hashes)
            looks = _driven(settings, claims, how, pool, notify)
            results = [look.result for look in looks]
            if repair:
                wanting = {one.target for one in results if one.status == "differs"}
                results = _repaired(settings, claims, looks, wanting, pool, notify)
    return VerifyResult(at_rest, time.monotonic() - began, tuple(results))


@dataclass(frozen=True)
class _How:
    """How tables are looked at: whether what differs is to be repaired, and hashes are trusted."""

    repair: bool
    trusting: bool


@dataclass
class _Look:
    """What one look at a table has found; ``damage`` is gathered where it is to be repaired.
    ``doubled`` of the extra rows share their key with others.
    """

    result: VerifiedTable
    how: _How
    damage: Damage = field(default_factory=Damage)
    doubled: int = 0


def _repaired(
    settings: Settings,
    claims: Sequence[Claim],
    looks: Sequence[_Look],
    targets: Collection[str],
    pool: Executor | None,
    notify: Notify,
) -> list[VerifiedTable]:
    """Repairs tables, and looks at them again in the same snapshot.

    What a comparison by hashes cannot see is still there then: such rows are cut out, and read
    again.
    """
    results = {look.result.target: look.result for look in looks}
    pairs = zip(claims, looks, strict=True)
    wanting = [(claim, look.damage) for claim, look in pairs if claim.target in targets]
    how = looks[0].how if looks else _How(True, False)
    for last in (False, True):
        mended = mend.repair_tables(settings, wanting, pool, notify)
        again = [claim.again() for claim, _ in wanting]
        after = _driven(settings, again, replace(how, repair=not last), pool, notify)
        for look in after:
            before = results[look.result.target]
            results[look.result.target] = mend.with_repair(look.result, mended, before)
        pairs = zip(again, after, strict=True)
        wanting = [(c, look.damage.whole()) for c, look in pairs if _wants_more(look, mended)]
        if not wanting:
            break
    return [results[look.result.target] for look in looks]


def _repaired_at_rest(
    settings: Settings,
    results: Sequence[VerifiedTable],
    pool: Executor | None,
    notify: Notify,
) -> list[VerifiedTable]:
    """Repairs tables in which something is wrong at rest, and looks at them again."""
    wanting = {one.target for one in results if one.status == "differs"}
    if not wanting:
        return list(results)
    try:
        with ExitStack() as stack:
            claims = claims_of_bronze(settings, wanting, str(uuid_utils.uuid7()), stack)
            looks = _driven(settings, claims, _How(True, False), pool, notify)
            # What hinders the comparison hinders the repair, too.
            done = {
                one.target: one for one in _repaired(settings, claims, looks, wanting, pool, notify)
            }
    except BronzeError as error:
        # What was found stays true, though nothing could be mended.
        return [
            replace(one, error=error.failure()) if one.target in wanting else one for one in results
        ]
    names = [claim.given.target.name for claim in claims]
    try:
        again = rest.verify_at_rest(settings, names, pool, notify) if names else []
    except BronzeError as error:
        again = [replace(one, error=error.failure()) for one in results if one.target in done]
    after = {one.target: one for one in again}
    return [
        _told_at_rest(after[one.target], done[one.target])
        if one.target in done
        else (_unrepairable(one) if one.target in wanting else one)
        for one in results
    ]


def _unrepairable(found: VerifiedTable) -> VerifiedTable:
    """A table that nothing can be taken for from the source."""
    error = TableRefused(
        f"The Bronze table {found.target} was not repaired: no table of the source becomes it, as"
        " the config is now, or several do.",
        hint="`bronze check` lists what the config takes, and what becomes of it.",
        table=found.table,
    )
    return replace(found, error=error.failure())


def _told_at_rest(after: VerifiedTable, done: VerifiedTable) -> VerifiedTable:
    """What a table is at rest after its repair, with what the repair did."""
    return replace(
        after,
        status="failed" if done.error and after.status == "equal" else after.status,
        repaired=done.repaired,
        notes=tuple(dict.fromkeys((*done.notes, *after.notes))),
        error=after.error or done.error,
    )


def _wants_more(look: _Look, mended: Mapping[str, mend.RepairResult]) -> bool:
    """Whether rows that could be cut out differ after a repair, though nothing hindered it."""
    done = mended[look.result.target]
    return look.result.status == "differs" and done.error is None and bool(look.damage.wrong)


def _driven(
    settings: Settings,
    claims: Sequence[Claim],
    how: _How,
    pool: Executor | None,
    notify: Notify,
) -> list[_Look]:
    """What was found out about each table, in their order."""
    if not claims:
        return []
    limit = min(claim.given.readers for claim in claims)
    done = [[0, 0] for _ in claims]
    results: dict[str, _Look] = {}

    def told(number: int, outcome: object) -> None:
        if isinstance(outcome, BucketSums) and outcome.source:
            done[number][0] += int(outcome.sums[:, 0].sum())
            done[number][1] += outcome.estimate
            share = done[number][1] / max(claims[number].size, 1)
            notify(TableProgress(claims[number].label, done[number][0], share))

    origins = {claim.given.origin for claim in claims}
    with worker_pool(settings, pool, limit, origins) as workers:
        courses = [_look(settings, claim, how) for claim in claims]
        meanwhile = lock_relief((claim.given.snapshot, claim.given.origin) for claim in claims)
        for look in executors.drive(workers, courses, limit, told, meanwhile):
            notify(TableProgress(look.result.table, max(look.result.source_rows, 0), 1.0))
            results[look.result.target] = look
    return [results[claim.target] for claim in claims]


def _look(settings: Settings, claim: Claim, how: _How) -> Workflow[_Look]:
    """The course of one table; what hinders it is in the result."""
    began = time.monotonic()
    found = VerifiedTable(
        claim.label, claim.target, "equal", claim.given.origin.name, trusted=how.trusting
    )
    look = _Look(found, how)
    try:
        if claim.error:
            raise claim.error
        yield from _compared(settings, claim, look)
        notes = (*look.result.notes, *claim.notes(look.result, look.doubled))
        look.result = replace(look.result, notes=notes)
    except BronzeError as error:
        look.result = replace(look.result, status="failed", error=error.failure())
    look.result = replace(look.result, seconds=time.monotonic() - began)
    return look


def _compared(settings: Settings, claim: Claim, look: _Look) -> Workflow[None]:
    label, trusting = claim.label, look.how.trusting
    asked, naming = claim.asking(trusting)
    held = yield from _files(claim, look)
    fused = not trusting and not claim.history
    parts = yield [
        *(Task(evidence.of_source, task, label) for task in asked),
        *(
            Task(file_check.inspect, task, label)
            for task in (_inspections(claim, claim.basis) if fused else ())
        ),
        *(Task(evidence.of_file, task, label) for task in ([] if fused else held)),
    ]
    source, lake = _added(parts)
    if fused:
        _take(claim, look, [part for part in parts if isinstance(part, Inspected)])
        lost = {file.path for file in look.damage.lost}
        held = [task for task in held if task.file.path not in lost]
    elif trusting:
        held = _readable(look, held, parts[len(asked) :])
    look.result = replace(
        look.result,
        source_rows=int(source[:, 0].sum()),
        bronze_rows=int(lake[:, 0].sum()),
        bronze_files=len(held),
        **claim.placed(),
    )
    chosen: npt.NDArray[np.bool_] = (source != lake).any(axis=1)
    if claim.state is None:
        look.result = replace(look.result, status="differs", missing=look.result.source_rows)
    elif chosen.any():
        shares = budget.rounds_of_named_rows(
            settings.run.memory, int(source[chosen, 0].sum() + lake[chosen, 0].sum())
        )
        names = [
            replace(task, queries=queries, key=claim.key)
            for task, queries in zip(asked, naming, strict=True)
        ]
        held = [replace(task, key=claim.names) for task in held]
        for share in range(shares):
            yield from _named(claim, NamedRows(chosen, share, shares), names, held, look)
    done = look.result
    extra = look.doubled if claim.keeps_gone else done.extra
    wrong = (
        *(done.missing, done.different, extra, done.altered, done.files, done.columns),
        claim.state is None,
    )
    look.result = replace(done, status="differs" if any(wrong) else "equal")


def _added(parts: Sequence[object]) -> tuple[Sums, Sums]:
    source, lake = buckets.nothing(), buckets.nothing()
    for part in parts:
        if isinstance(part, BucketSums):
            side = source if part.source else lake
            side += part.sums
        elif isinstance(part, Inspected) and part.sums is not None:
            lake += part.sums
    return source, lake


def _inspections(claim: Claim, basis: Basis | None) -> list[Resting]:
    """The files of a table, to be looked at by themselves."""
    if claim.state is None:
        return []
    sizes = {found.path: found.size for found in vacuum.lying(claim.state.place)}
    return rest.tasks(claim.state, sizes, basis)


def _take(claim: Claim, look: _Look, parts: Sequence[Inspected]) -> None:
    """Takes note of what files say of themselves."""
    if claim.state is None:
        return
    found, damage = rest.with_file_findings(claim.state, parts, look.result)
    look.damage.add_all(damage)
    look.result = found


def _readable(look: _Look, held: Sequence[FileTask], parts: Sequence[BucketSums]) -> list[FileTask]:
    """The files that could be read."""
    whole = []
    for task, part in zip(held, parts, strict=True):
        if part.fault:
            faulty = FaultyFile(task.file.path, part.fault, max(task.file.rows, 0))
            look.result = replace(look.result, files=(*look.result.files, faulty))
            look.damage.lost.append(task.file)
        else:
            whole.append(task)
    return whole


def _files(claim: Claim, look: _Look) -> Workflow[list[FileTask]]:
    """What is to be read of the Bronze table."""
    state = claim.state
    if state is None:
        return []
    stored = state.named
    live: Sequence[npt.NDArray[np.int64] | None] = [None] * len(stored)
    if claim.history:
        units.check_history_fits(claim.given, sum(max(file.rows, 0) for file in stored))
        tasks = _inspections(claim, None)
        if look.how.trusting:
            # Which versions are the last ones cannot be told of some of the files.
            tasks = [task for task in tasks if task.size != task.file.size]
        parts = yield [Task(file_check.inspect, task, claim.label) for task in tasks]
        _take(claim, look, parts)
        lost = {file.path for file in look.damage.lost}
        stored = tuple(file for file in stored if file.path not in lost)
        columns, versions = claim.layout, claim.names
        whole = KnownRows(state.place, state.version, stored, columns, (), 0, versions=versions)
        (live,) = yield [Task(evidence.last, whole, claim.label)]
    basis = None if look.how.trusting else claim.basis
    return [
        FileTask(state.place, number, file, claim.layout, live=rows, basis=basis)
        for number, (file, rows) in enumerate(zip(stored, live, strict=True))
    ]


def _named(
    claim: Claim,
    wanted: NamedRows,
    asked: Sequence[SourceTask],
    held: Sequence[FileTask],
    look: _Look,
) -> Workflow[None]:
    """Names the rows that differ, of one share."""
    key, label = claim.names, claim.label
    parts: list[Any] = yield [
        *(Task(evidence.named, replace(task, wanted=wanted), label) for task in asked),
        *(
            Task(evidence.keyed_hashes_in_file, replace(task, wanted=wanted), label)
            for task in held
        ),
    ]
    theirs = evidence.concatenated(parts[: len(asked)])
    ours = evidence.concatenated(parts[len(asked) :]) if held else evidence.no_rows(theirs)
    fault = compare_rows(theirs, ours, key)
    several = fault.extra.clear()
    told = look.how.repair or claim.keeps_gone
    if told and key and not claim.history and fault.extra.height:
        keys = fault.extra.select(key).unique()
        looks = [Task(evidence.sharing, Sharing(task, keys), label) for task in held]
        several = doubled(fault.extra, evidence.concatenated((yield looks)), key)
        look.doubled += several.height
    if look.how.repair:
        several = _never_ours(several, fault.extra, held, look)
        files = {task.number: task.file for task in held}
        for damaged, rows in ((look.damage.rows, several), (look.damage.wrong, fault.instead)):
            for (number,), some in rows.partition_by(FILE, as_dict=True).items():
                damaged.setdefault(files[number], []).append(some[ROW].to_numpy())
    wrong = replace(fault, extra=several) if claim.keeps_gone else fault
    look.result = _with_counts(claim, look.result, fault, wrong)


def _never_ours(
    several: pl.DataFrame, extra: pl.DataFrame, held: Sequence[FileTask], look: _Look
) -> pl.DataFrame:
    """The rows to be cut out: those that are there too often, and those that the source has not and
    bronze never wrote, which are not to stay as deleted ones.
    """
    altered = {
        task.number: np.concatenate(look.damage.altered[task.file])
        for task in held
        if task.file in look.damage.altered
    }
    parts = [
        rows.filter(pl.col(ROW).is_in(pl.Series(altered[int(number)]).implode()))
        for (number,), rows in extra.partition_by(FILE, as_dict=True).items()
        if int(number) in altered
    ]
    if look.how.trusting or not parts:
        return several
    columns = [FILE, ROW]
    return pl.concat([several.select(columns), *(part.select(columns) for part in parts)]).unique()


def _with_counts(
    claim: Claim, result: VerifiedTable, fault: RowDifferences, wrong: RowDifferences
) -> VerifiedTable:
    """The result with what one round has found; only what is ``wrong`` is listed."""
    rows = list(result.rows)
    for kind in ("missing", "different", "extra"):
        rows += wrong.listed(kind, claim.names, LISTED - len(rows))
    return replace(
        result,
        missing=result.missing + fault.missing.height,
        extra=result.extra + fault.extra.height,
        different=result.different + fault.different.height,
        rows=tuple(rows),
    )
