"""A source whose clock is set back: then a cursor column is not trusted."""

from __future__ import annotations

from typing import Any

import pytest

from bronze.postgres.copy import snapshot
from tests.conftest import Source
from tests.integration.ingest.test_patterns import BY_TIME, counts, land, position, settings

TRUE = snapshot._OPEN_TRANSACTIONS
HOUR = 3600 * 10**6


def wrong(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """Sets the source's clock wrong by some hours."""
    query = TRUE.replace("clock_timestamp() AS now", f"clock_timestamp() + '{hours}h' AS now")
    assert hours == 0 or query != TRUE
    monkeypatch.setattr(snapshot, "_OPEN_TRANSACTIONS", query.replace("min(a.xact_start)", "NULL"))


def written(source: Source, number: int, ago: str) -> None:
    """A row that is new by the source's clock of that moment, and another that is changed."""
    source.execute(f"INSERT INTO t VALUES ({number}, 'new', now() - interval '{ago}')")
    source.execute(
        f"UPDATE t SET v = 'seen', at = now() - interval '{ago}' WHERE id = {number % 50}"
    )


@pytest.mark.parametrize(
    "own",
    [
        {},
        pytest.param({"deletes": "ignore"}, marks=pytest.mark.soak),
        pytest.param({"overlap": "1m"}, marks=pytest.mark.soak),
    ],
    ids=str,
)
def test_a_source_clock_that_was_set_back_compares_all_rows(
    source: Source, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any]
) -> None:
    """Once; after that the watermark follows the clock again."""
    source.execute("""
        CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz DEFAULT now());
        INSERT INTO t SELECT i, 'v' || i, '2020-01-01 00:00Z' FROM generate_series(0, 50) i
    """)
    own = {**BY_TIME, **own}
    land(source, own)
    held = position(source, 0)["at"]
    wrong(monkeypatch, -3)
    written(source, 101, "3 hours")
    landed = land(source, own)
    assert counts(landed) == (1, 1, 0)
    assert any("all rows are compared: the source's clock was set back" in n for n in landed.notes)
    assert position(source, landed.version)["at"] < held - 2 * HOUR
    # By now it has gone on, but has not reached the first watermark.
    wrong(monkeypatch, -2)
    written(source, 102, "2 hours")
    landed = land(source, own)
    assert counts(landed) == (1, 1, 0)
    assert not any("compared" in note for note in landed.notes)


def test_a_clock_set_back_past_the_watermark_is_detected(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is compared with the clock of this machine, against which it has lost time."""
    source.execute("""
        CREATE TABLE t (id int PRIMARY KEY, v text, at timestamptz DEFAULT now());
        INSERT INTO t SELECT i, 'v' || i, '2020-01-01 00:00Z' FROM generate_series(0, 50) i
    """)
    land(source, BY_TIME)
    written(source, 101, "10 minutes")
    ours = snapshot._local_clock
    monkeypatch.setattr(snapshot, "_local_clock", lambda: ours() + HOUR)
    landed = land(source, BY_TIME)
    assert counts(landed) == (1, 1, 0)
    assert any("the source's clock was set back" in note for note in landed.notes)
    written(source, 102, "0")
    landed = land(source, BY_TIME)
    assert counts(landed) == (1, 1, 0)
    assert not any("compared" in note for note in landed.notes)
    # A clock of ours that is a little off does not matter.
    monkeypatch.setattr(
        snapshot, "_local_clock", lambda: ours() + HOUR + snapshot.START_MARGIN // 2
    )
    landed = land(source, BY_TIME)
    assert landed.status == "unchanged"
    assert settings(source, BY_TIME)
