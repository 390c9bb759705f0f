"""Why a source cannot be streamed."""

from __future__ import annotations

from bronze.cdc import table_sync
from bronze.postgres.replication.prerequisites import MissingPrerequisite


def test_statements_of_a_hint_can_be_pasted() -> None:
    """Several statements are separated, so that psql reads each; a table's are not among them."""
    missing = [
        MissingPrerequisite("It lacks REPLICATION.", 'ALTER ROLE "bronze" REPLICATION'),
        MissingPrerequisite("It has no publication.", 'CREATE PUBLICATION "p"'),
        MissingPrerequisite("It has no key.", "Add one.", "public.a"),
    ]
    error = table_sync.prerequisites_error("shop", missing)
    assert error is not None
    assert error.hint == ('Have this done: ALTER ROLE "bronze" REPLICATION; CREATE PUBLICATION "p"')
    assert table_sync.prerequisites_error("shop", missing[2:]) is None
