"""The past of a stream: what the server tells again is what it was, or it is another server."""

from __future__ import annotations

import pytest

from bronze.errors import SourceRewound
from bronze.postgres.replication.rewind import Past

KNOWN = Past(position=200, recorded=50, ends=((120, 30), (180, 40)))


def test_what_is_told_again_as_it_was() -> None:
    """Nothing is left to be told once all of it was told, whatever else comes between."""
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
def test_another_past_is_noticed(end: int, committed: int) -> None:
    """A known transaction ends elsewhere or at another time, or one is too late for its place."""
    with pytest.raises(SourceRewound):
        KNOWN.told(end, committed)


def test_a_transaction_that_is_not_told() -> None:
    """It is noticed once the server says that it is further on."""
    KNOWN.passed(119)
    with pytest.raises(SourceRewound):
        KNOWN.passed(120)


def test_no_past_takes_everything() -> None:
    """A stream that nothing is known of has nothing to be told."""
    assert Past().told(1, 1) is None
    Past().passed(1)
