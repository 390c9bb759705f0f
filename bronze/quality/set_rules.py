"""Rules that span rows are asked of PostgreSQL, in the run's own snapshot: there the answer is of
the very rows that land. What comes back are the values that break a rule, by which the workers
know the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from bronze.errors import TableRefused
from bronze.model.columns import KEY_TEXT, Column, RowKey
from bronze.model.quality import SET_RULE_KINDS, QualityRules, ResolvedRule
from bronze.postgres.catalog import constraints
from bronze.postgres.catalog.constraints import Constraints
from bronze.postgres.catalog.operators import (
    DEFAULT_OPERATORS,
    ComparisonOperators,
    comparison_operators,
)
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.copy.read import decode, dtype
from bronze.postgres.copy.splits import size_of
from bronze.postgres.statement import quoted
from bronze.quality import rules
from bronze.tables.context import TableContext, ask_source
from bronze.tables.evolution import ColumnContract

VALUES = 10_000
"""So many values that break a rule are told to the workers; beyond, they are only counted."""

_PRINTS = 2_000_000
_NARROW_ROW = 50


def quality(
    context: TableContext,
    contract: ColumnContract,
    key: RowKey,
    *,
    asking: bool,
    protected: Collection[str] = (),
) -> QualityRules:
    """What the rows of a table are held against in a run.

    Args:
        context: the table.
        contract: its columns.
        key: what tells its rows apart.
        asking: whether rows are read of the snapshot, so that it can be asked.
        protected: the source's names of columns whose values must not be told.

    Raises:
        TableRefused: a rule cannot be used on this table.
    """
    relation = context.target.relation
    known: Constraints = ask_source(
        context, lambda holder: constraints.constraints(holder, relation)
    )
    names = tuple((c.name, c.target) for c in contract.columns if c.name)
    found = rules.criteria(context.settings, context.target, contract, key.source_names, known)
    if asking:
        found = tuple(_answered(context, contract, known, one, protected) for one in found)
    hidden = {target for source, target in names if source in protected} | {KEY_TEXT}
    return QualityRules(
        criteria=found if asking else rules_of_changes(found),
        threshold=context.settings.demanded(context.target.settings).threshold,
        names=names,
        key=tuple(name for name in key.names if name not in hidden),
        distinct=0 if key.columns else -(-_rows(relation) // _PRINTS) or 1,
    )


def rules_of_changes(criteria: Sequence[ResolvedRule]) -> tuple[ResolvedRule, ...]:
    """The rules as they are in a stream, where nobody can be asked about a batch's moment."""
    return tuple(
        replace(criterion, evaluation="none", holds=b"", counted=(0, 0))
        if criterion.kind in SET_RULE_KINDS and criterion.evaluation != "proven"
        else criterion
        for criterion in criteria
    )


def _rows(relation: Relation) -> int:
    return relation.rows if relation.rows >= 0 else size_of(relation) // _NARROW_ROW


def _answered(
    context: TableContext,
    contract: ColumnContract,
    known: Constraints,
    criterion: ResolvedRule,
    protected: Collection[str],
) -> ResolvedRule:
    if criterion.kind not in SET_RULE_KINDS or criterion.evaluation != "rows":
        return criterion
    table = quoted(context.target.relation.schema, context.target.relation.name)
    columns = [
        column for name in criterion.columns for column in contract.columns if column.name == name
    ]
    broken = _condition(context, known, criterion, table)
    selected = ", ".join(f"{column.select} AS c{i}" for i, column in enumerate(columns))
    query = f"SELECT DISTINCT {selected} FROM {table} AS own WHERE {broken}"  # noqa: S608
    # Values that are protected must not travel.
    secret = bool(set(criterion.columns) & set(protected))
    rows = [] if secret else _fetched(context, f"{query} LIMIT {VALUES + 1}")
    if secret or len(rows) > VALUES:
        ((checked, failed),) = _fetched(
            context,
            f"SELECT count(*), count(*) FILTER (WHERE {broken}) FROM {table} AS own",  # noqa: S608
        )
        return replace(criterion, evaluation="counted", counted=(checked, failed))
    return replace(criterion, holds=_none_of(columns, rows).meta.serialize())


def answerable(context: TableContext, known: Constraints, criteria: Sequence[ResolvedRule]) -> None:
    """Makes sure that PostgreSQL can be asked about the rules that span rows, without a row.

    Raises:
        TableRefused: a table or column that a rule refers to is not there, or may not be read.
    """
    relation = context.target.relation
    table = quoted(relation.schema, relation.name)
    for criterion in criteria:
        if criterion.kind in SET_RULE_KINDS and criterion.evaluation == "rows":
            broken = _condition(context, known, criterion, table)
            _fetched(context, f"SELECT FROM {table} AS own WHERE {broken} LIMIT 0")


def _fetched(context: TableContext, query: str) -> list[Any]:
    return list(ask_source(context, lambda holder: holder.execute(query).fetchall()))


def _condition(
    context: TableContext, known: Constraints, criterion: ResolvedRule, table: str
) -> str:
    """The SQL condition that rows of ``table AS own`` break the rule."""
    relation = context.target.relation
    mine = _comparisons(context, relation.schema, relation.name)
    own = {name: f"own.{quoted(name)}" for name in criterion.columns}
    there = " AND ".join(f"{name} IS NOT NULL" for name in own.values())
    if criterion.kind == "unique":
        names = ", ".join(map(quoted, own))
        filled = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in own)
        several = (
            f"SELECT {names} FROM {table} WHERE {filled}"  # noqa: S608
            f" GROUP BY {names} HAVING count(*) > 1"
        )
        same = " AND ".join(
            f"several.{quoted(name)} {mine.get(name, DEFAULT_OPERATORS).equal} {value}"
            for name, value in own.items()
        )
        return f"{there} AND EXISTS (SELECT FROM ({several}) AS several WHERE {same})"
    schema, other, names_there = _other(context, known, criterion)
    theirs = _comparisons(context, schema, other)
    same = " AND ".join(
        f"other.{quoted(name)} {_equal(mine.get(column), theirs.get(name))} {own[column]}"
        for name, column in zip(names_there, criterion.columns, strict=True)
    )
    return f"{there} AND NOT EXISTS (SELECT FROM {quoted(schema, other)} AS other WHERE {same})"


def _comparisons(
    context: TableContext, schema: str, table: str
) -> Mapping[str, ComparisonOperators]:
    found: Mapping[str, ComparisonOperators] = ask_source(
        context, lambda holder: comparison_operators(holder, schema, table)
    )
    return found


def _equal(one: ComparisonOperators | None, other: ComparisonOperators | None) -> str:
    # An extension's type beside one of PostgreSQL's own is compared as the latter.
    return one.equal if one and one == other else DEFAULT_OPERATORS.equal


def _other(
    context: TableContext, known: Constraints, criterion: ResolvedRule
) -> tuple[str, str, tuple[str, ...]]:
    """The schema and name of the table that a rule refers to, and its columns."""
    for rule in context.target.settings.rules:
        if rule.references and rule.called == criterion.name and criterion.origin == "config":
            schema, table = _named(context, criterion.name, rule.references.table)
            return schema, table, rules.referred(context.target, rule)
    held = next(one for one in known.references if one.name == criterion.name)
    return held.schema, held.table, held.others


_CALLED = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = %(name)s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
   OR c.relname = %(name)s AND n.nspname = %(own)s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY n.nspname
"""


def _named(context: TableContext, rule: str, name: str) -> tuple[str, str]:
    """The schema and name of the table that a rule calls ``name``: either may have dots.

    Raises:
        TableRefused: there is no such table, or there are several.
    """
    wanted = {"name": name, "own": context.target.relation.schema}
    found: list[Any] = ask_source(
        context, lambda holder: holder.execute(_CALLED, wanted).fetchall()
    )
    if len(found) == 1:
        schema, table = found[0]
        return str(schema), str(table)
    many = " and ".join(quoted(*one) for one in found)
    raise TableRefused(
        f"The rule {rule!r} of table {context.target.label} cannot be used: "
        + (f"{name} may be {many}." if found else f"there is no table {name} in the source."),
        hint="references = { table = … } names a table as schema.table, or one of the same schema"
        " as table.",
        table=context.target.label,
    )


def _none_of(columns: Sequence[Column], rows: Sequence[Any]) -> pl.Expr:
    """That a row has none of these values."""
    values = [
        decode(
            pl.Series([row[i] for row in rows], dtype=_travelling(column)), column.kind, column.wire
        )
        for i, column in enumerate(columns)
    ]
    names = [column.name for column in columns]
    if len(names) == 1:
        held = pl.col(names[0]).is_in(values[0].drop_nulls().implode())
    else:
        frame = pl.DataFrame([one.alias(name) for one, name in zip(values, names, strict=True)])
        held = pl.struct(names).is_in(frame.drop_nulls().to_struct().implode())
    return held.not_()


_WIRES = {"unscaled": pl.Int64, "text": pl.String}


def _travelling(column: Column) -> Any:
    return _WIRES.get(column.wire) or dtype(column.kind)
