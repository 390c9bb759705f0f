"""The settings that every session of ours has, whatever the server, the database or the role say:
a value has one text form then, and what our SQL names is PostgreSQL's own.

Of what is not among them a test knows why it cannot matter, for each setting that PostgreSQL has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from bronze.model.locations import Origin

PINNED: Final[Mapping[str, str]] = {
    # A function of anybody's in a schema of the path would be taken for PostgreSQL's own where its
    # arguments fit better. The texts of regclass and its like follow the path.
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
    # It would leave out rows that an index of the kind GIN finds, as in a view.
    "gin_fuzzy_search_limit": "0",
    # Without it, each slice would read the whole table.
    "enable_tidscan": "on",
    "synchronize_seqscans": "off",
    "jit": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    # An error that we expect would end the session.
    "exit_on_error": "off",
    # The transaction that holds the snapshot does nothing for as long as the reads last.
    "idle_in_transaction_session_timeout": "0",
}

LATER: Final[Mapping[str, str]] = {"idle_session_timeout": "0", "transaction_timeout": "0"}
"""Those that not every version has. They would end a session that holds a snapshot, or waits."""

LOSSY: Final = ("zero_damaged_pages", "ignore_checksum_failure")
"""Settings of superusers by which pages that are damaged count as empty, or as whole: nothing can
be read exactly where one is on.
"""


def pinning(origin: Origin, *, local: bool = False, condition: str = "") -> str:
    """The statement that pins a session. Its row ends with the values of `LOSSY`.

    No name in it depends on the session's search_path, which is pinned only by the statement.

    Args:
        origin: the source, with its timeouts.
        local: whether the settings end with the transaction.
        condition: SQL; where it is false, nothing is pinned, and there is no row.
    """
    scope = "true" if local else "false"
    chosen = {
        **PINNED,
        "statement_timeout": f"{origin.statement_timeout}s",
        "lock_timeout": f"{origin.lock_timeout}s",
        # Without it, row-level security would silently leave rows out.
        "row_security": "on" if origin.row_security == "apply" else "off",
    }
    pinned = [f"pg_catalog.set_config('{n}', '{v}', {scope})" for n, v in chosen.items()]
    pinned += [
        f"CASE WHEN pg_catalog.current_setting('{name}', true) IS NOT NULL"
        f" THEN pg_catalog.set_config('{name}', '{value}', {scope}) END"
        for name, value in LATER.items()
    ]
    pinned += [f"pg_catalog.current_setting('{name}')" for name in LOSSY]
    return f"SELECT {', '.join(pinned)}{f' WHERE {condition}' if condition else ''}"
