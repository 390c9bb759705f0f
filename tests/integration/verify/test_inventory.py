"""Which Bronze tables are verified at rest, also where some are damaged, missing or renamed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable

from bronze.config.settings import Settings
from bronze.governance import writer
from bronze.governance.tables import data_lineage
from bronze.ingest import pipeline
from bronze.verify import inventory
from bronze.verify import verify as verifying
from bronze.verify.results import VerifyResult
from tests.conftest import Source

TABLES = "; ".join(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)" for name in ("a", "b", "c"))


@pytest.fixture
def loaded(source: Source) -> Settings:
    """Three tables that two runs have loaded."""
    source.execute(TABLES)
    settings = source.settings()
    for number in range(2):
        source.execute("; ".join(f"INSERT INTO {n} VALUES ({number}, 'x')" for n in "abc"))
        assert pipeline.run(settings).exit_code == 0
    return settings


def at_rest(settings: Settings, *tables: str) -> VerifyResult:
    """The result of a verification at rest."""
    return verifying.verify(settings, tables, at_rest=True)


def statuses(result: VerifyResult) -> dict[str, str]:
    """Each table's status."""
    return {table.target: table.status for table in result.tables}


def test_a_table_with_a_column_of_an_unknown_type_fails_alone(
    source: Source, loaded: Settings
) -> None:
    """Another writer has added a map column: the other tables are verified."""
    entry = max((source.table("b") / "_delta_log").glob("*.json"))
    table = DeltaTable(str(source.table("b")))
    fields = json.loads(table.schema().to_json())["fields"]
    kind = {"type": "map", "keyType": "string", "valueType": "long", "valueContainsNull": True}
    fields.append({"name": "m", "type": kind, "nullable": True, "metadata": {}})
    metadata = table.metadata()
    action = {
        "id": metadata.id,
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": fields}),
        "partitionColumns": [],
        "configuration": metadata.configuration,
        "createdTime": metadata.created_time,
    }
    next_entry = entry.with_name(f"{int(entry.stem) + 1:020}.json")
    next_entry.write_text(json.dumps({"metaData": action}) + "\n")
    result = at_rest(loaded)
    assert statuses(result) == {
        "bronze.bz_a": "equal",
        "bronze.bz_b": "failed",
        "bronze.bz_c": "equal",
    }
    assert result.exit_code == 1
    assert statuses(at_rest(loaded, "a", "c")) == {"bronze.bz_a": "equal", "bronze.bz_c": "equal"}


def _damage_file(folder: Path) -> None:
    file = min(folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime)
    file.write_bytes(b"PAR1 nothing PAR1")


def _remove_file(folder: Path) -> None:
    min(folder.glob("*.parquet")).unlink()


def _empty_log_entry(folder: Path) -> None:
    min((folder / "_delta_log").glob("*.json")).write_text("{}")


def test_tables_are_verified_though_their_lineage_records_are_damaged(
    loaded: Settings, tmp_path: Path
) -> None:
    """Records that cannot be read in full are a failure of governance.data_lineage itself."""
    folder = Path(loaded.place("governance", data_lineage.NAME).url)
    whole = shutil.copytree(folder, tmp_path / "whole")
    damages: list[Callable[[Path], None]] = [_damage_file, _remove_file, _empty_log_entry]
    for damage in damages:
        damage(folder)
        result = at_rest(loaded)
        assert statuses(result) == {
            "bronze.bz_a": "equal",
            "bronze.bz_b": "equal",
            "bronze.bz_c": "equal",
            "governance.data_lineage": "failed",
        }, damage
        assert result.exit_code == 1
        error = result.tables[-1].error
        assert error
        assert "cannot be read in full" in error.message
        assert statuses(at_rest(loaded, "a")) == {
            "bronze.bz_a": "equal",
            "governance.data_lineage": "failed",
        }, damage
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
    assert at_rest(loaded).exit_code == 0


def record(number: int, source_table: str, target: str, version: int) -> data_lineage.LineageRecord:
    """A lineage record of a run."""
    known = {name: None for name, _ in data_lineage.COLUMNS if name != "created_timestamp"}
    texts = {n: "" for n, kind in data_lineage.COLUMNS if n in known and kind.name == "string"}
    own = {
        "source_system": "test",
        "source_table": source_table,
        "target_table": target,
        "version_after": version,
        "batch_id": str(number),
    }
    return data_lineage.LineageRecord(**{**known, **texts, **own})  # type: ignore[arg-type]


def test_the_latest_record_of_a_bronze_table_counts(source: Source) -> None:
    """The source's table may have been renamed, or be loaded into another Bronze table now."""
    settings = source.settings()
    place = settings.place("governance", data_lineage.NAME)
    names = [f"public.t{number:02}" for number in range(20)]
    records = [record(n, name, "bronze.bz_t", n + 1) for n, name in enumerate(names)]
    records += [record(20, "public.m", "bronze.bz_former", 7)]
    records += [record(21, "public.m", "bronze.bz_now", 2)]
    for one in records:
        writer.append_rows(
            place, data_lineage.COLUMNS, data_lineage.frame([one]), f"b{one.batch_id}"
        )
    known, lost = inventory.recorded_tables(settings)
    assert lost is None
    assert known == {
        "bz_t": inventory.RecordedTable("test", "public.t19", 20),
        "bz_now": inventory.RecordedTable("test", "public.m", 2),
    }


def test_schemas_and_tables_with_dots_in_their_names_are_selected(source: Source) -> None:
    """The properties of a Bronze table have schema and name of the source's table apart; where the
    Bronze table is missing, the schemas of the config decide.
    """
    for schema, name in (("a", "b.c"), ("a.b", "c.d")):
        source.execute(f'CREATE SCHEMA "{schema}"')
        source.execute(f'CREATE TABLE "{schema}"."{name}" (id int PRIMARY KEY)')
    both = ["a", "a.b"]
    for number in range(2):
        source.execute(f'INSERT INTO "a"."b.c" VALUES ({number})')
        source.execute(f'INSERT INTO "a.b"."c.d" VALUES ({number})')
        assert pipeline.run(source.settings(source={"schema": both})).exit_code == 0

    def expected(schemas: list[str], tables: list[str], *names: str) -> dict[str, int]:
        settings = source.settings(source={"schema": schemas, "tables": tables})
        return {t.label: t.version for t in inventory.expected_tables(settings, names)}

    # Of a table that the config does not select no version is expected.
    assert expected(both, ["c", "c.d"]) == {"a.b.c": 0, "a.b.c.d": 1}
    assert expected(both, ["b.c"]) == {"a.b.c": 1, "a.b.c.d": 0}
    assert expected(["a"], ["b.c.d"]) == {"a.b.c": 0, "a.b.c.d": 0}
    assert expected(both, ["c.d"], "c.d") == {"a.b.c.d": 1}
    shutil.rmtree(source.table("c_d"))
    assert expected(both, ["c.d"]) == {"a.b.c": 0, "a.b.c.d": 1}
    assert expected(both, ["c.d"], "c.d") == {"a.b.c.d": 1}
    assert expected(both, ["d"]) == {"a.b.c": 0}
    assert expected(["a.b"], ["b.c.d"]) == {"a.b.c": 0}
    result = at_rest(source.settings(source={"schema": both, "tables": ["c.d"]}), "c.d")
    assert [table.status for table in result.tables] == ["failed"]
