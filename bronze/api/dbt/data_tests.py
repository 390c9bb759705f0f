"""Rules of bronze as data tests of dbt, and data tests of dbt as rules, where they mean the same.

Both skip NULL, except for ``not_null``. A data test is about the rows that the source still has:
its ``where`` leaves out those that bronze has marked as deleted. ``meta`` has the name and the
severity of the rule, so that it comes back as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bronze.config.sections.quality import RuleSettings
from bronze.model.units import DELETED

LIVE = f"record_status <> '{DELETED}'"
"""The condition of rows that the source still has."""
KEY = "key"
"""The origin of a test that follows from a table's key: no rule of the config."""

Test = dict[str, Any]

_ERRORS = ("critical", "high")
_SEVERITIES = {"error": "high", "warn": "low"}
_ROWS_ONLY = ("not_null", "references")
_TEXT, _NUMBERS = "string", ("tinyint", "smallint", "int", "bigint", "float", "double")
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_SOURCE = re.compile(
    r"""^(?:\(select \* from \{\{ )?source\(\s*['"](.+?)['"]\s*,\s*['"](.+?)['"]"""
)
_REF = re.compile(r"""^ref\(\s*(?:['"].+?['"]\s*,\s*)?['"](.+?)['"]\s*\)$""")
_MORE_THAN = re.compile(r"^\s*>\s*(\d+)\s*$|^\s*>=\s*([1-9]\d*)\s*$")


class Different(Exception):
    """Why a rule is no data test, or a data test no rule."""


@dataclass(frozen=True)
class TestedTable:
    """A Bronze table that gets data tests: its name, its columns with their types, the names of its
    columns by those of the source, the protected columns, and whether it keeps all versions.
    """

    name: str
    types: Mapping[str, str]
    renamed: Mapping[str, str] = field(default_factory=dict)
    protected: frozenset[str] = frozenset()
    is_history: bool = False

    __test__ = False

    def column(self, name: str) -> str:
        """The Bronze table's column for one of the source.

        Raises:
            Different: it has none.
        """
        target = self.renamed.get(name, name)
        if target not in self.types:
            raise Different(f"the Bronze table has no column {name}")
        return target


def key_test(kind: str) -> Test:
    """The data test of a column that a key guarantees to be unique, or not to be NULL."""
    return {kind: {"config": {"where": LIVE, "meta": {"origin": KEY}}}}


def data_test(
    rule: RuleSettings, table: TestedTable, others: Mapping[str, TestedTable], source: str
) -> tuple[str, Test]:
    """A rule as a data test.

    Args:
        rule: the rule, of a table of the config.
        table: its Bronze table.
        others: the Bronze tables by the names that rules may call them.
        source: the name of the dbt source that they are in.

    Returns:
        The column that has the test, and the test.

    Raises:
        Different: dbt has no test of its own that means the same.
    """
    if table.is_history:
        raise Different("the table keeps every version of a row")
    if rule.kind not in ("not_null", "unique", "accepted_values", "references"):
        raise Different(f"dbt has no test of its own for {rule.kind}")
    if rule.allow:
        raise Different("dbt has no share of rows that may fail")
    if len(rule.on) != 1:
        raise Different("a data test of dbt is about one column")
    column = table.column(rule.on[0])
    if rule.kind != "not_null" and column in table.protected:
        raise Different(f"the values of {column} are protected")
    if rule.allow_rows and rule.kind not in _ROWS_ONLY:
        raise Different("dbt counts values that fail, not rows")
    body: Test = {}
    if rule.accepted_values is not None:
        body["arguments"] = _accepted(rule.accepted_values, table.types[column])
    if rule.references is not None:
        body["arguments"] = _relationship(rule, others, source)
    body["config"] = _config(rule)
    name = "relationships" if rule.references is not None else rule.kind
    return column, {name: body}


def _config(rule: RuleSettings) -> Test:
    severity = "error" if rule.severity in _ERRORS else "warn"
    config: Test = {"where": LIVE, "severity": severity}
    if rule.allow_rows:
        config |= {"error_if": f">{rule.allow_rows}", "warn_if": f">{rule.allow_rows}"}
    return {**config, "meta": {"rule": rule.label, "severity": rule.severity}}


def _accepted(values: tuple[Any, ...], kind: str) -> Test:
    if kind == _TEXT and all(isinstance(value, str) for value in values):
        return {"values": list(values)}
    is_number = kind in _NUMBERS or kind.startswith("decimal")
    if is_number and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return {"values": list(values), "quote": False}
    if kind == "boolean" and all(isinstance(value, bool) for value in values):
        return {"values": list(values), "quote": False}
    raise Different(f"dbt would compare its values with a column of type {kind} differently")


def _relationship(rule: RuleSettings, others: Mapping[str, TestedTable], source: str) -> Test:
    if rule.references is None:
        raise TypeError(f"the rule {rule.label} refers to nothing")
    other = others.get(rule.references.table)
    if other is None:
        raise Different(f"the lake has no table {rule.references.table}")
    if other.is_history:
        raise Different(f"{other.name} keeps every version of a row")
    columns = rule.references.columns or rule.on
    if len(columns) != 1:
        raise Different("a data test of dbt is about one column")
    parent = other.column(columns[0])
    if parent in other.protected:
        raise Different(f"the values of {other.name}.{parent} are protected")
    if not _PLAIN.fullmatch(parent):
        raise Different(f"dbt does not quote the name of {other.name}.{parent}")
    # dbt's `where` is for the child alone: a parent that was deleted is none.
    named = f"{{{{ source('{source}', '{other.name}') }}}}"
    rows = f"(select * from {named} where {LIVE})"  # noqa: S608 - names of the lake
    return {"to": f"{rows} as parent_rows", "field": parent}


def rule_of(name: str, body: Mapping[str, Any], column: str, tables: Mapping[str, str]) -> Test:
    """A data test as a rule of bronze, as ``[[tables.NAME.rules]]`` has it.

    Args:
        name: the test's name in dbt.
        body: what is below it.
        column: its column, by its name in the source.
        tables: the source's names of tables by the names that dbt has for them.

    Raises:
        Different: bronze has no rule that means the same.
    """
    config = {**body, **body.get("config", {})}
    arguments = {**body, **body.get("arguments", {})}
    meta = config.get("meta", {})
    if meta.get("origin") == KEY:
        raise Different("bronze derives it from the table's key")
    if config.get("enabled") is False:
        raise Different("it is not enabled")
    if config.get("where") not in (None, LIVE):
        raise Different("it is about some of the rows only: write an expression")
    if config.get("limit") is not None or config.get("fail_calc") not in (None, "count(*)"):
        raise Different("it counts failures in a way of its own")
    rule: Test = {} if _is_default(meta, column, name) else {"name": str(meta["rule"])}
    rule |= {"column": column, **_kind(name, arguments, column, tables)}
    severity = meta.get("severity") or _severity(config)
    rule["severity"] = severity
    if allowed := _allowed(config):
        if name not in ("not_null", "relationships"):
            raise Different("dbt counts values that fail, not rows")
        rule["allow_rows"] = allowed
    return rule


def _is_default(meta: Mapping[str, Any], column: str, name: str) -> bool:
    kind = "references" if name == "relationships" else name
    return meta.get("rule") in (None, f"{column} {kind}")


def _severity(config: Mapping[str, Any]) -> str:
    severity = str(config.get("severity", "error")).lower()
    if severity not in _SEVERITIES:
        raise Different("its severity is neither error nor warn")
    return _SEVERITIES[severity]


def _allowed(config: Mapping[str, Any]) -> int:
    """How many rows may fail."""
    name = "error_if" if str(config.get("severity", "error")).lower() == "error" else "warn_if"
    condition = config.get(name)
    if condition is None or str(condition).strip() == "!= 0":
        return 0
    if not (match := _MORE_THAN.match(str(condition))):
        raise Different(f"{name} is not a number of rows")
    return int(match[1]) if match[1] else int(match[2]) - 1


def _kind(name: str, arguments: Mapping[str, Any], column: str, tables: Mapping[str, str]) -> Test:
    if name in ("not_null", "unique"):
        return {name: True}
    if name == "accepted_values":
        values = arguments.get("values")
        if not isinstance(values, list) or not values:
            raise Different("its values are not a list")
        # dbt compares texts, unless quote is false.
        is_quoted = arguments.get("quote", True)
        return {name: [str(value) if is_quoted else value for value in values]}
    if name == "relationships":
        to, other = str(arguments.get("to", "")), str(arguments.get("field", ""))
        match = _SOURCE.match(to) or _REF.match(to)
        if not match or not other:
            raise Different("it refers to neither a source nor a model")
        table = match.groups()[-1]
        named = {"table": tables.get(table, table)}
        return {"references": named if other == column else {**named, "columns": [other]}}
    raise Different("bronze has no such rule")
