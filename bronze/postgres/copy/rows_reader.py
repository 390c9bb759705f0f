"""Reads splits with connectorx and decodes their rows into typed columns.

Only this module calls connectorx. All its errors, panics included, become errors of bronze.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl
import psycopg
import pyarrow as pa
from psycopg import errors as pg

from bronze import portion, stopping
from bronze.errors import (
    ConfigError,
    Mismatch,
    SourceBusy,
    SourceError,
    SourceRefused,
    SourceUnreachable,
    TableRefused,
)
from bronze.model.columns import Column, DeltaType
from bronze.model.locations import Origin
from bronze.postgres.connection import allowance, read_connections, session_settings
from bronze.postgres.connection.connect import (
    connect_again,
    forget_server,
    is_indirect,
    log_in,
    server_parameters,
)
from bronze.postgres.connection.translation import (
    CANCELED,
    SEARCH_PATH_HINT,
    contested_error,
    explain,
    unqualified_name,
)
from bronze.printable import count

# The steps after reading need several times the memory of the rows, so they get small parts: this
# needs a quarter less memory in all and no more time (measured).
_PART_VALUES = 300_000
_PART_BYTES = 8 * 2**20

_QUOTED = re.compile(r"""\s*(?:"[^"]*"|'[^']*')""")
_URL_OPTIONS = ("application_name", "connect_timeout", "options")
_CONNECTION_CUT = (
    "closed",
    "reset",
    "eof",
    "terminating",
    "broken pipe",
    "timed out",
    "connecting",
)
_TIMEOUTS = {pg.QueryCanceled: "statement timeout", pg.LockNotAvailable: "lock timeout"}
_NO_FREE_CONNECTION = ("too many clients", "remaining connection slots", "too many connections")


def read_rows(
    origin: Origin,
    session: Sequence[str],
    query: str,
    where: Sequence[str],
    columns: Sequence[Column],
    table: str,
    guarded: bool = False,
) -> Generator[tuple[pl.DataFrame, pl.Series], None, None]:
    """Reads rows, a few megabytes at a time: columns with target names, and rejected values.

    The text of rejected values is described in `bronze.postgres.statement`.

    Args:
        origin: the database.
        session: the statements that join the snapshot.
        query: the SELECT of `bronze.postgres.statement.select`.
        where: the conditions of the splits.
        columns: the columns that the query selects.
        table: the table's label, for errors.
        guarded: whether errors must not quote PostgreSQL's message, which may contain values.

    Raises:
        SourceError: or a subclass; `TableRefused` if only this table cannot be read.
    """
    read_connections.close_one(origin, session)
    for condition in where:

        def fetch(_: Mapping[str, str], where: str = condition) -> pa.Table:
            with _connection_url(origin) as url:
                return _fetch(origin, url, session, f"{query} WHERE {where}", table, guarded)

        try:
            raw = [log_in(origin, fetch)]
        except _UnconvertibleCharacter as error:
            raise _unconvertible_value(origin, session, query, condition, columns, error) from None
        yield from decoded_parts(raw.pop(), columns, table)


def decoded_parts(
    raw: pa.Table, columns: Sequence[Column], table: str
) -> Iterator[tuple[pl.DataFrame, pl.Series]]:
    """Decodes rows as they were received, a few megabytes at a time, as `read_rows` returns them.

    The last column of ``raw`` is the text of rejected values.
    """
    part_rows = portion.rows(_PART_VALUES, len(columns) + 1)
    parts = list(portion.portions_of(raw, part_rows, _PART_BYTES))[::-1]
    del raw
    while parts:
        yield _decoded_rows(parts.pop(), columns, table)


def check_reachable(origin: Origin) -> None:
    """Checks that parallel reads can reach a source with the connection parameters of the config.

    Raises:
        ConfigError: a connection parameter is not supported for parallel reads.
        SourceError: the source cannot be reached.
    """
    with _connection_url(origin):
        pass


@contextmanager
def _connection_url(origin: Origin) -> Iterator[str]:
    # Most runs read packed columns, without connectorx and its relay.
    from bronze.postgres.connection.tls_relay import relay

    params = dict(server_parameters(origin))
    if not is_indirect(origin):
        # connectorx asks for the query's types before it runs the session's statements; poolers
        # do not accept options.
        params["options"] = f"{params.get('options', '')} -c search_path=".strip()
    if relay.is_needed(params):
        with relay.relay(params) as relay_params:
            yield _url(relay_params)
    else:
        yield _url(params)


def _url(params: Mapping[str, str]) -> str:
    if params.get("require_auth"):
        raise ConfigError(
            "The connection parameter require_auth is not supported for parallel reads.",
            hint="Leave it out; sslmode=verify-full proves the server's identity.",
        )
    host = params.get("hostaddr") or params["host"]
    host = f"[{host}]" if ":" in host and not host.startswith("/") else quote(host, safe="")
    login = quote(params["user"], safe="")
    if "password" in params:
        login += f":{quote(params['password'], safe='')}"
    options = {name: params[name] for name in _URL_OPTIONS if name in params}
    sslmode = params.get("sslmode", "prefer")
    options["sslmode"] = "prefer" if sslmode == "allow" else sslmode
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
    database = quote(params["dbname"], safe="")
    return f"postgresql://{login}@{host}:{params['port']}/{database}?{query}"


def _fetch(
    origin: Origin, url: str, session: Sequence[str], query: str, table: str, guarded: bool
) -> pa.Table:
    import connectorx

    # The settings end with the transaction, so that the session's next user has none of them.
    pinning = [session_settings.pinning_statement(origin, local=True)] if session else []
    counted = allowance.lease(origin)
    try:
        return connectorx.read_sql(
            url,
            query,
            return_type="arrow",
            protocol="binary",
            pre_execution_query=[*session, *pinning],
        )
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        stopping.check()
        counted.end()
        failure = _read_error(origin, session, query, table, error, guarded)
        if isinstance(failure, (SourceUnreachable, SourceRefused)):
            forget_server(origin)
        raise failure from None
    finally:
        counted.end()


def _read_error(
    origin: Origin,
    session: Sequence[str],
    query: str,
    table: str,
    error: BaseException,
    guarded: bool,
) -> SourceError:
    """The error of bronze for a failed read.

    connectorx gives no SQLSTATE, so the query is explained by PostgreSQL once more.
    """
    text = " ".join(str(error).split())
    lower = text.lower()
    if any(words in lower for words in _NO_FREE_CONNECTION):
        busy = explain(psycopg.OperationalError(text), origin)
        return SourceBusy(busy.message, hint=busy.hint, table=table)
    if CANCELED in lower:
        return contested_error(table)
    if known := _error_of_explain(origin, session, query, table):
        return known
    for kind, words in _TIMEOUTS.items():
        if words in lower:
            return _source_error(kind(text), origin, table)
    if any(words in lower for words in _CONNECTION_CUT):
        return SourceUnreachable(
            f"The connection to {origin.name} was cut while table {table} was read.",
            hint="bronze retries as long as the server can be reached.",
            table=table,
        )
    if match := _NO_EQUIVALENT.search(text):
        return _UnconvertibleCharacter(match[1], table=table)
    if "does not exist" in lower:
        return TableRefused(f"{unqualified_name(table)}.", hint=SEARCH_PATH_HINT, table=table)
    cause = "PostgreSQL refused a value of one of its rows" if guarded else _without_values(text)
    return TableRefused(
        f"Table {table} could not be read: {cause}.",
        hint="If the type of a column is the cause, read the column as text through a view.",
        table=table,
    )


def _error_of_explain(
    origin: Origin, session: Sequence[str], query: str, table: str
) -> SourceError | None:
    """The error of an EXPLAIN of the query in the same snapshot; None if there is none."""
    try:
        with connect_again(origin) as connection:
            for statement in (*session, f"EXPLAIN {query}"):
                connection.execute(statement)
            connection.execute("ROLLBACK")
    except psycopg.Error as error:
        return _source_error(error, origin, table)
    except SourceError as error:
        error.table = table
        return error
    return None


def _source_error(error: psycopg.Error, origin: Origin, table: str) -> SourceError:
    stopping.check()
    explained = explain(error, origin, table)
    if isinstance(explained, SourceError):
        return explained
    return SourceError(str(explained), table=table)


_NO_EQUIVALENT = re.compile(r'in encoding "(\w+)" has no equivalent')


class _UnconvertibleCharacter(TableRefused):
    """A character that does not exist in UTF-8; the message is the name of its encoding."""


def _unconvertible_value(
    origin: Origin,
    session: Sequence[str],
    query: str,
    condition: str,
    columns: Sequence[Column],
    error: _UnconvertibleCharacter,
) -> TableRefused:
    """The error with the column and the row, which are found by converting column by column."""
    rows = f"{query.rpartition(' AS rejected FROM ')[2]} WHERE {condition}"
    position = "one of its columns"
    for column in columns:
        if column.kind.name not in ("string", "array"):
            continue
        texts = f"SELECT convert_to(({column.text})::text, 'UTF8') IS NULL FROM {rows}"  # noqa: S608
        count = _rows_before_failure(origin, session, texts)
        if count is not None:
            position = f"column {column.name}"
            with suppress(psycopg.Error), connect_again(origin) as connection:
                for statement in (*session, *_SAME_ORDER):
                    connection.execute(statement)
                ctid = f"SELECT ctid::text FROM {rows} OFFSET {count} LIMIT 1"  # noqa: S608
                row: Any = connection.execute(ctid.encode()).fetchone()
                position += f" of the row at ctid {row[0]}"
            break
    return TableRefused(
        f"Table {error.table} could not be read: {position} has a character of {error.message}"
        " that does not exist in UTF-8.",
        hint="Correct the value in the source, or read the table through a view without it.",
        table=error.table,
    )


# Both reads must return the rows in the same order.
_SAME_ORDER = ("SET LOCAL max_parallel_workers_per_gather = 0",)


def _rows_before_failure(origin: Origin, session: Sequence[str], query: str) -> int | None:
    """The number of rows before the first that PostgreSQL cannot convert; None if there is none."""
    count = 0
    with connect_again(origin) as connection:
        for statement in (*session, *_SAME_ORDER):
            connection.execute(statement)
        try:
            for _ in connection.cursor().stream(query.encode()):
                count += 1
        except pg.UntranslatableCharacter:
            return count
        except psycopg.Error:
            return None
    return None


def _without_values(text: str) -> str:
    # PostgreSQL quotes the value, which may be personal data.
    return _QUOTED.sub("", text.partition(': "')[0])[:300].rstrip(". ")


def _decoded_rows(
    raw: pa.Table, columns: Sequence[Column], table: str
) -> tuple[pl.DataFrame, pl.Series]:
    if raw.num_columns != len(columns) + 1:
        raise Mismatch(
            f"Table {table} returned {count(raw.num_columns, 'column')} instead of"
            f" {len(columns) + 1}.",
            table=table,
        )
    received = [pl.Series(values) for values in raw.columns]
    series = [
        decode(values, column.kind, column.wire).alias(column.target)
        for values, column in zip(received, columns, strict=False)
    ]
    rejected = received[-1].cast(pl.String).alias("rejected")
    if not series:
        return pl.DataFrame(height=len(rejected)), rejected
    return pl.DataFrame(series), rejected


_DTYPES: Mapping[str, Any] = {
    "short": pl.Int16,
    "int": pl.Int32,
    "long": pl.Int64,
    "float": pl.Float32,
    "double": pl.Float64,
    "boolean": pl.Boolean,
    "string": pl.String,
    "binary": pl.Binary,
    "date": pl.Date,
    "timestamp": pl.Datetime("us", "UTC"),
    "timestamp_ntz": pl.Datetime("us"),
}


def dtype(kind: DeltaType) -> Any:
    """The polars data type of a kind."""
    if kind.name == "decimal":
        return pl.Decimal(kind.precision, kind.scale)
    if kind.name == "array":
        return pl.List(dtype(kind.of))
    return _DTYPES[kind.name]


def decode(series: pl.Series, kind: DeltaType, wire: str) -> pl.Series:
    """Decodes values from their form on the wire (see `bronze.model.columns.WireFormat`)."""
    if wire == "unscaled":
        return _decimals(series.cast(pl.Int64), kind)
    if wire == "texts":
        flat = series.list.explode(empty_as_null=False, keep_nulls=False)
        return portion.regroup_like(_parse_elements(flat, kind.of), series)
    return series.cast(dtype(kind))


def _decimals(series: pl.Series, kind: DeltaType) -> pl.Series:
    # An Arrow decimal is its unscaled value as a 128-bit integer: widening loses nothing.
    array = series.to_arrow()
    values = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array)]
    validity = None
    if array.null_count:
        # Arrow's own bits would begin anywhere in a byte where the series is part of a longer one.
        valid = series.is_not_null().to_numpy()
        validity = pa.py_buffer(np.packbits(valid, bitorder="little"))
        values = np.where(valid, values, 0)
    halves = np.empty((len(array), 2), np.int64)
    halves[:, 0] = values
    halves[:, 1] = values >> 63
    decimal = pa.decimal128(kind.precision, kind.scale)
    return pl.Series(pa.Array.from_buffers(decimal, len(array), [validity, pa.py_buffer(halves)]))


def _parse_elements(texts: pl.Series, kind: DeltaType) -> pl.Series:
    if kind.name in ("date", "timestamp", "timestamp_ntz"):
        integers = texts.cast(pl.Int32 if kind.name == "date" else pl.Int64)
        return integers.cast(dtype(kind))
    if kind.name == "boolean":
        return texts == "true"
    if kind.name == "binary":
        return texts.str.decode("hex")
    return texts.cast(dtype(kind))
