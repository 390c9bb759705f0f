"""Liquid clustering as Databricks knows it: makes a table say what it is clustered by.

One commit names the features and the columns. Files without statistics for the columns get them by
the same commit, and files that bronze has clustered by them get their provider; no file is written
again. What is clustered when is the policy of `bronze.delta.layout.optimize`, as without it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bronze.delta import actions, commit
from bronze.delta.log import Action, State, mapped_errors
from bronze.delta.read import clustering, replay
from bronze.delta.read.clustering import CLUSTERED, Columns
from bronze.errors import LakeError
from bronze.model.files import StoredFile
from bronze.model.locations import Place

Steps = Generator[tuple[Any, Sequence[Any]], list[Any], int]


@dataclass(frozen=True)
class Measure:
    """The job to measure the statistics of ``columns`` of one file."""

    place: Place
    file: StoredFile
    stats: str | None
    layout: Columns
    columns: tuple[str, ...]


def measure(job: Measure) -> tuple[tuple[object, ...], str]:
    """The identity of a file, and its statistics with those of more columns.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    stats = clustering.with_statistics(job.place, job.file, job.stats, job.layout, job.columns)
    return job.file.identity, stats


def is_needed(state: State, by: Sequence[str]) -> bool:
    """Whether the table says something else than that it is clustered by these columns.

    Raises:
        LakeError: it cannot be clustered by them.
    """
    known = dict(state.columns)
    wrong = [f"{n} ({known[n]})" for n in by if known[n].name not in CLUSTERED]
    if wrong or state.partition:
        reason = f"by {', '.join(wrong)}" if wrong else f"and partitioned by {state.partition}"
        raise LakeError(
            f"The table at {state.place.url} cannot have liquid clustering {reason}.",
            hint="Liquid clustering needs columns with statistics (whole numbers, texts, dates and"
            " times), and no partitions: correct cluster_by, or remove liquid.",
        )
    return state.clustering != tuple(by)


def steps(state: State, by: tuple[str, ...], notes: Mapping[str, str]) -> Steps:
    """Yields a function with its jobs, gets their results in any order, commits, and returns the
    new version; ``notes`` are table properties that change with the columns.

    Raises:
        CommitConflict: another writer committed since ``state`` was read.
        LakeError, LakeUnreachable: the table cannot be read or written.
    """
    state.writable()
    content = state.content
    with mapped_errors(state.place, "read"):
        if not isinstance(content, replay.Replayed):
            content = replay.replayed(state.place, state.version)
        stored = content.files()
    adds = {file.identity: content.add_of(file) for file in stored}
    jobs = [
        Measure(state.place, file, adds[file.identity].get("stats"), state.columns, by)
        for file in stored
        if clustering.lacks_statistics(adds[file.identity].get("stats"), by)
    ]
    measured = dict((yield measure, jobs) if jobs else [])
    described = []
    for file in stored:
        add, provider = adds[file.identity], commit.provider_of(file.path, by)
        if file.identity in measured or (provider and provider != file.provider):
            stats = measured.get(file.identity) or add["stats"]
            described.append(actions.add_described(add, stats, provider))
    return _commit(state, by, notes, described)


def _commit(
    state: State, by: tuple[str, ...], notes: Mapping[str, str], described: Sequence[Action]
) -> int:
    now = int(time.time() * 1000)
    parameters = {
        "oldClusteringColumns": ",".join(state.clustering),
        "newClusteringColumns": ",".join(by),
    }
    info = actions.commit_info("CLUSTER BY", parameters, False, {}, now)
    metadata = actions.table_actions(state, state.columns, state.partition, notes, now)
    entry = [info, *actions.clustering_actions(state, by), *metadata, *described]
    return commit.commit_actions(state, entry, now)
