"""bronze, with all its metadata, hashes and checks, on two workers."""

from __future__ import annotations

from pathlib import Path

from benchmarks.contestants import Task, timed
from bronze.config import loading
from bronze.ingest import pipeline


def load(task: Task) -> Path:
    """Runs the pipeline for the one table."""
    settings = loading.parse(
        {
            "source": {"name": "bench", "dsn": task.dsn, "schema": task.schema},
            "lake": {"root": str(task.lake), "schema": "bronze"},
            "run": {"workers": 2, "max_retries": 0},
        }
    )
    done = pipeline.run(settings, [task.table])
    error = done.tables[0].error
    if error:
        raise RuntimeError(f"{error.kind}: {error.message}")
    return task.lake / "bronze" / f"bz_{task.table}"


if __name__ == "__main__":
    timed(load)
