"""A copy of a table's log in a folder of this machine, for deltalake.

Deltalake takes no OAuth tokens for Google Cloud Storage, which vended credentials are. It reads
states from a copy of the log, and writes checkpoints into it, which are then uploaded.
"""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import obstore
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError
from obstore.exceptions import NotFoundError

T = TypeVar("T")

_LOG, _LAST = "_delta_log", "_last_checkpoint"


def with_copy(
    opened: Any, prefix: str, version: int | None, attempt: Callable[[DeltaTable], T]
) -> T:
    """What an operation of deltalake on the copy of a log returns.

    Args:
        opened: the store, as obstore has it.
        prefix: the path of the table in it.
        version: the version to open, None for the latest.
        attempt: the operation.

    Raises:
        TableNotFoundError: there is no table.
        deltalake.exceptions.DeltaError, OSError, ValueError: the log cannot be read.
        obstore.exceptions.BaseError: the store cannot.
    """
    where = f"{prefix}/{_LOG}" if prefix else _LOG
    names = _names(opened, where, version)
    if not names:
        raise TableNotFoundError(f"There is no table at {prefix}")
    folder = tempfile.TemporaryDirectory(prefix="bronze-log-")
    copy = Path(folder.name, _LOG)
    copy.mkdir()
    for name in names:
        (copy / name).write_bytes(bytes(obstore.get(opened, f"{where}/{name}").bytes()))
    table = DeltaTable(folder.name, version=version)
    # The operation may return the table itself, which reads on.
    weakref.finalize(table, folder.cleanup)
    result = attempt(table)
    # The pointer to a checkpoint is the last to be uploaded.
    for path in sorted(copy.iterdir(), key=lambda path: path.name == _LAST):
        if path.suffix == ".parquet" and path.name not in names:
            obstore.put(opened, f"{where}/{path.name}", path.read_bytes())
        elif path.name == _LAST:
            obstore.put(opened, f"{where}/{_LAST}", path.read_bytes())
    return result


def _names(opened: Any, where: str, version: int | None) -> set[str]:
    """The objects of a log that a version is read from: those since the last checkpoint, if the
    version is not before it.
    """
    offset = None
    try:
        last = json.loads(bytes(obstore.get(opened, f"{where}/{_LAST}").bytes()))["version"]
        if version is None or version >= last:
            offset = f"{where}/{last:020d}"
    except (NotFoundError, FileNotFoundError):
        pass
    cut = len(where) + 1
    chunks = obstore.list(opened, f"{where}/", offset=offset)
    names = {meta["path"][cut:] for chunk in chunks for meta in chunk}
    return {name for name in names if "/" not in name}
