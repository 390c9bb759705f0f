"""Anomalies of whole runs, with a real database and a real lake."""

from __future__ import annotations

import base64
import datetime as dt
import json
from typing import Any

import polars as pl
import pytest

from bronze.anomaly import training
from bronze.anomaly.outliers import far
from bronze.cdc import stream
from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.ingest import pipeline
from bronze.model.results import RunResult, TableResult
from tests.conftest import Source

ROWS = 3000
MADE = """
CREATE TABLE goods (
    id int PRIMARY KEY, shop_id int, price numeric(12, 2), pieces int, state text, sold date)
"""
FILLED = """
INSERT INTO goods
SELECT i, i %% 7, CASE WHEN i %% 500 = 7 THEN 1000000 ELSE 50 + i * 7919 %% 997 END,
    i * 31 %% 20, (ARRAY['new', 'paid', 'sent', 'sent'])[1 + i %% 4], date '2025-01-01' + i %% 300
FROM generate_series(%s::int, %s::int) i
"""

GROWN = """
INSERT INTO goods (id, shop_id, price, pieces, state, sold)
SELECT id + n * 3000, shop_id, price, pieces, state, sold FROM goods, generate_series(1, 2) n
"""


def made(source: Source, **own: Any) -> Settings:
    """A table with an outlier in 500 rows, and settings that watch it."""
    source.execute(MADE)
    source.execute(FILLED, 1, ROWS)
    source.execute("VACUUM ANALYZE goods")
    return watching(source, **own)


def watching(source: Source, **own: Any) -> Settings:
    """Settings that watch the table."""
    given = {"anomalies": {"expected": 0.002, "trees": 20}, **own}
    return source.settings(tables={"goods": given}, stream={"interval": 0})


def ran(settings: Settings) -> TableResult:
    """A run that goes well."""
    result: RunResult = pipeline.run(settings)
    assert result.exit_code == 0, result
    return result.tables[0]


def book(source: Source, name: str) -> pl.DataFrame:
    """A governance table."""
    return pl.read_delta(str(source.lake / "governance" / name))


def held(source: Source) -> pl.DataFrame:
    """The Bronze table in the order of its key."""
    return pl.read_delta(str(source.table("goods"))).sort("id")


def test_a_first_load_trains_and_a_second_run_does_not(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted outliers are flagged and explained; later runs go by the model that is there, and
    leave the scores of rows that have not changed alone.
    """
    settings = made(source)
    first = ran(settings)
    rows = held(source)
    planted = [i for i in range(1, ROWS + 1) if i % 500 == 7]
    assert set(rows.filter("is_anomaly")["id"]) >= set(planted)
    assert first.anomalies == rows["is_anomaly"].sum() < 20
    told = book(source, "anomalies").filter(pl.col("level") == "row")
    assert told.height == first.anomalies
    mine = told.filter(pl.col("row_key") == '{"id": 507}').row(0, named=True)
    assert json.loads(mine["columns"])[0]["column"] == "price"
    assert mine["anomaly_score"] > mine["threshold"]
    assert mine["batch_id"] == rows["batch_id"][0]
    (model,) = book(source, "models").iter_rows(named=True)
    assert mine["model_version"] == model["model_version"]
    measures = {(f["column"], f["measure"]) for f in json.loads(model["features"])}
    assert measures == {
        ("price", "number"),
        ("pieces", "number"),
        ("state", "frequency"),
        ("sold", "age"),
    }

    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("it trained"))
    source.execute("UPDATE goods SET price = 2000000, pieces = 1000000 WHERE id = 1")
    second = ran(settings)
    assert (second.updated, second.anomalies) == (1, 1)
    after = held(source)
    assert after["is_anomaly"][0] is True
    assert after["anomaly_score"].to_list()[1:] == rows["anomaly_score"].to_list()[1:]
    profiles = book(source, "profiles").sort("profiled_timestamp")
    assert profiles["scored"].to_list() == [ROWS, 1]


def test_rows_are_proved_without_their_scores(source: Source) -> None:
    """Hashes are over the source's columns alone: they are the same with scores and without."""
    settings = made(source)
    ran(settings)
    scored = held(source)
    plain = source.settings(tables={"goods": {"target": "bz_plain"}})
    ran(plain)
    other = pl.read_delta(str(source.table("plain"))).sort("id")
    assert "anomaly_score" not in other.columns
    assert scored.select("row_hash", "checksum").equals(other.select("row_hash", "checksum"))


def test_small_changes_are_scored_by_the_model_in_the_lake(source: Source) -> None:
    """A micro-batch of a few rows gets scores, too."""
    settings = made(source, pattern="micro_batch")
    ran(settings)
    source.execute(
        "INSERT INTO goods VALUES (9001, 1, 5000000, 3, 'new', '2025-02-02'),"
        " (9002, 1, 333, 3, 'new', '2025-02-02'), (9003, NULL, NULL, NULL, NULL, NULL)"
    )
    second = ran(settings)
    assert (second.inserted, second.anomalies) == (3, 1)
    new = held(source).filter(pl.col("id") > ROWS)
    assert new["is_anomaly"].to_list() == [True, False, False]
    assert book(source, "models").height == 1
    assert set(book(source, "profiles")["scope"]) == {"whole", "changes"}


def test_a_stream_scores_its_rows(server: Any, source: Source) -> None:
    """Rows that a stream brings have scores, and its anomalies are in the book at its end."""
    settings = made(source, pattern="streaming")
    if source.execute("SHOW wal_level") != [("logical",)]:
        pytest.skip("the server writes no logical log")
    stream.stream(settings, until_caught_up=True)
    source.execute("INSERT INTO goods VALUES (9001, 1, 5000000, 3, 'new', '2025-02-02')")
    result = stream.stream(settings, until_caught_up=True)
    assert result.tables[0].anomalies == 1
    assert held(source).filter(pl.col("id") == 9001)["is_anomaly"].item() is True
    told = book(source, "anomalies").filter(pl.col("row_key") == '{"id": 9001}')
    assert told["level"].to_list() == ["row"]
    assert book(source, "models").height == 1
    assert book(source, "profiles")["scope"].to_list().count("stream") == 1


class At:
    """A clock that stands."""

    def __init__(self, moment: dt.datetime) -> None:
        self._moment = moment

    def now(self, _: dt.tzinfo) -> dt.datetime:
        """The moment."""
        return self._moment


def retrained(source: Source) -> list[str]:
    """Why models were made, in their order."""
    return book(source, "models").sort("trained_timestamp")["reason"].to_list()


def test_a_model_is_made_anew_when_it_no_longer_fits(source: Source) -> None:
    """Another column, other settings, a table that has grown, and age: each has a new model."""
    ran(made(source))
    source.execute("ALTER TABLE goods ADD COLUMN weight float8 DEFAULT random()")
    note = ran(watching(source)).notes[-1]
    assert "trained (its columns or settings have changed)" in note
    assert "weight" in book(source, "models").sort("trained_timestamp")["features"][-1]
    ran(watching(source, anomalies={"expected": 0.002, "trees": 15}))
    source.execute(GROWN)
    ran(watching(source, anomalies={"expected": 0.002, "trees": 15}))
    ran(watching(source, anomalies={"expected": 0.002, "trees": 15}))
    assert retrained(source) == [
        "there was none",
        "its columns or settings have changed",
        "its columns or settings have changed",
        "the table has grown from 3,000 to 9,000 rows",
    ]


def test_a_model_is_made_anew_on_its_day(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that the config says, and when far more rows than expected stand out."""
    settings = made(source)
    ran(settings)
    aged = watching(source, anomalies={"expected": 0.002, "trees": 20, "retrain": 1})
    now = dt.datetime.now(dt.UTC)
    monkeypatch.setattr(pipeline, "datetime", At(now + dt.timedelta(days=3)))
    assert "the last one is 3 days old" in ran(aged).notes[0]
    source.execute("UPDATE goods SET price = price + 5000000 WHERE id <= 1500")
    assert ran(settings).anomalies > 1000
    assert "of the last run's rows were anomalies" in ran(settings).notes[0]
    versions = book(source, "models")["model_version"]
    assert versions.n_unique() == len(versions)


def test_a_damaged_model_is_made_anew(source: Source) -> None:
    """What is no model is not used: another one is trained, and that is said. A file of the book
    that is gone is a damage as well.
    """
    settings = made(source)
    ran(settings)
    folder = source.lake / "governance" / "models"
    reasons = ["there was none"]
    for column in ("features", "tree_left", "tree_sizes"):
        bad = book(source, "models")
        value: Any = "{" if bad.schema[column] == pl.String else [1, 2, 3]
        broken = pl.Series(column, [value] * len(bad), dtype=bad.schema[column])
        bad.with_columns(broken).write_delta(str(folder), mode="overwrite")
        assert "the one in the lake is damaged" in ran(settings).notes[0], column
        reasons.append("the one in the lake is damaged")
        assert retrained(source) == reasons, column
    for file in folder.glob("*.parquet"):
        file.unlink()
    assert "damaged" in ran(settings).notes[0]


def test_a_damaged_book_is_told_and_stops_nothing(source: Source) -> None:
    """Rows land, and the run says that the anomalies are not in the books."""
    settings = made(source)
    ran(settings)
    for file in (source.lake / "governance" / "profiles").glob("*.parquet"):
        file.write_bytes(b"no Parquet")
    source.execute("INSERT INTO goods VALUES (9001, 1, 5000000, 3, 'new', '2025-02-02')")
    result = ran(settings)
    assert (result.inserted, result.anomalies) == (1, 1)
    assert "were not entered into the books" in result.notes[0]


def test_numbers_that_delta_has_no_type_for_are_numbers(source: Source) -> None:
    """A numeric without precision, one of many digits and domains are watched as what they are,
    with NaN and infinities among them; what takes no part in the scores is named.
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
    settings = watching(source)
    result = ran(settings)
    (features,) = book(source, "models")["features"]
    assert {(f["column"], f["measure"]) for f in json.loads(features)} == {
        ("free", "number"),
        ("wide", "number"),
        ("d", "number"),
        ("w", "length"),
    }
    rows = held(source)
    assert rows["anomaly_score"].null_count() == 0
    assert rows.filter("is_anomaly").sort("anomaly_score")["id"][-1] == 77
    assert (
        "no anomaly is found by the values of at (time without time zone), u (uuid), b (bytea),"
        " l (integer[])" in result.notes
    )
    means = [json.loads(one) for one in book(source, "profiles")["measures"]]
    assert means[0]["mean d"] == pytest.approx(4, abs=0.1)
    assert ran(settings).notes == ()
    chosen = watching(source, anomalies={"columns": ["free", "b"], "trees": 20})
    for _ in range(2):
        assert ran(chosen).notes[-1] == "no anomaly is found by the values of b (bytea)"


def test_tables_of_which_nothing_can_be_learned_have_no_scores(source: Source) -> None:
    """Few rows, or none that differ: the columns are NULL, the run goes well and says so."""
    source.execute("CREATE TABLE goods (id int PRIMARY KEY, n int)")
    source.execute("INSERT INTO goods SELECT i, i FROM generate_series(1, 20) i")
    settings = watching(source)
    assert "fewer than 50 rows" in ran(settings).notes[0]
    assert held(source)["anomaly_score"].null_count() == 20
    source.execute("INSERT INTO goods SELECT i, 5 FROM generate_series(21, 200) i")
    source.execute("UPDATE goods SET n = 5")
    ran(settings)
    assert "no column has values that differ" in ran(settings).notes[0]
    source.execute("ALTER TABLE goods DROP COLUMN n")
    assert "no column is fit" in " ".join(ran(settings).notes)


def test_scores_stay_when_they_are_switched_off(source: Source) -> None:
    """The columns stay, as the table has them; rows that come later have none."""
    ran(made(source))
    source.execute("INSERT INTO goods VALUES (9001, 1, 5000000, 3, 'new', '2025-02-02')")
    result = ran(source.settings())
    assert (result.inserted, result.anomalies) == (1, 0)
    rows = held(source)
    assert rows.filter(pl.col("anomaly_score").is_null())["id"].to_list() == [9001]


def test_scores_can_begin_in_a_table_that_is_there(source: Source) -> None:
    """The columns are added; rows get their scores when they change. The sample is of Bronze."""
    made(source)
    ran(source.settings())
    source.execute("UPDATE goods SET pieces = 4 WHERE id IN (7, 8)")
    result = ran(watching(source))
    assert (result.updated, result.anomalies) == (2, 1)
    rows = held(source)
    assert rows.filter(pl.col("anomaly_score").is_not_null())["id"].to_list() == [7, 8]


def test_a_column_that_is_called_so_is_refused(source: Source) -> None:
    """With the rename to put into the config; without scores it is a column as any other."""
    source.execute("CREATE TABLE goods (id int PRIMARY KEY, is_anomaly boolean)")
    result = pipeline.run(watching(source)).tables[0]
    assert result.error is not None
    assert "source_is_anomaly" in result.error.hint
    ran(source.settings())
    assert held(source).schema["is_anomaly"] == pl.Boolean


def test_protected_columns_are_left_out(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is learned of a column that is protected, and it has no mean in the profiles."""
    monkeypatch.setenv("BRONZE_MASTER_KEY", base64.b64encode(bytes(range(32))).decode())
    ran(made(source, protect={"price": "encrypt", "state": "encrypt", "pieces": "clear"}))
    (features,) = book(source, "models")["features"]
    assert {feature["column"] for feature in json.loads(features)} == {"pieces", "sold"}
    (measures,) = book(source, "profiles")["measures"]
    assert "mean pieces" in json.loads(measures)
    assert "mean price" not in json.loads(measures)


def test_a_run_that_is_unlike_those_before_is_told(source: Source) -> None:
    """Rows, NULLs, means and different values that are far from usual are anomalies of the run."""
    settings = made(source)
    for number in range(6):
        source.execute("UPDATE goods SET pieces = %s WHERE id = 11", number)
        assert not [n for n in ran(settings).notes if n.startswith("unusual")]
    source.execute("UPDATE goods SET state = NULL, pieces = pieces + 100 WHERE id % 2 = 0")
    source.execute("DELETE FROM goods WHERE id > 1500")
    notes = " ".join(ran(settings).notes)
    assert "unusual: rows is 1,500, where 3,000 is usual" in notes
    assert "unusual: null share of state is 0.5" in notes
    assert "unusual: mean of pieces is 59" in notes
    told = book(source, "anomalies").filter(pl.col("level") == "run")
    measures = {(m[0]["measure"], m[0]["column"]) for m in map(json.loads, told["columns"])}
    assert {("rows", None), ("null_share", "state"), ("mean", "pieces")} <= measures
    assert told["row_key"].null_count() == told.height


def test_what_varies_anyway_is_not_told() -> None:
    """A measure is far only beyond what it has varied by, and a few percent."""
    before = [
        {"rows": float(n), "mean x": m}
        for n, m in zip(range(1000, 1100, 10), [1, 9] * 5, strict=True)
    ]
    usual = {"rows": 1050.0, "mean x": 12.0}
    assert list(far(usual, before)) == []
    assert [f.measure for f in far({"rows": 3000.0}, before)] == ["rows"]
    assert [str(f) for f in far({**usual, "mean x": 99.0}, before)] == [
        "unusual: mean of x is 99, where 5 is usual"
    ]
    assert list(far({"rows": 3000.0}, before[:4])) == []
    few = [{"rows": 10.0, "mean x": 1.0}] * 9
    assert list(far({"rows": 10.0, "mean x": 50.0}, few)) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"expected": 0.9}, "expected"),
        ({"treees": 5}, "did you mean trees?"),
        ({"trees": 1}, "trees"),
        ("yes", "anomalies"),
    ],
)
def test_settings_are_checked(source: Source, given: Any, said: str) -> None:
    """Nonsense is refused, and an unknown key names the nearest one."""
    with pytest.raises(ConfigError) as caught:
        source.settings(tables={"goods": {"anomalies": given}})
    assert said in caught.value.message


def test_a_chosen_column_that_is_not_there_is_refused(source: Source) -> None:
    """A misspelled column is an error of its table."""
    settings = made(source, anomalies={"columns": ["pricee"]})
    error = pipeline.run(settings).tables[0].error
    assert error is not None
    assert "no column pricee" in error.message


def test_a_category_may_have_any_name(source: Source) -> None:
    """One that polars would give to a column of its own, too."""
    settings = made(source)
    source.execute('ALTER TABLE goods RENAME state TO "count"')
    ran(settings)
    (features,) = book(source, "models")["features"]
    assert "count" in {feature["column"] for feature in json.loads(features)}
