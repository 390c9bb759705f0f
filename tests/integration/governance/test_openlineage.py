"""OpenLineage: what is sent, to whom, and that nobody waits for who does not answer."""

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


class Gatherer(ThreadingHTTPServer):
    """A server that keeps what is posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: Events = []
        self.headers_seen: list[dict[str, str]] = []
        self.status = 200

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Gatherer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.events.append(json.loads(body) | {"path": self.path})
        self.server.headers_seen.append(dict(self.headers))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def gatherer() -> Iterator[Gatherer]:
    """A server that listens."""
    with Gatherer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def lines(path: Path) -> Events:
    """The events in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(events: Events) -> list[tuple[str, str]]:
    """What happened to which job."""
    return [(event["eventType"], event["job"]["name"]) for event in events]


def test_a_run_is_told_to_a_server(
    shop: Source, gatherer: Gatherer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each table's run has its parent, its columns and where each came from, and its rows."""
    monkeypatch.setenv("GATHERER", "a-token")
    own = {"url": gatherer.url, "api_key": {"secret": "GATHERER"}, "namespace": "prod"}
    result = pipeline.run(shop.settings(lineage=own))
    assert result.notes == ()
    events = gatherer.events
    assert told(events) == [
        ("START", "bronze.run"),
        ("START", "bronze.bronze.bz_t"),
        ("COMPLETE", "bronze.bronze.bz_t"),
        ("COMPLETE", "bronze.run"),
    ]
    assert {event["path"] for event in events} == {"/api/v1/lineage"}
    assert {seen["Authorization"] for seen in gatherer.headers_seen} == {"Bearer a-token"}
    start, done = events[1:3]
    assert start["eventTime"] < done["eventTime"]
    assert start["run"]["runId"] == done["run"]["runId"]
    parent = done["run"]["facets"]["parent"]
    assert parent["run"]["runId"] == events[0]["run"]["runId"] == result.batch_id
    assert (parent["job"]["namespace"], parent["job"]["name"]) == ("prod", "bronze.run")
    (given,), (made,) = done["inputs"], done["outputs"]
    assert given["namespace"].startswith("postgres://127.0.0.1:")
    assert given["name"].endswith(".public.t")
    assert (made["namespace"], made["name"]) == ("file", str(shop.table("t")))
    fields = [(f["name"], f["type"]) for f in made["facets"]["schema"]["fields"]]
    assert fields == [("id", "int"), ("price", "decimal(8,2)")]
    source = [(f["name"], f["type"]) for f in given["facets"]["schema"]["fields"]]
    assert source == [("id", "integer"), ("price", "numeric(8,2)")]
    (origin,) = made["facets"]["columnLineage"]["fields"]["price"]["inputFields"]
    assert (origin["name"], origin["field"]) == (given["name"], "price")
    assert origin["transformations"][0]["subtype"] == "IDENTITY"
    assert made["facets"]["version"]["datasetVersion"] == "0"
    assert made["outputFacets"]["outputStatistics"]["rowCount"] == 2
    assert "@" not in given["facets"]["dataSource"]["uri"]


def test_every_event_is_as_the_standard_has_it(shop: Source, tmp_path: Path) -> None:
    """Each event, and each of its facets, names its schema and who made it; times have zones."""
    settings = shop.settings(lineage={"file": str(tmp_path / "events")})
    pipeline.run(settings)
    shop.execute("ALTER TABLE t ALTER price TYPE text")
    assert pipeline.run(settings).exit_code == 1
    events = lines(tmp_path / "events")
    assert told(events)[4:] == [
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


def test_a_stream_is_told_while_it_goes_on(shop: Source, tmp_path: Path) -> None:
    """It starts when the table joins, and is complete when the stream ends."""
    settings = shop.settings(
        tables={"t": {"pattern": "streaming"}}, lineage={"file": str(tmp_path / "events")}
    )
    stream.stream(settings, until_caught_up=True)
    events = lines(tmp_path / "events")
    assert [kind for kind, _ in told(events)] == ["START", "RUNNING", "COMPLETE"]
    assert len({event["run"]["runId"] for event in events}) == 1
    assert {e["job"]["facets"]["jobType"]["processingType"] for e in events} == {"STREAMING"}


def test_a_server_that_refuses_is_told(shop: Source, gatherer: Gatherer) -> None:
    """The run is as good as without it; a note says where events were not taken."""
    gatherer.status = 500
    result = pipeline.run(shop.settings(lineage={"url": gatherer.url}))
    assert result.exit_code == 0
    assert "127.0.0.1" in result.notes[0]
    assert len(gatherer.events) == 1


def test_a_server_that_does_not_answer_is_not_waited_for(shop: Source) -> None:
    """However many tables there are, a run ends within the timeout."""
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


def test_nobody_there_is_told(shop: Source) -> None:
    """A URL at which nothing listens fails no table."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    result = pipeline.run(shop.settings(lineage={"url": url}))
    assert result.exit_code == 0
    assert "Not all OpenLineage events" in result.notes[0]


def test_a_missing_package_is_told_before_anything_is_read(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config wants events, and nothing can make them: the user's error, with the remedy."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        pipeline.run(source.settings(lineage={"url": "http://127.0.0.1:1"}))
    assert "bronze[openlineage]" in caught.value.hint
    assert not source.lake.exists()
