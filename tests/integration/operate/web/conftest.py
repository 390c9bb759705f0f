"""A dashboard at a port of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bronze.operate.web import server
from bronze.operate.web.server import Server
from tests.support import views
from tests.support.browsing import Browser, free_port
from tests.support.views import Service

OPERATOR, VIEWER = "an operator's secret token", "a viewer's secret token"
TOKENS = {"operator": {"secret": "OPERATE"}, "viewer": {"secret": "VIEW"}}

Begin = Callable[..., tuple[Browser, Service]]


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens, in the environment."""
    monkeypatch.setenv("OPERATE", OPERATOR)
    monkeypatch.setenv("VIEW", VIEWER)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Begins a dashboard of a view, by default the night with faults; ``web`` is its section."""
    running: list[Server] = []

    def begin(service: Service | None = None, **web: Any) -> tuple[Browser, Service]:
        port = free_port()
        service = service or Service(views.night())
        sections = {"web": {"listen": f"127.0.0.1:{port}", **web}}
        running.append(
            server.start(
                views.settings(tmp_path / "lake", **sections),
                view=service.look,
                runs=service.runs,
                act=service.act,
                days=service.days,
                runbook=lambda name: f"# {name}\n\n## table_failed\n\nWait <b>here</b>.\n",
            )
        )
        return Browser(port), service

    yield begin
    for one in running:
        one.stop()
        assert not one.is_alive
