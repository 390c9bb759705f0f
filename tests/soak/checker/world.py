"""The world of one checker: a database with its tables, a lake, and what goes on at the moment.

What is done is drawn from dice that are thrown anew for each operation, and entered into a log.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import psycopg
from psycopg import sql

from bronze.config import loading
from bronze.config.settings import Settings
from tests.conftest import Source
from tests.soak.checker import tables
from tests.soak.checker.processes import Process, Processes
from tests.soak.checker.tables import COLUMNS, Column

SLOT = "bronze_model"
_PATIENT, _QUICK = "15s", "700ms"


@dataclass
class Open:
    """A transaction that has not ended yet, and the tables that it has locked. One that is
    ``prepared`` has its name in the server, the others a connection.
    """

    name: str
    touched: frozenset[str]
    connection: psycopg.Connection[Any] | None = None


@dataclass
class Hindrance:
    """Something that may keep bronze from following tables until it is undone.

    ``lasting`` is how many rounds it stands yet; ``seen`` the rows of the tables in Bronze when
    they were first found not to follow.
    """

    name: str
    tables: frozenset[str]
    undo: Sequence[str]
    lasting: int
    seen: dict[str, Counter[Any]] = field(default_factory=dict)


@dataclass
class World:
    """All that operations work on."""

    source: Source
    folder: Path
    seed: int
    dice: Random
    processes: Processes
    log: list[str] = field(default_factory=list)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    open: list[Open] = field(default_factory=list)
    hindrances: list[Hindrance] = field(default_factory=list)
    stream: Process | None = None
    running: list[Process] = field(default_factory=list)
    numbers: int = 0
    swaps: bool = True

    @property
    def file(self) -> Path:
        """The config's file."""
        return self.folder / "bronze.toml"

    def settings(self) -> Settings:
        """The config."""
        return loading.load(self.file)

    def say(self, line: str) -> None:
        """Enters a line into the log."""
        self.log.append(line)

    def next(self) -> int:
        """Another number each time."""
        self.numbers += 1
        return self.numbers

    def make(self) -> None:
        """Makes the types, the tables with some rows, and the config."""
        own = tables.config(self.dice)
        document: dict[str, dict[str, Any]] = {
            "source": {
                "name": "model",
                "dsn": self.source.dsn,
                "schema": "public",
                "tables": list(tables.TABLES),
            },
            "lake": {"root": str(self.source.lake), "schema": "bronze"},
            "run": {"workers": 2, "max_retries": 5, "retry_delay": 1},
            "stream": {"interval": 0, "heartbeat": 1, "slot": SLOT, "publication": SLOT},
        }
        lines = []
        for section, values in [*document.items(), *((f"tables.{n}", v) for n, v in own.items())]:
            # A JSON value is a TOML value.
            lines += [f"[{section}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
        self.file.write_text("\n".join(lines))
        self.execute(tables.TYPES, tables.FUNCTIONS, *tables.MADE.values())
        self.say(f"-- {json.dumps(own)}")

    # SQL

    def execute(self, *statements: str, patient: bool = True) -> str:
        """Runs statements, each committed, until one fails; why it did, "" if none did."""
        with psycopg.connect(self.source.dsn, autocommit=True) as connection:
            return self.run(connection, *statements, patient=patient)

    def run(
        self, connection: psycopg.Connection[Any], *statements: str, patient: bool = False
    ) -> str:
        """Runs statements on a connection until one fails; why it did, "" if none did."""
        connection.execute(sql.SQL("SET lock_timeout = {}").format(_PATIENT if patient else _QUICK))
        for statement in statements:
            text = " ".join(statement.split())
            try:
                connection.execute(sql.SQL(statement))
            except psycopg.Error as error:
                why = str(error).splitlines()[0]
                self.say(f"{text};  -- {why}")
                return why
            self.say(f"{text};")
        return ""

    def ask(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """The rows of a query, which is not logged."""
        return self.source.execute(query, *arguments)

    def columns(self, table: str) -> list[Column]:
        """The columns of a table as they are now."""
        return [Column(*row) for row in self.ask(COLUMNS, table)]

    def plain(self, table: str) -> list[Column]:
        """Those that are neither of the key nor generated, nor named by config or checker."""
        fixed = tables.FIXED[table]
        found = self.columns(table)
        return [c for c in found if not c.key and not c.generated and c.name not in fixed]

    def constraint(self, table: str) -> str:
        """The name of a table's primary key, "" where it has none."""
        query = (
            "SELECT conname FROM pg_constraint WHERE contype = 'p' AND conrelid = to_regclass(%s)"
        )
        found = self.ask(query, table)
        return str(found[0][0]) if found else ""

    def there(self) -> list[str]:
        """The tables that are there."""
        found = self.ask(
            "SELECT relname FROM pg_class WHERE relname = ANY(%s)", list(tables.TABLES)
        )
        return sorted(row[0] for row in found)

    # Transactions

    def release(self, tables: frozenset[str] | None = None) -> None:
        """Ends the open transactions that have touched some tables; all where that is None."""
        for one in list(self.open):
            if tables is None or one.touched & tables:
                self.finish(one, self.dice.random() < 0.7)

    def finish(self, one: Open, commits: bool) -> None:
        """Ends a transaction that is open."""
        self.open.remove(one)
        how = "COMMIT" if commits else "ROLLBACK"
        if one.connection is None:
            self.execute(f"{how} PREPARED '{one.name}'")
            return
        self.say(f"{how};  -- {one.name}")
        try:
            one.connection.execute(sql.SQL(how))
        finally:
            one.connection.close()

    # Hindrances

    def hindered(self, table: str) -> bool:
        """Whether bronze may refuse to follow a table."""
        return any(table in one.tables for one in self.hindrances)

    def hinder(
        self, name: str, touched: frozenset[str], do: Sequence[str], undo: Sequence[str]
    ) -> str:
        """Does something that bronze may refuse, until it is undone; why it failed, if it did."""
        self.release(touched)
        why = self.execute(*do)
        if why:
            for statement in undo:
                self.execute(statement)
        else:
            self.hindrances.append(Hindrance(name, touched, undo, self.dice.randint(0, 2)))
        return why

    def relieve(self, every: bool = False) -> None:
        """Undoes what has stood long enough."""
        for one in list(self.hindrances):
            if one.lasting > 0 and not every:
                one.lasting -= 1
                continue
            self.say(f"-- undone: {one.name}")
            self.release(one.tables)
            for statement in one.undo:
                self.execute(statement)
            self.hindrances.remove(one)

    # Processes

    def begin(self, command: str, *arguments: str, failpoint: str = "") -> Process:
        """A process of bronze."""
        at = f" dying at {failpoint}" if failpoint else ""
        self.say(f"$ bronze {' '.join((command, *arguments))}{at}")
        given = [command, *arguments, "-c", str(self.file), "--json"]
        return self.processes.begin(given, failpoint)

    def start(self) -> None:
        """A stream that goes on, if there is none."""
        if self.stream is None or not self.stream.running:
            self.stream = self.begin("stream")

    def pause(self, seconds: float) -> None:
        """Lets others do something for a while."""
        self.say(f"-- {seconds:.2f} s")
        threading.Event().wait(seconds)

    def close(self) -> None:
        """Ends all that is open."""
        for one in self.open:
            if one.connection:
                one.connection.close()
            else:
                self.execute(f"ROLLBACK PREPARED '{one.name}'")
        self.processes.end()


def dice(*numbers: int) -> Random:
    """Dice that fall the same for the same numbers."""
    return Random("/".join(map(str, numbers)))  # noqa: S311 - no secret


def outcomes(worlds: Sequence[World]) -> Mapping[str, str]:
    """How often each operation was done, and how often PostgreSQL refused it."""
    counted: Counter[tuple[str, str]] = Counter()
    for world in worlds:
        counted += world.outcomes
    names = sorted({name for name, _ in counted})
    return {n: f"{counted[n, 'done']} done, {counted[n, 'failed']} refused" for n in names}
