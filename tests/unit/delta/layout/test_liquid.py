"""Liquid clustering: what the log says of it, whoever said it, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from uuid_utils import uuid7

from bronze.config.sections.tables import TableSettings
from bronze.delta import commit
from bronze.delta.layout import optimize
from bronze.delta.layout.optimize import TableLayout
from bronze.delta.read import clustering
from bronze.errors import LakeError
from bronze.model.locations import Place
from tests.support.vectors import delete, inline
from tests.unit.delta.layout.test_optimize import SHAPE, put, rows, state_of

LIQUID = TableLayout(("place", "day"), target=20_000, liquid=True)
PLAIN = TableLayout(("place", "day"), target=20_000)
MEMORY = 64 * 2**20


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where a table will be."""
    return Place(str(tmp_path / "t"))


def improve(place: Place, wish: TableLayout = LIQUID) -> optimize.OptimizeResult:
    """Optimizes the table in this process."""
    return optimize.optimize_table(place, wish, batch_id=str(uuid7()), memory=MEMORY, each=map)


def entry(place: Place, version: int) -> dict[str, list[dict[str, Any]]]:
    """The actions of a commit by their kinds."""
    path = Path(place.url) / f"_delta_log/{version:020}.json"
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        ((kind, value),) = json.loads(line).items()
        kinds.setdefault(kind, []).append(value)
    return kinds


def adds(place: Place) -> list[dict[str, Any]]:
    """The ``add`` actions of the present files."""
    state = state_of(place)
    return [dict(state.content.add_of(file)) for file in state.files]


def foreign(place: Place, *actions: dict[str, Any]) -> None:
    """A commit of another writer."""
    version = state_of(place).version + 1
    info = {"commitInfo": {"operation": "CLUSTER BY", "engineInfo": "Databricks"}}
    lines = "".join(json.dumps(action) + "\n" for action in (info, *actions))
    (Path(place.url) / f"_delta_log/{version:020}.json").write_text(lines)


def clustered_by_others(place: Place, *columns: str) -> None:
    """Makes it a clustered table, with a domain of another tool, as Databricks does."""
    features = ["appendOnly", "invariants", "changeDataFeed", "timestampNtz"]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["timestampNtz"]}
    domains = [
        {"domain": "delta.clustering", "configuration": clustering.configuration(columns)},
        {"domain": "tool", "configuration": "{}"},
    ]
    foreign(
        place,
        {"protocol": {**protocol, "writerFeatures": [*features, *clustering.FEATURES]}},
        *({"domainMetadata": {**domain, "removed": False}} for domain in domains),
    )


def test_the_log_says_what_the_table_is_clustered_by(place: Place) -> None:
    """One commit names the features and columns, and gives the files statistics; nothing is written
    again, rows and feed stay, and a second call does nothing.
    """
    put(place, rows(300))
    files = {file.path for file in state_of(place).files}
    result = improve(place)
    assert (result.version, result.rewritten) == (1, 0)
    actions = entry(place, 1)
    assert {*clustering.FEATURES} <= {*actions["protocol"][0]["writerFeatures"]}
    assert actions["protocol"][0]["readerFeatures"] == ["timestampNtz"]
    assert actions["domainMetadata"] == [
        {
            "domain": "delta.clustering",
            "configuration": '{"clusteringColumns": [["place"], ["day"]],'
            ' "domainName": "delta.clustering"}',
            "removed": False,
        }
    ]
    assert "`day`" in actions["metaData"][0]["configuration"]["delta.dataSkippingStatsColumns"]
    (add,) = adds(place)
    stats, frame = json.loads(add["stats"]), rows(300)
    assert stats["minValues"]["day"] == str(frame["day"].min())
    assert stats["nullCount"]["day"] == frame["day"].null_count()
    assert "dataChange" in add
    assert not add["dataChange"]
    assert {file.path for file in state_of(place).files} == files
    assert state_of(place).foreign == ()
    assert not optimize.is_needed(state_of(place), LIQUID)
    assert improve(place).version is None
    changed = TableLayout(("id",), target=20_000, liquid=True)
    assert improve(place, changed).version == 2
    assert state_of(place).clustering == ("id",)


def test_files_that_bronze_clusters_name_it(place: Place) -> None:
    """Files of a cluster have bronze as their provider, new ones none; those of another provider
    are left to it.
    """
    for seed in range(9):
        put(place, rows(300, seed))
    improve(place)
    providers = {add.get("clusteringProvider") for add in adds(place)}
    assert providers == {"bronze"}
    put(place, rows(300, 20))
    assert [add.get("clusteringProvider") for add in adds(place)].count(None) == 1
    for seed in range(30, 39):
        put(place, rows(300, seed))
    theirs = []
    for add in adds(place):
        if add.get("clusteringProvider") is None:
            theirs.append(add["path"])
            foreign(place, {"add": {**add, "dataChange": False, "clusteringProvider": "liquid"}})
    assert not optimize.is_needed(state_of(place), LIQUID)
    assert improve(place, TableLayout((), 10**6)).rows > 0
    assert {*theirs} <= {file.path for file in state_of(place).files}


@pytest.mark.soak
@pytest.mark.parametrize("appends", [20, 100])
def test_clustering_costs_no_more_than_without(tmp_path: Path, appends: int) -> None:
    """Many appends rewrite as many bytes with liquid clustering as without it."""
    written = {}
    for wish in (PLAIN, LIQUID):
        place = Place(str(tmp_path / str(wish.liquid)))
        written[wish.liquid] = 0
        for seed in range(appends):
            put(place, rows(40, seed))
            written[wish.liquid] += improve(place, wish).rewritten
    assert written[False] > 0
    assert written[True] <= written[False]


def test_tables_that_others_cluster_are_written(place: Place) -> None:
    """Whatever columns another writer clusters by, each file of bronze has statistics for them; a
    foreign domain stays, in a checkpoint too, and an earlier version is as it was.
    """
    put(place, rows(100))
    clustered_by_others(place, "name", "naive")
    put(place, rows(100, 1))
    for add in adds(place)[:1]:
        assert not clustering.lacks_statistics(add["stats"], ("name", "naive"))
    assert improve(place, TableLayout(("id",), 20_000)).version is None
    DeltaTable(place.url).create_checkpoint()
    for path in (Path(place.url) / "_delta_log").glob("*.json"):
        path.unlink()
    state = state_of(place)
    assert state.clustering == ("name", "naive")
    assert state.content.domains["tool"] == "{}"
    assert put(place, rows(100, 2)) == 3
    removed = {"domain": "delta.clustering", "configuration": "", "removed": True}
    foreign(place, {"domainMetadata": removed})
    assert state_of(place).clustering == ()
    assert {*state_of(place).content.domains} == {"tool"}


def test_checkpoints_keep_providers_tags_and_columns(place: Place) -> None:
    """Deltalake's checkpoint has them all; what is added again from it is as it was."""
    put(place, rows(100))
    (add,) = adds(place)
    foreign(place, {"add": {**add, "dataChange": False, "tags": {"a": "b"}}})
    improve(place)
    DeltaTable(place.url).create_checkpoint()
    for path in (Path(place.url) / "_delta_log").glob("*.json"):
        path.unlink()
    assert state_of(place).clustering == ("place", "day")
    improve(place, TableLayout(("name",), 20_000, liquid=True))
    (described,) = entry(place, 3)["add"]
    assert described["tags"] == {"a": "b"}
    assert described["partitionValues"] == {}
    assert DeltaTable(place.url).to_pyarrow_table().num_rows == 100


def test_long_logs_keep_their_columns(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that deltalake would read, as it is long, is replayed for its domains."""
    put(place, rows(100))
    monkeypatch.setattr("bronze.delta.read.log_objects._LONGEST", 0)
    improve(place)
    put(place, rows(100, 1))
    assert state_of(place).clustering == ("place", "day")
    assert len(state_of(place).files) == 2


@pytest.mark.parametrize("column", ["price", "ratio", "flag"])
def test_columns_without_statistics_are_refused(place: Place, column: str) -> None:
    """Neither bronze nor another writer makes bronze write a table that lacks statistics."""
    put(place, rows(50))
    with pytest.raises(LakeError, match=f"cannot have liquid clustering by {column}"):
        improve(place, TableLayout((column,), liquid=True))
    assert state_of(place).version == 0
    clustered_by_others(place, column)
    with pytest.raises(LakeError, match=f"liquid clustering by {column}"):
        put(place, rows(50))


def test_partitions_are_refused(place: Place) -> None:
    """Delta has either partitions or clusters."""
    shape = commit.Shape((*SHAPE.columns, ("dates", SHAPE.columns[3][1])), ("id",), "dates")
    commit.commit(place, None, commit.Change("WRITE"), {}, shape=shape)
    with pytest.raises(LakeError, match="partitioned by dates"):
        improve(place)
    for settings, words in (
        ({"liquid": True}, "needs cluster_by"),
        ({"liquid": True, "cluster_by": ["a"], "partition_by": "b"}, "partition_by"),
    ):
        with pytest.raises(ValueError, match=words):
            TableSettings.model_validate(settings)


@pytest.mark.parametrize("text", ["[]", "{}", '{"clusteringColumns": [[1]]}', "x"])
def test_domains_that_cannot_be_read_are_an_error(place: Place, text: str) -> None:
    """A sentence, no traceback."""
    put(place, rows(50))
    clustered_by_others(place, "id")
    domain = {"domain": "delta.clustering", "configuration": text, "removed": False}
    foreign(place, {"domainMetadata": domain})
    with pytest.raises(LakeError):
        put(place, rows(50))


def test_deltalake_and_polars_refuse_to_write(place: Place) -> None:
    """Once this fails, docs/explanation/layout.md and `bronze check` need not warn of it."""
    put(place, rows(50))
    improve(place)
    with pytest.raises(DeltaError, match=r"[Cc]luster|[Dd]omain"):
        rows(50, 1).write_delta(place.url, mode="append")
    assert state_of(place).version == 1


def test_files_with_odd_statistics_keep_their_provider(place: Place) -> None:
    """Where deltalake has to read the statistics, another provider's files are left to it, too."""
    for seed in range(9):
        put(place, rows(100, seed))
    improve(place)
    for add in adds(place):
        stats = {**json.loads(add["stats"]), "minValues": {"id": "x"}}
        odd = {"clusteringProvider": "liquid", "stats": json.dumps(stats), "dataChange": False}
        foreign(place, {"add": {**add, **odd}})
    assert {file.provider for file in state_of(place).files} == {"liquid"}


def test_deletion_vectors_stay(place: Place) -> None:
    """A file that is named again with more statistics keeps its vector, also from a checkpoint; the
    bounds are of deleted rows too, and say so.
    """
    put(place, rows(300))
    (file,) = state_of(place).files
    nulls = [n for n, day in enumerate(rows(300)["day"]) if day is None]
    delete(Path(place.url), file.path, inline(nulls))
    (known,) = adds(place)
    foreign(place, {"add": {**known, "dataChange": False, "stats": '{"numRecords": 300}'}})
    DeltaTable(place.url).create_checkpoint()
    improve(place)
    (marked,) = state_of(place).files
    assert (marked.rows, marked.path) == (300 - len(nulls), file.path)
    assert marked.vector is not None
    stats = json.loads(state_of(place).content.add_of(marked)["stats"])
    assert (stats["numRecords"], stats["tightBounds"]) == (300, False)
    assert stats["nullCount"]["day"] == len(nulls) > 0
    (described,) = entry(place, state_of(place).version)["add"]
    assert None not in described["deletionVector"].values()
    protocol = entry(place, state_of(place).version)["protocol"][0]
    assert {"deletionVectors", *clustering.FEATURES} <= {*protocol["writerFeatures"]}
    assert "deletionVectors" in protocol["readerFeatures"]
    assert pl.read_delta(place.url).height == 300 - len(nulls)
