"""The contestants: commands that copy a table of PostgreSQL into files.

``bronze`` is ``bronze run`` as installed, with its defaults. Every other one is a script in this
folder, as one would write it: it is started with DSN, schema, table and an empty folder, and with
the contestant's variant, if it has one. Nothing of `benchmarks` is imported by them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import BRONZE, configure
from bronze.demo.installation import binary

_SCRIPTS = Path(__file__).parent


@dataclass(frozen=True)
class Task:
    """A table to copy, and the empty folder to copy it into."""

    dsn: str
    schema: str
    table: str
    folder: Path


@dataclass(frozen=True)
class Contestant:
    """A script with its variant, none for bronze, and where in the folder its table is.

    ``result`` is a Delta table or a Parquet file, "" if the contestant makes none.
    """

    result: str
    script: str = ""
    variant: Sequence[str] = ()

    def command(self, task: Task) -> list[str | Path]:
        """The command that does the task, in the task's folder."""
        if not self.script:
            configure(task.folder, task.dsn, task.schema, {"source": {"tables": [task.table]}})
            return [BRONZE, "run"]
        given = (task.dsn, task.schema, task.table, str(task.folder))
        return [sys.executable, _SCRIPTS / self.script, *given, *self.variant]

    def table(self, task: Task) -> Path | None:
        """The Delta table or Parquet file, None if the contestant makes none."""
        return task.folder / self.result.format(task.table) if self.result else None


CONTESTANTS = {
    "bronze": Contestant("lake/bronze/bz_{}"),
    "dlt-connectorx": Contestant("lake/bench/{}", "dlt_database.py", ["connectorx"]),
    "dlt-default": Contestant("lake/bench/{}", "dlt_database.py", ["sqlalchemy"]),
    "duckdb": Contestant("{}.parquet", "duckdb_copy.py", ["plain"]),
    "duckdb-hash": Contestant("{}.parquet", "duckdb_copy.py", ["hash"]),
    "naive": Contestant("{}", "naive.py"),
    "limit": Contestant("", "limit.py", [str(binary("psql"))]),
}
"""The contestants by their names, in the order of a round."""
