"""Tables that are found in the lake by their names, whatever is the matter with one of them."""

from __future__ import annotations

import pytest

from bronze.errors import ConfigError
from bronze.ingest import pipeline
from bronze.maintenance import maintain
from bronze.verify import verify as verifying
from tests.conftest import Source


def test_a_log_that_cannot_be_read_stops_no_other_table(source: Source) -> None:
    """Maintenance and the proof at rest do what they can, and fail that table alone."""
    source.execute('CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE "x.y" (id int PRIMARY KEY)')
    source.execute("CREATE TABLE b (id int PRIMARY KEY)")
    settings = source.settings()
    assert pipeline.run(settings).exit_code == 0
    (source.lake / "bronze" / "notes").mkdir()
    min((source.table("b") / "_delta_log").glob("*.json")).write_text("{}")
    done = maintain.maintain(settings)
    failed = {one.target: one.error.kind for one in done.tables if one.error}
    assert failed == {"bronze.bz_b": "LakeError"}
    assert {"bronze.bz_a", "bronze.bz_x_y", "governance.audit_log"} <= {
        one.target for one in done.tables
    }
    assert done.exit_code == 1
    proof = verifying.verify(settings, at_rest=True)
    assert {one.target: one.status for one in proof.tables} == {
        "bronze.bz_a": "equal",
        "bronze.bz_b": "failed",
        "bronze.bz_x_y": "equal",
    }
    for name in ("bz_a", "public.a", "a", "x.y", "public.x.y"):
        wanted = "bronze.bz_a" if name.endswith("a") else "bronze.bz_x_y"
        assert [one.target for one in maintain.maintain(settings, [name]).tables] == [wanted]
        found = verifying.verify(settings, [name], at_rest=True).tables
        assert [one.target for one in found] == [wanted]
    for name in ("nothing", "notes", ""):
        with pytest.raises(ConfigError, match="There is no Bronze table"):
            maintain.maintain(settings, [name])
        with pytest.raises(ConfigError, match="There is no Bronze table"):
            verifying.verify(settings, [name], at_rest=True)
