"""Writes to the catalog: through a SQL warehouse, or by the REST API where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bronze.unity import column_types
from bronze.unity.api import statements
from bronze.unity.api.rest import CATALOG, Api, segment
from bronze.unity.api.warehouse import Warehouse
from bronze.unity.entries import Entry
from bronze.unity.registered import tagged


class Writer(Protocol):
    """What is written to the catalog. All raise as `Api.call` does.

    ``repairs`` says that columns and comments of a table that is there can be changed.
    """

    repairs: bool

    def create_schema(self, catalog: str, schema: str) -> None:
        """Creates a schema."""

    def create_table(self, entry: Entry) -> None:
        """Creates the entry of a table, at its location."""

    def repair(self, entry: Entry) -> None:
        """Takes the columns of a table from its Delta log."""

    def comment(self, entry: Entry, column: str, text: str) -> None:
        """Sets the comment of a column, or of the table ("")."""

    def set_tags(
        self, entry: Entry, column: str, tags: Mapping[str, str], present: Iterable[str]
    ) -> None:
        """Sets tags of a column, or of the table (""), which has those that are ``present``."""

    def unset_tags(self, entry: Entry, column: str, keys: Iterable[str]) -> None:
        """Removes tags of a column, or of the table ("")."""

    def grant(
        self, kind: str, securable: tuple[str, ...], principal: str, privileges: Iterable[str]
    ) -> None:
        """Grants privileges on a securable of a kind ("table" or "schema")."""

    def set_owner(self, entry: Entry, owner: str) -> None:
        """Gives a table to an owner."""


@dataclass(frozen=True)
class SqlWriter:
    """Writes by SQL: Databricks takes the columns from the Delta log itself."""

    warehouse: Warehouse
    repairs = True

    def create_schema(self, catalog: str, schema: str) -> None:
        """See `Writer`."""
        self.warehouse.run(statements.create_schema(catalog, schema))

    def create_table(self, entry: Entry) -> None:
        """See `Writer`."""
        self.warehouse.run(statements.create_table(entry.name, entry.location))

    def repair(self, entry: Entry) -> None:
        """See `Writer`."""
        self.warehouse.run(statements.repair(entry.name))

    def comment(self, entry: Entry, column: str, text: str) -> None:
        """See `Writer`."""
        if column:
            self.warehouse.run(statements.comment_column(entry.name, column, text))
        else:
            self.warehouse.run(statements.comment_table(entry.name, text))

    def set_tags(
        self, entry: Entry, column: str, tags: Mapping[str, str], present: Iterable[str]
    ) -> None:
        """See `Writer`."""
        self.warehouse.run(statements.set_tags(entry.name, column, tags))

    def unset_tags(self, entry: Entry, column: str, keys: Iterable[str]) -> None:
        """See `Writer`."""
        self.warehouse.run(statements.unset_tags(entry.name, column, keys))

    def grant(
        self, kind: str, securable: tuple[str, ...], principal: str, privileges: Iterable[str]
    ) -> None:
        """See `Writer`."""
        self.warehouse.run(statements.grant(kind.upper(), securable, principal, privileges))

    def set_owner(self, entry: Entry, owner: str) -> None:
        """See `Writer`."""
        self.warehouse.run(statements.set_owner("TABLE", entry.name, owner))


@dataclass(frozen=True)
class RestWriter:
    """Writes by REST: the columns of a table are part of the request, and cannot be changed."""

    api: Api
    open_source: bool = False
    repairs = False

    def create_schema(self, catalog: str, schema: str) -> None:
        """See `Writer`."""
        self._post("schemas", {"name": schema, "catalog_name": catalog})

    def create_table(self, entry: Entry) -> None:
        """See `Writer`."""
        catalog, schema, name = entry.name
        comment = entry.comments.get("", "")
        body = {
            "name": name,
            "catalog_name": catalog,
            "schema_name": schema,
            "table_type": "EXTERNAL",
            "data_source_format": "DELTA",
            "storage_location": entry.location,
            "columns": column_types.column_infos(
                entry.schema, entry.partition_columns, entry.comments
            ),
            # Databricks' API has no comment of a table.
            **({"comment": comment} if self.open_source and comment else {}),
        }
        self._post("tables", body)

    def repair(self, entry: Entry) -> None:
        """Raises `NotImplementedError`: ``repairs`` says that it is not possible."""
        raise NotImplementedError

    def comment(self, entry: Entry, column: str, text: str) -> None:
        """Raises `NotImplementedError`: ``repairs`` says that it is not possible."""
        raise NotImplementedError

    def delete_table(self, entry: Entry) -> None:
        """Deletes the entry of a table; the files of an external one stay."""
        self.api.call("DELETE", f"{CATALOG}/tables/{segment(entry.full_name)}")

    def set_tags(
        self, entry: Entry, column: str, tags: Mapping[str, str], present: Iterable[str]
    ) -> None:
        """See `Writer`."""
        kind, name = tagged(entry, column)
        known = set(present)
        for key, value in sorted(tags.items()):
            body = {"entity_type": kind, "entity_name": name, "tag_key": key, "tag_value": value}
            if key in known:
                path = self._tag_path(kind, name, key)
                self.api.call("PATCH", path, body, {"update_mask": "tag_value"})
            else:
                self._post("entity-tag-assignments", body)

    def unset_tags(self, entry: Entry, column: str, keys: Iterable[str]) -> None:
        """See `Writer`."""
        kind, name = tagged(entry, column)
        for key in sorted(keys):
            self.api.call("DELETE", self._tag_path(kind, name, key))

    def grant(
        self, kind: str, securable: tuple[str, ...], principal: str, privileges: Iterable[str]
    ) -> None:
        """See `Writer`."""
        spelled = [p if self.open_source else p.replace(" ", "_") for p in privileges]
        change = {"principal": principal, "add": spelled, "remove": []}
        path = f"{CATALOG}/permissions/{kind}/{segment('.'.join(securable))}"
        self.api.call("PATCH", path, {"changes": [change]})

    def set_owner(self, entry: Entry, owner: str) -> None:
        """See `Writer`."""
        path = f"{CATALOG}/tables/{segment(entry.full_name)}"
        self.api.call("PATCH", path, {"owner": owner})

    def _post(self, what: str, body: Mapping[str, Any]) -> Any:
        return self.api.call("POST", f"{CATALOG}/{what}", body)

    def _tag_path(self, kind: str, name: str, key: str) -> str:
        assigned = f"{segment(kind)}/{segment(name)}/tags/{segment(key)}"
        return f"{CATALOG}/entity-tag-assignments/{assigned}"
