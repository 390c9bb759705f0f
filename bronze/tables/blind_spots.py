"""Blind spots: what is not seen of a table by design, by its kind, pattern and columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bronze.config.sections.tables import TableSettings
from bronze.config.settings import Settings
from bronze.model.columns import Column
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.copy import incremental, splits
from bronze.postgres.statement import quoted
from bronze.tables import selection
from bronze.tables.selection import Target
from bronze.version import VERSION

_OF_KINDS = {
    "view": "changes of what functions that it calls read or call are not seen",
    "materialized view": "it shows its source as of the last REFRESH, not as of the snapshot",
    "foreign table": "it is read from another server as of its own time, not as of the snapshot",
}


def limits(settings: Settings, target: Target, columns: Sequence[Column]) -> tuple[str, ...]:
    """Sentences about what is not seen or not loaded of a table by design; none if everything is.

    Args:
        settings: the config.
        target: the table.
        columns: the columns that are loaded; none if they are not known.
    """
    return (
        *_of_source(settings, target),
        *_of_columns(target, columns),
        *_of_pattern(target.settings),
    )


def _of_source(settings: Settings, target: Target) -> Iterator[str]:
    relation, source = target.relation, settings.source[target.source]
    if relation.kind in _OF_KINDS:
        yield _OF_KINDS[relation.kind]
    if relation.secured and source.row_security == "apply":
        yield "rows that row-level security hides from the role are not loaded"
    if source.consistency == "per-table" and target.settings.pattern != "streaming":
        yield "it is read as of its own time, not of that of other tables"


def _of_columns(target: Target, columns: Sequence[Column]) -> Iterator[str]:
    out = selection.dropped_columns(target)
    if out:
        yield f"the config leaves these columns out: {', '.join(sorted(out))}"
    taken = {column.name for column in columns}
    lost = [a.name for a in target.relation.attributes if a.name not in out | taken]
    if target.settings.pattern == "streaming" and columns and lost:
        yield f"the write-ahead log does not have these generated columns: {', '.join(lost)}"


def _of_pattern(own: TableSettings) -> Iterator[str]:
    if own.pattern not in ("batch", "micro_batch"):
        return
    if own.cursor != incremental.XMIN:
        yield f"updates that leave {own.cursor} alone, or set it to an earlier time, are not seen"
    if own.deletes == "ignore":
        yield 'deleted rows are not seen: deletes = "ignore"'
    elif own.deletes != "detect":
        yield f"deleted rows are detected every {own.deletes:,} seconds only"


def reader_notes(own: TableSettings) -> tuple[str, ...]:
    """Sentences about who cannot read or write the table that the config asks for."""
    return (*_of_vectors(own), *_of_liquid(own))


def _of_vectors(own: TableSettings) -> Iterator[str]:
    if own.deletion_vectors:
        yield (
            "with deletion_vectors, deltalake's to_pyarrow_table and Daft refuse to read it, and"
            " deltalake's count() and chDB's count deleted rows; polars, DuckDB, Spark and"
            " Databricks read it"
        )


def _of_liquid(own: TableSettings) -> Iterator[str]:
    if own.liquid:
        yield (
            "with liquid, deltalake and polars read it but refuse to write it; DuckDB, ClickHouse"
            " and Sail read it, DuckDB inserts too; on Databricks itself it was not proven"
        )


def ctid_notes(relation: Relation, version: int) -> tuple[str, ...]:
    """Why a table cannot be read by ranges of pages, if privileges are the reason; ``version`` is
    that of the server.
    """
    if not relation.heaps or not relation.readable or "ctid" in relation.system:
        return ()
    if version < splits.CTID_RANGES_VERSION:
        return ()
    table = quoted(relation.schema, relation.name)
    return (
        "the system column ctid cannot be read (permission denied): rows are read by ranges of"
        f" the key, or all at once; GRANT SELECT (ctid) ON {table} TO role; has them read by"
        " ranges of pages",
    )


def release_notes(writer: str) -> tuple[str, ...]:
    """A note on a Bronze table that another release of bronze wrote last; ``writer`` is its
    version, "" where it was not recorded.
    """
    if writer == VERSION:
        return ()
    release = f"bronze {writer}" if writer else "a release that did not record its version"
    return (f"was written last by {release}; this is {VERSION}, which goes on with it",)
