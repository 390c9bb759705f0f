"""All operations, how often each is drawn, and on which tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from tests.soak.checker import faults, rows, schema, surroundings, tables
from tests.soak.checker.world import World

SWAPS = "swap keys"
"""The operation without which no statement lets rows take each other's keys."""

Act = Callable[[World, str], str]


@dataclass(frozen=True)
class Operation:
    """What is done to a table. ``free`` says that it must not be hindered at the time."""

    name: str
    act: Act
    weight: float
    on: Sequence[str] = tables.TABLES
    free: bool = True


_ROWS = [
    Operation("rows", rows.alone, 22, free=False),
    Operation("transaction", rows.together, 8),
    Operation("late", rows.open_late, 3),
    Operation("end late", rows.end_late, 2, free=False),
    Operation("truncate", rows.truncate, 1),
    Operation(SWAPS, rows.alone_rekeyed, 2, ("whole",), free=False),
]
_SCHEMA = [
    Operation("add column", schema.add_column, 2),
    Operation("drop column", schema.drop_column, 1),
    Operation("rename column", schema.rename_column, 1),
    Operation("rename case", schema.rename_case, 0.5),
    Operation("rename key", schema.rename_key, 0.5),
    Operation("swap names", schema.swap_names, 0.5),
    Operation("drop and add", schema.drop_and_add, 0.7),
    Operation("widen", schema.widen, 1),
    Operation("narrow", schema.narrow, 0.5),
    Operation("values anew", schema.values_anew, 1),
    Operation("expression", schema.expression_anew, 0.7, ("whole", "fresh", "plain", "parts")),
    Operation("column and rows", schema.column_and_rows, 1),
    Operation("label", schema.label, 0.7, ("whole", "marked")),
    Operation("attribute", schema.attribute, 0.7, ("marked",)),
    Operation("key", schema.key, 0.7, ("plain", "marked", "dated", "fresh")),
    Operation("identity", schema.identity, 1, ("plain", "parts")),
    Operation("storage", schema.storage, 1),
    Operation("made anew", schema.made_anew, 0.5),
    Operation("renamed and back", schema.renamed_and_back, 0.5),
    Operation("exchanged", schema.exchanged, 0.5, ("plain", "marked", "dated", "fresh")),
    Operation("partition", schema.partition, 1.5, ("parts",)),
]
_SURROUNDINGS = [
    Operation("unpublished", surroundings.unpublished, 0.7, tables.STREAMED),
    Operation("publication lost", surroundings.publication_lost, 0.4, tables.STREAMED),
    Operation("published less", surroundings.published_less, 0.7, tables.STREAMED),
    Operation("filtered", surroundings.filtered, 0.7, ("plain", "whole")),
    Operation("slot lost", surroundings.slot_lost, 0.7, tables.STREAMED, free=False),
    Operation("setting", surroundings.setting, 0.5, free=False),
    Operation("unfit type", surroundings.unfit_type, 0.5),
    Operation("without key", surroundings.without_key, 0.4),
    Operation("without identity", surroundings.without_identity, 0.3, ("plain", "whole")),
    Operation("renamed away", surroundings.renamed_away, 0.4),
    Operation("dropped", surroundings.dropped, 0.3),
    Operation("odd column", surroundings.odd_column, 0.4),
    Operation("cursor gone", surroundings.cursor_gone, 0.3, ("dated",)),
]
_FAULTS = [
    Operation("begin", faults.begin, 1, free=False),
    Operation("kill", faults.kill, 0.8, free=False),
    Operation("stop", faults.stop, 0.4, free=False),
    Operation("die", faults.die, 1, free=False),
    Operation("run", faults.run, 0.6, free=False),
    Operation("run killed", faults.run_killed, 0.4, free=False),
    Operation("maintain", faults.maintain, 0.2, free=False),
    Operation("second", faults.second, 0.2, free=False),
    Operation("zombie", faults.zombie, 0.3, free=False),
    Operation("frozen run", faults.frozen_run, 0.2, free=False),
    Operation("wait", faults.wait, 1, free=False),
]
OPERATIONS = (*_ROWS, *_SCHEMA, *_SURROUNDINGS, *_FAULTS)


def _names(variable: str) -> set[str]:
    named = {name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()}
    unknown = named - {one.name for one in OPERATIONS}
    if unknown:
        raise ValueError(f"{variable}: there is no operation {', '.join(sorted(unknown))}")
    return named


def chosen() -> list[Operation]:
    """The operations to draw from: BRONZE_MODEL_ONLY and BRONZE_MODEL_WITHOUT name some, with
    commas between.
    """
    only, without = _names("BRONZE_MODEL_ONLY"), _names("BRONZE_MODEL_WITHOUT")
    return [one for one in OPERATIONS if (not only or one.name in only) and one.name not in without]


def draw(world: World, dice: Random, among: Sequence[Operation]) -> None:
    """Does one operation, on a table that is there and fit for it."""
    there = world.there()
    for _ in range(20):
        (one,) = dice.choices(among, [operation.weight for operation in among])
        fit = [t for t in there if t in one.on and not (one.free and world.hindered(t))]
        if fit:
            table = dice.choice(fit)
            world.say(f"-- {one.name}: {table}")
            why = one.act(world, table)
            if why:
                world.say(f"-- not done: {why}")
            world.outcomes[one.name, "failed" if why else "done"] += 1
            return
