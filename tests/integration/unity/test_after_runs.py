"""Runs that register what they loaded: PostgreSQL, a lake on S3 and a workspace on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from deltalake import DeltaTable

import bronze
from tests.conftest import Source
from tests.support.unity_server import Unity, unity

WAREHOUSE = "0123456789abcdef"
CUSTOMERS = """
CREATE TABLE customers (id int PRIMARY KEY, "E-mail" text, note text);
INSERT INTO customers SELECT i, i || '@example.com', 'n' FROM generate_series(1, 20) i;
COMMENT ON TABLE customers IS 'Who buys from us; it''s \\ "ours"';
COMMENT ON COLUMN customers."E-mail" IS 'where `invoices` go'
"""


@pytest.fixture
def workspace(bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Unity]:
    """A workspace that reads the lake on S3."""
    monkeypatch.setenv("TOKEN", "bronze-token")
    with unity() as running:
        running.mounts["s3://lake"] = ("s3://lake", bucket)
        running.prepare("s3://lake")
        running.warehouse()
        running.principals("analysts", "auditors")
        yield running


def root(source: Source) -> str:
    """The address of the test's own lake."""
    return f"s3://lake/{source.lake.parent.name}"


def lake(source: Source, workspace: Unity, bucket: dict[str, str], **catalog: Any) -> bronze.Bronze:
    """A lake whose runs register their tables."""
    settings = source.settings(
        lake={"root": root(source), "options": bucket},
        tables={"customers": {"pattern": "batch", "protect": {"E-mail": "tokenize"}}},
        catalog={
            "host": workspace.url, "name": "workspace", "auth": {"token": {"secret": "TOKEN"}},
            "warehouse": WAREHOUSE, "grants": {"analysts": ["SELECT"]}, "after_runs": True,
            "governance_grants": {"auditors": ["SELECT"]},
            **catalog,
        },
    )  # fmt: skip
    return bronze.Bronze(settings)


@pytest.mark.soak
def test_a_run_registers_what_it_loaded(
    source: Source, workspace: Unity, bucket: dict[str, str]
) -> None:
    """With PostgreSQL's comments, tags, lineage, and columns that are added later; comments that
    are committed to the Delta log, as Databricks does, are no reason to compare the table.
    """
    source.execute(CUSTOMERS)
    opened = lake(source, workspace, bucket)
    assert opened.run().exit_code == 0
    name = "workspace.bronze.bz_customers"
    table = workspace.table(name)
    assert table["comment"] == 'Who buys from us; it\'s \\ "ours"'
    assert {c["name"]: c.get("comment") for c in table["columns"]}[
        "E-mail"
    ] == "where `invoices` go"
    assert workspace.problems(name) == []
    names = {s.name for s in workspace.metastore.of("TABLE")}
    (record,) = opened.audit(action="register").records
    assert (record.result, name in str(record.details)) == ("succeeded", True)

    url = f"{root(source)}/bronze/bz_customers"
    delta = DeltaTable(url, storage_options=bucket)
    delta.alter.set_column_metadata("note", {"comment": "anything"})
    (again,) = opened.run().tables
    assert (again.status, again.notes) == ("unchanged", ())

    writes = workspace.count("POST", "PATCH", "DELETE")
    source.execute(
        "ALTER TABLE customers ADD since date; UPDATE customers SET since = '2026-01-01'"
    )
    assert opened.run().exit_code == 0
    assert workspace.problems(name) == []
    assert workspace.count("POST", "PATCH", "DELETE") > writes
    delta = DeltaTable(url, storage_options=bucket)
    comments = {f.name: f.metadata for f in delta.schema().fields}
    assert comments["note"] == {"comment": "anything"}
    assert opened.verify().exit_code == 0

    result = opened.register()
    assert result.exit_code == 0
    assert "workspace.governance.runs" in {t.name for t in result.tables}
    assert names < {s.name for s in workspace.metastore.of("TABLE")}
    granted = {s.name: s.grants for s in workspace.metastore.of("TABLE")}
    assert granted["workspace.governance.runs"] == {"auditors": {"SELECT"}}
    assert granted[name] == {"analysts": {"SELECT"}}
    writes = workspace.count("POST", "PATCH", "DELETE")
    assert {t.status for t in opened.register().tables} == {"unchanged"}
    assert workspace.count("POST", "PATCH", "DELETE") == writes


@pytest.mark.soak
def test_a_catalog_that_fails_does_not_fail_the_run(
    source: Source, workspace: Unity, bucket: dict[str, str]
) -> None:
    """It is a sentence of the run, and a record."""
    source.execute(CUSTOMERS)
    workspace.revoke("EXTERNAL_LOCATION", "lake", "CREATE_EXTERNAL_TABLE")
    opened = lake(source, workspace, bucket)
    result = opened.run()
    assert (result.exit_code, result.tables[0].status) == (0, "landed")
    (note,) = result.notes
    assert note.startswith("Not registered in Unity Catalog: Table workspace.bronze.bz_customers")
    assert "CREATE EXTERNAL TABLE" in note
    (record,) = opened.audit(action="register").records
    assert record.result == "incomplete"
    source.execute("UPDATE customers SET note = 'm'")
    gone = lake(source, Unity(url="http://127.0.0.1:1"), bucket)
    result = gone.run()
    assert result.exit_code == 0
    assert "127.0.0.1:1 cannot be reached: Connection refused" in result.notes[0]
