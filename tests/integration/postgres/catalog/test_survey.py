"""The survey: what it reports of tables, without values of their rows."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psycopg
import pytest

from bronze.postgres.catalog import relations as catalog
from bronze.postgres.catalog import samples, survey
from bronze.postgres.catalog.pii import PersonalKind, kind_by_content, kind_by_name
from bronze.postgres.catalog.survey import Activity, Survey
from bronze.postgres.connection import connect
from tests.conftest import Source
from tests.support.features import has
from tests.support.proxy import until

BIG = "repeat('x', 900)"
BIG_ROWS = 11_000


def surveyed(source: Source, *schemas: str) -> dict[str, Survey]:
    """The survey of every relation, by its name."""
    with connect.connect(source.settings().origin("test")) as connection:
        found = survey.relations_with_sizes(connection, schemas or ("public",))
        return {s.relation.name: s for s in survey.survey_relations(connection, found)}


def execute(source: Source, *statements: str) -> None:
    """Runs statements and waits until PostgreSQL's statistics include them."""
    with psycopg.connect(source.dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
        if has("pg_stat_force_next_flush"):
            connection.execute("SELECT pg_stat_force_next_flush()")
            connection.execute("SELECT 1")
            return
    # The statistics collector of older servers has all of it once it writes after this time.
    ((ended,),) = source.execute("SELECT clock_timestamp() + interval '0.5 s'")
    written = "SELECT pg_stat_get_snapshot_timestamp() > %s"
    until(lambda: source.execute(written, ended) == [(True,)])


def big(name: str, columns: str, values: str) -> str:
    """The SQL that creates and analyses a table that is not small."""
    return (
        f"CREATE TABLE {name} (id int PRIMARY KEY, filler text, {columns});"
        f" INSERT INTO {name} SELECT i, {BIG}, {values} FROM generate_series(1, {BIG_ROWS}) i;"
        f" ANALYZE {name}"
    )


def test_rows_size_and_activity_are_those_of_postgresqls_statistics(source: Source) -> None:
    """An analysed table has the estimate, the bytes of heap and TOAST, and the rows written."""
    execute(
        source,
        "CREATE TABLE t (id int PRIMARY KEY, doc text)",
        "ALTER TABLE t ALTER doc SET STORAGE EXTERNAL",
        "INSERT INTO t SELECT i, repeat('x', 5000) FROM generate_series(1, 100) i",
        "UPDATE t SET id = id + 1000 WHERE id <= 10",
        "DELETE FROM t WHERE id > 1000",
        "ANALYZE t",
    )
    found = surveyed(source)["t"]
    assert found.rows == 90
    assert found.size > 100 * 5000
    assert found.activity == Activity(inserted=100, updated=10, deleted=10)


def test_rows_of_a_table_that_was_never_analysed_are_its_live_tuples(source: Source) -> None:
    """Without an estimate of the planner, n_live_tup is used; an empty table has no rows."""
    execute(
        source,
        "CREATE TABLE t (id int)",
        "ALTER TABLE t SET (autovacuum_enabled = off)",
        "INSERT INTO t SELECT generate_series(1, 70)",
        "CREATE TABLE empty (id int)",
        "CREATE VIEW v AS SELECT * FROM t",
    )
    found = surveyed(source)
    assert (found["t"].rows, found["empty"].rows, found["v"].rows) == (70, 0, -1)


def test_partitions_count_for_their_parent(source: Source) -> None:
    """A partitioned table has the writes and bytes of its partitions."""
    execute(
        source,
        "CREATE TABLE p (id int PRIMARY KEY, t text) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200)",
        "INSERT INTO p SELECT i, 'x' FROM generate_series(0, 199) i",
    )
    found = surveyed(source)
    assert list(found) == ["p"]
    assert found["p"].activity.inserted == 200
    assert found["p"].size == 2 * 8192


def test_cursors_are_ranked_best_first(source: Source) -> None:
    """Names of updates before those of inserts, NOT NULL and indexed first, parts of a row last."""
    source.execute(
        """CREATE TABLE orders (
            created_at timestamptz NOT NULL, "insertedOn" date,
            price_updated_at timestamptz NOT NULL, last_update timestamp,
            changed_on date NOT NULL, "ModifiedDate" timestamptz NOT NULL,
            lastmodified timestamptz, order_updated_at timestamptz NOT NULL)"""
    )
    source.execute("CREATE INDEX ON orders (order_updated_at)")
    found = surveyed(source)["orders"].cursors
    assert [cursor.column for cursor in found] == [
        "order_updated_at",
        "ModifiedDate",
        "changed_on",
        "lastmodified",
        "last_update",
        "created_at",
        "insertedOn",
        "price_updated_at",
    ]
    assert [cursor.sees for cursor in found[4:6]] == ["updates", "inserts"]
    assert (found[0].indexed, found[0].not_null, found[0].whole) == (True, True, True)
    assert not found[-1].whole


def test_only_columns_with_times_of_writes_are_cursors(source: Source) -> None:
    """Other types, other dates and planned times are not cursors; domains are."""
    source.execute("CREATE DOMAIN moment AS timestamptz")
    source.execute(
        """CREATE TABLE t (updated_at text, update_count int, next_update timestamptz,
            birth_date date, ordered_at timestamptz, gender date, geaendert_am moment,
            "angelegtAm" timestamp)"""
    )
    found = surveyed(source)["t"].cursors
    assert [cursor.column for cursor in found] == ["geaendert_am", "angelegtAm"]


def test_a_relation_without_a_key_gets_full_refresh(source: Source) -> None:
    """Views and tables without a key are proposed for full refresh, whatever their size."""
    execute(
        source,
        "CREATE TABLE t (v text, updated_at timestamptz)",
        f"INSERT INTO t SELECT {BIG}, now() FROM generate_series(1, {BIG_ROWS})",
        "CREATE VIEW v AS SELECT 1 AS one",
        "CREATE MATERIALIZED VIEW m AS SELECT 1 AS one",
    )
    found = surveyed(source)
    assert {s.pattern for s in found.values()} == {"full_refresh"}
    assert found["t"].reason == "it has no key"
    assert found["v"].reason == "a view has no key"
    assert found["m"].reason == "a materialized view has no key"


def test_a_small_table_gets_full_refresh(source: Source) -> None:
    """Even one with many updates, a key and a cursor."""
    execute(
        source,
        "CREATE TABLE t (id int PRIMARY KEY, updated_at timestamptz)",
        "INSERT INTO t SELECT i, now() FROM generate_series(1, 2000) i",
        "UPDATE t SET updated_at = now()",
    )
    found = surveyed(source)["t"]
    assert (found.pattern, found.reason, found.hot) == ("full_refresh", "it is small", True)
    assert found.cursors[0].column == "updated_at"


CHANGING = [
    ("updated_at timestamptz", "UPDATE {} SET v = 2 WHERE id < 5000", "streaming", ""),
    ("updated_at timestamptz", "UPDATE {} SET v = 2 WHERE id < 50", "micro_batch", "updated_at"),
    ("updated_at timestamptz", "", "batch", "updated_at"),
    ("created_at timestamptz", "", "batch", "created_at"),
    ("created_at timestamptz", "DELETE FROM {} WHERE id < 50", "full_refresh", ""),
    ("price_updated_at timestamptz", "", "full_refresh", ""),
    ("other timestamptz", "", "full_refresh", ""),
]


@pytest.mark.soak
def test_the_pattern_of_a_big_table_follows_its_changes(source: Source) -> None:
    """Many updates: streaming; a cursor is used where it shows the changes that there are."""
    tables = {f"t{i}": case for i, case in enumerate(CHANGING)}
    for name, (columns, write, *_) in tables.items():
        execute(source, big(name, f"v int, {columns}", "1, now()"), write.format(name) or "SELECT")
    found = surveyed(source)
    for name, (columns, write, pattern, cursor) in tables.items():
        assert (found[name].pattern, found[name].cursor) == (pattern, cursor), (columns, write)
        assert found[name].hot == (pattern == "streaming"), (columns, write)


@pytest.mark.parametrize(
    ("table", "column", "type_name", "kind"),
    [
        ("t", "email", "text", "e-mail"),
        ("t", "e_mail_address", "varchar", "e-mail"),
        ("t", "EmailAddress", "text", "e-mail"),
        ("t", "email_verified", "bool", None),
        ("t", "email_type", "text", None),
        ("t", "email_sent_at", "timestamptz", None),
        ("t", "client_ip", "inet", "IP address"),
        ("t", "ip_address", "text", "IP address"),
        ("t", "shipping", "text", None),
        ("t", "creditCardNumber", "int8", "card"),
        ("t", "discard", "text", None),
        ("t", "IBAN", "text", "bank account"),
        ("t", "ssn", "text", "identity number"),
        ("t", "tax_id", "int8", "identity number"),
        ("t", "password_hash", "bytea", "credential"),
        ("t", "home_phone", "text", "phone"),
        ("t", "contact_number", "text", "phone"),
        ("t", "Telefonnummer", "text", "phone"),
        ("t", "telefone", "text", "phone"),
        ("t", "teléfono", "text", "phone"),
        ("t", "mobile", "int8", "phone"),
        ("t", "hotel", "text", None),
        ("t", "date_of_birth", "date", "birth"),
        ("t", "Geburtsdatum", "date", "birth"),
        ("t", "customer_name", "text", "person's name"),
        ("t", "CUSTOMERNAME", "text", "person's name"),
        ("t", "prénom", "text", "person's name"),
        ("t", "nachname", "text", "person's name"),
        ("t", "product_name", "text", None),
        ("t", "name", "text", None),
        ("customers", "name", "text", "person's name"),
        ("Kunden", "name", "text", "person's name"),
        ("customer_segments", "name", "text", None),
        ("t", "address1", "text", "address"),
        ("t", "Straße", "text", "address"),
        ("t", "postal_code", "varchar", "address"),
        ("t", "address_id", "int4", None),
        ("t", "address_id", "uuid", None),
        ("t", "gender", "bpchar", "sensitive"),
        ("t", "salary", "numeric", "sensitive"),
        ("t", "🙂", "text", None),
    ],
)
def test_personal_data_is_detected_by_column_name(
    table: str, column: str, type_name: str, kind: PersonalKind | None
) -> None:
    """In several languages and spellings; not where the type cannot contain such data."""
    assert kind_by_name(table, column, type_name) == kind


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["ann@example.com", "bob.b+x@mail.example.org"], "e-mail"),
        (["nothing"] * 60 + ["call ann@example.com first"], "e-mail"),
        (['{"to": "jürgen@müller.example"}'], "e-mail"),
        (["@home", "a@b", "5 @ 3.50"], None),
        (["192.168.0.1", "8.8.8.8", ""], "IP address"),
        (["10.0.0.0/16"], None),
        (["300.1.1.1"], None),
        (["DE89 3704 0044 0532 0130 00"], "bank account"),
        (["GB82WEST12345698765432"], "bank account"),
        (["DE89370400440532013001"], None),
        (["4111 1111 1111 1111", "5500-0000-0000-0004"], "card"),
        (["4111 1111 1111 1112"], None),
        (["+49 30 901820", "030/901820", "(0)30-901820"], "phone"),
        (["555-123-4567"], "phone"),
        (["2024-05-01", "01.05.2024", "01/05/2024"], None),
        (["2024-000123", "2024-000124"], None),
        (["0000001234", "0000001235"], None),
        (["", "  "], None),
        ([], None),
    ],
)
def test_personal_data_is_detected_by_content(
    values: Sequence[str], kind: PersonalKind | None
) -> None:
    """Values in the form of personal data are detected, similar ones are not."""
    assert kind_by_content(values) == kind


def test_personal_columns_are_reported_without_their_values(source: Source) -> None:
    """The survey has the kind of data and the signs of it, and no sampled value."""
    source.execute(
        'CREATE TABLE t (id int, email text, "100% {note}" text, refs text[], login_from inet,'
        " doc jsonb, code text)"
    )
    source.execute(
        "INSERT INTO t SELECT i, 'a' || i || '@secret.example', 'to b@secret.example',"
        " ARRAY['+44 20 7946 0000'], '203.0.113.9', '{\"m\": \"c@secret.example\"}', 'A' || i"
        " FROM generate_series(1, 5) i"
    )
    found = surveyed(source)["t"]
    assert [(p.column, p.kind, p.signs) for p in found.personal] == [
        ("email", "e-mail", ("name", "content")),
        ("100% {note}", "e-mail", ("content",)),
        ("login_from", "IP address", ("content",)),
        ("doc", "e-mail", ("content",)),
    ]
    assert found.sampled
    assert "secret" not in repr(found)
    assert "203.0" not in repr(found)


def test_big_tables_are_sampled(source: Source) -> None:
    """The sample is of pages from all over the table, and finds what only some rows have."""
    source.execute(big("t", "v text", "CASE WHEN i > 3000 THEN i || '@mail.example' END"))
    assert [p.column for p in surveyed(source)["t"].personal] == ["v"]


def test_tables_are_sampled_together(source: Source) -> None:
    """Each by its own columns and rows; where one cannot be read, the others are by themselves."""
    source.execute("CREATE TABLE a (x text, y text); INSERT INTO a VALUES ('1', 'a@b.example')")
    source.execute("CREATE TABLE b (y text); INSERT INTO b VALUES ('c@d.example'), (NULL)")
    source.execute("CREATE TABLE c (x text, y text, z int); INSERT INTO c VALUES ('e@f.example')")
    source.execute("CREATE TABLE d (y text)")
    found = {name: [p.column for p in s.personal] for name, s in surveyed(source).items()}
    assert found == {"a": ["y"], "b": ["y"], "c": ["x"], "d": []}
    assert all(s.sampled for s in surveyed(source).values())
    many = [f"CREATE TABLE t{n} (a text, b text, c text); " for n in range(30)]
    source.execute("".join(many) + "INSERT INTO t29 VALUES ('x', 'g@h.example', 'y')")
    assert [p.column for p in surveyed(source)["t29"].personal] == ["b"]


def test_a_relation_that_cannot_be_read_in_time_is_surveyed_without_a_sample(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locked tables, and views that fail, write or take long."""
    shorter = "SET LOCAL statement_timeout = '1s'; SET LOCAL lock_timeout = '300ms'"
    monkeypatch.setattr(samples, "_TIMEOUTS", shorter)
    source.execute("CREATE TABLE locked (email text)")
    source.execute("CREATE SEQUENCE s")
    source.execute("CREATE VIEW broken AS SELECT (1 / 0)::text AS email")
    source.execute("CREATE VIEW writing AS SELECT nextval('s')::text AS email")
    source.execute("CREATE VIEW slow AS SELECT pg_sleep(100)::text AS email")
    source.execute("CREATE TABLE fine (email text)")
    with (
        connect.connect(source.settings().origin("test")) as connection,
        psycopg.connect(source.dsn) as other,
    ):
        relations = catalog.relations(connection, ["public"])
        other.execute("LOCK TABLE locked")
        began = time.monotonic()
        found = survey.survey_relations(connection, relations)
    assert time.monotonic() - began < 10
    assert {s.relation.name for s in found if s.sampled} == {"fine"}
    assert all(s.personal[0].signs == ("name",) for s in found)
    assert source.execute("SELECT is_called FROM s") == [(False,)]


def test_a_lost_connection_is_an_error(source: Source) -> None:
    """It is not treated like a relation that cannot be read."""
    source.execute("CREATE VIEW v AS SELECT pg_terminate_backend(pg_backend_pid())::text AS t")
    with (
        connect.connect(source.settings().origin("test")) as connection,
        pytest.raises(psycopg.OperationalError),
    ):
        survey.survey_relations(connection, catalog.relations(connection, ["public"]))


def test_relations_of_an_extension_are_marked(source: Source) -> None:
    """The survey of an extension's relation names the extension, and samples no rows."""
    source.execute("CREATE EXTENSION pg_stat_statements")
    source.execute("CREATE TABLE mine (t text)")
    found = surveyed(source)
    assert (found["pg_stat_statements"].extension, found["mine"].extension) == (
        "pg_stat_statements",
        "",
    )
    assert not found["pg_stat_statements"].sampled
