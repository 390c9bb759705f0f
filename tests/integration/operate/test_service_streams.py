"""The streams of the service: they follow, pause, come back, and are caught up with by --once."""

from __future__ import annotations

import pytest

from bronze.config.settings import Settings
from bronze.operate.service import watch
from bronze.operate.tables import requests
from tests.conftest import Source
from tests.integration.operate.test_service import config, make
from tests.support.content import differences
from tests.support.serving import serving, until

SLOTS = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_LISTED_EVERY", 0.5)
    monkeypatch.setattr(watch, "_CONTROLS_EVERY", 0.2)


def streamed(source: Source, *names: str) -> Settings:
    """Tables that are streamed, beside one that is loaded."""
    make(source, *names, "batch")
    return config(source, tables={name: {"pattern": "streaming", "sla": "1m"} for name in names})


def test_streamed_tables_are_followed_and_known_to_be_quiet(source: Source) -> None:
    """Their changes land within moments; without changes they stay fresh."""
    settings = streamed(source, "live")
    with serving(settings) as own:
        until(lambda: differences(settings) == {})
        source.execute("UPDATE live SET word = 'changed' WHERE id < 5")
        until(lambda: differences(settings) == {})
        until(lambda: own.service.overview.view.tables)

        def state() -> str:
            tables = {table.table: table for table in own.service.overview.view.tables}
            return tables["public.live"].state

        until(lambda: state() in ("quiet", "fresh"))
        facts = own.service.board.live().streams["test"]
        assert facts.error == ""
        assert facts.heard is not None
        assert facts.as_of is not None
    assert own.code == 0


@pytest.mark.soak
def test_a_paused_table_is_resynced_when_it_comes_back(source: Source) -> None:
    """Its source's stream goes on without it meanwhile."""
    settings = streamed(source, "live", "held")
    with serving(settings) as own:
        board = own.service.board
        until(lambda: differences(settings) == {})
        requests.request(settings, "pause", ["held"], reason="a test")
        until(lambda: board.streams["test"].names == ("test.public.live",))
        source.execute("UPDATE live SET word = 'x'")
        source.execute("UPDATE held SET word = 'x'")
        until(lambda: set(differences(settings)) == {"public.held"})
        requests.request(settings, "resume", ["held"])
        until(lambda: differences(settings) == {})


@pytest.mark.soak
def test_the_slot_of_tables_that_are_all_paused_is_dropped(source: Source) -> None:
    """The server would keep its log for it; the tables are compared when they come back."""
    settings = streamed(source, "live")
    with serving(settings) as own:
        until(lambda: differences(settings) == {})
        assert source.execute(SLOTS) == [(1,)]
        requests.request(settings, "pause", ["live"], reason="a test")
        own.look()
        until(lambda: source.execute(SLOTS) == [(0,)])
        # Nor is what was known of the stream an alert for ever.
        until(lambda: not own.service.board.streams)
        source.execute("DELETE FROM live WHERE id = 3")
        requests.request(settings, "resume", ["live"])
        until(lambda: differences(settings) == {})


def test_once_catches_up_with_streams(source: Source) -> None:
    """It loads what is due, applies what was committed, and ends."""
    settings = streamed(source, "live")
    with serving(settings, once=True) as own:
        pass
    assert own.code == 0
    source.execute("INSERT INTO live VALUES (100, 'new')")
    with serving(settings, once=True) as own:
        pass
    assert own.code == 0
    assert differences(settings) == {}
    assert len(own.landed("public.batch")) == 1


@pytest.mark.soak
def test_a_table_that_is_created_is_kept_too(source: Source) -> None:
    """Without a restart: a new table of the config's selection is loaded."""
    settings = config(source)
    make(source, "first")
    with serving(settings) as own:
        until(lambda: own.landed("public.first"))
        make(source, "second")
        until(lambda: own.landed("public.second"))
