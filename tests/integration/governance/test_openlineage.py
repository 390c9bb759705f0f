"""OpenLineage: what is sent, and that a server without an answer does not delay a run."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bronze.cdc import stream
from bronze.errors import ConfigError
from bronze.ingest import pipeline
from tests.conftest import Source

Events = list[dict[str, Any]]


@pytest.fixture
def shop(source: Source) -> Source:
    """A table of two rows."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY, price numeric(8, 2))")
    source.execute("INSERT INTO t VALUES (1, 1.5), (2, 2.5)")
    return source


class Collector(ThreadingHTTPServer):
    """A server that keeps the posted events."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: Events = []
        self.headers_seen: list[dict[str, str]] = []
        self.status = 200

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.events.append(json.loads(body) | {"path": self.path})
        self.server.headers_seen.append(dict(self.headers))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A server that is listening."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def lines(path: Path) -> Events:
    """The events in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def types_and_jobs(events: Events) -> list[tuple[str, str]]:
    """The type and the job of each event."""
    return [(event["eventType"], event["job"]["name"]) for event in events]


def test_a_run_sends_its_events_to_a_server(
    shop: Source, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run of each table has its parent, its columns with their origin, and its rows."""
    monkeypatch.setenv("COLLECTOR", "a-token")
    own = {"url": collector.url, "api_key": {"secret": "COLLECTOR"}, "namespace": "prod"}
    result = pipeline.run(shop.settings(lineage=own))
    assert result.notes == ()
    events = collector.events
    assert types_and_jobs(events) == [
        ("START", "bronze.run"),
        ("START", "bronze.bronze.bz_t"),
        ("COMPLETE", "bronze.bronze.bz_t"),
        ("COMPLETE", "bronze.run"),
    ]
    assert {event["path"] for event in events} == {"/api/v1/lineage"}
    assert {seen["Authorization"] for seen in collector.headers_seen} == {"Bearer a-token"}
    start, done = events[1:3]
    assert start["eventTime"] < done["eventTime"]
    assert start["run"]["runId"] == done["run"]["runId"]
    parent = done["run"]["facets"]["parent"]
    assert parent["run"]["runId"] == events[0]["run"]["runId"] == result.batch_id
    assert (parent["job"]["namespace"], parent["job"]["name"]) == ("prod", "bronze.run")
    (table,), (target,) = done["inputs"], done["outputs"]
    assert table["namespace"].startswith("postgres://127.0.0.1:")
    assert table["name"].endswith(".public.t")
    assert (target["namespace"], target["name"]) == ("file", str(shop.table("t")))
    fields = [(f["name"], f["type"]) for f in target["facets"]["schema"]["fields"]]
    assert fields == [("id", "int"), ("price", "decimal(8,2)")]
    source = [(f["name"], f["type"]) for f in table["facets"]["schema"]["fields"]]
    assert source == [("id", "integer"), ("price", "numeric(8,2)")]
    (origin,) = target["facets"]["columnLineage"]["fields"]["price"]["inputFields"]
    assert (origin["name"], origin["field"]) == (table["name"], "price")
    assert origin["transformations"][0]["subtype"] == "IDENTITY"
    assert target["facets"]["version"]["datasetVersion"] == "0"
    assert target["outputFacets"]["outputStatistics"]["rowCount"] == 2
    assert "@" not in table["facets"]["dataSource"]["uri"]


def test_events_follow_the_standard(shop: Source, tmp_path: Path) -> None:
    """Each event and facet names its schema and its producer; times have zones."""
    settings = shop.settings(lineage={"file": str(tmp_path / "events")})
    pipeline.run(settings)
    shop.execute("ALTER TABLE t ALTER price TYPE text")
    assert pipeline.run(settings).exit_code == 1
    events = lines(tmp_path / "events")
    assert types_and_jobs(events)[4:] == [
        ("START", "bronze.run"),
        ("START", "bronze.bronze.bz_t"),
        ("FAIL", "bronze.bronze.bz_t"),
        ("COMPLETE", "bronze.run"),
    ]
    assert events[6]["run"]["facets"]["errorMessage"]["message"] == "TableRefused"
    for event in events:
        assert event["producer"].startswith("urn:bronze:")
        assert "OpenLineage.json" in event["schemaURL"]
        assert event["eventTime"].endswith("+00:00")
        holders = [event["run"], event["job"], *event["inputs"], *event["outputs"]]
        for holder in holders:
            for facet in holder.get("facets", {}).values():
                assert facet["_producer"] == event["producer"]
                assert facet["_schemaURL"].startswith("https://openlineage.io/spec/")


def test_a_stream_sends_events_while_it_goes_on(shop: Source, tmp_path: Path) -> None:
    """It starts when the table joins, and is complete when the stream ends."""
    settings = shop.settings(
        tables={"t": {"pattern": "streaming"}}, lineage={"file": str(tmp_path / "events")}
    )
    stream.stream(settings, until_caught_up=True)
    events = lines(tmp_path / "events")
    assert [kind for kind, _ in types_and_jobs(events)] == ["START", "RUNNING", "COMPLETE"]
    assert len({event["run"]["runId"] for event in events}) == 1
    assert {e["job"]["facets"]["jobType"]["processingType"] for e in events} == {"STREAMING"}


def test_a_server_that_refuses_events_fails_no_run(shop: Source, collector: Collector) -> None:
    """A note names the server."""
    collector.status = 500
    result = pipeline.run(shop.settings(lineage={"url": collector.url}))
    assert result.exit_code == 0
    assert "127.0.0.1" in result.notes[0]
    assert len(collector.events) == 1


def test_a_server_without_an_answer_delays_a_run_by_the_timeout(shop: Source) -> None:
    """Whatever the number of tables is."""
    for number in range(5):
        shop.execute(f"CREATE TABLE more_{number} (id int PRIMARY KEY)")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = shop.settings(lineage={"url": url, "timeout": 1})
        began = time.monotonic()
        result = pipeline.run(settings)
        assert time.monotonic() - began - result.seconds < 3
    assert result.exit_code == 0
    assert result.notes


def test_an_unreachable_server_fails_no_run(shop: Source) -> None:
    """A note says that events were not sent."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    result = pipeline.run(shop.settings(lineage={"url": url}))
    assert result.exit_code == 0
    assert "Not all OpenLineage events" in result.notes[0]


def test_a_missing_package_is_an_error_before_anything_is_read(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint of the error is how to install it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        pipeline.run(source.settings(lineage={"url": "http://127.0.0.1:1"}))
    assert "bronze[openlineage]" in caught.value.hint
    assert not source.lake.exists()
