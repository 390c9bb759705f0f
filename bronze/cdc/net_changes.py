"""Netting: what happened to a table within a batch becomes one change for each key.

The last change of a key counts, where PostgreSQL keeps it unique at any moment; where rows may
share one for a while, `bronze.cdc.replica_identity` tells which of them has it at the end. A value
that the stream left out, as it is large and did not change, is taken from an earlier change of the
same row, else from the table, even where the row had another key then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from bronze import portion
from bronze.anomaly.detection import score_rows
from bronze.cdc import replica_identity
from bronze.cdc.replica_identity import LINE, PART, Rows
from bronze.cdc.row_changes import UPSERT, NetChanges, NetTask, Part, stored_keys
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
from bronze.postgres.copy import read
from bronze.postgres.replication import text_values
from bronze.protection import key_text, protect

# What is more than this is put into files on its way into the table.
_IN_MEMORY = 32 * 2**20


def net_changes(job: NetTask) -> NetChanges:
    """Nets a table's changes.

    Raises:
        Mismatch: the stream is not what it has to be, or rows share a key at the end; the table
            has to be compared.
        TableRefused: a row has no key.
        LakeError, LakeUnreachable: changes cannot be put into files, or looked up.
    """
    pieces = range(len(job.gathered.pieces))
    parts = [Part(job.gathered, i, job.floor, job.any_bytes) for i in pieces]
    last = _last_changes(job, parts)
    gone = last.filter(~pl.col(UPSERT)).select(job.key)
    frames: list[pl.DataFrame] = []
    rejected: list[RejectedValue] = []
    changes: list[Changes] = []
    findings = NO_FINDINGS
    for rows, refused, found in _upserted_rows(job, parts, last.filter(UPSERT)):
        findings += found
        records = rejected_values(rows, refused, job.row_key.names)
        rejected += protect.protect_rejected(records, job.enrichment.protection)
        if frames and portion.size_of(frames) + portion.size(rows) > _IN_MEMORY:
            changes += _staged(job, frames)
            frames = []
        frames.append(rows)
        del rows
    changes += [pl.concat(frames)] if frames else []
    emptied = _is_truncated(job)
    return NetChanges(
        tuple(changes),
        _deletes(job, gone) if gone.height and not emptied else (),
        emptied,
        tuple(rejected),
        sum(part.count for part in parts),
        findings,
    )


def _is_truncated(job: NetTask) -> bool:
    return job.gathered.emptied is not None and job.gathered.emptied >= job.floor


def _staged(job: NetTask, frames: Sequence[pl.DataFrame]) -> list[WrittenFile]:
    # Keys alone have not all columns that the table has statistics of.
    stats = [name for name in job.into.stats if all(name in frame.columns for frame in frames)]
    file = files.write(frames, job.into.place, job.into.stamp.batch_id, stats)
    return [file] if file else []


def _deletes(job: NetTask, gone: pl.DataFrame) -> tuple[Changes, ...]:
    keys = stored_keys(job, gone)
    if portion.size(keys) > _IN_MEMORY:
        return tuple(_staged(job, [keys]))
    return (keys,)


def _last_changes(job: NetTask, parts: Sequence[Part]) -> pl.DataFrame:
    """What becomes of each key: `UPSERT`, and where the row stands that it has: `PART`, `LINE`."""
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
            hint="Name columns that are unique and never NULL as its key.",
            table=job.table,
        )


# Rows that may share a key for a while


def _net_by_rows(job: NetTask, parts: Sequence[Part]) -> pl.DataFrame:
    moves = pl.concat([part.moves(job.identity, job.key) for part in parts])
    _refuse_missing(job, moves)
    found = replica_identity.net_rows(moves, job.key)
    _refuse_shared(job, found)
    left = found.went.join(found.came, on=job.key, how="anti")
    frames = [
        found.came.with_columns(pl.lit(True).alias(UPSERT)),
        left.with_columns(pl.lit(False).alias(UPSERT)),
    ]
    return pl.concat(frames, how="diagonal").select(*job.key, *_EVENT)


def _refuse_shared(job: NetTask, found: Rows) -> None:
    """Counts the rows of each key: one at most, of which the table has those that were there.

    Raises:
        Mismatch
    """
    came, went = stored_keys(job, found.came), stored_keys(job, found.went)
    key = came.columns
    there = went.head(0)
    if not _is_truncated(job):
        names = pl.concat([came, went]).unique()
        live = pl.col("record_status").ne_missing(DELETED)
        into, status = job.into, ["record_status"]
        held = lookup.find_rows(into.place, job.stored, into.columns, names, status)
        there = pl.concat([there, *(rows.filter(live).select(key) for rows in held)])
    new = came.join(went, on=key, how="anti", nulls_equal=True)
    again = new.join(there, on=key, how="semi", nulls_equal=True).height
    shared = came.is_duplicated().any() or again
    if shared or went.is_duplicated().any() or there.is_duplicated().any():
        raise Mismatch(
            f"Rows of table {job.table} share the key {', '.join(job.key)}.",
            hint="All its rows are compared with the source.",
            table=job.table,
        )
    if went.join(there, on=key, how="anti", nulls_equal=True).height:
        raise Mismatch(
            f"The table has not all rows of {job.table} that have changed by the stream.",
            hint="All its rows are compared with the source.",
            table=job.table,
        )


def _upserted_rows(
    job: NetTask, parts: Sequence[Part], last: pl.DataFrame
) -> Iterator[tuple[pl.DataFrame, pl.Series, Findings]]:
    """The Bronze rows of the last changes, their rejected values, and what was found out."""
    missing = locate_missing(job, parts, last)
    for part in parts:
        lines = last.filter(pl.col(PART) == part.number)[LINE].to_numpy()
        if not len(lines):
            continue
        found = part.changes
        raw = found.new.select([text.name for text in job.texts])[lines]
        mine = {place: value for place, value in missing.items() if place[0] == part.number}
        typed = text_values.parse_texts(fill_from_changes(raw, lines, parts, mine), job.texts)
        del found, raw
        for rows, rejected, some in fill_from_table(job, *typed, lines, mine):
            yield _bronze_rows(job, part, rows, rejected, some)


def _bronze_rows(
    job: NetTask, part: Part, rows: pl.DataFrame, rejected: pl.Series, lines: npt.NDArray[np.int64]
) -> tuple[pl.DataFrame, pl.Series, Findings]:
    """The Bronze rows of some changes of a piece."""
    whole = _with_all_columns(rows, job.columns)
    made, findings = enrich(whole, rejected, job.into.stamp, job.base, job.enrichment)
    protection = job.enrichment.protection
    made = key_text.with_text(made, whole, rejected, job.row_key, protection)
    if job.enrichment.watch:
        made, outliers = score_rows(made, job.enrichment.watch, job.row_key.names, job.into.stamp)
        findings += Findings(outliers)
    made = portion.with_columns(portion.without_enums(made), [part.committed(lines)])
    made = partition.dated(made, job.into.dates_of) if job.into.dates_of else made
    return made, rejected, findings


def _with_all_columns(rows: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
    """The rows with the columns that the table has and the source has not."""
    present = set(rows.columns)
    found = [
        rows[c.target]
        if c.target in present
        else pl.Series(c.target, [None], read.dtype(c.kind)).new_from_index(0, rows.height)
        for c in columns
    ]
    return pl.DataFrame(found, height=rows.height)


# What the stream left out
