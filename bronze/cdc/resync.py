"""The tables of a stream that have to be copied or compared again, and wait for a slot for it.

They are set aside: the others go on, and what the stream brings of these is left out, as the slot
will be made later than that. When it is there, and something was left out after its position that
the stream had been faster to bring, the slot itself is streamed from up to there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from bronze.cdc import table_sync
from bronze.cdc.context import StreamContext
from bronze.cdc.new_slot import NewSlot
from bronze.cdc.table_sync import SyncedTables
from bronze.errors import BronzeError, TableRefused
from bronze.tables.selection import Target

# Mostly a slot is there at once.
_BRIEF = 0.3
# How often a table that is altered while its slot is made is tried at once, with growing pauses.
_TRIES = 5
_PAUSE = 0.5


@dataclass(frozen=True)
class _Waiting:
    """A table that waits, since some try was too late, ``due`` again."""

    target: Target
    why: str
    tries: int = 0
    due: float = 0.0


class Resync:
    """The tables that were set aside."""

    def __init__(
        self, stream: StreamContext, give_up: Callable[[Target, BronzeError], None]
    ) -> None:
        """None yet; ``give_up`` is told of those that cannot be copied or compared."""
        self._stream, self._give_up = stream, give_up
        self._waiting: dict[str, _Waiting] = {}
        self._new: NewSlot | None = None
        self._left_out: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __contains__(self, label: str) -> bool:
        return label in self._waiting

    @property
    def pending(self) -> bool:
        """Whether a slot is being made."""
        return self._new is not None

    @property
    def targets(self) -> list[Target]:
        """The tables."""
        return [one.target for one in self._waiting.values()]

    def add(self, targets: Iterable[Target], why: str) -> None:
        """Sets tables aside."""
        self._waiting |= {target.label: _Waiting(target, why) for target in targets}

    def leave_out(self, oid: int, position: int) -> None:
        """Takes note that changes of a table, in a batch that ends at a position, were left out."""
        self._left_out[oid] = position

    def behind(self, done: SyncedTables) -> dict[int, int]:
        """By oid the tables of which changes after the slot's position were left out, and where."""
        return {
            oid: self._left_out[oid]
            for oid in done.joined
            if self._left_out.get(oid, 0) > done.position
        }

    def ready(self, want: Callable[[Iterable[int]], None], others: bool) -> NewSlot | None:
        """The slot that was asked for, once it is there or has failed; `copy` is next, or `refuse`.

        Asks for one if some table is due; says whom it waits for.

        Args:
            want: has the stream bring, from now on, what happens in tables, which are oids.
            others: whether other tables follow meanwhile.
        """
        if self._new is None:
            self._new = self._asked(want)
            if self._new is None or not self._new.wait(_BRIEF):
                return None
        elif not self._new.wait(0):
            who = ", ".join(self._waiting)
            verb = "waits" if len(self._waiting) == 1 else "wait"
            meanwhile = "The other tables are followed meanwhile." if others else ""
            self._new.say(f"{who} {verb}", meanwhile)
            return None
        ready, self._new = self._new, None
        return ready

    def _asked(self, want: Callable[[Iterable[int]], None]) -> NewSlot | None:
        now = time.monotonic()
        due = [one for one in self._waiting.values() if one.due <= now]
        if not due:
            return None
        there = {relation.label: relation for relation in self._stream.found()}
        wanted: list[Target] = []
        for one in due:
            label = one.target.label
            if label in there:
                target = replace(one.target, relation=there[label])
                self._waiting[label] = replace(one, target=target)
                wanted.append(target)
            else:
                del self._waiting[label]
                self._give_up(one.target, dropped_error(label))
        if not wanted:
            return None
        # What the stream brings without them was committed before the slot is asked for.
        want(target.relation.oid for target in wanted)
        self._left_out = {}
        return table_sync.another_slot(self._stream, wanted)

    def copy(self, ready: NewSlot, others: bool) -> SyncedTables:
        """Copies or compares the tables of a slot that is there; those that were altered meanwhile
        wait for the next one.

        Raises:
            BronzeError: nothing could be done at all.
        """
        why: Mapping[str, str] = {label: one.why for label, one in self._waiting.items()}
        done = table_sync.sync_tables(self._stream, ready, why, others)
        for target in ready.targets:
            one = self._waiting.pop(target.label)
            if target.label not in done.changed:
                continue
            if one.tries < _TRIES:
                due = time.monotonic() + _PAUSE * (2**one.tries - 1)
                self._waiting[target.label] = replace(one, tries=one.tries + 1, due=due)
            else:
                self._give_up(target, altered_error(target.label))
        return done

    def refuse(self, targets: Iterable[Target], error: BronzeError) -> None:
        """Gives up tables whose slot cannot be made."""
        for target in targets:
            del self._waiting[target.label]
            self._give_up(target, error)

    def close(self) -> None:
        """Ends the slot that is being made, if one is."""
        if self._new:
            self._new.close()
            self._new = None


def dropped_error(label: str) -> TableRefused:
    """The error of a table that is not there any more."""
    return TableRefused(
        f"Table {label} was dropped.", hint="Its Bronze table stays as it was.", table=label
    )


def altered_error(label: str) -> TableRefused:
    """The error of a table that does not stay as it is."""
    return TableRefused(
        f"Table {label} was altered or rewritten each time before it could be read.",
        hint="It is tried again; its Bronze table stays as it was.",
        table=label,
    )
