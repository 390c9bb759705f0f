"""What is proven at rest, whatever is the matter with one of the tables that tell of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable

from bronze.config.settings import Settings
from bronze.governance import writer
from bronze.governance.tables import data_lineage as book
from bronze.ingest import pipeline
from bronze.verify import inventory
from bronze.verify import verify as verifying
from bronze.verify.results import VerifyResult
from tests.conftest import Source

TABLES = "; ".join(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)" for name in ("a", "b", "c"))


@pytest.fixture
def landed(source: Source) -> Settings:
    """Three tables, which two runs have taken."""
    source.execute(TABLES)
    settings = source.settings()
    for number in range(2):
        source.execute("; ".join(f"INSERT INTO {n} VALUES ({number}, 'x')" for n in "abc"))
        assert pipeline.run(settings).exit_code == 0
    return settings


def proven(settings: Settings, *tables: str) -> VerifyResult:
    """What is found at rest."""
    return verifying.verify(settings, tables, at_rest=True)


def statuses(result: VerifyResult) -> dict[str, str]:
    """Each table's status."""
    return {table.target: table.status for table in result.tables}


def test_a_table_with_columns_of_no_type_of_ours_fails_alone(
    source: Source, landed: Settings
) -> None:
    """A foreign writer has put a map beside the columns: the others are proven."""
    entry = max((source.table("b") / "_delta_log").glob("*.json"))
    table = DeltaTable(str(source.table("b")))
    fields = json.loads(table.schema().to_json())["fields"]
    kind = {"type": "map", "keyType": "string", "valueType": "long", "valueContainsNull": True}
    fields.append({"name": "m", "type": kind, "nullable": True, "metadata": {}})
    held = table.metadata()
    action = {
        "id": held.id,
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": fields}),
        "partitionColumns": [],
        "configuration": held.configuration,
        "createdTime": held.created_time,
    }
    theirs = entry.with_name(f"{int(entry.stem) + 1:020}.json")
    theirs.write_text(json.dumps({"metaData": action}) + "\n")
    result = proven(landed)
    assert statuses(result) == {
        "bronze.bz_a": "equal",
        "bronze.bz_b": "failed",
        "bronze.bz_c": "equal",
    }
    assert result.exit_code == 1
    assert statuses(proven(landed, "a", "c")) == {"bronze.bz_a": "equal", "bronze.bz_c": "equal"}


def _damaged(folder: Path) -> None:
    file = min(folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime)
    file.write_bytes(b"PAR1 nothing PAR1")


def _lost(folder: Path) -> None:
    min(folder.glob("*.parquet")).unlink()


def _without_log(folder: Path) -> None:
    min((folder / "_delta_log").glob("*.json")).write_text("{}")


@pytest.mark.parametrize("damage", [_damaged, _lost, _without_log])
def test_tables_are_proven_though_their_records_are_damaged(
    landed: Settings, damage: Callable[[Path], None]
) -> None:
    """What is remembered of them cannot be read in full, which is a failure of its own."""
    damage(Path(landed.place("governance", book.NAME).url))
    result = proven(landed)
    assert statuses(result) == {
        "bronze.bz_a": "equal",
        "bronze.bz_b": "equal",
        "bronze.bz_c": "equal",
        "governance.data_lineage": "failed",
    }
    assert result.exit_code == 1
    error = result.tables[-1].error
    assert error
    assert "cannot be read in full" in error.message
    assert statuses(proven(landed, "a")) == {
        "bronze.bz_a": "equal",
        "governance.data_lineage": "failed",
    }


def record(number: int, source_table: str, target: str, version: int) -> book.LineageRecord:
    """What a run has remembered of a table."""
    known = {name: None for name, _ in book.COLUMNS if name != "created_timestamp"}
    texts = {n: "" for n, kind in book.COLUMNS if n in known and kind.name == "string"}
    own = {
        "source_system": "test",
        "source_table": source_table,
        "target_table": target,
        "version_after": version,
        "batch_id": str(number),
    }
    return book.LineageRecord(**{**known, **texts, **own})  # type: ignore[arg-type]


def test_a_bronze_table_is_what_landed_in_it_last(source: Source) -> None:
    """Its source's table may have been renamed, and one of its source may go elsewhere now."""
    settings = source.settings()
    place = settings.place("governance", book.NAME)
    names = [f"public.t{number:02}" for number in range(20)]
    records = [record(n, name, "bronze.bz_t", n + 1) for n, name in enumerate(names)]
    records += [record(20, "public.m", "bronze.bz_former", 7)]
    records += [record(21, "public.m", "bronze.bz_now", 2)]
    for one in records:
        writer.append_rows(place, book.COLUMNS, book.frame([one]), f"b{one.batch_id}")
    known, lost = inventory.recorded_tables(settings)
    assert lost is None
    assert known == {
        "bz_t": inventory.RecordedTable("test", "public.t19", 20),
        "bz_now": inventory.RecordedTable("test", "public.m", 2),
    }
