"""Temporary files and folders do not outlive their process, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st

from bronze.postgres.connection.tls_relay import scratch
from bronze.postgres.replication.batch import Spool
from tests.support.effort import examples

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the folders are for POSIX only")

CHILD = """
import time
from bronze.postgres.connection.tls_relay import scratch
from bronze.postgres.replication.batch import Spool
spool = Spool()
place = spool.put(b"secret" * 100_000)
assert spool.get(*place) == b"secret" * 100_000
with scratch.temporary_folder("bronze-test-") as folder:
    open(folder + "/inside", "w").close()
    print(folder, flush=True)
    time.sleep(600)
"""


def start_process(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has written temporary files, and its temporary folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


@pytest.mark.soak
def test_files_of_a_killed_process_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spool never has a name. The folder of a dead process is deleted when the next folder is
    created; folders of living processes are kept.
    """
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed, first = start_process(tmp_path)
    living, second = start_process(tmp_path)
    with killed, living:
        try:
            assert {*tmp_path.iterdir()} == {first, second}
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            (tmp_path / "bronze-test-new").mkdir()
            old = tmp_path / "bronze-test-old"
            old.mkdir()
            os.utime(old, (time.time() - 7200,) * 2)
            with scratch.temporary_folder("bronze-test-") as created:
                expected = {second, Path(created), tmp_path / "bronze-test-new"}
                assert {*tmp_path.iterdir()} == expected
                assert (second / "inside").exists()
                assert Path(created).stat().st_mode & 0o777 == 0o700
            assert not Path(created).exists()
        finally:
            killed.kill()
            living.kill()


@settings(max_examples=examples(25))
@given(st.lists(st.binary(max_size=300), max_size=8))
def test_a_spool_returns_its_parts_and_encrypts_its_file(parts: list[bytes]) -> None:
    """Parts are returned in any order, and none can be read without the key."""
    spool = Spool()
    places = [spool.put(part) for part in parts]
    assert [spool.get(*place) for place in reversed(places)] == parts[::-1]
    spool._file.seek(0)
    raw = spool._file.read()
    assert not any(part in raw for part in parts if len(part) > 3)
    if places:
        other = Spool()
        other._file.write(raw)
        with pytest.raises(InvalidTag):
            other.get(*places[0])
        other.close()
    spool.close()
    assert spool.closed
