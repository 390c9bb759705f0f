"""dlt with its connectorx backend."""

from __future__ import annotations

from pathlib import Path

from benchmarks.contestants import Task, dlt_backend, timed


def load(task: Task) -> Path:
    """Runs dlt for the one table."""
    return dlt_backend.load(task, "connectorx")


if __name__ == "__main__":
    timed(load)
