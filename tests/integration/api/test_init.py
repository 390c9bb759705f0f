"""The proposed bronze.toml: it loads and runs as it is, and holds no secret and no value."""

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
from bronze.api.init import MANY, PASSWORD, propose, write
from bronze.config import loading
from bronze.config.protection import MASTER_KEY
from bronze.config.settings import RunSettings, Settings
from bronze.demo import inventory
from bronze.demo.server import Server
from bronze.errors import ConfigError, SourceRefused, SourceUnreachable
from bronze.ingest import pipeline
from bronze.model.results import RunResult
from bronze.protection import keyring
from tests.conftest import Source
from tests.integration.postgres.catalog.test_survey import BIG_ROWS, big, execute

NASTY = (
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
    write(path, text)
    return loading.load(path)


def landed(text: str, folder: Path) -> RunResult:
    """What a run by the proposal does, which must be to land everything."""
    result = pipeline.run(loaded(text, folder))
    assert [(t.table, t.error) for t in result.tables if t.status != "landed"] == []
    return result


def test_the_demo_lands_as_proposed(demo: str, tmp_path: Path) -> None:
    """All ten tables land by the proposal as it is; personal columns and keys are named."""
    text = propose(demo)
    result = landed(text, tmp_path)
    assert {t.table for t in result.tables} == {f"tests.{name}" for name in inventory.SIZES}
    assert {t.target.split(".")[0] for t in result.tables} == {"de_bronze"}
    assert (tmp_path / "lake" / "de_bronze" / "bz_orders").is_dir()
    flat = " ".join(text.replace("#", " ").split())
    assert "customer_name (person's name: name), email (e-mail: name, content)" in flat
    assert "protect it before it leaves the source" in flat
    assert "key: order_id" in flat
    assert ".example" not in text


def test_nasty_names_land_as_proposed(source: Source, tmp_path: Path) -> None:
    """Whatever tables, columns and schemas are called, the proposal loads, runs, and loses none."""
    odd = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(n)) for n in NASTY)
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        for schema in ("public", 'Odd "schema".x', "🙂"):
            connection.execute(
                sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema))
            )
            for name in NASTY if schema == "public" else NASTY[:6]:
                table = sql.Identifier(schema, name)
                columns = odd if name == NASTY[0] else sql.SQL("id text")
                connection.execute(sql.SQL("CREATE TABLE {} ({})").format(table, columns))
                connection.execute(sql.SQL("INSERT INTO {} DEFAULT VALUES").format(table))
    result = landed(propose(source.dsn), tmp_path)
    assert len(result.tables) == len(NASTY) + 12
    assert len({t.target.lower() for t in result.tables}) == len(NASTY) + 12
    assert all(t.rows_read == 1 for t in result.tables)


def test_columns_that_delta_cannot_hold_are_renamed(source: Source, tmp_path: Path) -> None:
    """Each gets a free name and a reason; the others keep theirs."""
    source.execute('CREATE TABLE t ("Id" int, id int, "a b" int, a_b int, row_hash int, ok int)')
    text = propose(source.dsn)
    assert loaded(text, tmp_path).tables["t"].rename == {
        "id": "id_2",
        "a b": "a_b_2",
        "row_hash": "source_row_hash",
    }
    assert "# row_hash is renamed: bronze adds a column of that name" in text


def test_tables_of_one_name_get_targets(source: Source, tmp_path: Path) -> None:
    """Tables that would become one Bronze table get a target each, and only those."""
    source.execute("CREATE SCHEMA sales")
    for table in ("public.orders", "sales.orders", 'sales."Items"', "sales.items", "sales.one"):
        source.execute(f"CREATE TABLE {table} (id int)")
    found = loaded(propose(source.dsn), tmp_path).tables
    assert {name: own.target for name, own in found.items()} == {
        "public.orders": "bz_public_orders",
        "sales.orders": "bz_sales_orders",
        "sales.Items": "bz_sales_items",
        "sales.items": "bz_sales_items_2",
        "sales.one": None,
    }


def test_schemas(source: Source, tmp_path: Path) -> None:
    """Without a choice all schemas that hold tables are taken, else those that were chosen."""
    for schema in ("empty", "one", "two"):
        source.execute(f"CREATE SCHEMA {schema}")
    source.execute("CREATE TABLE one.t (id int)")
    source.execute("CREATE TABLE two.u (id int)")
    assert tomllib.loads(propose(source.dsn))["source"]["schema"] == ["one", "two"]
    document = tomllib.loads(propose(source.dsn, schemas=["two"], name="My source"))
    assert document["source"]["schema"] == "two"
    assert document["source"]["name"] == "My source"
    assert list(document["tables"]) == ["u"]


def test_a_dot_in_a_name_confuses_nothing(source: Source, tmp_path: Path) -> None:
    """A section names one table, even where schema and table could be split in two ways."""
    source.execute('CREATE SCHEMA a; CREATE SCHEMA "a.b"')
    source.execute('CREATE TABLE a."b.c" ("x y" int); CREATE TABLE "a.b".c ("z z" int)')
    assert len(landed(propose(source.dsn), tmp_path).tables) == 2


@pytest.mark.parametrize(
    "form",
    [
        "postgresql://postgres:{secret}@{host}:{port}/{name}",
        "postgres://postgres@{host}:{port}/{name}?password={secret}&sslmode=prefer",
        "host={host} port={port} user=postgres password='{secret}' dbname={name}",
        "postgresql://postgres:{secret}@{host},{host}:{port},{port}/{name}",
    ],
)
def test_the_password_stays_out(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """However the password was given, the file names it only, and runs when it is set."""
    source.execute("CREATE TABLE t (id int)")
    url = urlsplit(source.dsn)
    dsn = form.format(
        secret="geheim%21", host=url.hostname, port=url.port, name=url.path.removeprefix("/")
    )
    text = propose(dsn)
    assert "geheim" not in text
    monkeypatch.delenv(PASSWORD, raising=False)
    settings = loaded(text, tmp_path)
    with pytest.raises(ConfigError, match=PASSWORD):
        pipeline.run(settings)
    monkeypatch.setenv(PASSWORD, "geheim!")
    assert len(pipeline.run(settings).tables) == 1
    given = conninfo_to_dict(dsn)
    del given["password"]
    assert conninfo_to_dict(str(settings.source[next(iter(settings.source))].dsn)) == given


def test_other_secrets_take_the_whole_string_out(source: Source) -> None:
    """A connection string with another secret in it is named as a whole."""
    source.execute("CREATE TABLE t (id int)")
    text = propose(f"{source.dsn}?sslpassword=geheim&password=auch")
    assert "geheim" not in text
    assert "auch" not in text
    assert tomllib.loads(text)["source"]["dsn"] == {"secret": "BRONZE_SOURCE_DSN"}


def test_a_connection_string_without_secrets_stays(source: Source) -> None:
    """There is nothing to hide, so it is written as it was given, in either form."""
    source.execute("CREATE TABLE t (id int)")
    document = tomllib.loads(propose(source.dsn))
    assert document["source"]["dsn"] == source.dsn
    assert "password" not in document["source"]
    assert "secrets" not in document
    keywords = " ".join(f"{k}={v}" for k, v in conninfo_to_dict(source.dsn).items())
    assert tomllib.loads(propose(keywords))["source"]["dsn"] == keywords


def test_what_is_said_of_a_big_hot_table(source: Source, tmp_path: Path) -> None:
    """A hot table comes first; patterns that are only proposed stand in comments."""
    execute(
        source,
        big("hot", "v int, updated_at timestamptz", "1, now()"),
        "UPDATE hot SET v = 2 WHERE id < 5000",
        big("cool", "updated_at timestamptz NOT NULL", "now()"),
    )
    text = propose(source.dsn)
    found = loaded(text, tmp_path).tables
    assert (found["hot"].priority, found["cool"].priority) == (1, 2)
    assert f"# {BIG_ROWS:,} rows, " in text
    assert "# proposed pattern: streaming (4,999 updates and deletes were counted)" in text
    assert "# could be a cursor: updated_at" in text
    flat = " ".join(text.replace("#", " ").split())
    assert "proposed pattern: batch, cursor updated_at (it shows which rows" in flat


def test_many_tables_stay_readable(source: Source, tmp_path: Path) -> None:
    """Beyond a number of tables only those that need one have a section, the others a line."""
    source.execute("; ".join(f"CREATE TABLE t{i} (email text)" for i in range(MANY)))
    source.execute('CREATE TABLE odd ("a b" int)')
    text = propose(source.dsn)
    assert list(loaded(text, tmp_path).tables) == ["odd"]
    assert sum(line.startswith("# public.t") for line in text.splitlines()) == MANY


def test_what_extensions_brought_is_left_out(source: Source, tmp_path: Path) -> None:
    """Their tables are excluded by name, unless a table of the user's has the same name."""
    source.execute("CREATE EXTENSION pg_stat_statements")
    source.execute("CREATE SCHEMA own; CREATE TABLE own.pg_stat_statements_info (id int)")
    source.execute("CREATE TABLE t (id int)")
    settings = loaded(propose(source.dsn), tmp_path)
    assert settings.source[next(iter(settings.source))].exclude == ("pg_stat_statements",)
    assert set(settings.tables) == {
        "own.pg_stat_statements_info",
        "public.pg_stat_statements_info",
        "public.t",
    }


def test_what_the_role_may_not_read_is_said(source: Source, tmp_path: Path) -> None:
    """A denied table is named with what to do; a schema with nothing else is left out."""
    source.execute("CREATE SCHEMA closed; CREATE TABLE closed.x (id int)")
    source.execute("CREATE TABLE denied (id int); CREATE TABLE granted (id int)")
    source.execute("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN")
    source.execute("GRANT SELECT ON granted TO reader")
    dsn = source.dsn.replace("postgres@", "reader@")
    try:
        text = propose(dsn)
        assert tomllib.loads(text)["source"]["schema"] == "public"
        assert "# Left out, as this role may read nothing in them: closed" in text
        assert text.count("Left out: Table public.denied cannot be read") == 1
        assert tomllib.loads(text)["source"]["exclude"] == ["denied"]
        with pytest.raises(ConfigError, match="reader may read none of the 1 tables") as caught:
            propose(dsn, schemas=["closed"])
        assert "GRANT" in caught.value.hint
    finally:
        source.execute("DROP OWNED BY reader; DROP ROLE reader")


def test_what_is_proposed_runs_and_is_protected_once_its_lines_are_live(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key and with rights to a part of things, check and run of the proposal end well,
    and say what is not protected; with a key and the comments taken off it is.
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
        text = propose(source.dsn.replace("postgres@", "partly@"), notify=notes.append)
        given = loaded(text, tmp_path)
        (own,) = given.source.values()
        assert own.exclude == ("empty", "keyed", "secured")
        assert len(notes) == 3
        assert given.tables["partly"].columns == ("id",)
        report = check.check(given)
        assert report.problems == ()
        said = {t.table: " ".join(t.notes) for t in pipeline.run(given).tables}
        assert said.keys() == {"public.blank", "public.customers", "public.partly", "public.people"}
        for table, column in {"customers": "email", "people": "mobile"}.items():
            assert re.search(f"is not protected:.* {column} ", said[f"public.{table}"])
        monkeypatch.setenv(MASTER_KEY, keyring.new_master())
        live = text.replace("\n# protect", "\nprotect")
        (tmp_path / "bronze.toml").unlink()
        given = loaded(live, tmp_path)
        assert check.check(given).problems == ()
        assert [t.error for t in pipeline.run(given).tables if t.error] == []
        assert "personal" not in " ".join(n for t in check.check(given).tables for n in t.notes)
        customer = pl.read_delta(str(tmp_path / "lake" / given.lake.schema_ / "bz_customers"))
        assert "ada" not in str(customer.rows()).lower()
    finally:
        source.execute("DROP OWNED BY partly; DROP ROLE partly")


def test_an_empty_database_is_refused(source: Source) -> None:
    """Without a table, or without the schema, there is nothing to propose."""
    with pytest.raises(ConfigError, match="no table in the database") as caught:
        propose(source.dsn)
    assert caught.value.hint
    with pytest.raises(ConfigError, match="no schema nowhere") as caught:
        propose(source.dsn, schemas=["nowhere"])
    assert "public" in caught.value.hint


def test_connection_errors_stay_what_they_are(source: Source) -> None:
    """Whatever connecting raises reaches the caller, without the password."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(SourceUnreachable) as unreachable:
            propose(f"postgresql://u:geheim@127.0.0.1:{port}/x")
    assert "geheim" not in str(unreachable.value)
    with pytest.raises(SourceRefused):
        propose(f"{source.dsn}_not_there")
    with pytest.raises(ConfigError) as unreadable:
        propose("postgresql://u:geheim@[::1/x")
    assert "geheim" not in str(unreadable.value)


def test_the_settings_shown_are_the_defaults(source: Source) -> None:
    """What [run] shows in comments is valid, and changes nothing but the number of workers."""
    source.execute("CREATE TABLE t (id int)")
    text = propose(source.dsn)
    section = text[text.index("[run]") : text.index("[tables.")]
    live = section.replace("\n# ", "\n")
    shown = RunSettings.model_validate(tomllib.loads(live)["run"])
    assert shown.model_fields_set == set(RunSettings.model_fields)
    assert shown.model_copy(update={"workers": 1}) == RunSettings(workers=1)


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    """An existing file stays as it is, and a folder that is not there is said."""
    path = tmp_path / "bronze.toml"
    write(path, "a = 'ü'\n")
    with pytest.raises(ConfigError, match="there already") as caught:
        write(path, "b = 2\n")
    assert "--out" in caught.value.hint
    assert path.read_text(encoding="utf-8") == "a = 'ü'\n"
    with pytest.raises(ConfigError, match="cannot be written"):
        write(tmp_path / "missing" / "bronze.toml", "")
