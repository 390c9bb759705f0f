"""Wrong addresses, passwords, names, privileges and a full disk: each has a clear error."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from deltalake import DeltaTable
from psycopg.conninfo import conninfo_to_dict

from bronze.demo.server import Server
from bronze.errors import (
    BronzeError,
    ConfigError,
    LakeUnreachable,
    SourceRefused,
    SourceUnreachable,
)
from bronze.ingest import pipeline
from bronze.model.results import Failure, RunResult
from tests.acceptance.test_cli import configured, invoke
from tests.conftest import Source
from tests.support.proxy import until

_numbers = itertools.count()


def refused(to: Source, /, *tables: str, **sections: Any) -> BronzeError:
    """The error of a run that could not begin; nothing of it is in the lake."""
    with pytest.raises(BronzeError) as caught:
        pipeline.run(to.settings(**sections), tables)
    assert caught.value.hint
    assert not [path for path in to.lake.rglob("*") if path.is_file()]
    return caught.value


def failures(result: RunResult) -> dict[str, Failure]:
    """Each failed table's failure."""
    return {table.table.partition(".")[2]: table.error for table in result.tables if table.error}


def rows(source: Source, table: str) -> int:
    """How many rows a Bronze table has."""
    return pl.read_delta(str(source.table(table))).height


def absent(source: Source, *tables: str) -> bool:
    """Whether there is neither a table nor a data file of one, visible or not."""
    folders = [source.table(table) for table in tables]
    return not any(
        DeltaTable.is_deltatable(str(folder)) or list(folder.glob("*")) for folder in folders
    )


@pytest.fixture
def role(server: Server) -> Iterator[str]:
    """A role that may connect and nothing more. Its databases must be gone before it."""
    name = f"reader_{next(_numbers)}"
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'right:one'")
        yield name
        admin.execute(f"DROP ROLE {name}")


def seen_by(role: str, source: Source) -> Source:
    """The same database for another role."""
    return replace(source, dsn=source.dsn.replace("postgres@", f"{role}@"))


@contextmanager
def password_needed(server: Server, role: str) -> Iterator[None]:
    """The server asks this role for its password meanwhile."""
    rules = server.data / "pg_hba.conf"
    before = rules.read_text()
    with psycopg.connect(server.dsn(), autocommit=True) as admin:

        def reload(text: str, asked: int) -> None:
            rules.write_text(text)
            admin.execute("SELECT pg_reload_conf()")
            query = "SELECT count(*) FROM pg_hba_file_rules WHERE user_name = ARRAY[%s]"
            assert admin.execute(query, [role]).fetchone() == (asked,)
            until(lambda: asks() == bool(asked))

        def asks() -> bool:
            try:
                psycopg.connect(server.dsn(user=role), password="wrong").close()
            except psycopg.OperationalError:
                return True
            return False

        reload(f"host all {role} 127.0.0.1/32 scram-sha-256\n{before}", 1)
        try:
            yield
        finally:
            reload(before, 0)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1:1", "127.0.0.1:1/shop cannot be reached"),
        ("no-such-host.invalid:5432", "no-such-host.invalid:5432/shop cannot be reached"),
        ("ssl-password.invalid:5432", "ssl-password.invalid:5432/shop cannot be reached"),
    ],
)
def test_an_unreachable_server_is_named(source: Source, host: str, said: str) -> None:
    """A closed port or an unknown host ends the whole run, without retries."""
    dsn = f"postgresql://me@{host}/shop"
    error = refused(source, source={"dsn": dsn}, run={"max_retries": 5, "retry_delay": 60})
    assert isinstance(error, SourceUnreachable)
    assert said in error.message
    assert "Check host and port" in error.hint
    result = invoke("run", "-c", configured(source, source={"dsn": dsn}))
    assert result.exit_code == 3
    assert said in result.stderr


def test_a_wrong_password_is_refused(role: str, source: Source, server: Server) -> None:
    """The error has the address and no password; with the right one the table lands."""
    source.execute(f"CREATE TABLE t AS SELECT 1 AS id; GRANT SELECT ON t TO {role}")
    with password_needed(server, role):
        reader = seen_by(role, source)
        for dsn in (
            reader.dsn.replace("@", ":wr0ng-one@"),
            reader.dsn,
            source.dsn.replace("postgres@", "nobody_such@"),
        ):
            result = invoke("run", "-c", configured(source, source={"dsn": dsn}))
            if "nobody" in dsn:
                assert "nobody_such" in result.stderr
            assert result.exit_code == 3, result.output
            assert "refused the login" in result.stderr
            assert "Check user, password and database" in result.stderr
            assert "wr0ng-one" not in result.output
        right = reader.dsn.replace("@", ":right%3Aone@")
        result = invoke("run", "-c", configured(source, source={"dsn": right}))
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("way", ["secret", "PGPASSWORD", "PGPASSFILE"])
def test_a_password_may_come_from_a_file_or_the_environment(
    role: str,
    source: Source,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """From the secret provider, from PGPASSWORD, or from the password file."""
    source.execute(f"CREATE TABLE t AS SELECT 1 AS id; GRANT SELECT ON t TO {role}")
    more: dict[str, Any] = {"dsn": seen_by(role, source).dsn}
    if way == "secret":
        more["password"] = {"secret": "ITS_NAME"}
        monkeypatch.setenv("ITS_NAME", "right:one")
    elif way == "PGPASSWORD":
        monkeypatch.setenv(way, "right:one")
    else:
        kept = tmp_path / "pgpass"
        kept.write_text(f"127.0.0.1:{server.port}:*:{role}:right\\:one\n")
        kept.chmod(0o600)
        monkeypatch.setenv(way, str(kept))
    with password_needed(server, role):
        result = pipeline.run(source.settings(source=more))
    assert failures(result) == {}
    assert rows(source, "t") == 1


def test_the_address_may_come_from_libpq_variables(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All reads use the server of libpq's variables, as the planning does."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    given = conninfo_to_dict(source.dsn)
    for name, key in (("HOST", "host"), ("PORT", "port"), ("USER", "user"), ("DATABASE", "dbname")):
        monkeypatch.setenv(f"PG{name}", str(given[key]))
    more = {"dsn": "connect_timeout=3"}
    assert failures(pipeline.run(source.settings(source=more))) == {}
    assert rows(source, "t") == 1


def test_a_missing_database_is_named(source: Source) -> None:
    """Exit code 3, as the source cannot be read."""
    error = refused(source, source={"dsn": re.sub(r"/\w+$", "/nowhere", source.dsn)})
    assert isinstance(error, SourceRefused)
    assert 'database "nowhere" does not exist' in error.message
    assert error.exit_code == 3


@pytest.mark.parametrize("schema", ["nowhere", ["public", "nowhere"]])
def test_a_missing_schema_is_named(source: Source, schema: object) -> None:
    """Also beside an existing one: the user expects tables of both."""
    source.execute("CREATE TABLE t ()")
    error = refused(source, source={"schema": schema})
    assert isinstance(error, ConfigError)
    assert "nowhere" in error.message
    assert "schema" in error.hint


def test_a_source_without_tables_is_a_config_error(source: Source) -> None:
    """An empty schema and patterns that match no table are errors with a hint."""
    assert "takes no table" in refused(source).message
    source.execute("CREATE TABLE t ()")
    error = refused(source, source={"exclude": ["*"]})
    assert isinstance(error, ConfigError)
    assert "exclude" in error.hint


def test_a_missing_table_is_named(source: Source) -> None:
    """A table named on the command line ends the run; one in the config lets the others land."""
    source.execute('CREATE TABLE t AS SELECT 1 AS id; CREATE TABLE "Orders" (id int)')
    error = refused(source, "t", "orders", "public.nothing")
    assert isinstance(error, ConfigError)
    assert "no table orders, public.nothing in the source" in error.message
    assert "case-sensitive" in error.hint
    result = invoke("run", "orders", "-c", configured(source))
    assert result.exit_code == 2
    assert "no table orders" in result.stderr
    run = pipeline.run(source.settings(tables={"orders": {}, "public.nothing": {}}))
    missing = {table.table: table.error for table in run.tables if table.error}
    assert set(missing) == {"orders", "public.nothing"}
    for name, failure in missing.items():
        assert f"no table {name} in the source" in failure.message
        assert f'[tables."{name}"]' in failure.hint
    assert run.exit_code == 1
    assert rows(source, "t") == 1


def test_a_missing_column_fails_its_table(source: Source) -> None:
    """The config names a column that does not exist: that table fails, the others land."""
    source.execute("CREATE TABLE u AS SELECT 1 AS name")
    wrong: dict[str, dict[str, Any]] = {
        "renamed": {"rename": {"nmae": "x"}},
        "keyed": {"key": ["nmae"]},
        "chosen": {"decimals": {"nmae": "decimal(9,2)"}},
    }
    for name in wrong:
        source.execute(f"CREATE TABLE {name} AS SELECT 1 AS name")
    result = pipeline.run(source.settings(tables=wrong))
    assert result.exit_code == 1
    found = failures(result)
    assert found.keys() == wrong.keys()
    for name, failure in found.items():
        assert failure.kind == "TableRefused", name
        assert failure.message == f"Table public.{name} has no column nmae."
        assert failure.hint == f'Correct [tables."{name}"] in the config.'
        assert absent(source, name)
    assert rows(source, "u") == 1


def test_one_table_without_permission_fails_alone(role: str, source: Source) -> None:
    """Nine of ten land; the tenth says what to grant; exit code 1."""
    for i in range(10):
        source.execute(f"CREATE TABLE t{i} AS SELECT {i} AS id")
    source.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    source.execute(f"REVOKE SELECT ON t3 FROM {role}")
    reader = seen_by(role, source)
    result = invoke("run", "--json", "-c", configured(reader))
    assert result.exit_code == 1
    found = {table["table"]: table for table in json.loads(result.stdout)["tables"]}
    assert [name for name, table in found.items() if table["status"] == "failed"] == ["public.t3"]
    error = found["public.t3"]["error"]
    assert error["kind"] == "TableRefused"
    assert error["message"] == "Table public.t3 cannot be read: permission denied."
    assert "GRANT" in error["hint"]
    assert error["sqlstate"] == "42501"
    assert absent(source, "t3")
    assert [rows(source, f"t{i}") for i in range(10) if i != 3] == [1] * 9


def test_partial_privileges_fail_their_table(role: str, source: Source) -> None:
    """A grant on some columns, or on a table in a schema without USAGE, fails that table alone."""
    source.execute("CREATE TABLE seen AS SELECT 1 AS id")
    for schema in ("other", "closed"):
        source.execute(f"CREATE SCHEMA {schema}")
        source.execute(f"CREATE TABLE {schema}.{schema}s AS SELECT 1 AS id, 2 AS secret")
    for schema in ("public", "other", "closed"):
        source.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        source.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}")
    source.execute(f"REVOKE SELECT ON other.others FROM {role}")
    source.execute(f"GRANT SELECT (id) ON other.others TO {role}")
    source.execute(f"REVOKE USAGE ON SCHEMA closed FROM {role}")
    reader = seen_by(role, source)
    result = pipeline.run(reader.settings(source={"schema": ["public", "other", "closed"]}))
    found = failures(result)
    assert found.keys() == {"others", "closeds"}
    said = {
        "others": ("Column secret of table other.others cannot be read", "GRANT SELECT"),
        "closeds": ("Table closed.closeds cannot be read", "GRANT USAGE"),
    }
    for name, failure in found.items():
        assert (failure.kind, failure.sqlstate) == ("TableRefused", "42501"), name
        message, hint = said[name]
        assert failure.message == f"{message}: permission denied."
        assert hint in failure.hint, name
    assert rows(source, "seen") == 1
    assert absent(source, "others", "closeds")


def test_row_level_security_refuses_the_table_by_default(role: str, source: Source) -> None:
    """A policy would hide rows: the table is refused unless the config says to apply it."""
    source.execute(f"""
        CREATE TABLE t AS SELECT generate_series(1, 10) AS id; CREATE TABLE u AS SELECT 1 AS id;
        ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (id <= 4);
        GRANT SELECT ON t, u TO {role}
    """)
    reader = seen_by(role, source)
    result = pipeline.run(reader.settings())
    (failure,) = failures(result).values()
    assert (failure.kind, failure.sqlstate) == ("TableRefused", "42501")
    assert "row-level security" in failure.message
    assert 'row_security = "apply"' in failure.hint
    assert "BYPASSRLS" in failure.hint
    assert absent(source, "t")
    assert rows(source, "u") == 1
    assert failures(pipeline.run(reader.settings(source={"row_security": "apply"}))) == {}
    assert rows(source, "t") == 4


@pytest.mark.parametrize("root", ["file", "file/lake", "/proc/lake", "/dev/null"])
def test_an_unwritable_lake_root_is_named(source: Source, tmp_path: Path, root: str) -> None:
    """Before a row is read, with exit code 3, whatever the cause is."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    (tmp_path / "file").write_text("not a folder")
    error = refused(source, lake={"root": str(tmp_path / root)})
    assert isinstance(error, LakeUnreachable), repr(error)
    assert str(tmp_path / root) in error.message
    assert error.exit_code == 3
    assert (tmp_path / "file").read_text() == "not a folder"


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own at ``folder``."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


@pytest.mark.parametrize("options", ["size=1m", "size=1m,nr_inodes=6"])
def test_a_full_disk_leaves_no_partial_files(source: Source, options: str) -> None:
    """No space for the data or the log: the old version stays, and with space the run lands."""
    rows_of = "SELECT i AS id, md5(i::text) || md5((-i)::text) AS text FROM generate_series"
    source.execute(f"CREATE TABLE t AS {rows_of}(1, 10) i")
    with small_disk(source.lake, options):
        if "inodes" not in options:
            assert failures(pipeline.run(source.settings())) == {}
            source.execute(f"INSERT INTO t {rows_of}(11, 40000) i")
        before = set(source.table("t").rglob("*.*"))
        result = pipeline.run(source.settings())
        (failure,) = failures(result).values()
        assert failure.kind == "LakeUnreachable"
        assert "no space left" in failure.message
        assert str(source.table("t")) in failure.message
        assert failure.hint == "Free some space, and run again."
        assert result.exit_code == 3
        assert set(source.table("t").rglob("*.*")) == before
        if before:
            assert rows(source, "t") == 10
        else:
            assert not DeltaTable.is_deltatable(str(source.table("t")))
        size = options.replace("size=1m", "size=40m").replace("nr_inodes=6", "nr_inodes=60")
        command = ["mount", "-o", f"remount,{size}", str(source.lake)]
        subprocess.run(command, check=True)
        assert failures(pipeline.run(source.settings())) == {}
        assert rows(source, "t") == source.execute("SELECT count(*) FROM t")[0][0]


def test_a_file_size_limit_is_reported_as_a_full_disk(source: Source) -> None:
    """A process that may not write large files says so, and leaves no partial files."""
    source.execute("CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 9999) i")
    resource = pytest.importorskip("resource", reason="POSIX limits")
    config = configured(source)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        result = invoke("run", "-c", config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.exit_code == 3, result.stderr
    assert "no space left for the file" in result.stderr
    assert "Free some space" in result.stderr
    assert absent(source, "t")
