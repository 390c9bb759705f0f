"""Connection strings, parsed as libpq parses them; probable mistakes are refused."""

from __future__ import annotations

from collections.abc import Mapping

from bronze.errors import ConfigError


def parse_dsn(conninfo: str, source: str) -> dict[str, str]:
    """The parameters of a connection string.

    Args:
        conninfo: a URL or keywords with values.
        source: the source's name, for errors; may be empty.

    Raises:
        ConfigError: libpq cannot parse it, or would parse it differently from what its author
            probably meant. The message quotes nothing of it: an unencoded password can make libpq
            cut the string anywhere.
    """
    # Commands that only read the lake do without this library.
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    subject = f"The connection string of source {source}" if source else "The connection string"
    if mistake := _other_form(conninfo):
        raise ConfigError(f"{subject} {mistake}.", hint=_DSN_HINT)
    try:
        params = {k: str(v) for k, v in conninfo_to_dict(conninfo).items() if v is not None}
    except psycopg.ProgrammingError:
        raise ConfigError(f"{subject} cannot be read.", hint=_DSN_HINT) from None
    if mistake := _probable_mistake(conninfo, params):
        raise ConfigError(f"{subject} is probably wrong: {mistake}.", hint=_DSN_HINT)
    return params


_DSN_HINT = (
    "It looks like postgresql://user@host:5432/database?sslmode=verify-full; percent-encode the"
    " characters / @ : ? # % [ ] and blanks in names and passwords (%2F for /, %40 for @)."
)


def _other_form(conninfo: str) -> str:
    """Whose form a connection string has, if it is not libpq's; "" if it may be libpq's."""
    scheme, separator, _ = conninfo.partition("://")
    if scheme.lower().startswith("jdbc:"):
        return "is one of JDBC: leave out jdbc:, and name the user as user@host"
    if separator and scheme.startswith(("postgresql+", "postgres+")):
        return f"is one of SQLAlchemy: write postgresql:// instead of {scheme}://"
    return ""


def _probable_mistake(conninfo: str, params: Mapping[str, str]) -> str:
    """The mistake in a connection string that libpq can parse; "" if there is none."""
    scheme, separator, rest = conninfo.partition("://")
    if separator and scheme in ("postgresql", "postgres"):
        # libpq ends the password at the first @, and host and port at the first /.
        authority, _, path = rest.partition("/")
        if authority.count("@") > 1:
            return "there is an @ in its user or password"
        if "@" in path.partition("?")[0]:
            return "there is a / in its user or password, or an @ in its database"
    if not all(port.isdecimal() for port in params.get("port", "").split(",") if port):
        return "its port is not a number"
    return ""


_VARIABLES = {
    "PGSERVICE": "service",
    "PGHOST": "host",
    "PGHOSTADDR": "hostaddr",
    "PGPORT": "port",
    "PGUSER": "user",
    "PGDATABASE": "dbname",
    "PGSSLMODE": "sslmode",
    "PGSSLROOTCERT": "sslrootcert",
}


def dsn_of_environment(environment: Mapping[str, str]) -> str:
    """The connection string that libpq's variables mean, without a password: libpq finds it where
    it is (``PGPASSWORD``, ``~/.pgpass``).

    Raises:
        ConfigError: no variable names a server or a database.
    """
    from psycopg.conninfo import make_conninfo

    params = {
        keyword: environment[variable]
        for variable, keyword in _VARIABLES.items()
        if environment.get(variable)
    }
    if not params.keys() & {"service", "host", "hostaddr", "dbname"}:
        raise ConfigError(
            "No database is named.",
            hint="bronze init postgresql://user@host:5432/database; or set PGHOST, PGDATABASE and"
            " PGUSER, or PGSERVICE.",
        )
    return make_conninfo("", **params)
