"""The SQL statements by which Databricks registers a table.

Names are quoted with backticks, in which a backtick is doubled. In literals a backslash and an
apostrophe are escaped (Databricks SQL language reference: identifiers, STRING type).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def quoted(*names: str) -> str:
    """A name of one or several parts."""
    return ".".join(f"`{name.replace('`', '``')}`" for name in names)


def literal(text: str) -> str:
    """A string. Line breaks stay as they are, as the language allows them in a literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def create_schema(catalog: str, schema: str) -> str:
    """Creates a schema."""
    return f"CREATE SCHEMA IF NOT EXISTS {quoted(catalog, schema)}"


def create_table(table: tuple[str, str, str], location: str) -> str:
    """Creates an external table, whose columns Databricks reads from the Delta log."""
    return f"CREATE TABLE IF NOT EXISTS {quoted(*table)} USING DELTA LOCATION {literal(location)}"


def repair(table: tuple[str, str, str]) -> str:
    """Takes the columns of a table from its Delta log again."""
    return f"MSCK REPAIR TABLE {quoted(*table)} SYNC METADATA"


def comment_table(table: tuple[str, str, str], comment: str) -> str:
    """Sets the comment of a table."""
    return f"COMMENT ON TABLE {quoted(*table)} IS {literal(comment)}"


def comment_column(table: tuple[str, str, str], column: str, comment: str) -> str:
    """Sets the comment of a column."""
    return f"COMMENT ON COLUMN {quoted(*table, column)} IS {literal(comment)}"


def set_tags(table: tuple[str, str, str], column: str, tags: Mapping[str, str]) -> str:
    """Sets tags of a table, or of a column if it has a name."""
    pairs = ", ".join(f"{literal(key)} = {literal(value)}" for key, value in sorted(tags.items()))
    return f"{_altered(table, column)} SET TAGS ({pairs})"


def unset_tags(table: tuple[str, str, str], column: str, keys: Iterable[str]) -> str:
    """Removes tags of a table, or of a column if it has a name."""
    return f"{_altered(table, column)} UNSET TAGS ({', '.join(map(literal, sorted(keys)))})"


def grant(kind: str, securable: tuple[str, ...], principal: str, privileges: Iterable[str]) -> str:
    """Grants privileges, such as "USE SCHEMA", on a securable of a kind, such as "SCHEMA"."""
    names = ", ".join(privileges)
    return f"GRANT {names} ON {kind} {quoted(*securable)} TO {quoted(principal)}"


def set_owner(kind: str, securable: tuple[str, ...], owner: str) -> str:
    """Gives a securable of a kind to an owner."""
    return f"ALTER {kind} {quoted(*securable)} OWNER TO {quoted(owner)}"


def _altered(table: tuple[str, str, str], column: str) -> str:
    clause = f" ALTER COLUMN {quoted(column)}" if column else ""
    return f"ALTER TABLE {quoted(*table)}{clause}"
