"""The rules of a table: those of the config, those made in Python, and those that follow from
PostgreSQL's own constraints.

What PostgreSQL itself sees to is proven, and costs nothing. CHECK constraints are evaluated all the
same: what they say of the source has to hold for what was carried into Bronze.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import polars as pl

from bronze.config.quality import RuleSettings
from bronze.config.settings import Settings
from bronze.errors import TableRefused
from bronze.model.quality import ResolvedRule, RuleKind
from bronze.postgres.catalog.constraints import Check, Constraints
from bronze.postgres.copy.read import dtype
from bronze.quality import expressions
from bronze.quality import scoring as quality
from bronze.quality.expressions import Unfit
from bronze.tables.evolution import ColumnContract
from bronze.tables.selection import Target, toml


def criteria(
    settings: Settings,
    target: Target,
    contract: ColumnContract,
    key: Sequence[str],
    known: Constraints,
) -> tuple[ResolvedRule, ...]:
    """All rules of a table. Those that span rows have still to be asked of PostgreSQL.

    Args:
        settings: the config.
        target: the table.
        contract: its columns.
        key: the source's names of its key.
        known: what PostgreSQL promises.

    Raises:
        TableRefused: a rule names a column that is not there, or cannot be used on it.
    """
    found: dict[str, ResolvedRule] = {}
    for rule in target.settings.rules:
        found[rule.called] = _configured(target, contract, key, known, rule)
    for name in target.names:
        for made in settings.added.get(name, ()):
            if made.name in found:
                raise _refused(target, made.name, "another rule has that name")
            expression = quality.expression(made.holds)
            found[made.name] = _checked(target, contract, made, expression)
    if settings.demanded(target.settings).derive:
        for derived in _derived(contract, key, known):
            found.setdefault(derived.name, derived)
    return tuple(found.values())


def fingerprint(settings: Settings, target: Target, criteria: Sequence[ResolvedRule]) -> str:
    """What tells whether rows would be scored as they were before."""
    said = [rule.model_dump_json() for rule in target.settings.rules]
    # What PostgreSQL proves costs no row a point.
    scoring = [c for c in criteria if c.origin != "derived" or c.evaluation != "proven"]
    said += [f"{c.name} {c.kind} {c.columns} {c.severity} {c.origin}" for c in scoring]
    said.append(str(settings.demanded(target.settings).threshold))
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def untranslated(target: Target, contract: ColumnContract, known: Constraints) -> tuple[str, ...]:
    """The names of the CHECK constraints that are left to PostgreSQL alone."""
    return tuple(
        check.name for check in known.checks if _translated(check, contract, known) is None
    )


def _translated(check: Check, contract: ColumnContract, known: Constraints) -> pl.Expr | None:
    # Its parser is loaded where there is something to parse.
    from bronze.postgres.catalog.check_constraints import check_expression

    return check_expression(check.text, contract.columns, known.folding)


def _refused(target: Target, rule: str, reason: str) -> TableRefused:
    return TableRefused(
        f"The rule {rule!r} of table {target.label} cannot be used: {reason}.",
        hint=f"Correct it in [[tables.{toml(target.relation.name)}.rules]].",
        table=target.label,
    )


def _configured(
    target: Target,
    contract: ColumnContract,
    key: Sequence[str],
    known: Constraints,
    rule: RuleSettings,
) -> ResolvedRule:
    columns = rule.on or (tuple(key) if rule.kind == "unique" else ())
    present = {column.name: column for column in contract.columns if column.name}
    missing = [name for name in columns if name not in present]
    if missing:
        raise _refused(target, rule.called, f"there is no column {missing[0]}")
    if rule.kind == "unique" and not columns:
        raise _refused(target, rule.called, "the table has no key: name columns")
    made = ResolvedRule(
        rule.called,
        rule.kind,
        columns,
        rule.severity,
        "config",
        rule.allow,
        allow_rows=rule.allow_rows,
    )
    if _proven(target, made, known, rule):
        return replace(made, evaluation="proven")
    if rule.expression is not None:
        return _checked(target, contract, made, pl.sql_expr(rule.expression))
    if rule.kind in ("unique", "references"):
        lists = [name for name in columns if present[name].kind.name == "array"]
        if lists:
            raise _refused(target, rule.called, f"column {lists[0]} is an array")
        return made
    try:
        return _with(made, expressions.of_rule(rule, present[columns[0]]))
    except Unfit as unfit:
        raise _refused(target, rule.called, str(unfit)) from None


def _with(criterion: ResolvedRule, holds: pl.Expr) -> ResolvedRule:
    return replace(criterion, holds=holds.meta.serialize())


def _checked(
    target: Target, contract: ColumnContract, made: ResolvedRule, expression: pl.Expr
) -> ResolvedRule:
    """A rule of an expression that has been tried on the table's columns."""
    schema = {column.name: dtype(column.kind) for column in contract.columns if column.name}
    try:
        used = expressions.checked(expression, schema)
    except Unfit as unfit:
        raise _refused(target, made.name, str(unfit)) from None
    return replace(_with(made, expression), columns=used)


def _proven(target: Target, made: ResolvedRule, known: Constraints, rule: RuleSettings) -> bool:
    if made.kind == "not_null":
        return made.columns[0] in known.not_null
    if made.kind == "unique":
        return any(set(columns) <= set(made.columns) for columns in known.unique)
    if rule.references is not None:
        pairs = set(zip(made.columns, referred(target, rule), strict=True))
        return any(
            held.proven
            and rule.references.table in _names(target, held.schema, held.table)
            and set(zip(held.columns, held.others, strict=True)) == pairs
            for held in known.references
        )
    return False


def _names(target: Target, schema: str, table: str) -> list[str]:
    """The names by which a rule of a table may refer to another one."""
    full = f"{schema}.{table}"
    return [full, table] if schema == target.relation.schema else [full]


def referred(target: Target, rule: RuleSettings) -> tuple[str, ...]:
    """The columns that a rule refers to.

    Raises:
        TableRefused: they are not as many as those that refer to them.
    """
    if rule.references is None:
        raise TypeError(f"the rule {rule.called} refers to nothing")
    others = rule.references.columns or rule.on
    if len(others) != len(rule.on):
        raise _refused(target, rule.called, "it refers to another number of columns")
    return others


def _derived(
    contract: ColumnContract, key: Sequence[str], known: Constraints
) -> Iterator[ResolvedRule]:
    """What follows from the source's own constraints, and from the type contract."""

    def proven(kind: RuleKind, *columns: str) -> ResolvedRule:
        name = f"{', '.join(columns)} {kind}"
        return ResolvedRule(name, kind, columns, "medium", "derived", evaluation="proven")

    if key:
        # PostgreSQL enforces it, or it was looked at when the run was planned.
        yield proven("unique", *key)
    taken = {column.name for column in contract.columns}
    yield from (proven("not_null", name) for name in known.not_null if name in taken)
    yield from (proven("accepted_values", name) for name, _ in known.enums if name in taken)
    for reference in known.references:
        if taken.issuperset(reference.columns) and (reference.proven or reference.readable):
            found = ResolvedRule(
                reference.name, "references", reference.columns, "medium", "derived"
            )
            yield replace(found, evaluation="proven") if reference.proven else found
    for check in known.checks:
        holds = _translated(check, contract, known)
        if holds is not None:
            columns = tuple(dict.fromkeys(holds.meta.root_names()))
            found = ResolvedRule(check.name, "expression", columns, "medium", "derived")
            yield _with(found, holds)
    for column in contract.columns:
        if column.name and column.reject:
            name = f"{column.name} schema"
            yield ResolvedRule(
                name, "schema", (column.name,), "medium", "derived", rejects=column.name
            )
