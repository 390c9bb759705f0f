"""The clients of object stores: how many there are, rotated keys, options, wrong addresses."""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import polars as pl
import pytest
from obstore.store import from_url

from bronze import secrets
from bronze.delta import commit, files, log, store
from bronze.delta.commit import Change
from bronze.delta.positions import Position
from bronze.delta.read import remembered
from bronze.delta.storage import client
from bronze.errors import BronzeError, CommitConflict, LakeError, LakeUnreachable
from bronze.model import object_store
from bronze.model.columns import DeltaType
from bronze.model.files import WrittenFile
from bronze.model.locations import Place, Secret
from tests.support import object_store as stores
from tests.support.object_store import Store


@pytest.fixture(scope="module")
def s3() -> Iterator[Store]:
    """An S3 behind a gateway."""
    with stores.s3() as running:
        yield running


@pytest.fixture(autouse=True)
def quiet(s3: Store) -> Iterator[None]:
    """The gateway without failures, and no clients of other tests."""
    client.forget()
    secrets.forget()
    yield
    s3.gateway.refuse = lambda _: False
    s3.gateway.failures.clear()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The roots of the clients that are made, probes included."""
    roots: list[str] = []

    def counted(url: str, **options: Any) -> Any:
        roots.append(url)
        return from_url(url, **options)

    monkeypatch.setattr(client, "from_url", counted)
    return roots


def place(s3: Store, name: str, **more: str | Secret) -> Place:
    """A table on the store."""
    return Place(f"{s3.root}/{name}", tuple({**s3.options, **more}.items()))


def test_tables_of_a_bucket_share_a_client(s3: Store, made: list[str]) -> None:
    """However many threads and tables there are; other options have another one."""
    places = [place(s3, f"share/t{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: store.put(one, "a/x", one.url.encode()), places))
    assert [store.listing(one) for one in places] == [["a/x"]] * 8
    assert store.get(places[3], "a/x") == b"s3://lake/share/t3"
    assert store.folders(place(s3, "share")) == [f"t{number}" for number in range(8)]
    assert made == ["s3://lake"] * 2
    store.put(place(s3, "share/t9", aws_region="eu-west-1"), "x", b"")
    assert made == ["s3://lake"] * 4
    assert pickle.loads(pickle.dumps(places)) == places  # noqa: S301


def test_of_a_large_file_only_what_is_asked_for_is_read(s3: Store) -> None:
    """Its size, its footer and the pages of a column, each by one request, columns beside each
    other by fewer; a small file is read by a single request.
    """
    values = np.random.default_rng(0).integers(0, 2**62, 300_000)
    frame = pl.DataFrame({f"c{number}": np.roll(values, number) for number in range(8)})
    table = place(s3, "large")
    large = files.write(frame.iter_slices(150_000), table, "a", ())
    small = files.write([frame.head(9)], table, "b", ())
    assert large
    assert small
    layout = [(name, DeltaType("long")) for name in frame.columns]
    gateway = s3.gateway
    for file, asked, requests, sent in (
        (large, ["c3"], 2 + 2, large.size / 7),
        (large, frame.columns, 2 + 6, large.size + 2**17),
        (small, frame.columns, 1, 2**14),
    ):
        gateway.requests.clear()
        gateway.sent = 0
        parts = [
            pl.DataFrame(t) for _, t in files.parts(files.open_parquet(table, file), layout, asked)
        ]
        assert pl.concat(parts).equals(frame.head(file.rows).select(asked))
        assert len(gateway.requests) == requests
        assert gateway.sent < sent


@pytest.mark.soak
def test_a_large_object_is_read_from_any_offset(s3: Store) -> None:
    """What is read ahead is what comes next, wherever reads begin and end."""
    draw = np.random.default_rng(1)
    content = draw.bytes(11 * 2**20)
    table = place(s3, "offsets")
    store.put(table, "x", content)
    reading = store.reader(table, "x", len(content))
    at = 0
    for _ in range(200):
        if draw.random() < 0.2:
            at = int(draw.integers(0, len(content) + 9))
            assert reading.seek(at) == at
        size = int(2 ** draw.uniform(0, 21))
        data = reading.read(size)
        assert data == content[at : at + size]
        at += len(data)
        assert reading.tell() == at
    assert reading.seek(-7, io.SEEK_END) == len(content) - 7
    assert reading.read() == content[-7:]
    assert reading.read(1) == b""


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A provider in the network, whose values the test rotates; the keys of the store."""
    values = {"key": "first"}
    monkeypatch.setitem(secrets.REMOTE, "databricks", lambda secret: values[secret.name])
    return values


@pytest.fixture
def rotating(s3: Store, vault: dict[str, str]) -> Place:
    """A table whose key is in the vault, and which the store refuses to any other."""

    def refuse(headers: Any) -> bool:
        return f"Credential={vault['key']}/" not in headers["Authorization"]

    s3.gateway.refuse = refuse
    return place(
        s3, f"rotating/{uuid4().hex}", aws_access_key_id=Secret("databricks", "key", ttl=3600)
    )


def test_a_rotated_key_is_asked_for_again(rotating: Place, vault: dict[str, str]) -> None:
    """Each operation goes on with the new key: objects, uploads, downloads, logs and deltalake."""
    store.put(rotating, "x", b"0" * 11 * 2**20 + b"123456789")
    log.write(rotating, 0, [{"commitInfo": {}}])
    reading = store.reader(rotating, "x")
    assert reading.read(4) == b"0000"

    def rotate() -> None:
        vault["key"] += "r"

    rotate()
    assert reading.read()[-10:] == b"0123456789"
    rotate()
    store.put(rotating, "y", b"")
    rotate()
    assert store.listing(rotating) == ["_delta_log/00000000000000000000.json", "x", "y"]
    rotate()
    with store.writer(rotating, "large") as file:
        file.write(b"x" * 2**20)
        file.write(b"x" * 11 * 2**20)
    rotate()
    with store.writer(rotating, "small") as file:
        file.write(b"s")
    rotate()
    assert log.entry(rotating, 0) == [{"commitInfo": {}}]
    rotate()
    log.write(rotating, 1, [{"commitInfo": {}}])
    rotate()
    assert store.folders(rotating) == ["_delta_log"]
    rotate()
    store.delete(rotating, ["x", "y", "small", "large"])
    assert len(store.listing(rotating)) == 2


def test_deltalake_gets_the_rotated_key(rotating: Place, vault: dict[str, str]) -> None:
    """Its checkpoints are written although the key was rotated since the table was opened."""
    metadata = {
        "id": "a", "format": {"provider": "parquet", "options": {}}, "partitionColumns": [],
        "schemaString": '{"type":"struct","fields":[{"name":"a","type":"long","nullable":true,'
        '"metadata":{}}]}',
        "configuration": {},
    }  # fmt: skip
    log.write(
        rotating, 0,
        [{"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}, {"metaData": metadata}],
    )  # fmt: skip
    vault["key"] = "second"
    assert client.with_table(rotating, None, lambda table: table.version()) == 0
    vault["key"] = "third"
    client.with_table(rotating, 0, lambda table: table.create_checkpoint())
    names = store.listing(rotating, "_delta_log")
    assert f"_delta_log/{0:020}.checkpoint.parquet" in names


def test_a_refusal_is_final_where_the_key_is_the_same(
    s3: Store, rotating: Place, vault: dict[str, str]
) -> None:
    """The vault is asked once more, the store is not."""
    store.put(rotating, "x", b"")
    s3.gateway.refuse = lambda _: True
    s3.gateway.requests.clear()
    with pytest.raises(LakeUnreachable, match="credentials"):
        store.put(rotating, "x", b"")
    assert [method for method, _ in s3.gateway.requests] == ["PUT"]


@pytest.mark.soak
@pytest.mark.parametrize("cloud", sorted(object_store.STORE))
def test_every_option_is_taken_without_a_word_of_rust(cloud: str) -> None:
    """With the cloud's prefix, in capitals, and without it; nothing reaches standard error."""
    url = {"aws": "s3://b/t", "azure": "az://c/t", "google": "gs://b/t"}[cloud]
    script = f"""
from obstore.store import from_url
from bronze.delta.storage import client
from bronze.errors import BronzeError
from bronze.model import object_store as o
from bronze.model.locations import Place
login = {{"account_name": "a"}} if {cloud!r} == "azure" else {{}}
client._probe = lambda *_: None
for name in sorted(o.STORE[{cloud!r}] | o.CLIENT | o.RETRY):
    for given in (name, "{cloud}_" + name, ("{cloud}_" + name).upper()):
        value = "3" if "max" in name or "base" in name else "5s" if "timeout" in name else "true"
        try:
            client.open_store(Place({url!r}, tuple({{**login, given: value}}.items())))
        except BronzeError as error:
            assert "no option" not in str(error), error
            assert "onfiguration key" not in str(error), error
            assert "anic" not in str(error) and "prefix" not in str(error), error
"""
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=env
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("s3n://b/t", {}, "there is no store for s3n://; use s3://bucket/path"),
        ("wasb://c@a/t", {}, "use abfss://container@account.dfs.core.windows.net/path"),
        ("s3:///t", {}, "the name of the bucket is missing"),
        ("s3://b/t", {"aws_acces_key_id": "x"}, "did you mean aws_access_key_id?"),
        ("az://b/t", {"accountkey": "x"}, "did you mean account_key?"),
        ("s3://b/t", {"aws_s3_locking_provider": "dynamodb"}, "bronze commits by conditional"),
        ("s3://b/t", {"retry_timeout": "soon"}, "retry_timeout is a duration such as 10s"),
        ("s3://b/t", {"max_retries": "many"}, "max_retries is a number, not many"),
    ],
)
def test_a_wrong_scheme_or_option_is_refused_before_anything_is_opened(
    url: str, options: dict[str, str], message: str
) -> None:
    """The sentence says what to use."""
    with pytest.raises(LakeError) as caught:
        store.listing(Place(url, tuple(options.items())))
    assert message in caught.value.message


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


LOGIN = {"access_key_id": "a", "secret_access_key": "b", "region": "r", "allow_http": "true"}


def failure(endpoint: str) -> tuple[float, BronzeError]:
    """The seconds and the error of a lake at an endpoint that cannot be reached."""
    table = Place("s3://b/t", tuple({**LOGIN, "endpoint": endpoint}.items()))
    began = time.monotonic()
    with pytest.raises(LakeUnreachable) as caught:
        store.listing(table)
    return time.monotonic() - began, caught.value


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("http://127.0.0.1:9", "127.0.0.1, port 9, cannot be reached: the connection is refused"),
        ("http://store.invalid", "store.invalid, port 80, cannot be reached: the name of the host"),
    ],
)
def test_a_wrong_address_is_told_with_host_port_and_reason(endpoint: str, message: str) -> None:
    """Within ten seconds, whether it refuses or has no name."""
    seconds, error = failure(endpoint)
    assert message in error.message
    assert seconds < 10


@pytest.mark.soak
def test_a_store_that_never_answers_is_told_within_ten_seconds(deaf: int) -> None:
    """It accepts connections and is silent."""
    seconds, error = failure(f"http://127.0.0.1:{deaf}")
    assert f"127.0.0.1, port {deaf}, cannot be reached: it does not answer" in error.message
    assert seconds < 10


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://b/t", {"aws_allow_http": "true", "AWS_REGION": "r", "aws_timeout": "9s"}),
        ("az://b/t", {"azure_account_name": "a", "azure_allow_http": "true", "max_retries": "3"}),
        ("gs://b/t", {"google_allow_http": "true", "google_skip_signature": "true"}),
    ],
)
def test_options_with_the_prefix_of_the_cloud_are_taken(
    url: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """As the documentation of deltalake has them."""
    monkeypatch.setattr(client, "_probe", lambda *_: None)
    assert client.open_store(Place(url, tuple(options.items()))) is not None
    assert capfd.readouterr().err == ""


def test_missing_credentials_are_told_as_missing(s3: Store) -> None:
    """The service of the machine that would have them has none."""
    options = {
        "region": "r", "endpoint": s3.gateway.url, "allow_http": "true",
        "metadata_endpoint": "http://127.0.0.1:9",
    }  # fmt: skip
    with pytest.raises(LakeUnreachable, match="no credentials are given") as caught:
        store.listing(Place("s3://lake/t", tuple(options.items())))
    assert "access_key_id and secret_access_key" in caught.value.hint


def test_a_missing_bucket_and_plain_http_are_told(s3: Store) -> None:
    """Whatever is done first, without the store's XML."""
    missing = Place("s3://nowhere/t/", tuple(s3.options.items()))
    port = s3.gateway.url.rpartition(":")[2]
    for attempt in (log.read, store.listing, store.folders, store.prove_writable):
        with pytest.raises(LakeUnreachable) as caught:
            attempt(missing)
        assert caught.value.message.endswith(f": there is no bucket nowhere at 127.0.0.1:{port}.")
        assert caught.value.message.startswith("The lake at s3://nowhere/t could not be ")
    plain = {name: value for name, value in s3.options.items() if name != "aws_allow_http"}
    with pytest.raises(LakeUnreachable, match="http:// needs the option allow_http"):
        store.listing(Place("s3://lake/t", tuple(plain.items())))


def _names(s3: Store) -> list[str]:
    """The requests since the last call: methods, and names of objects, "list" for a listing."""
    requests, s3.gateway.requests[:] = list(s3.gateway.requests), []
    return [
        "list" if "list-type" in path else f"{method} {path.rpartition('/')[2]}"
        for method, path in requests
    ]


def test_a_log_is_read_on_from_what_is_known_of_it(s3: Store) -> None:
    """By one listing, and the entries since; a commit of this process needs not even that. What
    another writer committed is a conflict, after which the log is looked at.
    """
    table = place(s3, f"known/{uuid4().hex}")
    shape = commit.Shape((("a", DeltaType("long")),), ())
    commit.commit(table, None, Change("WRITE"), {}, shape=shape)
    _names(s3)
    state = log.recent(table)
    assert state is not None
    assert (state.version, _names(s3)) == (0, [])
    file = WrittenFile("part-1.parquet", 5, 2, "{}")
    commit.commit(table, state, Change("WRITE", [file]), {}, reached=Position("p", 7))
    entry = [{"commitInfo": {}}, {"txn": {"appId": "x", "version": 3}}]
    store.put(table, f"_delta_log/{2:020}.json", "\n".join(map(json.dumps, entry)).encode())
    _names(s3)
    stale = log.recent(table)
    assert stale is not None
    assert (stale.version, stale.position("bronze/p"), _names(s3)) == (1, 7, [])
    with pytest.raises(CommitConflict):
        commit.commit(table, stale, Change("WRITE"), {})
    _names(s3)
    state = log.recent(table)
    assert state is not None
    assert _names(s3) == ["list", f"GET {2:020}.json"]
    assert (state.version, state.position("x"), state.position("bronze/p")) == (2, 3, 7)
    assert [stored.path for stored in state.files] == ["part-1.parquet"]
    assert log.read(table) == state
    assert _names(s3) == ["list"]
    remembered.forget()
    assert log.read(table) == state
    assert len(_names(s3)) == 5


def test_a_log_that_was_replaced_is_read_anew(s3: Store) -> None:
    """Another table at the same place is not read on from what the first one had."""
    table = place(s3, f"replaced/{uuid4().hex}")
    for name in ("first", "second"):
        store.delete(table, store.listing(table))
        other = Place(table.url, (*table.options, ("user_agent", name)))
        shape = commit.Shape(((name, DeltaType("long")),), ())
        commit.commit(other, None, Change("WRITE"), {}, shape=shape)
        state = log.read(table)
        assert state is not None
        assert [column for column, _ in state.columns] == [name]
    store.delete(table, store.listing(table))
    assert log.read(table) is None


def test_a_burst_of_errors_is_waited_for(s3: Store) -> None:
    """Also while the client is made."""
    s3.gateway.failures[:] = [503] * 4
    store.put(place(s3, "burst/t"), "x", b"1")
    assert store.get(place(s3, "burst/t"), "x") == b"1"


def test_an_address_of_a_file_is_a_folder(tmp_path: Path) -> None:
    """A lake at ``file://`` is read and written as one without a scheme."""
    table = Place(f"file://{tmp_path}/t")
    store.put(table, "a/x", b"1")
    assert (tmp_path / "t" / "a" / "x").read_bytes() == b"1"
    assert store.listing(table) == ["a/x"]


def test_tables_are_read_side_by_side(s3: Store) -> None:
    """The error of one is that table's; of a table that is not there the state is None."""
    good, missing = place(s3, "side/good"), place(s3, "side/missing")
    wrong = Place("s3n://lake/t")
    metadata = {
        "id": "a", "format": {"provider": "parquet", "options": {}}, "partitionColumns": [],
        "schemaString": '{"type":"struct","fields":[{"name":"a","type":"long","nullable":true,'
        '"metadata":{}}]}',
        "configuration": {},
    }  # fmt: skip
    protocol = {"minReaderVersion": 1, "minWriterVersion": 2}
    log.write(good, 0, [{"protocol": protocol}, {"metaData": metadata}])
    first, second, third = log.reads([good, wrong, missing])
    state = first()
    assert state is not None
    assert state.version == 0
    with pytest.raises(LakeError, match="there is no store for s3n"):
        second()
    assert third() is None


def test_secrets_are_resolved_once_for_many_requests(
    rotating: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for each request, whatever the provider costs."""
    resolved: list[str] = []
    real = secrets.resolve

    def counted(secret: Secret) -> str:
        resolved.append(secret.name)
        return real(secret)

    monkeypatch.setattr(secrets, "resolve", counted)
    for number in range(8):
        store.put(rotating, f"{number}", b"")
    assert len(store.listing(rotating)) == 8
    assert resolved == ["key"]


def test_a_missing_bucket_is_told_by_each_operation(s3: Store) -> None:
    """Nothing takes it for an empty lake, or for a file that is damaged."""
    lost = Place("s3://nowhere/t", tuple(s3.options.items()))
    for attempt in (
        lambda: store.put(lost, "x", b""),
        lambda: store.prove_exclusive(lost),
        lambda: store.listing(lost),
        lambda: store.folders(lost),
        lambda: store.reader(lost, "x"),
        lambda: log.read(lost),
    ):
        with pytest.raises(LakeUnreachable, match="there is no bucket nowhere") as error:
            attempt()
        assert "Create the bucket" in error.value.hint


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "RequestTimeTooSkewed", "the clock of this machine is wrong"),
        (400, "ExpiredToken", "the credentials have expired"),
    ],
)
def test_a_wrong_clock_and_an_expired_token_are_told_as_such(
    s3: Store, status: int, code: str, message: str
) -> None:
    """Not as missing rights."""
    table = place(s3, "clock")
    store.put(table, "x", b"")
    s3.gateway.failures[:], s3.gateway.code = [status] * 9, code
    try:
        with pytest.raises(LakeUnreachable, match=message) as error:
            store.put(table, "y", b"")
    finally:
        s3.gateway.code = ""
    assert error.value.hint
