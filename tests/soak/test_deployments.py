"""What templates of deployments promise, with real processes: jobs of Databricks, probes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from bronze.config.settings import Settings
from bronze.deploy import writer
from tests.conftest import Source
from tests.support.content import differences

pytestmark = pytest.mark.soak
TABLES = """
[tables.orders]
pattern = "streaming"
[tables.words]
pattern = "batch"
"""


@pytest.fixture
def config(source: Source, tmp_path: Path) -> Path:
    """A config of a source with a streamed table and one that is loaded."""
    for name in ("orders", "words"):
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, word text)")
        source.execute(f"INSERT INTO {name} VALUES (1, 'one'), (2, 'two')")
    path = tmp_path / "bronze.toml"
    path.write_text(
        f'[source]\nname = "test"\ndsn = "{source.dsn}"\n'
        f'[lake]\nroot = "{source.lake}"\n[stream]\ninterval = 0\n{TABLES}'
    )
    return path


def test_each_job_of_the_bundle_does_its_work(config: Path, source: Source, tmp_path: Path) -> None:
    """The script runs with the parameters of the jobs; a command that fails fails its job."""
    writer.write(Settings.from_file(config), "databricks", tmp_path / "bundle")
    script = tmp_path / "bundle" / "src" / "bronze_job.py"
    environment = {**os.environ, "DATABRICKS_HOST": "https://none", "DATABRICKS_TOKEN": "none"}

    def job(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), str(config), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    ran = job("run", "--pattern", "batch")
    assert ran.returncode == 0, ran.stderr
    with subprocess.Popen(
        [sys.executable, str(script), str(config), "stream"], env=environment
    ) as stream:
        end = time.monotonic() + 60
        while not (source.lake / "governance" / "streams").exists():
            assert time.monotonic() < end
            time.sleep(0.1)
        stream.send_signal(signal.SIGKILL)
    source.execute("INSERT INTO words VALUES (3, 'three')")
    assert job("run", "--pattern", "batch").returncode == 0
    assert job("maintain").returncode == 0
    verified = job("verify", "words")
    assert verified.returncode == 0, verified.stderr
    assert differences(source.settings(tables={"orders": {"pattern": "streaming"}})) == {}
    source.execute("UPDATE words SET word = NULL")
    assert job("run", "--pattern", "batch").returncode == 0
    failed = job("validate", "words")
    assert failed.returncode != 0
    assert "null share" in failed.stdout
    assert "RuntimeError: bronze validate" in failed.stderr
    validation = Path(__file__).parents[1] / "validate_bronze_pipeline.py"
    command = [sys.executable, str(validation), "-c", str(config), "--junit", "out.xml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "<failure" in (tmp_path / "out.xml").read_text()


@contextmanager
def serving(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The service as a process."""
    command = [sys.executable, "-m", "bronze", "serve", "-c", str(config)]
    environment = {**os.environ, "BRONZE_VIEW": "a token of the viewer"}
    with subprocess.Popen(command, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_service_answers_the_probes_of_kubernetes(config: Path) -> None:
    """By the pod's address, without a token or TLS; SIGTERM ends it within its grace."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config.write_text(
        f'{config.read_text()}[web]\nlisten = "0.0.0.0:{port}"\nbehind_proxy = true\n'
        'tokens = { viewer = { secret = "BRONZE_VIEW" } }\n'
    )

    def probe(path: str) -> int:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path, headers={"Host": f"10.1.2.3:{port}"})
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    with serving(config) as process:
        end = time.monotonic() + 60
        while probe("/live") != 200 or probe("/ready") != 200:
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.2)
        assert probe("/api/v1/status") in (401, 403)
        process.terminate()
        assert process.wait(30) == 0
