"""Which libraries a command loads: what it does not need costs its user time at every start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import Source

_TWO_RUNS = """
import sys
from bronze.cli.main import app
for _ in range(2):
    assert app(["run", "--config", "bronze.toml"], standalone_mode=False) in (None, 0)
"""


def test_a_run_does_not_load_pandas(source: Source, tmp_path: Path) -> None:
    """Where pandas is installed, pyarrow would load it for an array of Python values."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, name text, price numeric(12,2), tags int[]);"
        "INSERT INTO t VALUES (1, NULL, 1.5, '{1,NULL}'), (2, 'b', NULL, NULL)"
    )
    (tmp_path / "pandas").mkdir()
    (tmp_path / "pandas/__init__.py").write_text("raise SystemExit('pandas was loaded')")
    config = f'[source]\nname = "test"\ndsn = "{source.dsn}"\n[lake]\nroot = "{source.lake}"\n'
    (tmp_path / "bronze.toml").write_text(config)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", _TWO_RUNS],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.returncode, done.stderr.count("pandas")) == (0, 0), done.stderr
