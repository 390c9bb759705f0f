"""What makes a lake untrustworthy is found: each fault by itself, and nothing where all is well."""

from __future__ import annotations

import base64
import os
import shutil

import pytest

import bronze
from bronze.config.sections.protection import MASTER_KEY
from bronze.operate.doctor import trust
from tests.conftest import Source


def test_each_fault_is_found(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit log that was put back, a master key that is not there or another one, columns that
    look personal; once it is mended, it is found no more.
    """
    source.execute("CREATE TABLE people (id int PRIMARY KEY, email text)")
    source.execute("INSERT INTO people VALUES (1, 'ada@example.com')")
    settings = source.settings()
    protected = source.settings(tables={"people": {"protect": {"email": "encrypt"}}})
    ((key, text),) = trust.source_faults(settings, "test").items()
    assert key == ("personal_data", "test.public.people")
    assert "email" in text
    assert "ada" not in text
    assert trust.source_faults(protected, "test") == {}
    bronze.Bronze(protected).run()
    assert trust.lake_faults(protected) == {}

    right = os.environ[MASTER_KEY]
    monkeypatch.delenv(MASTER_KEY)
    assert set(trust.lake_faults(protected)) == {("keys_missing", "service")}
    monkeypatch.setenv(MASTER_KEY, base64.b64encode(os.urandom(32)).decode())
    assert "does not name" in trust.lake_faults(protected)["keys_missing", "service"]
    monkeypatch.setenv(MASTER_KEY, right)

    log = source.lake / "governance" / "audit_log"
    log.rename(log.with_name("away"))
    assert set(trust.lake_faults(protected)) == {("audit_broken", "service")}
    shutil.move(log.with_name("away"), log)
    data, *_ = log.glob("*.parquet")
    data.write_bytes(data.read_bytes()[:-40] + b"0" * 40)
    assert set(trust.lake_faults(protected)) == {("audit_broken", "service")}
