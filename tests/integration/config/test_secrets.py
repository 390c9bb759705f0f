"""A connection string that is a secret leaves no trace in the lake."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bronze.config import loading
from bronze.ingest import pipeline
from bronze.ingest.worker import read_unit
from tests.conftest import Source

PASSWORD = "pa55-w0rd"


class RecordingPool(ThreadPoolExecutor):
    """An executor that records the units of work sent to it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.units: list[bytes] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Records the pickle and the repr of a unit of work."""
        if args[0] is read_unit:
            self.units += [pickle.dumps(args[1]), repr(args[1]).encode()]
        return super().submit(fn, *args, **kwargs)


@pytest.mark.parametrize("provider", ["env", "file", "config"])
def test_a_connection_string_can_be_a_secret(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    """Its provider resolves it, and it is in no unit of work and in no file of the lake."""
    source.execute("CREATE TABLE t AS SELECT 1 AS id")
    dsn = source.dsn.replace("postgres@", f"postgres:{PASSWORD}@")
    (tmp_path / "DSN").write_text(f"{dsn}\n")
    monkeypatch.setenv("DSN", dsn)
    if provider == "config":
        config = tmp_path / "bronze.toml"
        config.write_text(f'[source]\ndsn = "{dsn}"\n[lake]\nroot = "lake"\n')
        settings = loading.load(config)
    else:
        settings = source.settings(
            source={"dsn": {"secret": "DSN"}},
            secrets={"provider": provider, "folder": str(tmp_path) if provider == "file" else ""},
        )
    with RecordingPool() as pool:
        result = pipeline.run(settings, pool=pool)
    assert result.exit_code == 0
    assert len(pool.units) == 2
    files = [path.read_bytes() for path in (tmp_path / "lake").rglob("*") if path.is_file()]
    # A file and a log entry of the table, and as many of each of the three governance tables.
    assert len(files) == 8
    shown = [*pool.units, *files, repr(settings).encode(), repr(result).encode()]
    assert not [text for text in shown if PASSWORD.encode() in text]
