"""Net changes: one change for each key, from all changes of a table in a batch.

If PostgreSQL enforces at any moment that the key is unique, the last change of a key counts. If
rows may share a key for a while, the rows are counted by their replica identity (see `net_rows`).
`bronze.cdc.toast` fills in values that the stream did not send.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze import portion
from bronze.anomaly.detection import score_rows
from bronze.cdc.row_changes import (
    LINE,
    PART,
    UPSERT,
    NetChanges,
    NetTask,
    Part,
    copy_rows,
    stored_keys,
)
from bronze.cdc.toast import fill_from_changes, fill_from_table, locate_missing
from bronze.delta import files, partition
from bronze.delta.write import lookup
from bronze.delta.write.changes import Changes
from bronze.errors import Mismatch, TableRefused
from bronze.ingest.enrich import enrich
from bronze.ingest.worker import rejected_values
from bronze.model.columns import Column
from bronze.model.files import WrittenFile
from bronze.model.units import DELETED, NO_FINDINGS, Findings, RejectedValue
from bronze.postgres.copy import rows_reader
from bronze.postgres.replication import pgoutput, text_values
from bronze.protection import key_text, protect
from bronze.rows import fingerprint, metadata

SIGN = "\0sign"
_HASH = ("\0high", "\0low")


def net_changes(job: NetTask) -> NetChanges:
    """The net changes of a table.

    Raises:
        Mismatch: the changes do not fit the table, or rows share a key after them: the table has to
            be resynced.
        TableRefused: a row has no key.
        LakeError, LakeUnreachable: files cannot be written or read.
    """
    pieces = range(len(job.gathered.pieces))
    parts = [Part(job.gathered, i, job.floor, job.any_bytes) for i in pieces]
    last = _last_changes(job, parts)
    deleted = last.filter(~pl.col(UPSERT)).select(job.key)
    frames: list[pl.DataFrame] = []
    rejected: list[RejectedValue] = []
    changes: list[Changes] = []
    findings = NO_FINDINGS
    for rows, rejected_texts, found in _upserted_rows(job, parts, last.filter(UPSERT)):
        findings += found
        records = rejected_values(rows, rejected_texts, job.row_key.names)
        rejected += protect.protect_rejected(records, job.enrichment.protection)
        if frames and portion.size_of(frames) + portion.size(rows) > job.in_memory:
            changes += _write_frames(job, frames)
            frames = []
        frames.append(rows)
        del rows
    changes += [pl.concat(frames)] if frames else []
    emptied = _is_truncated(job)
    return NetChanges(
        tuple(changes),
        _deletes(job, deleted) if deleted.height and not emptied else (),
        emptied,
        tuple(rejected),
        sum(part.count for part in parts),
        findings,
    )


def _is_truncated(job: NetTask) -> bool:
    return job.gathered.truncated is not None and job.gathered.truncated >= job.floor


def _write_frames(job: NetTask, frames: Sequence[pl.DataFrame]) -> list[WrittenFile]:
    # Deletes are keys, without the other columns that the table has statistics of.
    stats = [name for name in job.into.stats if all(name in frame.columns for frame in frames)]
    file = files.write(frames, job.into.place, job.into.stamp.batch_id, stats)
    return [file] if file else []


def _deletes(job: NetTask, deleted: pl.DataFrame) -> tuple[Changes, ...]:
    keys = stored_keys(job, deleted)
    if portion.size(keys) > job.in_memory:
        return tuple(_write_frames(job, [keys]))
    return (keys,)


def _last_changes(job: NetTask, parts: Sequence[Part]) -> pl.DataFrame:
    """The last change of each key: `UPSERT`, and its place `PART`, `LINE`."""
    if not parts:
        return pl.DataFrame(schema={**dict.fromkeys(job.key, pl.String), **_EVENT})
    if job.identity != job.key:
        return _net_by_rows(job, parts)
    events = pl.concat([part.events(job.key) for part in parts])
    _refuse_missing(job, events)
    return events.unique(job.key, keep="last", maintain_order=True)


_EVENT = {UPSERT: pl.Boolean, PART: pl.Int32, LINE: pl.Int64}


def _refuse_missing(job: NetTask, rows: pl.DataFrame) -> None:
    if any(rows[name].null_count() for name in job.key):
        raise TableRefused(
            f"A row of table {job.table} has no value in its key {', '.join(job.key)}.",
            hint="Choose columns that are unique and never NULL as its key.",
            table=job.table,
        )


# Rows that may share a key for a while
#
# PostgreSQL checks a deferrable key when the transaction ends, and a key that only the config names
# perhaps never. In between, two rows may have the same key, and a DELETE of it may mean either. The
# old row that the stream sends identifies one: either it is unique (an index that is the replica
# identity), or it is the whole row, and rows that are equal in every column are interchangeable. So
# a change removes one row (a move of -1), adds one (+1), or both. Counting the moves of each
# identity shows how many rows with it there were before the batch, and how many there are after it.


@dataclass(frozen=True)
class Rows:
    """The net moves of a batch, by key; a key appears once for each row.

    ``before`` are the rows of the table that were changed or deleted. ``after`` are the rows that
    are new or changed, with the `PART` and the `LINE` of their last change.
    """

    before: pl.DataFrame = field(repr=False)
    after: pl.DataFrame = field(repr=False)


def moves(
    rows: pl.DataFrame,
    key: Sequence[str],
    sign: int,
    part: int,
    lines: npt.NDArray[np.int64],
) -> pl.DataFrame:
    """The moves of rows: their key, a hash of their identity, `SIGN`, `PART` and `LINE`.

    Args:
        rows: a row for each of ``lines``: the texts of the columns that identify it.
        key: which of their columns are the key.
        sign: 1 if they are added, -1 if they are removed.
        part: the number of the part that they are in.
        lines: the numbers of their changes in it.
    """
    nothing = pl.repeat(None, rows.height, dtype=pl.String, eager=True)
    hashes = metadata.row_hashes_of(rows, nothing, rows.width)
    hashed = [
        pl.Series(name, fingerprint.of_hashes(hashes, offset))
        for name, offset in zip(_HASH, (0, 16), strict=True)
    ]
    return rows.select(key).with_columns(
        *hashed,
        pl.lit(sign, pl.Int32).alias(SIGN),
        pl.lit(part, pl.Int32).alias(PART),
        pl.Series(LINE, lines),
    )


def net_rows(moves: pl.DataFrame, key: Sequence[str]) -> Rows:
    """The net moves; ``moves`` are in their order."""
    high, low = (moves[name].to_numpy() for name in _HASH)
    order = np.lexsort((low, high))
    high, low, sign = high[order], low[order], moves[SIGN].to_numpy()[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    starts = np.flatnonzero(first)
    if not len(starts):
        return Rows(moves.select(key), moves.select(*key, PART, LINE))
    ends = np.append(starts[1:], len(order)) - 1
    counts = np.cumsum(sign, dtype=np.int64)
    counts -= np.repeat(counts[starts] - sign[starts], ends - starts + 1)
    # Where more rows are removed than were added, the table had the others.
    count_before = np.maximum(-np.minimum.reduceat(counts, starts), 0)
    count_after = counts[ends] + count_before
    latest = np.maximum.reduceat(np.where(sign > 0, np.arange(len(order)), -1), starts)
    before = np.sort(np.repeat(order[starts], count_before))
    after = np.sort(np.repeat(order[latest], count_after))
    return Rows(moves[before].select(key), moves[after].select(*key, PART, LINE))


def _moves_of(part: Part, identity: Sequence[str], key: Sequence[str]) -> pl.DataFrame:
    """The moves of the changes of a part, in their order. An UPDATE is two moves."""
    found = part.changes
    before, after = found.kinds != pgoutput.INSERT, found.kinds != pgoutput.DELETE
    new = found.new.select(identity)
    # If no old row is sent, an UPDATE did not change these columns.
    old_sent = pl.Series(found.keyed | ~after)
    old = pl.DataFrame([found.old[n].zip_with(old_sent, new[n]).alias(n) for n in identity])
    both = []
    for rows, which, sign in ((old, before, -1), (new, after, 1)):
        lines = np.flatnonzero(which & part.new)
        both.append(moves(rows[lines], key, sign, part.number, lines))
    return copy_rows(pl.concat(both).sort(LINE, maintain_order=True))


def _net_by_rows(job: NetTask, parts: Sequence[Part]) -> pl.DataFrame:
    all_moves = pl.concat([_moves_of(part, job.identity, job.key) for part in parts])
    _refuse_missing(job, all_moves)
    rows = net_rows(all_moves, job.key)
    _check_unique_keys(job, rows)
    deleted = rows.before.join(rows.after, on=job.key, how="anti")
    frames = [
        rows.after.with_columns(pl.lit(True).alias(UPSERT)),
        deleted.with_columns(pl.lit(False).alias(UPSERT)),
    ]
    return pl.concat(frames, how="diagonal").select(*job.key, *_EVENT)


def _check_unique_keys(job: NetTask, net: Rows) -> None:
    """Checks that no key has two rows after the batch, and that Bronze has the rows before it.

    Raises:
        Mismatch: otherwise.
    """
    before, after = stored_keys(job, net.before), stored_keys(job, net.after)
    key = after.columns
    there = before.head(0)
    if not _is_truncated(job):
        names = pl.concat([before, after]).unique()
        live = pl.col("record_status").ne_missing(DELETED)
        into, status = job.into, ["record_status"]
        held = lookup.find_rows(into.place, job.stored, into.columns, names, status)
        there = pl.concat([there, *(rows.filter(live).select(key) for rows in held)])
    new = after.join(before, on=key, how="anti", nulls_equal=True)
    again = new.join(there, on=key, how="semi", nulls_equal=True).height
    shared = after.is_duplicated().any() or again
    if shared or before.is_duplicated().any() or there.is_duplicated().any():
        raise Mismatch(
            f"Rows of table {job.table} share the key {', '.join(job.key)}.",
            hint="The table is resynced from the source.",
            table=job.table,
        )
    if before.join(there, on=key, how="anti", nulls_equal=True).height:
        raise Mismatch(
            f"Bronze does not have all rows of {job.table} that the stream has changed.",
            hint="The table is resynced from the source.",
            table=job.table,
        )


def _upserted_rows(
    job: NetTask, parts: Sequence[Part], last: pl.DataFrame
) -> Iterator[tuple[pl.DataFrame, pl.Series, Findings]]:
    """The Bronze rows of the last changes, their rejected values, and the findings about them."""
    missing = locate_missing(job, parts, last)
    for part in parts:
        lines = last.filter(pl.col(PART) == part.number)[LINE].to_numpy()
        if not len(lines):
            continue
        found = part.changes
        raw = found.new.select([text.name for text in job.texts])[lines]
        of_part = {spot: origin for spot, origin in missing.items() if spot.part == part.number}
        typed = text_values.parse_texts(fill_from_changes(raw, lines, parts, of_part), job.texts)
        del found, raw
        for rows, rejected, some in fill_from_table(job, *typed, lines, of_part):
            yield _bronze_rows(job, part, rows, rejected, some)


def _bronze_rows(
    job: NetTask, part: Part, rows: pl.DataFrame, rejected: pl.Series, lines: npt.NDArray[np.int64]
) -> tuple[pl.DataFrame, pl.Series, Findings]:
    """The Bronze rows of some changes of a part."""
    whole = _with_all_columns(rows, job.columns)
    enriched = enrich(whole, rejected, job.into.stamp, job.base, job.enrichment)
    findings = enriched.findings
    protection = job.enrichment.protection
    made = key_text.add_key_text(enriched.rows, whole, rejected, job.row_key, protection)
    if job.enrichment.watch:
        made, outliers = score_rows(made, job.enrichment.watch, job.row_key.names, job.into.stamp)
        findings += Findings(outliers)
    made = portion.with_columns(portion.without_enums(made), [part.commit_times(lines)])
    made = partition.dated(made, job.into.dates_of) if job.into.dates_of else made
    return made, rejected, findings


def _with_all_columns(rows: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
    """The rows, with NULL in the columns that only the Bronze table has."""
    present = set(rows.columns)
    found = [
        rows[c.target]
        if c.target in present
        else pl.Series(c.target, [None], rows_reader.dtype(c.kind)).new_from_index(0, rows.height)
        for c in columns
    ]
    return pl.DataFrame(found, height=rows.height)
