"""Lakes on S3, Azure and Google with credentials of Unity Catalog that live a few seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from bronze import secrets
from bronze.api.client import Bronze
from bronze.delta.storage import client
from bronze.errors import LakeError
from bronze.secrets import vended
from tests.conftest import Source
from tests.support import object_store
from tests.support.content import differences
from tests.support.object_store import Store
from tests.support.streams import caught_up
from tests.support.unity_server import Unity, unity

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

LIFE = 4.0


@pytest.fixture(scope="module", params=["s3", "azure", "google"])
def lake(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store behind a gateway."""
    if request.param == "azure":
        command = object_store.azurite()
        if command is None:
            pytest.skip("azurite cannot be had: it needs node and npm")
        opened = object_store.azure(tmp_path_factory.mktemp("azurite"), command)
    else:
        opened = getattr(object_store, request.param)()
    with opened as running:
        yield running


@pytest.fixture
def catalog(lake: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unity]:
    """A workspace whose credentials are the only ones that the store takes: azurite checks them by
    itself, the gateway those of the others.
    """
    for module in (client, secrets, vended):
        module.forget()
    monkeypatch.setenv("TOKEN", "bronze-token")
    with unity() as running:
        running.prepare(lake.root)
        running.vendor.life = LIFE
        running.vendor.sign["azure"] = lambda _url, _operation, ends: {
            "azure_user_delegation_sas": {"sas_token": object_store.shared_access(ends)}
        }

        def refuse(headers: Any) -> bool:
            bearer = str(headers.get("Authorization", "")).removeprefix("Bearer ")
            return not running.vendor.accepts(headers.get("X-Amz-Security-Token") or bearer)

        if not lake.root.startswith("abfss"):
            lake.gateway.refuse = refuse
        yield running
    lake.gateway.refuse = lambda _: False


def test_a_run_and_a_stream_go_on_across_renewals(
    lake: Store, catalog: Unity, source: Source, record_property: Any
) -> None:
    """What they land equals the source, at rest too."""
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text);"
        "CREATE TABLE s (id int PRIMARY KEY, v text);"
        "INSERT INTO t SELECT i, repeat('v', 99) FROM generate_series(1, 20000) i;"
        "INSERT INTO s SELECT i, repeat('v', 9) FROM generate_series(1, 1000) i;"
    )
    root = f"{lake.root}/vended"
    options = {
        name: value
        for name, value in lake.options.items()
        if not any(part in name for part in ("_key", "signature"))
    }
    settings = source.settings(
        lake={"root": root, "storage": "vended", "options": options},
        catalog={"host": catalog.url, "name": "workspace", "auth": {"token": {"secret": "TOKEN"}}},
        tables={"s": {"pattern": "streaming"}},
    )
    bronze = Bronze(settings)
    deadline = time.monotonic() + 120
    number = 0
    while len(catalog.vendor.vended) < 5:
        assert time.monotonic() < deadline
        number += 1
        source.execute(f"UPDATE t SET v = '{number}' WHERE id % 100 = {number % 100}")
        source.execute(f"INSERT INTO s VALUES ({1000 + number}, 'new')")
        assert bronze.run(tables=["t"]).exit_code == 0
        caught_up(settings)
    caught_up(settings)
    record_property("renewals", len(catalog.vendor.vended))
    assert bronze.maintain().exit_code == 0
    assert bronze.verify().exit_code == 0
    assert bronze.verify(at_rest=True).exit_code == 0
    assert bronze.audit(verify=True).exit_code == 0
    if lake.root.startswith("gs:"):
        with pytest.raises(LakeError, match="vended credentials cannot be read as a frame"):
            bronze.table("t")
    else:
        assert bronze.table("t").collect().height == 20000
    # Read independently, by the keys of the store.
    lake.gateway.refuse = lambda _: False
    direct = source.settings(lake={"root": root, "options": lake.options})
    assert differences(direct) == {}
    assert set(catalog.vendor.vended) == {(root, "PATH_READ_WRITE")}
