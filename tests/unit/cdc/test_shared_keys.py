"""Net changes of rows that share a key for a while: they lead to the rows of a model, or fail."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from bronze.cdc.net_changes import net_changes
from bronze.delta import files, log
from bronze.delta.write import changes as changing
from bronze.errors import Mismatch
from bronze.model.columns import RowKey
from bronze.model.locations import Place
from bronze.postgres.catalog.types import SourceType, column_contract
from bronze.postgres.replication import text_values
from bronze.postgres.replication.batch import Piece, Spool, TableChanges
from tests.support.netting import CHOICES, COLUMNS, LAYOUT, NAMES, STATS, TARGETS, TEXTS, job, table
from tests.unit.cdc.test_net_changes import (
    DESCRIBED,
    SAME,
    _row,
    changes_of,
    delete,
    insert,
    update,
)

WHOLE, INDEX = NAMES, ("k", "n")


@dataclass(frozen=True)
class One:
    """A row of the model."""

    k: str
    v: str | None
    n: int
    w: str | None

    @property
    def values(self) -> tuple[Any, ...]:
        """The values as they are stored, in the order of the table."""
        return self.k, self.v, self.n, self.w

    @property
    def texts(self) -> list[Any]:
        """The texts that the stream sends."""
        return [self.k, self.v, str(self.n), self.w]


@dataclass
class Model:
    """A table whose key ``k`` is not enforced, and the messages of its stream.

    With REPLICA IDENTITY FULL rows may be equal; otherwise (k, n) is unique at any moment.
    """

    identity: tuple[str, ...]
    rows: list[One]
    messages: list[bytes] = field(default_factory=list)
    emptied: bool = False

    @property
    def shared(self) -> bool:
        """Whether rows have the same key."""
        return max(Counter(one.k for one in self.rows).values(), default=0) > 1

    def run_transaction(self, steps: Sequence[tuple[Any, ...]], deferred: bool) -> None:
        """A transaction. With a ``deferred`` key it fails if rows share the key at its end."""
        before, self.messages, self.emptied = list(self.rows), [], False
        for step in steps:
            self.run_step(step)
        if deferred and self.shared:
            self.rows, self.messages, self.emptied = before, [], False

    def run_step(self, step: tuple[Any, ...]) -> None:
        """A step, if it is possible."""
        action, at, new, other = step
        if action == "insert":
            if self._fits(new, None):
                self.rows.append(new)
                self.messages.append(b"I" + bytes(4) + b"N" + _row(new.texts))
        elif action == "truncate":
            self.rows, self.messages, self.emptied = [], [], True
        elif self.rows:
            place, second = at % len(self.rows), other % len(self.rows)
            row = self.rows[place]
            if action == "delete":
                del self.rows[place]
                self.messages.append(b"D" + bytes(4) + self._old(row))
            elif action == "touch":
                self._update(place, replace(row, w=new.w))
            elif action == "move":
                self._update(place, replace(row, k=new.k, n=new.n))
            elif action == "change":
                self._update(place, new)
            elif action == "swap":
                first, last = row.k, self.rows[second].k
                self._update(place, replace(row, k=last))
                self._update(second, replace(self.rows[second], k=first))
            else:
                names = [one.k for one in self.rows]
                for i, name in enumerate([*names[1:], names[0]]):
                    self._update(i, replace(self.rows[i], k=name))

    def _fits(self, new: One, place: int | None) -> bool:
        others = {(one.k, one.n) for i, one in enumerate(self.rows) if i != place}
        return self.identity == WHOLE or (new.k, new.n) not in others

    def _update(self, place: int, new: One) -> None:
        old = self.rows[place]
        if not self._fits(new, place):
            return
        self.rows[place] = new
        texts = new.texts
        if new.v is not None and len(new.v) > 4 and new.v == old.v:
            texts[1] = SAME
        moved = (old.k, old.n) != (new.k, new.n)
        known = self._old(old) if moved or self.identity == WHOLE else b""
        self.messages.append(b"U" + bytes(4) + known + b"N" + _row(texts))

    def _old(self, row: One) -> bytes:
        if self.identity == WHOLE:
            return b"O" + _row(row.texts)
        return b"K" + _row([row.k, None, str(row.n), None])


_LARGE = st.sampled_from([None, "a", "a large value", "another large one"])
_ONE = st.builds(One, st.sampled_from("abcd"), _LARGE, st.integers(0, 2), st.sampled_from("xy"))
_ACTIONS = ["insert", "insert", "delete", "touch", "move", "change", *["swap", "cycle"] * 3]
_STEP = st.tuples(
    st.sampled_from([*_ACTIONS * 3, "truncate"]), st.integers(0, 5), _ONE, st.integers(0, 5)
)
_BATCHES = st.lists(st.lists(st.lists(_STEP, max_size=5), min_size=1, max_size=3), max_size=4)
_START = st.lists(_ONE, max_size=4, unique_by=lambda one: one.k)

BY_K = RowKey((COLUMNS[0],), ("bz k",))
A, B, C = (One(k, f"large of {k}", n, "x") for n, k in enumerate("abc"))
ANY = One("d", None, 0, "x")


def gathered(
    pieces: Sequence[Sequence[bytes]], emptied: int | None, spool: Spool | None
) -> TableChanges:
    """Changes of a table in pieces; each piece is a transaction."""
    positions = itertools.count(100)
    made = []
    for piece in pieces:
        lengths = np.array([len(message) for message in piece], np.int64)
        made.append(Piece(lengths, np.array([(0, next(positions), 10**15)]), b"".join(piece)))
        if spool is not None:
            made[-1].move_to_spool(spool)
    return TableChanges(DESCRIBED, made, emptied)


def applied(rows: dict[str, Any], given: Any, place: Place) -> dict[str, Any]:
    """The table's rows by key, after the net changes of a job."""
    netted = net_changes(given)
    after = {} if netted.truncated else dict(rows)
    gone = [k for d in netted.deletes for k in changing.read(place, d, ["bz k"])["bz k"]]
    came = [row for c in netted.changes for row in changing.read(place, c, TARGETS).rows()]
    keys = [row[0] for row in came]
    assert len({*keys, *gone}) == len(keys) + len(gone)
    assert not (netted.truncated and gone)
    for key in gone:
        del after[key]
    return after | {row[0]: row for row in came}


@pytest.mark.parametrize(
    "examples", [3, pytest.param(500, marks=(pytest.mark.soak, pytest.mark.slow))]
)
@pytest.mark.parametrize(
    ("identity", "deferred"),
    [
        (WHOLE, True),
        (INDEX, False),
        pytest.param(WHOLE, False, marks=pytest.mark.soak),
        pytest.param(INDEX, True, marks=pytest.mark.soak),
    ],
)
def test_net_changes_lead_to_the_models_rows(
    tmp_path: Path, identity: tuple[str, ...], deferred: bool, examples: int
) -> None:
    """Batch after batch. A batch after which rows share a key is a mismatch, and no other one.
    Unsent values follow their rows; a key of which Bronze has only deleted rows is free.
    """
    numbers = itertools.count()

    @settings(derandomize=True, database=None, max_examples=examples, deadline=None)
    @given(start=_START, batches=_BATCHES, filed=st.booleans(), staged=st.booleans())
    @example([A, B], [[[("swap", 0, ANY, 1)]]], False, False)
    @example([A, B, C], [[[("cycle", 0, ANY, 0)] * 2], [[("cycle", 0, ANY, 0)]]], True, True)
    @example([A], [[[("insert", 0, replace(A, n=7), 0), ("delete", 0, ANY, 0)]]], False, False)
    @example([A], [[[("insert", 0, replace(A, n=7), 0)]]], False, False)
    @example([A, B], [[[("move", 0, B, 0)]]], False, False)
    @example([A], [[[("delete", 0, ANY, 0)]], [[("insert", 0, A, 0)]]], False, False)
    def check(start: list[One], batches: list[Any], filed: bool, staged: bool) -> None:
        model = Model(identity, list(start))
        rows = {one.k: one.values for one in start}
        gone: set[str] = set()
        for transactions in batches:
            pieces: list[list[bytes]] = []
            emptied = None
            for number, steps in enumerate(transactions):
                model.run_transaction(steps, deferred)
                if model.emptied:
                    pieces, emptied = [], 100 + number
                pieces += [model.messages] if model.messages else []
            place = Place(str(tmp_path / f"{identity}{next(numbers)}"))
            stored = marked_table(place, list(rows.values()), sorted(gone - rows.keys()))
            batch = gathered(pieces, emptied, spool if filed else None)
            in_memory = 0 if staged else 2**25
            given = job(batch, place, stored, row_key=BY_K, identity=identity, in_memory=in_memory)
            if model.shared:
                event("shared")
                with pytest.raises(Mismatch, match="share the key k"):
                    net_changes(given)
                return
            gone |= rows.keys()
            rows = applied(rows, given, place)
            assert rows == {one.k: one.values for one in model.rows}

    with closing(Spool()) as spool:
        check()


def marked_table(place: Place, rows: Sequence[Any], gone: Sequence[str]) -> tuple[Any, ...]:
    """A Bronze table with some rows, and with others that are marked as deleted."""
    stored = table(place, [*rows, *((key, "gone", 9, None) for key in gone)])
    changed = []
    for file in stored:
        frame = pl.DataFrame(files.open_parquet(place, file).read())
        status = pl.when(pl.col("bz k").is_in(gone)).then(pl.lit("DELETED"))
        frame = frame.with_columns(status.otherwise("record_status").alias("record_status"))
        made = files.write([frame.select([n for n, _ in LAYOUT])], place, "b", STATS)
        changed += [replace(file, path=made.path, size=made.size)] if made else []
    assert log.read(place) is not None
    return tuple(changed)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """The place of the Bronze table."""
    return Place(str(tmp_path / "t"))


@pytest.mark.parametrize("message", [update("a", "v", "1", "w", old=("c", "1")), delete("c", "1")])
def test_a_changed_row_that_the_table_does_not_have_is_a_mismatch(
    place: Place, message: bytes
) -> None:
    """A changed row must have existed: an earlier change was lost."""
    stored = table(place, [("b", "v", 1, "w")])
    with pytest.raises(Mismatch, match="does not have all rows"):
        net_changes(job(changes_of([message]), place, stored, row_key=BY_K, identity=INDEX))


def test_an_unsent_value_with_full_replica_identity_is_a_mismatch(place: Place) -> None:
    """Which row it belongs to cannot be known."""
    stored = table(place, [("a", "v", 1, "w")])
    with pytest.raises(Mismatch, match="did not send"):
        net_changes(
            job(
                changes_of([update("a", SAME, "1", "z")]),
                place,
                stored,
                row_key=BY_K,
                identity=WHOLE,
            )
        )


@pytest.mark.parametrize("identity", [("n",), INDEX])
@pytest.mark.parametrize("message", [insert("a", "v", "infinity", "w"), delete("a", "infinity")])
def test_a_key_that_delta_cannot_hold_is_a_mismatch(
    place: Place, identity: tuple[str, ...], message: bytes
) -> None:
    """Whatever identifies rows: as NULL it would be the key of several. The resync that follows
    adds a column with the texts of such keys.
    """
    kind = SourceType("date", -1, "date")
    column = column_contract("n", "bz n", "n", kind, CHOICES)
    columns = tuple(column if one.name == "n" else one for one in COLUMNS)
    named = tuple(
        text_values.text_column(column, kind, CHOICES) if t.name == "n" else t for t in TEXTS
    )
    layout = tuple((name, column.kind if name == "bz n" else held) for name, held in LAYOUT)
    more: dict[str, Any] = {"columns": columns, "texts": named, "layout": layout}
    more["row_key"] = RowKey((column,), ("bz n",))
    with pytest.raises(Mismatch, match="that Delta cannot hold"):
        net_changes(job(changes_of([message]), place, (), identity=identity, **more))
