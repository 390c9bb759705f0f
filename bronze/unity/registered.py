"""The tables of the catalog as they are registered now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bronze.unity.api.rest import CATALOG, CONCURRENT, Api, segment
from bronze.unity.column_types import CatalogColumn
from bronze.unity.entries import Entry, TableTags

Grants = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Registered:
    """A table of the catalog.

    ``comments`` and ``tags`` are by column, those of the table under "". ``losses`` are what an
    entry that is made anew would not have: filters, masks and constraints.
    """

    location: str
    kind: str
    data_format: str
    owner: str
    columns: tuple[CatalogColumn, ...]
    comments: Mapping[str, str]
    tags: TableTags = field(default_factory=dict)
    grants: Grants = field(default_factory=dict)
    losses: tuple[str, ...] = ()

    def has_columns_of(self, entry: Entry) -> bool:
        """Whether its columns are those of the Delta log."""
        return [_shape(column) for column in self.columns] == [
            _shape(column) for column in entry.columns
        ]


def _shape(column: CatalogColumn) -> tuple[str, str]:
    return column.name.lower(), "".join(column.type_text.lower().split())


def table_of(info: Mapping[str, Any]) -> Registered:
    """A table as the API describes it, without its tags and grants."""
    columns = info.get("columns") or ()
    losses = {
        "a row filter": info.get("row_filter"),
        "a column mask": any(column.get("mask") for column in columns),
        "constraints": info.get("table_constraints"),
    }
    return Registered(
        location=info.get("storage_location") or "",
        kind=info.get("table_type") or "",
        data_format=info.get("data_source_format") or "",
        owner=info.get("owner") or "",
        columns=tuple(
            CatalogColumn(
                column["name"],
                column.get("type_name") or "",
                column.get("type_text") or "",
                column.get("comment") or "",
            )
            for column in sorted(columns, key=lambda column: column.get("position") or 0)
        ),
        comments={"": info.get("comment") or ""}
        | {column["name"]: column.get("comment") or "" for column in columns},
        losses=tuple(name for name, there in losses.items() if there),
    )


def find_table(api: Api, full_name: str) -> Registered | None:
    """A table of the catalog, None if there is none. Raises as `Api.call` does."""
    info = api.find(f"{CATALOG}/tables/{segment(full_name)}")
    return None if info is None else table_of(info)


def grants_of(api: Api, kind: str, full_name: str, *, open_source: bool) -> Grants:
    """The privileges of each principal on a securable. Raises as `Api.call` does."""
    path = f"{CATALOG}/permissions/{kind}/{segment(full_name)}"
    key = "privilege_assignments"
    # Without max_results Databricks answers all at once, which it advises against.
    found = api.pages(path, key, **({} if open_source else {"max_results": 0}))
    return {
        one["principal"]: frozenset(p.replace("_", " ") for p in one.get("privileges") or ())
        for one in found
        if one.get("principal")
    }


def tags_of(api: Api, entry: Entry, columns: Iterable[str]) -> TableTags:
    """The tags of a table and of ``columns``. Raises as `Api.call` does."""
    names = ("", *columns)
    # Each column is a request.
    with ThreadPoolExecutor(CONCURRENT) as pool:
        found = pool.map(partial(_tags_of, api, entry), names)
        return {name: tags for name, tags in zip(names, found, strict=True) if tags}


def tagged(entry: Entry, column: str) -> tuple[str, str]:
    """The type and the name of what a tag is assigned to: a table, or a column of it."""
    return ("columns", f"{entry.full_name}.{column}") if column else ("tables", entry.full_name)


def _tags_of(api: Api, entry: Entry, column: str) -> dict[str, str]:
    kind, name = tagged(entry, column)
    path = f"{CATALOG}/entity-tag-assignments/{kind}/{segment(name)}/tags"
    found = api.pages(path, "tag_assignments")
    return {one["tag_key"]: one.get("tag_value") or "" for one in found}
