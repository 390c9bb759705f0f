"""How a book is written that depends on what it already holds: read, then appended to, at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import uuid_utils

from bronze.delta import commit, files, log, store
from bronze.delta.commit import Change, Shape
from bronze.delta.log import State
from bronze.delta.positions import Position
from bronze.errors import BronzeError, CommitConflict
from bronze.model.columns import DeltaType
from bronze.model.locations import Place


@dataclass(frozen=True)
class Page:
    """What is appended: rows, the position that the book then has, properties of the table, and
    the facts of the commit.
    """

    rows: pl.DataFrame = field(repr=False)
    reached: Position
    notes: Mapping[str, str]
    facts: Mapping[str, Any]


@commit.retried
def append(
    place: Place,
    columns: Sequence[tuple[str, DeltaType]],
    made: Callable[[State | None], Page | None],
) -> None:
    """Appends the page that is made for the book as it is; made anew when others were first.

    Raises:
        CommitConflict: others were first, again and again.
        LakeError, LakeUnreachable: the book cannot be read or written.
    """
    state = log.read(place)
    page = made(state)
    if page is None:
        return
    file = files.write([page.rows], place, str(uuid_utils.uuid7()), ())
    if file is None:
        return
    change = Change("WRITE", [file], parameters={"mode": "Append"})
    # What other writers have added to the properties stays.
    known = dict(state.properties) if state else {}
    shape = Shape(tuple(columns), (), notes=tuple((known | dict(page.notes)).items()))
    try:
        commit.commit(place, state, change, page.facts, shape=shape, reached=page.reached)
    except CommitConflict:
        with suppress(BronzeError):
            store.delete(place, [file.path])
        raise
