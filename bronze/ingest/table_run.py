"""One table of a run: its plan, what its units did, and its lineage record."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from functools import reduce
from operator import add

from bronze.config.settings import Settings
from bronze.errors import BronzeError
from bronze.governance import actor
from bronze.governance.lineage import LineageEntry
from bronze.governance.tables.data_lineage import LineageRecord
from bronze.governance.tables.quality import Figure
from bronze.ingest.plan import Plan
from bronze.model.locations import Origin
from bronze.model.stamp import RowStamp
from bronze.model.units import NO_FINDINGS, Findings, RejectedValue, UnitResult
from bronze.postgres.copy.snapshot import Snapshot
from bronze.printable import count
from bronze.tables import known_rows
from bronze.tables.evolution import ColumnContract
from bronze.tables.selection import Target


def lineage_entry(
    settings: Settings,
    config: str,
    target: Target,
    stamp: RowStamp,
    snapshot: Snapshot,
    plan: Plan | None,
) -> LineageEntry:
    """The lineage record of a table as its run starts; ``config`` is the hash of the config."""
    state = plan.state if plan else None
    version = state.version if state else None
    record = LineageRecord(
        lineage_id=stamp.lineage,
        source_system=stamp.source_system,
        source_table=target.label,
        target_system=settings.lake.root,
        target_table=target.full_name,
        transformation_type=stamp.method,
        created_by=", ".join(filter(None, (actor.user(), actor.identity()))),
        batch_id=stamp.batch_id,
        mode=plan.mode if plan else "",
        position=snapshot.position,
        snapshot=snapshot.name,
        timeline=snapshot.timeline,
        version_before=version,
        version_after=None,
        rows_read=0,
        inserted=0,
        updated=0,
        deleted=0,
        rejected=0,
        contract_hash=contract_hash(plan.contract) if plan else "",
        config_hash=config,
        schema_changes=json.dumps(schema_changes(plan), ensure_ascii=False),
        status="failed",
        error_kind="",
    )
    at = snapshot.holder.info
    return LineageEntry(
        record=record,
        place=target.place,
        version=version,
        columns=plan.contract.columns if plan else (),
        database=f"{at.host}:{at.port}/{at.dbname}",
        began=stamp.loaded_at,
    )


def contract_hash(contract: ColumnContract) -> str:
    """The hash of what each column becomes, as 32 hexadecimal digits."""
    columns = [(c.name, c.target, c.source_type, str(c.kind), c.wire) for c in contract.columns]
    return hashlib.sha256(json.dumps(columns, ensure_ascii=False).encode()).hexdigest()[:32]


def schema_changes(plan: Plan | None) -> tuple[str, ...]:
    """What the plan of a table changes in its columns, as sentences."""
    if plan is None:
        return ()
    if plan.state is None:
        return (f"created with {count(len(plan.contract.columns), 'column')}",)
    return plan.contract.notes


@dataclass
class TableRun:
    """One table of a run, read in ``snapshot`` by ``readers`` workers. ``results`` are those
    of its units, ``began`` is when its load began, a time of `time.monotonic`; ``stages`` are the
    seconds of its parts.
    """

    target: Target
    origin: Origin
    snapshot: Snapshot
    stamp: RowStamp
    readers: int
    entry: LineageEntry
    plan: Plan | None = None
    error: BronzeError | None = None
    results: list[UnitResult] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    figures: tuple[Figure, ...] = ()
    stages: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        """Begins to count the seconds of the table."""
        self.began = time.monotonic()
        self.stages.clear()

    def end_stage(self, name: str) -> None:
        """Records the seconds since the stage before this one."""
        passed = time.monotonic() - self.began - sum(self.stages.values())
        self.stages[name] = round(passed, 3)

    @property
    def rows(self) -> int:
        """How many rows were read, each counted once; reads of keys alone do not count."""
        units = self.plan.units if self.plan else ()
        return sum(part.rows for part in self.results if units[part.unit].counts_rows)

    @property
    def rejected(self) -> list[RejectedValue]:
        """The values that Delta cannot hold."""
        return [record for part in self.results for record in part.rejected]

    @property
    def findings(self) -> Findings:
        """The anomalies, profile and quality of the rows that were read."""
        return reduce(add, (part.findings for part in self.results), NO_FINDINGS)

    @property
    def size(self) -> int:
        """About how many bytes are read from the source."""
        return sum(unit.estimate for unit in self.plan.units) if self.plan else 0

    def compare_all_rows(self, plan: Plan) -> Plan:
        """Replaces the plan by one that compares all rows, and forgets what was read."""
        known_rows.drop_index(self.target.place)
        self.results.clear()
        self.plan = plan.compare_all_rows()
        return self.plan
