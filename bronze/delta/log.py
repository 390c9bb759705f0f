"""A table's Delta log: the state that it describes, and new entries by compare-and-swap.

A commit is the object ``_delta_log/<version>.json``, put only if it is not there: whoever puts
the next version first has won, and everybody else reads again. The format is that of the Delta
transaction log protocol (PROTOCOL.md of delta-io/delta). The entries are written here rather than
by deltalake because it cannot write the files of a change data feed (``cdc`` actions), and because
its own resolution of conflicts is not ours (see `bronze.delta.commit`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import obstore
import polars as pl
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from obstore.exceptions import AlreadyExistsError, BaseError

from bronze import failpoint
from bronze.delta import files, store
from bronze.delta.schema import kinds
from bronze.delta.statistics import SAFE
from bronze.errors import CommitConflict, FileDamaged, LakeError
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place

Action = Mapping[str, Any]

ENGINE = "bronze"
"""What commits of ours name as their engine."""
MARK = "bronze/commit"
"""The app transaction of a Bronze table that holds the version up to which all changes of rows were
ours, or were compared with the source since."""

ENTRY = re.compile(r"_delta_log/(\d{20})\.json")
"""The path of an entry, in a table's folder."""

_RESTORE = (
    "If entries of its _delta_log are gone or were changed, restore them from a backup; or move the"
    " table's folder away, and a run loads it anew."
)
# So that a reader never replays more entries than this.
_CHECKPOINT_EVERY = 20
_FEATURES = frozenset({"appendOnly", "invariants", "changeDataFeed", "timestampNtz"})
# Up to 4 the protocol has neither column mapping nor deletion vectors; from 7 on it names what it
# has; between them it has column mapping.
_OLD_WRITER = 4
_NAMED_FEATURES = 7


@dataclass(frozen=True)
class State:
    """A table as it was read: what a commit is compared against."""

    place: Place
    table: DeltaTable
    version: int

    @cached_property
    def columns(self) -> tuple[tuple[str, DeltaType], ...]:
        """The columns in their order.

        Raises:
            LakeError: one of them is of a type that bronze never writes.
        """
        return kinds(self.table.schema().to_json())

    @cached_property
    def properties(self) -> Mapping[str, str]:
        """The table properties."""
        found: dict[str, str] = dict(self.table.metadata().configuration)
        return found

    @property
    def partition(self) -> str | None:
        """The partition column, if there is one."""
        found = self.table.metadata().partition_columns
        return str(found[0]) if found else None

    @cached_property
    def files(self) -> tuple[StoredFile, ...]:
        """The data files that make up the table.

        Raises:
            FileDamaged: the log names one that is not in the table's folder.
        """
        for file in self.named:
            if files.is_outside(file.path):
                raise store.damaged(self.place, file.path, "is outside of the table's folder")
        return self.named

    @cached_property
    def named(self) -> tuple[StoredFile, ...]:
        """All data files that the log names, wherever they are."""
        safe = [name for name, kind in self.columns if kind.name in SAFE]
        with mapped(self.place, "read"):
            adds: Any = pl.DataFrame(self.table.get_add_actions(flatten=False))
        return tuple(_stored(row, safe) for row in adds.iter_rows(named=True))

    @cached_property
    def foreign(self) -> tuple[str, ...]:
        """The commits by which another writer changed rows or columns, and which no comparison has
        taken into account. Costs nothing where the last commit is ours.

        Raises:
            LakeError, LakeUnreachable
        """
        return self.foreign_since(self.position(MARK))

    def foreign_since(self, version: int | None) -> tuple[str, ...]:
        """Those after a version; with None, as far as the log still has them."""
        if version == self.version:
            return ()
        found = []
        for number in range(0 if version is None else version + 1, self.version + 1):
            try:
                actions = entry(self.place, number)
            except FileDamaged:
                found.append(f"version {number}, whose entry in the log cannot be read")
                continue
            if actions is None:
                # It is expired; a table of before knows nothing of what is older, either.
                found += [] if version is None else [f"version {number}, which the log has no more"]
            elif said := _changed_by(actions):
                found.append(f"version {number}: {said}")
        return tuple(found)

    def is_same(self, other: State) -> bool:
        """Whether both are one version of one table."""
        mine, theirs = self.table.metadata().id, other.table.metadata().id
        return (mine, self.version) == (theirs, other.version)

    def position(self, name: str) -> int | None:
        """The value of an app transaction, None where there is none."""
        found: int | None = self.table.transaction_version(name)
        return found

    def writable(self) -> None:
        """Makes sure that we may add, rewrite and remove files.

        Raises:
            LakeError: the table uses something that we would break.
        """
        protocol = self.table.protocol()
        used = {*(protocol.writer_features or ()), *(protocol.reader_features or ())}
        more = sorted(used - _FEATURES)
        if protocol.min_writer_version not in (*range(_OLD_WRITER + 1), _NAMED_FEATURES):
            more.append(f"writer version {protocol.min_writer_version}")
        more += [name for name in self.properties if name.startswith("delta.constraints.")]
        if len(self.table.metadata().partition_columns) > 1:
            more.append("several partition columns")
        if more:
            raise LakeError(
                f"The table at {self.place.url} uses {', '.join(more)}, which bronze cannot write.",
                hint="Drop the feature or constraint with the tool that added it, or give the"
                " table another target.",
            )


def _stored(row: Mapping[str, Any], safe: Sequence[str]) -> StoredFile:
    low, high = (row.get(side) or {} for side in ("min", "max"))
    partition = row.get("partition") or {}
    return StoredFile(
        path=row["path"],
        size=row["size_bytes"],
        rows=-1 if row["num_records"] is None else row["num_records"],
        low=tuple((n, low[n]) for n in safe if low.get(n) is not None),
        high=tuple((n, _whole(high[n])) for n in safe if high.get(n) is not None),
        partition=tuple((n, None if v is None else str(v)) for n, v in partition.items()),
    )


def _whole(bound: Any) -> Any:
    """Other writers cut bounds to milliseconds, so the values may be a little greater."""
    if not isinstance(bound, datetime) or bound.microsecond % 1000:
        return bound
    return bound.replace(microsecond=bound.microsecond + 999)


def read(place: Place) -> State | None:
    """The table as it is now, None where there is none.

    Raises:
        LakeError, LakeUnreachable
    """
    with mapped(place, "read"):
        try:
            table = DeltaTable(place.url, storage_options=store.options(place) or None)
        except TableNotFoundError as error:
            if "unknown scheme" in str(error).lower():
                raise
            return None
        return State(place, table, table.version())


def write(place: Place, version: int, actions: Sequence[Action]) -> None:
    """Puts one entry of the log.

    Raises:
        CommitConflict: somebody else has put this version first.
        LakeError, LakeUnreachable: it could not be put.
    """
    lines = "".join(json.dumps(action, ensure_ascii=False) + "\n" for action in actions)
    path, entry = f"_delta_log/{version:020}.json", lines.encode()
    failpoint.reach("commit")
    if version and store.is_missing(place, "_delta_log"):
        # Putting the entry would make a folder where the table has been, as it would a new one.
        raise store.failure(place, "committed", FileNotFoundError("no such file or directory"))
    try:
        obstore.put(store.opened(place), path, entry, mode="create")
    except AlreadyExistsError:
        if not _stands(place, path, entry):
            raise CommitConflict(
                f"Another writer committed to the table at {place.url} first.",
                hint="Run again; nothing of this run is in that table.",
            ) from None
    except (BaseError, OSError) as error:
        if not _stands(place, path, entry):
            raise store.failure(place, "committed", error) from None
    failpoint.reach("committed")
    if version and version % _CHECKPOINT_EVERY == 0:
        # The commit stands; a checkpoint that fails is made up for by the next one.
        with suppress(DeltaError, OSError):
            DeltaTable(
                place.url, version=version, storage_options=store.options(place) or None
            ).create_checkpoint()


def infos(place: Place, latest: int | None = None) -> Iterator[Action]:
    """What the commits up to a version say of themselves, as far as the log still has them, in no
    order.

    Raises:
        FileDamaged: an entry cannot be read.
        LakeError, LakeUnreachable
    """
    named = map(ENTRY.fullmatch, store.listing(place, "_delta_log"))
    versions = (int(name[1]) for name in named if name)
    wanted = (version for version in versions if latest is None or version <= latest)
    yield from (_info(actions) for _, actions in entries(place, wanted) if actions is not None)


def info(place: Place, version: int) -> Action | None:
    """What one commit says of itself; None where the log has it no more.

    Raises:
        LakeError, LakeUnreachable
    """
    actions = entry(place, version)
    return None if actions is None else _info(actions)


def entry(place: Place, version: int) -> Sequence[Action] | None:
    """The actions of one commit; None where the log has it no more. Raises as `entries` does."""
    return next(actions for _, actions in entries(place, (version,)))


def entries(place: Place, versions: Iterable[int]) -> Iterator[tuple[int, Sequence[Action] | None]]:
    """The actions of some commits by their versions, None for one that the log has no more.

    Raises:
        FileDamaged: an entry cannot be read; a checkpoint may stand for it.
        LakeError, LakeUnreachable
    """
    opened = store.opened(place)
    for version in versions:
        path = f"_delta_log/{version:020}.json"
        try:
            text = bytes(obstore.get(opened, path).bytes())
        except FileNotFoundError:
            yield version, None
            continue
        except (BaseError, OSError) as error:
            raise store.failure(place, "read", error) from None
        try:
            actions = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            actions = []
        if not actions or not all(map(_is_action, actions)):
            raise FileDamaged(
                f"The file {path} of the table at {place.url} is no entry of a Delta log.",
                hint=_RESTORE,
            )
        yield version, actions


def _is_action(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and all(isinstance(one, dict) for one in found.values())
        and all(
            isinstance(found[k].get("path"), str) for k in ("add", "remove", "cdc") if k in found
        )
    )


def _info(actions: Sequence[Action]) -> Action:
    found: Action = next((a["commitInfo"] for a in actions if "commitInfo" in a), {})
    return found


def _changed_by(actions: Sequence[Action]) -> str:
    """Who changed rows or columns by a commit, and how; "" where it was bronze, or nobody did."""
    info = _info(actions)
    if info.get("engineInfo") == ENGINE:
        return ""
    files = [a.get("add") or a.get("remove") for a in actions if "add" in a or "remove" in a]
    if not any(file.get("dataChange", True) for file in files if file) and not any(
        "metaData" in action for action in actions
    ):
        return ""
    who = info.get("engineInfo") or info.get("clientVersion") or "an unknown writer"
    return f"{info.get('operation', 'a change')} by {who}"


def _stands(place: Place, path: str, entry: bytes) -> bool:
    """Whether an entry is there after all: the store's answer may have been lost on its way."""
    try:
        return bytes(obstore.get(store.opened(place), path).bytes()) == entry
    except (BaseError, OSError):
        return False


@contextmanager
def mapped(place: Place, what: str) -> Iterator[None]:
    """Turns deltalake's errors into ours."""
    try:
        yield
    except (DeltaError, OSError, ValueError) as error:
        mine = store.failure(place, what, error)
        if not mine.hint:
            mine.hint = _RESTORE
        raise mine from error
