"""Deletion vectors as other writers make them: with an encoder of the tests' own."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from pyroaring import BitMap64

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
FILE = UUID("d2c639aa-8816-431a-aaf6-d3fe2512ff61")


def bitmap(rows: Sequence[int]) -> bytes:
    """The bitmap of some rows, as a vector has it."""
    return struct.pack("<I", 1681511377) + BitMap64(rows).serialize()


def z85(data: bytes) -> str:
    """Bytes as text, filled up to four."""
    text = base64.b85encode(data + b"\0" * (-len(data) % 4)).decode()
    return text.translate(str.maketrans(_B85, _Z85))


def inline(rows: Sequence[int]) -> dict[str, Any]:
    """A vector in the log."""
    data = bitmap(rows)
    return {
        "storageType": "i",
        "pathOrInlineDv": z85(data),
        "sizeInBytes": len(data),
        "cardinality": len(rows),
    }


def in_file(table: Path, folder: str, *vectors: Sequence[int]) -> list[dict[str, Any]]:
    """Vectors in one file of a table."""
    content, described = bytearray(b"\x01"), []
    for rows in vectors:
        data = bitmap(rows)
        described.append(
            {
                "storageType": "u",
                "pathOrInlineDv": folder + z85(FILE.bytes),
                "offset": len(content),
                "sizeInBytes": len(data),
                "cardinality": len(rows),
            }
        )
        content += struct.pack(">I", len(data)) + data + struct.pack(">I", zlib.crc32(data))
    path = table / folder / f"deletion_vector_{FILE}.bin"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return described


def delete(table: Path, path: str, vector: dict[str, Any]) -> None:
    """Commits a deletion as Databricks does: the file is removed, and added with a vector."""
    log = table / "_delta_log"
    entries = sorted(log.glob("*.json"))
    actions = [json.loads(line) for entry in entries for line in entry.read_text().splitlines()]
    add = next(a["add"] for a in reversed(actions) if a.get("add", {}).get("path") == path)
    stats = {**json.loads(add["stats"]), "tightBounds": False}
    old = {
        key: add[key] for key in ("path", "partitionValues", "size", "deletionVector") if key in add
    }
    protocol = next(a["protocol"] for a in reversed(actions) if "protocol" in a)
    metadata = next(a["metaData"] for a in reversed(actions) if "metaData" in a)
    new: list[dict[str, Any]] = [
        {"commitInfo": {"operation": "DELETE", "engineInfo": "another writer"}},
        {
            "remove": {
                **old,
                "deletionTimestamp": 0,
                "dataChange": True,
                "extendedFileMetadata": True,
            }
        },
        {"add": {**add, "stats": json.dumps(stats), "deletionVector": vector}},
    ]
    if "deletionVectors" not in protocol.get("readerFeatures", ()):
        known = {"appendOnly", "invariants", "changeDataFeed", *protocol.get("writerFeatures", ())}
        new += [
            {
                "protocol": {
                    "minReaderVersion": 3,
                    "minWriterVersion": 7,
                    "readerFeatures": ["deletionVectors", *protocol.get("readerFeatures", ())],
                    "writerFeatures": ["deletionVectors", *sorted(known)],
                }
            },
            {
                "metaData": {
                    **metadata,
                    "configuration": {
                        **metadata["configuration"],
                        "delta.enableDeletionVectors": "true",
                    },
                }
            },
        ]
    entry = log / f"{int(entries[-1].stem) + 1:020}.json"
    entry.write_text("".join(json.dumps(action) + "\n" for action in new))
