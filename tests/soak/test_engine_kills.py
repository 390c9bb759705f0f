"""Workers that are killed while they rewrite files: the table stays as it was, or is optimized."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.layout import vacuum
from bronze.maintenance.maintain import maintain
from bronze.verify.verify import verify
from tests.conftest import Source
from tests.integration.execution.test_engine_works import config, secrets, small_files
from tests.support.content import differences
from tests.support.streams import until

__all__ = ["secrets"]

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]

CHILD = """
import json, sys
from bronze.config import loading
from bronze.maintenance import maintain
if __name__ == "__main__":
    result = maintain.maintain(loading.parse(json.loads(sys.argv[1])), ["t"])
    error = result.tables[0].error
    print(json.dumps([error.kind, error.message, error.hint] if error else []))
"""


def maintained(tmp_path: Path, settings: Settings, **env: str) -> list[str]:
    """Maintains the table in a process with ``env``; the error of the table."""
    script = tmp_path / "script.py"
    script.write_text(CHILD)
    document = settings.model_dump_json(by_alias=True, exclude_unset=True)
    done = subprocess.run(
        [sys.executable, str(script), document],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: list[str] = json.loads(done.stdout.decode().splitlines()[-1])
    return found


def files(source: Source) -> set[str]:
    """The Parquet files in the table's folder."""
    return {path.name for path in source.table("t").rglob("*.parquet")}


def version(source: Source) -> int:
    """The table's version."""
    state = log.read(config(source).place("bronze", "bz_t"))
    assert state is not None
    return state.version


def test_a_worker_process_that_is_killed_leaves_the_table(source: Source, tmp_path: Path) -> None:
    """The error says so; no file is left, and another maintenance succeeds."""
    small_files(source, config(source))
    before = files(source), version(source)
    processes = config(source, engine="processes")
    kind, message, hint = maintained(tmp_path, processes, BRONZE_FAILPOINT="file")
    assert (kind, "A worker process was killed" in message) == ("EngineLost", True), message
    assert "memory" in hint
    assert (files(source), version(source)) == before
    assert maintained(tmp_path, processes) == []
    assert version(source) == before[1] + 1
    assert differences(processes) == {}
    assert [table.status for table in verify(processes, at_rest=True).tables] == ["equal"]


@contextmanager
def started(module: str, *arguments: str, **env: str) -> Iterator[subprocess.Popen[Any]]:
    """A scheduler or worker of Dask."""
    command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments, "--no-dashboard"]
    with subprocess.Popen(command, env={**os.environ, **env}, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_another_worker_of_a_cluster_does_the_work_of_one_that_is_killed(
    source: Source, tmp_path: Path
) -> None:
    """The table is optimized once; what the first one wrote is no part of it, and is swept."""
    small_files(source, config(source))
    before = version(source)
    scheduler = tmp_path / "scheduler.json"
    worker = ("--scheduler-file", str(scheduler), "--nthreads", "1", "--no-nanny")
    with ExitStack() as stack:
        listening = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(scheduler))
        stack.enter_context(started("dask_scheduler", *listening))
        until(scheduler.exists)
        doomed = stack.enter_context(started("dask_worker", *worker, BRONZE_FAILPOINT="file"))
        address = json.loads(scheduler.read_text())["address"].removeprefix("tcp://")
        settings = config(source, engine=f"dask://{address}")
        import distributed

        with distributed.Client(f"tcp://{address}", set_as_default=False) as client:  # type: ignore[no-untyped-call]
            client.wait_for_workers(1)
        # It joins once the other one has the work.
        late = "import time; time.sleep(8); from distributed.cli.dask_worker import main; main()"
        command = [sys.executable, "-c", late, *worker, "--no-dashboard"]
        survivor = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        stack.callback(survivor.wait)
        stack.callback(survivor.kill)
        (made,) = maintain(settings, ["t"]).tables
        assert doomed.wait(30) == -signal.SIGKILL
    assert (made.error, made.version) == (None, before + 1)
    assert differences(config(source)) == {}
    assert stray_files(source) == 1
    settings = config(source)
    place, kept = settings.place("bronze", "bz_t"), settings.maintain.retention
    vacuum.expire(place, kept, (), time.time() + kept + 86400)
    assert stray_files(source) == 0


def stray_files(source: Source) -> int:
    """How many files of the table's folder its log does not name; the others are as it says."""
    (table,) = verify(config(source), at_rest=True).tables
    assert table.status == "equal"
    return table.stray_files
