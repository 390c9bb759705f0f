"""The proposed bronze.toml loads and runs as it is, and contains no secret and no value."""

from __future__ import annotations

import re
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from bronze.api import check
from bronze.api.config_text import MAX_SECTIONS, PASSWORD_VARIABLE
from bronze.api.init import propose_config, write_config
from bronze.config import loading
from bronze.config.sections.protection import MASTER_KEY
from bronze.config.sections.run import RunSettings
from bronze.config.sections.serve import ServeSettings
from bronze.config.settings import Settings
from bronze.demo import inventory
from bronze.demo.server import Server
from bronze.errors import ConfigError, SourceRefused, SourceUnreachable
from bronze.ingest import pipeline
from bronze.model.results import RunResult
from bronze.protection import keyring
from tests.conftest import Source
from tests.integration.postgres.catalog.test_survey import BIG_ROWS, big, execute

UNUSUAL = (
    'a "quoted" name',
    "back\\slash",
    "semi;colon, {braces} (and) more=",
    "🙂 family 👩‍👩‍👧",
    "Ünï.cødé/path",
    "tab\tand\nnewline",
    "del\x7f \x01\u2028\u202e",
    "# no comment ''' \"\"\"",
    "row_hash",
    "Row_Hash",
    "Load_Timestamp",
    "a b",
    "a_b",
    "A_B",
    "id",
    "Id",
    "%s {} $1",
    "x" * 63,
    "ж" * 31,
)


@pytest.fixture
def demo(server: Server) -> Iterator[str]:
    """The DSN of a tiny demo database."""
    yield inventory.create(server.dsn(), scale=1e-9)
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(inventory.DATABASE))
        )


def loaded(text: str, folder: Path) -> Settings:
    """The settings in a proposal, as a user would load them."""
    path = folder / "bronze.toml"
    write_config(path, text)
    return loading.load(path)


def landed(text: str, folder: Path) -> RunResult:
    """The result of a run with the proposal, in which all tables landed."""
    result = pipeline.run(loaded(text, folder))
    assert [(t.table, t.error) for t in result.tables if t.status != "landed"] == []
    return result


def test_the_demo_is_loaded_with_the_proposed_config(demo: str, tmp_path: Path) -> None:
    """All ten tables land with the unchanged proposal; it names personal columns and keys."""
    text = propose_config(demo)
    result = landed(text, tmp_path)
    assert {t.table for t in result.tables} == {f"tests.{name}" for name in inventory.SIZES}
    assert {t.target.split(".")[0] for t in result.tables} == {"de_bronze"}
    assert (tmp_path / "lake" / "de_bronze" / "bz_orders").is_dir()
    flat = " ".join(text.replace("#", " ").split())
    assert "customer_name (person's name: name), email (e-mail: name, content)" in flat
    assert "protect it before it leaves the source" in flat
    assert "key: order_id" in flat
    assert ".example" not in text


def test_tables_with_unusual_names_are_loaded_with_the_proposed_config(
    source: Source, tmp_path: Path
) -> None:
    """For any names of tables, columns and schemas, the proposal loads, and all tables land."""
    columns_with_all_names = sql.SQL(", ").join(
        sql.SQL("{} text").format(sql.Identifier(n)) for n in UNUSUAL
    )
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        for schema in ("public", 'Odd "schema".x', "🙂"):
            connection.execute(
                sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema))
            )
            for name in UNUSUAL if schema == "public" else UNUSUAL[:6]:
                table = sql.Identifier(schema, name)
                columns = columns_with_all_names if name == UNUSUAL[0] else sql.SQL("id text")
                connection.execute(sql.SQL("CREATE TABLE {} ({})").format(table, columns))
                connection.execute(sql.SQL("INSERT INTO {} DEFAULT VALUES").format(table))
    result = landed(propose_config(source.dsn), tmp_path)
    assert len(result.tables) == len(UNUSUAL) + 12
    assert len({t.target.lower() for t in result.tables}) == len(UNUSUAL) + 12
    assert all(t.rows_read == 1 for t in result.tables)


def test_columns_that_delta_cannot_hold_are_renamed(source: Source, tmp_path: Path) -> None:
    """Each gets a name that is free, and a comment with the reason; the others keep their names."""
    source.execute('CREATE TABLE t ("Id" int, id int, "a b" int, a_b int, row_hash int, ok int)')
    text = propose_config(source.dsn)
    assert loaded(text, tmp_path).tables["t"].rename == {
        "id": "id_2",
        "a b": "a_b_2",
        "row_hash": "source_row_hash",
    }
    assert "# row_hash is renamed: bronze adds a column of that name" in text


def test_tables_with_the_same_target_get_different_ones(source: Source, tmp_path: Path) -> None:
    """Tables that would become one Bronze table get a target each; others keep the default."""
    source.execute("CREATE SCHEMA sales")
    for table in ("public.orders", "sales.orders", 'sales."Items"', "sales.items", "sales.one"):
        source.execute(f"CREATE TABLE {table} (id int)")
    tables = loaded(propose_config(source.dsn), tmp_path).tables
    assert {name: table.target for name, table in tables.items()} == {
        "public.orders": "bz_public_orders",
        "sales.orders": "bz_sales_orders",
        "sales.Items": "bz_sales_items",
        "sales.items": "bz_sales_items_2",
        "sales.one": None,
    }


def test_all_schemas_with_tables_are_proposed_by_default(source: Source, tmp_path: Path) -> None:
    """If schemas are named, only those are proposed."""
    for schema in ("empty", "one", "two"):
        source.execute(f"CREATE SCHEMA {schema}")
    source.execute("CREATE TABLE one.t (id int)")
    source.execute("CREATE TABLE two.u (id int)")
    assert tomllib.loads(propose_config(source.dsn))["source"]["schema"] == ["one", "two"]
    document = tomllib.loads(propose_config(source.dsn, schemas=["two"], name="My source"))
    assert document["source"]["schema"] == "two"
    assert document["source"]["name"] == "My source"
    assert list(document["tables"]) == ["u"]


def test_tables_with_a_dot_in_their_names_have_sections_of_their_own(
    source: Source, tmp_path: Path
) -> None:
    """A section is for one table, even if its name can be split into schema and table twice."""
    source.execute('CREATE SCHEMA a; CREATE SCHEMA "a.b"')
    source.execute('CREATE TABLE a."b.c" ("x y" int); CREATE TABLE "a.b".c ("z z" int)')
    assert len(landed(propose_config(source.dsn), tmp_path).tables) == 2


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://postgres:{secret}@{host}:{port}/{name}",
        "postgres://postgres@{host}:{port}/{name}?password={secret}&sslmode=prefer",
        "host={host} port={port} user=postgres password='{secret}' dbname={name}",
        "postgresql://postgres:{secret}@{host},{host}:{port},{port}/{name}",
    ],
)
def test_the_password_is_not_written(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """The file refers to an environment variable instead, and runs when it is set."""
    source.execute("CREATE TABLE t (id int)")
    url = urlsplit(source.dsn)
    dsn = form.format(
        secret="geheim%21", host=url.hostname, port=url.port, name=url.path.removeprefix("/")
    )
    text = propose_config(dsn)
    assert "geheim" not in text
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    settings = loaded(text, tmp_path)
    with pytest.raises(ConfigError, match=PASSWORD_VARIABLE):
        pipeline.run(settings)
    monkeypatch.setenv(PASSWORD_VARIABLE, "geheim!")
    assert len(pipeline.run(settings).tables) == 1
    keywords = conninfo_to_dict(dsn)
    del keywords["password"]
    assert conninfo_to_dict(str(settings.source[next(iter(settings.source))].dsn)) == keywords


def test_a_connection_string_with_other_secrets_is_not_written(source: Source) -> None:
    """If it has a secret besides the password, the whole string becomes a secret."""
    source.execute("CREATE TABLE t (id int)")
    text = propose_config(f"{source.dsn}?sslpassword=geheim&password=auch")
    assert "geheim" not in text
    assert "auch" not in text
    assert tomllib.loads(text)["source"]["dsn"] == {"secret": "BRONZE_SOURCE_DSN"}


def test_a_connection_string_without_secrets_is_written(source: Source) -> None:
    """As a URL or as keywords, like the original."""
    source.execute("CREATE TABLE t (id int)")
    document = tomllib.loads(propose_config(source.dsn))
    assert document["source"]["dsn"] == source.dsn
    assert "password" not in document["source"]
    assert "secrets" not in document
    keywords = " ".join(f"{k}={v}" for k, v in conninfo_to_dict(source.dsn).items())
    assert tomllib.loads(propose_config(keywords))["source"]["dsn"] == keywords


def test_a_table_that_changes_often_has_a_high_priority(source: Source, tmp_path: Path) -> None:
    """Its priority is active; the pattern and the cursor are proposed in comments."""
    execute(
        source,
        big("hot", "v int, updated_at timestamptz", "1, now()"),
        "UPDATE hot SET v = 2 WHERE id < 5000",
        big("cool", "updated_at timestamptz NOT NULL", "now()"),
    )
    text = propose_config(source.dsn)
    tables = loaded(text, tmp_path).tables
    assert (tables["hot"].priority, tables["cool"].priority) == (1, 2)
    assert f"# {BIG_ROWS:,} rows, " in text
    assert "# proposed pattern: streaming (4,999 updates and deletes were counted)" in text
    assert "# possible cursors: updated_at" in text
    flat = " ".join(text.replace("#", " ").split())
    assert "proposed pattern: batch, cursor updated_at (it shows which rows" in flat


def test_of_many_tables_only_those_with_settings_have_a_section(
    source: Source, tmp_path: Path
) -> None:
    """With more than `MAX_SECTIONS` tables, those without settings have one line each."""
    source.execute("; ".join(f"CREATE TABLE t{i} (email text)" for i in range(MAX_SECTIONS)))
    source.execute('CREATE TABLE odd ("a b" int)')
    text = propose_config(source.dsn)
    assert list(loaded(text, tmp_path).tables) == ["odd"]
    assert sum(line.startswith("# public.t") for line in text.splitlines()) == MAX_SECTIONS


def test_tables_of_extensions_are_excluded(source: Source, tmp_path: Path) -> None:
    """They are excluded by name, unless a table of the user has the same name."""
    source.execute("CREATE EXTENSION pg_stat_statements")
    source.execute("CREATE SCHEMA own; CREATE TABLE own.pg_stat_statements_info (id int)")
    source.execute("CREATE TABLE t (id int)")
    settings = loaded(propose_config(source.dsn), tmp_path)
    assert settings.source[next(iter(settings.source))].exclude == ("pg_stat_statements",)
    assert set(settings.tables) == {
        "own.pg_stat_statements_info",
        "public.pg_stat_statements_info",
        "public.t",
    }


def test_tables_that_the_role_may_not_read_are_left_out(source: Source, tmp_path: Path) -> None:
    """A comment names the table and what to do; a schema without readable tables is left out."""
    source.execute("CREATE SCHEMA closed; CREATE TABLE closed.x (id int)")
    source.execute("CREATE TABLE denied (id int); CREATE TABLE granted (id int)")
    source.execute("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN")
    source.execute("GRANT SELECT ON granted TO reader")
    dsn = source.dsn.replace("postgres@", "reader@")
    try:
        text = propose_config(dsn)
        assert tomllib.loads(text)["source"]["schema"] == "public"
        assert "# Schemas left out, because this role may read no table in them: closed" in text
        assert text.count("Left out: Table public.denied cannot be read") == 1
        assert tomllib.loads(text)["source"]["exclude"] == ["denied"]
        with pytest.raises(
            ConfigError, match=r"may not read any table in .* which has 1 table"
        ) as caught:
            propose_config(dsn, schemas=["closed"])
        assert "GRANT" in caught.value.hint
    finally:
        source.execute("DROP OWNED BY reader; DROP ROLE reader")


def test_proposed_protection_works_once_it_is_activated(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a master key and with few privileges, check and run succeed and name the columns that
    are not protected; with a key and the comments removed, they are protected.
    """
    monkeypatch.delenv(MASTER_KEY)
    source.execute("""
        CREATE TABLE customers (email text PRIMARY KEY, customer_name text, phone text, ok int);
        INSERT INTO customers VALUES ('ada@mail.example', 'Ada', '+49 12345678', 1);
        CREATE TABLE people (birth_dates date[], birthday date, first_name text, last_name text,
            home_address text, postal_code text, mobile text, id uuid);
        INSERT INTO people VALUES ('{2001-02-03}', '2001-02-03', 'Ada', 'L', 'Here', '1', '2');
        CREATE TABLE partly (id int PRIMARY KEY, password text);
        CREATE TABLE keyed (id int PRIMARY KEY, v int);
        CREATE TABLE secured (id int); ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
        CREATE MATERIALIZED VIEW empty AS SELECT 1 AS id WITH NO DATA;
        CREATE TABLE blank ();
        DROP ROLE IF EXISTS partly; CREATE ROLE partly LOGIN;
        GRANT SELECT ON customers, people, secured, empty, blank TO partly;
        GRANT SELECT (id) ON partly TO partly; GRANT SELECT (v) ON keyed TO partly
    """)
    try:
        notes: list[str] = []
        text = propose_config(source.dsn.replace("postgres@", "partly@"), notify=notes.append)
        settings = loaded(text, tmp_path)
        (database,) = settings.source.values()
        assert database.exclude == ("empty", "keyed", "secured")
        assert len(notes) == 3
        assert settings.tables["partly"].columns == ("id",)
        report = check.check(settings)
        assert report.problems == ()
        loaded_notes = {t.table: " ".join(t.notes) for t in pipeline.run(settings).tables}
        expected = {"public.blank", "public.customers", "public.partly", "public.people"}
        assert loaded_notes.keys() == expected
        for table, column in {"customers": "email", "people": "mobile"}.items():
            assert re.search(f"is not protected:.* {column} ", loaded_notes[f"public.{table}"])
        monkeypatch.setenv(MASTER_KEY, keyring.new_master())
        activated = text.replace("\n# protect", "\nprotect")
        (tmp_path / "bronze.toml").unlink()
        settings = loaded(activated, tmp_path)
        assert check.check(settings).problems == ()
        assert [t.error for t in pipeline.run(settings).tables if t.error] == []
        assert "personal" not in " ".join(n for t in check.check(settings).tables for n in t.notes)
        customer = pl.read_delta(str(tmp_path / "lake" / settings.lake.schema_ / "bz_customers"))
        assert "ada" not in str(customer.rows()).lower()
    finally:
        source.execute("DROP OWNED BY partly; DROP ROLE partly")


def test_an_empty_database_is_refused(source: Source) -> None:
    """A database without a table, and a schema that does not exist, are errors with hints."""
    with pytest.raises(ConfigError, match="no table in the database") as caught:
        propose_config(source.dsn)
    assert caught.value.hint
    with pytest.raises(ConfigError, match="no schema nowhere") as caught:
        propose_config(source.dsn, schemas=["nowhere"])
    assert "public" in caught.value.hint


def test_connection_errors_are_raised_unchanged(source: Source) -> None:
    """Errors of connecting reach the caller, without the password."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(SourceUnreachable) as unreachable:
            propose_config(f"postgresql://u:geheim@127.0.0.1:{port}/x")
    assert "geheim" not in str(unreachable.value)
    with pytest.raises(SourceRefused):
        propose_config(f"{source.dsn}_not_there")
    with pytest.raises(ConfigError) as unreadable:
        propose_config("postgresql://u:geheim@[::1/x")
    assert "geheim" not in str(unreadable.value)


def test_commented_settings_of_a_run_are_the_defaults(source: Source) -> None:
    """The comments under [run] are all its settings, with the defaults except for workers."""
    source.execute("CREATE TABLE t (id int)")
    text = propose_config(source.dsn)
    section = text[text.index("[run]") : text.index("# `bronze serve`")]
    live = section.replace("\n# ", "\n")
    shown = RunSettings.model_validate(tomllib.loads(live)["run"])
    assert shown.model_fields_set == set(RunSettings.model_fields)
    assert shown.model_copy(update={"workers": 1}) == RunSettings(workers=1)


def test_commented_settings_of_the_service_are_valid(source: Source) -> None:
    """The comments under [serve.schedule] are its defaults; the windows are those of an example."""
    source.execute("CREATE TABLE t (id int)")
    text = propose_config(source.dsn)
    section = text[text.index("[serve.schedule]") : text.index("[tables.")]
    lines = [line.removeprefix("# ") for line in section.splitlines() if " = " in line]
    titles = [line for line in section.splitlines() if line.startswith("[")]
    schedule, windows = lines[:5], lines[5:]
    live = "\n".join([titles[0], *schedule, titles[1], *windows])
    shown = ServeSettings.model_validate(tomllib.loads(live)["serve"])
    assert shown.schedule == ServeSettings().schedule
    assert [window.name for window in shown.hours()] == ["peak", "weekend", "off_peak"]


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    """The error names --out; a folder that does not exist is an error too."""
    path = tmp_path / "bronze.toml"
    write_config(path, "a = 'ü'\n")
    with pytest.raises(ConfigError, match="already exists") as caught:
        write_config(path, "b = 2\n")
    assert "--out" in caught.value.hint
    assert path.read_text(encoding="utf-8") == "a = 'ü'\n"
    with pytest.raises(ConfigError, match="cannot be written"):
        write_config(tmp_path / "missing" / "bronze.toml", "")
