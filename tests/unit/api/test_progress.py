"""Progress in a notebook."""

from __future__ import annotations

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from bronze.api import progress
from bronze.model.events import TableFailed, TableLanded, TableProgress
from bronze.model.results import Failure, TableResult


def test_a_notebook_shows_a_line_for_each_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line of a table is replaced as it goes on; texts cannot become HTML."""
    InteractiveShell.instance()
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    with capture_output() as shown, progress.shown_in_notebook(None) as notify:
        notify(TableProgress("public.a", 10, 0.5))
        notify(TableLanded(TableResult("public.a", "bronze.bz_a", "landed", rows_read=20)))
        notify(TableFailed("public.<b>", Failure("SourceError", "No.", "")))
    pages = [one.data["text/html"] for one in shown.outputs]
    assert pages[1] == "public.a: 50%, 10 rows"
    assert pages[-1] == ("public.a: landed, 20 rows read<br>public.&lt;b&gt;: failed: No.")


def test_no_progress_is_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside of a notebook a call shows nothing, and a caller's own function is called."""
    assert not progress.in_notebook()
    event = TableProgress("public.a", 10, 0.5)
    with progress.shown_in_notebook(None) as notify:
        notify(event)
    events: list[object] = []
    with progress.shown_in_notebook(events.append) as notify:
        notify(event)
    assert events == [event]
    assert capsys.readouterr() == ("", "")
