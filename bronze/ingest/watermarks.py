"""Watermarks: where the last batch of a table ended, and where this one ends.

A watermark is a number in the Bronze table's own log, beside the position: the xmin horizon, the
value of a cursor column, or the time when deleted rows were last looked for. Its name there has the
oid of the source table: another table may get its name, but not its oid.
"""

from __future__ import annotations

from bronze.delta.log import State
from bronze.delta.positions import STREAM, TablePosition
from bronze.delta.properties import TableProperties
from bronze.errors import TableRefused
from bronze.postgres.catalog import definition
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.copy import incremental
from bronze.postgres.copy.snapshot import OpenTransactions
from bronze.postgres.statement import quoted
from bronze.tables.context import TableContext
from bronze.tables.evolution import ColumnContract
from bronze.tables.selection import Target

_DELETES = "deletes"


def cursor_refusal(
    relation: Relation, cursor: str, overlap: int | None, since: OpenTransactions
) -> TableRefused | None:
    """Why changes of a table cannot be read by this cursor, None where they can.

    Args:
        relation: the source's table.
        cursor: "xmin", or a column.
        overlap: seconds, None where the config gives none.
        since: what the source shows of open transactions.
    """
    if cursor == incremental.XMIN:
        return _xmin_refusal(relation)
    refusal = _cursor_column_refusal(relation, cursor)
    if refusal is None and overlap is None:
        refusal = _missing_overlap_refusal(relation, cursor, since)
    return refusal


def _xmin_refusal(relation: Relation) -> TableRefused | None:
    if relation.kind in ("view", "foreign table"):
        return TableRefused(
            f"{relation.label} is a {relation.kind}, whose rows have no xmin.",
            hint='Name a timestamp column as cursor, or use pattern = "full_refresh".',
            table=relation.label,
        )
    if incremental.XMIN not in relation.system:
        return TableRefused(
            f"The system column xmin of table {relation.label}, its cursor, cannot be read:"
            " permission denied.",
            hint=f"GRANT SELECT (xmin) ON {quoted(relation.schema, relation.name)} TO role;"
            " where role is the one that bronze connects as; or name a timestamp column as cursor,"
            ' or use pattern = "full_refresh".',
            table=relation.label,
        )
    return None


def _cursor_column_refusal(relation: Relation, cursor: str) -> TableRefused | None:
    if any(column.name == cursor and not column.readable for column in relation.attributes):
        return TableRefused(
            f"The cursor {cursor} of table {relation.label} cannot be read: permission denied.",
            hint=f"GRANT SELECT ({quoted(cursor)}) ON {quoted(relation.schema, relation.name)} TO"
            " role; where role is the one that bronze connects as; or name another cursor.",
            table=relation.label,
        )
    type_name = _type_of(relation, cursor)
    if type_name in incremental.CURSOR_TYPES:
        return None
    problem = f"is of type {type_name}" if type_name else "is not there"
    return TableRefused(
        f"The cursor {cursor} of table {relation.label} {problem}; it has to be a column of type"
        f" {', '.join(incremental.CURSOR_TYPES)}.",
        hint='Leave cursor out: "xmin" needs no column.',
        table=relation.label,
    )


def _missing_overlap_refusal(
    relation: Relation, cursor: str, since: OpenTransactions
) -> TableRefused | None:
    """Why a cursor column needs an overlap, None where the start of open transactions is known."""
    if _type_of(relation, cursor) in incremental.ZONELESS_TYPES:
        return TableRefused(
            f"The cursor {cursor} of table {relation.label} has no time zone, so it is not known"
            " which of its values are earlier than a transaction that is still open.",
            hint='Give an overlap, such as "1h", that is longer than your transactions; or leave'
            " cursor out.",
            table=relation.label,
        )
    if since.standby:
        return TableRefused(
            f"The cursor {cursor} of table {relation.label} needs the start of the oldest open"
            " transaction, and the source is a standby, which does not show transactions of the"
            " primary.",
            hint='Give an overlap, such as "1h", that is longer than any transaction of the'
            " primary, prepared ones included; or leave cursor out.",
            table=relation.label,
        )
    if not since.visible:
        return TableRefused(
            f"The cursor {cursor} of table {relation.label} needs the start of the oldest open"
            " transaction, which the role may not see.",
            hint='GRANT pg_read_all_stats to it; or give an overlap, such as "1h", that is longer'
            " than your transactions.",
            table=relation.label,
        )
    return None


def _type_of(relation: Relation, name: str) -> str:
    """The name of a column's type, "" where there is no such column."""
    return next((column.type.name for column in relation.attributes if column.name == name), "")


def reason_to_compare(
    context: TableContext, state: State, contract: ColumnContract, key: tuple[str, ...]
) -> str:
    """Why reading the changes alone would miss some; "" where it would not."""
    return (
        _bronze_reason(state)
        or _source_reason(context, state, contract)
        or _key_reason(context.target, state, key)
        or _watermark_reason(context, state)
    )


def _bronze_reason(state: State) -> str:
    if TableProperties.read(state.properties).has_removed_rows:
        return "a repair has removed rows"
    return foreign_commits_reason(state)


def foreign_commits_reason(state: State) -> str:
    """Which other writer changed rows of the Bronze table since it was compared last; "" where
    none did. A commit that only rewrites files changes no row.
    """
    if not state.foreign:
        return ""
    first, *more = state.foreign
    also = f", and {len(more)} more" if more else ""
    return f"another writer has changed the Bronze table ({first}{also})"


def _source_reason(context: TableContext, state: State, contract: ColumnContract) -> str:
    target, known = context.target, TableProperties.read(state.properties)
    if contract.notes:
        return "its columns have changed"
    if known.oid != target.relation.oid:
        return "the table was recreated in the source"
    if change := _definition_change(target, known):
        return change
    if target.published and known.publication_state != target.published:
        return "its publication has changed"
    return ""


def _definition_change(target: Target, known: TableProperties) -> str:
    """What has changed of the definition of the source table, "" if nothing has."""
    if known.definition is None:
        return "the last run did not record its definition"
    # A rewrite gives all rows a new xmin; a stream and a cursor column show nothing of it.
    rewrites_count = _watermark_name(target) != incremental.XMIN
    return definition.definition_change(
        known.definition, target.relation.definition, storage=rewrites_count
    )


def _key_reason(target: Target, state: State, key: tuple[str, ...]) -> str:
    known = TableProperties.read(state.properties)
    if known.key != key:
        return "its key has changed"
    streamed = target.settings.pattern == "streaming"
    if streamed and known.is_key_enforced and not target.relation.enforces(target.key):
        return "PostgreSQL no longer enforces its key, or only at commit"
    return ""


def _watermark_reason(context: TableContext, state: State) -> str:
    target = context.target
    watermark = _stored_watermark(context, state, _watermark_name(target))
    if watermark is None:
        return "the Bronze table has no position in this history of the source"
    if _has_cursor_column(target):
        ahead = _stored_watermark(context, state, _clock_name(target))
        if incremental.clock_set_back(context.snapshot.since, watermark, ahead):
            return "the source's clock was set back"
    return ""


def changes_condition(context: TableContext, state: State) -> str | None:
    """The condition in SQL for rows that may have changed since the last batch, None where the
    watermark is too old for one.
    """
    target, snapshot = context.target, context.snapshot
    watermark = _stored_watermark(context, state, _watermark_name(target))
    if watermark is None:
        return None
    cursor = target.settings.cursor
    if cursor == incremental.XMIN:
        return incremental.xmin_condition(watermark, snapshot)
    type_name = _type_of(target.relation, cursor)
    return incremental.cursor_condition(cursor, type_name, watermark, snapshot.since.zone)


def next_watermarks(
    context: TableContext, state: State | None, whole: bool
) -> tuple[list[tuple[str, int]], bool]:
    """The watermarks that a commit of this batch sets, and whether the batch has to look for
    deleted rows.

    Args:
        context: the table.
        state: the Bronze table.
        whole: whether all rows are read.
    """
    pattern = context.target.settings.pattern
    horizon = (_stored_name(context, incremental.XMIN), context.snapshot.horizon)
    if pattern == "full_refresh":
        return [horizon], True
    if pattern == "streaming":
        return [(_stored_name(context, STREAM), context.snapshot.position)], False
    # Rows that changed without a new cursor value are still to be read by xmin.
    watermarks = [horizon] if whole or not _has_cursor_column(context.target) else []
    watermarks += _cursor_watermarks(context, state, whole)
    now = int(context.stamp.loaded_at.timestamp())
    seeking_deletes = _deletes_due(context, state, now)
    if seeking_deletes or whole:
        watermarks.append((_stored_name(context, _DELETES), now))
    return watermarks, seeking_deletes


def _cursor_watermarks(
    context: TableContext, state: State | None, whole: bool
) -> list[tuple[str, int]]:
    """The watermark of a cursor column, and how far the source's clock was ahead of ours."""
    target, since = context.target, context.snapshot.since
    if not _has_cursor_column(target):
        return []
    name = _watermark_name(target)
    previous = _stored_watermark(context, state, name)
    reached = incremental.next_watermark(since, target.settings.overlap, previous, whole)
    values = {name: reached, _clock_name(target): since.ahead}
    return [
        (_stored_name(context, name), value) for name, value in values.items() if value is not None
    ]


def _deletes_due(context: TableContext, state: State | None, now: int) -> bool:
    """Whether this batch has to look for deleted rows; ``now`` is in seconds since 1970."""
    deletes = context.target.settings.deletes
    if not isinstance(deletes, int):
        return deletes == "detect"
    last = _stored_watermark(context, state, _DELETES)
    return last is None or now - last >= deletes


def _stored_name(context: TableContext, name: str) -> str:
    """The name of a watermark in the log of the Bronze table."""
    return f"{context.target.relation.oid}/{name}"


def _stored_watermark(context: TableContext, state: State | None, name: str) -> int | None:
    """The value of a watermark in the Bronze table, None where it has none."""
    return TablePosition(context.snapshot.timeline, context.target.relation.oid).watermark(
        state, name
    )


def _has_cursor_column(target: Target) -> bool:
    """Whether changes of the table are read by a column, neither by xmin nor by a stream."""
    return target.settings.pattern != "streaming" and target.settings.cursor != incremental.XMIN


def _watermark_name(target: Target) -> str:
    if target.settings.pattern == "streaming":
        return STREAM
    if not _has_cursor_column(target):
        return incremental.XMIN
    return f"cursor/{target.settings.cursor}"


def _clock_name(target: Target) -> str:
    """The name of the record of how far the source's clock was ahead of ours."""
    return f"{_watermark_name(target)}/ahead"
