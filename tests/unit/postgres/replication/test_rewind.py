"""The past of a stream: what the server tells again is what it was, or it is another server."""

from __future__ import annotations

import pytest

from bronze.errors import SourceRewound
from bronze.postgres.replication.rewind import Past

KNOWN = Past(position=200, recorded=50, ends=((120, 30), (180, 40)))


def test_resent_transactions_that_match_are_accepted() -> None:
    """The past is empty once all known transactions came again, with others in between."""
    past: Past | None = KNOWN
    for end, committed in ((100, 29), (120, 30), (150, 50), (180, 40)):
        assert past
        past = past.told(end, committed)
    assert past == Past(200, 50)
    past.passed(500)
    assert past.told(201, 99) is None


@pytest.mark.parametrize(
    ("end", "committed"), [(120, 31), (121, 30), (200, 30), (300, 30), (110, 51)]
)
def test_a_different_past_raises_an_error(end: int, committed: int) -> None:
    """A known transaction ends elsewhere or at another time, or one is too late for its place."""
    with pytest.raises(SourceRewound):
        KNOWN.told(end, committed)


def test_a_missing_transaction_raises_an_error() -> None:
    """The error is raised once the server reports a later position."""
    KNOWN.passed(119)
    with pytest.raises(SourceRewound):
        KNOWN.passed(120)


def test_an_empty_past_accepts_every_transaction() -> None:
    """A stream without known transactions expects none again."""
    assert Past().told(1, 1) is None
    Past().passed(1)
