"""A test that hangs ends the tests, also where its timeout is caught; nothing of it stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.proxy import until

pytestmark = pytest.mark.soak

HANGING = """
import threading
from hypothesis import given, strategies
from tests import conftest
conftest._GRACE = 1

def test_hang(server):
    print(server.data, file=open("data", "w"))

    @given(strategies.integers())
    def hang(number):
        threading.Event().wait()

    hang()
"""


def test_a_hang_inside_hypothesis_ends_the_tests_with_all_stacks(tmp_path: Path) -> None:
    """Hypothesis catches the exception of a timeout and runs the example again. The process ends
    nevertheless, prints where it hangs, and its server is stopped and removed.
    """
    file = tmp_path / "test_hanging.py"
    file.write_text(HANGING)
    options = ["-p", "tests.conftest", "--timeout", "2", "-o", "timeout_func_only=true"]
    command = [sys.executable, "-m", "pytest", *options, str(file)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert "Timeout (0:00:03)!" in done.stderr
    assert " in hang\n" in done.stderr
    data = Path((tmp_path / "data").read_text().strip())
    assert data.name == "data"
    until(lambda: not data.parent.exists())
