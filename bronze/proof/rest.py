"""The proof of Bronze tables at rest: their files are what the log says, and their rows what their
checksums say. The source is asked for nothing but a repair.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

import uuid_utils

from bronze import drift, engine, maintain, units
from bronze.engine import Course, Task
from bronze.errors import BronzeError
from bronze.pipeline import Notify, Progress, running
from bronze.proof import claim as claiming
from bronze.proof import inspection, mend
from bronze.proof.digests import Basis
from bronze.proof.inspection import Inspected, Resting
from bronze.proof.mend import Damage
from bronze.proof.opposed import LISTED
from bronze.proof.verdict import FaultyFile, FaultyRow, VerifiedTable
from bronze.settings import Settings
from bronze.table import expire
from bronze.table.log import State


@dataclass(frozen=True)
class _Look:
    """What one look at a table has found, and which of it may be taken anew from the source."""

    source: str
    result: VerifiedTable
    damage: Damage = field(default_factory=Damage)


def verified(
    settings: Settings,
    tables: Sequence[str],
    repair: bool,
    pool: Executor | None,
    notify: Notify,
) -> list[VerifiedTable]:
    """What was found out about each table; see `bronze.proof.verify.verify`.

    Raises:
        ConfigError: there is no such table.
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    looks = _driven(settings, tables, pool, notify)
    wanting = {look.result.target: look for look in looks if look.result.status == "differs"}
    if not repair or not wanting:
        return [look.result for look in looks]
    try:
        with ExitStack() as stack:
            names = sorted({look.source for look in wanting.values()})
            claims = claiming.found(settings, names, str(uuid_utils.uuid7()), stack)
            # The config may have a table taken into another Bronze table by now.
            pairs = [(c, wanting[c.target].damage) for c in claims if c.target in wanting]
            mended = mend.mended(settings, pairs, pool, notify)
    except BronzeError as error:
        # What was found stays true, though nothing could be mended.
        return [_unmended(look, error) for look in looks]
    after = _driven(settings, [claim.given.target.name for claim, _ in pairs], pool, notify)
    second = {
        look.result.target: mend.told(look.result, mended, wanting[look.result.target].result)
        for look in after
        if look.result.target in mended
    }
    return [second.get(look.result.target, look.result) for look in looks]


def _unmended(look: _Look, error: BronzeError) -> VerifiedTable:
    wanting = look.result.status == "differs"
    return replace(look.result, error=error.failure()) if wanting else look.result


def _driven(
    settings: Settings, tables: Sequence[str], pool: Executor | None, notify: Notify
) -> list[_Look]:
    chosen = maintain.in_lake(settings, tables)
    limit = units.readers(settings.run, settings.run.workers)
    sizes = [sum(file.size for file in state.named) for _, state in chosen]
    done = [[0, 0] for _ in chosen]

    def told(number: int, outcome: object) -> None:
        if isinstance(outcome, Inspected):
            done[number][0] += outcome.rows
            done[number][1] += outcome.file.size
            share = done[number][1] / max(sizes[number], 1)
            notify(Progress(chosen[number][0], done[number][0], share))

    looks: dict[str, _Look] = {}
    with running(settings, pool, limit, ()) as workers:
        courses = [_look(settings, name, state) for name, state in chosen]
        for look in engine.drive(workers, courses, limit, told):
            looks[look.result.target] = look
    return [looks[f"{settings.lake.schema_}.{name}"] for name, _ in chosen]


def _look(settings: Settings, name: str, state: State) -> Course[_Look]:
    """The course of one table; what hinders it is in the result."""
    began = time.monotonic()
    known = state.properties
    label = known[drift.TABLE]
    source = f"{known.get(drift.SOURCE, '')}.{label}"
    look = _Look(source, VerifiedTable(label, f"{settings.lake.schema_}.{name}", "equal"))
    try:
        look = yield from _inspected(state, look)
    except BronzeError as error:
        look = replace(look, result=replace(look.result, status="failed", error=error.failure()))
    return replace(look, result=replace(look.result, seconds=time.monotonic() - began))


def _inspected(state: State, look: _Look) -> Course[_Look]:
    objects = list(expire.lying(state.place))
    sizes = {found.path: found.size for found in objects}
    parts: list[Inspected] = yield [
        Task(inspection.inspect, task, look.result.table) for task in tasks(state, sizes, None)
    ]
    result, damage = found(state, parts, look.result)
    strays = expire.strays(state, objects)
    foreign = state.foreign
    wrong = result.files or result.altered or result.columns or foreign
    result = replace(
        result,
        status="differs" if wrong else "equal",
        bronze_rows=sum(part.live for part in parts),
        version=state.version,
        stray_files=len(strays),
        stray_bytes=sum(stray.size for stray in strays),
    )
    return replace(look, result=result, damage=damage)


def found(
    state: State, parts: Sequence[Inspected], result: VerifiedTable
) -> tuple[VerifiedTable, Damage]:
    """The result with what files say of themselves, and what of it can be mended."""
    damage = Damage()
    for part in parts:
        if part.fault:
            (damage.stale if part.read else damage.lost).append(part.file)
        if len(part.altered):
            damage.altered[part.file] = [part.altered]
    faulty = [FaultyFile(p.file.path, p.fault, max(p.file.rows, 0)) for p in parts if p.fault]
    rows = [
        FaultyRow("altered", key, part.file.path, what)
        for part in parts
        for key, what in part.named
    ]
    gone = sum(part.gone for part in parts)
    notes = [*result.notes]
    if gone:
        notes.append(f"{gone:,} of the altered rows have gone from the source: no repair has them")
    meddled = drift.meddled(state.columns, state.properties)
    if meddled:
        notes.append(f"another writer has changed the table's columns: {', '.join(meddled)}")
    if state.foreign:
        notes.append(f"another writer has changed the table: {'; '.join(state.foreign)}")
    return (
        replace(
            result,
            altered=gone + sum(len(part.altered) for part in parts),
            rows=tuple(rows[:LISTED]),
            files=tuple(faulty),
            columns=meddled,
            foreign=state.foreign,
            bronze_files=sum(part.read for part in parts),
            gone_rows=sum(part.rows - part.live for part in parts),
            notes=tuple(notes),
        ),
        damage,
    )


def tasks(state: State, sizes: Mapping[str, int], basis: Basis | None) -> list[Resting]:
    """The files of a table, each to be held against the log and its own rows.

    Args:
        state: the table.
        sizes: the sizes of what lies in its folder, by the path.
        basis: what the digests of its rows are made of, if they are to be summed up.
    """
    form = drift.form(state.columns, state.properties, state.partition)
    layout = drift.restored(state.columns, state.properties)
    key = tuple(json.loads(state.properties.get(drift.KEY, "[]")))
    return [
        Resting(
            place=state.place,
            file=file,
            size=sizes.get(file.path, sizes.get(unquote(file.path))),
            layout=layout,
            form=form,
            key=key if set(key) <= dict(layout).keys() else (),
            listed=LISTED,
            basis=basis,
        )
        for file in state.named
    ]
