"""The lake on S3, Azure and Google Cloud Storage, spoken by emulators on loopback."""

from __future__ import annotations

import http.client
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from obstore.store import from_url

from bronze.api.client import Bronze
from bronze.config.settings import Settings
from bronze.delta import log, store
from bronze.delta.read import remembered
from bronze.delta.storage import client
from bronze.errors import LakeUnreachable
from bronze.ingest import pipeline
from bronze.model.locations import Place
from tests.conftest import Source
from tests.support import object_store
from tests.support.content import differences
from tests.support.object_store import Store
from tests.support.streams import caught_up

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

# Signs nothing, and asks nobody for a token.
GOOGLE_KEY = (
    '{"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": true,'
    ' "gcs_base_url": ""}'
)

TABLE = """
CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz NOT NULL DEFAULT now());
INSERT INTO t SELECT i, repeat('v', 99) FROM generate_series(1, 5000) i;
"""


@pytest.fixture(scope="module", params=["s3", "azure", "google"])
def lake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store behind a gateway."""
    if request.param == "s3":
        opened = object_store.s3()
    elif request.param == "google":
        opened = object_store.google()
    else:
        command = object_store.azurite()
        if command is None:
            pytest.skip("azurite cannot be had: it needs node and npm")
        opened = object_store.azure(tmp_path_factory.mktemp("azurite"), command)
    with opened as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(lake: Store) -> Iterator[None]:
    """A gateway without failures, and no clients of other tests."""
    client.forget()
    lake.gateway.requests.clear()
    yield
    gate = lake.gateway
    gate.failures.clear()
    gate.refuse, gate.cut, gate.delay, gate.back = lambda _: False, None, 0.0, 0.0


def on(lake: Store, source: Source, name: str, **sections: Any) -> Settings:
    """Settings for a lake of a test's own in the store."""
    return source.settings(
        lake={"root": f"{lake.root}/{name}", "options": lake.options}, **sections
    )


def test_all_that_a_lake_is_for_works(
    lake: Store, source: Source, record_property: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run, maintain, forget, verify, at rest too; with few clients, and bounded requests."""
    source.execute(TABLE)
    settings = on(lake, source, "all")
    made = []

    def counted(url: str, **options: Any) -> Any:
        made.append(url)
        return from_url(url, **options)

    monkeypatch.setattr(client, "from_url", counted)
    bronze = Bronze(settings)
    assert bronze.run().exit_code == 0
    first = len(lake.gateway.requests)
    source.execute("DELETE FROM t WHERE id > 4000")
    assert bronze.run().exit_code == 0
    second = len(lake.gateway.requests) - first
    record_property("requests", (first, second))
    assert bronze.maintain().exit_code == 0
    source.execute("DELETE FROM t WHERE id = 7")
    assert bronze.forget("t", {"id": "7"}).exit_code == 0
    assert bronze.run().exit_code == 0
    assert bronze.verify().exit_code == 0
    assert bronze.verify(at_rest=True).exit_code == 0
    assert bronze.audit(verify=True).exit_code == 0
    assert differences(settings) == {}
    # Each client is preceded by one that asks whether the store is there.
    assert len(made) == 2
    assert max(first, second) < 120


def test_a_stream_of_a_thousand_changes_equals_the_source(lake: Store, source: Source) -> None:
    """Inserts, updates and deletes, in transactions of their own."""
    source.execute(TABLE)
    settings = on(lake, source, "stream", tables={"t": {"pattern": "streaming"}})
    caught_up(settings)
    for number in range(100):
        source.execute(
            f"INSERT INTO t SELECT i, 'new' FROM generate_series({6000 + number * 6}, "
            f"{6005 + number * 6}) i;"
            f"UPDATE t SET v = 'changed' WHERE id BETWEEN {number * 3 + 1} AND {number * 3 + 3};"
            f"DELETE FROM t WHERE id = {4000 + number}"
        )
    caught_up(settings)
    assert differences(settings) == {}


def test_of_two_runs_that_race_one_lands_and_the_other_reads_again(
    lake: Store, source: Source
) -> None:
    """Twenty times; no row is lost or there twice."""
    source.execute(TABLE)
    settings = on(lake, source, "race", run={"max_retries": 9})
    assert pipeline.run(settings).exit_code == 0
    for number in range(20):
        source.execute(f"UPDATE t SET v = '{number}' WHERE id <= 3")
        with ThreadPoolExecutor(2) as pool:
            runs = list(pool.map(lambda _: pipeline.run(settings), range(2)))
        assert [run.exit_code for run in runs] == [0, 0]
    assert differences(settings) == {}
    entries = store.listing(settings.place("bronze", "bz_t"), "_delta_log")
    assert sum(path.endswith(".json") for path in entries) >= 21


def test_a_store_that_goes_away_in_the_middle_of_an_upload_is_waited_for(
    lake: Store, source: Source
) -> None:
    """The upload is cut in its middle, and for a second nothing answers."""
    source.execute(
        "CREATE TABLE t AS SELECT i id, (SELECT string_agg(md5((i * 100 + j)::text), '')"
        " FROM generate_series(1, 30) j) v FROM generate_series(1, 30000) i"
    )
    settings = on(lake, source, "cut")
    lake.gateway.cut = lambda method, _, length: method == "PUT" and length > 2**20
    assert pipeline.run(settings).exit_code == 0
    assert lake.gateway.cut is None, "nothing was cut"
    assert differences(settings) == {}


def test_bursts_of_errors_and_latency_are_survived(lake: Store, source: Source) -> None:
    """503 is waited for; 403 fails the run with a sentence, and the next one lands."""
    source.execute("CREATE TABLE t AS SELECT i AS id FROM generate_series(1, 100) i")
    settings = on(lake, source, "bursts")
    lake.gateway.failures[:] = [503] * 5
    assert pipeline.run(settings).exit_code == 0
    source.execute("INSERT INTO t VALUES (101)")
    lake.gateway.failures[:] = [403] * 100
    with pytest.raises(LakeUnreachable, match="credentials"):
        pipeline.run(settings)
    lake.gateway.failures.clear()
    assert pipeline.run(settings).exit_code == 0
    source.execute("INSERT INTO t VALUES (102)")
    lake.gateway.delay = 2.0
    assert pipeline.run(settings).exit_code == 0
    lake.gateway.delay = 0.0
    assert differences(settings) == {}


def test_a_missing_bucket_is_told(lake: Store, source: Source) -> None:
    """A bucket of S3 or Google, a container of Azure."""
    source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    root = re.sub(r"//[^/@]+", "//nowhere", lake.root)
    settings = source.settings(lake={"root": root, "options": lake.options})
    with pytest.raises(LakeUnreachable, match=r"there is no (bucket|container) nowhere at 127"):
        pipeline.run(settings)


def test_a_run_without_news_makes_few_requests(lake: Store, source: Source) -> None:
    """Each log is listed once, and entries are read once: governance tables are committed to
    without looking again, and what waits for each other is a chain of few round trips.
    """
    source.execute(
        "".join(f"CREATE TABLE t{n} AS SELECT 1 AS id; ALTER TABLE t{n} ADD PRIMARY KEY (id);"
                for n in range(6))
    )  # fmt: skip
    settings = on(lake, source, "few")
    for _ in range(2):
        assert Bronze(settings).run().exit_code == 0
    remembered.forget()
    client.forget()
    lake.gateway.requests.clear()
    lake.gateway.spans.clear()
    lake.gateway.delay = 0.1
    assert Bronze(settings).run().exit_code == 0
    requests = Counter(f"{method} {path}" for method, path in lake.gateway.requests)
    again = {name: count for name, count in requests.items() if count > 1 and "POST" not in name}
    assert again == {}, "the same request twice"
    assert len(lake.gateway.requests) < 95
    assert object_store.round_trips(lake.gateway) < 26


def _unfinished_uploads(lake: Store) -> list[str]:
    """The keys of uploads that were begun, and neither ended nor aborted."""
    address = urlsplit(lake.gateway.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port)
    connection.request("GET", "/lake?uploads", headers={"Authorization": object_store.SIGNED})
    text = connection.getresponse().read().decode()
    connection.close()
    assert "ListMultipartUploadsResult" in text
    return re.findall("<Key>(.*?)</Key>", text)


WIDE = """
CREATE TABLE t AS SELECT i id, (SELECT string_agg(md5((i * 100 + j)::text), '')
 FROM generate_series(1, 30) j) v FROM generate_series(1, 60000) i
"""


@pytest.mark.parametrize("lake", ["s3"], indirect=True)
def test_a_key_that_is_rotated_in_the_middle_of_an_upload_costs_only_the_file(
    lake: Store, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some parts the store takes only the new key: the file is written again with it, and
    the run lands. The log names no other file, and what was sent before is no object.
    """
    source.execute(WIDE)
    monkeypatch.setenv("LAKE_KEY", "first")
    options = {**lake.options, "aws_access_key_id": {"secret": "LAKE_KEY"}}
    settings = source.settings(lake={"root": f"{lake.root}/rotated", "options": options})
    parts = []

    def rotated(headers: Any) -> bool:
        method, path = lake.gateway.requests[-1]
        if method == "PUT" and "partNumber" in path:
            parts.append(path)
            if len(parts) == 3:
                monkeypatch.setenv("LAKE_KEY", "second")
        return len(parts) > 2 and "Credential=first/" in headers["Authorization"]

    lake.gateway.refuse = rotated
    result = pipeline.run(settings)
    lake.gateway.refuse = lambda _: False
    assert result.exit_code == 0, result.tables
    assert len(parts) > 3, "no large upload was refused"
    assert differences(settings) == {}
    place = settings.place("bronze", "bz_t")
    state = log.read(place)
    assert state is not None
    objects = [path for path in store.listing(place) if path.endswith(".parquet")]
    assert sorted(objects) == sorted(file.path for file in state.files)


@pytest.mark.parametrize("lake", ["s3"], indirect=True)
def test_an_upload_that_is_given_up_is_aborted(lake: Store) -> None:
    """No part of it stays in the bucket; nor does any after a run that went well."""
    place = Place(f"{lake.root}/given-up", tuple(lake.options.items()))
    before = _unfinished_uploads(lake)

    def give_up() -> None:
        with store.writer(place, "half") as file:
            file.write(b"x" * 30_000_000)
            assert len(_unfinished_uploads(lake)) == len(before) + 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        give_up()
    assert _unfinished_uploads(lake) == before
    assert store.listing(place) == []


def test_the_configs_of_the_documentation_work_as_they_stand(
    lake: Store, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with the emulator's address, bucket and keys: `docs/reference/stores.md`."""
    text = Path("docs/reference/stores.md").read_text()
    configs = [tomllib.loads(part) for part in re.findall("```toml\n(.*?)```", text, re.DOTALL)]
    scheme = lake.root.partition("://")[0]
    (config,) = (one["lake"] for one in configs if one["lake"]["root"].startswith(scheme))
    monkeypatch.setenv("LAKE_KEY_ID", "key")
    keys = {"abfss": object_store.AZURE_KEY, "s3": "word", "gs": GOOGLE_KEY}
    monkeypatch.setenv("LAKE_KEY", keys[scheme])
    addresses = ("endpoint", "endpoint_url", "base_url", "allow_http")
    address = {n: v for n, v in lake.options.items() if n.endswith(addresses)}
    if scheme == "abfss":
        config["options"]["account_name"] = object_store.AZURE_ACCOUNT
    root = f"{lake.root}/documented"
    assert config["root"].endswith("/inventory")
    source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
    settings = source.settings(lake={"root": root, "options": {**config["options"], **address}})
    assert Bronze(settings).run().exit_code == 0
    assert differences(settings) == {}
