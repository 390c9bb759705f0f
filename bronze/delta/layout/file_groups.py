"""Which files of a partition are rewritten together: the policy of `optimize`.

As in a log-structured merge tree, new files are gathered until they are worth a rewrite, which
takes along older files of about their size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bronze.delta import file_names
from bronze.model.files import StoredFile

# A file of at least this part of the target size is not small.
_FULL = 0.7
# An older file or cluster joins the new ones if it is at most this many times as large as they are.
_RATIO = 1.0
# New files are rewritten if they have this many times the target size, or are this many.
_WORTH = 2.0
_MANY = 8
# Fewer small files than this are not joined.
_FEWEST = 4


def clustering_id(columns: Sequence[str]) -> str:
    """Eight hexadecimal digits that stand for a clustering by these columns in names of files."""
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:8]


def size_of(stored: Iterable[StoredFile]) -> int:
    """The bytes of some files."""
    return sum(file.size for file in stored)


def by_partition(stored: Iterable[StoredFile]) -> list[list[StoredFile]]:
    """The files of each partition, in the order of the partitions' values."""
    partitions: dict[tuple[tuple[str, str | None], ...], list[StoredFile]] = {}
    for file in stored:
        partitions.setdefault(file.partition, []).append(file)
    return [partitions[key] for key in sorted(partitions, key=str)]


def to_cluster(
    stored: Sequence[StoredFile], columns: Sequence[str], target: int, budget: int
) -> list[tuple[StoredFile, ...]]:
    """The files of a partition to rewrite together as one cluster: all new ones, and the older
    clusters that they have outgrown.

    Args:
        stored: all files of the partition.
        columns: the columns to cluster by.
        target: the size of a file, in bytes.
        budget: the most bytes to rewrite.
    """
    new: list[StoredFile] = []
    clusters: dict[str, list[StoredFile]] = {}
    for file in stored:
        clustering, cluster = file_names.cluster_of(file.path) or ("", "")
        if clustering == clustering_id(columns):
            clusters.setdefault(cluster, []).append(file)
        elif file.size <= budget:
            new.append(file)
    if size_of(new) < target * _WORTH and len(new) < _MANY:
        return []
    new.sort(key=_bounds_key(new, columns[0]))
    group = _within(new, budget)
    if len(group) == len(new):
        older = sorted(clusters.values(), key=size_of)
        count = _joining_count([size_of(cluster) for cluster in older], size_of(group), budget)
        group += [file for cluster in older[:count] for file in cluster]
    return [tuple(group)] if len(group) > 1 or size_of(group) > target else []


def to_join(stored: Sequence[StoredFile], target: int, budget: int) -> list[tuple[StoredFile, ...]]:
    """The small files of a partition to join, in groups of about the target size.

    Args:
        stored: all files of the partition.
        target: the size of a file, in bytes.
        budget: the most bytes to rewrite.
    """
    small = sorted((f for f in stored if f.size < target * _FULL), key=lambda f: f.size)
    chosen = small[: _joining_count([file.size for file in small], 0, budget)]
    if len(chosen) < _FEWEST:
        return []
    groups: list[list[StoredFile]] = [[]]
    for file in sorted(chosen, key=_bounds_key(chosen, "")):
        if size_of(groups[-1]) >= target:
            groups.append([])
        groups[-1].append(file)
    if len(groups) > 1 and size_of(groups[-1]) < target * _FULL:
        last = groups.pop()
        groups[-1] += last
    return [tuple(group) for group in groups] if len(groups) * 2 <= len(chosen) else []


def _within(stored: Sequence[StoredFile], budget: int) -> list[StoredFile]:
    """The files that fit into the budget, the first ones first."""
    group: list[StoredFile] = []
    for file in stored:
        if file.size <= budget:
            group.append(file)
            budget -= file.size
    return group


def _joining_count(sizes: Sequence[int], start: int, budget: int) -> int:
    """How many of some ascending sizes join what is gathered: the last one that joins is not much
    larger than everything before it.
    """
    count, gathered = 0, start
    for number, size in enumerate(sizes, 1):
        if size <= _RATIO * gathered and gathered + size <= budget:
            count = number
        gathered += size
    return count


def _bounds_key(stored: Sequence[StoredFile], column: str) -> Callable[[StoredFile], Any]:
    """A sort key: the minimum of the first column with a minimum in all files."""
    common = set.intersection(*({name for name, _ in file.low} for file in stored))
    names = [column] if column in common else [n for n, _ in stored[0].low if n in common][:1]
    order = {id(file): number for number, file in enumerate(stored)}

    def key(file: StoredFile) -> Any:
        return ([dict(file.low)[name] for name in names], order[id(file)])

    return key
