"""The audit log as it is in the lake: its records, and what its table properties say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import polars as pl
import pyarrow as pa

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import files
from bronze.delta.log import State
from bronze.errors import BronzeError, LakeError
from bronze.governance.tables import audit_log
from bronze.governance.tables.audit_log import AuditRecord, Head
from bronze.model.files import StoredFile
from bronze.model.locations import Place

HEAD, CONFIGS, LOG_ID = "bronze.audit.head", "bronze.audit.configs", "bronze.audit.log"
"""The table properties: number and hash of the last record, the fingerprint of each config that
recorded something, and the log's id."""

T = TypeVar("T")


def place(settings: Settings) -> Place:
    """Where the audit log is."""
    return settings.place(GOVERNANCE, audit_log.NAME)


def log_id(state: State | None) -> str:
    """The id of the log, "" where it has none."""
    return _property(state, LOG_ID, "", str)


def head(state: State | None) -> Head | None:
    """The end of the chain as the property says, None where there is no such property.

    Raises:
        LakeError: the property cannot be read.
    """
    return _property(state, HEAD, None, _parse_head)


def end(state: State | None) -> Head:
    """The end of the chain: as the property says, or without it that of the records.

    Raises:
        LakeError: the property cannot be read.
    """
    known = head(state)
    if known is not None or state is None:
        return known or Head()
    # Another writer has removed the property; `verify` reports that.
    records, _ = records_of(state)
    return end_of(records)


def end_of(records: Sequence[AuditRecord]) -> Head:
    """The end of a chain by its records."""
    return Head(records[-1].sequence, records[-1].record_hash) if records else Head()


def configs(state: State | None) -> dict[str, str]:
    """The fingerprint of each config that recorded something, by the config's path.

    Raises:
        LakeError: the property cannot be read.
    """
    return _property(state, CONFIGS, {}, _parsed_configs)


def records_of(
    state: State, some: Sequence[StoredFile] | None = None
) -> tuple[list[AuditRecord], list[str]]:
    """All records, or those of ``some`` files, by number, and which files cannot be read."""
    frames: list[pl.DataFrame] = []
    unreadable = []
    for file in state.files if some is None else some:
        try:
            parquet = files.open_parquet(state.place, file)
            rows = [pl.DataFrame(part) for _, part in files.parts(parquet, audit_log.COLUMNS)]
            complete = [part.drop_nulls() for part in rows]
            frames += complete
            if [part.height for part in complete] != [part.height for part in rows]:
                unreadable.append(f"the file {file.path} has records that lack values")
        except (BronzeError, pa.ArrowException, OSError) as error:
            kind = type(error).__name__
            unreadable.append(f"the file {file.path} cannot be read ({kind})")
    return audit_log.read(pl.concat(frames)) if frames else [], unreadable


def _property(state: State | None, name: str, absent: T, parse: Callable[[str], T]) -> T:
    text = state.properties.get(name) if state else None
    if text is None:
        return absent
    try:
        return parse(text)
    except (ValueError, TypeError, AttributeError) as error:
        raise LakeError(
            f"The property {name} of the audit log cannot be read: another writer has changed it.",
            hint="Unset the property: the next record sets it again. `bronze audit --verify` says"
            " whether the records are as they were written.",
        ) from error


def _parsed_configs(text: str) -> dict[str, str]:
    configs: dict[str, str] = json.loads(text)
    if not all(isinstance(fingerprint, str) for fingerprint in configs.values()):
        raise TypeError("it is not a fingerprint")
    return configs


def _parse_head(text: str) -> Head:
    parts = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", text)
    if parts is None:
        raise ValueError(text)
    return Head(int(parts[1]), parts[2])
