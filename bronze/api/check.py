"""What a run would do with each table, and what stands in its way.

Of each table no more than a small sample is looked at, for what may be personal in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import uuid_utils

from bronze.cdc import apply
from bronze.config.settings import Settings
from bronze.delta import log, properties, store
from bronze.errors import (
    BronzeError,
    ConfigError,
    LakeError,
    SourceError,
    SourceRefused,
    TableRefused,
)
from bronze.execution import budget
from bronze.governance import audit, openlineage
from bronze.ingest import pipeline, plan
from bronze.ingest.pipeline import OpenSource
from bronze.model.columns import Column
from bronze.model.quality import Criterion
from bronze.model.results import Failure
from bronze.model.stamp import Stamp
from bronze.postgres.catalog import constraints, survey
from bronze.postgres.catalog.constraints import Constraints
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.catalog.survey import Personal
from bronze.postgres.connection import capacity, connect
from bronze.postgres.copy import read, snapshot
from bronze.postgres.copy.snapshot import Consistency, Snapshot
from bronze.postgres.replication import publication, slot
from bronze.postgres.replication.prerequisites import Wanting
from bronze.quality import rules, set_rules
from bronze.tables import blind_spots, selection
from bronze.tables.context import TableContext, ask_source

KEPT = "values Delta cannot hold become NULL and are kept in governance.rejected_values"
AS_TEXT = "PostgreSQL's text"
STANDBY = (
    "is a standby: each table is read at a moment of its own, a cursor column needs an overlap, and"
    " nothing can be streamed"
)
PROTECTED = {
    "encrypt": "encrypted with AES-256-GCM",
    "encrypt_deterministic": "encrypted with AES-256-SIV, equal values alike",
    "tokenize": "a token takes its place",
    "hash": "its keyed hash takes its place",
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
    """A rule that the rows of a table are held against."""

    name: str
    kind: str
    columns: tuple[str, ...]
    severity: str
    origin: str
    evaluation: str


@dataclass(frozen=True)
class TableReport:
    """What a table becomes. ``rows`` is the planner's estimate (-1: never analysed), ``notes``
    what has changed since it was last taken in and what else there is to know, ``limits`` what by
    design is not seen of it, ``untranslated`` the CHECK constraints that are left to PostgreSQL
    alone.
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


@dataclass(frozen=True)
class Report:
    """What a run would do. ``notes`` are about the sources."""

    tables: tuple[TableReport, ...]
    missing: tuple[Failure, ...]
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[Failure, ...]:
        """What has to be mended first."""
        found = tuple(table.problem for table in self.tables if table.problem)
        return self.missing + found


def check(settings: Settings, tables: Sequence[str] = ()) -> Report:
    """Looks at the source and the lake as a run would: in a snapshot, under the same locks.

    Raises:
        ConfigError, SourceError, LakeError: neither a run nor this can begin.
    """
    openlineage.ready(settings)
    missing: list[BronzeError] = []
    notes: list[str] = []
    try:
        audit.ready(settings)
    except ConfigError as error:
        missing.append(error)
    with ExitStack() as stack:
        found, sources = pipeline.open_sources(settings, str(uuid_utils.uuid7()), stack)
        chosen = selection.targets(settings, found, tables)
        store.prove_writable(settings.place(settings.lake.schema_, ""))
        missing += [] if tables else selection.missing(settings, chosen)
        left = _left(settings, chosen)
        reports: dict[str, TableReport] = {}
        for name, source in sources.items():
            mine = [target for target in chosen if target.source == name]
            if mine:
                looked = _look(settings, source, mine, stack)
                where = f"{connect.address(source.origin)} {STANDBY}"
                notes += [where] if looked.held.since.standby and not looked.alone else []
                missing += [looked.alone] if looked.alone else []
                missing += [looked.refused] if looked.refused else []
                missing += [SourceRefused(what, hint=mend) for what, mend in looked.narrow]
                for target in mine:
                    reports[target.place.url] = _table(settings, looked, target, left)
    return Report(
        tuple(reports[target.place.url] for target in chosen),
        tuple(error.failure() for error in missing),
        tuple(notes),
    )


@dataclass(frozen=True)
class _Looked:
    """What a look at a source has found. ``alone`` is why a run can take no snapshot that all its
    tables share, ``refused`` why nothing of it can be streamed,
    ``narrow`` what limits of connections are too small, with the mends, ``unfit`` why tables
    cannot be streamed, ``keyed`` are the streamed ones with the keys of their rows.
    """

    source: OpenSource
    held: Snapshot
    alone: BronzeError | None
    refused: BronzeError | None
    narrow: Sequence[tuple[str, str]]
    unfit: Mapping[str, TableRefused]
    keyed: Mapping[str, selection.Target]
    seen: Mapping[int, Relation]
    personal: Mapping[int, Sequence[Personal]]


def _look(
    settings: Settings, source: OpenSource, mine: Sequence[selection.Target], stack: ExitStack
) -> _Looked:
    connection, name = source.connection, source.origin.name
    streamed = [target for target in mine if target.settings.pattern == "streaming"]
    keyed: list[selection.Target] = []
    wanting: tuple[Wanting, ...] = ()
    refused: BronzeError | None = None
    with connect.mapped(source.origin):
        if streamed:
            own, published = settings.stream.names(name)
            keyed, wanting = apply.fitted(connection, streamed, own, published)
            refused = apply.refusal(name, wanting) or _misnamed(connection, own)
        narrow = capacity.narrow(connection, source.origin, bool(streamed))
        surveyed = survey.look(connection, [target.relation for target in mine])
    if len(streamed) < len(mine):
        read.reachable(source.origin)
    consistency = settings.source[name].consistency
    standby = snapshot.opened(connection).standby and consistency == "run"
    # A stream's snapshot is that of its slot.
    own_moment: Consistency = "per-table" if standby or len(streamed) == len(mine) else consistency
    held = source.held(settings, mine, stack, own_moment)
    return _Looked(
        source=source,
        held=held,
        alone=snapshot.on_standby(source.origin) if standby else None,
        refused=refused,
        narrow=narrow,
        unfit=apply.unfit(wanting),
        keyed={target.label: target for target in keyed},
        seen={relation.oid: relation for relation in held.relations},
        personal={one.relation.oid: one.personal for one in surveyed},
    )


def _misnamed(connection: connect.Connection, name: str) -> ConfigError | None:
    """Why a slot of this name cannot be the stream's, None where it can."""
    try:
        slot.find(connection, name)
    except ConfigError as error:
        return error
    return None


def _left(settings: Settings, chosen: Sequence[selection.Target]) -> dict[tuple[str, str], str]:
    """The Bronze tables that no table of the source becomes: source and oid of what they were."""
    if all(log.read(target.place) for target in chosen):
        return {}
    taken = {target.name for target in chosen}
    found: dict[tuple[str, str], str] = {}
    for name in store.folders(settings.place(settings.lake.schema_, "")):
        state = None if name in taken else log.read(settings.place(settings.lake.schema_, name))
        if state and properties.OID in state.properties:
            known = state.properties
            found[known[properties.SOURCE], known[properties.OID]] = name
    return found


def _table(
    settings: Settings,
    looked: _Looked,
    target: selection.Target,
    left: Mapping[tuple[str, str], str],
) -> TableReport:
    relation = target.relation
    held, origin = looked.held, looked.source.origin
    columns: tuple[Column, ...] = ()
    notes = selection.unprotected(target, looked.personal.get(relation.oid, ()))
    notes += blind_spots.slowly(relation, held.version)
    problem = None
    known = Constraints()
    rules_held: tuple[RuleReport, ...] = ()
    untranslated: tuple[str, ...] = ()
    try:
        if target.label in looked.unfit:
            raise looked.unfit[target.label]
        now = looked.keyed.get(target.label, target)
        now = selection.seen(now, pipeline.relation_in_snapshot(target, held, looked.seen))
        stamp = Stamp("0", datetime.now(UTC), origin.name, target.settings.method)
        readers = budget.readers(settings.run.memory, settings.run.workers, looked.source.slots)
        given = TableContext(now, held, origin, stamp, settings, readers)
        given = replace(given, target=_streamable(given))
        known = ask_source(given, lambda holder: constraints.constraints(holder, relation))
        columns = selection.columns(given.target)
        outline = plan.outline_plan(given)
        settled = outline.contract
        notes += settled.notes
        key = tuple(column.name for column in outline.key)
        criteria = rules.criteria(settings, given.target, settled, key, known)
        set_rules.answerable(given, known, criteria)
        rules_held = tuple(map(_rule, criteria))
        untranslated = rules.untranslated(given.target, settled, known)
        before = left.get((target.source, str(relation.oid)))
        if outline.state is None and before:
            notes += (
                f"it was taken as {before} until it was renamed: it becomes a new table, unless"
                f' the config says target = "{before}"',
            )
    except (SourceError, LakeError) as error:
        problem = error.failure()
    return TableReport(
        table=target.label,
        target=target.full_name,
        kind=relation.kind,
        rows=relation.rows,
        bytes=sum(relation.heaps) * relation.page + relation.toast,
        key=target.key,
        columns=tuple(_column(column) for column in columns),
        notes=notes,
        limits=blind_spots.limits(settings, target, columns),
        problem=problem,
        rules=rules_held,
        untranslated=untranslated,
    )


def _streamable(context: TableContext) -> selection.Target:
    """A table with those columns only that its stream carries, or will, if it is streamed."""
    target = context.target
    if target.settings.pattern != "streaming":
        return target
    _, published = context.settings.stream.names(context.origin.name)
    names = ask_source(
        context, lambda holder: publication.carried(holder, target.relation, published)
    )
    return selection.carried(target, names)


def _rule(criterion: Criterion) -> RuleReport:
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
        note = PROTECTED[column.protect.method]
    elif column.reject:
        note = KEPT
    elif column.kind.name == "string" and column.source_type.split("(")[0] not in (
        "text",
        "character varying",
    ):
        note = AS_TEXT
    return ColumnReport(column.name, column.source_type, column.target, str(column.stored), note)
