"""How a batch of the stream lands in one table: netted, merged into its files, and committed with
the position in the same commit. What the table holds already is left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from bronze import failpoint
from bronze.anomaly import outliers
from bronze.cdc.net_changes import net_changes
from bronze.cdc.row_changes import NetChanges, NetTask
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import audit_mark, commit, log, store
from bronze.delta.log import State
from bronze.delta.positions import TablePosition
from bronze.errors import (
    BronzeError,
    CommitConflict,
    Overtaken,
    SourceRefused,
    TableRefused,
    TableVanished,
)
from bronze.execution.executors import Task, Workflow
from bronze.governance import lineage
from bronze.governance.lineage import LineageEntry
from bronze.governance.tables import quality as book
from bronze.governance.tables.quality import Graded
from bronze.ingest import diff, watermarks
from bronze.ingest.diff import Difference, Edit
from bronze.ingest.load import record_rejected_values
from bronze.ingest.plan import Plan
from bronze.model.files import WrittenFile
from bronze.model.quality import QualityTotals
from bronze.model.stamp import RowStamp
from bronze.model.units import NO_FINDINGS, Enrichment, Findings
from bronze.postgres.catalog.types import SQL_ASCII
from bronze.postgres.connection.connect import Connection
from bronze.postgres.replication import prerequisites, publication
from bronze.postgres.replication.batch import Batch, TableChanges
from bronze.postgres.replication.prerequisites import MissingPrerequisite
from bronze.postgres.replication.text_values import TextColumn
from bronze.quality import checks, set_rules
from bronze.tables import selection
from bronze.tables.selection import Target


@dataclass(frozen=True)
class QualitySoFar:
    """How the rows of some batches fared, the last of which was committed in the source at
    ``as_of`` and landed ``age`` seconds later.
    """

    scored: QualityTotals
    stamp: RowStamp
    as_of: datetime
    age: float


@dataclass
class FollowedTable:
    """A table that follows the stream.

    Attributes:
        plan: its contract, shape and key.
        described: the relation's columns (name, type oid, modifier) that the contract is made for.
        texts: how the stream's texts become its columns.
        identity: the source's columns by which the stream tells its rows apart at any moment.
        floor: transactions before this position are in the table.
        held: the position that the table itself has.
        version: its version there.
        entry: the stream's record of the table in ``governance.data_lineage``, as it is by now.
        findings: what was found out about its rows, and is not in the books yet.
        error: why it does not follow any more.
        fared: how the rows fared that have landed since that was entered last.
        doubted: the table as it knew of more records than the audit log had, if it ever did.
    """

    plan: Plan
    described: tuple[tuple[str, int, int], ...]
    texts: tuple[TextColumn, ...]
    identity: tuple[str, ...]
    floor: int
    held: int
    version: int
    entry: LineageEntry
    findings: Findings = NO_FINDINGS
    error: BronzeError | None = field(default=None)
    fared: QualitySoFar | None = field(default=None)
    doubted: State | None = field(default=None)

    @property
    def label(self) -> str:
        """The source table's ``schema.name``."""
        return self.plan.target.label

    @property
    def name(self) -> str:
        """The Bronze table's."""
        return self.plan.target.name

    @property
    def oid(self) -> int:
        """The source table's."""
        return self.plan.target.relation.oid


@dataclass(frozen=True)
class AppliedChanges:
    """What a batch did to one table; ``read`` counts the changes that came."""

    following: FollowedTable
    read: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    rejected: int = 0
    anomalies: int = 0
    quarantined: int = 0
    error: BronzeError | None = None


def record_anomalies(
    settings: Settings, following: FollowedTable, stamp: RowStamp
) -> tuple[str, ...]:
    """Enters what was found out about the rows of a table's last batches into the books.

    Returns:
        What there is to say about them.
    """
    watch, findings = following.plan.enrichment.watch, following.findings
    following.findings = NO_FINDINGS
    if watch is None or findings is NO_FINDINGS:
        return ()
    return outliers.record_findings(
        settings, following.plan.target, stamp, watch, findings, "stream"
    )


def prepare_tables(
    connection: Connection, targets: Sequence[Target], own: str, published: str
) -> tuple[list[Target], tuple[MissingPrerequisite, ...]]:
    """The tables with the keys by which a stream tells their rows apart, and what is missing.

    Args:
        connection: to the source.
        targets: the tables.
        own: the slot's name.
        published: the publication's.
    """
    relations = [target.relation for target in targets]
    known = publication.replica_identities(connection, relations)
    keyed = [_keyed(target, known.get(target.label, ())) for target in targets]
    keys = {target.label: target.key for target in keyed}
    out = {target.label: selection.dropped_columns(target) for target in keyed}
    return keyed, prerequisites.missing_prerequisites(
        connection, relations, keys, published, own, out
    )


def prerequisites_error(
    source: str, wanting: Sequence[MissingPrerequisite]
) -> SourceRefused | None:
    """Why nothing of a source can be streamed, None where something can."""
    general = [one for one in wanting if not one.table]
    if not general:
        return None
    return SourceRefused(
        f"{source} cannot be streamed yet: " + " ".join(one.what for one in general),
        hint="Have this done: " + " ".join(one.mend for one in general),
    )


def unfit_tables(wanting: Sequence[MissingPrerequisite]) -> dict[str, TableRefused]:
    """Why tables cannot be streamed, by their labels."""
    return {
        one.table: TableRefused(one.what, hint=one.mend, table=one.table)
        for one in reversed(wanting)
        if one.table
    }


def _keyed(target: Target, identity: tuple[str, ...]) -> Target:
    own, relation = target.settings, target.relation
    whole = len(identity) == len(relation.attributes)
    if own.key or not identity or whole or set(relation.key) <= set(identity):
        return target
    return replace(target, settings=own.model_copy(update={"key": identity}))


def has_same_columns(following: FollowedTable, gathered: TableChanges) -> bool:
    """Whether the stream's columns are those that the table's contract is made for, and it tells
    rows apart.
    """
    plan, described = following.plan, gathered.described
    # Of a partitioned table each partition has its own; `readiness` knows them.
    partitioned = plan.target.relation.kind == "partitioned"
    told = partitioned or set(_identity(following, gathered)) <= described.told
    same = described.columns == following.described and not gathered.drifted
    return same and told and bool(following.identity)


def _identity(following: FollowedTable, gathered: TableChanges) -> tuple[str, ...]:
    """The columns that tell rows apart, without those that the publication leaves out."""
    named = {name for name, _, _ in gathered.described.columns}
    return tuple(name for name in following.identity if name in named)


def apply_batch(
    settings: Settings,
    following: FollowedTable,
    gathered: TableChanges,
    batch: Batch,
    stamp: RowStamp,
) -> Workflow[AppliedChanges]:
    """The course of one table and one batch.

    Returns:
        What was done; a failure is in it. After `LakeUnreachable` the batch may be landed again.
    """
    try:
        return (yield from _apply(settings, following, gathered, batch, stamp))
    except BronzeError as error:
        with suppress(BronzeError):
            commit.discard(following.plan.target.place, stamp.batch_id)
        return AppliedChanges(following, error=error)


def _apply(
    settings: Settings,
    following: FollowedTable,
    gathered: TableChanges,
    batch: Batch,
    stamp: RowStamp,
) -> Workflow[AppliedChanges]:
    plan = following.plan
    label = following.label
    stamp = replace(stamp, lineage=following.entry.record.lineage_id)
    state = _current(following)
    (netted,) = yield [Task(net_changes, _job(following, gathered, stamp, state), label)]
    failpoint.reach("netted")
    record_rejected_values(settings, plan.target, stamp, netted.rejected)
    if netted.empty:
        following.entry = lineage.add_counts(following.entry, rows_read=netted.read)
        return AppliedChanges(following, netted.read)
    wanted = Difference(netted.changes, deletes=netted.deletes, emptied=netted.emptied)
    for attempt in commit.attempts():
        with attempt:
            if attempt.retry_state.attempt_number > 1:
                state = _current(following)
            edit = yield from diff.edit_table(plan, stamp, wanted, state)
            _commit(following, netted, edit, wanted.staged, batch, stamp, state)
    following.findings += netted.findings
    found = netted.findings.quality
    following.fared = _added(following.fared, found, stamp, batch)
    return AppliedChanges(
        following,
        netted.read,
        edit.inserted,
        edit.updated,
        edit.deleted,
        len(netted.rejected),
        netted.findings.outliers.count,
        found.quarantined,
    )


def _added(
    before: QualitySoFar | None, found: QualityTotals, stamp: RowStamp, batch: Batch
) -> QualitySoFar:
    seconds = batch.committed / 10**6
    scored = before.scored + found if before else found
    return QualitySoFar(scored, stamp, datetime.fromtimestamp(seconds, UTC), time.time() - seconds)


def record_quality(settings: Settings, followings: Iterable[FollowedTable]) -> None:
    """Enters how the rows fared that have landed since this was done last.

    Raises:
        LakeError, LakeUnreachable: it cannot be written.
    """
    some = [(f, f.fared) for f in followings if f.fared and f.fared.scored.rows]
    graded = [
        Graded(
            source_table=following.label,
            target_table=following.plan.target.full_name,
            stamp=fared.stamp,
            mode="stream",
            as_of=fared.as_of,
            landed=True,
            figures=checks.figures(
                enrichment_of_changes(following.plan.enrichment).quality,
                fared.scored,
                settings.demanded(following.plan.target.settings),
                fared.age,
            ),
        )
        for following, fared in some
    ]
    checks.enter(settings.place(GOVERNANCE, book.NAME), graded)
    for following, _ in some:
        following.fared = None


def _current(following: FollowedTable) -> State:
    """The table as it is.

    Raises:
        Overtaken: somebody else has moved its position, or changed rows of it.
        TableVanished: it is not there any more.
    """
    plan = following.plan
    state = log.read(plan.target.place)
    if state is None:
        raise vanished_error(plan.target)
    if table_position(plan).streamed(state) != following.held:
        raise commit.overtaken(plan.target.place)
    if foreign := watermarks.foreign_commits_reason(state):
        raise Overtaken(f"{foreign[0].upper()}{foreign[1:]}.", hint="All rows are compared.")
    return state


def vanished_error(target: Target) -> TableVanished:
    """The error of a table that has followed, and whose Bronze table is gone."""
    return TableVanished(
        f"The Bronze table {target.name} was there and is gone from {target.place.url}.",
        hint="Put it back; or start the stream again, which then copies the table anew.",
        table=target.label,
    )


def table_position(plan: Plan) -> TablePosition:
    """Where the table of a plan holds its position."""
    return TablePosition(plan.reached.name, plan.target.relation.oid)


def _job(
    following: FollowedTable, gathered: TableChanges, stamp: RowStamp, state: State
) -> NetTask:
    plan = following.plan
    return NetTask(
        table=following.label,
        gathered=gathered,
        floor=following.floor,
        columns=plan.contract.columns,
        texts=following.texts,
        row_key=plan.row_key,
        identity=_identity(following, gathered),
        into=plan.destination(stamp),
        stored=state.files,
        base=plan.contract.base,
        enrichment=enrichment_of_changes(plan.enrichment),
        any_bytes=plan.target.relation.encoding == SQL_ASCII,
    )


def _commit(
    following: FollowedTable,
    netted: NetChanges,
    edit: Edit,
    staged: Sequence[WrittenFile],
    batch: Batch,
    stamp: RowStamp,
    state: State,
) -> None:
    plan = following.plan
    place = plan.target.place
    needed = {file.path for file in edit.written}
    entry = lineage.add_counts(
        following.entry,
        rows_read=netted.read,
        rejected=len(netted.rejected),
        inserted=edit.inserted,
        updated=edit.updated,
        deleted=edit.deleted,
    )
    if stamp.audited and audit_mark.knows_more(state, stamp.audited):
        following.doubted = state
    if edit.inserted or edit.updated or edit.deleted:
        entry = lineage.advance(entry, stamp.batch_id, batch.position, state.version + 1)
        facts = {
            "batch_id": stamp.batch_id,
            "source": plan.target.source,
            "table": following.label,
            "position": batch.position,
            "loaded_at": stamp.loaded_at.isoformat(),
            "mode": "stream",
            "rows": netted.read,
            "rejected": len(netted.rejected),
            "inserted": edit.inserted,
            "updated": edit.updated,
            "deleted": edit.deleted,
            **lineage.facts_of(entry, status="landed"),
        }
        try:
            following.version = commit.commit(
                place,
                state,
                edit.change,
                facts,
                shape=plan.shape,
                reached=table_position(plan).after_batch(batch.position, batch.committed),
                audited=stamp.audited,
            )
        except CommitConflict:
            kept = {file.path for file in staged}
            _forget(following, [file for file in edit.written if file.path not in kept])
            raise
        following.held = following.floor = batch.position
    following.entry = entry
    _forget(following, [file for file in staged if file.path not in needed])


def _forget(following: FollowedTable, written: Sequence[WrittenFile]) -> None:
    with suppress(BronzeError):
        store.delete(following.plan.target.place, [file.path for file in written])


def enrichment_of_changes(copied: Enrichment) -> Enrichment:
    """What the rows that a stream brings are given, by what those of the copy were."""
    quality = replace(copied.quality, criteria=set_rules.rules_of_changes(copied.quality.criteria))
    return replace(copied, quality=quality)
