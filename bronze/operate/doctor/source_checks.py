"""Checks of a source, from its name in DNS to its replication slot, over one connection."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg import pq

from bronze.cdc import table_sync
from bronze.config.settings import Settings
from bronze.errors import BronzeError, ConfigError
from bronze.model.locations import Origin
from bronze.operate.doctor.examination import Check, Verdict, ok, problem, unknown, warning
from bronze.postgres.connection import capacity, connect
from bronze.postgres.connection.connect import Connection
from bronze.postgres.connection.parameters import address, parameters
from bronze.postgres.connection.translation import source_errors
from bronze.postgres.replication import slot as slots
from bronze.postgres.replication.slot import Slot
from bronze.printable import count, size
from bronze.tables import selection
from bronze.tables.selection import Target

_PATIENCE = 3
"""Seconds for a connection, a lock or a query: below the limit of a check, so that the sentence is
PostgreSQL's own.
"""
_PORT_PATIENCE = 2.0
_CLOCK_WARNING, _CLOCK_PROBLEM = 5.0, 60.0
_LISTED = 3
_LOCAL = ("127.0.0.1", "::1", "localhost")
_PLAIN, _STREAMING = ("name", "port", "login", "tls", "rights", "settings"), ("stream", "slot")
_HANGS = (
    "Check that PostgreSQL and what lies between (firewall, pooler, VPN) answer:"
    " psql with the same connection string, from this machine."
)


def check(settings: Settings, name: str) -> Check:
    """The check of one source."""
    streams = any(table.pattern == "streaming" for table in settings.tables.values())
    return Check(
        "source",
        lambda: _examine(settings, name, streams),
        f"Source {name}",
        _HANGS,
        name,
        (*_PLAIN, *(_STREAMING if streams else ()), "clock"),
    )


def _examine(settings: Settings, name: str, streams: bool) -> Iterator[Verdict]:
    origin = _impatient(settings.origin(name))
    # A password that cannot be had is a matter of the login.
    endpoints = _endpoints(parameters(replace(origin, password=None)))
    for look in (_name_verdict, _port_verdict):
        verdict = look(endpoints)
        yield verdict
        if verdict.state == "problem":
            return
    try:
        with source_errors(origin), connect.connect(origin) as connection:
            yield ok(_login_text(connection, origin))
            yield _tls_verdict(connection)
            relations = selection.relations_of(connection, name, settings.source[name].schema_)
            targets = selection.all_targets(settings, [(name, one) for one in relations])
            yield _rights_verdict(settings, name, targets)
            streamed = [one for one in targets if one.settings.pattern == "streaming"]
            yield _settings_verdict(connection, origin, settings, bool(streamed))
            if streams:
                yield _stream_verdict(connection, settings, name, streamed)
                yield _slot_verdict(connection, settings, name, streamed)
            yield _clock_verdict(connection)
    finally:
        connect.forget_origin(origin)


def _impatient(origin: Origin) -> Origin:
    return replace(
        origin,
        connect_timeout=min(origin.connect_timeout or _PATIENCE, _PATIENCE),
        statement_timeout=_PATIENCE,
        lock_timeout=_PATIENCE,
        application_name="bronze doctor",
    )


@dataclass(frozen=True)
class _Endpoint:
    """A host, or the folder of a Unix socket, and its port; ``resolved`` is an address for it."""

    host: str
    port: str
    resolved: str = ""

    @property
    def is_folder(self) -> bool:
        return self.host.startswith(("/", "@"))

    @property
    def text(self) -> str:
        return f"{self.host}:{self.port}"


def _endpoints(params: dict[str, str]) -> Sequence[_Endpoint]:
    """What libpq would connect to; empty where it takes the host from elsewhere."""
    if "service" in params:
        return ()
    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in pq.Conninfo.get_defaults()
        if option.val
    }
    known = {**defaults, **params}
    hosts = [part.strip() for part in known.get("host", "").split(",") if part.strip()]
    addresses = [part.strip() for part in known.get("hostaddr", "").split(",") if part.strip()]
    ports = known.get("port", "5432").split(",")
    names = hosts or addresses
    return tuple(
        _Endpoint(
            host,
            # libpq refuses any other number of ports.
            (ports[number] if len(ports) == len(names) else ports[0]) or "5432",
            addresses[number] if number < len(addresses) else "",
        )
        for number, host in enumerate(names)
    )


_ELSEWHERE = unknown("libpq finds the host by itself, in a service file or as its own default.")


def _name_verdict(endpoints: Sequence[_Endpoint]) -> Verdict:
    if not endpoints:
        return _ELSEWHERE
    lost = []
    for endpoint in endpoints:
        if endpoint.is_folder or endpoint.resolved:
            continue
        try:
            socket.getaddrinfo(endpoint.host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            lost.append(endpoint.host)
    names = ", ".join(endpoint.host for endpoint in endpoints)
    if not lost:
        return ok(f"{names} can be resolved.")
    hint = "Check the host in [source] dsn, and the DNS of this machine."
    state = problem if len(lost) == len(endpoints) else warning
    return state(f"The name {', '.join(lost)} cannot be resolved.", hint)


def _port_verdict(endpoints: Sequence[_Endpoint]) -> Verdict:
    if not endpoints:
        return _ELSEWHERE
    faults = {}
    for endpoint in endpoints:
        try:
            _open(endpoint, _PORT_PATIENCE / len(endpoints))
        except (OSError, ValueError, OverflowError) as error:
            reason = "no answer" if isinstance(error, TimeoutError) else None
            faults[endpoint.text] = reason or getattr(error, "strerror", None) or "not an address"
    names = ", ".join(endpoint.text for endpoint in endpoints)
    if not faults:
        return ok(f"{names} accepts connections.")
    text = "; ".join(f"{name} cannot be reached: {reason}" for name, reason in faults.items())
    hint = "Check host and port, that PostgreSQL runs, and that no firewall blocks the connection."
    return (problem if len(faults) == len(endpoints) else warning)(f"{text}.", hint)


def _open(endpoint: _Endpoint, timeout: float) -> None:
    if not endpoint.is_folder:
        host = endpoint.resolved or endpoint.host
        socket.create_connection((host, int(endpoint.port)), timeout).close()
        return
    path = f"{endpoint.host}/.s.PGSQL.{endpoint.port}"
    with socket.socket(socket.AF_UNIX) as opened:
        opened.settimeout(timeout)
        opened.connect(f"\0{path[1:]}" if path.startswith("@") else path)


def _login_text(connection: Connection, origin: Origin) -> str:
    version = connection.info.parameter_status("server_version") or ""
    role = connection.info.user
    return f"{address(origin)} accepts the login of {role}: PostgreSQL {version.split()[0]}."


def _tls_verdict(connection: Connection) -> Verdict:
    mode = connection.info.get_parameters().get("sslmode", "prefer")
    host = connection.info.host
    if connection.pgconn.ssl_in_use:
        verified = {
            "verify-full": "the server's certificate and its name are verified",
            "verify-ca": "the server's certificate is verified, its name is not",
        }.get(mode, f"who the server is is not verified (sslmode={mode})")
        return ok(f"The connection uses TLS; {verified}.")
    if host.startswith(("/", "@")) or host in _LOCAL:
        return ok("The connection stays on this machine, without TLS.")
    return warning(
        f"The connection to {host} is not encrypted (sslmode={mode}).",
        "Set sslmode=verify-full in [source] dsn, and ssl = on at the server.",
    )


def _rights_verdict(settings: Settings, name: str, targets: Sequence[Target]) -> Verdict:
    if not targets:
        return problem(
            f"The config takes no table of source {name}.",
            "Check [source] schema, tables and exclude; and that the role has USAGE on the schema.",
        )
    errors: list[BronzeError] = [error for one in targets if (error := _refusal(settings, one))]
    if len(settings.source) == 1:
        for streamed in (False, True):
            errors += selection.missing_tables(settings, targets, streamed=streamed)
    if not errors:
        return ok(f"{count(len(targets), 'table is', 'tables are')} selected and may be read.")
    message = errors[0].message
    if len(errors) > 1:
        names = ", ".join(error.table for error in errors[:_LISTED])
        more = " and others" if len(errors) > _LISTED else ""
        message = f"{len(errors)} tables cannot be loaded ({names}{more}): {message}"
    return problem(message, errors[0].hint)


def _refusal(settings: Settings, target: Target) -> BronzeError | None:
    """Why a table cannot be read."""
    relation = target.relation
    if not relation.readable:
        return selection.unreadable_error(target)
    dropped = selection.dropped_columns(target)
    if any(not one.readable for one in relation.attributes if one.name not in dropped):
        return selection.unreadable_columns_error(target)
    if relation.secured and settings.source[target.source].row_security == "refuse":
        return selection.secured_error(target)
    return None


_FREE = """
SELECT current_setting('max_connections')::int8
       - current_setting('superuser_reserved_connections')::int8
       - (SELECT sum(numbackends) FROM pg_stat_database)
"""


def _settings_verdict(
    connection: Connection, origin: Origin, settings: Settings, streamed: bool
) -> Verdict:
    for what, hint in capacity.low_connection_limits(connection, origin, streamed):
        return problem(what, hint)
    row: Any = connection.execute(_FREE).fetchone()
    free, needed = int(row[0]), capacity.connections_needed(origin, streamed)[0]
    if free < needed:
        return warning(
            f"{address(origin)} has {count(max(free, 0), 'free connection')}; bronze needs"
            f" {needed}.",
            "Close some connections (pg_stat_activity has them), or raise max_connections.",
        )
    return ok(
        "The server's settings allow what bronze needs;"
        f" {count(free, 'connection is', 'connections are')} free."
    )


def _stream_verdict(
    connection: Connection, settings: Settings, name: str, streamed: Sequence[Target]
) -> Verdict:
    if not streamed:
        return ok(f"No table of source {name} is streamed.")
    slot, publication = settings.stream.names(name)
    _, missing = table_sync.prepare_tables(connection, streamed, slot, publication)
    errors: list[BronzeError | None] = [table_sync.prerequisites_error(name, missing)]
    errors += table_sync.unfit_tables(missing).values()
    for error in filter(None, errors):
        return problem(error.message, error.hint)
    return ok(f"{count(len(streamed), 'table')} can be streamed by publication {publication}.")


def _slot_verdict(
    connection: Connection, settings: Settings, name: str, streamed: Sequence[Target]
) -> Verdict:
    if not streamed:
        return ok(f"No table of source {name} is streamed.")
    slot_name, _ = settings.stream.names(name)
    try:
        slot = slots.find(connection, slot_name)
    except ConfigError as error:
        return problem(error.message, error.hint)
    if slot is None:
        return warning(
            f"There is no replication slot {slot_name}.",
            "`bronze stream` creates it, and compares tables that were streamed before.",
        )
    return _slot_state(slot, settings.stream.wal_budget, _log_rate(connection))


def _slot_state(slot: Slot, budget: int, rate: float) -> Verdict:
    """The verdict on a slot; ``rate`` is how much log the server writes, in bytes a second."""
    if slot.is_invalidated:
        reason = slot.reason or slot.wal_status
        return problem(
            f"Replication slot {slot.name} is lost ({reason}): its changes are gone.",
            "`bronze stream` makes a new one, and compares all its tables.",
        )
    kept = f"Replication slot {slot.name} keeps {size(slot.retained)} of log{_left(slot, rate)}"
    hint = "The stream has to run and keep up: `bronze status`; `bronze stream` in the foreground."
    if slot.retained > budget or slot.wal_status == "unreserved":
        return warning(f"{kept}; [stream] wal_budget is {size(budget)}.", hint)
    if slot.active_pid is None:
        return warning(f"{kept}, and nobody streams from it.", hint)
    return ok(f"{kept}, and is streamed from.")


_OLDEST_WITH_RATE = 140000
_RATE = """
SELECT wal_bytes::float8 / greatest(extract(epoch FROM now() - stats_reset), 1)::float8
FROM pg_stat_wal
"""


def _log_rate(connection: Connection) -> float:
    """How much log the server writes, on average since its statistics began, in bytes a second."""
    if connection.info.server_version < _OLDEST_WITH_RATE:
        return 0.0
    row: Any = connection.execute(_RATE).fetchone()
    return float(row[0] or 0) if row else 0.0


def _left(slot: Slot, rate: float) -> str:
    if slot.safe_wal_size is None:
        return ""
    left = f"; {size(max(slot.safe_wal_size, 0))} more may be written before it can be lost"
    if rate <= 0:
        return left
    hours = max(slot.safe_wal_size, 0) / rate / 3600
    time_left = f"{hours:.0f} h" if hours >= 1 else f"{hours * 60:.0f} min"
    return f"{left}, in about {time_left} at the average of {size(int(rate * 3600))}/h"


def _clock_verdict(connection: Connection) -> Verdict:
    before = time.time()
    row: Any = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    after = time.time()
    ahead = float(row[0]) - (before + after) / 2
    # The answer was made at any time in between.
    difference = max(abs(ahead) - (after - before) / 2, 0)
    if difference < _CLOCK_WARNING:
        return ok(f"The clocks here and at the server differ by {difference:.1f} s.")
    state = warning if difference < _CLOCK_PROBLEM else problem
    return state(
        f"The server's clock is {difference:,.0f} s {'ahead of' if ahead > 0 else 'behind'} the"
        " clock of this machine.",
        "Let NTP set both (`timedatectl`); freshness and lateness are computed from them.",
    )
