"""`bronze dbt-sources`: what dbt reads of a lake."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

from bronze.config.sections.quality import RuleSettings
from tests.acceptance.test_cli import configured, invoke
from tests.conftest import Source

RULES: list[dict[str, Any]] = [
    {"column": "status", "accepted_values": ["new", "paid"], "severity": "high"},
    {"column": "customer", "references": {"table": "public.customers", "columns": ["id"]}},
    {"column": "customer", "not_null": True, "allow_rows": 1},
    {"column": "total", "range": {"min": 0}},
]


def test_sources_have_types_comments_freshness_and_tests(source: Source, tmp_path: Path) -> None:
    """With the source its comments are there, without it all else; rules come back as they were."""
    source.execute(
        "CREATE TABLE customers (id int PRIMARY KEY, email text);"
        "CREATE TABLE orders"
        " (id bigint PRIMARY KEY, customer int, status text, total numeric(9,2));"
        "COMMENT ON TABLE orders IS 'What was ordered';"
        "COMMENT ON COLUMN orders.status IS 'new, or paid';"
        "INSERT INTO customers VALUES (1, 'a@b.c'); INSERT INTO orders VALUES (1, 1, 'new', 5)"
    )
    config = configured(
        source,
        tables={
            "orders": {"pattern": "batch", "schedule": "hourly", "sla": "10m", "rules": RULES},
            "customers": {"protect": {"email": "encrypt"}},
        },
    )
    assert invoke("run", "-c", config).exit_code == 0
    out = tmp_path / "sources.yml"
    assert invoke("dbt-sources", "orders", "customers", "-c", config, "-o", out).exit_code == 0
    (found,) = yaml.safe_load(out.read_text())["sources"]
    assert (found["name"], found["schema"]) == ("bronze", "bronze")
    customers, orders = found["tables"]
    assert orders["description"] == "What was ordered"
    limit = {"error_after": {"count": 70, "period": "minute"}}
    assert orders["config"]["freshness"] == limit
    assert orders["config"]["loaded_at_field"] == "update_timestamp"
    columns = {column["name"]: column for column in orders["columns"]}
    assert columns["total"]["data_type"] == "decimal(9,2)"
    assert columns["status"]["description"] == "new, or paid"
    assert [next(iter(test)) for test in columns["id"]["data_tests"]] == ["not_null", "unique"]
    (email,) = [column for column in customers["columns"] if column["name"] == "email"]
    assert email["config"]["meta"] == {"pii": "personal", "protection": "encrypt"}
    assert "# bz_orders: the rule 'total range' is left out" in out.read_text()

    rules = tomllib.loads(invoke("dbt-rules", out, "-c", config).stdout)["tables"]
    assert set(rules) == {"orders"}
    after = {RuleSettings.model_validate(rule) for rule in rules["orders"]["rules"]}
    assert after == {RuleSettings.model_validate(rule) for rule in RULES[:3]}

    offline = invoke("dbt-sources", "--offline", "-c", config).stdout
    (same,) = yaml.safe_load(offline)["sources"]
    for table in found["tables"]:
        table.pop("description", None)
        for column in table["columns"]:
            if column["name"] == "status":
                del column["description"]
    assert same == found

    config.write_text(config.read_text().replace(source.dsn, "postgresql://127.0.0.1:1/shop"))
    unreached = invoke("dbt-sources", "-c", config)
    assert unreached.exit_code == 0
    assert unreached.stdout.startswith("# Comments")
    assert unreached.stdout.endswith(offline[offline.index("version: 2") :])
