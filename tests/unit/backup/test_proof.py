"""`bronze backup --verify` finds whatever was changed in a copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bronze.backup import proof
from bronze.errors import ConfigError
from tests.support.small_lake import SmallLake, manifests


@pytest.fixture
def lake(tmp_path: Path) -> SmallLake:
    """A lake with three generations, and a log with a checkpoint."""
    lake = SmallLake(tmp_path).begin()
    for number in range(21):
        lake.append(f"w{number}")
    lake.back_up()
    lake.append("last")
    lake.back_up()
    lake.back_up()
    return lake


def _change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _data_file(lake: SmallLake) -> Path:
    return next((lake.copy / "bronze/bz_orders").glob("*.parquet"))


def _entry(lake: SmallLake) -> Path:
    return lake.copy / "bronze/bz_orders/_delta_log" / f"{21:020}.json"


def _list(lake: SmallLake) -> Path:
    return next((lake.copy / "_backup/objects/bronze.bz_orders").iterdir())


CASES: dict[str, tuple[Callable[[SmallLake], Path], Callable[[Path], object], str]] = {
    "a changed byte": (_data_file, _change_byte, "was changed: its hash differs"),
    "a missing object": (_data_file, Path.unlink, "is missing"),
    "a longer object": (
        _data_file, lambda p: p.write_bytes(p.read_bytes() + b"x"), "bytes instead",
    ),
    "a missing entry": (_entry, Path.unlink, f"{21:020}.json of the copy is missing"),
    "a changed entry": (_entry, _change_byte, f"{21:020}.json of the copy was changed"),
    "a changed list": (_list, _change_byte, "was changed: its hash is not that of the manifest"),
    "a missing list": (_list, Path.unlink, "is missing"),
    "a missing manifest": (lambda lake: manifests(lake)[1], Path.unlink, "manifests/"),
    "a broken manifest": (
        lambda lake: manifests(lake)[0], lambda p: p.write_text("{"), "is not a manifest",
    ),
    "a broken chain": (
        lambda lake: manifests(lake)[0],
        lambda p: p.write_text(p.read_text().replace('"config": "', '"config": "x')),
        "was changed: its hash is not the one that generation 2 has",
    ),
    "no last checkpoint": (
        lambda lake: lake.copy / "bronze/bz_orders/_delta_log/_last_checkpoint",
        Path.unlink,
        "_last_checkpoint of the copy is missing",
    ),
}  # fmt: skip


def test_each_change_is_found_and_named(lake: SmallLake) -> None:
    """With the file's name, in one sentence; a whole copy has none."""
    whole = proof.verify_copy(lake.settings)
    assert (whole.faults, whole.exit_code, whole.objects) == ((), 0, whole.total_objects)
    for case, (path_of, change, sentence) in CASES.items():
        path = path_of(lake)
        before = path.read_bytes()
        change(path)
        found = proof.verify_copy(lake.settings)
        assert found.exit_code == 1, case
        assert any(sentence in fault for fault in found.faults), (case, found.faults)
        path.write_bytes(before)
    assert proof.verify_copy(lake.settings).faults == ()


def test_a_sample_reads_a_part_of_the_files_and_all_of_the_log(lake: SmallLake) -> None:
    """5% of 22 data files are 2; a changed entry is always found, a missing file too."""
    part = proof.verify_copy(lake.settings, sample=proof.part_of("5%"))
    logs = len(list(lake.copy.rglob("_delta_log/*"))) - 1
    governance = len(list((lake.copy / "governance").rglob("part-*.parquet")))
    assert part.objects == logs + 2 + governance
    _change_byte(_entry(lake))
    assert proof.verify_copy(lake.settings, sample=0.01).exit_code == 1


@pytest.mark.parametrize("text", ["0%", "101%", "x", "", "-5", "nan"])
def test_what_is_no_sample_is_refused(text: str) -> None:
    """With an example of one."""
    with pytest.raises(ConfigError, match="is not a sample"):
        proof.part_of(text)


def test_there_has_to_be_a_copy(tmp_path: Path) -> None:
    """An empty folder is not a whole copy."""
    with pytest.raises(ConfigError, match="There is no copy at"):
        proof.verify_copy(SmallLake(tmp_path).settings)
