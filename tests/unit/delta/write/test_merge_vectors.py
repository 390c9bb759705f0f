"""Merges by deletion vectors: few edited rows leave their file as it is, and all readers agree."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.delta import files
from bronze.delta.schema import VECTORS
from bronze.delta.write import merge, merge_job
from bronze.model.locations import Place
from bronze.model.units import DELETED
from tests.support.effort import examples
from tests.support.merging import (
    NOW,
    PLAIN,
    Bench,
    Row,
    actions_of,
    bits,
    frame,
    keys_of,
    plain,
    values_of,
    written,
)

_places = itertools.count()
MARKS = {
    "record_status": DELETED,
    "update_timestamp": NOW.loaded_at,
    "batch_id": NOW.batch_id,
    "ingestion_method": NOW.method,
    "data_lineage": NOW.lineage,
}


@dataclass(frozen=True)
class Round:
    """The keys that a merge updates (or inserts) and deletes."""

    upserts: frozenset[int]
    deletes: frozenset[int]


_keys = st.frozensets(st.integers(0, 29), max_size=12)
_rounds = st.builds(lambda a, b: Round(a, b - a), _keys, _keys)


def read(bench: Bench) -> Counter[str]:
    """The rows as bronze reads them."""
    found: Counter[str] = Counter()
    for file in bench.state.files:
        parquet = files.open_parquet(bench.place, file)
        for _, part in files.parts(parquet, bench.layout):
            found.update(written(pl.DataFrame(part)))
    return found


@pytest.mark.soak
@settings(max_examples=examples(20), deadline=None)
@given(
    rounds=st.lists(_rounds, min_size=1, max_size=4),
    on_delete=st.sampled_from(["mark", "remove"]),
    most=st.sampled_from([0.5, 1.0]),
    few=st.sampled_from([0, 2, 1000]),
)
def test_merges_by_vectors_do_what_the_model_does(
    tmp_path_factory: pytest.TempPathFactory,
    rounds: list[Round],
    on_delete: merge_job.OnDelete,
    most: float,
    few: int,
) -> None:
    """After each of several merges the table has the model's rows, as polars and bronze read it,
    and the feed says what changed; the log's counts are those of the rows.
    """
    place = Place(str(tmp_path_factory.mktemp("merge") / str(next(_places))))
    bench = Bench(place, PLAIN, ("id",), vectors=True)
    old = {n: plain(n) for n in range(20)}
    bench.create(
        [
            [[old[n] for n in range(5)], [old[n] for n in range(5, 12)]],
            [[old[n] for n in range(12, 20)]],
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "_SMALLEST_FILE", 0)
        patch.setattr(merge, "_MOST_DELETED", most)
        patch.setattr(merge, "_FEW", few)
        for number, one in enumerate(rounds):
            told: Counter[tuple[str, str]] = Counter()
            new = dict(old)
            for key in one.upserts:
                new[key] = plain(key, f"round {number}", NOW)
                if key in old:
                    loaded = values_of(PLAIN, old[key])["load_timestamp"]
                    new[key] = plain(key, f"round {number}", NOW, load_timestamp=loaded)
                    told["update_preimage", bits(old[key])] += 1
                    told["update_postimage", bits(new[key])] += 1
                else:
                    told["insert", bits(new[key])] += 1
            for key in one.deletes & old.keys():
                values = values_of(PLAIN, old[key])
                if on_delete == "remove":
                    if values["record_status"] != DELETED:
                        told["delete", bits(old[key])] += 1
                        del new[key]
                elif values["record_status"] != DELETED:
                    new[key] = tuple({**values, **MARKS}.values())
                    told["update_preimage", bits(old[key])] += 1
                    told["update_postimage", bits(new[key])] += 1
            staged = [plain(key, f"round {number}", NOW) for key in sorted(one.upserts)]
            deletes = keys_of(bench, sorted(one.deletes), staged=False)
            landed = bench.changed([frame(PLAIN, staged)], None, on_delete, deletes=deletes)
            expected = Counter(map(bits, new.values()))
            assert bench.content() == expected
            assert read(bench) == expected
            assert sum(file.rows for file in bench.state.files) == len(new)
            assert bench.told(landed.version) == told
            old = new


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A table of two files of 100 rows, large enough for vectors."""
    monkeypatch.setattr(merge, "_SMALLEST_FILE", 0)
    bench = Bench(Place(str(tmp_path / "t")), PLAIN, ("id",), vectors=True)
    rows: list[Row] = [plain(n) for n in range(200)]
    bench.create([[rows[:100]], [rows[100:]]])
    return bench


def update(bench: Bench, *keys: int) -> int:
    """Updates rows; the version."""
    return bench.changed([frame(PLAIN, [plain(key, "new", NOW) for key in keys])]).version


def test_a_merge_writes_one_file_of_each_kind(large: Bench) -> None:
    """Whatever the number of files with changed rows, there is one data file, one file of the feed
    and one of vectors; the old files stay, with exact counts and loose bounds.
    """
    before = {file.path for file in large.state.files}
    version = update(large, 1, 2, 150)
    folder = Path(large.place.url)
    assert len(list(folder.glob("deletion_vector_*.bin"))) == 1
    assert len(actions_of(large.place, version, "cdc")) == 1
    added = actions_of(large.place, version, "add")
    assert {a["path"] for a in added} > before
    assert len(added) == 3
    marked = [a for a in added if a["path"] in before]
    assert sorted(a["deletionVector"]["cardinality"] for a in marked) == [1, 2]
    for action in marked:
        stats = json.loads(action["stats"])
        assert stats["numRecords"] == 100
        assert stats["tightBounds"] is False
    removed = actions_of(large.place, version, "remove")
    assert {a["path"] for a in removed} == before
    assert all("deletionVector" not in a for a in removed)
    again = actions_of(large.place, update(large, 3), "remove")
    assert [a["deletionVector"]["cardinality"] for a in again] == [2]


def test_a_file_of_which_a_fifth_is_deleted_is_rewritten(large: Bench) -> None:
    """Readers do not go on reading rows that are deleted."""
    update(large, *range(20))
    vectored = [file for file in large.state.files if file.vector]
    assert [file.rows for file in vectored] == [80]
    update(large, 50)
    assert not any(file.vector for file in large.state.files)
    assert sum(file.rows for file in large.state.files) == 200


def test_small_files_are_rewritten(large: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector and a file of changed rows would be no smaller."""
    monkeypatch.setattr(merge, "_SMALLEST_FILE", 2**20)
    update(large, 1)
    assert not any(file.vector for file in large.state.files)


def test_the_protocol_names_the_feature(large: Bench) -> None:
    """Readers without deletion vectors refuse the table rather than showing deleted rows."""
    protocol = large.state.content.protocol
    assert VECTORS in protocol.reader_features & protocol.writer_features
