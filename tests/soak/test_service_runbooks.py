"""The four scenarios of the runbooks, played: an alert opens, its runbook is followed as written,
and it is resolved, within the time in which somebody has to answer.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bronze.config.sections.alerts import Scenarios
from bronze.demo.installation import binary
from bronze.operate.alerts import store
from bronze.operate.alerts.kinds import KINDS
from tests.conftest import Source
from tests.support.content import differences
from tests.support.service_process import Inboxes, Service, inboxes, service
from tests.support.serving import until

pytestmark = [pytest.mark.soak, pytest.mark.slow, pytest.mark.timeout(400)]

_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What the machine of a test may not have.
_OF_THE_MACHINE = ("top", "dmesg", "timedatectl")


class Operator:
    """Somebody with a shell, who follows a runbook."""

    def __init__(self, own: Service, dsn: str, folder: Path) -> None:
        """Their shell has `bronze`, `psql`, and the connection string."""
        self._own, self.outputs = own, dict[str, str]()
        programs = folder / "bin"
        programs.mkdir()
        command = programs / "bronze"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m bronze "$@"\n')
        command.chmod(0o755)
        path = f"{programs}:{binary('psql').parent}:{os.environ['PATH']}"
        self._environment = {"PATH": path, "DSN": dsn, "BRONZE_CONFIG": str(own.file)}

    def steps(self, kind: str, subject: str) -> list[list[str]]:
        """The commands of a runbook, as `bronze runbook` prints it, by its blocks."""
        text = self.shell(f"bronze runbook {kind}")
        blocks = [block.splitlines() for block in _BLOCK.findall(text)]
        return [
            [re.sub(r"\b(TABLE|SOURCE)\b", shlex.quote(subject), line) for line in block if line]
            for block in blocks
        ]

    def follow(self, commands: list[str]) -> None:
        """Types commands as they are written, comments included."""
        for command in commands:
            if not command.startswith(_OF_THE_MACHINE):
                self.outputs[command.partition("  #")[0].strip()] = self.shell(command)

    def shell(self, command: str) -> str:
        """The output of a command, which is allowed to say that something is wrong."""
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            env={**os.environ, **self._own.environment, **self._environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert done.returncode in (0, 1), "\n".join([command, done.stdout, done.stderr])
        assert "Traceback" not in done.stderr, (command, done.stderr)
        return done.stdout + done.stderr


def playing(
    own: Service,
    boxes: Inboxes,
    source: Source,
    folder: Path,
    key: tuple[str, str],
    fix: Callable[[], object],
    subject: str = "",
) -> Operator:
    """Waits for an alert, follows its runbook with a fix between the first two blocks, and waits
    until it is resolved.
    """
    kind, _ = key
    until(lambda: boxes.acts(kind)["pager"] == ["open"], 90)
    opened = time.monotonic()
    first = str(boxes.sent("pager", kind)[0].text)
    operator = Operator(own, source.dsn, folder)
    investigate, *rest = operator.steps(kind, subject or key[1])
    # The message has the first steps already.
    assert all(command.split(" #")[0].split('"')[0].strip() in first for command in investigate[:3])
    operator.follow(investigate)
    operator.shell(f"bronze alerts ack {shlex.quote(':'.join(key))}")
    fix()
    for block in rest:
        operator.follow(block)
    until(lambda: boxes.acts(kind)["pager"][-1] == "resolve", 150)
    took = time.monotonic() - opened
    scenario = KINDS[kind].scenario
    print(kind, f"{took:.0f} s")
    assert took < getattr(Scenarios(), scenario).respond
    assert boxes.acts(kind)["pager"] == ["open", "acknowledge", "resolve"]
    return operator


def table(source: Source, name: str, rows: str) -> None:
    """A table with rows."""
    source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, word text)")
    source.execute(f"INSERT INTO {name} SELECT g, {rows} FROM generate_series(1, 200) g")


def test_the_runbook_of_an_outage(source: Source, tmp_path: Path) -> None:
    """A table that fails is quarantined; with its cause mended it lands."""
    table(source, "good", "'w'")
    source.execute("CREATE TABLE divisor AS SELECT 0 AS by")
    source.execute("CREATE VIEW ratio AS SELECT 1 AS id, 1 / by AS word FROM divisor")
    head = f'[source]\nname = "test"\ndsn = "{source.dsn}"\ntables = ["good", "ratio"]'
    more = '[breaker]\nthreshold = 2\npause = "10m"\n'
    with inboxes() as boxes, service(tmp_path, head, source.lake, more, boxes) as own:
        own.start()
        key = ("table_quarantined", "test.public.ratio")
        playing(
            own, boxes, source, tmp_path, key,
            lambda: source.execute("UPDATE divisor SET by = 1"),
        )  # fmt: skip
        until(lambda: differences(own.settings) == {}, 60)
        assert own.stop() == 0


def test_the_runbook_of_bad_quality(source: Source, tmp_path: Path) -> None:
    """Rows break a rule; corrected in the source, they are loaded again."""
    table(source, "orders", "CASE WHEN g % 2 = 0 THEN '' ELSE 'w' END")
    more = """
[tables.orders]
key = ["id"]
[[tables.orders.rules]]
name = "has a word"
column = "word"
length = { min = 1 }
severity = "critical"
"""
    with inboxes() as boxes, service(tmp_path, source.dsn, source.lake, more, boxes) as own:
        own.start()
        playing(
            own, boxes, source, tmp_path, ("quality", "test.public.orders"),
            lambda: source.execute("UPDATE orders SET word = 'w'"),
        )  # fmt: skip
        until(lambda: differences(own.settings) == {}, 60)
        assert own.stop() == 0


def test_the_runbook_of_a_late_table(source: Source, tmp_path: Path) -> None:
    """A table was paused and forgotten; it is resumed."""
    table(source, "orders", "'w'")
    more = '[tables.orders]\nsla = "15s"\n'
    with inboxes() as boxes, service(tmp_path, source.dsn, source.lake, more, boxes) as own:
        own.start()
        until(lambda: differences(own.settings) == {}, 60)
        own.run("pause", "orders", "--reason", "forgotten")
        playing(
            own, boxes, source, tmp_path, ("freshness", "test.public.orders"),
            lambda: own.run("resume", "orders", "--reason", "remembered"),
        )  # fmt: skip
        assert own.stop() == 0


def test_the_runbook_of_unprotected_personal_data(source: Source, tmp_path: Path) -> None:
    """A column looks personal; it is protected in the config, which the service reads again."""
    source.execute("CREATE TABLE people (id int PRIMARY KEY, email text)")
    source.execute("INSERT INTO people VALUES (1, 'ada@example.com')")
    with inboxes() as boxes, service(tmp_path, source.dsn, source.lake, "", boxes) as own:
        own.start()

        def protect() -> None:
            with own.file.open("a") as file:
                file.write('[tables.people]\nprotect = { email = "encrypt" }\n')

        playing(own, boxes, source, tmp_path, ("personal_data", "test.public.people"), protect)
        until(lambda: differences(own.settings) == {}, 60)
        stored = store.load(own.settings) or {}
        assert not [alert for alert in stored.values() if alert.is_open]
        assert own.stop() == 0
