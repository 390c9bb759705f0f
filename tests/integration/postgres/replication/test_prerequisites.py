"""What keeps changes from being streamed is found before anything is made, with its mend."""

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
from bronze.postgres.replication.prerequisites import Wanting
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
    with connect.connect(origin) as made:
        yield made


def tables(connection: Connection, *names: str) -> list[Relation]:
    """The relations of these names, in their order; all of the schema public if none is given."""
    found = {r.name: r for r in catalog.relations(connection, ["public"])}
    return [found[name] for name in names or found]


def wanted(
    connection: Connection, *names: str, keys: Mapping[str, Sequence[str]] | None = None
) -> tuple[Wanting, ...]:
    """What is wanting for the tables, with a publication "p" and a slot "s"."""
    return prerequisites.wanting(connection, tables(connection, *names), keys or {}, "p", "s")


def mend(source: Source, found: Sequence[Wanting]) -> None:
    """Does as the mends say, as the superuser."""
    for wanting in found:
        source.execute(wanting.mend)


def test_nothing_is_wanting_where_all_is_well(source: Source, connection: Connection) -> None:
    """Tables with primary keys that have the tables' keys can be streamed at once."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (x int, y int UNIQUE)")
    source.execute("ALTER TABLE b REPLICA IDENTITY FULL")
    assert wanted(connection, keys={"public.a": ["id"], "public.b": ["y"]}) == ()


def test_asking_changes_nothing(source: Source, connection: Connection) -> None:
    """No publication and no slot is made by asking what is wanting."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    wanted(connection)
    assert source.execute("SELECT count(*) FROM pg_publication") == [(0,)]
    assert slot.find(connection, "s") is None


_DISTINCT = "NULLS NOT DISTINCT" if has("NULLS NOT DISTINCT") else ""
IDENTITIES = [
    # columns, statements, identity, key, what is wanting (words), its mend
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
    """Each identity is known for its columns; the mend, run as it stands, is enough."""
    cases = {f"public.t{number}": case for number, case in enumerate(IDENTITIES)}
    for number, (columns, changes, *_) in enumerate(IDENTITIES):
        source.execute(f"CREATE TABLE t{number} ({columns})")
        for change in changes:
            identity = change.replace("{t}", f"t{number}")
            source.execute(f"ALTER TABLE t{number} REPLICA IDENTITY {identity}")
    keys = {label: case[3] for label, case in cases.items()}
    has = {label: case[2] for label, case in cases.items()}
    assert publication.identity(connection, tables(connection)) == has
    every = wanted(connection, keys=keys)
    # The first that is said of each table.
    found = {one.table: one for one in reversed(every)}
    assert set(found) <= set(cases)
    wrong = {}
    for label, (*_, says, does) in cases.items():
        one = found.get(label)
        does = does.replace("{t}", label.removeprefix("public."))
        good = one is not None and says in one.what and does in one.mend if says else one is None
        if not good:
            wrong[label, says] = one
    assert wrong == {}
    mend(source, every)
    assert wanted(connection, keys=keys) == ()


def test_a_key_that_partitions_may_share_needs_whole_rows(
    source: Source, connection: Connection
) -> None:
    """Each partition's own key is unique within it alone; a key of the root's is fine."""
    for name, own in (("a", ""), ("b", ", PRIMARY KEY (id, d)")):
        source.execute(f"CREATE TABLE {name} (id int NOT NULL, d int{own}) PARTITION BY LIST (d)")
        for number in (1, 2):
            source.execute(
                f"CREATE TABLE {name}_{number} PARTITION OF {name} FOR VALUES IN ({number})"
            )
    source.execute("ALTER TABLE a_1 ADD PRIMARY KEY (id); ALTER TABLE a_2 ADD PRIMARY KEY (id)")
    keys = {"public.a": ["id"], "public.b": ["id"]}
    (found,) = wanted(connection, "a", "b", keys=keys)
    assert found.table == "public.a"
    assert "rows of several partitions may share the key id" in found.what
    assert found.mend.count("REPLICA IDENTITY FULL") == 2
    mend(source, [found])
    assert wanted(connection, "a", "b", keys=keys) == ()
    told = publication.telling(connection, [(r, ["id"]) for r in tables(connection, "a", "b")])
    assert sorted(told.values()) == [("id", "d")] * 2


@pytest.mark.parametrize(
    ("own", "key", "told"),
    [
        ("id int PRIMARY KEY, x int NOT NULL UNIQUE", ("id",), ("id",)),
        ("id int PRIMARY KEY, x int NOT NULL UNIQUE", ("x",), ("x",)),
        ("id int PRIMARY KEY, x int UNIQUE", ("x",), ("id", "x")),
        ("id int PRIMARY KEY, x int NOT NULL UNIQUE DEFERRABLE", ("x",), ("id", "x")),
        ("id int PRIMARY KEY DEFERRABLE, x int", ("id",), ("id", "x")),
        ("id int PRIMARY KEY, x int", ("x", "id"), ("x", "id")),
    ],
)
def test_what_tells_rows_apart_at_any_moment(
    source: Source, connection: Connection, own: str, key: tuple[str, ...], told: tuple[str, ...]
) -> None:
    """A key that PostgreSQL checks with each row, or else whole rows."""
    source.execute(f"CREATE TABLE t ({own}); ALTER TABLE t REPLICA IDENTITY FULL")
    (found,) = publication.telling(connection, [(r, key) for r in tables(connection)]).values()
    assert found == told


def test_what_has_no_replica_identity_fails_its_writers(
    source: Source, connection: Connection
) -> None:
    """That is why it is wanting even without a key: PostgreSQL then refuses UPDATE and DELETE."""
    source.execute("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    (found,) = wanted(connection)
    assert "UPDATEs and DELETEs fail" in found.what
    publication.publish(connection, "p", tables(connection))
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        source.execute("DELETE FROM t")
    source.execute(found.mend)
    source.execute("DELETE FROM t")


def test_an_identity_whose_index_is_gone_is_none(source: Source, connection: Connection) -> None:
    """REPLICA IDENTITY USING INDEX of a dropped index is nothing."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, x int NOT NULL)")
    source.execute("CREATE UNIQUE INDEX ix ON t (x)")
    source.execute("ALTER TABLE t REPLICA IDENTITY USING INDEX ix; DROP INDEX ix")
    assert publication.identity(connection, tables(connection)) == {"public.t": ()}
    assert wanted(connection, keys={"public.t": ["id"]})


@since("virtual generated columns")
def test_full_and_a_virtual_column_do_not_go_together(
    source: Source, connection: Connection
) -> None:
    """Once published, writers of such a table fail; the mend is an index, where there is one."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id + 1) VIRTUAL);"
        " ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1)"
    )
    (found,) = wanted(connection, keys={"public.t": ["id"]})
    assert "virtual generated column v: once published" in found.what
    publication.publish(connection, "p", tables(connection))
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        source.execute("DELETE FROM t")
    mend(source, [found])
    source.execute("DELETE FROM t")
    assert wanted(connection, keys={"public.t": ["id"]}) == ()
    source.execute("ALTER TABLE t DROP CONSTRAINT t_pkey")
    (found,) = wanted(connection, keys={"public.t": ["id"]})
    assert "FULL" not in found.mend
    assert 'CREATE UNIQUE INDEX ON "public"."t" ("id")' in found.mend


PARTITIONED = """
CREATE TABLE r (id int NOT NULL, x int NOT NULL, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE r1 PARTITION OF r FOR VALUES FROM (0) TO (10);
CREATE TABLE r2 PARTITION OF r FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);
CREATE TABLE r21 PARTITION OF r2 FOR VALUES FROM (10) TO (20)
"""


def test_partitions_have_identities_of_their_own(source: Source, connection: Connection) -> None:
    """A partitioned table has what all its leaves have; a leaf that lacks the key is named."""
    source.execute(PARTITIONED)
    keys = {"public.r": ["id"]}
    assert publication.identity(connection, tables(connection)) == {"public.r": ("id",)}
    assert wanted(connection, keys=keys) == ()
    source.execute("ALTER TABLE r1 REPLICA IDENTITY FULL")
    assert publication.identity(connection, tables(connection)) == {"public.r": ("id",)}
    source.execute("ALTER TABLE r21 REPLICA IDENTITY FULL; ALTER TABLE r REPLICA IDENTITY NOTHING")
    assert publication.identity(connection, tables(connection)) == {"public.r": ("id", "x")}
    assert wanted(connection, keys=keys) == ()
    source.execute("ALTER TABLE r21 REPLICA IDENTITY NOTHING")
    (nothing,) = wanted(connection, keys=keys)
    assert "Table public.r: its partition public.r21 has no replica identity" in nothing.what
    assert nothing.table == "public.r"
    source.execute("CREATE UNIQUE INDEX other ON r21 (x)")
    source.execute("ALTER TABLE r21 REPLICA IDENTITY USING INDEX other")
    assert publication.identity(connection, tables(connection)) == {"public.r": ("x",)}
    (other,) = wanted(connection, keys=keys)
    assert "public.r21: the key's column id is not" in other.what
    assert other.mend == 'ALTER TABLE "public"."r21" REPLICA IDENTITY DEFAULT'
    mend(source, [other])
    assert wanted(connection, keys=keys) == ()


def test_a_partitioned_table_without_partitions(source: Source, connection: Connection) -> None:
    """Its own identity is what partitions will get."""
    source.execute("CREATE TABLE r (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    assert publication.identity(connection, tables(connection)) == {"public.r": ("id",)}
    assert wanted(connection, keys={"public.r": ["id"]}) == ()


def test_partitions_that_are_not_logged(source: Source, connection: Connection) -> None:
    """A leaf that is unlogged or a foreign table is named."""
    source.execute(PARTITIONED)
    source.execute("ALTER TABLE r1 SET UNLOGGED")
    source.execute("CREATE EXTENSION postgres_fdw")
    source.execute("CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw")
    source.execute("CREATE TABLE q (id int) PARTITION BY RANGE (id)")
    source.execute("CREATE FOREIGN TABLE q1 PARTITION OF q FOR VALUES FROM (20) TO (30) SERVER far")
    foreign, unlogged = wanted(connection, "q", "r")
    assert "public.q: its partition public.q1 is a foreign table" in foreign.what
    assert "public.r: its partition public.r1 is unlogged" in unlogged.what
    assert unlogged.mend == 'ALTER TABLE "public"."r1" SET LOGGED'


def test_heirs_are_tables_of_their_own(source: Source, connection: Connection) -> None:
    """A table with heirs is wanting; published beside its heir, it would not take the heir in."""
    source.execute("CREATE TABLE old (id int PRIMARY KEY)")
    source.execute("CREATE TABLE young (PRIMARY KEY (id)) INHERITS (old)")
    (found,) = wanted(connection, "old", "young")
    assert "public.old has heirs" in found.what
    assert "public.old, public.young" in found.mend
    assert found.table == "public.old"
    publication.publish(connection, "p", tables(connection, "old"))
    assert source.execute("SELECT tablename FROM pg_publication_tables") == [("old",)]


def test_what_is_not_a_table_is_not_streamed(source: Source, connection: Connection) -> None:
    """Views, materialized views, foreign and unlogged tables are named for what they are."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    source.execute("CREATE VIEW b AS SELECT * FROM a")
    source.execute("CREATE MATERIALIZED VIEW c AS SELECT * FROM a")
    source.execute("CREATE EXTENSION postgres_fdw")
    source.execute("CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw")
    source.execute("CREATE FOREIGN TABLE d (id int) SERVER far")
    source.execute("CREATE UNLOGGED TABLE e (id int PRIMARY KEY)")
    found = {w.table: w for w in wanted(connection, "a", "b", "c", "d", "e")}
    says = {"b": "a view", "c": "a materialized view", "d": "a foreign table", "e": "unlogged"}
    assert set(found) == {f"public.{name}" for name in says}
    for name, words in says.items():
        assert f"Table public.{name} is {words}" in found[f"public.{name}"].what
    mend(source, [found["public.e"]])
    assert wanted(connection, "e") == ()


def test_a_temporary_table_is_not_streamed(source: Source, connection: Connection) -> None:
    """Nobody but its session sees it."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    (relation,) = tables(connection)
    connection.execute("CREATE TEMPORARY TABLE t (id int PRIMARY KEY)")
    row: Any = connection.execute("SELECT 't'::regclass::oid::int8").fetchone()
    mine = replace(relation, oid=row[0], parts=(row[0],), schema="pg_temp", name="t")
    (found,) = prerequisites.wanting(connection, [mine], {}, "p", "s")
    assert "Table pg_temp.t is temporary" in found.what.replace(": its partition", "")


def test_a_role_without_rights_learns_what_to_ask_for(
    source: Source, connection: Connection, login: str
) -> None:
    """REPLICATION, SELECT and the publication are wanting; the mends are all that it takes."""
    source.execute(f"ALTER ROLE {login} NOREPLICATION")
    source.execute('CREATE TABLE "a%s {b}" (id int PRIMARY KEY)')
    source.execute(PARTITIONED)
    with logged_in(source, login) as mine:
        found = wanted(mine)
        whats = [w.what for w in found]
        assert whats[0] == f"Role {login} may not replicate."
        assert found[0].mend == f'ALTER ROLE "{login}" REPLICATION'
        assert f"Table public.a%s {{b}} may not be read by role {login}." in whats
        assert f"Table public.r may not be read by role {login}." in whats
        assert "Publication p is not there" in whats[-1]
        assert found[-1].mend == (
            'CREATE PUBLICATION "p" FOR TABLE ONLY "public"."a%s {b}", ONLY "public"."r" ' + OPTIONS
        )
        with pytest.raises(SourceRefused, match="permission denied") as caught:
            publication.publish(mine, "p", tables(mine))
        assert found[-1].mend in caught.value.hint
        mend(source, found)
        assert wanted(mine) == ()
        publication.publish(mine, "p", tables(mine))


def test_membership_of_rds_replication_counts(
    source: Source, connection: Connection, login: str
) -> None:
    """On Amazon RDS nobody has the attribute REPLICATION: the mend is the membership."""
    source.execute(f"ALTER ROLE {login} NOREPLICATION")
    source.execute("CREATE ROLE rds_replication")
    try:
        with logged_in(source, login) as mine:
            (found,) = prerequisites.wanting(mine, [], {}, "p", "s")
            assert found.mend == f'GRANT rds_replication TO "{login}"'
            mend(source, [found])
            assert prerequisites.wanting(mine, [], {}, "p", "s") == ()
    finally:
        source.execute("DROP ROLE rds_replication")


def test_an_owner_may_publish_with_create_on_the_database(
    source: Source, connection: Connection, login: str
) -> None:
    """Owning the tables is not enough for a publication, and CREATE alone is not either."""
    database = conninfo_to_dict(source.dsn)["dbname"]
    source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    source.execute(f"ALTER TABLE a OWNER TO {login}; GRANT SELECT ON b TO {login}")
    with logged_in(source, login) as mine:
        assert [w.mend[:18] for w in wanted(mine, "a")] == ["CREATE PUBLICATION"]
        source.execute(f"GRANT CREATE ON DATABASE {database} TO {login}")
        assert wanted(mine, "a") == ()
        assert [w.mend[:18] for w in wanted(mine, "a", "b")] == ["CREATE PUBLICATION"]
        publication.publish(mine, "p", tables(mine, "a"))
        (found,) = wanted(mine, "a", "b")
        assert found.mend == 'ALTER PUBLICATION "p" ADD TABLE ONLY "public"."b"'
        mend(source, [found])
        assert wanted(mine, "a", "b") == ()


ADEQUATE = [
    f"FOR TABLE a, r {OPTIONS}",
    f"FOR ALL TABLES {OPTIONS}",
]
if has("schemas in publications"):
    ADEQUATE.append(f"FOR TABLES IN SCHEMA public {OPTIONS}")
if has("column lists of publications"):
    stored = ", s" if has("generated columns in publications") else ""
    ADEQUATE.append(f"FOR TABLE a (id{stored}), r {OPTIONS}")


def test_an_adequate_publication_of_somebody_else_will_do(
    source: Source, connection: Connection, login: str
) -> None:
    """However it has the tables, nothing is wanting and publishing leaves it alone."""
    source.execute(PARTITIONED)
    source.execute(WITH_GENERATED)
    source.execute(f"GRANT SELECT ON a, r TO {login}")
    found = {}
    with logged_in(source, login) as mine:
        for made in ADEQUATE:
            source.execute(f"CREATE PUBLICATION p {made}")
            found[made] = wanted(mine, keys={"public.a": ["id"], "public.r": ["id"]})
            if not found[made]:
                publication.publish(mine, "p", tables(mine))
            source.execute("DROP PUBLICATION p")
    assert found == dict.fromkeys(ADEQUATE, ())


INADEQUATE = [
    ("FOR TABLE a WITH (publish_via_partition_root = true)", ["ADD TABLE ONLY", '"r"']),
    ("FOR TABLE a, r", ["SET (publish_via_partition_root = true)"]),
    ("FOR ALL TABLES WITH (publish = 'insert')", ["publish = 'insert, update, delete, truncate'"]),
    (
        "FOR TABLE a, r1, r21 WITH (publish_via_partition_root = true)",
        ['ADD TABLE ONLY "public"."r"'],
    ),
]


def test_what_somebody_elses_publication_lacks(
    source: Source, connection: Connection, login: str
) -> None:
    """Options and tables that it lacks are wanting, and the mend is enough."""
    source.execute(PARTITIONED)
    source.execute("CREATE TABLE a (id int PRIMARY KEY)")
    source.execute(f"GRANT SELECT ON a, r TO {login}")
    with logged_in(source, login) as mine:
        for made, does in INADEQUATE:
            source.execute(f"CREATE PUBLICATION p {made}")
            (found,) = wanted(mine)
            assert "Publication p lacks tables or options" in found.what, made
            assert [words for words in does if words not in found.mend] == [], made
            with pytest.raises(SourceRefused):
                publication.publish(mine, "p", tables(mine))
            mend(source, [found])
            assert wanted(mine) == (), made
            publication.publish(mine, "p", tables(mine))
            source.execute("DROP PUBLICATION p")


OF_FILTERS = since("row filters of publications", "column lists of publications")
LEFT_OUT = {
    "a (id)": "leaves the columns x, y (column list) of table public.a out",
    "a WHERE (id > 3)": "leaves some rows (WHERE) of table public.a out",
    "a (id, x) WHERE (id > 3)": "some rows (WHERE) and the column y (column list)",
}


@OF_FILTERS
def test_rows_and_columns_left_out_are_wanting(source: Source, connection: Connection) -> None:
    """Even to the owner, who alone knows why; publishing does not take the filter away."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY, x int, y int)")
    for made, says in LEFT_OUT.items():
        source.execute(f"CREATE PUBLICATION p FOR TABLE {made}")
        (found,) = wanted(connection)
        assert says in found.what
        publication.publish(connection, "p", tables(connection))
        assert wanted(connection) == (found,), made
        mend(source, [found])
        assert wanted(connection) == (), made
        source.execute("DROP PUBLICATION p")


@OF_FILTERS
def test_a_filter_of_a_partitioned_table_is_seen(source: Source, connection: Connection) -> None:
    """It lies on the root, by whose name the changes come."""
    source.execute(PARTITIONED)
    source.execute("CREATE PUBLICATION p FOR TABLE r WHERE (id > 3) " + OPTIONS)
    (found,) = wanted(connection)
    assert "some rows (WHERE) of table public.r" in found.what


@since("virtual generated columns")
def test_a_virtual_column_is_no_key(source: Source, connection: Connection) -> None:
    """What the stream never has cannot tell rows apart."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id) VIRTUAL)")
    found = wanted(connection, keys={"public.a": ["v"]})
    assert "the key's column v is generated" in found[-1].what


@contextmanager
def started(data: Path, settings: Mapping[str, str]) -> Iterator[Connection]:
    """A connection to a server of the test's own."""
    with (
        running(data, settings={**FAST, "shared_buffers": "16MB", **settings}) as server,
        connect.connect(Origin("test", server.dsn())) as connection,
    ):
        yield connection


def lacking(connection: Connection, name: str = "s") -> tuple[Wanting, ...]:
    """What is wanting of the server itself."""
    return prerequisites.wanting(connection, [], {}, "p", name)


def test_a_server_that_is_not_made_for_it(tmp_path: Path) -> None:
    """wal_level, and the numbers of slots and WAL senders, are wanting until there are enough."""
    few = {"wal_level": "replica", "max_replication_slots": "1", "max_wal_senders": "1"}
    with started(tmp_path / "data", few) as connection:
        level, slots, senders = lacking(connection)
        assert "wal_level is replica" in level.what
        assert "max_replication_slots is 1, of which 0 are in use; 2 must be free" in slots.what
        assert "max_wal_senders is 1, of which 0 are in use; 2 must be free" in senders.what
        mends = [found.mend.partition(";")[0] for found in (level, slots, senders)]
    words = "ALTER SYSTEM SET "
    assert all(mend.startswith(words) for mend in mends)
    enough = dict(mend.removeprefix(words).split(" = ") for mend in mends)
    with started(tmp_path / "data", enough) as connection:
        assert lacking(connection) == ()
        connection.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        assert lacking(connection) == ()
        connection.execute("SELECT pg_create_physical_replication_slot('other')")
        (found,) = lacking(connection)
        assert "max_replication_slots is 2, of which 2 are in use; 1 must be free" in found.what
        connection.execute("SELECT pg_drop_replication_slot('other')")
        (found,) = lacking(connection, "another")
        assert found.mend.startswith("ALTER SYSTEM SET max_replication_slots = 3;")


def test_a_sender_in_use_counts(tmp_path: Path) -> None:
    """Two WAL senders are too few beside somebody else's, and enough if one of them is ours."""
    with started(tmp_path / "data", {"max_wal_senders": "2"}) as connection:
        connection.execute("CREATE PUBLICATION p")
        origin = Origin("test", make_conninfo("", **connection.info.get_parameters()))
        with closing(slot.walsender(origin)) as sender:
            slot.make(sender, "s", temporary=False, failover=False)
            (found,) = lacking(connection)
            assert found.mend.startswith("ALTER SYSTEM SET max_wal_senders = 3;")
            options = b"(proto_version '1', publication_names 'p')"
            sender.pgconn.exec_(b"START_REPLICATION SLOT s LOGICAL 0/0 " + options)
            assert lacking(connection) == ()


def test_a_standby_is_refused(tmp_path: Path) -> None:
    """It is named for what it is; slots can be looked for there, but there is no horizon."""
    with started(tmp_path / "data", {}) as connection:
        assert lacking(connection) == ()
        connection.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    (tmp_path / "data" / "standby.signal").touch()
    with started(tmp_path / "data", {}) as connection:
        (found,) = lacking(connection)
        assert "is a standby" in found.what
        assert found.mend == "Connect to the primary."
        assert slot.find(connection, "s")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            slot.horizon(connection)


def test_another_encoding_is_wanting(connection: Connection) -> None:
    """Texts are taken for UTF-8, so the connection has to be in it."""
    connection.execute("SET client_encoding = LATIN1")
    (found,) = lacking(connection)
    assert "client_encoding is LATIN1" in found.what


def test_a_server_before_14_is_too_old(connection: Connection) -> None:
    """It is said by its version, and nothing else is."""
    old = prerequisites._too_old(replace(prerequisites._server(connection, "s"), version=130022))
    assert "PostgreSQL 13.22" in old.what


def test_an_old_server_is_not_asked_for_what_it_does_not_know(
    source: Source, connection: Connection
) -> None:
    """Before 18 there is no option for generated columns, and a stored one is no key."""
    source.execute("CREATE TABLE a (id int PRIMARY KEY, s int GENERATED ALWAYS AS (id) STORED)")
    relations = tables(connection)
    parts = publication.parts_of(connection, relations)
    (made,) = publication.mending("p", None, relations, parts, 170000)
    assert "publish_generated_columns" not in made
    source.execute("CREATE PUBLICATION p FOR TABLE a")
    published = publication.find(connection, "p")
    assert publication.mending("p", published, relations, parts, 170000) == []
    seen = replace(prerequisites._server(connection, "s"), version=170000)
    found = prerequisites._of_table(relations[0], parts, ("s",), seen)
    assert "the key's column s is generated" in found[-1].what
    assert quoted("p") in made
