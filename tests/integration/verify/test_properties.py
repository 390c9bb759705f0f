"""Table properties of Bronze tables that another writer has made unreadable."""

from __future__ import annotations

import pytest
from deltalake import DeltaTable

from bronze.delta import properties
from bronze.ingest import pipeline
from bronze.verify import verify as verifying
from tests.conftest import Source

READ = {
    properties.BASE: ["", "many"],
    properties.KEY: ["", "7", '{"id": 1}', "[1]"],
    properties.LAYOUT: ["", "{}", "[]", '{"fields": [1]}'],
    properties.NUMBERS: ["[]", "x"],
    properties.OID: ["", "x"],
    properties.DEFINITION: ["", "[]", "x"],
    properties.ENFORCED: ["", "x"],
    properties.PROTECT: ["", "[]", '{"v": 1}', '{"v": {"protect": {"x": 1}, "kind": "{}"}}'],
    properties.THRESHOLDS: ["", "{}", '["a"]'],
    properties.WIDENED: ["", "7", "[7]", '[{"v": 7}]', '[{"v": ["none", 0, 0]}]'],
    properties.FORMER: ["", "[]"],
}


@pytest.mark.soak
def test_unreadable_properties_fail_their_table_alone(source: Source) -> None:
    """Other tables are verified and loaded, and the error names the property."""
    names = {f"t{i}": pair for i, pair in enumerate((p, v) for p in READ for v in READ[p])}
    for name in (*names, "whole"):
        source.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, v text)")
        source.execute(f"INSERT INTO {name} VALUES (1, 'a'), (2, 'b')")
    settings = source.settings()
    assert pipeline.run(settings).exit_code == 0
    for name, (held, text) in names.items():
        table = DeltaTable(str(source.table(name)))
        table.alter.set_table_properties({held: text}, raise_if_not_exists=False)
    for how in ({"at_rest": True}, {}):
        result = verifying.verify(settings, **how)  # type: ignore[arg-type]
        found = {one.target.removeprefix("bronze.bz_"): one for one in result.tables}
        assert found["whole"].status == "equal"
        for name, (held, text) in names.items():
            error = found[name].error
            if error:
                assert held in error.message, (how, held, text, error)
                assert (error.kind, found[name].status) == ("LakeError", "failed")
    for one in pipeline.run(settings).tables:
        pair = names.get(one.target.removeprefix("bronze.bz_"))
        assert pair or not one.error
        assert not one.error or (pair and pair[0] in one.error.message), (pair, one.error)
