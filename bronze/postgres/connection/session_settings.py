"""The settings of every session of bronze, whatever the server, the database or the role set.

With them each value has one text form, and every name in bronze's SQL means PostgreSQL's own
object. A test states for each other setting of PostgreSQL why it cannot change the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bronze.model.locations import Origin

PINNED: Final[Mapping[str, str]] = {
    # A user's function in a schema of the path would be called instead of PostgreSQL's own if its
    # argument types match better. The text of regclass and similar types depends on the path.
    "search_path": "",
    "DateStyle": "ISO, YMD",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "timezone_abbreviations": "Default",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    "xmlbinary": "base64",
    "xmloption": "content",
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "array_nulls": "on",
    "transform_null_equals": "off",
    # It makes GIN index scans, for example in a view, skip rows.
    "gin_fuzzy_search_limit": "0",
    # Without it, each split would scan the whole table.
    "enable_tidscan": "on",
    "synchronize_seqscans": "off",
    "jit": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    # It would end the session at errors that bronze expects.
    "exit_on_error": "off",
    # The transaction that holds the snapshot is idle while other sessions read.
    "idle_in_transaction_session_timeout": "0",
}

PINNED_IF_KNOWN: Final[Mapping[str, str]] = {
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
}
"""Settings that not every version has. They would end a session that holds a snapshot or waits."""

HIDING_DAMAGE: Final = ("zero_damaged_pages", "ignore_checksum_failure")
"""Settings of superusers with which PostgreSQL reads damaged pages as empty or as valid. Nothing
can be read exactly while one of them is on.
"""


def pinning_statement(origin: Origin, *, local: bool = False, condition: str = "") -> str:
    """The statement that pins a session; its row ends with the values of `HIDING_DAMAGE`.

    All names in it are qualified, because the session's search_path is not yet set.

    Args:
        origin: the source, with its timeouts.
        local: whether the settings end with the transaction.
        condition: SQL; if it is false, nothing is set and no row is returned.
    """
    scope = "true" if local else "false"
    settings = {
        **PINNED,
        "statement_timeout": f"{origin.statement_timeout}s",
        "lock_timeout": f"{origin.lock_timeout}s",
        # With "on", row-level security silently filters rows; with "off", it raises an error.
        "row_security": "on" if origin.row_security == "apply" else "off",
    }
    values = [f"pg_catalog.set_config('{n}', '{v}', {scope})" for n, v in settings.items()]
    values += [
        f"CASE WHEN pg_catalog.current_setting('{name}', true) IS NOT NULL"
        f" THEN pg_catalog.set_config('{name}', '{value}', {scope}) END"
        for name, value in PINNED_IF_KNOWN.items()
    ]
    values += [f"pg_catalog.current_setting('{name}')" for name in HIDING_DAMAGE]
    return f"SELECT {', '.join(values)}{f' WHERE {condition}' if condition else ''}"
