"""The demo: creates a source, loads it, changes it, and loads the changes."""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path

import psycopg

import bronze
from bronze.api.display import progress
from bronze.cli import output
from bronze.cli.screens import results
from bronze.demo import inventory, server
from bronze.errors import ConfigError
from bronze.printable import count

CONFIG = """\
# The demo's config. `bronze init` writes one for a database of your own.

[source]
name   = "PostgreSQL_DE"
dsn    = "{dsn}"
schema = "{schema}"

[lake]
root   = "lake"
schema = "inventory_bronze"

[secrets]
provider = "file"
folder   = "{secrets}"

[protection]
key = {{ secret = "master.key" }}

# Streamed: within seconds of each commit.

[tables.inventory]
pattern = "streaming"
priority = 1
sla = "15m"
anomalies = {{ expected = 0.001, columns = ["quantity_available", "unit_cost"] }}

[tables.orders]
pattern = "streaming"
priority = 1
sla = "5m"
anomalies = true
protect = {{ client_ip = "encrypt" }}

[tables.order_details]
pattern = "streaming"
priority = 1
sla = "5m"
anomalies = {{ expected = 0.00025, columns = ["quantity", "unit_price", "line_total"] }}

# Each hour in the service, `bronze serve`: what has changed since the run before.

[tables.stock_levels]
pattern = "micro_batch"
sla = "30m"

[tables.shipments]
pattern = "micro_batch"
sla = "1h"

[tables.returns]
pattern = "micro_batch"
priority = 3
sla = "2h"

# Each day: the same, or all rows.

[tables.products]
pattern = "batch"
sla = "2h"

[tables.suppliers]
pattern = "batch"
priority = 3
sla = "4h"
protect = {{ contact_name = "encrypt", contact_number = "tokenize", email = "encrypt" }}

[tables.warehouses]
pattern = "batch"
sla = "1h"

[tables.customers]
pattern = "full_refresh"
sla = "2h"

[tables.customers.protect]
customer_name = "encrypt"
email = "encrypt"
phone = "tokenize"
birth_date = "encrypt"
last_ip = "encrypt"
"""


def run_tour(directory: Path, scale: float, keep: bool) -> None:
    """Runs the demo in ``directory``; PostgreSQL is stopped at the end, unless ``keep``.

    It continues with the source of an earlier demo in the directory.

    Raises:
        BronzeError: PostgreSQL does not start, or a run fails.
    """
    directory.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    started = server.start(directory.absolute() / "postgres")
    try:
        _show(directory, started, scale)
    except BaseException:
        started.stop()
        raise
    if keep:
        output.print_line(f"The source is left running at {started.dsn(inventory.DATABASE)}")
        output.print_line(f"Stop it with: bronze demo --dir {directory} --stop")
    else:
        started.stop()
    output.print_line(
        f"The demo took {time.monotonic() - began:.0f} s. Its files are in {directory}:"
    )
    output.print_line(
        f"  python -c \"import polars; print(polars.read_delta('{_orders(directory)}'))\"",
        whole=True,
    )
    if keep:
        output.print_line(f"  bronze check -c {directory / 'bronze.toml'}")
        output.print_line(f"  bronze run -c {directory / 'bronze.toml'}")
    else:
        output.print_line(f"  bronze demo --dir {directory} --keep    then run commands yourself")


def stop(directory: Path) -> None:
    """Stops the source of a demo that was left running.

    Raises:
        ConfigError: there is no demo.
    """
    data = directory.absolute() / "postgres"
    if not data.is_dir():
        raise ConfigError(f"There is no demo under {directory}.", hint="Name it with --dir.")
    server.Server(data, server.HOST, 0).stop()
    output.print_line("The source is stopped.")


def _orders(directory: Path) -> Path:
    return directory / "lake" / "inventory_bronze" / "bz_orders"


def _show(directory: Path, started: server.Server, scale: float) -> None:
    dsn = started.dsn(inventory.DATABASE)
    if _is_prepared(started):
        output.print_line(f"Continuing with the existing source: {dsn}")
    else:
        output.print_line(f"Creating the source at scale {scale:g}: {dsn}")
        inventory.create(started.dsn(), scale=scale)
    config = directory / "bronze.toml"
    secrets = _key_folder(directory.absolute() / "secrets")
    config.write_text(CONFIG.format(dsn=dsn, schema=inventory.SCHEMA, secrets=secrets))
    opened = bronze.open(config)
    output.print_line("\nThe first load of all tables:")
    _load(opened)
    changed = inventory.change_day(dsn)
    counts = [
        sum(getattr(change, kind) for change in changed.values())
        for kind in ("inserted", "updated", "deleted")
    ]
    inserted, updated, deleted = counts
    output.print_line(
        f"\nA day of business: {count(inserted, 'row')} inserted, {updated:,} updated,"
        f" {deleted:,} deleted"
    )
    output.print_line("What has changed:")
    _load(opened)


def _key_folder(folder: Path) -> Path:
    """The folder of the master key, which is created if there is none."""
    folder.mkdir(mode=0o700, exist_ok=True)
    key = folder / "master.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_text(base64.b64encode(os.urandom(32)).decode())
    return folder


def _load(opened: bronze.Bronze) -> None:
    with progress.progress(False) as shown:
        loaded = opened.run(notify=shown.notify, planned=shown.planned)
    results.run_result(loaded)
    with progress.progress(False, "Connecting") as shown:
        streamed = opened.stream(until_caught_up=True, copied=shown.notify)
    results.stream_result(streamed)


def _is_prepared(started: server.Server) -> bool:
    with psycopg.connect(started.dsn()) as connection:
        query = "SELECT 1 FROM pg_database WHERE datname = %s"
        return connection.execute(query, [inventory.DATABASE]).fetchone() is not None
