"""A source, a lake, a scheduler, a driver and workers, each a machine of its own in `network`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.command import BRONZE, cpu_of
from benchmarks.scale.network import Network, inside, network
from tests.support import dask_cluster
from tests.support.dask_cluster import Cluster

SOURCE, LAKE, SCHEDULER, DRIVER = "10.77.0.1", "10.77.0.2", "10.77.0.3", "10.77.0.4"
STORE_PORT = 5000
_LAUNCH = Path(__file__).parents[1] / "launch.py"
SECRETS = {"STORE_KEY": "a-word-of-the-store"}


def worker_address(number: int) -> str:
    """The address of a worker's machine."""
    return f"10.77.0.{11 + number}"


@dataclass(frozen=True)
class Figures:
    """What one command used, on all machines; CPU in seconds, sizes in bytes.

    ``requests`` are those of the store by method; ``peaks`` the most resident bytes of the driver,
    the scheduler and each worker; ``others`` the CPU seconds of what else the machine did.
    """

    wall: float
    code: int
    cpu: Mapping[str, float]
    requests: Mapping[str, int]
    peaks: Mapping[str, int]
    others: float = 0.0
    said: str = field(repr=False, default="")

    @property
    def whole_cpu(self) -> float:
        """CPU seconds of all machines, which share this one's."""
        return sum(self.cpu.values())


@dataclass
class Stage:
    """Machines that run. ``cluster`` is on those of scheduler and workers."""

    folder: Path
    network: Network
    dsn: str
    server: psutil.Process
    store: subprocess.Popen[bytes]
    cluster: Cluster

    def start_worker(self, number: int, *options: str) -> None:
        """Starts a worker, with one thread, on its machine."""
        self.cluster.start_worker(
            f"w{number}",
            "--host",
            worker_address(number),
            *options,
            prefix=inside(f"w{number}"),
            environment=SECRETS,
        )

    def start_scheduler(self) -> None:
        """Starts the scheduler."""
        self.cluster.start_scheduler(inside("scheduler"))

    def configure(self, lake: str, tables: Sequence[str], workers: int, **run: Any) -> Path:
        """The folder of a config for these tables; the driver alone has it."""
        folder = self.folder / lake
        folder.mkdir(exist_ok=True)
        settings = {"workers": workers, "retry_delay": 1, **run}
        lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
        (folder / "bronze.toml").write_text(
            f'[source]\nname = "bench"\ndsn = "{self.dsn}"\nschema = "bench"\n'
            f"tables = {json.dumps(list(tables))}\npool = {{ max = {2 * workers + 2} }}\n"
            f'[lake]\nroot = "s3://lake/{lake}"\n[lake.options]\n'
            f'aws_endpoint_url = "http://{LAKE}:{STORE_PORT}"\naws_region = "us-east-1"\n'
            'aws_access_key_id = "key"\naws_secret_access_key = { secret = "STORE_KEY" }\n'
            'aws_allow_http = "true"\n'
            f'[run]\nengine = "dask://{self.cluster.address}"\n{lines}'
        )
        return folder

    def start(self, folder: Path, *words: str) -> subprocess.Popen[bytes]:
        """Starts bronze on the driver's machine; see `end`."""
        figures = folder / "command.json"
        figures.unlink(missing_ok=True)
        launch = [sys.executable, "-I", "-S", str(_LAUNCH), str(figures), str(BRONZE), *words]
        with (folder / "command.log").open("wb") as log:
            return subprocess.Popen(
                [*inside("driver"), *launch],
                cwd=folder,
                stdout=log,
                stderr=log,
                env={**dask_cluster.plain_environment(), **SECRETS},
            )

    def measure(self, folder: Path, *words: str) -> Figures:
        """Runs bronze on the driver's machine, with the config of the folder."""
        with self.measured(folder, *words) as ended:
            pass
        return ended[0]

    @contextmanager
    def measured(self, folder: Path, *words: str) -> Iterator[list[Figures]]:
        """Runs bronze while the block goes on; its figures are in the list afterwards."""
        cpu, requests, busy = self._cpu(), self._requests(), _busy()
        process = self.start(folder, *words)
        ended: list[Figures] = []
        yield ended
        process.wait()
        used = json.loads((folder / "command.json").read_text())
        after, now = self._cpu(), self._requests()
        spent = {name: after[name] - cpu.get(name, 0.0) for name in after}
        spent["driver"] = used["cpu"]
        others = _busy() - busy - sum(spent.values())
        ended.append(
            Figures(
                used["wall"],
                used["code"],
                spent,
                {method: count - requests.get(method, 0) for method, count in now.items()},
                {"driver": used["peak"], **self._peaks()},
                others,
                (folder / "command.log").read_text(errors="replace"),
            )
        )

    def _processes(self) -> dict[str, psutil.Process]:
        of_cluster = {n: psutil.Process(p.pid) for n, p in self.cluster.processes.items()}
        others = {"store": self.store.pid, "router": self.network.router.pid}
        return {**of_cluster, **{name: psutil.Process(pid) for name, pid in others.items()}}

    def _cpu(self) -> dict[str, float]:
        used = {"source": cpu_of(self.server)}
        for name, process in self._processes().items():
            times = process.cpu_times()
            used[name] = times.user + times.system
        return used

    def _requests(self) -> dict[str, int]:
        text = (self.folder / "store.log").read_text(errors="replace")
        counts: dict[str, int] = {}
        for method in re.findall(r'"(GET|PUT|POST|DELETE|HEAD) ', text):
            counts[method] = counts.get(method, 0) + 1
        return counts

    def _peaks(self) -> dict[str, int]:
        peaks = {}
        for name, process in self.cluster.processes.items():
            status = Path(f"/proc/{process.pid}/status").read_text()
            # A worker that was cut off for long has ended.
            if peak := re.search(r"VmHWM:\s+(\d+) kB", status):
                peaks[name] = int(peak[1]) * 1024
        return peaks


def _busy() -> float:
    """CPU seconds of all processes of this machine."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


@contextmanager
def stage(folder: Path, rows: Mapping[str, int], workers: int, delay: float) -> Iterator[Stage]:
    """Machines with a source of these tables, and so many workers.

    Args:
        folder: an empty folder with room for source and lake.
        rows: the number of rows by table, see `source_server`.
        workers: how many workers there are, each of one thread, on machines of their own.
        delay: of a packet, in seconds.
    """
    addresses = {"source": SOURCE, "lake": LAKE, "scheduler": SCHEDULER, "driver": DRIVER}
    addresses |= {f"w{number}": worker_address(number) for number in range(workers)}
    with ExitStack() as stack:
        running = stack.enter_context(network(addresses, delay))
        tables = [f"{name}={count}" for name, count in rows.items()]
        module = [sys.executable, "-m", "benchmarks.scale.source_server"]
        source = stack.enter_context(
            subprocess.Popen(
                [*inside("source"), *module, str(folder / "postgres"), SOURCE, *tables],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        store = _start_store(folder)
        stack.callback(store.kill)
        assert source.stdin
        assert source.stdout
        stack.callback(source.stdin.close)
        dsn, pid = source.stdout.readline().decode().split()
        cluster = Cluster(folder, host=SCHEDULER, port=8786)
        stack.callback(dask_cluster.stop, cluster)
        made = Stage(folder, running, dsn, psutil.Process(int(pid)), store, cluster)
        made.start_scheduler()
        for number in range(workers):
            made.start_worker(number)
        yield made


def _start_store(folder: Path) -> subprocess.Popen[bytes]:
    """Starts the store, see `benchmarks.scale.store`; its bucket is ``lake``."""
    (folder / "store").mkdir()
    module = [sys.executable, "-m", "benchmarks.scale.store", LAKE, str(STORE_PORT)]
    server = [*module, str(folder / "store")]
    environment = dask_cluster.plain_environment()
    with (folder / "store.log").open("wb") as log:
        store = subprocess.Popen(
            [*inside("lake"), *server], stdout=log, stderr=log, env=environment
        )
    url = f"http://{LAKE}:{STORE_PORT}/lake"
    put = f"import urllib.request as u; u.urlopen(u.Request({url!r}, method='PUT'))"
    for _ in range(100):
        command = [*inside("driver"), sys.executable, "-c", put]
        if not subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
            return store
        time.sleep(0.2)
    raise RuntimeError("the store did not start")
