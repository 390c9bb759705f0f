"""Rules that span rows are evaluated by PostgreSQL, in the snapshot of the run, so that the result
is about the rows that are loaded. It returns the values that break a rule, by which the workers
find the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from bronze.errors import TableRefused
from bronze.model.columns import KEY_TEXT, Column, RowKey
from bronze.model.quality import SET_RULE_KINDS, QualityRules, ResolvedRule
from bronze.postgres.catalog.constraints import Constraints
from bronze.postgres.catalog.operators import (
    DEFAULT_OPERATORS,
    ComparisonOperators,
    comparison_operators,
)
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.copy.rows_reader import decode, dtype
from bronze.postgres.copy.splits import size_of
from bronze.postgres.statement import quoted
from bronze.quality import rules
from bronze.tables.context import TableContext, ask_source, constraints_of
from bronze.tables.evolution import ColumnContract

MAX_VALUES = 10_000
"""How many values that break a rule the workers get; if there are more, they are only counted."""

_MAX_FINGERPRINTS = 2_000_000
_NARROW_ROW_BYTES = 50


def quality_rules(
    context: TableContext,
    contract: ColumnContract,
    key: RowKey,
    *,
    asking: bool,
    protected: Collection[str] = (),
) -> QualityRules:
    """The rules of a table in a run.

    Args:
        context: the table.
        contract: its columns.
        key: its key.
        asking: whether rows are read from the snapshot, so that PostgreSQL can evaluate rules.
        protected: the source's names of columns whose values must not leave PostgreSQL.

    Raises:
        TableRefused: a rule cannot be used on this table.
    """
    known = constraints_of(context)
    names = tuple((c.name, c.target) for c in contract.columns if c.name)
    criteria = rules.criteria(context.settings, context.target, contract, key.source_names, known)
    if asking:
        criteria = tuple(
            _evaluate_rule(context, contract, known, criterion, protected) for criterion in criteria
        )
    hidden = {target for source, target in names if source in protected} | {KEY_TEXT}
    return QualityRules(
        criteria=criteria if asking else rules_of_changes(criteria),
        threshold=context.settings.quality_of(context.target.settings).threshold,
        names=names,
        key=tuple(name for name in key.names if name not in hidden),
        distinct=0 if key.columns else -(-_rows(context.target.relation) // _MAX_FINGERPRINTS) or 1,
    )


def rules_of_changes(criteria: Sequence[ResolvedRule]) -> tuple[ResolvedRule, ...]:
    """The rules in a stream: PostgreSQL cannot evaluate any as of the moment of a batch."""
    return tuple(
        replace(criterion, evaluation="none", holds=b"", counted=(0, 0))
        if criterion.kind in SET_RULE_KINDS and criterion.evaluation != "proven"
        else criterion
        for criterion in criteria
    )


def _rows(relation: Relation) -> int:
    """The estimated number of rows."""
    return relation.rows if relation.rows >= 0 else size_of(relation) // _NARROW_ROW_BYTES


def _evaluate_rule(
    context: TableContext,
    contract: ColumnContract,
    known: Constraints,
    criterion: ResolvedRule,
    protected: Collection[str],
) -> ResolvedRule:
    """The rule with the values that break it, or with their number."""
    if criterion.kind not in SET_RULE_KINDS or criterion.evaluation != "rows":
        return criterion
    table = quoted(context.target.relation.schema, context.target.relation.name)
    columns = [
        column for name in criterion.columns for column in contract.columns if column.name == name
    ]
    broken = _condition(context, known, criterion, table)
    selected = ", ".join(f"{column.select} AS c{i}" for i, column in enumerate(columns))
    query = f"SELECT DISTINCT {selected} FROM {table} AS own WHERE {broken}"  # noqa: S608
    # Values of protected columns must not leave PostgreSQL.
    is_protected = bool(set(criterion.columns) & set(protected))
    rows = [] if is_protected else _fetch(context, f"{query} LIMIT {MAX_VALUES + 1}")
    if is_protected or len(rows) > MAX_VALUES:
        ((checked, failed),) = _fetch(
            context,
            f"SELECT count(*), count(*) FILTER (WHERE {broken}) FROM {table} AS own",  # noqa: S608
        )
        return replace(criterion, evaluation="counted", counted=(checked, failed))
    return replace(criterion, holds=_none_of(columns, rows).meta.serialize())


def check_set_rules(
    context: TableContext, known: Constraints, criteria: Sequence[ResolvedRule]
) -> None:
    """Checks that PostgreSQL can evaluate the rules that span rows, without reading a row.

    Raises:
        TableRefused: a table or column that a rule refers to is missing or may not be read.
    """
    relation = context.target.relation
    table = quoted(relation.schema, relation.name)
    for criterion in criteria:
        if criterion.kind in SET_RULE_KINDS and criterion.evaluation == "rows":
            broken = _condition(context, known, criterion, table)
            _fetch(context, f"SELECT FROM {table} AS own WHERE {broken} LIMIT 0")


def _fetch(context: TableContext, query: str) -> list[Any]:
    return list(ask_source(context, lambda holder: holder.execute(query).fetchall()))


def _condition(
    context: TableContext, known: Constraints, criterion: ResolvedRule, table: str
) -> str:
    """The SQL condition that rows of ``table AS own`` break the rule."""
    relation = context.target.relation
    operators = _comparisons(context, relation.schema, relation.name)
    own = {name: f"own.{quoted(name)}" for name in criterion.columns}
    present = " AND ".join(f"{name} IS NOT NULL" for name in own.values())
    if criterion.kind == "unique":
        names = ", ".join(map(quoted, own))
        filled = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in own)
        repeated = (
            f"SELECT {names} FROM {table} WHERE {filled}"  # noqa: S608
            f" GROUP BY {names} HAVING count(*) > 1"
        )
        equal = " AND ".join(
            f"repeated.{quoted(name)} {operators.get(name, DEFAULT_OPERATORS).equal} {value}"
            for name, value in own.items()
        )
        return f"{present} AND EXISTS (SELECT FROM ({repeated}) AS repeated WHERE {equal})"
    schema, other, columns = _reference_of(context, known, criterion)
    others = _comparisons(context, schema, other)
    equal = " AND ".join(
        f"other.{quoted(name)} {_equal(operators.get(column), others.get(name))} {own[column]}"
        for name, column in zip(columns, criterion.columns, strict=True)
    )
    return f"{present} AND NOT EXISTS (SELECT FROM {quoted(schema, other)} AS other WHERE {equal})"


def _comparisons(
    context: TableContext, schema: str, table: str
) -> Mapping[str, ComparisonOperators]:
    operators: Mapping[str, ComparisonOperators] = ask_source(
        context, lambda holder: comparison_operators(holder, schema, table)
    )
    return operators


def _equal(left: ComparisonOperators | None, right: ComparisonOperators | None) -> str:
    # A type of an extension and one of PostgreSQL are compared as types of PostgreSQL.
    return left.equal if left and left == right else DEFAULT_OPERATORS.equal


def _reference_of(
    context: TableContext, known: Constraints, criterion: ResolvedRule
) -> tuple[str, str, tuple[str, ...]]:
    """The schema and name of the table that a rule refers to, and its columns."""
    for rule in context.target.settings.rules:
        if rule.references and rule.label == criterion.name and criterion.origin == "config":
            schema, table = _schema_and_name(context, criterion.name, rule.references.table)
            return schema, table, rules.referenced_columns(context.target, rule)
    foreign_key = next(key for key in known.references if key.name == criterion.name)
    return foreign_key.schema, foreign_key.table, foreign_key.others


_TABLES_NAMED = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = %(name)s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
   OR c.relname = %(name)s AND n.nspname = %(own)s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY n.nspname
"""


def _schema_and_name(context: TableContext, rule: str, name: str) -> tuple[str, str]:
    """The schema and name of the table that a rule calls ``name``; both may have dots.

    Raises:
        TableRefused: there is no such table, or there are several.
    """
    arguments = {"name": name, "own": context.target.relation.schema}
    tables: list[Any] = ask_source(
        context, lambda holder: holder.execute(_TABLES_NAMED, arguments).fetchall()
    )
    if len(tables) == 1:
        schema, table = tables[0]
        return str(schema), str(table)
    listed = " and ".join(quoted(*names) for names in tables)
    raise TableRefused(
        f"The rule {rule!r} of table {context.target.label} cannot be used: "
        + (f"{name} may be {listed}." if tables else f"there is no table {name} in the source."),
        hint="references = { table = … } names a table as schema.table, or one of the same schema"
        " as table.",
        table=context.target.label,
    )


def _none_of(columns: Sequence[Column], rows: Sequence[Any]) -> pl.Expr:
    """The condition that a row has none of these values."""
    values = [
        decode(
            pl.Series([row[i] for row in rows], dtype=_copied_type(column)),
            column.kind,
            column.wire,
        )
        for i, column in enumerate(columns)
    ]
    names = [column.name for column in columns]
    if len(names) == 1:
        breaks = pl.col(names[0]).is_in(values[0].drop_nulls().implode())
    else:
        frame = pl.DataFrame(
            [series.alias(name) for series, name in zip(values, names, strict=True)]
        )
        breaks = pl.struct(names).is_in(frame.drop_nulls().to_struct().implode())
    return breaks.not_()


_WIRES = {"unscaled": pl.Int64, "text": pl.String}


def _copied_type(column: Column) -> Any:
    """The type in which PostgreSQL sends the values of a column."""
    return _WIRES.get(column.wire) or dtype(column.kind)
