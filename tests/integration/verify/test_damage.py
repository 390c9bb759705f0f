"""Damage to Bronze tables: what each verification finds, and what repairs and runs make of it.

`BRONZE_DOCS=write` writes the results into the table in docs/explanation/proof.md.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from bronze.config.settings import Settings
from bronze.ingest import pipeline
from bronze.rows.metadata import digests
from bronze.verify import verify as verifying
from bronze.verify.results import VerifiedTable
from tests.conftest import Source
from tests.support.content import differences

DOCS = Path(__file__).parents[3] / "docs" / "explanation" / "proof.md"
MASTER = base64.b64encode(bytes(range(32))).decode()
BEGIN, END = "<!-- made by tests/integration/verify/test_damage.py -->\n", "<!-- end -->\n"
SEVEN = pl.col("id") == 7
DELETED = pl.col("id") == 4


@dataclass(frozen=True)
class Damage:
    """A kind of damage to the table in a folder. ``own`` is the table's section of the config."""

    what: str
    do: Callable[[Path], None]
    own: Mapping[str, Any] = field(default_factory=dict)


def old(folder: Path) -> Path:
    """The file of the table's first run."""
    found = [Path(path) for path in DeltaTable(str(folder)).file_uris()]
    return max(found, key=lambda file: pq.read_metadata(file).num_rows)


def new(folder: Path) -> Path:
    """The file of its second run."""
    found = [Path(path) for path in DeltaTable(str(folder)).file_uris()]
    return min(found, key=lambda file: pq.read_metadata(file).num_rows)


def rewritten(path: Path, rows: pl.DataFrame) -> None:
    """Writes other rows into a file, and corrects its entry in the log."""
    before = pq.read_schema(path)
    pq.write_table(rows.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(before), path)
    stats = {"numRecords": rows.height}
    edited(path, lambda add: add | {"size": path.stat().st_size, "stats": json.dumps(stats)})


def edited(path: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Changes the entry of a file in the log."""
    folder = next(p for p in path.parents if (p / "_delta_log").is_dir())
    for entry in (folder / "_delta_log").glob("*.json"):
        actions = [json.loads(line) for line in entry.read_text().splitlines()]
        for action in actions:
            if action.get("add", {}).get("path") == str(path.relative_to(folder)):
                action["add"] = edit(action["add"])
        entry.write_text("".join(json.dumps(action) + "\n" for action in actions))


def tampered(*changes: pl.Expr) -> Callable[[Path], None]:
    """Changes columns of the first file, without a commit."""

    def do(folder: Path) -> None:
        path = old(folder)
        rewritten(path, pl.DataFrame(pq.read_table(path)).with_columns(changes))

    return do


def where(row: pl.Expr, column: str, value: Any) -> pl.Expr:
    """A column with another value in some rows."""
    return pl.when(row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)


def forged(keeping: str = "") -> Callable[[Path], None]:
    """Changes a value and its hashes, except for one."""

    def do(folder: Path) -> None:
        path = old(folder)
        rows = pl.DataFrame(pq.read_table(path)).with_columns(where(SEVEN, "v", "other"))
        none = pl.repeat(None, rows.height, dtype=pl.String, eager=True)
        hashes, sums = digests(rows.select("id", "v", "n"), none, 3)
        made = {"row_hash": hashes, "checksum": sums}
        made.pop(keeping, None)
        rewritten(path, rows.with_columns(s.alias(name) for name, s in made.items()))

    return do


def rows(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    """Other rows in the first file."""

    def do(folder: Path) -> None:
        rewritten(old(folder), change(pl.DataFrame(pq.read_table(old(folder)))))

    return do


def added(frame: pl.DataFrame) -> pl.DataFrame:
    """A row that the source never had."""
    return pl.concat([frame, frame.filter(SEVEN).with_columns(pl.lit(99, pl.Int32).alias("id"))])


def truncated(folder: Path) -> None:
    """Cuts off the second half of a file."""
    old(folder).write_bytes(old(folder).read_bytes()[: old(folder).stat().st_size // 2])


def flipped(folder: Path) -> None:
    """Flips a bit among the data of a file."""
    whole = old(folder).read_bytes()
    old(folder).write_bytes(whole[:200] + bytes([whole[200] ^ 0x10]) + whole[201:])


def swapped(folder: Path) -> None:
    """Swaps two files."""
    one, other = old(folder), new(folder)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def committed(folder: Path, *actions: Mapping[str, Any]) -> None:
    """Adds a commit of another writer to the log."""
    version = DeltaTable(str(folder)).version() + 1
    info = {"commitInfo": {"operation": "WRITE", "engineInfo": "other"}}
    text = "".join(json.dumps(action) + "\n" for action in (info, *actions))
    (folder / "_delta_log" / f"{version:020}.json").write_text(text)


def adding(path: str) -> dict[str, Any]:
    """The action that adds a file."""
    known = {"partitionValues": {}, "size": 10, "modificationTime": 1, "dataChange": True}
    return {"add": {"path": path, **known}}


def copied(folder: Path) -> None:
    """Adds a copy of a file to the table."""
    shutil.copy(old(folder), folder / "copy.parquet")
    size = old(folder).stat().st_size
    action = adding("copy.parquet")
    action["add"]["size"] = size
    committed(folder, action)


def outside(folder: Path) -> None:
    """Adds a file outside of the folder to the log."""
    committed(folder, adding("../x.parquet"))


def metadata(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Another writer commits other metadata."""

    def do(folder: Path) -> None:
        found: dict[str, Any] = {}
        for entry in sorted((folder / "_delta_log").glob("*.json")):
            for line in entry.read_text().splitlines():
                found = json.loads(line).get("metaData", found)
        change(found)
        committed(folder, {"metaData": found})

    return do


def without(column: str) -> Callable[[Path], None]:
    """Removes a column from the table's schema."""

    def change(found: dict[str, Any]) -> None:
        schema = json.loads(found["schemaString"])
        schema["fields"] = [f for f in schema["fields"] if f["name"] != column]
        found["schemaString"] = json.dumps(schema)

    return metadata(change)


def replaced(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    """Another writer overwrites the whole table."""

    def do(folder: Path) -> None:
        table = DeltaTable(str(folder)).to_pyarrow_table()
        data = change(pl.DataFrame(table)).to_arrow(compat_level=pl.CompatLevel.oldest())
        write_deltalake(str(folder), data, mode="overwrite", schema_mode="overwrite")

    return do


def anonymous(found: dict[str, Any]) -> None:
    """Removes the table properties that bronze sets."""
    found["configuration"] = {
        name: value for name, value in found["configuration"].items() if "bronze" not in name
    }


def last_entry(folder: Path) -> None:
    """Removes the last entry of the log."""
    max((folder / "_delta_log").glob("*.json")).unlink()


def first_entry(folder: Path) -> None:
    """Removes the first entry of the log."""
    min((folder / "_delta_log").glob("*.json")).unlink()


def bounds(folder: Path) -> None:
    """Writes bounds into the log that exclude keys of the file."""
    stats = json.dumps({"numRecords": 50, "minValues": {"id": 1}, "maxValues": {"id": 9}})
    edited(old(folder), lambda add: add | {"stats": stats})


def partition(folder: Path) -> None:
    """Moves a file to the partition of another day."""
    edited(old(folder), lambda add: add | {"partitionValues": {"at_date": "1999-01-01"}})


def lake(do: Callable[[DeltaTable], object]) -> Callable[[Path], None]:
    """An operation of deltalake, as another writer."""
    return lambda folder: (do(DeltaTable(str(folder))), None)[1]


def append(folder: Path) -> None:
    """Appends rows that exist already."""
    data = pl.DataFrame(pq.read_table(new(folder))).head(5)
    write_deltalake(str(folder), data.to_arrow(compat_level=pl.CompatLevel.oldest()), mode="append")


HISTORY = {"pattern": "batch", "history": True}
HIDDEN = {"protect": {"v": "tokenize", "n": "encrypt"}}
DAMAGES = [
    Damage("a value", tampered(where(SEVEN, "v", "other"))),
    Damage("a value and its `checksum`", forged(keeping="row_hash")),
    Damage("a value, `checksum` and `row_hash`", forged()),
    Damage("a key", tampered(where(SEVEN, "id", 777))),
    Damage("a value of a row deleted in the source", tampered(where(DELETED, "v", "other"))),
    Damage("a protected value becomes another row's", tampered(where(SEVEN, "v", "tok_")), HIDDEN),
    Damage("`row_hash`", tampered(where(SEVEN, "row_hash", "0" * 32))),
    Damage("`row_hash` becomes NULL", tampered(where(SEVEN, "row_hash", None))),
    Damage("`checksum`", tampered(where(SEVEN, "checksum", "0" * 16))),
    Damage(
        "`record_status`: ACTIVE to DELETED", tampered(where(SEVEN, "record_status", "DELETED"))
    ),
    Damage(
        "`record_status`: DELETED to ACTIVE", tampered(where(DELETED, "record_status", "ACTIVE"))
    ),
    Damage(
        "`record_status`: ACTIVE to QUARANTINED",
        tampered(where(SEVEN, "record_status", "QUARANTINED")),
    ),
    Damage(
        "`record_status` with an unknown value", tampered(where(SEVEN, "record_status", "OTHER"))
    ),
    Damage(
        "`data_quality_score` below the threshold", tampered(where(SEVEN, "data_quality_score", 50))
    ),
    Damage("`load_timestamp` becomes NULL", tampered(where(SEVEN, "load_timestamp", None))),
    Damage(
        "`update_timestamp`, by a year",
        tampered((pl.col("update_timestamp") - pl.duration(days=365)).alias("update_timestamp")),
    ),
    Damage("`batch_id`", tampered(where(SEVEN, "batch_id", "other"))),
    Damage("`ingestion_method`", tampered(where(SEVEN, "ingestion_method", "other"))),
    Damage("`data_lineage` becomes NULL", tampered(where(SEVEN, "data_lineage", None))),
    Damage("a row is removed", rows(lambda frame: frame.filter(~SEVEN))),
    Damage("a row is duplicated", rows(lambda frame: pl.concat([frame, frame.filter(SEVEN)]))),
    Damage("a row is added", rows(added)),
    Damage("a file is missing", lambda folder: old(folder).unlink()),
    Damage("a file is truncated", truncated),
    Damage("a file is empty", lambda folder: (old(folder).write_bytes(b""), None)[1]),
    Damage("a byte is flipped", flipped),
    Damage("two files are swapped", swapped),
    Damage("a file of a history is missing", lambda folder: old(folder).unlink(), HISTORY),
    Damage("a stray file in the folder", lambda folder: (folder / "x.parquet").touch()),
    Damage("wrong bounds of a file in the log", bounds),
    Damage("a wrong partition of a file in the log", partition, {"partition_by": "at"}),
    Damage("an entry of the log adds a copy of a file", copied),
    Damage("an entry of the log adds `../x`", outside),
    Damage("the last entry of the log is missing", last_entry),
    Damage("the first entry of the log is missing", first_entry),
    Damage("the log is missing", lambda folder: shutil.rmtree(folder / "_delta_log")),
    Damage("the table is missing", lambda folder: shutil.rmtree(folder)),
    Damage("the properties are missing", metadata(anonymous)),
    Damage("a column is dropped", without("v")),
    Damage("`row_hash` is dropped", without("row_hash")),
    Damage(
        "`row_hash` is dropped, and the files are rewritten",
        replaced(lambda frame: frame.drop("row_hash")),
    ),
    Damage(
        "a column with values is added",
        replaced(lambda frame: frame.with_columns(pl.lit("x").alias("more"))),
    ),
    Damage(
        "`UPDATE` by another writer", lake(lambda t: t.update({"v": "'x'"}, predicate="id = 7"))
    ),
    Damage("`DELETE` by another writer", lake(lambda t: t.delete("id = 7"))),
    Damage("`INSERT` by another writer of rows that exist already", append),
    Damage("`RESTORE` by another writer", lake(lambda t: t.restore(0))),
    Damage("`OPTIMIZE` by another writer", lake(lambda t: t.optimize.compact())),
    Damage("`VACUUM` by another writer", lake(lambda t: t.vacuum(dry_run=False))),
]


def damaged_tables(source: Source, damages: list[Damage]) -> tuple[Settings, list[str]]:
    """A table for each damage, in two files, with a row that is deleted in the source."""
    names = [f"t{number}" for number in range(len(damages))]
    for name in names:
        source.execute(f"DROP TABLE IF EXISTS {name}")
        shutil.rmtree(source.table(name), ignore_errors=True)
        source.execute(
            f"CREATE TABLE {name} (id int PRIMARY KEY, v text, n numeric(8,2), at date)"
            if damages[int(name[1:])].own.get("partition_by")
            else f"CREATE TABLE {name} (id int PRIMARY KEY, v text, n numeric(8,2))"
        )
        source.execute(f"INSERT INTO {name} SELECT i, 'v' || i, i FROM generate_series(1, 50) i")
        if damages[int(name[1:])].own.get("partition_by"):
            source.execute(f"UPDATE {name} SET at = '2024-01-01'::date + id % 2")
    settings = source.settings(
        tables={name: dict(one.own) for name, one in zip(names, damages, strict=True)}
    )
    assert pipeline.run(settings).exit_code == 0
    for name in names:
        source.execute(f"DELETE FROM {name} WHERE id = 4")
        source.execute(
            f"INSERT INTO {name} (id, v, n) SELECT i, 'v' || i, i FROM generate_series(51, 60) i"
        )
    assert pipeline.run(settings).exit_code == 0
    for name, damage in zip(names, damages, strict=True):
        damage.do(source.table(name))
    return settings, names


def verified(settings: Settings, names: list[str], **how: Any) -> dict[str, VerifiedTable]:
    """The result of each table."""
    found = verifying.verify(settings, **how).tables
    by_name = {table.target.rpartition(".")[2].removeprefix("bz_"): table for table in found}
    return {name: by_name[name] for name in names}


def verify_cell(found: VerifiedTable) -> str:
    """The result of a verification, in a cell of the table."""
    kinds = ("missing", "extra", "different", "altered")
    parts = [f"{count} {kind}" for kind in kinds if (count := getattr(found, kind))]
    parts += ["file" if len(found.files) == 1 else "files"] if found.files else []
    parts += ["columns"] if found.columns else []
    parts += ["other writer"] if found.foreign else []
    parts += ["stray file"] if found.stray_files else []
    if found.status == "failed":
        return "refused" if found.error else "failed"
    if found.status == "equal":
        return f"equal ({', '.join(parts)})" if parts else "equal"
    return ", ".join(parts)


def matrix(source: Source) -> Iterator[tuple[str, ...]]:
    """The rows of the table."""
    settings, names = damaged_tables(source, DAMAGES)
    cells: dict[str, list[str]] = {name: [] for name in names}
    for how in ({}, {"trust_hashes": True}, {"at_rest": True}):
        for name, found in verified(settings, names, **how).items():
            cells[name].append(verify_cell(found))
    for name, found in verified(settings, names, repair=True).items():
        cells[name].append(repair_cell(found))
    whole = [name for name in names if cells[name][-1].startswith("repaired")]
    tables = settings.model_dump()["tables"]
    own = {name: dict(DAMAGES[int(name[1:])].own) for name in tables}
    assert differences(source.settings(source={"tables": whole}, tables=own)) == {}
    for name, cell in runs(source).items():
        cells[name].append(cell)
    for name, damage in zip(names, DAMAGES, strict=True):
        yield (damage.what, *cells[name])


def runs(source: Source) -> dict[str, str]:
    """What the next run does about each damage."""
    settings, names = damaged_tables(source, DAMAGES)
    done = {t.target.rpartition("_")[2]: t for t in pipeline.run(settings).tables}
    after = verified(settings, names)
    cells = {}
    for name in names:
        ran, found = done[name], after[name]
        noticed = any("another writer" in note for note in ran.notes)
        if ran.error:
            cells[name] = "refused"
        elif found.status == "equal":
            changed = ran.inserted or ran.updated or ran.deleted or noticed
            cells[name] = "repaired" if changed else "nothing to do"
        else:
            cells[name] = "in part" if noticed else "not noticed"
    return cells


def repair_cell(found: VerifiedTable) -> str:
    """The result of a repair, in a cell of the table."""
    if found.error is not None:
        return "refused"
    if found.status != "equal":
        return f"remaining: {verify_cell(found)}"
    lost = any(" lost" in note for note in found.notes)
    return "repaired, with a loss" if lost else "repaired" if found.notes else "nothing to do"


HEAD = ("damage", "`verify`", "`--trust-hashes`", "`--at-rest`", "`--repair`", "next run")


@pytest.mark.soak
def test_each_damage_is_found_and_repaired_as_documented(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table in docs/explanation/proof.md has the results of verifications, repairs and runs."""
    monkeypatch.setenv("BRONZE_MASTER_KEY", MASTER)
    lines = [HEAD, ("---",) * len(HEAD), *matrix(source)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text = DOCS.read_text()
    before, _, rest = text.partition(BEGIN)
    shown, _, after = rest.partition(END)
    if os.environ.get("BRONZE_DOCS") == "write":
        DOCS.write_text(f"{before}{BEGIN}{table}{END}{after}")
        shown = table
    assert re.sub(" +", " ", shown) == table
