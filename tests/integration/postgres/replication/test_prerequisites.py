"""Missing prerequisites of streaming are reported, with remedies that suffice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bronze.demo.server import running
from bronze.errors import SourceRefused
from bronze.model.locations import Origin
from bronze.postgres.catalog import relations as catalog
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.connection import connect
from bronze.postgres.connection.connect import Connection
from bronze.postgres.replication import prerequisites, publication, slot
from bronze.postgres.replication.prerequisites import MissingPrerequisite
from bronze.postgres.statement import quoted
from tests.conftest import FAST, Source
from tests.support.features import has, since

OPTIONS = "WITH (publish_via_partition_root = true)"
if has("generated columns in publications"):
    OPTIONS = "WITH (publish_via_partition_root = true, publish_generated_columns = stored)"
_VIRTUAL = ", v int GENERATED ALWAYS AS (id) VIRTUAL" if has("virtual generated columns") else ""
WITH_GENERATED = f"""
CREATE TABLE a (id int PRIMARY KEY, s int GENERATED ALWAYS AS (id) STORED{_VIRTUAL})
"""


@contextmanager
def logged_in(source: Source, role: str) -> Iterator[Connection]:
    """A connection of another role."""
    origin = Origin("test", make_conninfo(source.dsn, user=role))
    with connect.connect(origin) as connection:
        yield connection


def tables(connection: Connection, *names: str) -> list[Relation]:
    """The relations of these names, in their order; all of schema public if no name is given."""
    by_name = {r.name: r for r in catalog.relations(connection, ["public"])}
    return [by_name[name] for name in names or by_name]


def problems_of(
    connection: Connection, *names: str, keys: Mapping[str, Sequence[str]] | None = None
) -> tuple[MissingPrerequisite, ...]:
    """The missing prerequisites of the tables, with publication "p" and slot "s"."""
    return prerequisites.missing_prerequisites(
        connection, tables(connection, *names), keys or {}, "p", "s"
    )


def mend(source: Source, problems: Sequence[MissingPrerequisite]) -> None:
    """Runs the remedies, as the superuser."""
    for problem in problems:
        source.execute(problem.mend)


def test_tables_with_keys_in_their_replica_identity_meet_all_prerequisites(
    source: Source, connection: Connection
) -> None:
    """With a primary key, or with another key under REPLICA IDENTITY FULL."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (x int, y int UNIQUE)")
    source.execute("ALTER TABLE b REPLICA IDENTITY FULL")
    assert problems_of(connection, keys={"public.a": ["id"], "public.b": ["y"]}) == ()


def test_the_check_changes_nothing(source: Source, connection: Connection) -> None:
    """It creates neither publication nor slot."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    problems_of(connection)
    assert source.execute("SELECT count(*) FROM pg_publication") == [(0,)]
    assert slot.find(connection, "s") is None


_DISTINCT = "NULLS NOT DISTINCT" if has("NULLS NOT DISTINCT") else ""
IDENTITIES = [
    # columns, replica identities, columns of the identity, key, problem (words), remedy (words)
    ("id int PRIMARY KEY, x int", [], ("id",), ["id"], "", ""),
    ("b int, a int, PRIMARY KEY (a, b)", [], ("a", "b"), ["b"], "", ""),
    ("id int PRIMARY KEY, x int", [], ("id",), ["x"], "column x is not", "FULL"),
    (
        "id int PRIMARY KEY, x int NOT NULL UNIQUE",
        [],
        ("id",),
        ["x"],
        "column x is not",
        'USING INDEX "{t}_x_key"',
    ),
    ("id int, x int", [], (), [], "no replica identity", "FULL"),
    ("id int, x int UNIQUE", [], (), ["x"], "no replica identity", "FULL"),
    ("id int PRIMARY KEY DEFERRABLE", [], (), ["id"], "no replica identity", "FULL"),
    ("id int PRIMARY KEY, x int", ["FULL"], ("id", "x"), ["id", "x"], "", ""),
    (
        "id int PRIMARY KEY, x int",
        ["NOTHING"],
        (),
        ["id"],
        "no replica identity",
        "REPLICA IDENTITY DEFAULT",
    ),
    (
        "id int PRIMARY KEY, x int NOT NULL UNIQUE",
        ["USING INDEX {t}_x_key"],
        ("x",),
        ["id"],
        "column id is not",
        "REPLICA IDENTITY DEFAULT",
    ),
    ("id int PRIMARY KEY, x int NOT NULL UNIQUE", ["USING INDEX {t}_x_key"], ("x",), ["x"], "", ""),
    (
        f"id int, x int, y int, UNIQUE {_DISTINCT} (x)",
        [],
        (),
        ["x", "y"],
        "no replica identity",
        "FULL",
    ),
    (
        "id int PRIMARY KEY, x int, y int",
        [],
        ("id",),
        ["id", "y", "x"],
        "columns y, x are not",
        "FULL",
    ),
]


def test_the_key_must_be_in_the_replica_identity(source: Source, connection: Connection) -> None:
    """Each identity has its columns; the remedy, run as it is, suffices."""
    cases = {f"public.t{number}": case for number, case in enumerate(IDENTITIES)}
    for number, (columns, changes, *_) in enumerate(IDENTITIES):
        source.execute(f"CREATE TABLE t{number} ({columns})")
        for change in changes:
            identity = change.replace("{t}", f"t{number}")
            source.execute(f"ALTER TABLE t{number} REPLICA IDENTITY {identity}")
    keys = {label: case[3] for label, case in cases.items()}
    has = {label: case[2] for label, case in cases.items()}
    assert publication.replica_identities(connection, tables(connection)) == has
    problems = problems_of(connection, keys=keys)
    # The first problem of each table.
    first = {problem.table: problem for problem in reversed(problems)}
    assert set(first) <= set(cases)
    wrong = {}
    for label, (*_, what, remedy) in cases.items():
        problem = first.get(label)
        remedy = remedy.replace("{t}", label.removeprefix("public."))
        if what:
            good = problem is not None and what in problem.what and remedy in problem.mend
        else:
            good = problem is None
        if not good:
            wrong[label, what] = problem
    assert wrong == {}
    mend(source, problems)
    assert problems_of(connection, keys=keys) == ()


def test_a_key_that_partitions_may_share_needs_replica_identity_full(
    source: Source, connection: Connection
) -> None:
    """A primary key of each partition is unique within it only; one of the root is enough."""
    for name, own in (("a", ""), ("b", ", PRIMARY KEY (id, d)")):
        source.execute(f"CREATE TABLE {name} (id int NOT NULL, d int{own}) PARTITION BY LIST (d)")
        for number in (1, 2):
            source.execute(
                f"CREATE TABLE {name}_{number} PARTITION OF {name} FOR VALUES IN ({number})"
            )
    source.execute("ALTER TABLE a_1 ADD PRIMARY KEY (id); ALTER TABLE a_2 ADD PRIMARY KEY (id)")
    keys = {"public.a": ["id"], "public.b": ["id"]}
    (problem,) = problems_of(connection, "a", "b", keys=keys)
    assert problem.table == "public.a"
    assert "rows of several partitions may share the key id" in problem.what
    assert problem.mend.count("REPLICA IDENTITY FULL") == 2
    mend(source, [problem])
    assert problems_of(connection, "a", "b", keys=keys) == ()
    identifying = publication.identifying_columns_by_table(
        connection, [(r, ["id"]) for r in tables(connection, "a", "b")]
    )
    assert sorted(identifying.values()) == [("id", "d")] * 2


@pytest.mark.parametrize(
    ("columns", "key", "identifying"),
    [
        ("id int PRIMARY KEY, x int NOT NULL UNIQUE", ("id",), ("id",)),
        ("id int PRIMARY KEY, x int NOT NULL UNIQUE", ("x",), ("x",)),
        ("id int PRIMARY KEY, x int UNIQUE", ("x",), ("id", "x")),
        ("id int PRIMARY KEY, x int NOT NULL UNIQUE DEFERRABLE", ("x",), ("id", "x")),
        ("id int PRIMARY KEY DEFERRABLE, x int", ("id",), ("id", "x")),
        ("id int PRIMARY KEY, x int", ("x", "id"), ("x", "id")),
    ],
)
def test_a_stream_identifies_rows_by_an_immediate_key_or_by_all_columns(
    source: Source,
    connection: Connection,
    columns: str,
    key: tuple[str, ...],
    identifying: tuple[str, ...],
) -> None:
    """By a key that PostgreSQL enforces row by row; otherwise by full old rows."""
    source.execute(f"CREATE TABLE t ({columns}); ALTER TABLE t REPLICA IDENTITY FULL")
    (columns_found,) = publication.identifying_columns_by_table(
        connection, [(r, key) for r in tables(connection)]
    ).values()
    assert columns_found == identifying


def test_a_published_table_without_replica_identity_refuses_updates_and_deletes(
    source: Source, connection: Connection
) -> None:
    """That is why it is a problem even of a table without a key."""
    source.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    (problem,) = problems_of(connection)
    assert "UPDATEs and DELETEs fail" in problem.what
    publication.publish(connection, "p", tables(connection))
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        source.execute("DELETE FROM t")
    source.execute(problem.mend)
    source.execute("DELETE FROM t")


def test_a_replica_identity_of_a_dropped_index_is_empty(
    source: Source, connection: Connection
) -> None:
    """As with REPLICA IDENTITY NOTHING."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, x int NOT NULL)")
    source.execute("CREATE UNIQUE INDEX ix ON t (x)")
    source.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX ix; DROP INDEX ix")
    assert publication.replica_identities(connection, tables(connection)) == {"public.t": ()}
    assert problems_of(connection, keys={"public.t": ["id"]})


@since("virtual generated columns")
def test_replica_identity_full_with_a_virtual_column_is_a_problem(
    source: Source, connection: Connection
) -> None:
    """Once published, UPDATE and DELETE fail; the remedy is an index, if there is one."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id + 1) VIRTUAL);"
        " ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1)"
    )
    (problem,) = problems_of(connection, keys={"public.t": ["id"]})
    assert "virtual generated column v: once published" in problem.what
    publication.publish(connection, "p", tables(connection))
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        source.execute("DELETE FROM t")
    mend(source, [problem])
    source.execute("DELETE FROM t")
    assert problems_of(connection, keys={"public.t": ["id"]}) == ()
    source.execute("ALTER TABLE t DROP CONSTRAINT t_pkey")
    (problem,) = problems_of(connection, keys={"public.t": ["id"]})
    assert "FULL" not in problem.mend
    assert 'CREATE UNIQUE INDEX ON "public"."t" ("id")' in problem.mend


PARTITIONED = """
CREATE TABLE r (id int NOT NULL, x int NOT NULL, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (10);
CREATE TABLE r2 PARTITION OF r FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
CREATE TABLE r21 PARTITION OF r2 FOR VALUES FROM (10) TO (20)
"""


def test_each_partition_has_its_own_replica_identity(
    source: Source, connection: Connection
) -> None:
    """The table has the columns that all partitions have; one without the key is named."""
    source.execute(PARTITIONED)
    keys = {"public.r": ["id"]}
    assert publication.replica_identities(connection, tables(connection)) == {"public.r": ("id",)}
    assert problems_of(connection, keys=keys) == ()
    source.execute("ALTER TABLE r1 REPLICA IDENTITY FULL")
    assert publication.replica_identities(connection, tables(connection)) == {"public.r": ("id",)}
    source.execute("ALTER TABLE r21 REPLICA IDENTITY FULL; ALTER TABLE r REPLICA IDENTITY NOTHING")
    assert publication.replica_identities(connection, tables(connection)) == {
        "public.r": ("id", "x")
    }
    assert problems_of(connection, keys=keys) == ()
    source.execute("ALTER TABLE r21 REPLICA IDENTITY NOTHING")
    (nothing,) = problems_of(connection, keys=keys)
    assert "Table public.r: its partition public.r21 has no replica identity" in nothing.what
    assert nothing.table == "public.r"
    source.execute("CREATE UNIQUE INDEX other ON r21 (x)")
    source.execute("ALTER TABLE r21 REPLICA IDENTITY USING INDEX other")
    assert publication.replica_identities(connection, tables(connection)) == {"public.r": ("x",)}
    (other,) = problems_of(connection, keys=keys)
    assert "public.r21: the key's column id is not" in other.what
    assert other.mend == 'ALTER TABLE "public"."r21" REPLICA IDENTITY DEFAULT'
    mend(source, [other])
    assert problems_of(connection, keys=keys) == ()


def test_a_partitioned_table_without_partitions_has_its_own_replica_identity(
    source: Source, connection: Connection
) -> None:
    """Later partitions get it."""
    source.execute("CREATE TABLE r (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    assert publication.replica_identities(connection, tables(connection)) == {"public.r": ("id",)}
    assert problems_of(connection, keys={"public.r": ["id"]}) == ()


def test_partitions_that_are_not_logged_are_named(source: Source, connection: Connection) -> None:
    """Unlogged ones and foreign tables."""
    source.execute(PARTITIONED)
    source.execute("ALTER TABLE r1 SET UNLOGGED")
    source.execute("CREATE EXTENSION postgres_fdw")
    source.execute("CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw")
    source.execute("CREATE TABLE q (id int) PARTITION BY RANGE (id)")
    source.execute("CREATE FOREIGN TABLE q1 PARTITION OF q FOR VALUES FROM (20) TO (30) SERVER far")
    foreign, unlogged = problems_of(connection, "q", "r")
    assert "public.q: its partition public.q1 is a foreign table" in foreign.what
    assert "public.r: its partition public.r1 is unlogged" in unlogged.what
    assert unlogged.mend == 'ALTER TABLE "public"."r1" SET LOGGED'


def test_a_table_with_inheritance_children_is_not_streamed(
    source: Source, connection: Connection
) -> None:
    """A publication of the parent does not include its child."""
    source.execute("CREATE TABLE old (id int PRIMARY KEY)")
    source.execute("CREATE TABLE young (PRIMARY KEY (id)) INHERITS (old)")
    (problem,) = problems_of(connection, "old", "young")
    assert "public.old has inheritance children" in problem.what
    assert "public.old, public.young" in problem.mend
    assert problem.table == "public.old"
    publication.publish(connection, "p", tables(connection, "old"))
    assert source.execute("SELECT tablename FROM pg_publication_tables") == [("old",)]


def test_views_foreign_and_unlogged_tables_are_not_streamed(
    source: Source, connection: Connection
) -> None:
    """The problem says what each is."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    source.execute("CREATE VIEW b AS SELECT * FROM a")
    source.execute("CREATE MATERIALIZED VIEW c AS SELECT * FROM a")
    source.execute("CREATE EXTENSION postgres_fdw")
    source.execute("CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw")
    source.execute("CREATE FOREIGN TABLE d (id int) SERVER far")
    source.execute("CREATE UNLOGGED TABLE e (id int PRIMARY KEY)")
    problems = {w.table: w for w in problems_of(connection, "a", "b", "c", "d", "e")}
    says = {"b": "a view", "c": "a materialized view", "d": "a foreign table", "e": "unlogged"}
    assert set(problems) == {f"public.{name}" for name in says}
    for name, words in says.items():
        assert f"Table public.{name} is {words}" in problems[f"public.{name}"].what
    mend(source, [problems["public.e"]])
    assert problems_of(connection, "e") == ()


def test_a_temporary_table_is_not_streamed(source: Source, connection: Connection) -> None:
    """Other sessions cannot read it."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    (relation,) = tables(connection)
    connection.execute("CREATE TEMPORARY TABLE t (id int PRIMARY KEY)")
    row: Any = connection.execute("SELECT 't'::regclass::oid::int8").fetchone()
    limited = replace(relation, oid=row[0], parts=(row[0],), schema="pg_temp", name="t")
    (problem,) = prerequisites.missing_prerequisites(connection, [limited], {}, "p", "s")
    assert "Table pg_temp.t is temporary" in problem.what.replace(": its partition", "")


def test_a_role_without_privileges_gets_all_statements_that_it_needs(
    source: Source, connection: Connection, login: str
) -> None:
    """REPLICATION, SELECT and the publication are missing; the remedies suffice."""
    source.execute(f"ALTER ROLE {login} NOREPLICATION")
    source.execute('CREATE TABLE "a%s {b}" (id int PRIMARY KEY)')
    source.execute(PARTITIONED)
    with logged_in(source, login) as limited:
        problems = problems_of(limited)
        whats = [w.what for w in problems]
        assert whats[0] == f"Role {login} does not have the privilege REPLICATION."
        assert problems[0].mend == f'ALTER ROLE "{login}" REPLICATION'
        assert f"Role {login} may not read table public.a%s {{b}}." in whats
        assert f"Role {login} may not read table public.r." in whats
        assert "Publication p does not exist" in whats[-1]
        assert problems[-1].mend == (
            'CREATE PUBLICATION "p" FOR TABLE ONLY "public"."a%s {b}", ONLY "public"."r" ' + OPTIONS
        )
        with pytest.raises(SourceRefused, match="permission denied") as caught:
            publication.publish(limited, "p", tables(limited))
        assert problems[-1].mend in caught.value.hint
        mend(source, problems)
        assert problems_of(limited) == ()
        publication.publish(limited, "p", tables(limited))


def test_membership_in_rds_replication_allows_replication(
    source: Source, connection: Connection, login: str
) -> None:
    """On Amazon RDS, where roles cannot have REPLICATION, the remedy is the membership."""
    source.execute(f"ALTER ROLE {login} NOREPLICATION")
    source.execute("CREATE ROLE rds_replication")
    try:
        with logged_in(source, login) as limited:
            (problem,) = prerequisites.missing_prerequisites(limited, [], {}, "p", "s")
            assert problem.mend == f'GRANT rds_replication TO "{login}"'
            mend(source, [problem])
            assert prerequisites.missing_prerequisites(limited, [], {}, "p", "s") == ()
    finally:
        source.execute("DROP ROLE rds_replication")


def test_publishing_needs_owned_tables_and_create_on_the_database(
    source: Source, connection: Connection, login: str
) -> None:
    """Neither alone is enough."""
    database = conninfo_to_dict(source.dsn)["dbname"]
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    source.execute(f"ALTER TABLE a OWNER TO {login}; GRANT SELECT ON b TO {login}")
    with logged_in(source, login) as limited:
        assert [w.mend[:18] for w in problems_of(limited, "a")] == ["CREATE PUBLICATION"]
        source.execute(f"GRANT CREATE ON DATABASE {database} TO {login}")
        assert problems_of(limited, "a") == ()
        assert [w.mend[:18] for w in problems_of(limited, "a", "b")] == ["CREATE PUBLICATION"]
        publication.publish(limited, "p", tables(limited, "a"))
        (problem,) = problems_of(limited, "a", "b")
        assert problem.mend == 'ALTER PUBLICATION "p" ADD TABLE ONLY "public"."b"'
        mend(source, [problem])
        assert problems_of(limited, "a", "b") == ()


ADEQUATE = [
    f"FOR TABLE a, r {OPTIONS}",
    f"FOR ALL TABLES {OPTIONS}",
]
if has("schemas in publications"):
    ADEQUATE.append(f"FOR TABLES IN SCHEMA public {OPTIONS}")
if has("column lists of publications"):
    stored = ", s" if has("generated columns in publications") else ""
    ADEQUATE.append(f"FOR TABLE a (id{stored}), r {OPTIONS}")


def test_an_adequate_publication_of_another_role_is_used(
    source: Source, connection: Connection, login: str
) -> None:
    """However it includes the tables, nothing is missing, and `publish` does not change it."""
    source.execute(PARTITIONED)
    source.execute(WITH_GENERATED)
    source.execute(f"GRANT SELECT ON a, r TO {login}")
    problems = {}
    with logged_in(source, login) as limited:
        for made in ADEQUATE:
            source.execute(f"CREATE PUBLICATION p {made}")
            problems[made] = problems_of(limited, keys={"public.a": ["id"], "public.r": ["id"]})
            if not problems[made]:
                publication.publish(limited, "p", tables(limited))
            source.execute("DROP PUBLICATION p")
    assert problems == dict.fromkeys(ADEQUATE, ())


INADEQUATE = [
    ("FOR TABLE a WITH (publish_via_partition_root = true)", ["ADD TABLE ONLY", '"r"']),
    ("FOR TABLE a, r", ["SET (publish_via_partition_root = true)"]),
    ("FOR ALL TABLES WITH (publish = 'insert')", ["publish = 'insert, update, delete, truncate'"]),
    (
        "FOR TABLE a, r1, r21 WITH (publish_via_partition_root = true)",
        ['ADD TABLE ONLY "public"."r"'],
    ),
]


def test_missing_tables_and_options_of_another_roles_publication_are_reported(
    source: Source, connection: Connection, login: str
) -> None:
    """The remedy suffices."""
    source.execute(PARTITIONED)
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    source.execute(f"GRANT SELECT ON a, r TO {login}")
    with logged_in(source, login) as limited:
        for made, does in INADEQUATE:
            source.execute(f"CREATE PUBLICATION p {made}")
            (problem,) = problems_of(limited)
            assert "Publication p lacks tables or options" in problem.what, made
            assert [words for words in does if words not in problem.mend] == [], made
            with pytest.raises(SourceRefused):
                publication.publish(limited, "p", tables(limited))
            mend(source, [problem])
            assert problems_of(limited) == (), made
            publication.publish(limited, "p", tables(limited))
            source.execute("DROP PUBLICATION p")


OF_FILTERS = since("row filters of publications", "column lists of publications")
LEFT_OUT = {
    "a (id)": "leaves the columns x, y (column list) of table public.a out",
    "a WHERE (id > 3)": "leaves some rows (WHERE) of table public.a out",
    "a (id, x) WHERE (id > 3)": "some rows (WHERE) and the column y (column list)",
}


@OF_FILTERS
def test_a_row_filter_or_column_list_of_a_publication_is_reported(
    source: Source, connection: Connection
) -> None:
    """Even to the owner; `publish` does not remove it."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY, x int, y int)")
    for made, says in LEFT_OUT.items():
        source.execute(f"CREATE PUBLICATION p FOR TABLE {made}")
        (problem,) = problems_of(connection)
        assert says in problem.what
        publication.publish(connection, "p", tables(connection))
        assert problems_of(connection) == (problem,), made
        mend(source, [problem])
        assert problems_of(connection) == (), made
        source.execute("DROP PUBLICATION p")


@OF_FILTERS
def test_a_row_filter_of_a_partitioned_table_is_reported(
    source: Source, connection: Connection
) -> None:
    """It is a filter of the root, under whose name the changes are streamed."""
    source.execute(PARTITIONED)
    source.execute("CREATE PUBLICATION p FOR TABLE r WHERE (id > 3) " + OPTIONS)
    (problem,) = problems_of(connection)
    assert "some rows (WHERE) of table public.r" in problem.what


@since("virtual generated columns")
def test_a_virtual_column_cannot_be_a_key(source: Source, connection: Connection) -> None:
    """Its values are never streamed."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id) VIRTUAL)")
    problems = problems_of(connection, keys={"public.a": ["v"]})
    assert "the key's column v is generated" in problems[-1].what


@contextmanager
def started(data: Path, settings: Mapping[str, str]) -> Iterator[Connection]:
    """A connection to a server that this test starts."""
    with (
        running(data, settings={**FAST, "shared_buffers": "16MB", **settings}) as server,
        connect.connect(Origin("test", server.dsn())) as connection,
    ):
        yield connection


def server_problems(connection: Connection, name: str = "s") -> tuple[MissingPrerequisite, ...]:
    """The missing prerequisites of the server."""
    return prerequisites.missing_prerequisites(connection, [], {}, "p", name)


@pytest.mark.soak
def test_wal_level_and_limits_of_the_server_are_checked(tmp_path: Path) -> None:
    """The remedies give a server with enough slots and WAL senders."""
    few = {"wal_level": "replica", "max_replication_slots": "1", "max_wal_senders": "1"}
    with started(tmp_path / "data", few) as connection:
        level, slots, senders = server_problems(connection)
        assert "wal_level is replica" in level.what
        assert "max_replication_slots is 1, of which 0 are in use; 2 must be free" in slots.what
        assert "max_wal_senders is 1, of which 0 are in use; 2 must be free" in senders.what
        mends = [problem.mend.partition(";")[0] for problem in (level, slots, senders)]
    words = "ALTER SYSTEM SET "
    assert all(mend.startswith(words) for mend in mends)
    enough = dict(mend.removeprefix(words).split(" = ") for mend in mends)
    with started(tmp_path / "data", enough) as connection:
        assert server_problems(connection) == ()
        connection.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        assert server_problems(connection) == ()
        connection.execute("SELECT pg_create_physical_replication_slot('other')")
        (problem,) = server_problems(connection)
        assert "max_replication_slots is 2, of which 2 are in use; 1 must be free" in problem.what
        connection.execute("SELECT pg_drop_replication_slot('other')")
        (problem,) = server_problems(connection, "another")
        assert problem.mend.startswith("ALTER SYSTEM SET max_replication_slots = 3;")


@pytest.mark.soak
def test_a_wal_sender_in_use_counts(tmp_path: Path) -> None:
    """Two WAL senders are too few if another slot uses one, and enough if our slot does."""
    with started(tmp_path / "data", {"max_wal_senders": "2"}) as connection:
        connection.execute("CREATE PUBLICATION p")
        origin = Origin("test", make_conninfo("", **connection.info.get_parameters()))
        with closing(slot.walsender(origin)) as sender:
            slot.create(sender, "s", temporary=False, failover=False)
            (problem,) = server_problems(connection)
            assert problem.mend.startswith("ALTER SYSTEM SET max_wal_senders = 3;")
            options = b"(proto_version '1', publication_names 'p')"
            sender.pgconn.exec_(b"START_REPLICATION SLOT s LOGICAL 0/0 " + options)
            assert server_problems(connection) == ()


@pytest.mark.soak
def test_a_standby_is_refused(tmp_path: Path) -> None:
    """The problem says so. Slots can be read there, positions of the log cannot."""
    with started(tmp_path / "data", {}) as connection:
        assert server_problems(connection) == ()
        connection.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    (tmp_path / "data" / "standby.signal").touch()
    with started(tmp_path / "data", {}) as connection:
        (problem,) = server_problems(connection)
        assert "is a standby" in problem.what
        assert problem.mend == "Connect to the primary."
        assert slot.find(connection, "s")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            slot.flushed_position(connection)


def test_a_client_encoding_other_than_utf8_is_a_problem(connection: Connection) -> None:
    """The texts of the stream are read as UTF-8."""
    connection.execute("SET client_encoding = LATIN1")
    (problem,) = server_problems(connection)
    assert "client_encoding is LATIN1" in problem.what


def test_a_server_before_14_is_too_old(connection: Connection) -> None:
    """The only problem that is reported is the version."""
    old = prerequisites._too_old(replace(prerequisites._server(connection, "s"), version=130022))
    assert "PostgreSQL 13.22" in old.what


def test_a_server_before_18_gets_no_option_for_generated_columns(
    source: Source, connection: Connection
) -> None:
    """Nor can a stored generated column be a key there."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY, s int GENERATED ALWAYS AS (id) STORED)")
    relations = tables(connection)
    parts = publication.parts_of(connection, relations)
    (made,) = publication.publishing_statements("p", None, relations, parts, 170000)
    assert "publish_generated_columns" not in made
    source.execute("CREATE PUBLICATION p FOR TABLE a")
    published = publication.find(connection, "p")
    assert publication.publishing_statements("p", published, relations, parts, 170000) == []
    seen = replace(prerequisites._server(connection, "s"), version=170000)
    problems = prerequisites._table_problems(relations[0], parts, ("s",), seen)
    assert "the key's column s is generated" in problems[-1].what
    assert quoted("p") in made
