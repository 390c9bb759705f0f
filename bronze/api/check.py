"""Checks what a run would do with each table, and which problems it would have.

No rows are read except a small sample of each table, in which personal data is searched for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import uuid_utils

from bronze.api.load_pattern import LoadPattern, load_pattern
from bronze.config.settings import Settings
from bronze.delta import log, store
from bronze.delta.properties import TableProperties
from bronze.errors import (
    BronzeError,
    ConfigError,
    LakeError,
    SecretsUnreachable,
    SourceError,
    SourceRefused,
    TableRefused,
)
from bronze.execution import budget
from bronze.governance import audit, openlineage
from bronze.governance.escrow import heads
from bronze.ingest import plan
from bronze.maintenance import automatic
from bronze.model.columns import Column
from bronze.model.quality import ResolvedRule
from bronze.model.results import Failure, Shown
from bronze.model.stamp import RowStamp
from bronze.postgres.catalog import survey
from bronze.postgres.catalog.constraints import Constraints
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.catalog.survey import Survey
from bronze.postgres.connection import capacity, connect, parameters, translation
from bronze.postgres.copy import rows_reader
from bronze.postgres.copy.snapshot import Consistency, Snapshot
from bronze.postgres.replication import slot
from bronze.quality import rules, set_rules
from bronze.tables import blind_spots, open_sources, selection
from bronze.tables.context import TableContext, constraints_of, streamed_columns_of
from bronze.tables.open_sources import OpenSource

REJECTED = "may be rejected"
_AS_TEXT = "PostgreSQL's text"
_STANDBY = (
    "is a standby: a cursor column needs an overlap, nothing can be streamed, and it cancels reads"
    " that hold up its replay for longer than max_standby_streaming_delay"
)
_PROTECTED = {
    "encrypt": "encrypted with AES-256-GCM",
    "encrypt_deterministic": "encrypted with AES-256-SIV, equal values alike",
    "tokenize": "replaced by a token",
    "hash": "replaced by its keyed hash",
    "mask": "masked",
}


@dataclass(frozen=True)
class ColumnReport:
    """What a column becomes."""

    name: str
    source_type: str
    target: str
    delta_type: str
    note: str


@dataclass(frozen=True)
class RuleReport:
    """A rule that the rows of a table are checked by."""

    name: str
    kind: str
    columns: tuple[str, ...]
    severity: str
    origin: str
    evaluation: str


@dataclass(frozen=True)
class TableReport:
    """What a table becomes.

    ``rows`` is the planner's estimate (-1: never analysed), ``notes`` are what has changed since
    the last load and other messages, ``limits`` which changes bronze cannot see by design,
    ``untranslated`` the CHECK constraints that only PostgreSQL can evaluate. ``unprotected`` are
    the columns that look personal and that the config does not mention. ``written_by`` is the
    version of bronze that wrote the Bronze table last, "" where none has or it was not recorded.
    ``load`` is how it is loaded.
    """

    table: str
    target: str
    kind: str
    rows: int
    bytes: int
    key: tuple[str, ...]
    columns: tuple[ColumnReport, ...]
    notes: tuple[str, ...] = ()
    problem: Failure | None = None
    rules: tuple[RuleReport, ...] = ()
    untranslated: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    unprotected: tuple[str, ...] = ()
    written_by: str = ""
    load: LoadPattern | None = None


@dataclass(frozen=True, repr=False)
class CheckReport(Shown):
    """What a run would do. ``missing`` are problems of no single table, ``notes`` are about the
    sources.
    """

    tables: tuple[TableReport, ...]
    missing: tuple[Failure, ...]
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[Failure, ...]:
        """All errors that a run would have."""
        return self.missing + tuple(table.problem for table in self.tables if table.problem)

    @property
    def warnings(self) -> int:
        """How many notes there are, on tables and on the sources."""
        return len(self.notes) + sum(len(table.notes) for table in self.tables)

    @property
    def exit_code(self) -> int:
        """0: a run would have no problem; 1: it would."""
        return 1 if self.problems else 0

    def _row(self, item: TableReport) -> Mapping[str, Any]:
        columns = [f"{column.target} {column.delta_type}" for column in item.columns]
        load = item.load
        cells = {
            "table": item.table,
            "target": item.target,
            "kind": item.kind,
            "pattern": load.pattern if load else "",
            "cursor": load.cursor if load else "",
            **asdict(item),
            "columns": columns,
            "rules": [rule.name for rule in item.rules],
        }
        del cells["load"]
        return cells


def check(settings: Settings, tables: Sequence[str] = ()) -> CheckReport:
    """Checks the source and the lake as a run would: in a snapshot, under the same locks.

    Raises:
        ConfigError, SourceError, LakeError: neither a run nor this check can start.
    """
    openlineage.check_package(settings)
    missing: list[BronzeError] = []
    notes: list[str] = []
    try:
        audit.check_key(settings)
        heads.put_newest(settings)
    except (ConfigError, SecretsUnreachable, LakeError) as error:
        missing.append(error)
    with ExitStack() as stack:
        present, sources = open_sources.open_all(
            settings, str(uuid_utils.uuid7()), stack, detailed=True
        )
        chosen = selection.select_targets(settings, present, tables)
        store.prove_writable(settings.place(settings.lake.schema_, ""))
        missing += [] if tables else selection.missing_tables(settings, chosen)
        orphans = _orphans(settings, chosen)
        reports: dict[str, TableReport] = {}
        for name, source in sources.items():
            targets = [target for target in chosen if target.source == name]
            if targets:
                checked = _check_source(settings, source, targets, stack)
                missing += checked.problems
                notes += checked.notes
                for target in targets:
                    reports[target.place.url] = _table_report(settings, checked, target, orphans)
    return CheckReport(
        tuple(reports[target.place.url] for target in chosen),
        tuple(error.failure() for error in missing),
        tuple(notes),
    )


@dataclass(frozen=True)
class _CheckedSource:
    """A source, its snapshot, and the problems that concern all of its tables.

    ``no_stream`` is why none of them can be streamed, ``limits`` are limits of connections that are
    too low, with hints. ``unfit`` says, by table, why it cannot be streamed; ``streamed`` are the
    others with their keys. ``relations`` and ``surveys`` are by oid.
    """

    source: OpenSource
    snapshot: Snapshot
    no_stream: BronzeError | None
    limits: Sequence[tuple[str, str]]
    unfit: Mapping[str, TableRefused]
    streamed: Mapping[str, selection.Target]
    relations: Mapping[int, Relation]
    surveys: Mapping[int, Survey]

    @property
    def problems(self) -> list[BronzeError]:
        """The problems of the source itself."""
        errors = [self.no_stream] if self.no_stream else []
        return [*errors, *(SourceRefused(what, hint=hint) for what, hint in self.limits)]

    @property
    def notes(self) -> list[str]:
        """A note on what a standby cannot do."""
        if not self.snapshot.since.standby:
            return []
        return [f"{parameters.address(self.source.origin)} {_STANDBY}"]


def _check_source(
    settings: Settings, source: OpenSource, targets: Sequence[selection.Target], stack: ExitStack
) -> _CheckedSource:
    connection, name = source.connection, source.origin.name
    streamed = [target for target in targets if target.settings.pattern == "streaming"]
    keyed: list[selection.Target] = []
    unfit: Mapping[str, TableRefused] = {}
    no_stream: BronzeError | None = None
    with translation.source_errors(source.origin):
        if streamed:
            # The modules of streams take a tenth of a check of other tables.
            from bronze.cdc import table_sync

            slot_name, publication_name = settings.stream.names(name)
            keyed, wanting = table_sync.prepare_tables(
                connection, streamed, slot_name, publication_name
            )
            unfit = table_sync.unfit_tables(wanting)
            no_stream = table_sync.prerequisites_error(name, wanting) or _slot_conflict(
                connection, slot_name
            )
        limits = capacity.low_connection_limits(connection, source.origin, bool(streamed))
        surveys = survey.survey_relations(connection, [target.relation for target in targets])
    if len(streamed) < len(targets):
        rows_reader.check_reachable(source.origin)
    # A stream gets its snapshot from its slot, so a check of streamed tables needs none to share.
    per_table = len(streamed) == len(targets)
    mode: Consistency = "per-table" if per_table else settings.source[name].consistency
    shared = source.take_snapshot(settings, targets, stack, mode)
    return _CheckedSource(
        source=source,
        snapshot=shared,
        no_stream=no_stream,
        limits=limits,
        unfit=unfit,
        streamed={target.label: target for target in keyed},
        relations={relation.oid: relation for relation in shared.relations},
        surveys={surveyed.relation.oid: surveyed for surveyed in surveys},
    )


def _slot_conflict(connection: connect.Connection, name: str) -> ConfigError | None:
    """Why the stream cannot use a slot of this name, None if it can."""
    try:
        slot.find(connection, name)
    except ConfigError as error:
        return error
    return None


def _orphans(settings: Settings, chosen: Sequence[selection.Target]) -> dict[tuple[str, int], str]:
    """The Bronze tables that no table is loaded into, by the source and oid of their old table."""
    if all(log.read(target.place) for target in chosen):
        return {}
    targets = {target.name for target in chosen}
    orphans: dict[tuple[str, int], str] = {}
    for name in store.folders(settings.place(settings.lake.schema_, "")):
        state = None if name in targets else log.read(settings.place(settings.lake.schema_, name))
        if state is None:
            continue
        known = TableProperties.read(state.properties)
        # Of a table that is not loaded now, an oid that cannot be read only costs a note.
        with suppress(LakeError):
            if known.oid is not None:
                orphans[known.source, known.oid] = name
    return orphans


def _table_report(
    settings: Settings,
    checked: _CheckedSource,
    target: selection.Target,
    orphans: Mapping[tuple[str, int], str],
) -> TableReport:
    relation = target.relation
    surveyed = checked.surveys.get(relation.oid)
    personal = surveyed.personal if surveyed else ()
    notes = selection.unprotected_notes(target, personal)
    notes += blind_spots.ctid_notes(relation, checked.snapshot.version)
    notes += blind_spots.reader_notes(target.settings)
    notes += automatic.notes_of(settings, target.settings, target.place)
    report = TableReport(
        table=target.label,
        target=target.full_name,
        kind=relation.kind,
        rows=relation.rows,
        bytes=sum(relation.heaps) * relation.page + relation.toast,
        key=target.key,
        columns=(),
        notes=notes,
        unprotected=tuple(column.column for column in selection.unprotected(target, personal)),
        load=load_pattern(settings, target, surveyed) if surveyed else None,
    )
    columns: tuple[Column, ...] = ()
    try:
        given = _assignment(settings, checked, target)
        known = constraints_of(given)
        columns = selection.contract_columns(given.target)
        outline = plan.outline_plan(given)
        report = replace(report, notes=report.notes + outline.contract.notes)
        if outline.state is not None:
            written = TableProperties.read(outline.state.properties).writer
            notes = report.notes + blind_spots.release_notes(written)
            report = replace(report, written_by=written, notes=notes)
        report = _with_rules(report, given, outline, known)
        report = replace(report, notes=report.notes + _rename_notes(given, outline, orphans))
    except (SourceError, LakeError) as error:
        report = replace(report, problem=error.failure())
    return replace(
        report,
        columns=tuple(_column(column) for column in columns),
        limits=blind_spots.limits(settings, target, columns),
    )


def _assignment(
    settings: Settings, checked: _CheckedSource, target: selection.Target
) -> TableContext:
    """The table as a run or a stream would process it.

    Raises:
        SourceError: it cannot be read or streamed.
    """
    if target.label in checked.unfit:
        raise checked.unfit[target.label]
    current = checked.streamed.get(target.label, target)
    relation = open_sources.relation_in_snapshot(target, checked.snapshot, checked.relations)
    current = selection.with_relation(current, relation)
    origin = checked.source.origin
    stamp = RowStamp("0", datetime.now(UTC), origin.name, target.settings.method)
    run = settings.run
    readers = budget.readers(run.memory, run.workers, checked.source.slots, run.engine)
    given = TableContext(current, checked.snapshot, origin, stamp, settings, readers)
    return replace(given, target=_with_published_columns(given))


def _with_published_columns(given: TableContext) -> selection.Target:
    """A streamed table with only those columns that its publication has, or will have."""
    target = given.target
    if target.settings.pattern != "streaming":
        return target
    return selection.with_columns_of(target, streamed_columns_of(given))


def _with_rules(
    report: TableReport, given: TableContext, outline: plan.PlanOutline, known: Constraints
) -> TableReport:
    """The report with the rules of the table.

    Raises:
        TableRefused: a rule cannot be used on the table.
    """
    key = tuple(column.name for column in outline.key)
    criteria = rules.criteria(given.settings, given.target, outline.contract, key, known)
    set_rules.check_set_rules(given, known, criteria)
    return replace(
        report,
        rules=tuple(map(_rule, criteria)),
        untranslated=rules.untranslated_checks(given.target, outline.contract, known),
    )


def _rename_notes(
    given: TableContext, outline: plan.PlanOutline, orphans: Mapping[tuple[str, int], str]
) -> tuple[str, ...]:
    """A note on a new table that was loaded into another Bronze table under its old name."""
    orphan = orphans.get((given.target.source, given.target.relation.oid))
    if outline.state is not None or not orphan:
        return ()
    return (
        f"it was loaded as {orphan} before it was renamed: it becomes a new table, unless the"
        f' config has target = "{orphan}"',
    )


def _rule(criterion: ResolvedRule) -> RuleReport:
    return RuleReport(
        criterion.name,
        criterion.kind,
        criterion.columns,
        criterion.severity,
        criterion.origin,
        criterion.evaluation,
    )


def _column(column: Column) -> ColumnReport:
    note = ""
    if column.protect:
        note = _PROTECTED[column.protect.method]
    elif column.reject:
        note = REJECTED
    elif column.kind.name == "string" and column.source_type.split("(")[0] not in (
        "text",
        "character varying",
    ):
        note = _AS_TEXT
    return ColumnReport(
        column.name, column.source_type, column.target, str(column.stored_type), note
    )
