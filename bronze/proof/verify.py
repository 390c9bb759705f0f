"""The proof that Bronze equals the source, and what stands against it.

In one snapshot of each source PostgreSQL hashes every row; Bronze gives the hashes that its rows
hold. Both are summed up by buckets (see `bronze.enrich.buckets`). Only where buckets differ rows
are named, by key and hash, and held against each other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import uuid_utils

from bronze import engine, units
from bronze.engine import Course, Task
from bronze.enrich import buckets
from bronze.enrich.buckets import Sums
from bronze.errors import BronzeError
from bronze.model import Known
from bronze.pipeline import Notify, Progress, giving_way, running
from bronze.proof import evidence, mend, rest
from bronze.proof.claim import Claim, found
from bronze.proof.evidence import FILE, ROW, Asked, Held, Sharing, Summed, Wanted
from bronze.proof.mend import Damage
from bronze.proof.opposed import LISTED, Opposed, doubled, opposed
from bronze.proof.verdict import VerifiedTable, VerifyResult
from bronze.settings import Settings


def verify(
    settings: Settings,
    tables: Sequence[str] = (),
    *,
    repair: bool = False,
    at_rest: bool = False,
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
        pool: where to do the work instead of the config's engine.
        notify: is told of progress, from this thread.

    Raises:
        ConfigError, SourceError, LakeError: nothing could be found out at all.
    """
    began = time.monotonic()
    if at_rest:
        results = rest.verified(settings, tables, repair, pool, notify)
    else:
        with ExitStack() as stack:
            batch_id = str(uuid_utils.uuid7())
            claims = found(settings, tables, batch_id, stack)
            looks = _driven(settings, claims, repair, pool, notify)
            results = [look.result for look in looks]
            if repair:
                results = _repaired(settings, claims, looks, pool, notify)
    return VerifyResult(at_rest, time.monotonic() - began, tuple(results))


@dataclass
class _Look:
    """What one look at a table has found; ``damage`` is gathered where it is to be repaired.
    ``doubled`` of the extra rows share their key with others.
    """

    result: VerifiedTable
    repair: bool
    damage: Damage = field(default_factory=Damage)
    doubled: int = 0


def _repaired(
    settings: Settings,
    claims: Sequence[Claim],
    looks: Sequence[_Look],
    pool: Executor | None,
    notify: Notify,
) -> list[VerifiedTable]:
    """Repairs what differs, and looks at it again in the same snapshot."""
    pairs = zip(claims, looks, strict=True)
    wanting = [(claim, look.damage) for claim, look in pairs if look.result.status == "differs"]
    mended = mend.mended(settings, wanting, pool, notify)
    again = [claim.again() for claim, _ in wanting]
    after = _driven(settings, again, False, pool, notify)
    second = {look.result.target: mend.told(look.result, mended) for look in after}
    return [second.get(look.result.target, look.result) for look in looks]


def _driven(
    settings: Settings,
    claims: Sequence[Claim],
    repair: bool,
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
        if isinstance(outcome, Summed) and outcome.source:
            done[number][0] += int(outcome.sums[:, 0].sum())
            done[number][1] += outcome.estimate
            share = done[number][1] / max(claims[number].size, 1)
            notify(Progress(claims[number].label, done[number][0], share))

    origins = {claim.given.origin for claim in claims}
    with running(settings, pool, limit, origins) as workers:
        courses = [_look(settings, claim, repair) for claim in claims]
        meanwhile = giving_way((claim.given.held, claim.given.origin) for claim in claims)
        for look in engine.drive(workers, courses, limit, told, meanwhile):
            notify(Progress(look.result.table, max(look.result.source_rows, 0), 1.0))
            results[look.result.target] = look
    return [results[claim.target] for claim in claims]


def _look(settings: Settings, claim: Claim, repair: bool) -> Course[_Look]:
    """The course of one table; what hinders it is in the result."""
    began = time.monotonic()
    look = _Look(VerifiedTable(claim.label, claim.target, "equal"), repair)
    try:
        if claim.error:
            raise claim.error
        yield from _compared(settings, claim, look)
        look.result = replace(look.result, notes=claim.notes(look.result, look.doubled))
    except BronzeError as error:
        look.result = replace(look.result, status="failed", error=error.failure())
    look.result = replace(look.result, seconds=time.monotonic() - began)
    return look


def _compared(settings: Settings, claim: Claim, look: _Look) -> Course[None]:
    label = claim.label
    asked, naming = claim.asking()
    held = yield from _files(claim)
    parts = yield [
        *(Task(evidence.of_source, task, label) for task in asked),
        *(Task(evidence.of_file, task, label) for task in held),
    ]
    source, lake = _added(parts)
    look.result = replace(
        look.result,
        source_rows=int(source[:, 0].sum()),
        bronze_rows=int(lake[:, 0].sum()),
        **claim.placed(),
    )
    chosen: npt.NDArray[np.bool_] = (source != lake).any(axis=1)
    if claim.state is None:
        look.result = replace(look.result, status="differs", missing=look.result.source_rows)
    elif chosen.any():
        shares = units.shares(settings.run, int(source[chosen, 0].sum() + lake[chosen, 0].sum()))
        names = [
            replace(task, queries=queries, key=claim.key)
            for task, queries in zip(asked, naming, strict=True)
        ]
        held = [replace(task, key=claim.names) for task in held]
        for share in range(shares):
            yield from _named(claim, Wanted(chosen, share, shares), names, held, look)
        done = look.result
        extra = look.doubled if claim.keeps_gone else done.extra
        wrong = done.missing or done.different or extra
        look.result = replace(done, status="differs" if wrong else "equal")


def _added(parts: Sequence[Summed]) -> tuple[Sums, Sums]:
    source, lake = buckets.nothing(), buckets.nothing()
    for part in parts:
        side = source if part.source else lake
        side += part.sums
    return source, lake


def _files(claim: Claim) -> Course[list[Held]]:
    """What is to be read of the Bronze table."""
    state = claim.state
    if state is None:
        return []
    live: Sequence[npt.NDArray[np.int64] | None] = [None] * len(state.files)
    if claim.history:
        units.fitting_history(claim.given, sum(max(file.rows, 0) for file in state.files))
        files, columns, versions = state.files, state.columns, claim.names
        whole = Known(state.place, state.version, files, columns, (), 0, versions=versions)
        (live,) = yield [Task(evidence.last, whole, claim.label)]
    return [
        Held(state.place, number, file, state.columns, live=rows)
        for number, (file, rows) in enumerate(zip(state.files, live, strict=True))
    ]


def _named(
    claim: Claim,
    wanted: Wanted,
    asked: Sequence[Asked],
    held: Sequence[Held],
    look: _Look,
) -> Course[None]:
    """Names the rows that differ, of one share."""
    key, label = claim.names, claim.label
    parts: list[Any] = yield [
        *(Task(evidence.named, replace(task, wanted=wanted), label) for task in asked),
        *(Task(evidence.held, replace(task, wanted=wanted), label) for task in held),
    ]
    theirs = evidence.concatenated(parts[: len(asked)])
    ours = evidence.concatenated(parts[len(asked) :]) if held else evidence.no_rows(theirs)
    fault = opposed(theirs, ours, key)
    several = fault.extra.clear()
    told = look.repair or claim.keeps_gone
    if told and key and not claim.history and fault.extra.height:
        keys = fault.extra.select(key).unique()
        looks = [Task(evidence.sharing, Sharing(task, keys), label) for task in held]
        several = doubled(fault.extra, evidence.concatenated((yield looks)), key)
        look.doubled += several.height
    if look.repair:
        for number, rows in several.group_by(FILE):
            look.damage.add(held[int(str(number[0]))].file, rows[ROW].to_numpy())
    wrong = replace(fault, extra=several) if claim.keeps_gone else fault
    look.result = _counted(claim, look.result, fault, wrong)


def _counted(claim: Claim, result: VerifiedTable, fault: Opposed, wrong: Opposed) -> VerifiedTable:
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
