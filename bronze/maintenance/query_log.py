"""A log of queries, as SQL text: which columns of which tables their filters compare with values.

Nothing of it is executed. It is parsed by sqlglot, statement by statement; what cannot be parsed is
left out and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bronze.delta.layout.choice import Queries
from bronze.errors import ConfigError

_STATEMENT = re.compile(r";\s*(?:\n|$)")
_LARGEST = 64 * 2**20


@dataclass(frozen=True)
class QueryLog:
    """The filters of each table, by its name in lower case without a schema; ``skipped`` statements
    could not be parsed.
    """

    tables: Mapping[str, Queries]
    skipped: int = 0

    def of(self, *names: str) -> Queries:
        """The filters of a table that has several names."""
        points: Counter[str] = Counter()
        ranges: Counter[str] = Counter()
        for queries in (self.tables.get(name.lower()) for name in dict.fromkeys(names)):
            if queries:
                points.update(queries.points)
                ranges.update(queries.ranges)
        return Queries(points, ranges)


def read(path: str) -> QueryLog:
    """Reads a query log.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        status = Path(path).stat()
        if status.st_size > _LARGEST:
            raise ConfigError(
                f"The query log {path} is larger than {_LARGEST // 2**20} MiB.",
                hint="Keep its latest part in [maintain] queries.",
            )
        return _read(path, status.st_mtime_ns, status.st_size)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(
            f"The query log {path} cannot be read: {reason}.",
            hint="Correct [maintain] queries: it names a file with SQL statements.",
        ) from None


@lru_cache(4)
def _read(path: str, _modified: int, _size: int) -> QueryLog:
    return parse(Path(path).read_text(encoding="utf-8"))


def parse(text: str) -> QueryLog:
    """The filters of statements, which end with semicolons."""
    import sqlglot

    counts: dict[tuple[str, bool], Counter[str]] = {}
    skipped = 0
    for statement in filter(str.strip, _statements(text)):
        try:
            trees = sqlglot.parse(statement, read="databricks")
            found = [one for tree in trees if tree is not None for one in _filters(tree)]
        except (sqlglot.errors.SqlglotError, RecursionError):
            skipped += 1
            continue
        for table, column, is_range in found:
            counts.setdefault((table, is_range), Counter())[column] += 1
    names = {table for table, _ in counts}
    tables = {n: Queries(counts.get((n, False), {}), counts.get((n, True), {})) for n in names}
    return QueryLog(tables, skipped)


def _statements(text: str) -> Iterator[str]:
    """The statements of a text, without semicolons."""
    import sqlglot

    try:
        tokens = sqlglot.tokenize(text, read="databricks")
    except sqlglot.errors.SqlglotError:
        # Something is not closed; what is before and after it may be understood.
        yield from _STATEMENT.split(text)
        return
    start = 0
    for token in tokens:
        if token.token_type == sqlglot.TokenType.SEMICOLON:
            yield text[start : token.start]
            start = token.end + 1
    yield text[start:]


def _filters(tree: Any) -> Iterator[tuple[str, str, bool]]:
    """Table, column, and whether it is a range, of each comparison with a value in a condition."""
    from sqlglot import exp

    ranges = (exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Between)
    for node in tree.find_all(exp.EQ, exp.In, *ranges):
        column, select = node.this, node.find_ancestor(exp.Select, exp.Update, exp.Delete)
        is_condition = node.find_ancestor(exp.Where, exp.Join, exp.Having) is not None
        others = [a for key, a in node.args.items() if key != "this" and a]
        values = [v for a in others for v in (a if isinstance(a, list) else [a])]
        if isinstance(values[0] if values else None, exp.Column) and len(values) == 1:
            # A value may be on the left: 5 = a.
            column, values = values[0], [column]
        if not isinstance(column, exp.Column) or select is None or not is_condition:
            continue
        if any(isinstance(v, exp.Expression) and v.find(exp.Column) for v in values):
            continue
        for table in _tables(column, select):
            yield table.lower(), column.name.lower(), isinstance(node, ranges)


def _tables(column: Any, select: Any) -> list[str]:
    """The tables that a column may be of: that of its qualifier, or all of the query."""
    from sqlglot import exp

    named = {table.alias_or_name.lower(): table.name for table in select.find_all(exp.Table)}
    if column.table:
        name = named.get(column.table.lower())
        return [name] if name else []
    return list(named.values())
