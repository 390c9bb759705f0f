"""The ``sources.yml`` of dbt for a lake: tables, columns with types, comments, freshness, tests.

All but the comments is from the config and the Delta logs. Comments are those that a log has, and
otherwise PostgreSQL's, as far as it can be reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bronze.api.dbt import data_tests, yaml_text
from bronze.api.dbt.data_tests import Different, Test, TestedTable
from bronze.config.sections.tables import TableSettings
from bronze.config.settings import Settings
from bronze.delta.properties import TableProperties
from bronze.delta.write.history import KIND
from bronze.errors import ConfigError
from bronze.model.columns import KEY_TEXT
from bronze.rows.metadata import METADATA_COLUMNS
from bronze.tables import lake
from bronze.tables.lake import LakeTable
from bronze.unity import source_facts
from bronze.unity.column_types import CatalogColumn, columns_of
from bronze.unity.source_facts import SourceTable

LOADED_AT = "update_timestamp"
"""The metadata column that says when a row was last written."""

_METADATA = {
    "load_timestamp": "When the row was first loaded.",
    "update_timestamp": "When the row was last written.",
    "source_system": "The source in the config of bronze.",
    "record_status": "ACTIVE, QUARANTINED (its quality score is too low) or DELETED at the source.",
    "data_quality_score": "100 less points for each rule that the row breaks.",
    "batch_id": "The run that wrote the row.",
    "ingestion_method": "The pattern of the table.",
    "data_lineage": "Where the row came from.",
    "checksum": "A checksum of the row's values as stored.",
    "row_hash": "A hash of the row's values, which PostgreSQL can compute too.",
}


@dataclass(frozen=True)
class _Table:
    """A Bronze table with all that is said about it."""

    table: LakeTable
    settings: TableSettings
    known: TableProperties
    columns: tuple[CatalogColumn, ...]
    tested: TestedTable
    original: SourceTable | None


def sources_text(settings: Settings, tables: Sequence[str] = (), *, ask: bool = True) -> str:
    """The text of a ``sources.yml`` with the Bronze tables of the lake.

    Args:
        settings: the config.
        tables: which tables, by their names in PostgreSQL or in the lake; none means all.
        ask: whether PostgreSQL is asked for comments.

    Raises:
        ConfigError: there is no such table, or PyYAML is not installed.
        LakeError: the lake or one of the tables cannot be read.
    """
    there = [one for one in lake.tables_of(settings, settings.lake.schema_) if _is_shown(one)]
    chosen = lake.find(settings, there, tables)
    if not chosen:
        raise ConfigError(
            f"There is no Bronze table in {settings.lake.root}.",
            hint="Load tables first: bronze run.",
        )
    originals, notes = source_facts.source_tables(settings, there) if ask else ({}, ())
    known = [_table(settings, one, originals.get(one.target)) for one in there]
    others = {name: one.tested for one in known for name in one.table.names}
    remarks = list(notes)
    entries = []
    for one in known:
        if one.table in chosen:
            entry, left_out = _entry(settings, one, others)
            entries.append(entry)
            remarks += left_out
    return yaml_text.document(_document(settings, entries), remarks)


def _is_shown(table: LakeTable) -> bool:
    if table.error:
        raise table.error
    return table.is_bronze


def _document(settings: Settings, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    source: dict[str, Any] = {"name": settings.lake.schema_, "schema": settings.lake.schema_}
    if len(settings.catalog) == 1:
        (catalog,) = settings.catalog.values()
        source |= {"database": catalog.name, "schema": catalog.schema_ or settings.lake.schema_}
    source["description"] = "Bronze tables: PostgreSQL's rows, as bronze has loaded them."
    return {"version": 2, "sources": [{**source, "tables": list(entries)}]}


def _table(settings: Settings, table: LakeTable, original: SourceTable | None) -> _Table:
    if table.state is None:
        raise ValueError(f"{table.target} has no state")
    known = TableProperties.read(table.state.properties)
    own = settings.table(known.source, *known.source_table)
    columns = columns_of(table.state.content.metadata.schema)
    types = {column.name: column.type_text for column in columns}
    renamed = {**own.rename}
    if original is not None:
        renamed |= {name: target for target, name in original.columns.items()}
    tested = TestedTable(table.name, types, renamed, frozenset(known.protection), KIND in types)
    return _Table(table, own, known, columns, tested, original)


def _entry(
    settings: Settings, one: _Table, others: Mapping[str, TestedTable]
) -> tuple[dict[str, Any], list[str]]:
    """A table of the document, and a sentence for each rule that is no data test."""
    tests, left_out = _tests(settings, one, others)
    comments = one.original.comments if one.original else {}
    state = one.table.state
    described = (state.content.metadata.description if state else None) or comments.get("", "")
    meta = {"source": one.known.source, "source_table": one.known.label}
    meta["pattern"] = one.settings.pattern
    entry: dict[str, Any] = {"name": one.table.name}
    if described:
        entry["description"] = yaml_text.plain(described)
    entry["config"] = {**_freshness(settings, one.settings), "meta": meta}
    entry["columns"] = [
        _column(one, column, comments.get(column.name, ""), tests.get(column.name, []))
        for column in one.columns
    ]
    return entry, left_out


def _column(one: _Table, column: CatalogColumn, comment: str, tests: list[Test]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": column.name, "data_type": column.type_text}
    own = dict(METADATA_COLUMNS)
    text = column.comment or comment or (_METADATA[column.name] if column.name in own else "")
    if text:
        entry["description"] = yaml_text.plain(text)
    meta: dict[str, str] = {}
    in_source = {target: name for name, target in one.tested.renamed.items()}
    if in_source.get(column.name, column.name) != column.name:
        meta["source_column"] = in_source[column.name]
    if column.name in one.known.protection:
        rule, _ = one.known.protection[column.name]
        meta |= {"pii": "personal", "protection": rule.method}
    elif one.original and (kind := one.original.personal.get(column.name)):
        meta["pii"] = kind
    if meta:
        entry["config"] = {"meta": meta}
    if tests:
        # A name that is a word of SQL has to be quoted in a test.
        entry |= {"quote": True, "data_tests": tests}
    return entry


def _tests(
    settings: Settings, one: _Table, others: Mapping[str, TestedTable]
) -> tuple[dict[str, list[Test]], list[str]]:
    tests: dict[str, list[Test]] = {}
    left_out: list[str] = []
    for rule in one.settings.rules:
        try:
            column, test = data_tests.data_test(rule, one.tested, others, settings.lake.schema_)
        except Different as reason:
            left_out.append(f"{one.table.name}: the rule {rule.label!r} is left out: {reason}.")
            continue
        tests.setdefault(column, []).append(test)
    for column, kind in _key_tests(settings, one):
        present = tests.setdefault(column, [])
        if not any(kind in test for test in present):
            present.append(data_tests.key_test(kind))
    return tests, left_out


def _key_tests(settings: Settings, one: _Table) -> Iterator[tuple[str, str]]:
    """What an enforced key guarantees: no NULL, and for a key of one column no value twice."""
    key = one.known.key or ()
    derives = settings.quality_of(one.settings).derive and one.known.is_key_enforced
    if one.tested.is_history or not derives or KEY_TEXT in key or one.settings.key:
        return
    for column in key:
        yield column, "not_null"
    if len(key) == 1 and key[0] not in one.tested.protected:
        yield key[0], "unique"


def _freshness(settings: Settings, own: TableSettings) -> dict[str, Any]:
    """When the newest row is too old: what was due is late after the ``sla``."""
    if own.sla is None:
        return {}
    schedule = settings.schedule_of(own)
    allowed = float(own.sla)
    if not schedule.is_continuous:
        allowed += schedule.longest_interval(datetime.now(UTC)).total_seconds()
    limit = {"count": max(1, round(-(-allowed // 60))), "period": "minute"}
    return {"loaded_at_field": LOADED_AT, "freshness": {"error_after": limit}}
