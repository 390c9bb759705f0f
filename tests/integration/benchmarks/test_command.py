"""The figures of commands that benchmarks measure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.command import measure, server_of
from tests.conftest import Source

_MB = 10**6
_WORK = """
import os, subprocess, sys, time
kept = b"x" * 80_000_000
with open("file", "wb") as file:
    file.write(kept)
os.remove("file")
subprocess.run([sys.executable, "-c", "open('other', 'wb').write(bytes(20_000_000))"], check=True)
while time.process_time() < 0.3:
    pass
"""
_QUERY = """
import sys, psycopg
with psycopg.connect(sys.argv[1]) as connection:
    connection.execute("SELECT count(*) FROM generate_series(1, 2000000)")
"""


@pytest.mark.soak
def test_figures_are_those_of_the_command_alone(source: Source, tmp_path: Path) -> None:
    """CPU, peak and written bytes are the command's and its children's, whatever the memory of the
    process that measures; deleted files count; PostgreSQL is counted by itself.
    """
    server = server_of(source.dsn)
    ballast = b"x" * 300_000_000
    idle = measure([sys.executable, "-c", ""], server, tmp_path)
    assert idle.peak < 50 * _MB
    work = measure([sys.executable, "-c", _WORK], server, tmp_path)
    assert 80 * _MB < work.peak < 130 * _MB
    assert work.written is None or 100 * _MB <= work.written < 101 * _MB
    assert 0.3 <= work.cpu < 2
    assert work.wall > 0.3
    query = measure([sys.executable, "-c", _QUERY, source.dsn], server, tmp_path)
    assert query.server_cpu > 0.1
    assert len(ballast)


def test_a_failed_command_is_an_error(source: Source, tmp_path: Path) -> None:
    """Another exit code than the expected one is an error with the command's last lines."""
    server = server_of(source.dsn)
    command = [sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"]
    with pytest.raises(RuntimeError, match="no luck"):
        measure(command, server, tmp_path)
    assert measure(command, server, tmp_path, code=3).wall > 0
