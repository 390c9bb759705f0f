"""The checker: rounds of random operations, after each of which Bronze equals its source."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import bronze
from bronze.errors import BronzeError
from bronze.model.results import TableResult
from tests.conftest import Source
from tests.soak.checker import operations, oracle, tables
from tests.soak.checker.processes import Processes
from tests.soak.checker.world import World, dice
from tests.support.content import differences

_PATIENCE = 90.0
_MOMENT = 2.5
"""How long a stream at rest has to have said, by its shortened minute, what it does not follow."""

_POLL = 0.3
# Killed, or asked to end before it could tell that it was.
_ENDS = (0, 1, 2, 3, 130, -signal.SIGKILL, -signal.SIGTERM)


class Wrong(AssertionError):
    """Bronze is not what it has to be."""


@dataclass
class Check:
    """One look at all tables. ``errors`` are the sentences of tables that bronze refuses."""

    world: World
    errors: dict[str, str] = field(default_factory=dict)

    def unlike(self, names: Sequence[str]) -> dict[str, str]:
        """What is wrong with tables that have to equal their sources."""
        there, wrong = set(self.world.there()), {}
        for name in names:
            if name not in there:
                continue
            columns = self.world.columns(name)
            if name in tables.STREAMED:
                columns = [c for c in columns if c.generated != "v"]
            folder = self.world.source.table(name)
            try:
                fault = oracle.unlike(self.world.source.dsn, name, columns, folder)
            except FileNotFoundError as error:
                fault = str(error)
            if fault:
                wrong[name] = fault
        return wrong

    def wrong(self, names: Sequence[str]) -> dict[str, str]:
        """As `unlike`, but for tables that are hindered, and that bronze says it refuses."""
        found = self.unlike(names)
        there = set(self.world.there())
        for name in names:
            if not self.world.hindered(name) or (name in there and name not in found):
                continue
            if name not in self.errors and name in there:
                found[name] = (
                    f"it is hindered, unlike its source, and nothing was said: {found[name]}"
                )
                continue
            found.pop(name, None)
            self._stayed(name, found)
        return found

    def _stayed(self, name: str, found: dict[str, str]) -> None:
        """A table that is refused is as it was when that was first seen."""
        now = oracle.content(self.world.source.table(name))
        for one in self.world.hindrances:
            if name in one.tables and one.seen.setdefault(name, now) != now:
                found[name] = "it is refused, and its rows have changed since"


def settle(world: World) -> None:
    """Lets all come to rest, and proves that Bronze equals the source.

    Raises:
        Wrong: it does not.
    """
    world.say("-- at rest")
    world.release()
    world.relieve()
    _ended(world)
    check = Check(world)
    _followed(world, check)
    opened = bronze.open(world.file)
    _noted(check, _ran(world, opened))
    wrong = check.wrong(tables.TABLES)
    if wrong:
        raise Wrong(f"after a run: {wrong}")
    refused = {f"public.{name}" for name in tables.TABLES if world.hindered(name)}
    # It asks for the columns of all tables, also of those that cannot be taken.
    if not refused and (faults := differences(world.settings())):
        raise Wrong(f"differences: {faults}")
    for table in opened.verify().tables:
        if table.status != "equal" and table.table not in refused:
            raise Wrong(f"verify: {table}")
    for table in opened.verify(at_rest=True).tables:
        if table.status != "equal" or table.error:
            raise Wrong(f"verify --at-rest: {table}")
    if problems := opened.audit(verify=True).problems:
        raise Wrong(f"audit --verify: {problems}")


def _ended(world: World) -> None:
    """All processes but the stream have ended; those that go on are stopped."""
    for process in world.running:
        if " --until-caught-up" not in process.what and process.what.startswith("stream"):
            process.terminate()
        code = process.popen.wait(120)
        said = process.said()
        if code not in _ENDS or "Traceback" in said:
            raise Wrong(f"{process.what} ended with {code}: {said[-2000:]}")
    world.running.clear()


def _followed(world: World, check: Check) -> None:
    """The stream has landed all, if there is one; otherwise one that catches up does."""
    stream = world.stream
    if stream and not stream.running:
        said = stream.said()
        code = stream.popen.returncode
        other = "Another copy of bronze" in said
        excused = stream.ended or other or world.hindrances
        if code not in _ENDS or "Traceback" in said or not excused:
            raise Wrong(f"the stream ended by itself with {code}: {said[-2000:]}")
        world.stream = stream = None
    if stream is None:
        _caught_up(world, check)
        return
    began, until = time.monotonic(), time.monotonic() + _PATIENCE
    before = len(stream.said())
    while True:
        if not stream.running:
            _followed(world, check)
            return
        said = stream.said()[before:]
        check.errors |= {n: said for n in tables.STREAMED if f"public.{n}" in said}
        wrong = check.wrong(tables.STREAMED)
        now = time.monotonic()
        if not wrong and now - began > (_MOMENT if world.hindrances else 0):
            return
        if now > until:
            raise Wrong(f"the stream does not come to it: {wrong}; it says {stream.said()[-2000:]}")
        time.sleep(_POLL)


def _caught_up(world: World, check: Check) -> None:
    world.say("$ bronze stream --until-caught-up")
    try:
        _noted(check, bronze.open(world.file).stream(until_caught_up=True).tables)
    except BronzeError as error:
        hindered = [name for name in tables.STREAMED if world.hindered(name)]
        if not hindered:
            raise
        check.errors |= dict.fromkeys(hindered, error.message)
    if wrong := check.wrong(tables.STREAMED):
        raise Wrong(f"after a stream that caught up: {wrong}; it says {check.errors}")


def _ran(world: World, opened: bronze.Bronze) -> Sequence[TableResult]:
    world.say("$ bronze run")
    return opened.run().tables


def _noted(check: Check, results: Sequence[TableResult]) -> None:
    for result in results:
        if result.error:
            name = result.table.removeprefix("public.")
            check.errors[name] = f"{result.error.message} {result.error.hint}"
            if not check.world.hindered(name):
                raise Wrong(f"{name} was refused: {result.error}")


def story(source: Source, folder: Path, seed: int, count: int) -> World:
    """Does ``count`` operations in rounds, and proves Bronze after each.

    Raises:
        Wrong: it was not what it has to be; the notes are all that was done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    world = World(source, folder, seed, dice(seed), Processes(folder))
    among = operations.chosen()
    world.swaps = operations.SWAPS in {one.name for one in among}
    try:
        world.make()
        # Before, nobody can say what a table is refused for.
        settle(world)
        done = number = 0
        while done < count:
            drawn = dice(seed, number)
            size = min(count - done, drawn.randint(8, 30))
            world.say(f"-- round {number}")
            if drawn.random() < 0.6:
                world.start()
            elif world.stream and world.stream.running and drawn.random() < 0.7:
                world.stream.terminate()
            for _ in range(size):
                world.dice = dice(seed, number, done)
                operations.draw(world, world.dice, among)
                done += 1
            settle(world)
            number += 1
        world.relieve(every=True)
        settle(world)
    except Exception as error:
        (folder / "log.sql").write_text("\n".join(world.log))
        error.add_note(
            f"BRONZE_MODEL_SEED={seed} BRONZE_MODEL_OPERATIONS={count}\n" + "\n".join(world.log)
        )
        raise
    finally:
        world.close()
    return world
