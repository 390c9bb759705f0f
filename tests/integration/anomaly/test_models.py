"""Anomalies of whole runs, with a real database and a real lake."""

from __future__ import annotations

import base64
import datetime as dt
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from bronze.anomaly import training
from bronze.anomaly.outliers import unusual_measures
from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.ingest import pipeline
from bronze.ingest.worker import train_model
from bronze.model.results import RunResult, TableResult
from tests.conftest import Source

ROWS = 3000
CREATE = """
CREATE TABLE goods (
    id int PRIMARY KEY, shop_id int, price numeric(12, 2), pieces int, state text, sold date)
"""
FILL = """
INSERT INTO goods
SELECT i, i %% 7, CASE WHEN i %% 500 = 7 THEN 1000000 ELSE 50 + i * 7919 %% 997 END,
    i * 31 %% 20, (ARRAY['new', 'paid', 'sent', 'sent'])[1 + i %% 4], date '2025-01-01' + i %% 300
FROM generate_series(%s::int, %s::int) i
"""

GROW = """
INSERT INTO goods (id, shop_id, price, pieces, state, sold)
SELECT id + n * 3000, shop_id, price, pieces, state, sold FROM goods, generate_series(1, 2) n
"""


def with_table(source: Source, **own: Any) -> Settings:
    """A table with an outlier in 500 rows, and settings that monitor it."""
    source.execute(CREATE)
    source.execute(FILL, 1, ROWS)
    source.execute("VACUUM ANALYZE goods")
    return monitored(source, **own)


def monitored(source: Source, **own: Any) -> Settings:
    """Settings that monitor the table."""
    section = {"anomalies": {"expected": 0.002, "trees": 20}, **own}
    return source.settings(tables={"goods": section}, stream={"interval": 0})


def run(settings: Settings) -> TableResult:
    """The result of a run without errors."""
    result: RunResult = pipeline.run(settings)
    assert result.exit_code == 0, result
    return result.tables[0]


def records(source: Source, name: str) -> pl.DataFrame:
    """A governance table."""
    return pl.read_delta(str(source.lake / "governance" / name))


def bronze_rows(source: Source) -> pl.DataFrame:
    """The Bronze table, ordered by key."""
    return pl.read_delta(str(source.table("goods"))).sort("id")


def test_a_first_load_trains_and_a_second_run_does_not(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outliers are anomalies with reasons; later runs use the stored model, and keep the scores of
    unchanged rows.
    """
    settings = with_table(source)
    first = run(settings)
    rows = bronze_rows(source)
    planted = [i for i in range(1, ROWS + 1) if i % 500 == 7]
    assert set(rows.filter("is_anomaly")["id"]) >= set(planted)
    assert first.anomalies == rows["is_anomaly"].sum() < 20
    recorded = records(source, "anomalies").filter(pl.col("level") == "row")
    assert recorded.height == first.anomalies
    outlier = recorded.filter(pl.col("row_key") == '{"id": 507}').row(0, named=True)
    assert json.loads(outlier["columns"])[0]["column"] == "price"
    assert outlier["anomaly_score"] > outlier["threshold"]
    assert outlier["batch_id"] == rows["batch_id"][0]
    (model,) = records(source, "models").iter_rows(named=True)
    assert outlier["model_version"] == model["model_version"]
    measures = {(f["column"], f["measure"]) for f in json.loads(model["features"])}
    assert measures == {
        ("price", "number"),
        ("pieces", "number"),
        ("state", "frequency"),
        ("sold", "age"),
    }

    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it trained"))
    source.execute("UPDATE goods SET price = 2000000, pieces = 1000000 WHERE id = 1")
    second = run(settings)
    assert (second.updated, second.anomalies) == (1, 1)
    after = bronze_rows(source)
    assert after["is_anomaly"][0] is True
    assert after["anomaly_score"].to_list()[1:] == rows["anomaly_score"].to_list()[1:]
    profiles = records(source, "profiles").sort("profiled_timestamp")
    assert profiles["scored"].to_list() == [ROWS, 1]


def test_a_model_is_trained_beside_the_reading_of_other_tables(source: Source) -> None:
    """The first task of a table trains its model, and does not end before another table is read: a
    worker that gets a copy of the task trains the same model.
    """
    source.execute("CREATE TABLE other (id int PRIMARY KEY)")
    source.execute("INSERT INTO other VALUES (1)")
    section = {"goods": {"priority": 1, "anomalies": {"trees": 20}}, "other": {"priority": 2}}
    with_table(source)
    settings = source.settings(tables=section)
    reading = threading.Event()
    versions: list[str] = []

    class Gated(ThreadPoolExecutor):
        def submit(self, perform: Any, /, *given: Any, **_: Any) -> Any:
            work, parcel, scope = given

            def gated() -> Any:
                if work is train_model:
                    assert reading.wait(30)
                    copy = pickle.loads(pickle.dumps(parcel))  # noqa: S301 - our own
                    versions.append(perform(work, copy, scope).content.model.version)
                elif parcel.content.read.table.endswith("other"):
                    reading.set()
                return perform(work, parcel, scope)

            return super().submit(gated)

    with Gated(2) as pool:
        result = pipeline.run(settings, pool=pool)
    assert result.exit_code == 0, result
    (trained,) = records(source, "models")["model_version"]
    assert versions == [trained]
    notes = [note for table in result.tables for note in table.notes]
    assert any(trained in note for note in notes)
    assert bronze_rows(source)["anomaly_score"].null_count() == 0


def test_a_model_that_cannot_be_trained_fails_its_table_alone(source: Source) -> None:
    """The sample of a table cannot be read: the other table lands, and nothing is left of it."""
    source.execute("CREATE FUNCTION broken(int) RETURNS int LANGUAGE sql AS 'SELECT $1 / 0'")
    source.execute(
        "CREATE VIEW bad AS SELECT g AS id, broken(g) AS a FROM generate_series(1, 99) g"
    )
    with_table(source)
    tables = {"bad": {"anomalies": {"trees": 20}}, "goods": {"anomalies": {"trees": 20}}}
    result = pipeline.run(source.settings(tables=tables))
    errors = {table.table: table.error for table in result.tables}
    assert errors["public.goods"] is None
    assert errors["public.bad"] is not None
    assert "division by zero" in errors["public.bad"].message
    assert records(source, "models")["source_table"].to_list() == ["public.goods"]


def test_row_hashes_do_not_include_scores(source: Source) -> None:
    """Hashes are over the source's columns: they are the same with scores and without."""
    settings = with_table(source)
    run(settings)
    scored = bronze_rows(source)
    plain = source.settings(tables={"goods": {"target": "bz_plain"}})
    run(plain)
    other = pl.read_delta(str(source.table("plain"))).sort("id")
    assert "anomaly_score" not in other.columns
    assert scored.select("row_hash", "checksum").equals(other.select("row_hash", "checksum"))


def test_small_changes_are_scored_by_the_model_in_the_lake(source: Source) -> None:
    """A micro-batch of a few rows gets scores too."""
    settings = with_table(source, pattern="micro_batch")
    run(settings)
    source.execute(
        "INSERT INTO goods VALUES (9001, 1, 5000000, 3, 'new', '2025-02-02'),"
        " (9002, 1, 333, 3, 'new', '2025-02-02'), (9003, NULL, NULL, NULL, NULL, NULL)"
    )
    second = run(settings)
    assert (second.inserted, second.anomalies) == (3, 1)
    new = bronze_rows(source).filter(pl.col("id") > ROWS)
    assert new["is_anomaly"].to_list() == [True, False, False]
    assert records(source, "models").height == 1
    assert set(records(source, "profiles")["scope"]) == {"whole", "changes"}


def test_a_stream_scores_its_rows(server: Any, source: Source) -> None:
    """Streamed rows have scores, and their anomalies are recorded when the stream ends."""
    settings = with_table(source, pattern="streaming")
    if source.execute("SHOW wal_level") != [("logical",)]:
        pytest.skip("the server writes no logical log")
    stream.stream(settings, until_caught_up=True)
    source.execute("INSERT INTO goods VALUES (9001, 1, 5000000, 3, 'new', '2025-02-02')")
    result = stream.stream(settings, until_caught_up=True)
    assert result.tables[0].anomalies == 1
    assert bronze_rows(source).filter(pl.col("id") == 9001)["is_anomaly"].item() is True
    recorded = records(source, "anomalies").filter(pl.col("row_key") == '{"id": 9001}')
    assert recorded["level"].to_list() == ["row"]
    assert records(source, "models").height == 1
    assert records(source, "profiles")["scope"].to_list().count("stream") == 1


class StoppedClock:
    """A clock that stands still."""

    def __init__(self, moment: dt.datetime) -> None:
        self._moment = moment

    def now(self, _: dt.tzinfo) -> dt.datetime:
        """The moment."""
        return self._moment


def training_reasons(source: Source) -> list[str]:
    """The reasons why models were trained, in order."""
    return records(source, "models").sort("trained_timestamp")["reason"].to_list()


@pytest.mark.soak
def test_a_model_is_retrained_when_it_no_longer_fits(source: Source) -> None:
    """After a new column, changed settings, and growth of the table."""
    run(with_table(source))
    source.execute("ALTER TABLE goods ADD COLUMN weight float8 DEFAULT random()")
    note = run(monitored(source)).notes[-1]
    assert "trained (its columns or settings have changed)" in note
    assert "weight" in records(source, "models").sort("trained_timestamp")["features"][-1]
    run(monitored(source, anomalies={"expected": 0.002, "trees": 15}))
    source.execute(GROW)
    run(monitored(source, anomalies={"expected": 0.002, "trees": 15}))
    run(monitored(source, anomalies={"expected": 0.002, "trees": 15}))
    assert training_reasons(source) == [
        "there was none",
        "its columns or settings have changed",
        "its columns or settings have changed",
        "the table has grown from 3,000 to 9,000 rows",
    ]


@pytest.mark.soak
def test_a_model_is_retrained_after_its_time(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time in the config, and when far more rows than expected are anomalies."""
    settings = with_table(source)
    run(settings)
    aged = monitored(source, anomalies={"expected": 0.002, "trees": 20, "retrain": 1})
    now = dt.datetime.now(dt.UTC)
    monkeypatch.setattr(pipeline, "datetime", StoppedClock(now + dt.timedelta(days=3)))
    assert "the last one is 3 days old" in run(aged).notes[0]
    source.execute("UPDATE goods SET price = price + 5000000 WHERE id <= 1500")
    assert run(settings).anomalies > 1000
    assert "of the last run's rows were anomalies" in run(settings).notes[0]
    versions = records(source, "models")["model_version"]
    assert versions.n_unique() == len(versions)


@pytest.mark.soak
def test_a_damaged_model_is_retrained(source: Source) -> None:
    """A new model is trained, with a note; also when a file of ``governance.models`` is missing."""
    settings = with_table(source)
    run(settings)
    folder = source.lake / "governance" / "models"
    reasons = ["there was none"]
    for column in ("features", "tree_left", "tree_sizes"):
        bad = records(source, "models")
        value: Any = "{" if bad.schema[column] == pl.String else [1, 2, 3]
        broken = pl.Series(column, [value] * len(bad), dtype=bad.schema[column])
        bad.with_columns(broken).write_delta(str(folder), mode="overwrite")
        assert "the one in the lake is damaged" in run(settings).notes[0], column
        reasons.append("the one in the lake is damaged")
        assert training_reasons(source) == reasons, column
    for file in folder.glob("*.parquet"):
        file.unlink()
    assert "damaged" in run(settings).notes[0]


def test_damaged_profiles_do_not_fail_a_run(source: Source) -> None:
    """Rows land, and a note says that the anomalies were not recorded."""
    settings = with_table(source)
    run(settings)
    for file in (source.lake / "governance" / "profiles").glob("*.parquet"):
        file.write_bytes(b"no Parquet")
    source.execute("INSERT INTO goods VALUES (9001, 1, 5000000, 3, 'new', '2025-02-02')")
    result = run(settings)
    assert (result.inserted, result.anomalies) == (1, 1)
    assert "the anomalies were not recorded" in result.notes[0]


def test_garbled_profiles_do_not_fail_a_run(source: Source) -> None:
    """Another writer has changed their JSON: a note says that the anomalies were not recorded."""
    settings = with_table(source)
    run(settings)
    DeltaTable(str(source.lake / "governance" / "profiles")).update({"measures": "'{'"})
    (note,) = run(settings).notes
    assert "not recorded: A record of governance.profiles cannot be read" in note


def test_numbers_without_a_delta_type_are_numbers(source: Source) -> None:
    """A numeric without precision, one of many digits, and domains are features of their kind, with
    NaN and infinities among the values; a note names the columns that are not features.
    """
    source.execute("CREATE DOMAIN price AS numeric CHECK (value > 0)")
    source.execute("CREATE DOMAIN words AS text")
    source.execute(
        "CREATE TABLE goods (id int PRIMARY KEY, free numeric, wide numeric(50, 2), d price,"
        " w words, at time, u uuid, b bytea, l int[])"
    )
    source.execute(
        "INSERT INTO goods SELECT i, 50.5 + i %% 97, 10 + i %% 89, 1 + i %% 7,"
        " repeat('x', 1 + i %% 61) || i, '10:00'::time + i * interval '1 second',"
        " gen_random_uuid(), i::text::bytea, ARRAY[i] FROM generate_series(1, %s) i",
        ROWS,
    )
    source.execute("UPDATE goods SET free = 'NaN' WHERE id = 1")
    source.execute("UPDATE goods SET free = 1e300, wide = 1e40 WHERE id = 77")
    source.execute("UPDATE goods SET free = NULL WHERE id % 500 = 0")
    settings = monitored(source)
    result = run(settings)
    (features,) = records(source, "models")["features"]
    assert {(f["column"], f["measure"]) for f in json.loads(features)} == {
        ("free", "number"),
        ("wide", "number"),
        ("d", "number"),
        ("w", "length"),
    }
    rows = bronze_rows(source)
    assert rows["anomaly_score"].null_count() == 0
    assert rows.filter("is_anomaly").sort("anomaly_score")["id"][-1] == 77
    assert (
        "no anomaly is found by the values of at (time without time zone), u (uuid), b (bytea),"
        " l (integer[])" in result.notes
    )
    means = [json.loads(text) for text in records(source, "profiles")["measures"]]
    assert means[0]["mean d"] == pytest.approx(4, abs=0.1)
    assert run(settings).notes == ()
    chosen = monitored(source, anomalies={"columns": ["free", "b"], "trees": 20})
    for _ in range(2):
        assert run(chosen).notes[-1] == "no anomaly is found by the values of b (bytea)"


def test_tables_without_a_model_have_no_scores(source: Source) -> None:
    """With few rows, or equal rows, the columns are NULL, and a note says why."""
    source.execute("CREATE TABLE goods (id int PRIMARY KEY, n int)")
    source.execute("INSERT INTO goods SELECT i, i FROM generate_series(1, 20) i")
    settings = monitored(source)
    assert "fewer than 50 rows" in run(settings).notes[0]
    assert bronze_rows(source)["anomaly_score"].null_count() == 20
    source.execute("INSERT INTO goods SELECT i, 5 FROM generate_series(21, 200) i")
    source.execute("UPDATE goods SET n = 5")
    run(settings)
    assert "no column has values that differ" in run(settings).notes[0]
    source.execute("ALTER TABLE goods DROP COLUMN n")
    assert "no column is fit" in " ".join(run(settings).notes)


def test_scores_stay_when_they_are_switched_off(source: Source) -> None:
    """The columns of the table stay; later rows have no score."""
    run(with_table(source))
    source.execute("INSERT INTO goods VALUES (9001, 1, 5000000, 3, 'new', '2025-02-02')")
    result = run(source.settings())
    assert (result.inserted, result.anomalies) == (1, 0)
    rows = bronze_rows(source)
    assert rows.filter(pl.col("anomaly_score").is_null())["id"].to_list() == [9001]


def test_scores_can_be_added_to_a_bronze_table(source: Source) -> None:
    """The columns are added; rows get scores when they change. The sample is of Bronze."""
    with_table(source)
    run(source.settings())
    source.execute("UPDATE goods SET pieces = 4 WHERE id IN (7, 8)")
    result = run(monitored(source))
    assert (result.updated, result.anomalies) == (2, 1)
    rows = bronze_rows(source)
    assert rows.filter(pl.col("anomaly_score").is_not_null())["id"].to_list() == [7, 8]


def test_a_column_named_like_a_score_is_refused(source: Source) -> None:
    """The hint is the rename for the config; without scores it is a column as any other."""
    source.execute("CREATE TABLE goods (id int PRIMARY KEY, is_anomaly boolean)")
    result = pipeline.run(monitored(source)).tables[0]
    assert result.error is not None
    assert "source_is_anomaly" in result.error.hint
    run(source.settings())
    assert bronze_rows(source).schema["is_anomaly"] == pl.Boolean


def test_protected_columns_are_in_no_model(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A protected column is not a feature, and has no mean in the profiles."""
    monkeypatch.setenv("BRONZE_MASTER_KEY", base64.b64encode(bytes(range(32))).decode())
    run(with_table(source, protect={"price": "encrypt", "state": "encrypt", "pieces": "clear"}))
    (features,) = records(source, "models")["features"]
    assert {feature["column"] for feature in json.loads(features)} == {"pieces", "sold"}
    (measures,) = records(source, "profiles")["measures"]
    assert "mean pieces" in json.loads(measures)
    assert "mean price" not in json.loads(measures)


@pytest.mark.soak
def test_unusual_measures_of_a_run_are_anomalies(source: Source) -> None:
    """Numbers of rows, NULLs, means and distinct values that differ from earlier runs."""
    settings = with_table(source)
    for number in range(6):
        source.execute("UPDATE goods SET pieces = %s WHERE id = 11", number)
        assert not [n for n in run(settings).notes if n.startswith("unusual")]
    source.execute("UPDATE goods SET state = NULL, pieces = pieces + 100 WHERE id % 2 = 0")
    source.execute("DELETE FROM goods WHERE id > 1500")
    notes = " ".join(run(settings).notes)
    assert "unusual: rows is 1,500, where 3,000 is usual" in notes
    assert "unusual: null share of state is 0.5" in notes
    assert "unusual: mean of pieces is 59" in notes
    recorded = records(source, "anomalies").filter(pl.col("level") == "run")
    measures = {(m[0]["measure"], m[0]["column"]) for m in map(json.loads, recorded["columns"])}
    assert {("rows", None), ("null_share", "state"), ("mean", "pieces")} <= measures
    assert recorded["row_key"].null_count() == recorded.height


def test_a_measure_is_unusual_beyond_its_variation() -> None:
    """It differs by more than it has varied so far, and by more than a few percent."""
    before = [
        {"rows": float(n), "mean x": m}
        for n, m in zip(range(1000, 1100, 10), [1, 9] * 5, strict=True)
    ]
    usual = {"rows": 1050.0, "mean x": 12.0}
    assert list(unusual_measures(usual, before)) == []
    assert [f.measure for f in unusual_measures({"rows": 3000.0}, before)] == ["rows"]
    assert [str(f) for f in unusual_measures({**usual, "mean x": 99.0}, before)] == [
        "unusual: mean of x is 99, where 5 is usual"
    ]
    assert list(unusual_measures({"rows": 3000.0}, before[:4])) == []
    few = [{"rows": 10.0, "mean x": 1.0}] * 9
    assert list(unusual_measures({"rows": 10.0, "mean x": 50.0}, few)) == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"expected": 0.9}, "expected"),
        ({"treees": 5}, "did you mean trees?"),
        ({"trees": 1}, "trees"),
        ("yes", "anomalies"),
    ],
)
def test_settings_are_checked(source: Source, section: Any, message: str) -> None:
    """Wrong values are refused, and the error of an unknown key names the nearest one."""
    with pytest.raises(ConfigError) as caught:
        source.settings(tables={"goods": {"anomalies": section}})
    assert message in caught.value.message


def test_a_missing_column_in_the_config_is_refused(source: Source) -> None:
    """A misspelled column is an error of its table."""
    settings = with_table(source, anomalies={"columns": ["pricee"]})
    error = pipeline.run(settings).tables[0].error
    assert error is not None
    assert "no column pricee" in error.message


def test_a_category_column_may_have_any_name(source: Source) -> None:
    """Also a name that polars gives to columns of results."""
    settings = with_table(source)
    source.execute('ALTER TABLE goods RENAME state TO "count"')
    run(settings)
    (features,) = records(source, "models")["features"]
    assert "count" in {feature["column"] for feature in json.loads(features)}
