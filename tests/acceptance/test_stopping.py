"""Signals to commands at work: they end soon and in order, and say what landed and what did not."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest

import bronze
from bronze.cli.failures import stop_on_signals
from bronze.governance.tables import runs
from tests.acceptance.test_cli import configured, data_files, gated, invoke, started, visible_files
from tests.conftest import Source
from tests.support.proxy import closed_gate, landed, sessions, until

SOON = 5.0
"""Seconds; a stop takes one or two, and the machine may have other work."""


def ending(process: subprocess.Popen[str], number: signal.Signals) -> tuple[str, str, float]:
    """Output and errors of a process after a signal, and the seconds until it ended."""
    sent = time.monotonic()
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    seconds = time.monotonic() - sent
    print(f"{process.args!r} ended after {seconds:.2f} s with {process.returncode}")
    return output, errors, seconds


def latest(source: Source) -> dict[str, dict[str, Any]]:
    """The records of runs that count, by table."""
    table = pl.scan_delta(str(source.lake / "governance" / runs.NAME))
    rows = runs.latest(table).collect().rows(named=True)
    return {row["source_table"]: row for row in rows}


@pytest.mark.parametrize(
    ("engine", "reader"),
    [
        ("threads", "packed"),
        pytest.param("processes", "connectorx", marks=pytest.mark.soak),
    ],
)
def test_a_stopped_run_keeps_what_landed(source: Source, engine: str, reader: str) -> None:
    """It cancels the reads, has no file of what did not land, and both results and records say what
    was stopped. The next run lands the rest.
    """
    gated(source)
    config = configured(
        source,
        source={"lock_timeout": "10m", "reader": reader},
        tables={"first": {"priority": 1}},
        run={"engine": engine},
    )
    with closed_gate(source.dsn) as gate, started("run", "--json", "-c", config) as process:
        gate.reached()
        until(lambda: landed(source, "first"))
        output, errors, seconds = ending(process, signal.SIGTERM)
        assert process.returncode == 130, errors
        assert seconds < SOON
        until(lambda: not sessions(gate.keeper))
    result = json.loads(output)
    assert {t["table"]: t["status"] for t in result["tables"]} == {
        "public.first": "landed",
        "public.gated": "stopped",
    }
    assert result["unrecorded"] is None
    assert "Traceback" not in errors
    assert data_files(source) == visible_files(source, "first")
    records = latest(source)
    assert records["public.first"]["status"] == "landed"
    stopped = records["public.gated"]
    assert (stopped["status"], stopped["error_kind"]) == ("stopped", "Stopped")
    (event,) = bronze.open(config).audit(action="run").records
    assert event.result == "interrupted"
    assert invoke("run", "-c", config).exit_code == 0
    assert invoke("verify", "-c", config).exit_code == 0


@pytest.mark.soak
def test_a_stopped_run_prints_what_landed(source: Source) -> None:
    """As text, and with one line for all tables that did not land."""
    config = gated(source)
    with closed_gate(source.dsn) as gate, started("run", "-c", config) as process:
        gate.reached()
        until(lambda: landed(source, "first"))
        output, errors, seconds = ending(process, signal.SIGINT)
    assert process.returncode == 130, errors
    assert seconds < SOON
    assert "landed" in output
    assert "Stopped before the end: public.gated." in errors
    assert "Traceback" not in errors


@contextmanager
def table_lock(source: Source) -> Iterator[Callable[[], object]]:
    """A lock that a run waits for; yields whether one waits."""
    with psycopg.connect(source.dsn) as holder:
        holder.execute("LOCK TABLE first IN ACCESS EXCLUSIVE MODE")
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM"
        waits += " pg_database WHERE datname = current_database())"
        yield lambda: source.execute(waits)


@pytest.mark.soak
@pytest.mark.parametrize("command", ["verify", "run"])
def test_a_command_that_waits_for_a_lock_is_stopped(source: Source, command: str) -> None:
    """Before its tables are planned: it is an error, and the record of a run says so."""
    config = gated(source)
    with table_lock(source) as waits, started(command, "--json", "-c", config) as process:
        until(waits)
        output, errors, seconds = ending(process, signal.SIGTERM)
        assert process.returncode == 130, errors
        assert seconds < SOON
    assert json.loads(output)["error"]["kind"] == "Stopped"
    if command == "run":
        assert latest(source)[""]["status"] == "stopped"


@pytest.mark.soak
def test_a_command_that_connects_is_stopped(source: Source) -> None:
    """To a server that takes the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/x"
        config = configured(source, source={"dsn": dsn, "connect_timeout": "60s"})
        with started("run", "--json", "-c", config) as process:
            client, _ = silent.accept()
            output, errors, seconds = ending(process, signal.SIGTERM)
            client.close()
            assert process.returncode == 130, errors
            assert seconds < SOON
    assert json.loads(output)["error"]["kind"] == "Stopped"


@pytest.mark.soak
def test_a_stopped_verification_names_what_it_did_not_verify(source: Source) -> None:
    """The tables that were compared before have their results."""
    config = gated(source)
    assert invoke("run", "-c", config).exit_code == 0
    with closed_gate(source.dsn) as gate, started("verify", "--json", "-c", config) as process:
        gate.reached()
        output, errors, seconds = ending(process, signal.SIGTERM)
        assert process.returncode == 130, errors
        assert seconds < SOON
        until(lambda: not sessions(gate.keeper))
    statuses = {table["table"]: table["status"] for table in json.loads(output)["tables"]}
    assert statuses["public.gated"] == "stopped"
    assert invoke("verify", "-c", config).exit_code == 0


def large(source: Source) -> Path:
    """A config for one large table, whose load takes many seconds."""
    source.execute(
        "CREATE TABLE t AS SELECT i AS id, md5(i::text) AS a, repeat(md5(i::text), 4) AS b,"
        " i * 1.5 AS c FROM generate_series(1, 1500000) i"
    )
    return configured(source, tables={"t": {"cluster_by": ["a"]}})


@pytest.mark.soak
@pytest.mark.slow
def test_a_large_table_is_stopped_at_any_time(source: Source) -> None:
    """While it is read, written, clustered, verified or maintained: nothing half-written is left,
    and the data is equal after the next run.
    """
    config = large(source)
    connected = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
    connected += " AND application_name LIKE 'bronze%'"
    for delay in (0.0, 1.5, 3.0, 5.0, 8.0):
        with started("run", "--json", "-c", config) as process:
            until(lambda: source.execute(connected))
            time.sleep(delay)
            _, errors, seconds = ending(process, signal.SIGTERM)
            assert process.returncode in (0, 130), errors
            assert seconds < SOON
    assert invoke("run", "-c", config).exit_code == 0
    for arguments in (["verify"], ["verify", "--at-rest"], ["maintain"]):
        for delay in (2.0, 3.0, 5.0):
            with started(*arguments, "-c", config) as process:
                time.sleep(delay)
                _, errors, seconds = ending(process, signal.SIGTERM)
                # While it still imports, the signal ends it as it does any program.
                assert process.returncode in (0, 130, -signal.SIGTERM), errors
                assert seconds < SOON
    result = invoke("verify", "--json", "-c", config)
    assert result.exit_code == 0, result.output
    assert [table["stray_files"] for table in json.loads(result.stdout)["tables"]] == [0]
    rest = invoke("verify", "--at-rest", "--json", "-c", config)
    assert [table["stray_files"] for table in json.loads(rest.stdout)["tables"]] == [0]


def test_the_second_signal_interrupts_at_once() -> None:
    """The first one asks to stop; afterwards signals do what they did before."""
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
