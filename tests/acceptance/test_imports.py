"""Which libraries a command loads: what it does not need costs its user time at every start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import Source

_COMMANDS = """
import json, sys
from bronze.cli.main import app
for command in json.loads(sys.argv[1]):
    code = app(command, standalone_mode=False) or 0
    print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""

_DATA = {"connectorx", "deltalake", "numpy", "obstore", "polars", "psycopg", "pyarrow"}
_RARE = {
    "azure",
    "connectorx",
    "IPython",
    "openlineage",
    "opentelemetry",
    "rich.live",
    "rich.progress",
    "scipy",
    "sklearn",
    "sqlglot",
    "structlog",
    "urllib.request",
    "bronze.api.init",
    "bronze.cdc",
    "bronze.demo",
    "bronze.postgres.connection.tls_relay.relay",
    "bronze.protection.erasure",
}


@pytest.mark.soak
def test_commands_load_only_what_they_use(source: Source, tmp_path: Path) -> None:
    """Help and errors of the config need no library of data, commands on the lake none of the
    source, and a run of plain tables none of the libraries for what is rare. No command loads
    pandas: where it is installed, pyarrow would, for an array of Python values.
    """
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, name text, price numeric(12,2), tags int[]);"
        "INSERT INTO t VALUES (1, NULL, 1.5, '{1,NULL}'), (2, 'b', NULL, NULL)"
    )
    (tmp_path / "pandas").mkdir()
    (tmp_path / "pandas/__init__.py").write_text("raise SystemExit('pandas was loaded')")
    _write_config(source, tmp_path)
    (tmp_path / "wrong.toml").write_text("[source]\nname = 1\n")
    # They are run by one process: what a command loads counts for those after it.
    unused: Mapping[tuple[str, ...], set[str]] = {
        ("--help",): {*_DATA, *_RARE, "pydantic", "bronze.config"},
        ("explain", "source_busy"): {*_DATA, *_RARE, "bronze.config"},
        ("run", "--help"): {*_DATA, *_RARE, "bronze.config"},
        ("schema", "--out", "s.json"): {*_DATA, *_RARE, "bronze.ingest"},
        ("run", "--config", "missing.toml"): {*_DATA, *_RARE, "bronze.ingest"},
        ("run", "--config", "wrong.toml"): {*_DATA, *_RARE, "bronze.ingest"},
        ("quality",): {*_RARE, "psycopg", "bronze.ingest", "bronze.postgres"},
        ("audit",): {*_RARE, "psycopg", "bronze.ingest", "bronze.postgres"},
        ("run",): {*_RARE, "bronze.verify", "bronze.api.check"},
        ("run", "t"): {*_RARE, "bronze.verify", "bronze.api.check"},
        ("check", "t"): {*_RARE, "bronze.verify"} - {"bronze.postgres.connection.tls_relay.relay"},
        ("verify",): _RARE - {"bronze.postgres.connection.tls_relay.relay"},
    }
    found = _loaded_after([*unused], tmp_path)
    for (command, names), (_, modules) in zip(unused.items(), found, strict=True):
        assert (command, names & set(modules)) == (command, set())
    assert [code for code, _ in found] == [0, 0, 0, 0, 2, 2, 1, 0, 0, 0, 0, 0]


def _write_config(source: Source, folder: Path) -> None:
    config = f'[source]\nname = "test"\ndsn = "{source.dsn}"\n[lake]\nroot = "{source.lake}"\n'
    (folder / "bronze.toml").write_text(config)


def _loaded_after(
    commands: Sequence[Sequence[str]], folder: Path
) -> list[tuple[int, Sequence[str]]]:
    """The exit code of each command, and the modules that are loaded after it."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("[")]
    return [(code, modules) for code, modules in map(json.loads, lines)]
