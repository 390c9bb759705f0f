"""Quality from end to end: rows are scored, figures recorded, and bad batches refused."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

import bronze
from bronze.api import check
from bronze.cdc import stream
from bronze.cli.main import app
from bronze.cli.screens import reports, results
from bronze.config import loading
from bronze.config.sections.quality import QualitySettings
from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.ingest import pipeline
from bronze.model.quality import QualityRules, QualityTotals
from bronze.model.results import TableResult
from bronze.quality import checks, set_rules
from bronze.quality import report as quality_report
from tests.conftest import Source
from tests.support.content import differences

Rules = list[dict[str, Any]]
POSITIVE = {"name": "positive", "column": "q", "range": {"min": 1}, "severity": "high"}


def filled(table: str) -> str:
    """The SQL of a table of twenty good rows."""
    return (
        f"CREATE TABLE {table} (id int PRIMARY KEY, q int, s text);"
        f"INSERT INTO {table} SELECT i, i, 's' || i FROM generate_series(1, 20) i"
    )


TABLE = filled("t")


def settings(source: Source, rules: Rules, **more: Any) -> Settings:
    """Settings with rules and other keys of the table t."""
    return source.settings(tables={"t": {"rules": rules, **more}})


def run_all(given: Settings) -> dict[str, TableResult]:
    """The result of a run for each table."""
    return {result.table.partition(".")[2]: result for result in pipeline.run(given).tables}


def run(given: Settings) -> TableResult:
    """The result of a run for the table t."""
    return run_all(given)["t"]


def scores(source: Source, name: str = "t") -> dict[int, tuple[int, str]]:
    """The score and status of each row."""
    frame = pl.read_delta(str(source.table(name)))
    rows = frame.select("id", "data_quality_score", "record_status").rows()
    return {key: (score, status) for key, score, status in rows}


def figures(source: Source, target: str = "bronze.bz_t") -> pl.DataFrame:
    """The figures of the newest run of a table."""
    frame = pl.read_delta(str(source.lake / "governance" / "quality"))
    own = frame.filter(pl.col("target_table") == target)
    newest = own.sort("evaluated_timestamp")["batch_id"].last()
    return own.filter(pl.col("batch_id") == newest)


def figure(source: Source, rule: str, column: str | None = None, **more: Any) -> dict[str, Any]:
    """The newest figure of one rule or check."""
    found = figures(source, **more).filter(pl.col("rule") == rule)
    if column is not None:
        found = found.filter(pl.col("column_name") == column)
    return found.to_dicts()[0]


# --- rows ------------------------------------------------------------------------------------


def test_a_bad_row_is_quarantined_and_recovers(source: Source) -> None:
    """It is in the Bronze table, and ACTIVE again once it is corrected in the source."""
    patterns = ("full_refresh", "batch", "micro_batch")
    for name in patterns:
        source.execute(filled(name))
        source.execute(f"UPDATE {name} SET q = -1 WHERE id = 7")
    own = {name: {"rules": [POSITIVE], "pattern": name} for name in patterns}
    given = source.settings(tables=own)
    results = run_all(given)
    for name in patterns:
        assert (results[name].score, results[name].quarantined) == (98.75, 1), name
        assert scores(source, name)[7] == (75, "QUARANTINED"), name
        assert scores(source, name)[8] == (100, "ACTIVE"), name
    assert differences(given) == {}
    for name in patterns:
        source.execute(
            f"UPDATE {name} SET q = 1 WHERE id = 7; UPDATE {name} SET q = 0 WHERE id = 8"
        )
    results = run_all(given)
    for name in patterns:
        assert (results[name].updated, results[name].quarantined) == (2, 1), name
        assert scores(source, name)[7] == (100, "ACTIVE"), name
        assert scores(source, name)[8] == (75, "QUARANTINED"), name
    assert differences(given) == {}
    for name in patterns:
        source.execute(f"DELETE FROM {name} WHERE id = 8")
    results = run_all(given)
    for name in patterns:
        assert results[name].deleted == 1, name
        assert scores(source, name)[8] == (75, "DELETED"), name


def test_every_kind_of_rule_finds_the_rows_that_break_it(source: Source) -> None:
    """Rules about one row, rules that span rows, and references to another table."""
    source.execute("CREATE TABLE other (a int, b text)")
    source.execute("INSERT INTO other VALUES (1, 'x'), (2, 'y')")
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, a int, b text, p numeric(8, 2), at timestamptz);"
        " INSERT INTO t VALUES (1, 1, 'x', 1.50, now()), (2, 2, 'x', 1.5, now()),"
        " (3, 1, 'y', 0.5, now()), (4, NULL, 'z', 9, '2020-01-01'), (5, 7, NULL, NULL, NULL)"
    )
    rules: dict[str, tuple[dict[str, Any], set[int]]] = {
        "not_null": ({"column": "a", "not_null": True}, {4}),
        "unique": ({"column": "p", "unique": True}, {1, 2}),
        "pair": ({"columns": ["a", "b"], "unique": True}, set()),
        "key": ({"unique": True}, set()),
        "range": ({"column": "p", "range": {"min": 1, "max": 8.99}}, {3, 4}),
        "length": ({"column": "b", "length": {"max": 0}}, {1, 2, 3, 4}),
        "pattern": ({"column": "b", "pattern": "^[xy]$"}, {4}),
        "accepted": ({"column": "b", "accepted_values": ["x", "z"]}, {3}),
        "refers": ({"column": "a", "references": {"table": "other"}}, {5}),
        "pairs": (
            {"columns": ["a", "b"], "references": {"table": "other", "columns": ["a", "b"]}},
            {2, 3},
        ),
        "fresh": ({"column": "at", "freshness": "1h"}, {4}),
        "expression": ({"expression": "a < p OR b = 'y'"}, {2}),
    }
    given = settings(source, [{**rule, "name": name} for name, (rule, _) in rules.items()])
    assert run(given).error is None
    broken = {
        name: {json.loads(key)["id"] for key in map(json.dumps, json.loads(row["examples"]))}
        for name, row in ((name, figure(source, name)) for name in rules)
    }
    assert broken == {name: wanted for name, (_, wanted) in rules.items()}
    assert {name: figure(source, name)["failed"] for name in rules} == {
        name: len(wanted) for name, (_, wanted) in rules.items()
    }
    lost = {key: 10 * sum(key in bad for _, bad in rules.values()) for key in range(1, 6)}
    assert {key: score for key, (score, _) in scores(source).items()} == {
        key: 100 - points for key, points in lost.items()
    }


@pytest.mark.soak
def test_rules_are_evaluated_in_other_processes(source: Source) -> None:
    """Units are pickled with their rules."""
    source.execute(TABLE)
    source.execute("INSERT INTO t VALUES (30, -4, 's1')")
    rules: Rules = [POSITIVE, {"column": "s", "unique": True}, {"expression": "q < 20"}]
    given = source.settings(tables={"t": {"rules": rules}}, run={"engine": "processes"})
    assert run(given).error is None
    assert scores(source)[30] == (65, "QUARANTINED")
    assert scores(source)[1] == (90, "ACTIVE")
    assert scores(source)[20] == (90, "ACTIVE")


def test_rules_name_columns_of_the_source(source: Source) -> None:
    """Whatever their names in Bronze are."""
    source.execute('CREATE TABLE t (id int PRIMARY KEY, "odd name" int)')
    source.execute("INSERT INTO t VALUES (1, -1)")
    rules: Rules = [
        {"column": "odd name", "range": {"min": 0}},
        {"expression": '"odd name" > 0'},
        {"column": "odd name", "unique": True},
    ]
    given = settings(source, rules, rename={"odd name": "q"})
    assert run(given).error is None
    assert scores(source)[1] == (80, "ACTIVE")
    assert figure(source, "odd name range")["column_name"] == "odd name"


def test_rules_can_be_added_in_python(source: Source) -> None:
    """They are added to those of the config, by the name of the table."""
    source.execute(TABLE)
    opened = bronze.Bronze(settings(source, [POSITIVE]))
    rules = [
        bronze.Rule("even", pl.col("q") % 2 == 0, severity="low", allow=0.6),
        bronze.Rule("more", pl.col("q") > 2, severity="low", allow_rows=2),
    ]
    result = opened.with_rules({"t": rules}).run()
    assert result.exit_code == 0
    assert scores(source)[7] == (95, "ACTIVE")
    row = figure(source, "even")
    assert (row["origin"], row["failed"], row["passed"]) == ("python", 10, True)
    row = figure(source, "more")
    assert (row["failed"], row["passed"], row["allowed"]) == (2, True, 0.1)
    wrong = opened.with_rules({"t": [bronze.Rule("positive", pl.col("q") > 0)]}).run()
    assert "another rule has that name" in str(wrong.tables[0].error)
    absent = opened.with_rules({"nosuch": rules}).run()
    assert [t.table for t in absent.tables if t.error] == ["nosuch"]
    with pytest.raises(ConfigError, match="and -1 rows"):
        opened.with_rules({"t": [bronze.Rule("x", pl.col("q") > 0, allow_rows=-1)]})
    with pytest.raises(ConfigError, match="has the severity 'bad'"):
        opened.with_rules({"t": [bronze.Rule("x", pl.col("q") > 0, severity="bad")]})  # type: ignore[arg-type]


# --- PostgreSQL's own constraints --------------------------------------------------------------


CONSTRAINED = """
CREATE TYPE mood AS ENUM ('sad', 'fine');
CREATE TABLE parent (id int PRIMARY KEY, code text UNIQUE);
CREATE TABLE t (
    id int PRIMARY KEY, q int NOT NULL CONSTRAINT big CHECK (q > 0), m mood, p numeric(8, 2),
    code text REFERENCES parent (code), free int, n int,
    CONSTRAINT folded CHECK (lower(code) = code), UNIQUE (q, free)
);
INSERT INTO parent VALUES (1, 'a');
INSERT INTO t VALUES (1, 1, 'sad', 'NaN', 'a', 1, -5), (2, 2, 'fine', 1, NULL, 2, 5);
ALTER TABLE t ADD CONSTRAINT late CHECK (n > 0) NOT VALID;
ALTER TABLE t ADD CONSTRAINT loose FOREIGN KEY (free) REFERENCES parent NOT VALID
"""


def test_rules_follow_from_constraints(source: Source) -> None:
    """Enforced constraints are proven, unvalidated ones are evaluated, and those that bronze cannot
    translate are left out.
    """
    source.execute(CONSTRAINED)
    given = settings(
        source, [{"column": "q", "not_null": True}, {"columns": ["free", "q", "n"], "unique": True}]
    )
    assert run(given).error is None
    found = figures(source).filter(pl.col("kind") != "check").select("rule", "evaluation", "failed")
    assert {rule: (how, failed) for rule, how, failed in found.rows()} == {
        "q not_null": ("proven", 0),
        "free, q, n unique": ("proven", 0),
        "id unique": ("proven", 0),
        "id not_null": ("proven", 0),
        "m accepted_values": ("proven", 0),
        "t_code_fkey": ("proven", 0),
        "loose": ("rows", 1),
        "big": ("rows", 0),
        "late": ("rows", 1),
        "p schema": ("rows", 1),
    }
    assert {key: score for key, (score, _) in scores(source).items()} == {1: 80, 2: 90}
    (report,) = [t for t in check.check(given).tables if t.table == "public.t"]
    assert report.untranslated == ("folded",)
    assert {rule.name for rule in report.rules} == set(found["rule"])
    bare = source.settings(quality={"derive": False})
    assert run(bare).error is None
    assert figures(source).filter(pl.col("kind") != "check").height == 0


def test_a_not_null_that_is_not_valid_is_not_proven(source: Source) -> None:
    """PostgreSQL 18 calls such a column NOT NULL, though it has NULLs."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, q int); INSERT INTO t VALUES (1, NULL)")
    source.execute("ALTER TABLE t ADD CONSTRAINT wished NOT NULL q NOT VALID")
    assert run(settings(source, [{"column": "q", "not_null": True}])).error is None
    row = figure(source, "q not_null")
    assert (row["evaluation"], row["failed"]) == ("rows", 1)


def test_constraints_of_a_parent_prove_nothing_about_its_children(source: Source) -> None:
    """A key or a reference of a parent does not apply to tables that inherit from it."""
    source.execute(
        "CREATE TABLE t (id int UNIQUE, q int); CREATE TABLE heir () INHERITS (t);"
        "INSERT INTO t VALUES (1, 1), (2, 2); INSERT INTO heir VALUES (1, 9)"
    )
    given = source.settings(
        source={"tables": ["t"]}, tables={"t": {"rules": [{"column": "id", "unique": True}]}}
    )
    assert run(given).error is None
    assert (figure(source, "id unique")["evaluation"], figure(source, "id unique")["failed"]) == (
        "rows",
        2,
    )


def test_a_reference_to_an_unreadable_table_is_left_out(source: Source) -> None:
    """The role of bronze may not read the table, so that PostgreSQL cannot evaluate the rule."""
    source.execute(CONSTRAINED)
    role = f"reader_{source.dsn.rpartition('_')[2].partition('?')[0]}"
    source.execute(f"CREATE ROLE {role} LOGIN")
    try:
        source.execute(f"GRANT SELECT ON t TO {role}")
        dsn = (
            source.dsn.replace("postgres@", f"{role}@")
            if "postgres@" in source.dsn
            else (f"{source.dsn}{'&' if '?' in source.dsn else '?'}user={role}")
        )
        given = source.settings(source={"dsn": dsn, "tables": ["t"]})
        assert run(given).error is None
        assert "loose" not in figures(source)["rule"].to_list()
    finally:
        source.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_too_many_values_are_only_counted(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no score is lowered, and PostgreSQL counts the rows."""
    monkeypatch.setattr(set_rules, "MAX_VALUES", 2)
    source.execute("CREATE TABLE t (id int PRIMARY KEY, q int);")
    source.execute("INSERT INTO t SELECT i, i % 4 FROM generate_series(1, 9) i")
    assert run(settings(source, [{"column": "q", "unique": True}])).error is None
    row = figure(source, "q unique")
    assert (row["evaluation"], row["checked"], row["failed"]) == ("counted", 9, 9)
    assert not row["passed"]
    assert {score for score, _ in scores(source).values()} == {100}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"column": "nosuch", "not_null": True}, "there is no column nosuch"),
    ({"column": "q", "range": {"min": 2**40}}, "it could never hold"),
    ({"expression": "nosuch > 1"}, "there is no column nosuch"),
    ({"expression": "q > avg(q)"}, "it reads other rows"),
    ({"column": "q", "pattern": "a"}, "is not text"),
    ({"column": "q", "references": {"table": "u", "columns": ["a", "b"]}}, "a different number"),
    ({"column": "q", "references": {"table": "nosuch", "columns": "id"}}, "nosuch"),
    ({"columns": ["l"], "unique": True}, "column l is an array"),
]


def test_a_wrong_rule_fails_its_table_before_it_is_read(source: Source) -> None:
    """The error has the rule and the reason; other tables land."""
    tables = {f"t{i}": case for i, case in enumerate(WRONG)}
    source.execute("CREATE TABLE u (id int)")
    for name in tables:
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, q int, l int[])")
    given = source.settings(tables={name: {"rules": [rule]} for name, (rule, _) in tables.items()})
    results = run_all(given)
    assert {name: result.status for name, result in results.items()} == {
        **dict.fromkeys(tables, "failed"),
        "u": "landed",
    }
    problems = {report.table: report.problem for report in check.check(given).tables}
    for name, (rule, reason) in tables.items():
        error = results[name].error
        assert error, rule
        assert reason in error.message, rule
        assert not source.table(name).exists(), rule
        if "nosuch" not in reason or "column" in reason:
            assert problems[f"public.{name}"] == error, rule


# --- the table as a whole ----------------------------------------------------------------------


def test_figures_of_the_table_are_recorded(source: Source) -> None:
    """NULL share by column and in all, duplicates, schema compliance, freshness and scores."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, q int, p numeric(8, 2))")
    source.execute("INSERT INTO t SELECT i, nullif(i % 4, 0), i FROM generate_series(1, 8) i")
    source.execute("INSERT INTO t VALUES (9, 1, 'NaN')")
    demanded = {"null_share": 0.05}
    result = run(settings(source, [POSITIVE], sla="5m", quality=demanded))
    assert result.error is None
    assert figure(source, "null_share", "")["failed"] == 3
    assert figure(source, "null_share", "")["checked"] == 27
    assert figure(source, "null_share", "")["passed"] is False
    assert figure(source, "null_share", "q")["share"] == 2 / 9
    assert figure(source, "duplicates")["evaluation"] == "proven"
    compliance = figure(source, "schema_compliance")
    assert (compliance["measured"], compliance["passed"]) == (8 / 9, False)
    freshness = figure(source, "freshness")
    assert (freshness["allowed"], freshness["passed"]) == (300, True)
    assert 0 <= freshness["measured"] < 60
    score = figure(source, "score")
    assert (score["checked"], score["failed"], score["measured"]) == (9, 1, 890 / 9)
    assert figure(source, "quarantined")["failed"] == 0
    frame = figures(source)
    lineage = pl.read_delta(str(source.table("t")))["data_lineage"].unique().to_list()
    assert frame["data_lineage"].unique().to_list() == lineage
    assert frame["mode"].unique().to_list() == ["load"]
    assert frame["landed"].all()


def test_duplicates_of_a_table_without_a_key_are_counted(source: Source) -> None:
    """Rows beyond the first of those that are equal in all columns, NULLs included."""
    source.execute("CREATE TABLE t (a int, b text)")
    source.execute(
        "INSERT INTO t VALUES (1, 'x'), (1, 'x'), (1, 'x'), (1, NULL), (1, NULL), (2, 'x')"
    )
    assert run(settings(source, [])).error is None
    row = figure(source, "duplicates")
    assert (row["failed"], row["share"], row["passed"]) == (3, 0.5, False)
    assert row["evaluation"] == "rows"


def test_examples_have_keys_only(source: Source) -> None:
    """No other value of a row is anywhere in ``governance.quality``."""
    source.execute(TABLE)
    source.execute("INSERT INTO t VALUES (30, -4, 's3cret')")
    rules: Rules = [POSITIVE, {"column": "s", "pattern": "^s[0-9]+$"}]
    assert run(settings(source, rules)).error is None
    assert json.loads(figure(source, "s pattern")["examples"]) == [{"id": 30}]
    for file in (source.lake / "governance").rglob("*"):
        assert not file.is_file() or b"s3cret" not in file.read_bytes()
    assert "s3cret" not in str(figures(source).to_dicts())


def test_the_gate_refuses_a_bad_batch(source: Source) -> None:
    """The old version stays as it is, the figures are recorded, and the corrected source lands."""
    source.execute(TABLE)
    given = settings(source, [POSITIVE], quality={"on_failure": "stop"})
    first = run(given)
    assert first.status == "landed"
    before = pl.read_delta(str(source.table("t"))).sort("id")
    source.execute("UPDATE t SET q = -1 WHERE id = 7; UPDATE t SET q = 99 WHERE id = 8")
    result = run(given)
    assert result.status == "failed"
    assert result.error is not None
    assert result.error.kind == "QualityRefused"
    assert "1 of 20 rows breaks the rule 'positive'" in result.error.message
    assert pl.read_delta(str(source.table("t"))).sort("id").equals(before)
    row = figure(source, "positive")
    assert (row["landed"], row["failed"], row["examples"]) == (False, 1, '[{"id": 7}]')
    assert len(list(source.table("t").glob("*.parquet"))) == 1
    source.execute("UPDATE t SET q = 7 WHERE id = 7")
    assert (run(given).updated, figure(source, "positive")["landed"]) == (1, True)


GATED: list[tuple[dict[str, Any], bool]] = [
    ({"rules": [{**POSITIVE, "allow": 0.05}]}, False),
    ({"rules": [{**POSITIVE, "allow": 0.04}]}, True),
    ({"rules": [{**POSITIVE, "severity": "medium"}]}, False),
    ({"rules": [{**POSITIVE, "allow_rows": 1}]}, False),
    ({"rules": [{**POSITIVE, "allow_rows": 1, "column": "id", "range": {"min": 3}}]}, True),
    ({"quality": {"null_share": 0.01}}, True),
    ({"quality": {"null_share": 0.01, "allow_rows": 1}}, False),
    ({"quality": {"null_share": 0.02}}, False),
    ({"quality": {"freshness": 0}}, False),
]


def test_which_figures_make_the_gate_refuse(source: Source) -> None:
    """Checks, and rules of severity high or critical, beyond the share that they allow."""
    own: dict[str, Any] = {}
    for i, (case, _) in enumerate(GATED):
        name = f"t{i}"
        source.execute(filled(name))
        source.execute(f"UPDATE {name} SET q = -1 WHERE id = 7")
        source.execute(f"UPDATE {name} SET s = NULL WHERE id = 8")
        quality = {"null_share": 0.05, **case.get("quality", {}), "on_failure": "stop"}
        own[name] = {"rules": case.get("rules", []), "quality": quality}
    results = run_all(source.settings(tables=own))
    wrong = {
        str(case): results[f"t{i}"].status
        for i, (case, stopped) in enumerate(GATED)
        if (results[f"t{i}"].status == "failed") != stopped
    }
    assert wrong == {}


def test_each_check_allows_a_number_of_rows() -> None:
    """NULLs of any column, duplicates, rows with rejected values: up to the number, not beyond."""
    wanted = QualityRules((), names=(("a", "a"), ("b", "b")), distinct=1)
    prints = np.array([0, 0, 0, *range(1, 8)], np.uint64).tobytes()
    found = QualityTotals(rows=10, refused=2, nulls=(2, 2), prints=(prints,))
    names = ("null_share", "duplicates", "schema_compliance")
    for few, passed in ((2, True), (1, False)):
        demanded = QualitySettings(null_share=0.05, allow_rows=few)
        made = {f.rule: f for f in checks.figures(wanted, found, demanded, 0.0) if not f.column}
        assert [made[name].passed for name in names] == [passed] * 3
        assert made["duplicates"].allowed == few / 10
        assert made["schema_compliance"].allowed == 1 - few / 10


def test_a_batch_of_one_row_may_break_a_rule(source: Source) -> None:
    """The share of one row is all or nothing: rules and checks allow a number of rows too."""
    source.execute(TABLE)
    given = settings(
        source,
        [{**POSITIVE, "allow": 0.01, "allow_rows": 2}],
        pattern="batch",
        quality={"on_failure": "stop", "null_share": 0.05, "allow_rows": 1},
    )
    assert run(given).status == "landed"
    source.execute("UPDATE t SET q = -1, s = NULL WHERE id = 1")
    assert (run(given).status, figure(source, "positive")["allowed"]) == ("landed", 1.0)
    source.execute("UPDATE t SET q = -2 WHERE id BETWEEN 2 AND 4")
    assert run(given).status == "failed"
    row = figure(source, "positive")
    assert (row["checked"], row["failed"], row["passed"]) == (3, 3, False)
    assert row["allowed"] == pytest.approx(2 / 3)


def test_nulls_beyond_a_limit_are_reported_with_their_columns(
    source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default NULLs are allowed; with a limit the error names the columns with the most."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, a int, b int, c int, d int, e int)")
    source.execute("INSERT INTO t (id, a, b) VALUES (1, 1, 1), (2, NULL, 1)")
    run(settings(source, []))
    report = quality_report.quality(settings(source, []))
    assert (report.exit_code, report.tables[0].unmet) == (0, ())
    assert figure(source, "null_share", "")["measured"] == 7 / 12
    source.execute("UPDATE t SET b = 2")
    given = settings(source, [], quality={"null_share": 0.05, "on_failure": "stop"})
    error = run(given).error
    named = "most of them in c (2 of 2), d (2 of 2), e (2 of 2), and 1 more"
    assert error
    assert f"7 of 12 values are NULL, not below 5.00%, {named}" in error.message
    report = quality_report.quality(given)
    assert report.exit_code == 1
    reports.quality(report, 1)
    assert named in " ".join(capsys.readouterr().out.split())


def test_a_refused_table_is_not_reported_as_loaded(
    source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no quarantined rows, and no age if it never landed."""
    source.execute(TABLE)
    source.execute("UPDATE t SET q = -1 WHERE id < 3")
    given = settings(source, [{**POSITIVE, "severity": "critical"}], quality={"on_failure": "stop"})
    result = pipeline.run(given)
    assert (result.tables[0].status, result.tables[0].quarantined) == ("failed", 0)
    assert result.tables[0].error
    assert "the rule 'positive'" in result.tables[0].error.message
    (note,) = result.tables[0].notes
    assert note.endswith('is broken by rows such as {"id": 1}, {"id": 2}')
    results.run_result(result)
    shown = capsys.readouterr()
    assert "quarantined" not in shown.out + shown.err
    report = quality_report.quality(given)
    assert not report.tables[0].fresh
    reports.quality(report, 1)
    shown_quality = capsys.readouterr().out
    assert "bz_t (refused)" in shown_quality
    assert "nothing has ever landed" in shown_quality
    assert "h46m" not in shown_quality


def test_missing_figures_are_not_good_figures(source: Source, tmp_path: Path) -> None:
    """The exit code is 1 for a lake without figures, a table without figures, and a wrong root."""
    source.execute(TABLE)
    source.execute("CREATE TABLE u (id int PRIMARY KEY)")
    given = settings(source, [])
    assert quality_report.quality(given).exit_code == 1
    pipeline.run(given)
    assert quality_report.quality(given).exit_code == 0
    elsewhere = settings(Source(source.dsn, tmp_path / "elsewhere"), [])
    report = quality_report.quality(elsewhere)
    assert (report.exit_code, report.tables) == (1, ())
    assert not (tmp_path / "elsewhere").exists()
    shutil.copytree(source.table("u"), source.table("v"))
    report = quality_report.quality(given)
    assert (report.exit_code, report.missing) == (1, ("bronze.bz_v",))
    shutil.rmtree(source.lake / "governance" / "quality")
    report = quality_report.quality(given)
    assert (report.exit_code, len(report.missing)) == (1, 3)


def test_rules_apply_to_the_rows_that_were_read(source: Source) -> None:
    """With the pattern batch these are the changed rows."""
    source.execute(TABLE)
    given = settings(source, [POSITIVE], pattern="batch")
    run(given)
    source.execute("UPDATE t SET q = -q WHERE id <= 3")
    run(given)
    row = figure(source, "positive")
    assert (row["checked"], row["failed"], row["mode"]) == (3, 3, "changes")
    assert run(given).score is None
    assert figure(source, "positive")["checked"] == 0


def test_a_stream_scores_its_rows(source: Source) -> None:
    """Each batch has its figures; rules that span rows are not evaluated."""
    source.execute(TABLE)
    rules: Rules = [POSITIVE, {"column": "s", "unique": True}, {"unique": True, "name": "key"}]
    own = {"rules": rules, "pattern": "streaming"}
    given = source.settings(tables={"t": own}, stream={"interval": 0})
    stream.stream(given, until_caught_up=True)
    row = figure(source, "s unique")
    assert (row["evaluation"], row["checked"], row["failed"]) == ("rows", 20, 0)
    source.execute("UPDATE t SET q = -1 WHERE id = 7")
    source.execute("INSERT INTO t VALUES (30, 1, 's1')")
    done = stream.stream(given, until_caught_up=True)
    assert done.tables[-1].quarantined == 1
    assert scores(source)[7] == (75, "QUARANTINED")
    assert scores(source)[30] == (100, "ACTIVE")
    found = figures(source)
    assert found["mode"].unique().to_list() == ["stream"]
    assert (figure(source, "positive")["checked"], figure(source, "positive")["failed"]) == (2, 1)
    late = figure(source, "s unique")
    assert (late["evaluation"], late["checked"], late["passed"]) == ("none", None, None)
    assert figure(source, "key")["evaluation"] == "proven"
    source.execute("UPDATE t SET q = 1 WHERE id = 7")
    stream.stream(given, until_caught_up=True)
    assert scores(source)[7] == (100, "ACTIVE")
    (table,) = quality_report.quality(given, trend=9).tables
    assert [run.mode for run in table.runs] == ["stream", "stream", "load"]
    assert table.fresh


# --- bronze quality ----------------------------------------------------------------------------


def _written(source: Source, folder: Path, extra: str = "") -> Path:
    file = folder / "bronze.toml"
    file.write_text(
        f'[source]\nname = "test"\ndsn = "{source.dsn}"\n[lake]\nroot = "{source.lake}"\n'
        f'[[tables.t.rules]]\nname = "positive"\ncolumn = "q"\nrange = {{ min = 1 }}\n{extra}'
    )
    return file


def test_the_command_shows_the_latest_and_the_trend(source: Source, tmp_path: Path) -> None:
    """It reads the lake only; the exit code is 1 if a limit is not met."""
    source.execute(TABLE)
    file = _written(source, tmp_path)
    nothing = CliRunner().invoke(app, ["quality", "-c", str(file)])
    assert "no figures yet" in nothing.stdout
    bronze.open(file).run()
    assert CliRunner().invoke(app, ["quality", "-c", str(file)]).exit_code == 0
    source.execute("UPDATE t SET q = -1 WHERE id = 7")
    bronze.open(file).run()
    away = _written(Source("postgresql://nobody@127.0.0.1:1/x", source.lake), tmp_path)
    shown = CliRunner().invoke(app, ["quality", "-c", str(away), "--trend", "5"])
    assert shown.exit_code == 1
    assert 'bronze.bz_t: positive: 1 of 20 (5.00%), such as {"id": 7}' in shown.stdout
    document = json.loads(
        CliRunner().invoke(app, ["quality", "t", "-c", str(away), "--trend", "5", "--json"]).stdout
    )
    assert [run["score"] for run in document["tables"][0]["runs"]] == [99.5, 100.0]
    unknown = CliRunner().invoke(app, ["quality", "nosuch", "-c", str(away)])
    assert unknown.exit_code == 2
    assert "Table nosuch has no quality figures" in unknown.stderr


def test_freshness_is_measured_at_the_time_of_the_report(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that was fresh when it landed becomes stale."""
    source.execute(TABLE)
    given = settings(source, [], sla="1h")
    run(given)
    assert quality_report.quality(given).exit_code == 0

    class Later(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
            return dt.datetime.now(tz) + dt.timedelta(hours=2)

    monkeypatch.setattr(quality_report, "datetime", Later)
    report = quality_report.quality(given)
    assert not report.tables[0].fresh
    assert report.exit_code == 1


# --- the config --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"column": "q"}, "this has none of them"),
        ({"column": "q", "not_null": True, "unique": True}, "this has not_null and unique"),
        ({"not_null": True}, "needs a column"),
        ({"column": "q", "columns": ["a"], "unique": True}, "not both"),
        ({"columns": ["a", "b"], "not_null": True}, "has one column only"),
        ({"column": "q", "expression": "q > 1"}, "leave column out"),
        ({"expression": "q >"}, "cannot be used"),
        ({"column": "q", "pattern": "(?=x)"}, "cannot be used: regex error"),
        ({"column": "q", "range": {}}, "min or max is missing"),
        ({"column": "q", "length": {"min": 3, "max": 2}}, "could never hold"),
        ({"column": "q", "accepted_values": []}, "at least 1"),
        ({"column": "q", "accepted_values": [[1]]}, "a value is a number"),
        ({"column": "q", "not_null": True, "severity": "awful"}, "'low', 'medium', 'high'"),
        ({"column": "q", "not_null": True, "allow": 2}, "less than or equal to 1"),
        ({"column": "q", "rang": {"min": 1}}, "did you mean range?"),
        ({"column": "q", "range": {"minimum": 1}}, "did you mean min?"),
    ],
)
def test_errors_in_rules_have_their_place_in_the_config(rule: dict[str, Any], message: str) -> None:
    """Errors that do not depend on the table are errors of the config."""
    document = {"source": {"dsn": "postgresql://x/y"}, "lake": {"root": "l"}}
    with pytest.raises(ConfigError) as caught:
        loading.parse({**document, "tables": {"t": {"rules": [rule]}}})
    assert message in caught.value.message
    assert "tables.t.rules.0" in caught.value.message


def test_names_of_rules_are_unique() -> None:
    """Also the names that they get without one."""
    document = {"source": {"dsn": "postgresql://x/y"}, "lake": {"root": "l"}}
    rule = {"column": "q", "not_null": True}
    with pytest.raises(ConfigError, match="two rules are named 'q not_null'"):
        loading.parse({**document, "tables": {"t": {"rules": [rule, rule]}}})


def test_a_streamed_table_cannot_refuse_batches() -> None:
    """``on_failure = "stop"`` is an error, also in [quality] unless the table overrides it."""
    document = {
        "source": {"dsn": "postgresql://x/y"},
        "lake": {"root": "l"},
        "quality": {"on_failure": "stop"},
    }
    with pytest.raises(ConfigError, match="cannot skip a batch"):
        loading.parse({**document, "tables": {"t": {"pattern": "streaming"}}})
    own = {"pattern": "streaming", "quality": {"on_failure": "land"}}
    assert loading.parse({**document, "tables": {"t": own}}).tables["t"].quality


def test_quality_settings_of_a_table_take_precedence() -> None:
    """Key by key; its sla is its freshness unless it has one."""
    given = loading.parse(
        {
            "source": {"dsn": "postgresql://x/y"},
            "lake": {"root": "l"},
            "quality": {"threshold": 50, "null_share": 0.2},
            "tables": {
                "a": {"quality": {"threshold": 60}, "sla": "5m"},
                "b": {"quality": {"freshness": "1h"}, "sla": "5m"},
            },
        }
    )
    a, b = (given.quality_of(given.tables[name]) for name in "ab")
    assert (a.threshold, a.null_share, a.freshness) == (60, 0.2, 300)
    assert (b.threshold, b.freshness) == (50, 3600)


def test_changed_rules_are_reported_once(source: Source) -> None:
    """As unchanged rows keep their scores."""
    source.execute(TABLE)
    source.execute("UPDATE t SET q = -1 WHERE id = 7")
    run(settings(source, []))
    result = run(settings(source, [POSITIVE]))
    assert any("its rules have changed" in note for note in result.notes)
    assert scores(source)[7] == (100, "ACTIVE")
    assert figure(source, "positive")["failed"] == 1
    assert run(settings(source, [POSITIVE])).notes == ()
    stricter = {**POSITIVE, "range": {"min": 2}}
    assert any("its rules have changed" in note for note in run(settings(source, [stricter])).notes)


def test_records_of_earlier_releases_are_read(source: Source) -> None:
    """Figures, models and profiles that have the name of a table without its schema."""
    source.execute(TABLE)
    given = source.settings(tables={"t": {"anomalies": {"trees": 10, "columns": ["q"]}}})
    source.execute("INSERT INTO t SELECT i, i, 's' FROM generate_series(21, 400) i")
    run(given)
    for name in ("quality", "models", "profiles"):
        place = str(source.lake / "governance" / name)
        DeltaTable(place).update({"target_table": "'bz_t'"})
    result = run(given)
    assert not any("was trained" in note for note in result.notes)
    (table,) = quality_report.quality(given, ["bz_t"], 5).tables
    assert (table.target, len(table.runs)) == ("bronze.bz_t", 2)
    with pytest.raises(ConfigError, match="has no quality figures"):
        quality_report.quality(source.settings(lake={"schema": "other"}), ["bronze.bz_t"])
