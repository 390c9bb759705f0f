"""Session settings: every session has those of bronze, whatever the server, the database, the role
or the connection options set, and every name in bronze's SQL means PostgreSQL's own object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from bronze.api import check
from bronze.ingest import pipeline
from bronze.model.columns import Column, DeltaType
from bronze.model.locations import Origin
from bronze.postgres.catalog.relations import relations
from bronze.postgres.connection import connect, session_settings
from bronze.postgres.connection.read_connections import BEGIN, read_connection
from bronze.postgres.copy import rows_reader, splits
from bronze.postgres.copy.snapshot import hold
from bronze.postgres.replication import slot
from bronze.verify import verify
from tests.conftest import Source
from tests.support.content import differences

CONTEXTS = ("user", "superuser", "backend", "superuser-backend")

HARMLESS: Mapping[str, str] = {
    "set by the origin, or at its request": """
        statement_timeout lock_timeout row_security wal_sender_timeout application_name""",
    "of one transaction: bronze sets them where they matter, and reads elsewhere": """
        transaction_deferrable transaction_isolation transaction_read_only""",
    "it can only make a query fail, with an error": """
        default_transaction_read_only restrict_nonsystem_relation_kind temp_file_limit
        max_stack_depth allow_in_place_tablespaces allow_system_table_mods
        output_plugin_libraries""",
    "it changes the plan or the parallelism: the rows are the same, in any order": """
        backend_flush_after constraint_exclusion cpu_index_tuple_cost cpu_operator_cost
        cpu_tuple_cost cursor_tuple_fraction debug_parallel_query default_statistics_target
        effective_cache_size effective_io_concurrency enable_async_append enable_bitmapscan
        enable_distinct_reordering enable_gathermerge enable_group_by_reordering enable_hashagg
        enable_hashjoin enable_incremental_sort enable_indexonlyscan enable_indexscan
        enable_material enable_memoize enable_mergejoin enable_nestloop enable_parallel_append
        enable_parallel_hash enable_partition_pruning enable_partitionwise_aggregate
        enable_partitionwise_join enable_presorted_aggregate enable_self_join_elimination
        enable_seqscan enable_sort from_collapse_limit geqo geqo_effort geqo_generations
        geqo_pool_size geqo_seed geqo_selection_bias geqo_threshold ignore_system_indexes
        join_collapse_limit max_parallel_workers max_parallel_workers_per_gather
        min_parallel_index_scan_size min_parallel_table_scan_size parallel_leader_participation
        parallel_setup_cost parallel_tuple_cost plan_cache_mode random_page_cost
        recursive_worktable_factor seq_page_cost io_combine_limit maintenance_io_concurrency
        force_parallel_mode""",
    "it concerns jit, which is off": """
        jit_above_cost jit_expressions jit_inline_above_cost jit_optimize_above_cost
        jit_tuple_deforming jit_debugging_support jit_dump_bitcode jit_profiling_support""",
    "it limits the server's memory or disk space": """
        hash_mem_multiplier logical_decoding_work_mem maintenance_work_mem temp_buffers work_mem
        temp_tablespaces debug_logical_replication_streaming""",
    "it concerns writes, and bronze writes no more than a publication": """
        check_function_bodies commit_delay commit_siblings createrole_self_grant
        default_table_access_method default_tablespace default_toast_compression event_triggers
        file_copy_method gin_pending_list_limit icu_validation_level lo_compat_privileges
        max_parallel_maintenance_workers md5_password_warnings password_encryption scram_iterations
        session_replication_role synchronous_commit vacuum_buffer_usage_limit vacuum_cost_delay
        vacuum_cost_limit vacuum_cost_page_dirty vacuum_cost_page_hit vacuum_cost_page_miss
        vacuum_failsafe_age vacuum_freeze_min_age vacuum_freeze_table_age
        vacuum_max_eager_freeze_failure_rate vacuum_multixact_failsafe_age
        vacuum_multixact_freeze_min_age vacuum_multixact_freeze_table_age vacuum_truncate
        wal_compression wal_consistency_checking wal_init_zero wal_recycle wal_skip_threshold""",
    "it concerns logs and statistics; bronze checks whether activity is visible": """
        backtrace_functions client_min_messages compute_query_id debug_pretty_print
        debug_print_parse debug_print_plan debug_print_rewritten debug_print_raw_parse
        escape_string_warning log_connections log_disconnections log_duration log_error_verbosity
        log_executor_stats log_lock_failures log_lock_waits log_min_duration_sample
        log_min_duration_statement log_min_error_statement log_min_messages
        log_parameter_max_length log_parameter_max_length_on_error log_parser_stats
        log_planner_stats log_replication_commands log_statement log_statement_sample_rate
        log_statement_stats log_temp_files log_transaction_sample_rate stats_fetch_consistency
        trace_notify trace_sort track_activities track_cost_delay_timing track_counts
        track_functions track_io_timing track_wal_io_timing update_process_title""",
    "bronze reads SQLSTATEs, not messages, once a session is open": "lc_messages",
    "it changes when a broken connection is closed": """
        client_connection_check_interval deadlock_timeout post_auth_delay tcp_keepalives_count
        tcp_keepalives_idle tcp_keepalives_interval tcp_user_timeout""",
    "it loads libraries that the administrator chose": """
        dynamic_library_path extension_control_path local_preload_libraries
        session_preload_libraries""",
    "it only makes the server slower": "debug_discard_caches",
    "bronze writes no backslash before a quote": "backslash_quote",
    "only to_tsvector in a view depends on it, as intended": "default_text_search_config",
}


def test_every_setting_of_postgres_is_pinned_refused_or_harmless(source: Source) -> None:
    """Every setting that a role or database can have is classified."""
    query = "SELECT name FROM pg_settings WHERE context = ANY(%s)"
    settings = {row[0] for row in source.execute(query, list(CONTEXTS))}
    classified = [
        *session_settings.PINNED,
        *session_settings.PINNED_IF_KNOWN,
        *session_settings.HIDING_DAMAGE,
    ]
    classified += [name for names in HARMLESS.values() for name in names.split()]
    assert len(set(classified)) == len(classified)
    assert settings - set(classified) == set(), "can they change what bronze reads?"


OTHER_VALUES = {
    "search_path": "evil, public",
    "DateStyle": "German",
    "TimeZone": "Asia/Kolkata",
    "IntervalStyle": "iso_8601",
    "timezone_abbreviations": "Australia",
    "extra_float_digits": "-10",
    "bytea_output": "escape",
    "lc_monetary": "C.UTF-8",
    "lc_numeric": "C.UTF-8",
    "lc_time": "C.UTF-8",
    "xmlbinary": "hex",
    "xmloption": "document",
    "client_encoding": "LATIN1",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "gin_fuzzy_search_limit": "1",
    "enable_tidscan": "off",
    "synchronize_seqscans": "on",
    "jit": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "exit_on_error": "on",
    "idle_in_transaction_session_timeout": "3000",
    "idle_session_timeout": "3000",
    "transaction_timeout": "3000",
}
SETTING = Column("v", "v", "text", DeltaType("string"), "same", "", "", "", "")


@dataclass(frozen=True)
class Login:
    """A role that is not a superuser, in a database."""

    source: Source
    role: str
    database: str

    @property
    def origin(self) -> Origin:
        """The origin with which bronze logs in as the role."""
        return Origin("test", self.source.dsn.replace("postgres@", f"{self.role}@"))

    @property
    def as_role(self) -> Source:
        """The database, accessed by this role."""
        return replace(self.source, dsn=self.origin.conninfo)


@pytest.fixture
def login(source: Source) -> Iterator[Login]:
    """A role for one test."""
    database = str(conninfo_to_dict(source.dsn)["dbname"])
    role = f"{database}_pinned"
    source.execute(f"CREATE ROLE {role} LOGIN REPLICATION; GRANT USAGE ON SCHEMA public TO {role}")
    source.execute(f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {role}")
    yield Login(source, role, database)
    source.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def set_other_values(login: Login, where: str) -> None:
    """Sets each pinned setting to another value, for the role or the database."""
    for name, value in OTHER_VALUES.items():
        alter = sql.SQL("ALTER {} {} SET {} = {}").format(
            sql.SQL(where),
            sql.Identifier(login.role if where == "ROLE" else login.database),
            sql.Identifier(name),
            # A list is written as several values.
            sql.SQL(", ").join(map(sql.Literal, value.split(", "))),
        )
        login.source.execute(alter.as_string(None))


def by_name(rows: Any) -> dict[str, str]:
    """The settings by name."""
    return {str(name): str(value) for name, value in rows}


NAMES = ", ".join(f"'{name}'" for name in OTHER_VALUES)
CURRENT = f"SELECT n, current_setting(n) FROM unnest(ARRAY[{NAMES}]) AS n"
PINNED = {**session_settings.PINNED, **session_settings.PINNED_IF_KNOWN}


def test_every_kind_of_session_is_pinned(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the role, the database, PGOPTIONS or the connection string set other values."""
    assert OTHER_VALUES.keys() == PINNED.keys()
    options = " ".join(f"-c {n}={v.replace(' ', '')}" for n, v in OTHER_VALUES.items())

    def check_sessions(origin: Origin) -> None:
        with read_connection(origin, (BEGIN,)) as reader:
            assert by_name(reader.execute(CURRENT)) == PINNED
        with slot.walsender(origin) as sender:
            assert by_name(sender.execute(CURRENT)) == PINNED
        with connect.connect(origin) as holder:
            assert by_name(holder.execute(CURRENT)) == PINNED
            with hold(origin, holder, [], ["public"], "run") as snapshot:
                query = (
                    f"SELECT n || '=' || v AS c0, NULL::text AS rejected FROM ({CURRENT}) s(n, v)"
                )
                session = snapshot.session
                (rows,) = (
                    r
                    for r, _ in rows_reader.read_rows(
                        origin, session, query, ["true"], [SETTING], "t"
                    )
                )
            assert dict(v.split("=", 1) for v in rows["v"]) == PINNED
        connect.forget_origin(origin)

    set_other_values(login, "ROLE")
    check_sessions(login.origin)
    login.source.execute(f"ALTER ROLE {login.role} RESET ALL")
    set_other_values(login, "DATABASE")
    check_sessions(login.origin)
    login.source.execute(f"ALTER DATABASE {login.database} RESET ALL")
    monkeypatch.setenv("PGOPTIONS", options)
    check_sessions(login.origin)
    monkeypatch.delenv("PGOPTIONS")
    conninfo = psycopg.conninfo.make_conninfo(login.origin.conninfo, options=options)
    check_sessions(replace(login.origin, conninfo=conninfo))


@pytest.mark.parametrize("kind", ["text", "int"])
def test_functions_of_users_are_never_called(login: Login, kind: str) -> None:
    """Neither run nor verify calls one instead of PostgreSQL's own; regclass keeps its schema."""
    source = login.source
    source.execute("CREATE TABLE public.other (id int)")
    value = {"text": "'evil'::text", "int": "7"}[kind]
    source.execute(f"""
        CREATE FUNCTION public.concat(inet) RETURNS {kind} LANGUAGE sql AS $$ SELECT {value} $$;
        CREATE FUNCTION public.concat(regclass) RETURNS {kind} LANGUAGE sql AS $$ SELECT {value} $$;
        CREATE TABLE public.t AS
            SELECT 1 AS id, '10.0.0.1/8'::inet AS ip, 'public.other'::regclass AS r
    """)
    given = login.as_role.settings(source={"tables": ["t"]})
    (landed,) = pipeline.run(given).tables
    assert landed.error is None
    row = pl.read_delta(str(source.table("t"))).row(0, named=True)
    assert (row["ip"], row["r"]) == ("10.0.0.1/8", "public.other")
    assert differences(given) == {}
    assert [table.status for table in verify.verify(given).tables] == ["equal"]


def test_the_pinning_statement_calls_only_functions_of_postgres(login: Login) -> None:
    """Whatever functions and operators the schemas of the role's search_path have."""
    login.source.execute(f"""
        CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO {login.role};
        CREATE FUNCTION evil.set_config(text, text, bool) RETURNS text LANGUAGE sql AS 'SELECT $2';
        CREATE FUNCTION evil.current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT 'on' $$;
        CREATE FUNCTION evil.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT 0';
        CREATE FUNCTION evil.never(int, int) RETURNS bool LANGUAGE sql AS 'SELECT false';
        CREATE OPERATOR evil.= (LEFTARG = int, RIGHTARG = int, FUNCTION = evil.never);
        ALTER ROLE {login.role} SET search_path = evil, pg_catalog
    """)
    with connect.connect(login.origin) as connection:
        assert not connect.is_indirect(login.origin)
        assert by_name(connection.execute(CURRENT)) == PINNED


def test_types_of_extensions_are_compared_by_their_own_operators(login: Login) -> None:
    """Keys, splits and rules use the operators of a type, whose schema is not in the path."""
    source = login.source
    source.execute("""
        CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext;
        CREATE EXTENSION hstore SCHEMA ext; CREATE TYPE ext.mood AS ENUM ('sad', 'happy');
        CREATE TYPE ext.pair AS (a int, b text); CREATE DOMAIN ext.mail AS ext.citext;
        CREATE TABLE public.people (mail ext.citext PRIMARY KEY);
        INSERT INTO people VALUES ('ANN'), ('bob');
        CREATE TABLE public.t (
            id ext.citext PRIMARY KEY CHECK (id <> 'x'::ext.citext), path ext.ltree, h ext.hstore,
            m ext.mood CHECK (m = 'sad'), p ext.pair, mail ext.mail);
        INSERT INTO t SELECT chr((CASE i % 2 WHEN 0 THEN 65 ELSE 97 END) + i % 26) || i,
            ('top.' || i % 7)::ext.ltree, 'a=>1', 'sad', ROW(i, 'x'::text)::ext.pair, 'Ann'
            FROM generate_series(1, 3000) i;
        INSERT INTO t VALUES ('?1', 'once', NULL, NULL, NULL, 'BOB'), ('?2', 'twice', NULL, NULL,
            NULL, 'eve'), ('?3', 'twice', NULL, NULL, NULL, NULL);
        CREATE VIEW public.v AS SELECT id, path FROM t WHERE id <> 'a'::ext.citext
    """)
    source.execute(f"GRANT USAGE ON SCHEMA ext TO {login.role}")
    rules = [
        {"name": "once", "column": "path", "unique": True},
        {"name": "known", "column": "mail", "references": {"table": "people", "columns": "mail"}},
    ]
    own = {"t": {"rules": rules}, "v": {"key": ["id"]}}
    given = login.as_role.settings(source={"tables": ["t", "v"]}, tables=own)
    assert check.check(given).problems == ()
    assert [t.error for t in pipeline.run(given).tables] == [None, None]
    assert differences(given) == {}
    quality = pl.read_delta(str(source.lake / "governance" / "quality"))
    failed = dict(quality.select("rule", "failed").iter_rows())
    # All but the one unique path; of the mails, compared in any case, only eve's is unknown.
    assert (failed["once"], failed["known"]) == (3002, 1)


def test_key_ranges_follow_the_order_of_the_type(login: Login) -> None:
    """Each row of a view is in exactly one split, in the order of citext, where A equals a."""
    source = login.source
    source.execute("""
        CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext;
        CREATE VIEW public.v AS SELECT i AS id, (CASE i % 2 WHEN 0 THEN 'Z' ELSE 'a' END
            || chr(65 + i % 26 + CASE i % 3 WHEN 0 THEN 32 ELSE 0 END))::ext.citext AS k
            FROM generate_series(1, 2000) i
    """)
    with connect.connect(source.settings().origin("test")) as connection:
        (view,) = relations(connection, ["public"])
        parts = splits.key_ranges(connection, view, "k", 9, 10**9)
        assert len(parts) > 3
        queries = [f"SELECT id FROM public.v WHERE {part.where}".encode() for part in parts]
        ids: list[Any] = [row[0] for query in queries for row in connection.execute(query)]
    assert sorted(ids) == list(range(1, 2001))


@pytest.mark.parametrize("language", ["sql", "plpgsql"])
def test_a_view_with_a_function_that_needs_a_search_path_is_refused(
    login: Login, language: str
) -> None:
    """Its error says how to mend the function; the other tables land."""
    body = {"sql": "SELECT n FROM lookup", "plpgsql": "BEGIN RETURN (SELECT n FROM lookup); END"}
    login.source.execute(f"""
        CREATE TABLE public.lookup AS SELECT 7 AS n; CREATE TABLE public.t AS SELECT 1 AS id;
        CREATE FUNCTION public.looked() RETURNS int LANGUAGE {language} AS $$ {body[language]} $$;
        CREATE VIEW public.v AS SELECT id, public.looked() AS n FROM t
    """)
    given = login.as_role.settings(source={"tables": ["t", "v"]})
    errors = {table.table: table.error for table in pipeline.run(given).tables}
    assert errors["public.t"] is None
    error = errors["public.v"]
    assert error is not None
    assert "calls a function that uses a name without its schema" in error.message
    assert "ALTER FUNCTION" in error.hint
    login.source.execute("ALTER FUNCTION public.looked() SET search_path = public")
    assert [table.error for table in pipeline.run(given).tables] == [None, None]
    assert differences(given) == {}
