"""The manifests of a copy: what each generation consists of, and where it is.

The root of a copy has the tables of the lake under the same paths as the lake, so that a failover
can name it as its root, and beside them the folder ``_backup``:

- ``lake.json``: the identity of the lake that is copied here.
- ``manifests/<20 digits>.json``: one for each generation; the number is the generation's id. It is
  put last and only if it is absent: a generation without a manifest does not exist. Each has the
  SHA-256 of the one before, so that they form a chain.
- ``objects/<schema>.<table>/<20 digits>-<16 hex digits>.parquet``: the list of the objects that a
  table needs at a version (``path`` in the table's folder, ``size``, ``sha256``), which all
  generations share that have this version. The digits are the version and the beginning of the
  list's own SHA-256, which the manifest has in full.
- ``purges/<name>.json``: the erasures that have reached the copy (`bronze.backup.purges`).

`read` and `objects_of` check hashes: what they return is what the backup wrote.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import polars as pl
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError

from bronze.delta import store
from bronze.delta.storage.store_errors import store_error
from bronze.errors import ConfigError, FileDamaged, LakeError
from bronze.model.locations import Place, TableName

FORMAT = 1
FOLDER = "_backup"
MANIFESTS = f"{FOLDER}/manifests"
LISTS = f"{FOLDER}/objects"
IDENTITY = f"{FOLDER}/lake.json"

OBJECTS: Mapping[str, Any] = {"path": pl.String, "size": pl.Int64, "sha256": pl.String}
"""The columns of a list of objects; they are sorted by path."""
_NAME = re.compile(rf"{MANIFESTS}/(\d{{20}})\.json")

MomentKind = Literal["stream", "runs", "table", "governance"]


@dataclass(frozen=True)
class Moment:
    """The moment that some tables of a generation have in common.

    Attributes:
        kind: ``stream``: the tables are at the ``position`` of a checkpoint of ``stream``;
            ``runs``: each has what the last run that ended has loaded; ``table``: one table that is
            not at the moment of the others, for the reason in ``note``; ``governance``.
        source: the name of the source, "" if it has none.
        stream: the replication slot.
        position: the LSN.
        as_of: when it was: of a checkpoint, when it was recorded; else when the versions were read.
        note: what else is to be known about it.
    """

    kind: MomentKind
    source: str = ""
    stream: str = ""
    position: int | None = None
    as_of: datetime | None = None
    note: str = ""


@dataclass(frozen=True)
class TableCopy:
    """A table of a generation.

    Attributes:
        schema, name: its folder in the lake and in the copy is ``<schema>/<name>``.
        table_id: the id in Delta's metadata: another one is another table of the same name.
        version: the version of the generation.
        checkpoint: the version of the checkpoint that its log begins with, None without one. All
            versions from there on (or from 0 on) can be read, as far as the lake had their files.
        moment: the index of its moment in `Manifest.moments`.
        positions: its app transactions of bronze (`bronze.delta.positions`), by their names.
        list: the path of its list of objects, and ``sha256`` that of the list.
        objects, bytes: the number and the size of the objects in the list.
        entry: the SHA-256 of the entry of the version, "" if the lake no longer had it.
        last_checkpoint: the content of ``_delta_log/_last_checkpoint``, "" without a checkpoint. It
            is not in the list: it is written last, and names the checkpoint of the newest version.
        error: why the table is still at the version of an earlier generation; "" if it is not.
    """

    schema: str
    name: str
    table_id: str
    version: int
    checkpoint: int | None
    moment: int
    positions: Mapping[str, int] = field(repr=False)
    list: str
    sha256: str
    objects: int
    bytes: int
    entry: str = ""
    last_checkpoint: str = ""
    error: str = ""

    @property
    def table(self) -> TableName:
        """Its name in the lake."""
        return TableName(self.schema, self.name)

    @property
    def path(self) -> str:
        """Its folder, in the lake and in the copy."""
        return f"{self.schema}/{self.name}"


@dataclass(frozen=True)
class Manifest:
    """A generation: the versions of all tables as of one moment.

    Attributes:
        id: the sequence number, from 1.
        made: when the versions were read from the lake.
        bronze: the version of bronze that made it.
        lake: the identity of the lake: the id of its audit log.
        root: where the lake was.
        config: the fingerprint of the config (`bronze.config.fingerprint`).
        audit: number and hash of the last record of the audit log in this generation.
        moments: the moments of the tables.
        tables: the tables, by schema and name; `governance` after the others.
        previous: the SHA-256 of the manifest before, "" for the first one.
        hash: the SHA-256 of this manifest, "" before it was written.
    """

    id: int
    made: datetime
    bronze: str
    lake: str
    root: str
    config: str
    audit: tuple[int, str]
    moments: tuple[Moment, ...] = field(repr=False)
    tables: tuple[TableCopy, ...] = field(repr=False)
    previous: str
    hash: str = ""

    @property
    def objects(self) -> int:
        """The number of objects of all tables."""
        return sum(table.objects for table in self.tables)

    @property
    def bytes(self) -> int:
        """The size of the objects of all tables."""
        return sum(table.bytes for table in self.tables)

    def table(self, name: TableName) -> TableCopy | None:
        """The table of this name, None if the generation does not have it."""
        return next((table for table in self.tables if table.table == name), None)


def in_folder(root: Place, path: str) -> Place:
    """A folder of the lake or of the copy, as a place with the same options."""
    return replace(root, url=f"{root.url.rstrip('/')}/{path}")


def name_of(number: int) -> str:
    """The path of a manifest."""
    return f"{MANIFESTS}/{number:020}.json"


def generations(copy: Place) -> list[int]:
    """The ids of all generations of a copy, the oldest first.

    Raises:
        LakeError, LakeUnreachable: the copy cannot be listed.
    """
    names = map(_NAME.fullmatch, store.listing(copy, MANIFESTS))
    return sorted(int(name[1]) for name in names if name)


def latest(copy: Place) -> Manifest | None:
    """The newest generation, None if there is none.

    Raises:
        FileDamaged: its manifest cannot be read.
        LakeError, LakeUnreachable
    """
    numbers = generations(copy)
    return read(copy, numbers[-1]) if numbers else None


def read(copy: Place, number: int) -> Manifest:
    """A generation by its id.

    Raises:
        ConfigError: there is no such generation, or it has expired.
        FileDamaged: its manifest cannot be read.
        LakeError, LakeUnreachable
    """
    try:
        data = content(copy, name_of(number))
    except FileNotFoundError:
        raise _missing_error(copy, number) from None
    return parse(copy, number, data)


def at(copy: Place, moment: datetime) -> Manifest:
    """The newest generation that was made at a time or before.

    Raises:
        ConfigError: there is none.
        FileDamaged, LakeError, LakeUnreachable: as `read` does.
    """
    numbers = generations(copy)
    low, high = 0, len(numbers)
    while low < high:
        middle = (low + high) // 2
        if read(copy, numbers[middle]).made <= moment:
            low = middle + 1
        else:
            high = middle
    if not low:
        oldest = f"; the oldest is of {_text(read(copy, numbers[0]).made)}" if numbers else ""
        raise ConfigError(
            f"The copy at {copy.url} has no generation of {_text(moment)} or before{oldest}.",
            hint="`bronze backup --list` lists the generations.",
        )
    return read(copy, numbers[low - 1])


def _text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _missing_error(copy: Place, number: int) -> ConfigError:
    numbers = generations(copy)
    there = f"it has {numbers[0]} to {numbers[-1]}" if numbers else "it has none"
    state = "has expired" if numbers and 0 < number < numbers[0] else "does not exist"
    return ConfigError(
        f"Generation {number} of the copy at {copy.url} {state}: {there}.",
        hint="`bronze backup --list` lists the generations.",
    )


def objects_of(copy: Place, table: TableCopy) -> pl.DataFrame:
    """The objects of a table of a generation, with the columns of `OBJECTS`.

    Raises:
        FileDamaged: the list is missing, or is not what the backup wrote.
        LakeError, LakeUnreachable
    """
    try:
        data = content(copy, table.list)
    except FileNotFoundError:
        raise damage_error(copy, table.list, "is missing") from None
    if sha256(data) != table.sha256:
        raise damage_error(copy, table.list, "was changed: its hash is not that of the manifest")
    return pl.read_parquet(io.BytesIO(data))


def list_bytes(objects: pl.DataFrame) -> bytes:
    """A list of objects as it is stored."""
    stored = io.BytesIO()
    objects.select(*OBJECTS).sort("path").write_parquet(
        stored, compression="zstd", statistics=False
    )
    return stored.getvalue()


def list_path(table: TableName, version: int, digest: str) -> str:
    """Where the list of a table's objects at a version is; ``digest`` is the list's SHA-256."""
    return f"{LISTS}/{table.label}/{version:020}-{digest[:16]}.parquet"


def serialise(manifest: Manifest) -> bytes:
    """A manifest as it is stored."""
    document = {"format": FORMAT, **asdict(manifest)}
    del document["hash"]
    document["objects"], document["bytes"] = manifest.objects, manifest.bytes
    text = json.dumps(document, ensure_ascii=False, indent=1, default=datetime.isoformat)
    return text.encode()


def parse(copy: Place, number: int, data: bytes) -> Manifest:
    """A manifest from its stored form.

    Raises:
        FileDamaged: it is not a manifest.
        LakeError: it is of a later release.
    """
    name = name_of(number)
    try:
        document = json.loads(data)
        form = int(document["format"])
        if form > FORMAT:
            raise LakeError(
                f"The generation {number} of the copy at {copy.url} was made by bronze"
                f" {document.get('bronze', '')}, in a format that this release cannot read.",
                hint="Use that release, or a later one.",
            )
        found = _manifest(document, sha256(data))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise damage_error(copy, name, "is not a manifest") from None
    if found.id != number:
        raise damage_error(copy, name, f"is the manifest of generation {found.id}")
    return found


def _manifest(document: Mapping[str, Any], digest: str) -> Manifest:
    sequence, record_hash = document["audit"]
    return Manifest(
        id=int(document["id"]),
        made=datetime.fromisoformat(document["made"]),
        bronze=document["bronze"],
        lake=document["lake"],
        root=document["root"],
        config=document["config"],
        audit=(int(sequence), str(record_hash)),
        moments=tuple(_moment(moment) for moment in document["moments"]),
        tables=tuple(TableCopy(**table) for table in document["tables"]),
        previous=document["previous"],
        hash=digest,
    )


def _moment(document: Mapping[str, Any]) -> Moment:
    as_of = document["as_of"]
    return Moment(**{**document, "as_of": datetime.fromisoformat(as_of) if as_of else None})


def chain_breaks(copy: Place, numbers: Sequence[int]) -> list[str]:
    """What is wrong with the chain of manifests, as sentences; ``numbers`` are all generations,
    the oldest first. Generations before the oldest have expired.

    Raises:
        LakeError, LakeUnreachable: a manifest cannot be read now.
    """
    problems: list[str] = []
    before = None
    for number in numbers:
        try:
            manifest = read(copy, number)
        except FileDamaged as error:
            problems, before = [*problems, error.message], None
            continue
        if before and number != before.id + 1:
            problems.append(f"The manifest {name_of(before.id + 1)} of {copy.url} is missing.")
        elif before and manifest.previous != before.hash:
            problems.append(
                f"The manifest {name_of(before.id)} of {copy.url} was changed: its hash is not the"
                f" one that generation {number} has."
            )
        before = manifest
    return problems


def sha256(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def content(place: Place, path: str) -> bytes:
    """The content of an object.

    Raises:
        FileNotFoundError: there is no such object.
        LakeError, LakeUnreachable: it cannot be read.
    """
    try:
        return store.get(place, path)
    except (FileNotFoundError, NotFoundError):
        raise FileNotFoundError(path) from None
    except (BaseError, OSError) as error:
        raise store_error(place, "read", error) from None


def create(place: Place, path: str, data: bytes) -> bool:
    """Puts an object if it is absent; whether it was.

    Raises:
        LakeError, LakeUnreachable: it cannot be written.
    """
    try:
        store.create(place, path, data)
    except AlreadyExistsError:
        return False
    except (BaseError, OSError) as error:
        raise store_error(place, "written", error) from None
    return True


def damage_error(copy: Place, path: str, what: str) -> FileDamaged:
    """The error for an object of a copy; ``what`` completes "The file"."""
    return FileDamaged(
        f"The file {path} of the copy at {copy.url} {what}.",
        hint="`bronze backup --verify` lists all that is wrong with the copy.",
    )
