"""The Delta log of a table: the state that it describes, and new entries by compare-and-swap.

A commit is the object ``_delta_log/<version>.json``, which is written only if it does not exist:
one of several writers wins, and the others read the table again. The format is that of the Delta
transaction log protocol (PROTOCOL.md of delta-io/delta). Entries are not written by deltalake,
because it cannot write the files of a change data feed (``cdc`` actions), and because it resolves
conflicts in another way (see `bronze.delta.commit`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial

from deltalake.exceptions import DeltaError, TableNotFoundError
from obstore.exceptions import AlreadyExistsError, BaseError

from bronze import failpoint
from bronze.delta import files, store
from bronze.delta.properties import TableProperties
from bronze.delta.read import clustering, deletion_vectors, remembered
from bronze.delta.read.content import LogContent, TableMetadata, opened
from bronze.delta.read.entries import CONCURRENT, RESTORE, info_of
from bronze.delta.read.entries import ENTRY as ENTRY
from bronze.delta.read.entries import Action as Action
from bronze.delta.read.entries import entries as entries
from bronze.delta.read.entries import entry as entry
from bronze.delta.read.entries import info as info
from bronze.delta.read.entries import infos as infos
from bronze.delta.read.replay import Replayed, content_of, remember_commit
from bronze.delta.schema import COMMENT, DOMAINS, NTZ, VECTORS, WRITER_FEATURES, kinds
from bronze.delta.storage import client
from bronze.delta.storage.store_errors import store_error
from bronze.errors import BronzeError, CommitConflict, FileDamaged, LakeError
from bronze.model.columns import DeltaType
from bronze.model.files import StoredFile
from bronze.model.locations import Place
from bronze.version import FORMAT, VERSION

ENGINE = "bronze"
"""The engine that commits of bronze name."""
MARK = "bronze/commit"
"""The app transaction of a Bronze table with the version up to which all changes of rows are those
of bronze, or were compared with the source since."""

# A reader never replays more entries than this.
_CHECKPOINT_EVERY = 20
_FEATURES = frozenset({*WRITER_FEATURES, NTZ, VECTORS, *clustering.FEATURES})
# Up to writer version 4 there are neither column mapping nor deletion vectors; 5 and 6 have column
# mapping.
_OLD_WRITER = 4
NAMED_FEATURES = 7
"""The writer version from which on features are named."""
# What fields of a schema say of their values, and bronze does not look at.
_FIELD_RULES = {
    "delta.generationExpression": "generated columns",
    "delta.invariants": "invariants of columns",
    "delta.identity": "identity columns",
}


@dataclass(frozen=True)
class State:
    """A table as it was read. A commit on top of it fails if the table has changed since."""

    place: Place
    version: int
    content: LogContent

    @cached_property
    def columns(self) -> tuple[tuple[str, DeltaType], ...]:
        """The columns in their order.

        Raises:
            LakeError: one of them is of a type that bronze never writes.
        """
        return kinds(self.content.metadata.schema)

    @cached_property
    def properties(self) -> Mapping[str, str]:
        """The table properties."""
        return self.content.metadata.configuration

    @property
    def partition(self) -> str | None:
        """The partition column, if there is one."""
        return next(iter(self.content.metadata.partition_columns), None)

    @cached_property
    def clustering(self) -> tuple[str, ...]:
        """The columns of liquid clustering, in the order of the log; none without it.

        Raises:
            LakeError: the log has them in an unknown format.
        """
        with mapped_errors(self.place, "read"):
            return clustering.columns_of(self.content.domains)

    @cached_property
    def files(self) -> tuple[StoredFile, ...]:
        """The data files of the table.

        Raises:
            FileDamaged: the log names one outside of the table's folder.
        """
        for file in self.listed_files:
            for path in paths_of(file):
                if files.is_outside(path):
                    raise store.damage_error(self.place, path, "is outside of the table's folder")
        return self.listed_files

    @cached_property
    def listed_files(self) -> tuple[StoredFile, ...]:
        """All data files that the log names, wherever they are."""
        with mapped_errors(self.place, "read"):
            return self.content.files()

    @cached_property
    def foreign(self) -> tuple[str, ...]:
        """The commits by which another writer changed rows or columns since the table was compared
        last. Costs nothing if the last commit is bronze's.

        Raises:
            LakeError, LakeUnreachable
        """
        return self.foreign_since(self.position(MARK))

    def foreign_since(self, version: int | None) -> tuple[str, ...]:
        """`foreign`, but after a version; with None, as far as the log goes back."""
        if version == self.version:
            return ()
        commits = []
        only_metadata = version is not None
        for number in range(0 if version is None else version + 1, self.version + 1):
            try:
                actions = entry(self.place, number)
            except FileDamaged:
                commits.append(f"version {number}, whose entry in the log cannot be read")
                only_metadata = False
                continue
            if actions is None:
                # The entry has expired. Without a mark, expired entries are never reported.
                if version is not None:
                    commits.append(f"version {number}, whose entry the log no longer has")
                    only_metadata = False
            elif description := _foreign_change(actions):
                commits.append(f"version {number}: {description}")
                only_metadata &= not _changes_rows(actions)
        if commits and only_metadata and version is not None and self._differs_in_comments(version):
            return ()
        return tuple(commits)

    def _differs_in_comments(self, version: int) -> bool:
        """Whether the metadata differs from that of an earlier version in comments alone, as after
        ``COMMENT ON`` at Databricks; False if that version can no longer be read.
        """
        try:
            before = opened(self.place, version).metadata
        except (DeltaError, BronzeError, OSError, ValueError):
            return False
        return _without_comments(before) == _without_comments(self.content.metadata)

    def is_same(self, other: State) -> bool:
        """Whether both are one version of one table."""
        same_table = self.content.metadata.id == other.content.metadata.id
        return same_table and self.version == other.version

    def position(self, name: str) -> int | None:
        """The value of an app transaction, None where there is none."""
        with mapped_errors(self.place, "read"):
            return self.content.transaction(name)

    def writable(self) -> None:
        """Checks that bronze may add, rewrite and remove files.

        Raises:
            LakeError: the table has a feature that bronze cannot write, or a later release of
                bronze has written it.
        """
        self.refuse_newer()
        protocol = self.content.protocol
        unknown = sorted((protocol.writer_features | protocol.reader_features) - _FEATURES)
        if protocol.writer not in (*range(_OLD_WRITER + 1), NAMED_FEATURES):
            unknown.append(f"writer version {protocol.writer}")
        unknown += [name for name in self.properties if name.startswith("delta.constraints.")]
        schema = self.content.metadata.schema
        unknown += [rule for name, rule in _FIELD_RULES.items() if f'"{name}' in schema]
        if len(self.content.metadata.partition_columns) > 1:
            unknown.append("several partition columns")
        if DOMAINS in protocol.writer_features and not isinstance(self.content, Replayed):
            unknown.append("metadata domains in a log that only deltalake reads")
        known = dict(self.columns)
        unknown += [
            f"liquid clustering by {name}, a column without statistics of bronze"
            for name in self.clustering
            if name not in known or known[name].name not in clustering.CLUSTERED
        ]
        if unknown:
            raise LakeError(
                f"The table at {self.place.url} uses {', '.join(unknown)}, which bronze cannot"
                " write.",
                hint="Drop the feature or constraint with the tool that added it, or give the"
                " table another target.",
            )

    def refuse_newer(self) -> None:
        """Checks that this release knows the format of the table.

        Raises:
            LakeError: a later release of bronze has written it.
        """
        known = TableProperties.read(self.properties)
        if known.format > FORMAT:
            raise LakeError(
                f"The table at {self.place.url} was written by bronze {known.writer or 'later'} in"
                f" format {known.format}; this is bronze {VERSION}, which knows format {FORMAT}.",
                hint="Use that version of bronze or a later one: a lake cannot go back to an"
                " earlier format.",
            )


def paths_of(file: StoredFile) -> Iterator[str]:
    """The paths of a data file and of its deletion vector, as the log has them."""
    yield file.path
    if file.vector and (path := deletion_vectors.path_of(file.vector)):
        yield path


def read(place: Place) -> State | None:
    """The table as it is now, None if there is none.

    Raises:
        LakeError, LakeUnreachable
    """
    with mapped_errors(place, "read"):
        try:
            content = content_of(place)
        except TableNotFoundError as error:
            if "unknown scheme" in str(error).lower():
                raise
            return None
        return State(place, content.version, content)


def reads(places: Sequence[Place]) -> Iterator[Callable[[], State | None]]:
    """For each table a function that returns it as `read` does, or raises its error.

    Tables of an object store are read several at a time, as each takes some round trips.
    """
    if all(map(client.is_local, places)):
        yield from (partial(read, place) for place in places)
        return
    with ThreadPoolExecutor(CONCURRENT) as pool:
        readings = [pool.submit(read, place) for place in places]
        try:
            yield from (reading.result for reading in readings)
        except GeneratorExit:
            pool.shutdown(cancel_futures=True)
            raise


def recent(place: Place) -> State | None:
    """The table as this process read or wrote it in the last half a minute, or as it is now; None
    if there is none. Only for commits, and for what may be late: a commit on top of a state that is
    outdated is a conflict, after which this reads the table.

    Raises:
        LakeError, LakeUnreachable
    """
    content = remembered.recent(place)
    return read(place) if content is None else State(place, content.version, content)


def prefetch(places: Sequence[Place]) -> None:
    """Reads tables of an object store, several at a time, for `recent`; without errors."""
    remote = [place for place in places if not client.is_local(place)]
    for place, reading in zip(remote, reads(remote), strict=True):
        try:
            reading()
        except BronzeError:
            remembered.outdate(place)


def current(state: State) -> State | None:
    """The state itself if it is that of `recent`, else the table as `refresh` returns it."""
    return state if remembered.recent(state.place) is state.content else refresh(state)


def refresh(state: State) -> State | None:
    """The table as it is now: the state itself where nothing was committed since it was read.

    Raises:
        LakeError, LakeUnreachable
    """
    content = state.content
    is_remembered = remembered.get(state.place) is not None
    if isinstance(content, Replayed) and not is_remembered and content.is_latest():
        return state
    now = read(state.place)
    # The given one knows already what it has read of the log.
    return state if now is not None and state.is_same(now) else now


def write(place: Place, version: int, actions: Sequence[Action]) -> None:
    """Writes one entry of the log.

    Raises:
        CommitConflict: another writer wrote this version first.
        LakeError, LakeUnreachable: it could not be written.
    """
    path, entry = f"_delta_log/{version:020}.json", _lines_of(actions)
    failpoint.reach("commit")
    if version and store.is_missing(place, "_delta_log"):
        # Writing the entry would create the folder again, as of a new table.
        raise store_error(place, "committed", FileNotFoundError("no such file or directory"))
    e_tag = None
    try:
        e_tag = store.create(place, path, entry)
    except AlreadyExistsError:
        if not _is_written(place, path, entry):
            remembered.outdate(place)
            raise CommitConflict(
                f"Another writer committed to the table at {place.url} first.",
                hint="Run again; this run has committed nothing to that table.",
            ) from None
    except (BaseError, OSError) as error:
        if not _is_written(place, path, entry):
            remembered.put(place, None)
            raise store_error(place, "committed", error) from None
    failpoint.reach("committed")
    remember_commit(place, version, actions, e_tag)
    if version and version % _CHECKPOINT_EVERY == 0:
        # The commit is valid without the checkpoint; the next one will be tried later.
        with suppress(DeltaError, OSError, BronzeError):
            client.with_table(place, version, lambda table: table.create_checkpoint())


def _lines_of(actions: Sequence[Action]) -> bytes:
    # One buffer: a commit of a hundred thousand files would be in memory three times.
    buffer = io.BytesIO()
    for action in actions:
        buffer.write(f"{json.dumps(action, ensure_ascii=False)}\n".encode())
    return buffer.getvalue()


def _foreign_change(actions: Sequence[Action]) -> str:
    """The operation and the writer of a commit that changed rows or columns; "" for commits of
    bronze, and those that changed neither.
    """
    info = info_of(actions)
    if info.get("engineInfo") == ENGINE:
        return ""
    if not _changes_rows(actions) and not any("metaData" in action for action in actions):
        return ""
    writer = info.get("engineInfo") or info.get("clientVersion") or "an unknown writer"
    return f"{info.get('operation', 'a change')} by {writer}"


def _changes_rows(actions: Sequence[Action]) -> bool:
    files = [a.get("add") or a.get("remove") for a in actions if "add" in a or "remove" in a]
    return any(file.get("dataChange", True) for file in files if file)


def _without_comments(metadata: TableMetadata) -> TableMetadata:
    fields = [
        {**field, "metadata": {k: v for k, v in field["metadata"].items() if k != COMMENT}}
        for field in json.loads(metadata.schema)["fields"]
    ]
    schema = json.dumps(fields, sort_keys=True)
    return replace(metadata, description=None, schema=schema)


def _is_written(place: Place, path: str, entry: bytes) -> bool:
    """Whether an entry was written after all: the response of the store may have been lost."""
    try:
        return store.get(place, path) == entry
    except (BaseError, OSError):
        return False


@contextmanager
def mapped_errors(place: Place, what: str) -> Iterator[None]:
    """Turns errors of deltalake into those of bronze; ``what`` was being done, such as "read"."""
    try:
        yield
    except (DeltaError, OSError, ValueError) as error:
        failure = store_error(place, what, error)
        if not failure.hint:
            failure.hint = RESTORE
        raise failure from error
