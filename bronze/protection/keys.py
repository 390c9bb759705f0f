"""The keys of the tables: looked up in ``governance.keys``, made where there are none, rotated.

They are made when a table is planned, by compare-and-swap, so two runs that begin at once use the
same ones. What a run gets are wrapped keys; they are unwrapped where rows are worked on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl
import uuid_utils

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import commit, files, log, properties, store
from bronze.delta.layout import vacuum
from bronze.delta.log import State
from bronze.delta.write.history import KIND
from bronze.errors import ConfigError, TableRefused
from bronze.governance import audit, writer
from bronze.governance.tables import keys as book
from bronze.governance.tables.keys import KeyRecord
from bronze.model.columns import DETERMINISTIC_METHODS, Column
from bronze.model.locations import Place
from bronze.model.protection import DataKey, ProtectedColumn, TableProtection
from bronze.protection import keyring
from bronze.tables import evolution, selection
from bronze.tables.evolution import ColumnContract
from bronze.tables.selection import Target

ROW_HASH = "row_hash"
"""The purpose of the key of a table's row hashes."""

IDS = "bronze.keys"
"""The property of a Bronze table that names the keys of its row hashes ("") and columns."""

Use = tuple[str, str, str]
"""What a key is for: table, column and purpose."""


@dataclass(frozen=True)
class KeyReport:
    """One key, without its secret. ``current`` is what new values are protected with."""

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
    """How a table is protected by the config; None where all of it is taken in clear.

    Args:
        settings: the config.
        target: the table.
        contract: its columns.
        making: whether keys are made where there are none; else they have no id.

    Raises:
        TableRefused: a master key is not there, or is not the one that the table's keys need.
        LakeError, LakeUnreachable: the keys cannot be read or written.
    """
    columns = [column for column in contract.columns if column.protect]
    if not columns:
        return TableProtection((), None, ()) if selection.dropped_columns(target) else None
    uses, hashes = _uses(target, columns)
    wanted = [*uses.values(), hashes]
    with _refused(target, columns):
        for given in settings.masters:
            keyring.master(given)
    held = ensure_keys(settings, wanted) if making else _known(settings, wanted)
    with _refused(target, columns):
        for current in (held[use][0] for use in wanted):
            if current.id:
                keyring.unwrapped(current, settings.masters)
    return TableProtection(
        tuple(
            ProtectedColumn(
                c.target, c.name, c.kind, c.protect, held.get(uses.get(c.target, hashes), ())
            )
            for c in columns
            if c.protect
        ),
        held[hashes][0],
        settings.masters,
    )


def _uses(target: Target, columns: Sequence[Column]) -> tuple[dict[str, Use], Use]:
    """What keys the protected columns need, by their target names, and the row hashes."""
    table = target.full_name
    uses: dict[str, Use] = {}
    for column in columns:
        how = column.protect
        if how and how.method != "mask":
            where = ("", how.join) if how.join else (table, column.target)
            uses[column.target] = (*where, how.method)
    return uses, (table, "", ROW_HASH)


@contextmanager
def _refused(target: Target, columns: Sequence[Column]) -> Iterator[None]:
    """What hinders a key hinders the table that needs it, and no other."""
    try:
        yield
    except ConfigError as error:
        names = ", ".join(column.name for column in columns)
        raise TableRefused(
            f"Table {target.label} cannot be protected ({names}), and is not taken without:"
            f" {error.message}",
            hint=error.hint,
            table=target.label,
        ) from None


def complete(given: TableProtection | None) -> bool:
    """Whether all keys that a table needs have been made."""
    if given is None or given.row_hash is None:
        return True
    return bool(given.row_hash.id) and all(column.keys[0].id for column in given.columns)


def _known(settings: Settings, uses: Collection[Use]) -> Mapping[Use, tuple[DataKey, ...]]:
    """The keys for some uses; those that are still to be made have no id."""
    blanks = {use: (DataKey("", *use, "", ""),) for use in uses}
    return {**blanks, **current_keys(stored_keys(settings)[1])}


def ids(given: TableProtection | None) -> str:
    """The property `IDS` of a table."""
    if given is None or given.row_hash is None:
        return "{}"
    named = {c.column: c.keys[0].id for c in given.columns if c.protect.stable}
    return json.dumps({"": given.row_hash.id, **named})


def is_rotated(given: TableProtection | None, state: State | None) -> bool:
    """Whether the table was written with other keys than those that equality depends on now."""
    if given is None or given.row_hash is None or state is None:
        return False
    was: dict[str, str] = json.loads(state.properties.get(IDS, "{}"))
    now: dict[str, str] = json.loads(ids(given))
    return bool(was) and any(was.get(name, key) != key for name, key in now.items())


def place(settings: Settings) -> Place:
    """Where the keys are."""
    return settings.place(GOVERNANCE, book.NAME)


def stored_keys(settings: Settings) -> tuple[State | None, tuple[KeyRecord, ...]]:
    """The table of keys as it is, and its records, earliest first.

    Raises:
        LakeError, LakeUnreachable
    """
    where = place(settings)
    state = log.read(where)
    frames = [files.conform(pl.DataFrame().to_arrow(), book.COLUMNS, {}, 0)]
    for file in state.files if state else ():
        frames += [part for _, part in files.parts(files.opened(where, file), book.COLUMNS)]
    return state, book.records(pl.concat([pl.DataFrame(part) for part in frames]))


def current_keys(records: Sequence[KeyRecord]) -> dict[Use, tuple[DataKey, ...]]:
    """The keys for each use, the latest first."""
    keys: dict[Use, tuple[DataKey, ...]] = {}
    for key in (record.key for record in records):
        use = (key.table, key.column, key.purpose)
        keys[use] = (key, *keys.get(use, ()))
    return keys


def ensure_keys(settings: Settings, uses: Collection[Use]) -> Mapping[Use, tuple[DataKey, ...]]:
    """The keys for some uses, made where there are none."""

    def missing(records: Sequence[KeyRecord]) -> list[Use]:
        known = current_keys(records)
        return [use for use in dict.fromkeys(uses) if use not in known]

    return current_keys(_add_keys(settings, missing))


def rotate(settings: Settings, tables: Collection[str], reencrypt: bool) -> tuple[KeyReport, ...]:
    """Makes new keys for tables: what was written with the old ones stays readable.

    Args:
        settings: the config.
        tables: as keys name them (``schema.bz_table``); none is all that have keys. Keys that
            several tables share are left as they are, unless no table is named.
        reencrypt: new keys for row hashes and for methods that keep equal values equal as well:
            the next run of these tables writes them anew.

    Raises:
        ConfigError: there is no master key, or a table has no keys.
        TableRefused: a table cannot be written anew; no key was made.
        LakeError, LakeUnreachable
    """

    def wanted(records: Sequence[KeyRecord]) -> list[Use]:
        known = current_keys(records)
        unknown = sorted(set(tables) - {table for table, _, _ in known})
        if unknown:
            raise ConfigError(
                f"There are no keys for the table {unknown[0]}.",
                hint="`bronze keys` lists those that there are.",
            )
        chosen = [use for use in known if not tables or use[0] in tables]
        if reencrypt:
            _refuse_kept(settings, chosen)
        return [
            use for use in chosen if reencrypt or use[2] not in (*DETERMINISTIC_METHODS, ROW_HASH)
        ]

    before = {record.key.id for record in stored_keys(settings)[1]}
    records = _add_keys(settings, wanted)
    return tuple(report for report in reports(records) if report.id not in before)


def _refuse_kept(settings: Settings, uses: Collection[Use]) -> None:
    """Refuses to change keys of tables with rows that the source has no more, and that are kept."""
    names, joins = {table for table, _, _ in uses if table}, {join for t, join, _ in uses if not t}
    schema = settings.lake.schema_
    for folder in store.folders(settings.place(schema, "")):
        state, name = log.read(settings.place(schema, folder)), f"{schema}.{folder}"
        if state is None or properties.PROTECT not in state.properties:
            continue
        shared = {
            how.join for how, _ in evolution.protected_columns(state.properties).values() if how
        }
        if name not in names and not shared & joins:
            continue
        own = settings.table(
            state.properties.get(properties.SOURCE, ""), *evolution.table_of(state.properties)
        )
        kept = "keeps the versions of its rows" if KIND in dict(state.columns) else ""
        if not kept and own.deletes == "ignore":
            kept = 'keeps rows that the source has no more (deletes = "ignore")'
        if kept:
            raise TableRefused(
                f"Table {name} cannot be written anew: it {kept}, and they cannot be read again.",
                hint="No key was made. Rotate without --reencrypt, which is for new values; or"
                " name the other tables.",
                table=name,
            )


def rewrap(settings: Settings) -> int:
    """Wraps all keys by the first master key of the config; returns how many were not yet. Audited.

    The table of keys is replaced, and its older versions, which the old master key opens, are
    deleted, even if an earlier call could only replace it.

    Raises:
        ConfigError: a key was wrapped by a master key that the config does not name.
        LakeError, LakeUnreachable
    """
    wrapping = keyring.master(settings.masters[0])
    mine = keyring.fingerprint(wrapping)
    state, records = stored_keys(settings)
    old = [record for record in records if record.key.master != mine]
    if state is None:
        return 0
    if not old:
        if vacuum.purge(state.place, time.time()).files:
            audit.record(settings, "keys", "", "rewrapped", {"by": mine, "rewrapped": 0})
        return 0
    done = [
        record
        if record.key.master == mine
        else KeyRecord(keyring.rewrapped(record.key, settings.masters, wrapping), record.created)
        for record in records
    ]
    _commit(settings, state, done, replacing=True)
    vacuum.purge(state.place, time.time())
    audit.record(settings, "keys", "", "rewrapped", {"by": mine, "rewrapped": len(old)})
    return len(old)


def reports(records: Sequence[KeyRecord]) -> tuple[KeyReport, ...]:
    """What may be shown of keys."""
    current = {keys[0].id for keys in current_keys(records).values()}
    return tuple(
        KeyReport(k.id, k.table, k.column, k.purpose, k.master, record.created, k.id in current)
        for record in records
        for k in [record.key]
    )


@commit.retried
def _add_keys(
    settings: Settings, wanted: Callable[[Sequence[KeyRecord]], Sequence[Use]]
) -> tuple[KeyRecord, ...]:
    """The records, once there are new ones for what is wanted of those that there are; audited."""
    state, records = stored_keys(settings)
    uses = wanted(records)
    if not uses:
        return records
    wrapping = keyring.master(settings.masters[0])
    # The latest one counts, whatever the clocks of different machines say.
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
        book.COLUMNS,
        book.frame(records),
        {"batch_id": batch_id},
        batch_id=batch_id,
        removed=state.files if replacing and state else (),
    )
