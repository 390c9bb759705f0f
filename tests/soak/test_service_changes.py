"""What others do while the service runs: they break its config, drop a table, rotate a password,
start a second service; a table always fails among a hundred.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psycopg
import pytest

from bronze.config import loading
from bronze.demo.server import Server
from tests.conftest import Source
from tests.support.content import differences
from tests.support.passwords import password_needed
from tests.support.service_process import CHANNELS, Service, inboxes, service
from tests.support.serving import runs_of, until

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(500)]

EVERYBODY_HEARD = {name: ["open", "resolve"] for name in CHANNELS}


def make(source: Source, *names: str) -> None:
    """Tables with a few rows."""
    for name in names:
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, word text)")
        source.execute(f"INSERT INTO {name} SELECT g, 'w' || g FROM generate_series(1, 20) g")


def landings(own: Service, table: str) -> int:
    """How many runs of a table have landed or found nothing new."""
    runs = runs_of(own.settings)
    done = ("landed", "unchanged")
    return sum(r.source_table == f"public.{table}" and r.status in done for r in runs)


def until_more(own: Service, table: str, seconds: float = 60) -> None:
    """Waits for another run of a table."""
    before = landings(own, table)
    until(lambda: landings(own, table) > before, seconds)


def test_a_config_that_is_broken_while_it_runs(source: Source, tmp_path: Path) -> None:
    """It is one message; the config from before stays in force until the file is right again."""
    make(source, "word")
    with inboxes() as boxes, service(tmp_path, source.dsn, source.lake, "", boxes) as own:
        own.start()
        until(lambda: differences(own.settings) == {}, 60)
        settings, right = own.settings, own.file.read_text()
        own.file.write_text(f"{right}\n[run]\nworkers = -3\n")
        until(lambda: boxes.acts("config_invalid")["mail"], 60)
        source.execute("UPDATE word SET word = 'changed'")
        until(lambda: differences(settings) == {}, 60)
        own.file.write_text(right)
        until(lambda: boxes.acts() == EVERYBODY_HEARD, 100)
        assert own.stop() == 0


def test_a_table_that_is_dropped_while_it_runs(source: Source, tmp_path: Path) -> None:
    """The config names it: one message, until it is made again; the others go on."""
    make(source, "stays", "goes")
    more = "[tables.goes]\npriority = 1\n"
    with inboxes() as boxes, service(tmp_path, source.dsn, source.lake, more, boxes) as own:
        own.start()
        until(lambda: differences(own.settings) == {}, 60)
        source.execute("DROP TABLE goes")
        until(lambda: all(boxes.acts("config_invalid").values()), 90)
        until_more(own, "stays")
        make(source, "goes")
        source.execute("UPDATE goes SET word = 'again'")
        until(lambda: all(len(acts) == 2 for acts in boxes.acts("config_invalid").values()), 130)
        until(lambda: differences(own.settings) == {}, 60)
        assert boxes.acts("config_invalid") == EVERYBODY_HEARD
        assert own.stop() == 0


def test_a_password_that_is_rotated_while_it_runs(
    server: Server, source: Source, tmp_path: Path
) -> None:
    """A file has it: with the new one in the file nothing fails. With the old one it is one
    message, until the file is right.
    """
    make(source, "word", "live")
    name = psycopg.conninfo.conninfo_to_dict(source.dsn)["dbname"]
    secret = tmp_path / "secrets" / "pg"
    secret.parent.mkdir()
    secret.write_text("first")
    source.execute("CREATE ROLE rotated LOGIN SUPERUSER REPLICATION PASSWORD 'first'")
    head = f"""[source]
name = "test"
dsn = "postgresql://rotated@{server.host}:{server.port}/{name}"
password = {{ secret = "pg", provider = "file" }}
[secrets]
folder = "{secret.parent}"
"""
    more = """
[breaker]
pause = "5s"
longest = "5s"
[tables.live]
pattern = "streaming"
sla = "5m"
"""

    def end_sessions() -> None:
        source.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotated'"
        )

    try:
        with password_needed(server, "rotated"), inboxes() as boxes, service(
            tmp_path, head, source.lake, more, boxes
        ) as own:  # fmt: skip
            own.start()
            until(lambda: differences(own.settings) == {}, 60)
            secret.write_text("second")
            source.execute("ALTER ROLE rotated PASSWORD 'second'")
            end_sessions()
            source.execute("UPDATE live SET word = 'second'")
            until(lambda: differences(own.settings) == {}, 60)
            time.sleep(12)
            assert boxes.acts() == {channel: [] for channel in CHANNELS}
            source.execute("ALTER ROLE rotated PASSWORD 'third'")
            end_sessions()
            until(lambda: all(boxes.acts("source_unreachable").values()), 90)
            secret.write_text("third")
            source.execute("UPDATE live SET word = 'third'")
            until(lambda: boxes.acts() == EVERYBODY_HEARD, 130)
            until(lambda: differences(own.settings) == {}, 60)
            assert own.stop() == 0
    finally:
        end_sessions()
        source.execute("REASSIGN OWNED BY rotated TO postgres")
        source.execute("DROP ROLE rotated")


def test_a_table_that_always_fails_among_a_hundred(source: Source, tmp_path: Path) -> None:
    """It is quarantined and told once; the others land each time they are due."""
    names = [f"t{number}" for number in range(99)]
    make(source, *names)
    source.execute("CREATE VIEW bad AS SELECT 1 / 0 AS id")
    tables = ", ".join(f'"{name}"' for name in ["t*", "bad"])
    head = f'[source]\nname = "test"\ndsn = "{source.dsn}"\ntables = [{tables}]'
    more = '[breaker]\nthreshold = 2\npause = "10m"\n'
    with inboxes() as boxes, service(
        tmp_path, head, source.lake, more, boxes, full_refresh="every 20s"
    ) as own:  # fmt: skip
        own.start()
        until(lambda: all(boxes.acts("table_quarantined").values()), 150)
        before = {name: landings(own, name) for name in names}
        until(lambda: all(landings(own, name) > before[name] + 1 for name in names), 150)
        document = own.settings.model_dump(by_alias=True, exclude_unset=True)
        document["source"]["test"]["tables"] = ["t*"]
        assert differences(loading.parse(document)) == {}
        assert boxes.acts("table_quarantined") == {name: ["open"] for name in CHANNELS}
        # The failure before its breaker opened may have been told as well.
        assert set(map(len, boxes.acts("t1 ").values())) <= {0}
        failed = [r for r in runs_of(own.settings) if r.status == "failed"]
        assert {r.source_table for r in failed} == {"public.bad"}
        assert len(failed) == 2
        assert own.stop() == 0


def test_two_services_of_one_lake_at_once(source: Source, tmp_path: Path) -> None:
    """Wasteful, never wrong: one is killed, the other goes on; all is equal."""
    make(source, "one", "two", "live")
    more = '[tables.live]\npattern = "streaming"\nsla = "10m"\n'
    with inboxes() as boxes, service(tmp_path, source.dsn, source.lake, more, boxes) as own:
        own.start()
        until(lambda: differences(own.settings) == {}, 60)
        second = Service(own.file, own.environment)
        second.start()
        try:
            second.until_logged("another service works for this lake", 90)
            for word in ("first", "second", "third"):
                for table in ("one", "two", "live"):
                    source.execute(f"UPDATE {table} SET word = '{word}' WHERE id % 2 = 0")
                    source.execute(f"DELETE FROM {table} WHERE id = {len(word)}")
                until(lambda: differences(own.settings) == {}, 90)
            own.kill()
            source.execute("UPDATE live SET word = 'alone'")
            source.execute("UPDATE one SET word = 'alone'")
            until(lambda: differences(own.settings) == {}, 90)
            assert second.stop() == 0
        finally:
            if second.process and second.process.poll() is None:
                second.process.send_signal(signal.SIGKILL)
                second.process.wait()
