"""What protection and erasure say of a table whose properties another writer has altered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from deltalake import DeltaTable

from bronze.config.settings import Settings
from bronze.delta import properties
from bronze.errors import LakeError
from bronze.ingest import pipeline
from bronze.protection import erasure, keys, reveal
from tests.conftest import Source

KEY = {"code": "234567"}


def forget(settings: Settings, table: str) -> object:
    """Erases a row."""
    return erasure.forget(settings, table, KEY)


def show(settings: Settings, table: str) -> object:
    """Reveals a row."""
    return reveal.reveal(settings, table, key=KEY)


def rotate(settings: Settings, table: str) -> object:
    """Makes new keys."""
    return keys.rotate(settings, [f"bronze.bz_{table}"], reencrypt=True)


# A property, what it is altered to, and what reads it.
ALTERED: list[tuple[str, str, list[Callable[[Settings, str], object]]]] = [
    (properties.KEY, "7", [forget, show]),
    (properties.KEYED, "{}", [forget, show]),
    (properties.NUMBERS, "[]", [forget, show]),
    (properties.NUMBERS, '{"code": "x"}', [forget, show]),
    (properties.FORMER, "7", [forget, show]),
    (properties.FORMER, '{"code": 7}', [forget, show]),
    (properties.PROTECT, "[1]", [forget, show, rotate]),
    (properties.OID, "x", [forget]),
    (properties.KEY_IDS, "[]", [forget, show]),
    (properties.KEY_IDS, "x", [forget, show]),
]


@pytest.mark.soak
def test_altered_properties_are_named_in_a_sentence(source: Source) -> None:
    """No property that cannot be read ends in a traceback, and nothing is done to its table; a run
    fails that table alone.
    """
    names = [f"t{number}" for number in range(len(ALTERED))]
    rule = {"protect": {"code": {"method": "tokenize", "format": True}}}
    for name in (*names, "whole"):
        source.execute(f"CREATE TABLE {name} (code text, day date, PRIMARY KEY (code, day))")
        source.execute(f"INSERT INTO {name} VALUES ('234567', 'infinity'), ('345678', now())")
    settings = source.settings(tables=dict.fromkeys((*names, "whole"), rule))
    assert pipeline.run(settings).exit_code == 0
    assert show(settings, "whole") is not None
    for name in names:
        source.execute(f"DELETE FROM {name} WHERE code = '234567'")
    for name, (altered, text, commands) in zip(names, ALTERED, strict=True):
        table = DeltaTable(str(source.table(name)))
        table.alter.set_table_properties({altered: text}, raise_if_not_exists=False)
        version = DeltaTable(str(source.table(name))).version()
        for command in commands:
            message = f"property {altered} of the Bronze table cannot be read"
            with pytest.raises(LakeError, match=message):
                command(settings, name)
        assert DeltaTable(str(source.table(name))).version() == version
    errors = {one.table.removeprefix("public."): one.error for one in pipeline.run(settings).tables}
    assert errors["whole"] is None
    for name, (altered, text, _) in zip(names, ALTERED, strict=True):
        error = errors[name]
        if altered == properties.KEY_IDS:
            assert error is not None, text
            assert altered in error.message
