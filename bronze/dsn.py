"""Connection strings, read as libpq reads them; those that mean something else are refused."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg
from psycopg.conninfo import conninfo_to_dict

from bronze.errors import (
    ConfigError,
)


def parse_dsn(conninfo: str, source: str) -> dict[str, str]:
    """A connection string's parameters.

    Raises:
        ConfigError: it cannot be read, or reads otherwise than it was meant. Nothing of it is in
            the error: where a password is not written as it has to be, its parts are anywhere.
    """
    where = f"The connection string of source {source}" if source else "The connection string"
    try:
        given = {k: str(v) for k, v in conninfo_to_dict(conninfo).items() if v is not None}
    except psycopg.ProgrammingError:
        raise ConfigError(f"{where} cannot be read.", hint=_DSN_HINT) from None
    if wrong := _misread(conninfo, given):
        raise ConfigError(
            f"{where} does not mean what it seems to: {wrong}.",
            hint=_DSN_HINT,
        )
    return given


_DSN_HINT = (
    "It looks like postgresql://user@host:5432/database?sslmode=verify-full; in a name or password"
    " the characters / @ : ? # % [ ] and blanks are percent-encoded (%2F for /, %40 for @)."
)


def _misread(conninfo: str, given: Mapping[str, str]) -> str:
    """What looks wrong with a connection string that libpq can read; "" if nothing does."""
    scheme, found, rest = conninfo.partition("://")
    if found and scheme in ("postgresql", "postgres"):
        # libpq takes the first @ for the end of the password, and a / before it for that of host
        # and port.
        place, _, path = rest.partition("/")
        if place.count("@") > 1:
            return "there is an @ in its user or password"
        if "@" in path.partition("?")[0]:
            return "there is a / in its user or password, or an @ in its database"
    if not all(port.isdecimal() for port in given.get("port", "").split(",") if port):
        return "its port is no number"
    return ""
