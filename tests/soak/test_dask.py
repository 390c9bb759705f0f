"""A Dask cluster under fire: workers and schedulers that die, wrong versions, secrets, memory."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bronze.config import loading
from bronze.config.settings import Settings
from bronze.delta import log
from bronze.delta.commit import ORPHAN_AGE
from bronze.delta.layout import vacuum
from bronze.errors import ConfigError, EngineLost
from bronze.execution import budget, cluster
from bronze.execution.executors import executor
from bronze.ingest import pipeline
from bronze.model.locations import Place
from bronze.model.results import RunResult
from tests.conftest import Source
from tests.support import dask_cluster
from tests.support.content import differences
from tests.support.dask_cluster import Cluster
from tests.support.proxy import GATE, closed_gate, until

pytestmark = pytest.mark.soak

ROWS = 200_000
TABLE = f"""
CREATE TABLE t (id int PRIMARY KEY, customer text, amount numeric(12,2), at timestamptz);
INSERT INTO t SELECT i, md5(i::text), i / 4.0, '2026-01-01'::timestamptz + i * interval '1 second'
FROM generate_series(1, {ROWS}) i
"""


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of a few megabytes have many units."""
    monkeypatch.setattr(budget, "PACKED_SPLIT", 2**20)
    monkeypatch.setattr(budget, "LARGEST_FILE", 2**21)


def settings_of(source: Source, running: Cluster, **run: Any) -> Settings:
    """A config that has the cluster as its engine."""
    base = {"engine": f"dask://{running.address}", "workers": 2, "retry_delay": 0, **run}
    return loading.parse(
        {
            "source": {"name": "test", "dsn": source.dsn, "pool": {"max": 20}},
            "lake": {"root": str(source.lake)},
            "run": base,
        }
    )


def in_background(work: Callable[[], RunResult]) -> tuple[threading.Thread, list[Any]]:
    """Runs in a thread; its result or its error is in the list afterwards."""
    outcome: list[Any] = []

    def perform() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=perform)
    thread.start()
    return thread, outcome


@contextmanager
def held(source: Source, settings: Settings) -> Iterator[list[Any]]:
    """A run that waits for one row of the source while the block goes on; its outcome is in the
    list after the block.
    """
    source.execute(TABLE)
    source.execute(GATE)
    source.execute("CREATE VIEW slow AS SELECT gate(id) AS id FROM t WHERE id <= 1000")
    with closed_gate(source.dsn) as gate:
        thread, outcome = in_background(lambda: pipeline.run(settings))
        gate.reached()
        yield outcome
    thread.join(90)
    assert not thread.is_alive()


def landed(result: Any) -> None:
    """All tables of a run have landed."""
    assert isinstance(result, RunResult), result
    assert [table.error for table in result.tables if table.error] == []


def unnamed(place: Place) -> int:
    """How many data files in the folder of a table are not in its log."""
    state = log.read(place)
    assert state
    return len(vacuum.unnamed_files(state, list(vacuum.objects_of(place))))


def swept(source: Source) -> None:
    """After a day, vacuum deletes what no commit has, and nothing else."""
    for name in ("t", "slow"):
        place = Place(str(source.table(name)))
        vacuum.expire(place, 0, [], time.time() + 2 * ORPHAN_AGE)
        assert unnamed(place) == 0


def holder_of_gate(running: Cluster) -> str:
    """The worker that has the task of the view, which waits."""
    import distributed

    connect: Any = distributed.Client
    with connect(f"tcp://{running.address}", set_as_default=False) as client:
        names = {a: w["name"] for a, w in client.scheduler_info(-1)["workers"].items()}

        def busy() -> list[str]:
            return [a for a, tasks in client.processing().items() if tasks]

        # The other tasks have ended.
        until(lambda: len(busy()) == 1)
        return str(names[busy()[0]])


@pytest.mark.usefixtures("small_units")
def test_what_a_killed_worker_did_is_done_by_another_one(source: Source, tmp_path: Path) -> None:
    """The run lands all tables, each row once, though a worker was killed in the middle."""
    with dask_cluster.cluster(tmp_path, 2) as running:
        settings = settings_of(source, running)
        with held(source, settings) as outcome:
            running.kill(holder_of_gate(running))
        landed(outcome[0])
        assert differences(settings) == {}
    swept(source)
    assert differences(settings) == {}


def test_files_of_a_worker_that_was_cut_off_are_orphans(source: Source, tmp_path: Path) -> None:
    """The unit of a worker that does not answer is given to another one. When the first comes back
    and finishes, its file is in no commit, and vacuum deletes it.
    """
    patience = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "2s"}
    with dask_cluster.cluster(tmp_path, 2, patience) as running:
        settings = settings_of(source, running)
        with held(source, settings) as outcome:
            worker = running.processes[holder_of_gate(running)]
            worker.send_signal(signal.SIGSTOP)
        landed(outcome[0])
        worker.send_signal(signal.SIGCONT)
        until(lambda: unnamed(Place(str(source.table("slow")))) == 1)
        assert differences(settings) == {}
        # It has noticed that the scheduler has given it up.
        worker.wait(30)
        landed(pipeline.run(settings))
    swept(source)
    assert differences(settings) == {}


@pytest.mark.usefixtures("small_units")
def test_a_lost_scheduler_ends_the_run_with_a_sentence(source: Source, tmp_path: Path) -> None:
    """The command says what was lost and exits with 3; the next run goes on, and no row is lost or
    there twice.
    """
    with dask_cluster.cluster(tmp_path, 2) as running:
        settings = settings_of(source, running, max_retries=0)
        file = tmp_path / "bronze.toml"
        file.write_text(toml(settings))
        command = [sys.executable, "-m", "bronze", "run", "--config", str(file)]
        source.execute(TABLE)
        source.execute(GATE)
        source.execute("CREATE VIEW slow AS SELECT gate(id) AS id FROM t WHERE id <= 1000")
        with closed_gate(source.dsn) as gate:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            gate.reached()
            until(lambda: (source.table("t") / "_delta_log").exists())
            running.kill("scheduler")
            said, _ = process.communicate(timeout=60)
        assert process.returncode == 3
        assert f"The Dask scheduler at {running.address} was lost" in " ".join(said.split())
        assert "Traceback" not in said, said
        for name in ("w0", "w1"):
            running.processes.pop(name).wait(60)
        running.start_scheduler()
        running.start_worker("w2")
        landed(pipeline.run(settings))
        assert differences(settings) == {}
    swept(source)
    assert differences(settings) == {}


def toml(settings: Settings) -> str:
    """The config as a file."""
    source, lake, run = settings.source["test"], settings.lake, settings.run
    return (
        f'[source]\nname = "test"\ndsn = "{source.dsn}"\n[lake]\nroot = "{lake.root}"\n'
        f'[run]\nengine = "{run.engine}"\nworkers = 2\nmax_retries = 0\nretry_delay = 0\n'
    )


def test_a_lost_scheduler_is_waited_for(source: Source, tmp_path: Path) -> None:
    """With retries, the run begins again once the scheduler and a worker are back."""
    with dask_cluster.cluster(tmp_path, 1) as running:
        settings = settings_of(source, running, max_retries=3)
        with held(source, settings) as outcome:
            running.kill("scheduler")
            running.processes.pop("w0").wait(60)
            running.start_scheduler()
            running.start_worker("w1")
        landed(outcome[0])
        assert differences(settings) == {}


def test_secrets_stay_where_they_are(
    source: Source, tmp_path: Path, bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the password nor the key of the store is in what driver, scheduler and workers say to
    each other; a worker has them from its own environment, and no config file.
    """
    dsn = source.dsn.replace("postgres@", "postgres:hunter2-of-source@")
    values = {"SOURCE_DSN": dsn, "STORE_KEY": bucket["aws_secret_access_key"] + "fish-of-store"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    options = {**bucket, "aws_secret_access_key": {"secret": "STORE_KEY"}}
    source.execute("CREATE TABLE t AS SELECT i AS id FROM generate_series(1, 1000) i")
    running = Cluster(tmp_path)
    try:
        running.start_scheduler()
        with recorded(running.host, running.port) as recorder:
            seen = Cluster(tmp_path, port=recorder.port)
            seen.processes = running.processes
            seen.start_worker("w0", environment=values)
            document = {
                "source": {"name": "test", "dsn": {"secret": "SOURCE_DSN"}},
                "lake": {"root": "s3://lake/dask", "options": options},
                "run": {"engine": f"dask://127.0.0.1:{recorder.port}", "workers": 1},
            }
            settings = loading.parse(document)
            landed(pipeline.run(settings))
            assert b"bz_t" in recorder.data
            for word in (b"hunter2-of-source", b"fish-of-store"):
                assert word not in recorder.data
            running.kill("w0")
            seen.start_worker("poor", environment={"STORE_KEY": "", "SOURCE_DSN": dsn})
            source.execute("INSERT INTO t VALUES (0)")
            (table,) = pipeline.run(settings).tables
            assert table.error is not None
            assert table.error.kind == "ConfigError"
            assert table.error.message.startswith("On the Dask worker at tcp://127.0.0.1:")
            assert "STORE_KEY" in table.error.message
    finally:
        dask_cluster.stop(running)


@dataclass
class Recorder:
    """What went through a port, in both directions."""

    port: int = 0
    data: bytearray = field(default_factory=bytearray)


@contextmanager
def recorded(host: str, port: int) -> Iterator[Recorder]:
    """A port that passes connections on, and keeps what is said."""
    listener = socket.create_server(("127.0.0.1", 0))
    recorder = Recorder(listener.getsockname()[1])

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                recorder.data += data
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    sockets, threads = [listener], []

    def start(work: Callable[..., None], *arguments: socket.socket) -> None:
        threads.append(threading.Thread(target=work, args=arguments))
        threads[-1].start()

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, port))
                sockets.extend((near, far))
                start(pump, near, far)
                start(pump, far, near)

    start(accept)
    try:
        yield recorder
    finally:
        for opened in sockets:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for opened in sockets:
            opened.close()


@pytest.fixture
def other_versions(tmp_path: Path) -> dict[str, str]:
    """An environment in which another version of polars is installed, as Python's metadata say."""
    folder = tmp_path / "site" / "polars-9.9.9.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: polars\nVersion: 9.9.9\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder.parent), os.environ.get("PYTHONPATH", "")])}


def test_other_versions_are_refused_before_any_work(
    source: Source, tmp_path: Path, other_versions: dict[str, str]
) -> None:
    """A run names the worker and its versions, and writes nothing."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    with dask_cluster.cluster(tmp_path, 1) as running:
        running.start_worker("odd", environment=other_versions)
        settings = settings_of(source, running)
        with pytest.raises(ConfigError, match=r"polars 9\.9\.9 instead of") as caught:
            pipeline.run(settings)
        assert "Dask worker at tcp://" in caught.value.message
        assert not list(source.lake.rglob("bz_t/**/*.parquet"))


def test_a_worker_that_joins_later_is_refused_too(
    tmp_path: Path, other_versions: dict[str, str]
) -> None:
    """Its first task ends with the same sentence."""
    with (
        dask_cluster.cluster(tmp_path, 1) as running,
        executor(f"dask://{running.address}", 1) as pool,
    ):
        assert pool.submit(len, "abc").result(30) == 3
        running.kill("w0")
        running.start_worker("odd", environment=other_versions)
        with pytest.raises(ConfigError, match=r"polars 9\.9\.9 instead of"):
            pool.submit(len, "abc").result(30)


def test_a_cluster_without_workers_is_not_waited_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that has none, nor one that loses all while tasks wait."""
    monkeypatch.setattr(cluster, "_WITHOUT_WORKERS", 1.0)
    with dask_cluster.cluster(tmp_path, 0) as running:
        address = f"dask://{running.address}"
        with pytest.raises(ConfigError, match="has no workers"), executor(address, 1):
            pass
        running.start_worker("w0")
        with executor(address, 1) as pool:
            future = pool.submit(time.sleep, 600)
            running.kill("w0")
            with pytest.raises(EngineLost, match="has had no worker"):
                future.result(60)


def test_a_task_that_kills_its_workers_is_given_up(tmp_path: Path) -> None:
    """The sentence says where the last one was."""
    strict = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with (
        dask_cluster.cluster(tmp_path, 1, strict) as running,
        executor(f"dask://{running.address}", 1) as pool,
        pytest.raises(EngineLost, match=r"died one after the other, the last one at tcp://"),
    ):
        pool.submit(os._exit, 1).result(60)


def test_a_worker_has_room_for_its_threads(tmp_path: Path) -> None:
    """A worker with too many threads, or too little memory for them, is refused."""
    memory = 512 * 10**6
    with dask_cluster.cluster(tmp_path, 0) as running:
        address = f"dask://{running.address}"
        running.start_worker("wide", "--nthreads", "8")
        with pytest.raises(ConfigError, match="has 8 threads"), executor(address, 1, memory):
            pass
        running.kill("wide")
        running.start_worker("small", "--memory-limit", "300MB")
        with pytest.raises(ConfigError, match="may take 300 MB"), executor(address, 1, memory):
            pass


@pytest.mark.usefixtures("small_units")
def test_workers_stay_within_their_memory(source: Source, tmp_path: Path) -> None:
    """A load and a comparison take no more in a worker than what a cluster is checked for."""
    source.execute(TABLE)
    memory = 512 * 10**6
    with dask_cluster.cluster(tmp_path, 2) as running:
        settings = settings_of(source, running, memory=memory)
        landed(pipeline.run(settings))
        source.execute("UPDATE t SET amount = 0 WHERE id % 100 = 0")
        landed(pipeline.run(settings))
        for name in ("w0", "w1"):
            status = Path(f"/proc/{running.processes[name].pid}/status").read_text()
            (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
            assert int(peak) * 1024 <= budget.worker_memory(memory, 1)
        assert differences(settings) == {}
