"""What a run would do with each table, and what stands in its way.

Of each table no more than a small sample is looked at, for what may be personal in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bronze import drift, follow, keys, plan, prepare, row_key, rules
from bronze.errors import BronzeError, LakeError, SourceRefused, TableRefused
from bronze.model import Column
from bronze.result import Failure
from bronze.rule import Criterion
from bronze.settings import Settings
from bronze.source import connect, constraint, snapshot, survey
from bronze.source.catalog import Relation
from bronze.source.connect import Connection
from bronze.source.constraint import Constraints
from bronze.source.readiness import Wanting
from bronze.source.survey import Personal
from bronze.table import log, store

KEPT = "values Delta cannot hold become NULL and are kept in governance.rejected_values"
AS_TEXT = "PostgreSQL's text"
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
    what has changed since it was last taken in, ``untranslated`` the CHECK constraints that are
    left to PostgreSQL alone.
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


@dataclass(frozen=True)
class Report:
    """What a run would do."""

    tables: tuple[TableReport, ...]
    missing: tuple[Failure, ...]

    @property
    def problems(self) -> tuple[Failure, ...]:
        """What has to be mended first."""
        found = tuple(table.problem for table in self.tables if table.problem)
        return self.missing + found


def check(settings: Settings, tables: Sequence[str] = ()) -> Report:
    """Looks at the source and the lake as a run would.

    Raises:
        ConfigError, SourceError, LakeError: neither a run nor this can begin.
    """
    keys.ready(settings)
    found: list[tuple[str, Relation]] = []
    visible: dict[str, bool] = {}
    wanting: list[tuple[str, Wanting]] = []
    personal: dict[tuple[str, int], tuple[Personal, ...]] = {}
    known: dict[tuple[str, int], Constraints] = {}
    for name, source in settings.source.items():
        origin = settings.origin(name)
        with connect.mapped(origin), connect.connect(origin) as connection:
            mine = [(name, r) for r in prepare.found(connection, name, source.schema_)]
            visible[name] = snapshot.opened(connection).visible
            wanting += [(name, w) for w in _wanting(settings, name, connection, mine)]
            known |= {(name, r.oid): constraint.constraints(connection, r) for _, r in mine}
            found += mine
            taken = [relation for _, relation in mine if source.takes(relation.name)]
            for seen in survey.look(connection, taken):
                personal[name, seen.relation.oid] = seen.personal
    chosen = prepare.targets(settings, found, tables)
    store.prove_writable(settings.place(settings.lake.schema_, ""))
    missing: list[BronzeError] = [] if tables else [*prepare.missing(settings, chosen)]
    missing += [SourceRefused(w.what, hint=w.mend) for _, w in wanting if not w.table]
    unfit = {
        (name, w.table): TableRefused(w.what, hint=w.mend, table=w.table)
        for name, w in wanting
        if w.table
    }
    left = _left(settings, chosen)
    return Report(
        tuple(
            _table(
                settings,
                target,
                visible[target.source],
                left,
                unfit.get((target.source, target.label)),
                personal.get((target.source, target.relation.oid), ()),
                known,
            )
            for target in chosen
        ),
        tuple(error.failure() for error in missing),
    )


def _wanting(
    settings: Settings, name: str, connection: Connection, found: Sequence[tuple[str, Relation]]
) -> tuple[Wanting, ...]:
    """What keeps the tables of a source from being streamed that the config has streamed."""
    relations = [
        (name, relation)
        for _, relation in found
        if settings.table(name, relation.schema, relation.name).pattern == "streaming"
        and settings.source[name].takes(relation.name)
    ]
    if not relations:
        return ()
    targets = prepare.targets(settings, relations, ())
    return follow.fitted(connection, targets, *settings.stream.names(name))[1]


def _left(settings: Settings, chosen: Sequence[prepare.Target]) -> dict[tuple[str, str], str]:
    """The Bronze tables that no table of the source becomes: source and oid of what they were."""
    if all(log.read(target.place) for target in chosen):
        return {}
    taken = {target.name for target in chosen}
    found: dict[tuple[str, str], str] = {}
    for name in store.folders(settings.place(settings.lake.schema_, "")):
        state = None if name in taken else log.read(settings.place(settings.lake.schema_, name))
        if state and drift.OID in state.properties:
            known = state.properties
            found[known[drift.SOURCE], known[drift.OID]] = name
    return found


def _table(
    settings: Settings,
    target: prepare.Target,
    visible: bool,
    left: Mapping[tuple[str, str], str],
    unfit: TableRefused | None,
    personal: Sequence[Personal],
    known: Mapping[tuple[str, int], Constraints],
) -> TableReport:
    relation = target.relation
    columns: tuple[Column, ...] = ()
    notes = _unprotected(target, personal)
    problem = None
    held: tuple[RuleReport, ...] = ()
    untranslated: tuple[str, ...] = ()
    try:
        if not relation.readable:
            raise prepare.unreadable(target)
        columns = prepare.columns(target)
        if unfit:
            raise unfit
        state, settled, _ = plan.settle(target, visible)
        notes += settled.notes
        if refused := row_key.no_key(target, target.settings.key or relation.key, relation.keyless):
            raise refused
        promised = known[target.source, relation.oid]
        key = target.settings.key or relation.key
        held = tuple(map(_rule, rules.criteria(settings, target, settled, key, promised)))
        untranslated = rules.untranslated(target, settled, promised)
        if state is None and (before := left.get((target.source, str(relation.oid)))):
            notes += (
                f"it was taken as {before} until it was renamed: it becomes a new table, unless"
                f' the config says target = "{before}"',
            )
    except (TableRefused, LakeError) as error:
        problem = error.failure()
    return TableReport(
        table=target.label,
        target=f"{target.schema}.{target.name}",
        kind=relation.kind,
        rows=relation.rows,
        bytes=sum(relation.heaps) * relation.page + relation.toast,
        key=tuple(target.settings.key or relation.key),
        columns=tuple(_column(column) for column in columns),
        notes=notes,
        problem=problem,
        rules=held,
        untranslated=untranslated,
    )


def _rule(criterion: Criterion) -> RuleReport:
    return RuleReport(
        criterion.name,
        criterion.kind,
        criterion.columns,
        criterion.severity,
        criterion.origin,
        criterion.evaluation,
    )


def _unprotected(target: prepare.Target, personal: Sequence[Personal]) -> tuple[str, ...]:
    """What to say of columns that look personal, and that the config does not speak of."""
    left = [one for one in personal if one.column not in target.settings.protect]
    if not left:
        return ()
    names = ", ".join(f"{one.column} ({one.kind}, by {' and '.join(one.signs)})" for one in left)
    pairs = ", ".join(f'{prepare.toml(one.column)} = "encrypt"' for one in left)
    said = f"looks personal and is not protected: {names}. Say protect = {{ {pairs} }},"
    return (f'{said} or "clear" for what may be read by all',)


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
