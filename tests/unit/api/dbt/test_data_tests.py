"""Rules as data tests of dbt, and data tests as rules, where they mean the same."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from bronze.api.dbt import data_tests, rules_text, yaml_text
from bronze.api.dbt.data_tests import Different, TestedTable
from bronze.cli.main import app
from bronze.config.sections.quality import RuleSettings
from bronze.errors import ConfigError

ORDERS = TestedTable(
    "bz_orders",
    {
        "id": "bigint",
        "status": "string",
        "order_kind": "int",
        "is_paid": "boolean",
        "customer_id": "int",
        "email": "string",
        "sent": "date",
    },
    renamed={"kind": "order_kind"},
    protected=frozenset({"email"}),
)
CUSTOMERS = TestedTable(
    "bz_customers", {"id": "int", "email": "string"}, protected=frozenset({"email"})
)
HISTORY = TestedTable("bz_prices", {"id": "int"}, is_history=True)
OTHERS = {"customers": CUSTOMERS, "prices": HISTORY}

SAME: list[dict[str, Any]] = [
    {"column": "status", "not_null": True},
    {"column": "email", "not_null": True, "severity": "low"},
    {"column": "status", "not_null": True, "allow_rows": 7, "severity": "critical"},
    {"column": "id", "unique": True, "name": "one of each"},
    {"column": "status", "accepted_values": ["new", 'a "b"', "{{ x }}", "\u00e9"]},
    {"column": "kind", "accepted_values": [0, 1, -2]},
    {"column": "is_paid", "accepted_values": [True, False], "severity": "high"},
    {"column": "customer_id", "references": {"table": "customers", "columns": ["id"]}},
]


@pytest.mark.parametrize("rule", SAME, ids=str)
def test_a_rule_comes_back_from_the_file_of_dbt_as_it_was(
    rule: dict[str, Any], tmp_path: Path
) -> None:
    """Name, severity, how many rows may fail, and the source's name of a renamed column."""
    before = RuleSettings.model_validate(rule)
    column, test = data_tests.data_test(before, ORDERS, OTHERS, "bronze")
    in_source = {"meta": {"source_column": rule["column"]}}
    columns = [{"name": column, "config": in_source, "data_tests": [test]}]
    tables = [
        {"name": "bz_orders", "meta": {"source_table": "orders"}, "columns": columns},
        {"name": "bz_customers", "config": {"meta": {"source_table": "customers"}}},
    ]
    file = tmp_path / "sources.yml"
    file.write_text(yaml_text.document({"sources": [{"name": "bronze", "tables": tables}]}))
    (after,) = tomllib.loads(rules_text.rules_text(file))["tables"]["orders"]["rules"]
    assert RuleSettings.model_validate(after) == before


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"column": "status", "pattern": "^n"}, "no test of its own for pattern"),
        ({"expression": "id > 0"}, "no test of its own for expression"),
        ({"column": "status", "not_null": True, "allow": 0.1}, "share"),
        ({"columns": ["id", "status"], "unique": True}, "one column"),
        ({"unique": True}, "one column"),
        ({"column": "email", "unique": True}, "email are protected"),
        ({"column": "id", "unique": True, "allow_rows": 1}, "not rows"),
        ({"column": "gone", "not_null": True}, "no column gone"),
        ({"column": "sent", "accepted_values": ["2026-01-01"]}, "type date"),
        ({"column": "id", "accepted_values": ["1"]}, "type bigint"),
        ({"column": "id", "accepted_values": [True]}, "type bigint"),
        ({"column": "id", "references": {"table": "nothing"}}, "no table nothing"),
        ({"column": "id", "references": {"table": "prices"}}, "every version"),
        (
            {"column": "status", "references": {"table": "customers", "columns": ["email"]}},
            "protected",
        ),
    ],
)
def test_a_rule_that_means_something_else_in_dbt_is_no_data_test(
    rule: dict[str, Any], reason: str
) -> None:
    """The reason is said, for the comment in the file."""
    with pytest.raises(Different, match=reason):
        data_tests.data_test(RuleSettings.model_validate(rule), ORDERS, OTHERS, "bronze")


def test_a_table_with_history_has_no_data_tests() -> None:
    """Its older versions would break them."""
    rule = RuleSettings.model_validate({"column": "id", "not_null": True})
    with pytest.raises(Different, match="every version"):
        data_tests.data_test(rule, HISTORY, OTHERS, "bronze")


SCHEMA = """
models:
  - name: stg_orders
    data_tests: [dbt_utils.equal_rowcount]
    columns:
      - name: id
        tests: [unique, not_null]
      - name: status
        data_tests:
          - accepted_values:
              values: [1, two]
              severity: warn
          - not_null: {config: {where: "id > 1"}}
          - not_null: {config: {error_if: ">= 5"}}
          - dbt_utils.not_empty_string
          - not_null: {config: {enabled: false}}
      - name: customer_id
        data_tests:
          - relationships: {arguments: {to: ref('stg_customers'), field: id}}
sources:
  - name: shop
    tables:
      - name: raw
        identifier: raw_2026
        columns: [{name: a, data_tests: [{name: named, test_name: not_null}]}]
"""


def test_data_tests_of_any_project_become_rules_or_comments(tmp_path: Path) -> None:
    """Old and new spellings; what bronze would check differently is a comment that says why."""
    file = tmp_path / "schema.yml"
    file.write_text(SCHEMA)
    text = rules_text.rules_text(file)
    tables = tomllib.loads(text)["tables"]
    assert tables == {
        "stg_orders": {
            "rules": [
                {"column": "id", "unique": True, "severity": "high"},
                {"column": "id", "not_null": True, "severity": "high"},
                {"column": "status", "accepted_values": ["1", "two"], "severity": "low"},
                {"column": "status", "not_null": True, "severity": "high", "allow_rows": 4},
                {
                    "column": "customer_id",
                    "references": {"table": "stg_customers", "columns": ["id"]},
                    "severity": "high",
                },
            ]
        },
        "raw_2026": {"rules": [{"column": "a", "not_null": True, "severity": "high"}]},
    }
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments == [
        "# stg_orders: dbt_utils.equal_rowcount is left out: it is about no single column.",
        "# stg_orders.status: not_null is left out: it is about some of the rows only:"
        " write an expression.",
        "# stg_orders.status: dbt_utils.not_empty_string is left out: bronze has no such rule.",
        "# stg_orders.status: not_null is left out: it is not enabled.",
    ]


@pytest.mark.parametrize("text", ["- a", "a: [", "sources: 1", "models: [{columns: 1}]", "\x00"])
def test_what_is_no_schema_file_is_said_in_a_sentence(text: str, tmp_path: Path) -> None:
    """Without a traceback."""
    file = tmp_path / "schema.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"schema\.yml"):
        rules_text.rules_text(file)


def test_rules_name_the_sections_that_the_config_has(tmp_path: Path) -> None:
    """A longer name of a section would take the place of the one that is there."""
    config, file = tmp_path / "bronze.toml", tmp_path / "schema.yml"
    config.write_text(
        '[source]\ndsn = "postgresql://db/shop"\n[lake]\nroot = "lake"\n'
        '[tables."public.orders"]\npattern = "batch"\n'
    )
    columns = [{"name": "id", "data_tests": ["unique"]}]
    table = {"name": "x", "meta": {"source_table": "public.orders"}, "columns": columns}
    file.write_text(yaml.safe_dump({"models": [table]}))
    done = CliRunner().invoke(app, ["dbt-rules", str(file), "-c", str(config)])
    assert done.stdout.startswith('[[tables."public.orders".rules]]\n')
    done = CliRunner().invoke(app, ["dbt-rules", str(file), "-c", str(tmp_path / "none")])
    assert done.stdout.startswith("[[tables.orders.rules]]\n")


def test_comments_of_postgresql_are_no_jinja() -> None:
    """What is in double braces would be evaluated, and fail."""
    assert yaml_text.plain("{{ a }} {% b %} {# c") == "{ { a } } { % b %} { # c"
