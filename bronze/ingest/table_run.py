"""The record of what a run does with one table."""

from __future__ import annotations

import hashlib
import json

from bronze.config.settings import Settings
from bronze.governance import actor
from bronze.governance.lineage import Entry
from bronze.governance.tables.data_lineage import Record
from bronze.ingest.plan import Plan
from bronze.model.stamp import Stamp
from bronze.postgres.copy.snapshot import Snapshot
from bronze.tables.evolution import Settled
from bronze.tables.selection import Target


def begun(
    settings: Settings,
    config: str,
    target: Target,
    stamp: Stamp,
    held: Snapshot,
    plan: Plan | None,
) -> Entry:
    """The record of a table before anything has happened to it; ``config`` is the config's hash."""
    state = plan.state if plan else None
    version = state.version if state else None
    record = Record(
        lineage_id=stamp.lineage,
        source_system=stamp.source_system,
        source_table=target.label,
        target_system=settings.lake.root,
        target_table=target.full_name,
        transformation_type=stamp.method,
        created_by=", ".join(filter(None, (actor.user(), actor.identity()))),
        batch_id=stamp.batch_id,
        mode=plan.mode if plan else "",
        position=held.position,
        snapshot=held.name,
        timeline=held.timeline,
        version_before=version,
        version_after=None,
        rows_read=0,
        inserted=0,
        updated=0,
        deleted=0,
        rejected=0,
        contract_hash=contract(plan.settled) if plan else "",
        config_hash=config,
        schema_changes=json.dumps(changes(plan), ensure_ascii=False),
        status="failed",
        error_kind="",
    )
    at = held.holder.info
    return Entry(
        record=record,
        place=target.place,
        version=version,
        columns=plan.settled.columns if plan else (),
        database=f"{at.host}:{at.port}/{at.dbname}",
        began=stamp.loaded_at,
    )


def contract(settled: Settled) -> str:
    """The hash of what each column becomes, as 32 hexadecimal digits."""
    told = [(c.name, c.target, c.source_type, str(c.kind), c.wire) for c in settled.columns]
    return hashlib.sha256(json.dumps(told, ensure_ascii=False).encode()).hexdigest()[:32]


def changes(plan: Plan | None) -> tuple[str, ...]:
    """What happens to a table's columns by its plan."""
    if plan is None:
        return ()
    if plan.state is None:
        return (f"created with {len(plan.settled.columns)} columns",)
    return plan.settled.notes
