"""Commits: each one a compare-and-swap against the version that was read.

A table's run becomes visible by one transaction, which holds its files, the position that they
stand for, and the run's facts. We never let the library resolve a conflict: a lost race raises,
and the caller reads again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tenacity
from deltalake import DeltaTable, Schema, TableFeatures
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import (
    AddAction,
    CommitProperties,
    Transaction,
    create_table_with_add_actions,
)

from bronze.errors import CommitConflict, LakeError
from bronze.model import DataFile, Kind, Place
from bronze.table import files, store
from bronze.table.schema import delta_schema, properties

FACTS = "bronze"
"""The key in a commit's info under which the run's facts are, as JSON."""

# A file of a run that has not committed is left alone for so long: the run may still be alive.
ORPHAN_AGE = 24 * 3600.0
# Once the log that says which batches have committed may be cleaned up, a missing entry proves
# nothing; an older orphan is left to the expiry of old files.
_LOG_AGE = 25 * 24 * 3600.0
_COMMIT_TRIES = 6


@dataclass(frozen=True)
class State:
    """A table as it was read: what a commit is compared against."""

    table: DeltaTable
    version: int


@dataclass(frozen=True)
class Position:
    """How far the source has been taken in, within one history of it."""

    timeline: str
    value: int

    @property
    def app_id(self) -> str:
        """The app transaction that holds it."""
        return f"bronze/{self.timeline}"


def read(place: Place) -> State | None:
    """The table as it is now, None where there is none.

    Raises:
        LakeError, LakeUnreachable
    """
    with _mapped(place, "read"):
        try:
            table = DeltaTable(place.url, storage_options=store.options(place) or None)
        except TableNotFoundError:
            return None
        return State(table, table.version())


def position(state: State, timeline: str) -> int | None:
    """The position that the table holds in this history of the source."""
    return state.table.transaction_version(Position(timeline, 0).app_id)


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(CommitConflict),
    stop=tenacity.stop_after_attempt(_COMMIT_TRIES),
    wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
    reraise=True,
)
def replace(
    place: Place,
    columns: Sequence[tuple[str, Kind]],
    stats: Sequence[str],
    data: Sequence[DataFile],
    reached: Position,
    facts: Mapping[str, Any],
) -> int:
    """Makes ``data`` the table's whole content, creating the table if there is none.

    Returns:
        The new version.

    Raises:
        CommitConflict: somebody else committed in between, again and again.
        LakeError: the table holds a later position already.
    """
    state = read(place)
    schema = delta_schema(columns)
    if state is None:
        return _create(place, schema, stats, data, reached, facts)
    held = position(state, reached.timeline)
    if held is not None and held > reached.value:
        raise LakeError(
            f"The table at {place.url} already holds a later state of the source"
            f" (position {held}) than this run read ({reached.value}).",
            hint="Another run has overtaken this one: there is nothing to do.",
        )
    with _mapped(place, "committed"):
        _upgrade(state.table, schema)
        version = state.table.version() + 1
        state.table.create_write_transaction(
            _adds(data),
            "overwrite",
            schema,
            commit_properties=_properties(reached, facts),
        )
    return version


def _upgrade(table: DeltaTable, schema: Schema) -> None:
    """Lets a table have its first timestamp without time zone.

    deltalake commits such a schema without the feature that it needs, and no reader can open the
    table from then on. The features that the old protocol implied have to be named, or are lost.
    """
    known = table.protocol().reader_features or []
    if '"timestamp_ntz"' not in schema.to_json() or "timestampNtz" in known:
        return
    table.alter.add_feature(
        [
            TableFeatures.AppendOnly,
            TableFeatures.ChangeDataFeed,
            TableFeatures.Invariants,
            TableFeatures.TimestampWithoutTimezone,
        ],
        allow_protocol_versions_increase=True,
        commit_properties=CommitProperties(max_commit_retries=0),
    )


def _create(
    place: Place,
    schema: Schema,
    stats: Sequence[str],
    data: Sequence[DataFile],
    reached: Position,
    facts: Mapping[str, Any],
) -> int:
    with _mapped(place, "created"):
        if store.is_local(place):
            store.opened(place)
        create_table_with_add_actions(
            place.url,
            schema,
            _adds(data),
            mode="error",
            configuration=properties(stats),
            storage_options=store.options(place) or None,
            commit_properties=_properties(reached, facts),
        )
    return 0


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(CommitConflict),
    stop=tenacity.stop_after_attempt(_COMMIT_TRIES),
    wait=tenacity.wait_exponential_jitter(multiplier=0.1, max=5),
    reraise=True,
)
def append(
    place: Place, columns: Sequence[tuple[str, Kind]], data: DataFile, facts: Mapping[str, Any]
) -> None:
    """Adds one file to a table that many runs append to, creating it if there is none.

    Raises:
        CommitConflict: somebody else committed in between, again and again.
    """
    state = read(place)
    with _mapped(place, "committed"):
        commit = CommitProperties(custom_metadata={FACTS: json.dumps(facts)}, max_commit_retries=0)
        if state is None:
            create_table_with_add_actions(
                place.url,
                delta_schema(columns),
                _adds([data]),
                mode="error",
                configuration=properties(()),
                storage_options=store.options(place) or None,
                commit_properties=commit,
            )
        else:
            state.table.create_write_transaction(
                _adds([data]), "append", delta_schema(columns), commit_properties=commit
            )


def _adds(data: Sequence[DataFile]) -> list[Any]:
    now = int(time.time() * 1000)
    return [AddAction(file.path, file.size, {}, now, True, file.stats) for file in data]


def _properties(reached: Position, facts: Mapping[str, Any]) -> CommitProperties:
    return CommitProperties(
        custom_metadata={FACTS: json.dumps(facts)},
        max_commit_retries=0,
        app_transactions=[Transaction(reached.app_id, reached.value)],
    )


@contextmanager
def _mapped(place: Place, what: str) -> Iterator[None]:
    try:
        yield
    except CommitFailedError:
        raise _conflict(place) from None
    except (DeltaError, OSError, ValueError) as error:
        if "already exists" in str(error):
            raise _conflict(place) from None
        raise store.failure(place, what, error) from error


def _conflict(place: Place) -> CommitConflict:
    return CommitConflict(
        f"Another writer committed to the table at {place.url} first.",
        hint="Run again; nothing of this run is in that table.",
    )


def discard(place: Place, batch_id: str) -> None:
    """Deletes the files of a batch that did not land; those of one that did are kept.

    Args:
        place: the table.
        batch_id: a batch that will write no more.
    """
    state = read(place)
    live = {uri.rpartition("/")[2] for uri in state.table.file_uris()} if state else set()
    paths = [path for path in store.listing(place) if files.batch_of(path) == batch_id]
    store.delete(place, [path for path in paths if path not in live])


def sweep(place: Place, now: float) -> int:
    """Deletes the files of runs that died before their commit; returns how many.

    Args:
        place: the table.
        now: seconds since 1970; files of runs that began less than a day before it are spared,
            and those of runs so old that the log may have forgotten them.
    """
    state = read(place)
    if state is None:
        return 0
    live = {files.batch_of(path) for path in state.table.file_uris()}
    suspects = [
        path
        for path in store.listing(place)
        if (batch := files.batch_of(path))
        and batch not in live
        and ORPHAN_AGE < _age(batch, now) < _LOG_AGE
    ]
    if not suspects:
        return 0
    facts = (entry.get(FACTS) for entry in state.table.history())
    landed = {json.loads(text).get("batch_id") for text in facts if text}
    dead = [path for path in suspects if files.batch_of(path) not in landed]
    store.delete(place, dead)
    return len(dead)


def _age(batch: str, now: float) -> float:
    # The first 48 bits of a UUIDv7 are its time in milliseconds (RFC 9562).
    return now - int(batch.replace("-", "")[:12], 16) / 1000
