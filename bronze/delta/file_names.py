"""Names of data files: they have the batch that wrote the file, its cluster and its partition."""

from __future__ import annotations

import re
from uuid import uuid4

Partition = tuple[tuple[str, str | None], ...]

DATA, FEED = "part-", "cdc-"
"""How the names of data files begin, and those of the change data feed."""

FEED_FOLDER = "_change_data/"
"""Where the files of the change data feed are."""

# The folder of rows without a date.
_PLAIN = re.compile(r"[\w=/.-]*", re.ASCII)
_NULL = "__HIVE_DEFAULT_PARTITION__"
_SUFFIX = ".zstd.parquet"
_NAME = re.compile(
    f"(?:{FEED_FOLDER})?(?:[^/]+=[^/]*/)?(?:{DATA}|{FEED})(?P<batch>.+?)"
    "(?:-(?P<spec>[0-9a-f]{8})-(?P<cluster>[0-9a-f]{8}))?"
    f"-[0-9a-f]{{32}}{re.escape(_SUFFIX)}"
)


def new(folder: str, partition: Partition, prefix: str, batch_id: str) -> str:
    """The path of a new file in the folder of its table; no other file has it."""
    return f"{folder}{_folders(partition)}{prefix}{batch_id}-{uuid4().hex}{_SUFFIX}"


def _folders(partition: Partition) -> str:
    # Polars reads the value of a partition from the name of the folder, not from the log; but
    # readers do not agree on the encoding of other characters there.
    folders = "".join(f"{name}={_NULL if value is None else value}/" for name, value in partition)
    return folders if _PLAIN.fullmatch(folders) else ""


def cluster_name(batch_id: str, spec: str, cluster: str) -> str:
    """The part of a file's name for a file of a cluster; for others it is the batch alone.

    Args:
        batch_id: the batch that writes it.
        spec: eight hexadecimal digits for the clustering.
        cluster: eight hexadecimal digits for the cluster.
    """
    return f"{batch_id}-{spec}-{cluster}"


def batch_of(path: str) -> str | None:
    """The batch in the name of a file, None for a file of another writer."""
    named = _NAME.fullmatch(path)
    return named["batch"] if named else None


def cluster_of(path: str) -> tuple[str, str] | None:
    """The clustering and the cluster in the name of a file, None if it has none."""
    named = _NAME.fullmatch(path)
    return (named["spec"], named["cluster"]) if named and named["spec"] else None
