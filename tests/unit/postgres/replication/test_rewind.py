"""A server that was put back is detected by the transactions that it sends again."""

from __future__ import annotations

import pytest

from bronze.errors import SourceRewound
from bronze.postgres.replication.rewind import KnownTransactions

KNOWN = KnownTransactions(position=200, recorded=50, ends=((120, 30), (180, 40)))


def test_transactions_sent_again_as_recorded_pass() -> None:
    """Nothing is left to check after the last one, also with other transactions in between."""
    past: KnownTransactions | None = KNOWN
    for end, committed in ((100, 29), (120, 30), (150, 50), (180, 40)):
        assert past
        past = past.check_commit(end, committed)
    assert past == KnownTransactions(200, 50)
    past.check_position(500)
    assert past.check_commit(201, 99) is None


@pytest.mark.parametrize(
    ("end", "committed"), [(120, 31), (121, 30), (200, 30), (300, 30), (110, 51)]
)
def test_transactions_that_differ_from_the_recorded_ones_are_detected(
    end: int, committed: int
) -> None:
    """One ends at another position or time, or committed too late for its position."""
    with pytest.raises(SourceRewound):
        KNOWN.check_commit(end, committed)


def test_a_missing_transaction_is_detected() -> None:
    """Once the server reports a later position."""
    KNOWN.check_position(119)
    with pytest.raises(SourceRewound):
        KNOWN.check_position(120)


def test_without_a_record_every_transaction_passes() -> None:
    """As in a new stream."""
    assert KnownTransactions().check_commit(1, 1) is None
    KnownTransactions().check_position(1)
