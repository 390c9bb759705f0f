"""The command line as its users meet it: exit codes, one JSON document, signals, help."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner, Result

import bronze
from bronze.cli.main import app
from tests.conftest import Source
from tests.support.proxy import GATE, closed_gate, landed, sessions, until

PASSWORD = "pa55-w0rd"
COMMANDS = ("run", "check", "init", "demo")


def toml(value: object) -> str:
    """A value in TOML; its strings are those of JSON."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{toml(k)} = {toml(v)}' for k, v in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def configured(source: Source, /, **sections: Mapping[str, Any]) -> Path:
    """A config file for a database and its lake; ``sections`` add to the config's sections."""
    document: dict[str, Any] = {
        "source": {"name": "test", "dsn": source.dsn},
        "lake": {"root": str(source.lake)},
        "run": {"workers": 2, "max_retries": 0, "retry_delay": 0},
    }
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values}
    path = source.lake.parent / "bronze.toml"
    path.write_text("\n".join(f"{key} = {toml(value)}" for key, value in document.items()))
    return path


def invoke(*arguments: object) -> Result:
    """Runs a command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@contextmanager
def started(*arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, which is killed if it does not end."""
    with subprocess.Popen(
        [sys.executable, "-m", "bronze", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def data_files(source: Source) -> set[str]:
    """The names of the Bronze tables' data files, whether they are visible or not."""
    return {path.name for path in source.table("t").parent.rglob("*.parquet")}


def visible_files(source: Source, *tables: str) -> set[str]:
    """The names of the files that the tables' logs name."""
    found = (DeltaTable(str(source.table(table))).file_uris() for table in tables)
    return {Path(uri).name for uris in found for uri in uris}


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_the_commands(flag: str) -> None:
    """The overview says what each command is for."""
    result = invoke(flag)
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    """Each command explains itself without a config or a source."""
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    assert result.stderr == ""


def test_without_a_command_help_is_shown() -> None:
    """`bronze` alone shows the overview."""
    assert "Usage" in invoke().output


def test_help_imports_no_large_library() -> None:
    """--help does not import polars and the others."""
    code = (
        "import sys; from bronze.cli.main import app; app(['--help'], standalone_mode=False);"
        "print([m for m in ('polars', 'deltalake', 'connectorx', 'psycopg', 'sklearn')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version_is_the_version_of_the_package() -> None:
    """The same number everywhere."""
    assert bronze.__version__ == importlib.metadata.version("bronze")


def test_an_unknown_option_exits_with_2() -> None:
    """The message names the option."""
    result = invoke("run", "--jsno")
    assert result.exit_code == 2
    assert "--jsno" in result.stderr


def test_run_prints_one_json_document(source: Source) -> None:
    """With --json stdout has the result and nothing else, and stderr is empty."""
    source.execute("CREATE TABLE t AS SELECT generate_series(1, 3) AS id")
    result = invoke("run", "--json", "-c", configured(source))
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    told = {"batch_id", "position", "seconds", "tables"}
    assert set(document) == told | {"late", "notes", "unrecorded", "copy_error"}
    (table,) = document["tables"]
    assert (table["table"], table["target"]) == ("public.t", "bronze.bz_t")
    assert (table["status"], table["rows_read"], table["version"]) == ("landed", 3, 0)
    assert table["error"] is None
    assert result.stderr == ""


def test_run_prints_figures_for_people(source: Source) -> None:
    """Without --json there is a line of figures and a log line for each table."""
    source.execute("CREATE TABLE orders AS SELECT generate_series(1, 3) AS id")
    result = invoke("run", "orders", "-c", configured(source))
    assert result.exit_code == 0, result.output
    assert "bz_orders" in result.stdout
    assert "landed" in result.stdout
    assert "public.orders" in result.stderr


def test_check_prints_one_json_document(source: Source) -> None:
    """The document has the problems, and the exit code is 1 if there is one."""
    source.execute('CREATE TABLE t (id int PRIMARY KEY, "a b" text)')
    result = invoke("check", "--json", "-c", configured(source))
    assert result.exit_code == 1, result.output
    (table,) = json.loads(result.stdout)["tables"]
    assert "'a b'" in table["problem"]["message"]
    source.execute('ALTER TABLE t RENAME "a b" TO ab')
    result = invoke("check", "--json", "-c", configured(source))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tables"][0]["problem"] is None
    assert not source.table("t").exists()


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("section", "exit_code", "kind"),
    [
        ({"lake": {"rot": "x"}}, 2, "ConfigError"),
        ({"source": {"schema": "nowhere"}}, 2, "ConfigError"),
        ({"source": {"dsn": "postgresql://x@127.0.0.1:1/db"}}, 3, "SourceUnreachable"),
        ({"lake": {"root": "/dev/null/lake"}}, 3, "LakeUnreachable"),
    ],
)
def test_an_error_is_one_json_document(
    source: Source, command: str, section: dict[str, Any], exit_code: int, kind: str
) -> None:
    """With --json stdout has the kind, the message and the hint of the error."""
    source.execute("CREATE TABLE t ()")
    result = invoke(command, "--json", "-c", configured(source, **section))
    assert result.exit_code == exit_code, result.output
    error = json.loads(result.stdout)["error"]
    assert error["kind"] == kind
    assert error["message"]
    assert error["hint"]


def test_a_failed_table_is_in_the_json_document(source: Source) -> None:
    """The others land, and the exit code is 1."""
    source.execute('CREATE TABLE good AS SELECT 1 AS id; CREATE TABLE bad ("a b" int)')
    result = invoke("run", "--json", "-c", configured(source))
    assert result.exit_code == 1, result.output
    found = {table["table"]: table for table in json.loads(result.stdout)["tables"]}
    assert found["public.good"]["status"] == "landed"
    assert found["public.bad"]["status"] == "failed"
    assert found["public.bad"]["error"]["kind"] == "TableRefused"
    assert "rename" in found["public.bad"]["error"]["hint"]


def test_bronze_config_names_the_config(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable BRONZE_CONFIG has the effect of -c."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    monkeypatch.setenv("BRONZE_CONFIG", str(configured(source)))
    assert invoke("run").exit_code == 0


def test_a_missing_config_says_how_to_write_one(tmp_path: Path) -> None:
    """The first error that a new user sees has a hint."""
    result = invoke("run", "-c", tmp_path / "bronze.toml")
    assert result.exit_code == 2
    assert "There is no config file" in result.stderr
    assert "bronze init --dsn" in result.stderr
    assert result.stdout == ""


def test_a_relative_lake_root_is_relative_to_the_config(source: Source) -> None:
    """Whatever the working directory is."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    result = invoke("run", "-c", configured(source, lake={"root": "lake"}))
    assert result.exit_code == 0, result.output
    assert source.table("t").is_dir()


@pytest.mark.soak
def test_sigterm_leaves_no_partial_table(source: Source) -> None:
    """Committed tables stay, others have no file, and no query runs on at the source."""
    config = gated(source)
    with closed_gate(source.dsn) as gate, started("run", "--json", "-c", config) as process:
        gate.reached()
        until(lambda: landed(source, "first"))
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=10)
        assert process.returncode == 130, errors
        until(lambda: not gate.waiting())
        until(lambda: not sessions(gate.keeper))
    prove_interrupted(source, config, output, errors)


def test_ctrl_c_leaves_no_partial_table(source: Source) -> None:
    """As with SIGTERM."""
    config = gated(source)
    with closed_gate(source.dsn) as gate, ThreadPoolExecutor(1) as pool:

        def press() -> None:
            gate.reached()
            until(lambda: landed(source, "first"))
            # Python's handler runs in the main thread, which is not to wait for it.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        pressed = pool.submit(press)
        result = invoke("run", "--json", "-c", config)
        pressed.result()
        assert result.exit_code == 130, result.output
        until(lambda: not gate.waiting())
        until(lambda: not sessions(gate.keeper))
    prove_interrupted(source, config, result.stdout, result.stderr)


def gated(source: Source) -> Path:
    """A config for a table that lands, and a view that waits at a gate once it has."""
    source.execute(GATE)
    source.execute("CREATE TABLE first AS SELECT generate_series(1, 10) AS id")
    source.execute("CREATE VIEW gated AS SELECT gate(id) AS id FROM first")
    patient = {"lock_timeout": "10m"}
    return configured(source, source=patient, tables={"first": {"priority": 1}})


def prove_interrupted(source: Source, config: Path, output: str, errors: str) -> None:
    """The table has landed, the view has not, and does at the next run."""
    assert "Traceback" not in output + errors
    assert pl.read_delta(str(source.table("first"))).height == 10
    assert not DeltaTable.is_deltatable(str(source.table("gated")))
    assert data_files(source) == visible_files(source, "first")
    statuses = {table["table"]: table["status"] for table in json.loads(output)["tables"]}
    assert statuses == {"public.first": "landed", "public.gated": "stopped"}
    assert invoke("run", "-c", config).exit_code == 0
    assert pl.read_delta(str(source.table("gated"))).height == 10


def test_a_killed_run_leaves_no_visible_files(source: Source) -> None:
    """After SIGKILL no version has a partial table, and the next run lands all."""
    source.execute(GATE)
    source.execute("CREATE TABLE t AS SELECT generate_series(1, 10) AS id")
    source.execute("CREATE VIEW gated AS SELECT gate(id) AS id FROM t")
    config = configured(source)
    with closed_gate(source.dsn) as gate, started("run", "gated", "-c", config) as process:
        gate.reached()
        process.kill()
        process.communicate(timeout=30)
    assert not DeltaTable.is_deltatable(str(source.table("gated")))
    assert invoke("run", "-c", config).exit_code == 0
    assert pl.read_delta(str(source.table("gated"))).height == 10


def test_no_output_has_the_password(source: Source) -> None:
    """Not of a successful run, an error, or a traceback with BRONZE_DEBUG."""
    source.execute('CREATE TABLE t AS SELECT 1 AS id; CREATE TABLE bad ("a b" int)')
    good = source.dsn.replace("postgres@", f"postgres:{PASSWORD}@")
    lost = f"postgresql://postgres:{PASSWORD}@127.0.0.1:1/db"
    strange = f"postgresql://postgres:{PASSWORD}@[::1"
    for dsn, exit_code in ((good, 1), (lost, 3), (strange, 2)):
        config = configured(source, source={"dsn": dsn})
        for command in (("run",), ("run", "--json"), ("check",)):
            result = invoke(*command, "-c", config)
            assert result.exit_code == exit_code, result.output
            assert PASSWORD not in result.stdout + result.stderr
    kept = (path for path in source.lake.rglob("*") if path.is_file())
    assert not [path for path in kept if PASSWORD.encode() in path.read_bytes()]


def test_commands_for_protected_tables_print_their_results(source: Source) -> None:
    """reveal, keys and forget print their results as text, JSON and CSV."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, mail text)")
    source.execute("INSERT INTO t VALUES (1, 'ann@example.com'), (2, 'bob@example.com')")
    path = configured(source, tables={"t": {"protect": {"mail": "encrypt"}}})
    assert invoke("run", "-c", path).exit_code == 0
    told = invoke("reveal", "t", "--key", "id=1", "--columns", "id,mail", "-c", path)
    assert "ann@example.com" in told.stdout
    assert "bob" not in told.stdout
    told = invoke("reveal", "t", "--columns", "mail", "--limit", "1", "--json", "-c", path)
    assert json.loads(told.stdout) == [{"mail": "ann@example.com"}]
    told = invoke("reveal", "t", "--columns", "mail,id", "--csv", "-c", path)
    assert told.stdout.splitlines() == ["mail,id", "ann@example.com,1", "bob@example.com,2"]
    assert invoke("reveal", "t", "--key", "id", "-c", path).exit_code == 2
    missing = invoke("reveal", "t", "--key", "id=3", "-c", path)
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "No row matches." in missing.stderr
    told = invoke("reveal", "t", "--limit", "1", "-c", path)
    assert [line.split() for line in told.stdout.splitlines()[:2]] == [
        ["mail", "id"],
        ["ann@example.com", "1"],
    ]
    assert told.stdout.splitlines()[2] == "the first of 2 rows; --limit 0 shows all"
    before = json.loads(invoke("keys", "--json", "-c", path).stdout)
    planned = invoke("keys", "rotate", "t", "--reencrypt", "--dry-run", "--json", "-c", path)
    assert {key["id"] for key in json.loads(planned.stdout)} == {key["id"] for key in before}
    assert json.loads(invoke("keys", "--json", "-c", path).stdout) == before
    made = json.loads(invoke("keys", "rotate", "t", "--json", "-c", path).stdout)
    assert [key["column"] for key in made] == ["mail"]
    listed = json.loads(invoke("keys", "--json", "-c", path).stdout)
    assert [key["current"] for key in listed if key["column"] == "mail"] == [False, True]
    assert made[0]["id"] in invoke("keys", "-c", path).stdout
    assert json.loads(invoke("keys", "rewrap", "--json", "-c", path).stdout) == {"rewrapped": 0}
    assert invoke("keys", "-c", path, "rotate").exit_code == 2
    still = invoke("forget", "t", "--key", "id=1", "-c", path)
    assert still.exit_code == 1
    assert "still has such a row" in still.stderr
    source.execute("DELETE FROM t WHERE id = 1")
    assert invoke("run", "-c", path).exit_code == 0
    files = data_files(source)
    planned = invoke("forget", "t", "--key", "id=1", "--dry-run", "-c", path)
    assert planned.exit_code == 0
    assert "would erase" in planned.stdout
    assert data_files(source) == files
    done = invoke("forget", "t", "--key", "id=1", "-c", path)
    assert done.exit_code == 0
    assert "no such row in them" in done.stdout
    done = invoke("forget", "t", "--key", "id=2", "--without-source", "--json", "-c", path)
    assert json.loads(done.stdout)["rows"] == 1
    done = invoke("forget", "t", "--old-versions", "--json", "-c", path)
    assert json.loads(done.stdout)["left"] == 0
    assert invoke("forget", "t", "-c", path).exit_code == 2


def test_a_dry_run_changes_nothing(source: Source) -> None:
    """Of a repair, and of dropping a stream; each says what it would do."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
    config = configured(source)
    assert invoke("run", "-c", config).exit_code == 0
    source.execute("DELETE FROM t WHERE id = 2")
    planned = invoke("verify", "--repair", "--dry-run", "-c", config)
    assert planned.exit_code == 1
    assert planned.stdout.splitlines()[-1] == "--repair would reload public.t"
    assert DeltaTable(str(source.table("t"))).version() == 0
    streamed = configured(source, tables={"t": {"pattern": "streaming"}})
    planned = invoke("stream", "--drop", "--dry-run", "-c", streamed)
    assert planned.exit_code == 0
    assert "Would drop the slot bronze_test" in planned.stdout
    refused = invoke("stream", "--dry-run", "-c", streamed)
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_audit_prints_and_verifies_records(source: Source) -> None:
    """As lines for people or one JSON document; exit code 1 if the log has a fault."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    config = configured(source)
    invoke("run", "-c", config)
    shown = invoke("audit", "-c", config, "--action", "run")
    assert (shown.exit_code, shown.stdout.count("succeeded")) == (0, 1)
    document = json.loads(invoke("audit", "--verify", "--json", "-c", config).stdout)
    assert all(isinstance(record["details"], dict) for record in document["records"])
    assert (document["verified"], document["problems"], document["count"]) == (True, [], 3)
    assert document["head"] in shown.stdout
    kept = invoke("audit", "--head", document["head"], "-c", config)
    assert (kept.exit_code, "all of them whole" in kept.stdout) == (0, True)
    lost = invoke("audit", "--head", "0" * 64, "-c", config)
    assert (lost.exit_code, "put back" in lost.stderr) == (1, True)
    assert invoke("audit", "--since", "1h", "--table", "t", "-c", config).exit_code == 0
    wrong = invoke("audit", "--since", "yesterday", "-c", config)
    assert (wrong.exit_code, "is not a time" in wrong.stderr) == (2, True)


@pytest.mark.soak
def test_the_next_run_records_what_a_killed_run_committed(source: Source) -> None:
    """It says so, and the audit log has the record."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    config = configured(source)
    with started("run", "-c", config, BRONZE_FAILPOINT="landed") as dying:
        dying.wait(30)
    told = invoke("run", "-c", config)
    assert "died before it was recorded" in told.stdout
    shown = invoke("audit", "-c", config, "--table", "t").stdout
    assert shown.count("died") == 1
    assert "created with 1 column" in shown
