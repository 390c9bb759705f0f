"""Temporary files: what a process has put aside is gone with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from bronze.postgres.connection import scratch
from bronze.postgres.replication.batch import Spool

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such folders")

CHILD = """
import time
from bronze.postgres.connection import scratch
from bronze.postgres.replication.batch import Spool
spool = Spool()
place = spool.put(b"secret" * 100_000)
assert spool.get(*place) == b"secret" * 100_000
with scratch.folder("bronze-test-") as folder:
    open(folder + "/inside", "w").close()
    print(folder, flush=True)
    time.sleep(600)
"""


def begun(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has put something aside, and its folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_nothing_stays_of_a_process_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spool has no name from the beginning; a folder is swept by who makes the next one, which
    leaves those of the living alone.
    """
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    one, first = begun(tmp_path)
    other, second = begun(tmp_path)
    with one, other:
        try:
            assert {*tmp_path.iterdir()} == {first, second}
            one.send_signal(signal.SIGKILL)
            one.wait()
            (tmp_path / "bronze-test-new").mkdir()
            old = tmp_path / "bronze-test-old"
            old.mkdir()
            os.utime(old, (time.time() - 7200,) * 2)
            with scratch.folder("bronze-test-") as mine:
                left = {second, Path(mine), tmp_path / "bronze-test-new"}
                assert {*tmp_path.iterdir()} == left
                assert (second / "inside").exists()
                assert Path(mine).stat().st_mode & 0o777 == 0o700
            assert not Path(mine).exists()
        finally:
            one.kill()
            other.kill()


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_a_spool_gives_back_what_it_was_given(parts: list[bytes]) -> None:
    """In any order, and nothing of it can be read without its key."""
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
