"""Erasure: everything in the lake that comes from a person's row is found, and nothing is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from typer.testing import CliRunner

from bronze.api import client
from bronze.cli.main import app
from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import log
from bronze.errors import BronzeError, ConfigError, TableRefused
from bronze.governance import writer
from bronze.governance.tables import rejected_values as book
from bronze.governance.tables.anomaly import profiles
from bronze.ingest import pipeline
from bronze.protection import erasure
from bronze.protection.old_versions import delete_old_versions
from tests.conftest import Source
from tests.support.features import known
from tests.support.strategies import SETUP

# A type, two keys as they are stored, and spellings of the first.
SPELLINGS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("char(8)", "ab", "abc", ("ab", "ab  ")),
    ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000001", (
        "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "{a0eebc999c0b4ef8bb6d6bb9bd380a11}")),
    ("numeric", "42.50", "42.51", ("42.5", "4.25e1")),
    ("numeric(10,2)", "42.50", "42.51", ("42.5", "42.500")),
    ("numeric(40,2)", "42.50", "42.51", ("42.5",)),
    ("citext", "Ann", "Anna", ("ann", "ANN")),
    ("inet", "10.0.0.1", "10.0.0.1/24", ("10.0.0.1/32",)),
    ("cidr", "10.0.0.0/8", "10.0.0.0/16", ("10/8",)),
    ("macaddr", "08:00:2b:01:02:03", "08:00:2b:01:02:04", ("08-00-2B-01-02-03", "08002b010203")),
    ("interval", "1 day", "2 days", ("24:00:00", "24 hours")),
    ("bytea", "\\xdead", "\\xdeae", ("\\xDEAD", "\\336\\255")),
    ("date", "1999-01-08", "1999-01-09", ("January 8, 1999", "19990108")),
    ("date", "infinity", "-infinity", ("Infinity",)),
    ("timestamp", "2024-01-01 12:00:00", "2024-01-01 12:00:01", ("2024-01-01T12:00",)),
    ("timestamp(0)", "2024-01-01 12:00:00", "2024-01-01 12:00:01", ("20240101 120000",)),
    ("timestamptz", "2024-01-01 12:00:00+00", "2024-01-01 12:00:01+00", (
        "2024-01-01 14:00:00+02",)),
    ("time", "12:00:00", "12:00:01", ("12:00 PM",)),
    ("timetz", "12:00:00+02", "12:00:00+01", ("12:00 PM +02",)),
    ("float8", "100", "101", ("1e2",)),
    ("float8", "NaN", "1", ("nan",)),
    ("real", "0.1", "0.2", ("0.10", "1e-1")),
    ("boolean", "t", "f", ("yes", "1")),
    ("money", "42.50", "42.51", ("$42.50", "42.5")),
    ("jsonb", '{"a": 1, "b": 2}', '{"a": 1, "b": 3}', ('{"b":2,"a":1.0}',)),
    ("mood", "sad", "", ("sad",)),
    ("integer", "7", "8", (" 7 ", "+7")),
    ("int[]", "{1,2}", "{1,3}", ("{ 1, 2 }",)),
    ("text[]", '{a,"b c"}', '{a,"b d"}', ('{"a", "b c"}',)),
    ("numeric[]", "{42.50}", "{42.51}", ("{42.5}",)),
    ("numeric(8,2)[]", "{42.50}", "{42.51}", ("{42.5}",)),
    ("varbit", "101", "1010", ("b101",)),
    ("bit(3)", "101", "111", ("B101",)),
    ("int4range", "[1,5)", "[1,6)", ("[1,4]",)),
    ("price", "42.50", "42.51", ("42.5",)),
    ("name", "ann", "bob", ("ann",)),
    ("pg_lsn", "0/A", "0/B", ("00/0a",)),
    ("ltree", "a.b", "a.c", ("a.b",)),
)  # fmt: skip


QUICK: tuple[str, ...] = ("char(8)", "uuid", "numeric", "numeric(10,2)", "citext", "inet")
QUICK += ("macaddr", "interval", "timestamptz", "numeric[]")


def run(given: Settings) -> dict[str, Any]:
    """Lands every table; their results by the Bronze names."""
    done = pipeline.run(given)
    assert [t.error for t in done.tables if t.error] == []
    return {one.target: one for one in done.tables}


def files_with(lake: Path, *texts: str) -> list[str]:
    """The files of a lake in which one of the texts is, by their bytes or their decoded values."""
    wanted = [text.encode() for text in texts]
    places = []
    for path in lake.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".parquet":
                frame = pl.read_parquet(path, hive_partitioning=False)
                content += "\n".join(map(str, frame.rows())).encode()
            places += [str(path)] if any(text in content for text in wanted) else []
    return places


def records(source: Source, name: str) -> pl.DataFrame:
    """A table of governance."""
    return pl.read_delta(str(source.lake / "governance" / name))


@pytest.mark.soak
def test_any_text_of_a_value_selects_its_row(source: Source) -> None:
    """PostgreSQL reads the text by the column's type: any text of a value erases its row alone."""
    source.execute(SETUP)
    cases = [case for case in SPELLINGS if case[0] in QUICK]
    columns = ", ".join(f"c{i} {kind}" for i, (kind, *_) in enumerate(cases))
    source.execute(f"CREATE TABLE t (id int PRIMARY KEY, {columns})")
    for row in range(len(cases)):
        cells = [case[1 if i == row else 2] for i, case in enumerate(cases)]
        source.execute(f"INSERT INTO t VALUES ({row}{', %s' * len(cells)})", *cells)
    given = source.settings()
    run(given)
    source.execute("DELETE FROM t")
    rows = len(cases)
    for i, (kind, _, _, spelled) in enumerate(cases):
        done = erasure.forget(given, "t", {f"c{i}": spelled[-1]})
        rows -= 1
        assert (done.rows, done.left) == (1, 0), kind
        left = pl.read_delta(str(source.table("t")))["id"]
        assert i not in left, kind
        assert len(left) == rows, kind


@pytest.mark.soak
@pytest.mark.slow
def test_any_text_of_a_key_selects_its_row(source: Source) -> None:
    """The same for keys, also those that Delta cannot hold or compare."""
    source.execute(SETUP)
    cases = [case for case in SPELLINGS if known(case[0])]
    for i, (kind, mine, other, _) in enumerate(cases):
        source.execute(f"CREATE TABLE t{i} (id {kind} PRIMARY KEY, note text)")
        source.execute(f"INSERT INTO t{i} VALUES (%s, 'plant{i}.'), (%s, 'else{i}.')", mine, other)
    given = source.settings()
    run(given)
    for i in range(len(cases)):
        source.execute(f"DELETE FROM t{i} WHERE note LIKE 'plant%%'")
    run(given)
    for i, (kind, _, _, spelled) in enumerate(cases):
        assert files_with(source.table(f"t{i}"), f"plant{i}."), kind
        with pytest.raises(TableRefused, match="still has such a row"):
            erasure.forget(given, f"t{i}", {"id": cases[i][2]})
        for number, text in enumerate(spelled):
            done = erasure.forget(given, f"t{i}", {"id": text})
            assert (done.left, done.is_found, done.exit_code) == (0, not number, min(number, 1)), (
                kind,
                text,
            )
        assert files_with(source.table(f"t{i}"), f"plant{i}.") == [], kind
        assert pl.read_delta(str(source.table(f"t{i}")))["note"].to_list() == [f"else{i}."], kind


def test_a_value_that_does_not_fit_its_type_selects_no_row(source: Source) -> None:
    """Nothing is rounded or truncated to the key of another row."""
    source.execute(
        "CREATE TABLE t (a varchar(3), b numeric(5, 1), c bit(3), d timestamp(0), e uuid,"
        " f char(2), PRIMARY KEY (a, b, c, d, e, f))"
    )
    run(source.settings())
    wrong = {"a": "abcd", "b": "1.25", "c": "1011", "d": "2024-01-01 00:00:00.5", "e": "x"}
    for name, text in (wrong | {"f": "abc"}).items():
        with pytest.raises(ConfigError, match=f"column {name} is not of type"):
            erasure.forget(source.settings(), "t", {name: text})


DOTTED = '"my.app"."a.b"'


def test_names_may_have_dots(source: Source) -> None:
    """The right table is asked, and its settings are found, if names have dots."""
    source.execute(f'CREATE SCHEMA "my.app"; CREATE TABLE {DOTTED} (id int PRIMARY KEY, v text)')
    source.execute('CREATE SCHEMA my; CREATE TABLE my."app.a.b" (id int PRIMARY KEY, v text)')
    source.execute(f"INSERT INTO {DOTTED} VALUES (1, 'plant'), (2, 'x')")
    own = {"a.b": {"sla": "7s", "rules": [REFERS], "target": "bz_t"}}
    given = source.settings(source={"schema": ["my.app"]}, tables=own)
    run(given)
    with pytest.raises(TableRefused, match=r"still has such a row in my\.app\.a\.b"):
        erasure.forget(given, "my.app.a.b", {"id": "1"})
    source.execute(f"DELETE FROM {DOTTED} WHERE id = 1")
    done = erasure.forget(given, "a.b", {"id": "1"})
    assert done.source is not None
    assert (done.source.table, done.source.rows, done.rows) == ("my.app.a.b", 0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(source.lake.parent)
        opened = client.Bronze(given)
        for name in ("a.b", "my.app.a.b", "bz_t", "bronze.bz_t"):
            (table,) = opened.quality([name]).tables
            assert (table.allowed, table.target) == (7, "bronze.bz_t")
    figures = records(source, "quality").filter(pl.col("rule") == "refers")
    assert figures["evaluation"].to_list() == ["rows"]
    twice = {"a.b": {**own["a.b"], "rules": [{**REFERS, "references": {"table": "my.app.a.b"}}]}}
    (refused,) = pipeline.run(source.settings(source={"schema": ["my.app"]}, tables=twice)).tables
    assert refused.error is not None
    assert 'may be "my"."app.a.b" and "my.app"."a.b"' in refused.error.message


REFERS = {"name": "refers", "column": "id", "references": {"table": "a.b"}}


# Why the source cannot answer, and the message.
UNANSWERED: dict[str, tuple[str, str]] = {
    "no table": ("DROP TABLE t", "Table public.t does not exist in the source"),
    "another table": (
        "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY)",
        "dropped and created again",
    ),
    "no schema": (
        "ALTER TABLE t SET SCHEMA other; DROP TABLE other.t",
        "does not exist in the source",
    ),
    "no column": ("ALTER TABLE t DROP id", "has none of the columns id"),
    "no right": ("REVOKE SELECT ON t FROM asker", "may not read it"),
    "hidden rows": (
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (id > 5)",
        "row-level security",
    ),
    "no schema right": ("REVOKE USAGE ON SCHEMA public FROM asker, PUBLIC", "may not read it"),
    "no login": ("ALTER ROLE asker NOLOGIN", "refused the login"),
}


def test_without_an_answer_of_the_source_nothing_is_erased(source: Source) -> None:
    """The row stays, a sentence says why the source cannot answer, and the exit code is not 0."""
    source.execute("CREATE SCHEMA other")
    source.execute("DROP ROLE IF EXISTS asker; CREATE ROLE asker LOGIN")
    options = psycopg.conninfo.make_conninfo(source.dsn, user="asker")
    for name, (taking, said) in UNANSWERED.items():
        lake = source.lake / name.replace(" ", "_")
        source.execute("DROP TABLE IF EXISTS t")
        source.execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'plant');"
            " GRANT SELECT ON t TO asker; GRANT USAGE ON SCHEMA public TO asker"
        )
        given = source.settings(
            lake={"root": str(lake)}, source={"dsn": options, "row_security": "apply"}
        )
        run(given)
        source.execute("DELETE FROM t")
        source.execute(taking)
        version = _version(given)
        with pytest.raises(BronzeError, match=said) as refused:
            erasure.forget(given, "t", {"id": "1"})
        assert refused.value.exit_code != 0, name
        assert _version(given) == version, name
        assert files_with(lake, "plant"), name
    # Who knows better may say so.
    done = erasure.forget(given, "t", {"id": "1"}, ask=False)
    assert (done.rows, done.left, done.source) == (1, 0, None)
    source.execute("DROP OWNED BY asker; DROP ROLE asker")


def _version(given: Settings, name: str = "bz_t") -> int:
    state = log.read(given.place("bronze", name))
    assert state is not None
    return state.version


def test_finding_nothing_is_not_a_proof(source: Source, tmp_path: Path) -> None:
    """A key that no row has ends with 1, says what was read, and deletes nothing; so does a missing
    file.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    source.execute("INSERT INTO t VALUES (1, 'x')")
    given = source.settings()
    run(given)
    source.execute("UPDATE t SET v = 'y'")
    run(given)
    path = tmp_path / "bronze.toml"
    path.write_text(
        f'[source]\nname = "test"\ndsn = "{source.dsn}"\n[lake]\nroot = "{source.lake}"\n'
    )
    before = sorted(source.table("t").rglob("*"))
    told = CliRunner().invoke(app, ["forget", "t", "--key", "id=2", "-c", str(path)])
    assert told.exit_code == 1
    assert "nothing was found and nothing was erased" in told.stderr
    assert "Proof" not in told.stdout + told.stderr
    told = CliRunner().invoke(app, ["forget", "t", "--key", "id=2", "--json", "-c", str(path)])
    document = json.loads(told.stdout)
    assert told.exit_code == 1
    assert document["before"]["rows"] >= 2
    assert document["before"]["files"] >= 2
    assert document["before"]["found"] == document["before"]["told"] == 0
    assert document["source"]["table"] == "public.t"
    assert sorted(source.table("t").rglob("*")) == before
    state = log.read(given.place("bronze", "bz_t"))
    assert state is not None
    (source.table("t") / state.files[0].path).unlink()
    with pytest.raises(BronzeError, match="is missing: it may have such rows"):
        erasure.forget(given, "t", {"id": "2"})


@pytest.mark.soak
@pytest.mark.parametrize("own", [{"history": True, "pattern": "batch"}, {}])
def test_erasure_by_a_renamed_key_covers_its_former_names(
    source: Source, own: dict[str, Any]
) -> None:
    """Rows marked DELETED, rejected values and examples from before two renames are erased with the
    current row, by the new name or by an old one; those of other rows stay.
    """
    rules = [{"name": "small", "column": "n", "range": {"max": 0}}]
    given = source.settings(tables={"t": {**own, "rules": rules}})
    source.execute("CREATE TABLE t (mail text PRIMARY KEY, day date, n int)")
    for name in ("plant", "else"):
        source.execute("INSERT INTO t VALUES (%s, 'infinity', 9)", name)
    run(given)
    given = source.settings(tables={"t": own})
    source.execute("ALTER TABLE t RENAME mail TO email")
    run(given)
    source.execute("ALTER TABLE t RENAME email TO address")
    run(given)
    source.execute("DELETE FROM t WHERE address = 'plant'")
    run(given)
    assert files_with(source.lake / GOVERNANCE, "plant")
    done = erasure.forget(given, "t", {"email" if own else "address": "plant"})
    assert (done.left, done.exit_code) == (0, 0)
    assert files_with(source.lake, "plant") == []
    kept = pl.read_delta(str(source.table("t")))
    assert {*kept["mail"], *kept["email"], *kept["address"]} == {"else", None}
    assert records(source, book.NAME)["row_key"].str.contains("else").all()
    assert records(source, book.NAME).height >= 2
    run(given)


LEARNED = (
    "INSERT INTO t SELECT i, 'kind' || i % 3, i, i FROM generate_series(1, 600) i;"
    " INSERT INTO t VALUES (601, 'plant', 4242.25, 7171.125)"
)


def learned(source: Source, given: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models and profiles as an earlier release wrote them: with a category of one row, and with
    means of one row, one of them of a numeric that is stored as text.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, kind text, pay float8, amount numeric)")
    source.execute(LEARNED)
    source.execute("CREATE TABLE u (LIKE t INCLUDING ALL); INSERT INTO u SELECT * FROM t")
    with monkeypatch.context() as patch:
        patch.setattr(profiles, "MIN_ROWS", 1)
        run(given)
        for change in ("amount = 7171.375, pay = NULL", "pay = 4242.5"):
            source.execute(f"UPDATE t SET {change} WHERE id = 601")
            run(given)
            assert mean(source, change.split()[2].strip(","))
    assert records(source, "models").height == 2


def mean(source: Source, value: str) -> bool:
    """Whether a profile has a value."""
    return bool(records(source, "profiles")["measures"].str.contains(value, literal=True).any())


WATCHED: dict[str, Any] = {
    "pattern": "batch",
    "cursor": "xmin",
    "anomalies": {"trees": 10, "columns": ["kind", "pay"]},
}


@pytest.mark.soak
def test_models_and_profiles_with_a_value_of_one_person_are_erased(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models with a category that no other row has are erased, and profiles with a mean of one row;
    those whose values other rows share stay.
    """
    given = source.settings(tables={"t": WATCHED, "u": WATCHED})
    learned(source, given, monkeypatch)
    source.execute("DELETE FROM t WHERE id = 601")
    done = erasure.forget(given, "t", {"id": "601"})
    assert (done.left, done.exit_code) == (0, 0)
    models = records(source, "models")
    assert models["target_table"].to_list() == ["bronze.bz_u"]
    assert files_with(source.table("t"), "plant") == []
    assert not mean(source, "4242.5")
    assert not mean(source, "7171.375")
    (result,) = (one for name, one in run(given).items() if name == "bronze.bz_t")
    assert any("the anomaly model was trained" in note for note in result.notes)
    source.execute("DELETE FROM t WHERE id = 1")
    done = erasure.forget(given, "t", {"id": "1"})
    assert records(source, "models").height == 2


@pytest.mark.soak
def test_models_and_profiles_with_a_former_column_name_are_erased(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after columns were renamed, when no file is left that has their old names."""
    given = source.settings(tables={"t": WATCHED, "u": WATCHED})
    learned(source, given, monkeypatch)
    renamed = {"trees": 10, "columns": ["sort", "wage"]}
    given = source.settings(tables={"t": {**WATCHED, "anomalies": renamed}, "u": WATCHED})
    for old, new in (("kind", "sort"), ("pay", "wage"), ("amount", "sum")):
        source.execute(f"ALTER TABLE t RENAME {old} TO {new}")
    run(given)
    delete_old_versions(given, "t")
    assert mean(source, "4242.5")
    source.execute("DELETE FROM t WHERE id = 601")
    done = erasure.forget(given, "t", {"id": "601"})
    assert (done.left, done.exit_code) == (0, 0)
    assert not mean(source, "4242.5")
    assert not mean(source, "7171.375")
    assert files_with(source.lake / GOVERNANCE / "models", "plant", "kind1") == files_with(
        source.lake / GOVERNANCE / "models", "kind1"
    )
    known = records(source, "models").filter(pl.col("target_table") == "bronze.bz_t")
    assert not known["features"].str.contains("plant").any()


def test_no_mean_of_few_numbers_is_written(source: Source) -> None:
    """A profile has no mean that is one person's value, however small the batch is."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, kind text, pay float8, amount numeric);" + LEARNED
    )
    given = source.settings(tables={"t": WATCHED})
    run(given)
    source.execute("UPDATE t SET pay = 4242.5, amount = 7171.375 WHERE id = 601")
    run(given)
    measures = [json.loads(text) for text in records(source, "profiles")["measures"]]
    assert sorted(one["rows"] for one in measures) == [1, 601]
    for one in measures:
        assert ("mean pay" in one) == (one["rows"] == 601)
        assert ("mean amount" in one) == (one["rows"] == 601)


def test_rejected_values_of_a_table_without_a_key_are_erased(source: Source) -> None:
    """They name rows by the row hash; records of earlier releases, which name no row, are erased if
    they may be the person's.
    """
    source.execute("CREATE TABLE t (name text, day date, other date)")
    source.execute(
        "INSERT INTO t VALUES ('plant', '12345-01-02', NULL), ('x', '23456-01-02', NULL)"
    )
    given = source.settings()
    run(given)
    frame = records(source, book.NAME)
    assert frame["row_key"].str.contains("row_hash").all()
    batch = frame["batch_id"][0]
    nameless = frame.with_columns(
        pl.lit("{}").alias("row_key"),
        pl.lit("bz_t").alias("target_table"),
        pl.Series("batch_id", [batch, "0"]),
        pl.Series("source_text", ["34567-01-02", "45678-01-02"]),
    )
    _entered(given, nameless)
    source.execute("DELETE FROM t WHERE name = 'plant'")
    done = erasure.forget(given, "t", {"name": "plant"})
    assert (done.rows, done.records, done.left) == (1, 2, 0)
    texts = records(source, book.NAME)["source_text"].to_list()
    assert sorted(texts) == ["23456-01-02", "45678-01-02"]
    assert files_with(source.lake, "12345-01-02", "34567-01-02", "plant") == []


def _entered(given: Settings, frame: pl.DataFrame) -> None:
    place = given.place(GOVERNANCE, book.NAME)
    rows = frame.select(name for name, _ in book.COLUMNS)
    writer.append_rows(place, book.COLUMNS, rows, "b")


@pytest.mark.soak
def test_records_of_two_schemas_with_one_table_name_are_kept_apart(source: Source) -> None:
    """Governance tables have the full name of the table; records of earlier releases, which have
    the name without the schema, are told apart by the batches in the lineage.
    """
    source.execute("CREATE TABLE t (id int PRIMARY KEY, day date, n int, kind text)")
    source.execute(
        "INSERT INTO t SELECT i, 'infinity', i % 7, 'k' || i % 3 FROM generate_series(1, 100) i"
    )
    own = {
        "rules": [{"name": "small", "column": "n", "range": {"max": 5}}],
        "anomalies": {"trees": 10, "columns": ["n", "kind"], "expected": 0.1},
    }
    both = [source.settings(lake={"schema": name}, tables={"t": own}) for name in ("a", "b")]
    for given in both:
        run(given)
    books = ("rejected_values", "quality", "anomalies", "profiles", "models", "data_lineage")
    for name in books:
        assert {*records(source, name)["target_table"]} == {"a.bz_t", "b.bz_t"}, name
    joined = records(source, "data_lineage").select("batch_id", "target_table")
    for name in books[:4]:
        assert records(source, name).join(joined, on=["batch_id", "target_table"]).height, name
    # As an earlier version has written them.
    old = records(source, book.NAME).with_columns(pl.lit("bz_t").alias("target_table"))
    _entered(both[0], old)
    source.execute("DELETE FROM t WHERE id = 6")
    done = erasure.forget(both[0], "t", {"id": "6"})
    assert (done.left, done.exit_code) == (0, 0)
    left = records(source, book.NAME)
    by = {
        name: left.filter(pl.col("target_table") == name) for name in ("a.bz_t", "b.bz_t", "bz_t")
    }
    assert {name: frame.height for name, frame in by.items()} == {
        "a.bz_t": 99,
        "b.bz_t": 100,
        "bz_t": 199,
    }
    assert client.Bronze(both[0]).quality().tables[0].target == "a.bz_t"
    assert len(client.Bronze(both[0]).quality().tables) == 1
