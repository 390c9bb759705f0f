"""Entries of purges: the folder ``_purges`` in the root of the lake says which tables were purged,
up to which version, so that copies of the lake delete the same.

An entry is put before the objects are deleted: it is there even if the process dies meanwhile. It
stays, as there may be several copies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from obstore.exceptions import BaseError

from bronze.delta import store
from bronze.delta.storage.store_errors import store_error
from bronze.errors import FileDamaged
from bronze.model.locations import Place, TableName

FOLDER = "_purges"


@dataclass(frozen=True)
class PurgeEntry:
    """A purge: no version of the table before ``version`` may be kept; it was made ``at``.
    ``table_id`` is the id in the table's metadata: a later table of its name is another one.
    """

    name: str
    table: TableName
    table_id: str
    version: int
    at: datetime

    def document(self) -> bytes:
        """The entry as it is stored."""
        table = {"schema": self.table.schema, "name": self.table.name, "id": self.table_id}
        at = self.at.timestamp()
        return json.dumps({"format": 1, **table, "version": self.version, "at": at}).encode()


def add(place: Place, table_id: str, version: int, now: float) -> None:
    """Adds an entry.

    Args:
        place: the table, which is in the folder of its schema in the root of the lake.
        table_id: the id in its metadata.
        version: the version that the table begins with from now on.
        now: seconds since 1970.

    Raises:
        LakeUnreachable: it cannot be written.
    """
    root, schema, name = place.url.rstrip("/").rsplit("/", 2)
    file = f"{int(now * 1000):015}-{uuid4().hex[:8]}.json"
    at = datetime.fromtimestamp(now, UTC)
    entry = PurgeEntry(file, TableName(schema, name), table_id, version, at)
    store.put(Place(root, place.options), f"{FOLDER}/{file}", entry.document())


def entries(root: Place) -> Iterator[PurgeEntry]:
    """All entries of a lake, the oldest first.

    Raises:
        FileDamaged: one cannot be read.
        LakeError, LakeUnreachable
    """
    for path in sorted(store.listing(root, FOLDER)):
        try:
            yield parse(path.rpartition("/")[2], store.get(root, path))
        except (BaseError, OSError) as error:
            raise store_error(root, "read", error) from None
        except (ValueError, KeyError, TypeError):
            raise FileDamaged(
                f"The file {path} of the lake at {root.url} is not the entry of a purge.",
                hint="Delete the file, and run `bronze forget TABLE --old-versions` for the table"
                " that it was about.",
            ) from None


def parse(name: str, data: bytes) -> PurgeEntry:
    """An entry from its stored form.

    Raises:
        ValueError, KeyError, TypeError: it is not one.
    """
    found = json.loads(data)
    table = TableName(found["schema"], found["name"])
    at = datetime.fromtimestamp(found["at"], UTC)
    return PurgeEntry(name, table, str(found["id"]), int(found["version"]), at)
