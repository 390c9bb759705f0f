"""Unusual names and tables: what PostgreSQL allows lands, or is refused with a remedy."""

from __future__ import annotations

import itertools
import re
import tomllib
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from psycopg import sql

from bronze.api import check
from bronze.config import loading
from bronze.config.sections.run import MINIMUM_MEMORY
from bronze.errors import ConfigError
from bronze.ingest import pipeline
from bronze.model.locations import Origin
from bronze.model.results import Failure, RunResult
from bronze.postgres.catalog.relations import relations
from bronze.postgres.connection import connect
from bronze.postgres.copy import splits
from bronze.rows.metadata import METADATA_COLUMNS
from bronze.verify.verify import verify
from tests.conftest import Source
from tests.support.content import differences
from tests.support.streams import caught_up

TABLES = (
    'we"ird',
    "it's",
    "with space",
    "MixedCase",
    "rocket 🚀",
    "n" * 63,
    "é" * 31,
    "dot.ted",
    "100% sure %s",
    "sl/ash",
    "back\\slash",
    "select",
    "..",
    "semi;colon",
    "tab\tnew\nline",
    "{curly} $dollar",
    "日本",
)
COLUMNS = (
    'we"ird',
    "it's",
    "MixedCase",
    "rocket🚀",
    "n" * 63,
    "dot.ted",
    "100%",
    "%s",
    "sl/ash",
    "back\\slash",
    "back`tick",
    "select",
    "$1",
    "日本",
    "c0",
    "rejected",
    "[0]",
)


def failures(result: RunResult) -> dict[str, Failure]:
    """Each failed table's failure."""
    return {table.table.partition(".")[2]: table.error for table in result.tables if table.error}


def land(source: Source, /, **sections: Any) -> RunResult:
    """Runs without an error."""
    result = pipeline.run(source.settings(**sections))
    assert failures(result) == {}
    return result


def made(source: Source, table: str, *columns: str, key: str = "") -> None:
    """Makes a table of columns of text, each holding its own name."""
    parts = [sql.SQL("{} text").format(sql.Identifier(column)) for column in columns]
    if key:
        parts.append(sql.SQL("PRIMARY KEY ({})").format(sql.Identifier(key)))
    statements = (
        sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(table), sql.SQL(", ").join(parts)),
        sql.SQL("INSERT INTO {} VALUES ({})").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Literal, columns))
        ),
    )
    for statement in statements:
        source.execute(statement.as_string(None))


def read(source: Source, table: str) -> pl.DataFrame:
    """A Bronze table without the columns that bronze adds."""
    return pl.read_delta(str(source.table(table))).drop([name for name, _ in METADATA_COLUMNS])


def settings_in(hint: str) -> dict[str, Any]:
    """What a hint's ``[tables."…"] key = …`` would be in the config."""
    snippet = hint[hint.index("[tables.") :]
    header, _, rest = re.sub(r'("?\]) (?=\w+ = )', r"\1\n", snippet, count=1).partition("\n")
    document: dict[str, Any] = tomllib.loads(f"{header}\n{rest}")
    found: dict[str, Any] = document["tables"]
    return found


def test_tables_with_any_name_are_loaded(source: Source) -> None:
    """Each lands as bz_ and its name, and can be selected by its name."""
    for table in TABLES:
        made(source, table, "id")
    source.execute('ALTER TABLE ".." RENAME TO "..x"')
    names = [{"..": "..x"}.get(table, table) for table in TABLES]
    result = land(source, tables={name: {"priority": 3} for name in names})
    assert {table.table for table in result.tables} == {f"public.{name}" for name in names}
    targets = {table.target for table in result.tables}
    assert len(targets) == len(names)
    for target in targets:
        folder = target.removeprefix("bronze.")
        assert re.fullmatch(r"bz_\w+", folder)
        # polars 2.1 cannot read a table in a folder whose name has to be escaped in a URL.
        landed = DeltaTable(str(source.lake / "bronze" / folder))
        assert landed.to_pyarrow_table().num_rows == 1
    alone = pipeline.run(source.settings(), ["100% sure %s", 'public.we"ird'])
    assert len(alone.tables) == 2
    assert failures(alone) == {}


def test_the_lake_may_be_in_a_folder_with_any_name(source: Source) -> None:
    """Log and data are in that folder and nowhere else, after a second run too."""
    folder = "with space é #?& 100%"
    made(source, "t", "id")
    root = source.lake / folder
    land(source, lake={"root": str(root)})
    source.execute("INSERT INTO t VALUES ('another')")
    land(source, lake={"root": str(root)})
    assert [path.name for path in source.lake.iterdir()] == [folder]
    books = [root / "governance" / name for name in ("data_lineage", "quality")]
    for table in (root / "bronze" / "bz_t", *books):
        assert len(list(table.rglob("*.parquet"))) == len(list(table.rglob("*.json"))) == 2
    assert sorted(path.name for path in root.iterdir()) == ["bronze", "governance"]
    assert sorted(root.glob("governance/*")) == [root / "governance" / "audit_log", *books]
    assert DeltaTable(str(root / "bronze" / "bz_t")).to_pyarrow_table().num_rows == 2


def test_a_percent_escape_in_the_lake_root_is_refused(source: Source) -> None:
    """Readers would decode it to another folder, so the config does not allow it."""
    with pytest.raises(ConfigError, match=r"lake\.root: .* a percent sign before two digits"):
        source.settings(lake={"root": str(source.lake / "a%20b")})


def test_columns_with_any_name_are_loaded(source: Source) -> None:
    """Names that Delta allows stay as they are, key columns' too."""
    keys = {f"t{i}": key for i, key in enumerate(COLUMNS)}
    for name, key in keys.items():
        made(source, name, *COLUMNS, key=key)
    land(source)
    for name, key in keys.items():
        assert read(source, name).rows(named=True) == [{name: name for name in COLUMNS}], key
        folder = str(source.table(name))
        assert DeltaTable(folder).to_pyarrow_table().num_rows == 1, key
        assert pl.scan_delta(folder).filter(pl.col(key) == key).collect().height == 1, key


# What Delta or the metadata columns allow in no table that has a column ``id``.
REFUSED = (
    *("a b", "a,b", "a;b", "{a}", "f(x)", "a=b", "a\tb", "a\nb", 'say "hi" to'),
    *("Id", "row_hash", "Batch_ID", "source_commit_timestamp"),
)


def test_a_column_name_that_delta_forbids_is_refused_with_a_rename(source: Source) -> None:
    """The hint can be copied into the config, and with it the table lands."""
    tables = {f"my t{i}": column for i, column in enumerate(REFUSED)}
    for name, column in tables.items():
        made(source, name, "id", column)
    made(source, "good", "id")
    result = pipeline.run(source.settings())
    found = failures(result)
    assert {tables.get(name, name) for name in found} == set(REFUSED)
    assert result.exit_code == 1
    assert read(source, "good").height == 1
    assert [path.name for path in (source.lake / "bronze").iterdir()] == ["bz_good"]
    problems = check.check(source.settings()).problems
    assert sorted(map(repr, problems)) == sorted(map(repr, found.values()))
    own: dict[str, Any] = {}
    for name, column in tables.items():
        failure = found[name]
        assert failure.kind == "TableRefused", column
        assert repr(column) in failure.message
        assert name in failure.message, column
        ((label, section),) = settings_in(failure.hint).items()
        assert section["rename"].keys() == {column}
        own[label] = section
    land(source, tables=own)
    renamed = zip(tables.values(), own.values(), strict=True)
    for i, (column, section) in enumerate(renamed):
        frame = pl.read_delta(str(source.lake / "bronze" / f"bz_my_t{i}"))
        assert frame[section["rename"][column]].to_list() == [column]


def test_a_rename_that_collides_is_refused(source: Source) -> None:
    """New names follow the same rules."""
    made(source, "t", "id", "a b")
    for name in ("ID", "checksum", "a,b"):
        result = pipeline.run(source.settings(tables={"t": {"rename": {"a b": name}}}))
        (failure,) = failures(result).values()
        assert repr(name) in failure.message


@pytest.mark.parametrize("names", [("A b", "a b"), ("MyTable", "mytable"), ("🚀", "🔥")])
def test_two_tables_with_the_same_target_are_refused(
    source: Source, names: tuple[str, str]
) -> None:
    """Nothing is read; the hint names one of the two as the config does."""
    for name in names:
        made(source, name, "id")
    with pytest.raises(ConfigError) as caught:
        pipeline.run(source.settings())
    for name in names:
        assert f"public.{name}" in caught.value.message
    assert not source.lake.exists()
    ((name, own),) = settings_in(caught.value.hint).items()
    assert name in names or name.removeprefix("public.") in names
    assert own == {"target": "bz_…"}
    result = land(source, tables={name: {"target": "bz_other"}})
    assert len({table.target for table in result.tables}) == 2


def test_tables_of_two_sources_with_the_same_target_are_named_with_their_sources(
    source: Source,
) -> None:
    """Their names alone would be the same; the hint's section is that of one of them."""
    made(source, "t", "id")
    sources = {name: {"dsn": source.dsn, "tables": ["t"]} for name in ("shop", "billing")}
    document = {"source": sources, "lake": {"root": str(source.lake)}}
    with pytest.raises(ConfigError) as caught:
        pipeline.run(loading.parse(document))
    assert "shop.public.t and billing.public.t" in caught.value.message
    own = settings_in(caught.value.hint)
    assert own == {"billing.public.t": {"target": "bz_…"}}
    own["billing.public.t"] = {"target": "bz_other"}
    assert pipeline.run(loading.parse({**document, "tables": own})).exit_code == 0


def test_tables_without_rows_columns_or_keys_are_loaded(source: Source) -> None:
    """Each is a Delta table with the columns it has, and its rows, if any."""
    source.execute("""
        CREATE TABLE empty (id int PRIMARY KEY, tags text[], n numeric(9,2));
        CREATE TABLE bare (); INSERT INTO bare SELECT FROM generate_series(1, 3);
        CREATE TABLE keyless (a int); INSERT INTO keyless VALUES (1), (1), (NULL);
        CREATE TABLE nothing (a int, b text, c timestamp, d float8[], e bytea, f numeric(30, 2));
        INSERT INTO nothing SELECT FROM generate_series(1, 4);
    """)
    result = land(source)
    assert {t.table: t.rows_read for t in result.tables} == {
        "public.empty": 0,
        "public.bare": 3,
        "public.keyless": 3,
        "public.nothing": 4,
    }
    assert read(source, "empty").columns == ["id", "tags", "n"]
    assert pl.read_delta(str(source.table("bare"))).columns == [
        name for name, _ in METADATA_COLUMNS
    ]
    assert read(source, "keyless")["a"].to_list() == [1, 1, None]
    assert read(source, "nothing").null_count().row(0) == (4,) * 6


def test_a_table_may_become_empty(source: Source) -> None:
    """A full refresh of an empty table removes all rows, and the earlier version stays readable."""
    made(source, "t", "id")
    land(source)
    source.execute("DELETE FROM t")
    land(source)
    assert read(source, "t").height == 0
    assert pl.read_delta(str(source.table("t")), version=0).height == 1


@pytest.mark.soak
def test_a_huge_row_is_loaded(source: Source) -> None:
    """Text and bytes of 20 MB each, beside a small row."""
    source.execute("""
        CREATE TABLE t AS SELECT 1 AS id, repeat('ab', 10000000) AS text,
                                 decode(repeat('00ff', 10000000), 'hex') AS bytes;
        INSERT INTO t VALUES (2, 'x', NULL)
    """)
    land(source)
    frame = read(source, "t").sort("id")
    assert frame["text"].str.len_bytes().to_list() == [20_000_000, 1]
    assert frame["bytes"][0] == b"\x00\xff" * 10_000_000


def test_relations_of_all_kinds_are_loaded(source: Source) -> None:
    """Everything that can be read like a table, each row once."""
    host = source.execute("SELECT current_setting('port')")[0][0]
    database = source.dsn.rpartition("/")[2]
    source.execute(f"""
        CREATE TABLE p (id int, kind text, at date) PARTITION BY LIST (kind);
        CREATE TABLE p_a PARTITION OF p FOR VALUES IN ('a') PARTITION BY RANGE (id);
        CREATE TABLE p_a1 PARTITION OF p_a FOR VALUES FROM (0) TO (5000);
        CREATE TABLE p_a2 (at date, gone int, kind text, id int);
        ALTER TABLE p_a2 DROP gone;
        ALTER TABLE p_a ATTACH PARTITION p_a2 FOR VALUES FROM (5000) TO (10000);
        CREATE TABLE p_b PARTITION OF p DEFAULT;
        INSERT INTO p SELECT i, CASE WHEN i % 3 = 0 THEN 'b' ELSE 'a' END, '2024-01-01'
            FROM generate_series(1, 9999) i;
        CREATE TABLE parent (id int, note text); INSERT INTO parent VALUES (1, 'parent');
        CREATE TABLE heir (more int) INHERITS (parent); INSERT INTO heir VALUES (2, 'heir', 3);
        CREATE MATERIALIZED VIEW mat AS SELECT id FROM p;
        CREATE VIEW look AS SELECT id, kind FROM p WHERE id <= 10;
        CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS id;
        CREATE TABLE made (a int, twice int GENERATED ALWAYS AS (a * 2) STORED,
                           thrice int GENERATED ALWAYS AS (a * 3) VIRTUAL);
        INSERT INTO made VALUES (2);
        CREATE TABLE dropped AS SELECT 1 AS a, 2 AS b, 3 AS c;
        ALTER TABLE dropped DROP a; ALTER TABLE dropped ADD d int DEFAULT 4;
        CREATE EXTENSION postgres_fdw;
        CREATE SERVER self FOREIGN DATA WRAPPER postgres_fdw
            OPTIONS (host '127.0.0.1', port '{host}', dbname '{database}');
        CREATE USER MAPPING FOR postgres SERVER self OPTIONS (user 'postgres');
        CREATE FOREIGN TABLE far (id int, note text) SERVER self OPTIONS (table_name 'parent');
        CREATE TABLE both_ways (id int, note text) PARTITION BY RANGE (id);
        CREATE TABLE both_near PARTITION OF both_ways FOR VALUES FROM (3) TO (90000);
        CREATE FOREIGN TABLE both_far PARTITION OF both_ways FOR VALUES FROM (0) TO (3)
            SERVER self OPTIONS (table_name 'parent');
        INSERT INTO both_ways SELECT i, repeat('x', 500) FROM generate_series(3, 40000) i;
    """)
    result = land(source)
    expected = {
        name: source.execute(f"SELECT count(*) FROM {name}")[0][0]
        for name in (
            *("p", "parent", "heir", "mat", "look", "unlogged", "made", "dropped", "far"),
            "both_ways",
        )
    }
    assert {t.table.partition(".")[2]: t.rows_read for t in result.tables} == expected
    assert sorted(read(source, "p")["id"]) == list(range(1, 10000))
    assert read(source, "p")["kind"].value_counts().sort("kind").rows() == [
        ("a", 6666),
        ("b", 3333),
    ]
    assert sorted(read(source, "parent").rows()) == [(1, "parent"), (2, "heir")]
    assert read(source, "made").rows() == [(2, 4, 6)]
    assert read(source, "dropped").rows(named=True) == [{"b": 2, "c": 3, "d": 4}]
    assert sorted(read(source, "far").rows()) == [(1, "parent"), (2, "heir")]
    assert sorted(read(source, "both_ways")["id"]) == list(range(1, 40001))


def test_a_view_that_cannot_be_read_fails_alone(source: Source) -> None:
    """A materialised view without content, and a view that divides by zero."""
    source.execute("""
        CREATE TABLE good AS SELECT 1 AS id;
        CREATE MATERIALIZED VIEW hollow AS SELECT 1 AS id WITH NO DATA;
        CREATE VIEW broken AS SELECT 1 / (id - 1) AS x, 'private' AS secret FROM good
    """)
    result = pipeline.run(source.settings())
    found = failures(result)
    assert set(found) == {"hollow", "broken"}
    assert "has not been populated" in found["hollow"].message
    assert "division by zero" in found["broken"].message
    for failure in found.values():
        assert failure.kind == "TableRefused"
        assert "private" not in failure.message
    assert result.exit_code == 1
    assert read(source, "good").height == 1


def test_each_row_of_a_bloated_table_is_read_once(source: Source) -> None:
    """It has many pages with few rows, at the beginning, in the middle and at the end."""
    source.execute("""
        CREATE TABLE t AS SELECT i AS id, repeat('x', 900) AS filler
            FROM generate_series(1, 30000) i;
        DELETE FROM t WHERE id NOT IN (1, 15000, 15001, 30000)
    """)
    land(source, run={"workers": 2, "memory": MINIMUM_MEMORY})
    assert sorted(read(source, "t")["id"]) == [1, 15000, 15001, 30000]


# The SQL of a key for the numbers from 1 to 1000: special values, and each one only once.
KEYS = {
    "int": "500 - i",
    "text": "(ARRAY['', 'É', 'it''s', '%s', 'z'])[i % 5 + 1] || i / 5",
    "numeric": "CASE i WHEN 1 THEN 'NaN' WHEN 2 THEN '-Infinity' WHEN 3 THEN '1e40'"
    " ELSE i / 7.0 END::numeric",
    "float8": "CASE i WHEN 1 THEN 'NaN' WHEN 2 THEN '-0' WHEN 3 THEN 'Infinity'"
    " WHEN 4 THEN '1e-300' ELSE i / 7.0 END::float8",
    "timestamptz": "'2024-01-01Z'::timestamptz + i * interval '1 microsecond'",
    "date": "'0001-01-01'::date + i",
    "uuid": "md5(i::text)::uuid",
    "enum": "('m' || i)::mood",
    "numeric(12,2)": "i / 100.0",
    "bytea": "int4send(i)",
    "char(6)": "i::text::char(6)",
    "int4range": "int4range(i, i + 1)",
    "jsonb": "to_jsonb(i)",
    "json": "to_json(i)",
}
TYPES = {"enum": "mood"}


def many(of: int | str = "") -> str:
    """The SQL of a view of a table, as large as the planner believes: enough to be split."""
    return (
        f"CREATE FUNCTION many{of}() RETURNS SETOF t{of} LANGUAGE plpgsql ROWS 2000000 AS"
        f" $$ BEGIN RETURN QUERY SELECT * FROM public.t{of}; END $$;"
        f"CREATE VIEW v{of} AS SELECT * FROM many{of}()"
    )


ODD = "100%\"odd\"'key'"


@pytest.mark.soak
def test_each_row_of_a_view_split_by_ranges_is_read_once(source: Source) -> None:
    """For each type of the key, with special values, and for any name."""
    moods = ", ".join(f"'m{i}'" for i in range(1, 1001))
    odd = ODD.replace('"', '""')
    source.execute(f"CREATE TYPE mood AS ENUM ({moods})")
    views = {f"v{i}": kind for i, kind in enumerate(KEYS)}
    for i, kind in enumerate(KEYS):
        source.execute(f"""
            CREATE TABLE t{i} (id int, "{odd}" {TYPES.get(kind, kind)});
            INSERT INTO t{i} SELECT i, {KEYS[kind]} FROM generate_series(1, 1000) i;
            {many(i)}
        """)
    result = pipeline.run(
        source.settings(source={"tables": "v*"}, tables={name: {"key": [ODD]} for name in views})
    )
    # Without an equality nobody can tell whether it is unique.
    assert {views[name]: failure.kind for name, failure in failures(result).items()} == {
        "json": "TableRefused"
    }
    ended = {table.table.partition(".")[2]: table for table in result.tables}
    assert ended.keys() == views.keys()
    for name, kind in views.items():
        if kind == "json":
            assert not source.table(name).exists()
            continue
        assert sorted(read(source, name)["id"]) == list(range(1, 1001)), kind
        assert ended[name].rows_read == 1000, kind
        assert ended[name].files > 1, f"{kind}: the test means to have several ranges"


FEW = (
    "i % 2 = 0",
    "i % 50",
    "nullif(i % 7, 0)",
    "(ARRAY['z', 'a', 'm'])[i % 3 + 1]::mood",
    "(ARRAY['NaN', '-Infinity', '1e40', '0.10', NULL])[i % 5 + 1]::numeric",
    "(ARRAY['NaN', '-0', '0', 'Infinity', NULL])[i % 5 + 1]::float8",
    "(ARRAY['-infinity', '2024-01-01Z', '0001-01-01 BC', NULL])[i % 4 + 1]::timestamptz",
    "(ARRAY['infinity', '2024-01-01', '0001-01-01 BC', NULL])[i % 4 + 1]::date",
    "(ARRAY['', 'É', 'it''s', '%s', NULL])[i % 5 + 1]",
    "NULL::int",
)


def test_exactly_one_range_is_true_for_each_row(source: Source) -> None:
    """Also of a column with few values, NULLs and infinities."""
    odd = ODD.replace('"', '""')
    source.execute("CREATE TYPE mood AS ENUM ('z', 'a', 'm')")
    for i, key in enumerate(FEW):
        source.execute(
            f'CREATE VIEW v{i} AS SELECT i AS id, {key} AS "{odd}" FROM generate_series(1, 1000) i'
        )
    with connect.connect(Origin("test", source.dsn)) as connection:
        views = {r.name: r for r in relations(connection, ["public"])}
        for (i, key), count in itertools.product(enumerate(FEW), (2, 7)):
            parts = splits.key_ranges(connection, views[f"v{i}"], ODD, count, 10**9)
            assert len(parts) <= count, key
            queries = [f"SELECT id FROM public.v{i} WHERE {part.where}" for part in parts]
            rows = [row for query in queries for row in connection.execute(query.encode())]
            found = [int(str(row[0])) for row in rows]
            assert sorted(found) == list(range(1, 1001)), key


NO_KEYS = {
    "a view": "CREATE TABLE base{n} AS {rows}; CREATE VIEW t{n} AS SELECT * FROM base{n}",
    "a table": "CREATE TABLE t{n} AS {rows}",
    "a materialised view": "CREATE MATERIALIZED VIEW t{n} AS {rows}",
    "a parent with heirs": "CREATE TABLE t{n} (id int UNIQUE, part int);"
    "CREATE TABLE heir{n} () INHERITS (t{n}); INSERT INTO heir{n} {rows};"
    "INSERT INTO t{n} VALUES (1, 1)",
}
# A last key, and what is said of it.
LAST = {"2": "the same value of", "NULL": "no value in", "4": ""}


def test_a_key_with_duplicates_or_nulls_is_refused(source: Source) -> None:
    """Rows with the same key or without one refuse the table before anything is written."""
    cases = dict(enumerate(itertools.product(NO_KEYS, LAST)))
    for i, (kind, last) in cases.items():
        rows = f"SELECT * FROM (VALUES (2, 1), (3, 1), ({last}, 1)) v (id, part)"
        source.execute(NO_KEYS[kind].format(rows=rows, n=i))
    keys = {f"t{i}": {"key": ["id"]} for i in cases}
    result = pipeline.run(source.settings(source={"tables": "t*"}, tables=keys))
    assert len(result.tables) == len(cases)
    assert result.exit_code == 1
    found = failures(result)
    for i, case in cases.items():
        name, failure = f"t{i}", found.get(f"t{i}")
        said = LAST[case[1]]
        if not said:
            assert failure is None, case
            assert read(source, name).height in (3, 4), case
            continue
        assert failure, case
        assert failure.kind == "TableRefused", case
        assert f"Rows of table public.{name} have {said} the key id." in failure.message, case
        hinted = settings_in(failure.hint.replace("[…]", '["part"]'))
        assert hinted == {name: {"key": ["part"]}}, case
        assert not source.table(name).exists(), case


def test_a_key_may_be_an_array(source: Source) -> None:
    """Rows of tables and views are matched by a column of arrays."""
    source.execute(f"""
        CREATE TABLE t AS SELECT i AS id, ARRAY[i / 2, i, NULL] AS key
        FROM generate_series(1, 900) i;
        {many()}
    """)
    settings: dict[str, Any] = {"source": {"tables": "v"}, "tables": {"v": {"key": ["key"]}}}
    land(source, **settings)
    source.execute("DELETE FROM t WHERE id = 5; UPDATE t SET id = 1000 WHERE id = 6")
    (table,) = land(source, **settings).tables
    assert (table.inserted, table.updated, table.deleted) == (0, 1, 1)
    rows = pl.read_delta(str(source.table("v"))).filter(pl.col("record_status") != "DELETED")
    assert sorted(rows["id"]) == [i for i in range(1, 901) if i not in (5, 6)] + [1000]


def test_keys_of_an_inheritance_parent_are_counted(source: Source) -> None:
    """The primary key of a parent does not hold for rows of its children."""
    source.execute("""
        CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE heir () INHERITS (t);
        INSERT INTO t VALUES (1); INSERT INTO heir VALUES (1)
    """)
    result = pipeline.run(source.settings(source={"tables": "t"}))
    (failure,) = failures(result).values()
    assert "Rows of table public.t have the same value of the key id." in failure.message
    assert not source.table("t").exists()


@pytest.mark.parametrize("change", ["INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (NULL)"])
def test_a_key_that_is_no_longer_unique_is_refused(source: Source, change: str) -> None:
    """The Bronze table stays as it is."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    settings: dict[str, Any] = {"tables": {"t": {"key": ["id"]}}}
    land(source, **settings)
    before = sorted(path for path in source.table("t").rglob("*") if path.is_file())
    source.execute(change)
    (failure,) = failures(pipeline.run(source.settings(**settings))).values()
    assert "Rows of table public.t have" in failure.message
    assert sorted(path for path in source.table("t").rglob("*") if path.is_file()) == before


def test_a_composite_key_is_unique_as_a_whole(source: Source) -> None:
    """One of its columns may have duplicates; none may have NULL."""
    source.execute("CREATE TABLE t AS SELECT i / 2 AS a, i % 2 AS b FROM generate_series(1, 9) i")
    settings: dict[str, Any] = {"tables": {"t": {"key": ["a", "b"]}}}
    land(source, **settings)
    assert read(source, "t").height == 9
    source.execute("INSERT INTO t VALUES (100, NULL)")
    (failure,) = failures(pipeline.run(source.settings(**settings))).values()
    assert "Rows of table public.t have no value in the key a, b." in failure.message


def test_the_column_of_a_history_is_reserved(source: Source) -> None:
    """A source column of that name is refused in a history, and lands in other tables."""
    made(source, "t", "id", "change_type", key="id")
    (failure,) = failures(pipeline.run(source.settings(tables={"t": {"history": True}}))).values()
    assert "'change_type'" in failure.message
    land(source)
    assert read(source, "t")["change_type"].to_list() == ["change_type"]


WORKING_NAMES = ("row", "line", "source", "file", "part", "at", "key", "deleted", "live", "order")


@pytest.mark.parametrize("own", [{}, {"history": True}, {"pattern": "streaming"}])
def test_keys_may_have_any_name(source: Source, own: dict[str, Any]) -> None:
    """Names that bronze could use for itself while it compares, merges and repairs are free."""
    names = [sql.Identifier(name) for name in WORKING_NAMES]
    columns = sql.SQL(", ").join(sql.SQL("{} int").format(name) for name in names)
    key = sql.SQL(", ").join(names)
    create = sql.SQL("CREATE TABLE t ({}, v text, PRIMARY KEY ({}))").format(columns, key)
    values = sql.SQL(", ").join(sql.SQL("g") for _ in names)
    insert = sql.SQL("INSERT INTO t SELECT {}, 'v' FROM generate_series(1, 100) g").format(values)
    source.execute(create.as_string())
    source.execute(insert.as_string())
    settings = source.settings(tables={"t": own})
    load = caught_up if own.get("pattern") == "streaming" else pipeline.run
    load(settings)
    source.execute("UPDATE t SET v = 'w' WHERE row <= 3")
    source.execute("DELETE FROM t WHERE row = 4")
    source.execute(insert.as_string().replace("(1, 100)", "(101, 103)"))
    assert load(settings).exit_code == 0
    assert differences(settings) == {}
    assert verify(settings).exit_code == 0
