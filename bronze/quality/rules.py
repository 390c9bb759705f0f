"""The rules of a table: those of the config, those added in Python, and those that follow from
PostgreSQL's constraints.

Rules that PostgreSQL enforces are proven, and are not evaluated. CHECK constraints are evaluated
nevertheless: they must hold for the rows in Bronze too.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import polars as pl

from bronze.config.sections.quality import RuleSettings
from bronze.config.settings import Settings
from bronze.errors import TableRefused
from bronze.model.locations import TableName
from bronze.model.quality import ResolvedRule, RuleKind
from bronze.postgres.catalog.constraints import Check, Constraints
from bronze.postgres.copy.rows_reader import dtype
from bronze.quality import expressions, scoring
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
    """All rules of a table; PostgreSQL evaluates those that span rows (see `set_rules`).

    Args:
        settings: the config.
        target: the table.
        contract: its columns.
        key: the source's names of its key.
        known: its constraints in PostgreSQL.

    Raises:
        TableRefused: a rule names a missing column, or cannot be used on the column.
    """
    resolved: dict[str, ResolvedRule] = {}
    for rule in target.settings.rules:
        resolved[rule.label] = _config_rule(target, contract, key, known, rule)
    for name in target.names:
        for added in settings.added.get(name, ()):
            if added.name in resolved:
                raise _refusal(target, added.name, "another rule has that name")
            expression = scoring.expression(added.holds)
            resolved[added.name] = _expression_rule(target, contract, added, expression)
    if settings.quality_of(target.settings).derive:
        for derived in _derived_rules(contract, key, known):
            resolved.setdefault(derived.name, derived)
    return tuple(resolved.values())


def fingerprint(settings: Settings, target: Target, criteria: Sequence[ResolvedRule]) -> str:
    """A hash of all that the scores of rows depend on."""
    parts = [rule.model_dump_json() for rule in target.settings.rules]
    # A proven rule lowers no score.
    scoring = [c for c in criteria if c.origin != "derived" or c.evaluation != "proven"]
    parts += [f"{c.name} {c.kind} {c.columns} {c.severity} {c.origin}" for c in scoring]
    parts.append(str(settings.quality_of(target.settings).threshold))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def untranslated_checks(
    target: Target, contract: ColumnContract, known: Constraints
) -> tuple[str, ...]:
    """The names of the CHECK constraints that bronze cannot evaluate."""
    return tuple(
        check.name for check in known.checks if _check_expression(check, contract, known) is None
    )


def _check_expression(check: Check, contract: ColumnContract, known: Constraints) -> pl.Expr | None:
    # Imported here as its parser takes time to load.
    from bronze.postgres.catalog.check_constraints import check_expression

    return check_expression(check.text, contract.columns, known.folding)


def _refusal(target: Target, rule: str, reason: str) -> TableRefused:
    return TableRefused(
        f"The rule {rule!r} of table {target.label} cannot be used: {reason}.",
        hint=f"Correct it in [[tables.{toml(target.relation.name)}.rules]].",
        table=target.label,
    )


def _suggestion(name: str, columns: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(columns), 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _config_rule(
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
        close = _suggestion(missing[0], present)
        raise _refusal(target, rule.label, f"there is no column {missing[0]}{close}")
    if rule.kind == "unique" and not columns:
        raise _refusal(target, rule.label, "the table has no key: name columns")
    resolved = ResolvedRule(
        rule.label,
        rule.kind,
        columns,
        rule.severity,
        "config",
        rule.allow,
        allow_rows=rule.allow_rows,
    )
    if _is_proven(target, resolved, known, rule):
        return replace(resolved, evaluation="proven")
    if rule.expression is not None:
        return _expression_rule(target, contract, resolved, pl.sql_expr(rule.expression))
    if rule.kind in ("unique", "references"):
        lists = [name for name in columns if present[name].kind.name == "array"]
        if lists:
            raise _refusal(target, rule.label, f"column {lists[0]} is an array")
        return resolved
    try:
        return _with_condition(resolved, expressions.condition_of(rule, present[columns[0]]))
    except Unfit as unfit:
        raise _refusal(target, rule.label, str(unfit)) from None


def _with_condition(rule: ResolvedRule, condition: pl.Expr) -> ResolvedRule:
    return replace(rule, holds=condition.meta.serialize())


def _expression_rule(
    target: Target, contract: ColumnContract, rule: ResolvedRule, expression: pl.Expr
) -> ResolvedRule:
    """The rule with an expression that can be used on the table's columns."""
    schema = {column.name: dtype(column.kind) for column in contract.columns if column.name}
    try:
        used = expressions.columns_of(expression, schema)
    except Unfit as unfit:
        raise _refusal(target, rule.name, str(unfit)) from None
    return replace(_with_condition(rule, expression), columns=used)


def _is_proven(
    target: Target, resolved: ResolvedRule, known: Constraints, rule: RuleSettings
) -> bool:
    """Whether a constraint of PostgreSQL guarantees a rule."""
    if resolved.kind == "not_null":
        return resolved.columns[0] in known.not_null
    if resolved.kind == "unique":
        return any(set(columns) <= set(resolved.columns) for columns in known.unique)
    if rule.references is not None:
        pairs = set(zip(resolved.columns, referenced_columns(target, rule), strict=True))
        return any(
            foreign_key.proven
            and rule.references.table in _names(target, foreign_key.schema, foreign_key.table)
            and set(zip(foreign_key.columns, foreign_key.others, strict=True)) == pairs
            for foreign_key in known.references
        )
    return False


def _names(target: Target, schema: str, table: str) -> list[str]:
    """The names by which a rule of a table may refer to another one."""
    full = TableName(schema, table).label
    return [full, table] if schema == target.relation.schema else [full]


def referenced_columns(target: Target, rule: RuleSettings) -> tuple[str, ...]:
    """The columns that a rule refers to.

    Raises:
        TableRefused: their number differs from that of the columns that refer to them.
    """
    if rule.references is None:
        raise TypeError(f"the rule {rule.label} refers to nothing")
    others = rule.references.columns or rule.on
    if len(others) != len(rule.on):
        raise _refusal(target, rule.label, "it refers to a different number of columns")
    return others


def _derived_rules(
    contract: ColumnContract, key: Sequence[str], known: Constraints
) -> Iterator[ResolvedRule]:
    """The rules that follow from the source's constraints and from the column contract."""

    def proven(kind: RuleKind, *columns: str) -> ResolvedRule:
        name = f"{', '.join(columns)} {kind}"
        return ResolvedRule(name, kind, columns, "medium", "derived", evaluation="proven")

    if key:
        # PostgreSQL enforces it, or planning has checked it.
        yield proven("unique", *key)
    names = {column.name for column in contract.columns}
    yield from (proven("not_null", name) for name in known.not_null if name in names)
    yield from (proven("accepted_values", name) for name, _ in known.enums if name in names)
    for reference in known.references:
        if names.issuperset(reference.columns) and (reference.proven or reference.readable):
            rule = ResolvedRule(
                reference.name, "references", reference.columns, "medium", "derived"
            )
            yield replace(rule, evaluation="proven") if reference.proven else rule
    for check in known.checks:
        condition = _check_expression(check, contract, known)
        if condition is not None:
            columns = tuple(dict.fromkeys(condition.meta.root_names()))
            rule = ResolvedRule(check.name, "expression", columns, "medium", "derived")
            yield _with_condition(rule, condition)
    for column in contract.columns:
        if column.name and column.reject:
            name = f"{column.name} schema"
            yield ResolvedRule(
                name, "schema", (column.name,), "medium", "derived", rejects=column.name
            )
