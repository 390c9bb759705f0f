"""Deletion vectors: which rows of a data file are deleted, although the file still has them.

The format is that of PROTOCOL.md of delta-io/delta, "Deletion Vectors" and "Deletion Vector
Format": a 64-bit roaring bitmap of the numbers of the rows, inline in the action or in a file
beside the data.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import numpy.typing as npt
from obstore.exceptions import BaseError

from bronze.delta import store
from bronze.model.files import DeletionVector, WrittenFile
from bronze.model.locations import Place
from bronze.printable import count

Numbers = npt.NDArray[np.int64]

# The first four bytes of a bitmap, "RoaringBitmapArray" in the portable format.
_MAGIC = 1681511377
_FILE_VERSION = 1
# Z85 (ZeroMQ RFC 32), whose digits base64.b85decode has in another order.
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_DECODING, _ENCODING = str.maketrans(_Z85, _B85), str.maketrans(_B85, _Z85)
_UUID_LENGTH = 20


def vector_of(action: Mapping[str, Any]) -> DeletionVector | None:
    """The deletion vector of an ``add`` or a ``remove`` action, None if it has none.

    Raises:
        KeyError, TypeError, ValueError: it is not complete.
    """
    described = action.get("deletionVector")
    if not described or described.get("storageType") is None:
        return None
    offset = described.get("offset")
    vector = DeletionVector(
        str(described["storageType"]),
        str(described["pathOrInlineDv"]),
        None if offset is None else int(offset),
        int(described["sizeInBytes"]),
        int(described["cardinality"]),
    )
    path_of(vector)
    return vector


def described(vector: DeletionVector) -> dict[str, Any]:
    """A deletion vector as an action has it."""
    offset = {} if vector.offset is None else {"offset": vector.offset}
    return {
        "storageType": vector.storage,
        "pathOrInlineDv": vector.location,
        **offset,
        "sizeInBytes": vector.size,
        "cardinality": vector.cardinality,
    }


def path_of(vector: DeletionVector) -> str | None:
    """The path of the file that a deletion vector is in, in the table's folder or absolute; None
    for one that is inline.

    Raises:
        ValueError: the log's description of it cannot be read.
    """
    if vector.storage == "i":
        return None
    if vector.storage == "p":
        return vector.location
    if vector.storage != "u" or len(vector.location) < _UUID_LENGTH:
        raise ValueError(f"a deletion vector of kind {vector.storage} is not known")
    folder, name = vector.location[:-_UUID_LENGTH], vector.location[-_UUID_LENGTH:]
    path = f"deletion_vector_{UUID(bytes=_z85(name))}.bin"
    return f"{folder}/{path}" if folder else path


def deleted_rows(place: Place, vector: DeletionVector) -> Numbers:
    """The numbers of the rows that a deletion vector deletes, counted from 0, in their order.

    Raises:
        FileDamaged: it is missing, or is not what the log says of it.
        LakeError, LakeUnreachable: it cannot be read.
    """
    path = ""
    try:
        path = path_of(vector) or ""
        data = _content(place, path, vector) if path else _z85(vector.location)[: vector.size]
        rows = _numbers(data)
        if len(rows) != vector.cardinality:
            raise ValueError(
                f"it has {count(len(rows), 'row')}, but {vector.cardinality} by the log"
            )
    except ValueError as error:
        reason = f"is not a deletion vector: {error}"
        raise store.damage_error(place, path or "of the log with a vector", reason) from None
    return rows


def bitmap_of(rows: Numbers) -> bytes:
    """The bitmap of the numbers of some rows, in the portable format."""
    from pyroaring import BitMap64

    return _MAGIC.to_bytes(4, "little") + bytes(BitMap64(rows.tolist()).serialize())


def write(
    place: Place, bitmaps: Sequence[tuple[bytes, int]]
) -> tuple[WrittenFile, list[DeletionVector]]:
    """Writes some bitmaps, each with the number of its rows, into one file of the table.

    Raises:
        LakeError, LakeUnreachable: it cannot be written.
    """
    name, content, vectors = uuid4(), bytearray((_FILE_VERSION,)), []
    for bitmap, cardinality in bitmaps:
        location = base64.b85encode(name.bytes).decode().translate(_ENCODING)
        vectors.append(DeletionVector("u", location, len(content), len(bitmap), cardinality))
        content += len(bitmap).to_bytes(4) + bitmap + zlib.crc32(bitmap).to_bytes(4)
    path = f"deletion_vector_{name}.bin"
    with store.writer(place, path) as output:
        output.write(bytes(content))
    return WrittenFile(path, len(content), 0, ""), vectors


def _content(place: Place, path: str, vector: DeletionVector) -> bytes:
    try:
        whole = store.get(place, path)
    except (BaseError, OSError) as error:
        raise store.read_error(place, path, error) from None
    offset = vector.offset if vector.offset is not None else 1
    if not whole or whole[0] != _FILE_VERSION:
        raise ValueError("its version is not known")
    start, end = offset + 4, offset + 4 + vector.size
    data = whole[start:end]
    size, checksum = (int.from_bytes(whole[at : at + 4]) for at in (offset, end))
    if size != vector.size or len(data) != size or zlib.crc32(data) != checksum:
        raise ValueError("its size or its checksum is wrong")
    return data


def _numbers(data: bytes) -> Numbers:
    # Most tables have no vectors.
    from pyroaring import BitMap64

    if int.from_bytes(data[:4], "little") != _MAGIC:
        raise ValueError("its format is not known")
    bitmap = BitMap64.deserialize(data[4:])
    return np.fromiter(bitmap, np.int64, len(bitmap))


def _z85(text: str) -> bytes:
    return base64.b85decode(text.translate(_DECODING))
