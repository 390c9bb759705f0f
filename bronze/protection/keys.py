"""The data keys of the tables, in ``governance.keys``: looked up, made and rotated.

A key is made when a table that needs it is planned, by compare-and-swap, so that two runs which
begin at once use the same one. A run gets wrapped keys, which its workers unwrap.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl
import uuid_utils

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, files, log
from bronze.delta.layout import vacuum
from bronze.delta.log import State
from bronze.delta.properties import TableProperties
from bronze.delta.write.history import KIND
from bronze.errors import ConfigError, TableRefused
from bronze.governance import audit, writer
from bronze.governance.tables import keys as keys_table
from bronze.governance.tables.keys import KeyRecord
from bronze.model.columns import DETERMINISTIC_METHODS, Column
from bronze.model.locations import Place
from bronze.model.protection import DataKey, ProtectedColumn, TableProtection
from bronze.protection import keyring
from bronze.tables import evolution, lake, selection
from bronze.tables.evolution import ColumnContract
from bronze.tables.lake import LakeTable
from bronze.tables.selection import Target

ROW_HASH = "row_hash"
"""The purpose of the key of a table's row hashes."""

Use = tuple[str, str, str]
"""What a key is for: table, column and purpose."""


@dataclass(frozen=True)
class KeyReport:
    """A key, without its secret. New values are protected with it if it is ``current``."""

    id: str
    table: str
    column: str
    purpose: str
    master: str
    created: datetime
    current: bool


def protection(
    settings: Settings, target: Target, contract: ColumnContract, *, making: bool = True
) -> TableProtection | None:
    """How a table is protected by the config; None if all of it stays in clear.

    Args:
        settings: the config.
        target: the table.
        contract: its columns.
        making: whether missing keys are made; if not, they have no id.

    Raises:
        TableRefused: a master key is missing, or is not the one that the table's keys need.
        LakeError, LakeUnreachable: the keys cannot be read or written.
    """
    columns = [column for column in contract.columns if column.protect]
    if not columns:
        return TableProtection((), None, ()) if selection.dropped_columns(target) else None
    uses, hashes = _uses(target, columns)
    needed = [*uses.values(), hashes]
    with _table_refusal(target, columns):
        for secret in settings.masters:
            keyring.master(secret)
    keys = ensure_keys(settings, needed) if making else _known_keys(settings, needed)
    with _table_refusal(target, columns):
        for current in (keys[use][0] for use in needed):
            if current.id:
                keyring.unwrap(current, settings.masters)
    protected = tuple(
        ProtectedColumn(
            c.target, c.name, c.kind, c.protect, keys.get(uses.get(c.target, hashes), ())
        )
        for c in columns
        if c.protect
    )
    return TableProtection(protected, keys[hashes][0], settings.masters)


def _uses(target: Target, columns: Sequence[Column]) -> tuple[dict[str, Use], Use]:
    """The keys that the protected columns need, by their Bronze names, and that of row hashes."""
    table = target.full_name
    uses: dict[str, Use] = {}
    for column in columns:
        rule = column.protect
        if rule and rule.method != "mask":
            owner = ("", rule.join) if rule.join else (table, column.target)
            uses[column.target] = (*owner, rule.method)
    return uses, (table, "", ROW_HASH)


@contextmanager
def _table_refusal(target: Target, columns: Sequence[Column]) -> Iterator[None]:
    """A key that cannot be used fails the table that needs it, and no other."""
    try:
        yield
    except ConfigError as error:
        names = ", ".join(column.name for column in columns)
        raise TableRefused(
            f"Table {target.label} cannot be protected ({names}), and is not loaded:"
            f" {error.message}",
            hint=error.hint,
            table=target.label,
        ) from None


def has_all_keys(protection: TableProtection | None) -> bool:
    """Whether all keys that a table needs have been made."""
    if protection is None or protection.row_hash is None:
        return True
    return bool(protection.row_hash.id) and all(c.keys[0].id for c in protection.columns)


def _known_keys(settings: Settings, uses: Collection[Use]) -> Mapping[Use, tuple[DataKey, ...]]:
    """The keys for some uses; those that have to be made have no id."""
    blanks = {use: (DataKey("", *use, "", ""),) for use in uses}
    return {**blanks, **current_keys(stored_keys(settings)[1])}


def ids(protection: TableProtection | None) -> str:
    """The property `KEY_IDS` of a table."""
    return json.dumps(_current_ids(protection))


def _current_ids(protection: TableProtection | None) -> dict[str, str]:
    if protection is None or protection.row_hash is None:
        return {}
    columns = {c.column: c.keys[0].id for c in protection.columns if c.protect.stable}
    return {"": protection.row_hash.id, **columns}


def is_rotated(protection: TableProtection | None, state: State | None) -> bool:
    """Whether the table was written with other keys than those that equality depends on now.

    Raises:
        LakeError: the table's property `KEY_IDS` cannot be read.
    """
    if protection is None or protection.row_hash is None or state is None:
        return False
    before = TableProperties.read(state.properties).key_ids
    current = _current_ids(protection)
    return bool(before) and any(before.get(name, key) != key for name, key in current.items())


def place(settings: Settings) -> Place:
    """Where the keys are."""
    return settings.place(GOVERNANCE, keys_table.NAME)


def stored_keys(settings: Settings) -> tuple[State | None, tuple[KeyRecord, ...]]:
    """The table of keys as it is now, and its records, earliest first.

    Raises:
        LakeError, LakeUnreachable
    """
    folder = place(settings)
    state = log.read(folder)
    frames = [files.conform(pl.DataFrame().to_arrow(), keys_table.COLUMNS, {}, 0)]
    for file in state.files if state else ():
        frames += [
            part for _, part in files.parts(files.open_parquet(folder, file), keys_table.COLUMNS)
        ]
    return state, keys_table.records(pl.concat([pl.DataFrame(part) for part in frames]))


def current_keys(records: Sequence[KeyRecord]) -> dict[Use, tuple[DataKey, ...]]:
    """The keys for each use, the latest first."""
    keys: dict[Use, tuple[DataKey, ...]] = {}
    for key in (record.key for record in records):
        use = (key.table, key.column, key.purpose)
        keys[use] = (key, *keys.get(use, ()))
    return keys


def ensure_keys(settings: Settings, uses: Collection[Use]) -> Mapping[Use, tuple[DataKey, ...]]:
    """The keys for some uses; missing ones are made."""

    def missing(records: Sequence[KeyRecord]) -> list[Use]:
        known = current_keys(records)
        return [use for use in dict.fromkeys(uses) if use not in known]

    return current_keys(_add_keys(settings, missing))


def rotate(settings: Settings, tables: Collection[str], reencrypt: bool) -> tuple[KeyReport, ...]:
    """Makes new keys for tables. What was written with the old ones stays readable.

    Args:
        settings: the config.
        tables: full names of Bronze tables; none means all that have keys. Keys that several tables
            share are not rotated, unless no table is named.
        reencrypt: whether row hashes, and methods that keep equal values equal, get new keys too:
            the next run reloads these tables.

    Raises:
        ConfigError: there is no master key, or a table has no keys.
        TableRefused: a table cannot be reloaded; no key was made.
        LakeError, LakeUnreachable
    """
    before = {record.key.id for record in stored_keys(settings)[1]}
    records = _add_keys(settings, lambda known: _uses_to_rotate(settings, tables, reencrypt, known))
    return tuple(report for report in key_reports(records) if report.id not in before)


def keys_to_rotate(
    settings: Settings, tables: Collection[str], reencrypt: bool
) -> tuple[KeyReport, ...]:
    """The current keys that `rotate` would make new ones for.

    Raises:
        ConfigError, TableRefused, LakeError, LakeUnreachable: as of `rotate`.
    """
    records = stored_keys(settings)[1]
    known = current_keys(records)
    uses = _uses_to_rotate(settings, tables, reencrypt, records)
    ids_to_rotate = {known[use][0].id for use in uses}
    return tuple(report for report in key_reports(records) if report.id in ids_to_rotate)


def _uses_to_rotate(
    settings: Settings, tables: Collection[str], reencrypt: bool, records: Sequence[KeyRecord]
) -> list[Use]:
    known = current_keys(records)
    unknown = sorted(set(tables) - {table for table, _, _ in known})
    if unknown:
        raise ConfigError(
            f"There are no keys for the table {unknown[0]}.",
            hint="`bronze keys` lists all keys.",
        )
    chosen = [use for use in known if not tables or use[0] in tables]
    if reencrypt:
        _refuse_unrepeatable(settings, chosen)
    return [use for use in chosen if reencrypt or use[2] not in (*DETERMINISTIC_METHODS, ROW_HASH)]


def _refuse_unrepeatable(settings: Settings, uses: Collection[Use]) -> None:
    """Refuses new keys for tables that keep rows which the source no longer has.

    Raises:
        TableRefused: one of these tables cannot be reloaded.
        LakeError, LakeUnreachable
    """
    names = {table for table, _, _ in uses if table}
    joins = {join for table, join, _ in uses if not table}
    for table in lake.tables_of(settings, settings.lake.schema_):
        if table.error:
            raise table.error
        if table.state is None or not _uses_keys(table, names, joins):
            continue
        known = TableProperties.read(table.state.properties)
        own = settings.table(table.source, *known.source_table)
        reason = ""
        if KIND in dict(table.state.columns):
            reason = "keeps the versions of its rows"
        elif own.deletes == "ignore":
            reason = 'keeps rows that the source no longer has (deletes = "ignore")'
        if reason:
            raise TableRefused(
                f"Table {table.target} cannot be reloaded: it {reason}, which cannot be read"
                " again.",
                hint="No key was made. Rotate without --reencrypt, for new values alone; or name"
                " the other tables.",
                table=table.target,
            )


def _uses_keys(table: LakeTable, names: Set[str], joins: Set[str]) -> bool:
    """Whether a table is one of some names and protected, or has a key of some joins."""
    if table.state is None or not TableProperties.read(table.state.properties).has_protection:
        return False
    rules = (rule for rule, _ in evolution.protected_columns(table.state.properties).values())
    return table.target in names or any(rule and rule.join in joins for rule in rules)


def rewrap(settings: Settings) -> int:
    """Wraps all keys with the first master key of the config, which is audited; returns how many
    were wrapped with another one.

    The table of keys is replaced, and its older versions, which the old master key opens, are
    deleted, also those that an earlier call could not delete.

    Raises:
        ConfigError: a key was wrapped with a master key that the config does not name.
        LakeError, LakeUnreachable
    """
    wrapping = keyring.master(settings.masters[0])
    master = keyring.fingerprint(wrapping)
    state, records = stored_keys(settings)
    old = [record for record in records if record.key.master != master]
    if state is None:
        return 0
    if not old:
        if vacuum.purge(state.place, time.time()).files:
            audit.record(settings, "keys", "", "rewrapped", {"by": master, "rewrapped": 0})
        return 0
    rewrapped = [
        record
        if record.key.master == master
        else KeyRecord(keyring.rewrap(record.key, settings.masters, wrapping), record.created)
        for record in records
    ]
    _commit(settings, state, rewrapped, replacing=True)
    vacuum.purge(state.place, time.time())
    audit.record(settings, "keys", "", "rewrapped", {"by": master, "rewrapped": len(old)})
    return len(old)


def key_reports(records: Sequence[KeyRecord]) -> tuple[KeyReport, ...]:
    """What may be shown of some keys."""
    current = {keys[0].id for keys in current_keys(records).values()}
    return tuple(
        KeyReport(k.id, k.table, k.column, k.purpose, k.master, record.created, k.id in current)
        for record in records
        for k in [record.key]
    )


@commit.retry_conflicts
def _add_keys(
    settings: Settings, missing: Callable[[Sequence[KeyRecord]], Sequence[Use]]
) -> tuple[KeyRecord, ...]:
    """Makes the keys that are missing among the records, which is audited; all records then."""
    state, records = stored_keys(settings)
    uses = missing(records)
    if not uses:
        return records
    wrapping = keyring.master(settings.masters[0])
    # The latest key is the current one, whatever the clocks of different machines say.
    last = max((record.created for record in records), default=datetime.min.replace(tzinfo=UTC))
    now = max(datetime.now(UTC), last + timedelta(microseconds=1))
    new = tuple(KeyRecord(keyring.new(wrapping, *use), now) for use in uses)
    _commit(settings, state, new)
    made = {
        k.id: " ".join(filter(None, (k.table, k.column, k.purpose))) for k in (r.key for r in new)
    }
    audit.record(settings, "keys", "", "made", {"made": made})
    return (*records, *new)


def _commit(
    settings: Settings, state: State | None, records: Sequence[KeyRecord], replacing: bool = False
) -> None:
    batch_id = str(uuid_utils.uuid7())
    writer.commit_rows(
        place(settings),
        state,
        keys_table.COLUMNS,
        keys_table.frame(records),
        {"batch_id": batch_id},
        batch_id=batch_id,
        removed=state.files if replacing and state else (),
    )
