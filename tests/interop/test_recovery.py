"""Recovery between clouds: a lake on Azure, its copy on S3, restored, drilled and failed over."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from bronze.api.client import Bronze
from bronze.backup.recovery import takeover
from bronze.delta import store
from bronze.delta.storage import client
from bronze.errors import ConfigError
from bronze.governance import audit_proof
from tests.conftest import Source
from tests.support import object_store
from tests.support.content import differences

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


def test_a_lake_on_azure_is_recovered_from_s3(source: Source, tmp_path: Path) -> None:
    """Restored into another folder of the copy's bucket, which its options reach; drilled, and
    nothing of the drill stays; then the copy itself is the lake.
    """
    command = object_store.azurite()
    if command is None:
        pytest.skip("azurite cannot be had: it needs node and npm")
    source.execute(
        "CREATE TABLE t AS SELECT i AS id, gen_random_uuid()::text || gen_random_uuid() AS mail,"
        " gen_random_uuid()::text AS w FROM generate_series(1, 100000) i"
    )
    client.forget()
    with object_store.azure(tmp_path, command) as azure, object_store.s3() as s3:
        # One process has one imitated S3.
        root = f"{s3.root}/{uuid4().hex}"
        tables = {"t": {"protect": {"mail": "encrypt"}}}
        backup = {"root": f"{root}/copy", "options": s3.options}
        lake = {"root": f"{azure.root}/lake", "options": azure.options}
        opened = Bronze(source.settings(lake=lake, backup=backup, tables=tables))
        assert opened.run().exit_code == 0
        drilled = opened.drill()
        assert (drilled.exit_code, drilled.record.rows) == (0, 100_000)
        assert drilled.record.decrypted == "bronze.bz_t.mail"
        assert opened.config.copy_root
        bucket = opened.config.with_lake_at(f"{root}/").lake_root
        assert set(store.folders(bucket)) == {"copy"}

        result = opened.restore(f"{root}/new")
        assert result.exit_code == 0
        with pytest.raises(ConfigError, match="is not empty"):
            opened.restore(f"{root}/new")
        restored = Bronze(opened.config.with_lake_at(f"{root}/new"))
        assert restored.verify(at_rest=True).exit_code == 0
        assert audit_proof.report(restored.config, verify=True).problems == ()

        takeover.forget()
        after = Bronze(
            source.settings(lake={"root": f"{root}/copy", "options": s3.options}, tables=tables)
        )
        source.execute("DELETE FROM t WHERE id > 99000")
        assert after.run().exit_code == 0
        assert differences(after.config) == {}
        with pytest.raises(ConfigError, match="in use as a lake"):
            opened.backup()
