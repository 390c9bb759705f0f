"""Where a run goes on from: the marks that the last one left in the table, and those it leaves.

A mark is a number in the table's own log, beside the position: the horizon of transaction ids, the
watermark of a cursor column, the time when deleted rows were last looked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from bronze.delta import properties
from bronze.delta.commit import transaction
from bronze.delta.log import State
from bronze.errors import TableRefused
from bronze.postgres.catalog import definition
from bronze.postgres.catalog.relations import Relation
from bronze.postgres.copy import incremental
from bronze.postgres.copy.snapshot import Since
from bronze.postgres.statement import quoted
from bronze.tables.context import TableContext
from bronze.tables.evolution import ColumnContract
from bronze.tables.selection import Target


def cursor_refusal(
    relation: Relation, cursor: str, overlap: int | None, since: Since
) -> TableRefused | None:
    """Why a table cannot be taken by this cursor, None where it can.

    Args:
        relation: the source's table.
        cursor: "xmin", or a column.
        overlap: seconds, None where the config gives none.
        since: what the source shows of open transactions.
    """

    def refused(message: str, hint: str) -> TableRefused:
        return TableRefused(message, hint=hint, table=relation.label)

    if cursor == incremental.XMIN:
        if relation.kind in ("view", "foreign table"):
            return refused(
                f"{relation.label} is a {relation.kind}, whose rows have no xmin.",
                'Name a timestamp column as cursor, or use pattern = "full_refresh".',
            )
        if incremental.XMIN not in relation.system:
            return refused(
                f"The system column xmin of table {relation.label}, its cursor, cannot be read:"
                " permission denied.",
                f"GRANT SELECT (xmin) ON {quoted(relation.schema, relation.name)} to the role that"
                " bronze uses; or name a timestamp column as cursor, or use pattern ="
                ' "full_refresh".',
            )
        return None
    if any(a.name == cursor and not a.readable for a in relation.attributes):
        return refused(
            f"The cursor {cursor} of table {relation.label} cannot be read: permission denied.",
            f"GRANT SELECT ({quoted(cursor)}) ON {quoted(relation.schema, relation.name)} to the"
            " role that bronze uses; or name another cursor.",
        )
    kind = _type_of(relation, cursor)
    if kind not in incremental.CURSORS:
        what = f"is of type {kind}" if kind else "is not there"
        return refused(
            f"The cursor {cursor} of table {relation.label} {what}; it has to be a column of type"
            f" {', '.join(incremental.CURSORS)}.",
            'Leave cursor out: "xmin" needs no column.',
        )
    if overlap is None and kind in incremental.ZONELESS:
        return refused(
            f"The cursor {cursor} of table {relation.label} has no time zone, so nobody can tell"
            " which of its values are earlier than a transaction that is still open.",
            'Give an overlap, such as "1h", that is longer than your transactions; or leave cursor'
            " out.",
        )
    if overlap is None and since.standby:
        return refused(
            f"The cursor {cursor} of table {relation.label} needs to know since when transactions"
            " are open, and the source is a standby, which does not show those of the primary.",
            'Give an overlap, such as "1h", that no transaction there outlasts, prepared ones'
            " included; or leave cursor out.",
        )
    if overlap is None and not since.visible:
        return refused(
            f"The cursor {cursor} of table {relation.label} needs to know since when transactions"
            " are open, which the role may not see.",
            'GRANT pg_read_all_stats to it; or give an overlap, such as "1h", that is longer than'
            " your transactions.",
        )
    return None


def _type_of(relation: Relation, column: str) -> str:
    return next((a.type.name for a in relation.attributes if a.name == column), "")


def reason_to_compare(
    context: TableContext, state: State, contract: ColumnContract, key: tuple[str, ...]
) -> str:
    """Why changes alone would not do; "" where they would."""
    known = state.properties
    if known.get(properties.CUT):
        return "a repair has cut rows out"
    if foreign := foreign_commits_reason(state):
        return foreign
    if contract.notes:
        return "its columns have changed"
    if known.get(properties.OID) != str(context.target.relation.oid):
        return "the table was made anew in the source"
    if changed := _definition_change(context, known):
        return changed
    if known.get(properties.PUBLISHED, "") != context.target.published and context.target.published:
        return "its publication has changed"
    if known.get(properties.KEY) != json.dumps(key):
        return "its key has changed"
    if _needs_overlap(context.target) and json.loads(known.get(properties.ENFORCED, "true")):
        return "PostgreSQL does not keep its key unique any more, or not at any moment"
    mark = _stored_watermark(context, state, _mark_name(context.target))
    if mark is None:
        return "the Bronze table has no position in this history of the source"
    streamed = context.target.settings.pattern == "streaming"
    if not streamed and context.target.settings.cursor != incremental.XMIN:
        ahead = _stored_watermark(context, state, _ahead_name(context.target))
        if incremental.set_back(context.held.since, mark, ahead):
            return "the source's clock was set back"
    return ""


def foreign_commits_reason(state: State) -> str:
    """Whether another writer has changed the Bronze table since it was compared last, and how; ""
    where none has. Files that were joined, and nothing else, are no change.
    """
    if not state.foreign:
        return ""
    first, *more = state.foreign
    also = f", and {len(more)} more" if more else ""
    return f"another writer has changed the Bronze table ({first}{also})"


def _needs_overlap(target: Target) -> bool:
    """Whether rows may share the key, be it within a transaction alone."""
    return target.settings.pattern == "streaming" and not target.relation.enforces(target.key)


def _definition_change(context: TableContext, known: Mapping[str, str]) -> str:
    """What has changed of the table's definition, "" if nothing has."""
    before, own = known.get(properties.DEFINITION), context.target.settings
    if before is None:
        return "what its values meant was not remembered"
    # A rewrite gives all rows a new xmin, and none another time.
    storage = own.pattern == "streaming" or own.cursor != incremental.XMIN
    return definition.changed(
        json.loads(before), context.target.relation.definition, storage=storage
    )


def changes_condition(context: TableContext, state: State) -> str | None:
    """The condition in SQL for what may have changed, None where it cannot be told any more."""
    own = context.target.settings
    mark = _stored_watermark(context, state, _mark_name(context.target))
    if mark is None:
        return None
    if own.cursor == incremental.XMIN:
        return incremental.by_xmin(mark, context.held)
    kind = _type_of(context.target.relation, own.cursor)
    return incremental.by_cursor(own.cursor, kind, mark, context.held.since.zone)


def next_watermarks(
    context: TableContext, state: State | None, whole: bool
) -> tuple[list[tuple[str, int]], bool]:
    """The marks to leave, and whether vanished rows are to be looked for.

    Args:
        context: the table.
        state: the Bronze table.
        whole: whether all rows are read.
    """
    own, since = context.target.settings, context.held.since
    left = [(_current_watermark(context, incremental.XMIN), context.held.horizon)]
    if own.pattern == "full_refresh":
        return left, True
    if own.pattern == "streaming":
        return [(_current_watermark(context, STREAM), context.held.position)], False
    if own.cursor != incremental.XMIN:
        # What the cursor column has not shown, xmin is still to show.
        left = left if whole else []
        name = _mark_name(context.target)
        mark = incremental.watermark(
            since, own.overlap, _stored_watermark(context, state, name), whole
        )
        left += [] if mark is None else [(_current_watermark(context, name), mark)]
        if since.ahead is not None:
            left.append((_current_watermark(context, _ahead_name(context.target)), since.ahead))
    now = int(context.stamp.loaded_at.timestamp())
    looked = _stored_watermark(context, state, "deletes")
    due = own.deletes == "detect" or (
        isinstance(own.deletes, int) and (looked is None or now - looked >= own.deletes)
    )
    if due or whole:
        left.append((_current_watermark(context, "deletes"), now))
    return left, due


def _current_watermark(context: TableContext, name: str) -> str:
    """The name of a mark of this very table: another one may get its name, but not its oid."""
    return f"{context.target.relation.oid}/{name}"


def _stored_watermark(context: TableContext, state: State | None, name: str) -> int | None:
    """The value of a mark in the Bronze table."""
    if state is None:
        return None
    return state.position(
        f"{transaction(context.held.timeline)}/{_current_watermark(context, name)}"
    )


STREAM = "stream"
"""The mark that says how far the stream has been taken in; it is the position then."""


def _mark_name(target: Target) -> str:
    if target.settings.pattern == "streaming":
        return STREAM
    name = target.settings.cursor
    return name if name == incremental.XMIN else f"cursor/{name}"


def _ahead_name(target: Target) -> str:
    """The mark that says by how much the source's clock was ahead of ours."""
    return f"{_mark_name(target)}/ahead"
