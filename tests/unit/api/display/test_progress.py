"""Progress in a notebook, and lines of the log."""

from __future__ import annotations

import ast
import re

import pytest

from bronze.api.display import progress
from bronze.api.display.log_lines import LOG
from bronze.model.events import RunPlanned, TableFailed, TableLanded, TableProgress
from bronze.model.results import Failure, TableResult


def test_a_notebook_shows_a_line_for_each_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """First what is done before the first table, then a line with the total, and one for each
    table, which is replaced as it goes on; texts cannot become HTML.
    """
    # It takes long to load.
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    InteractiveShell.instance()
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    with capture_output() as shown, progress.shown_in_notebook(None) as show:
        notify = show.notify
        show.planned(RunPlanned("b", ("public.a", "public.<b>"), 30))
        notify(TableProgress("public.a", 10, 0.5))
        notify(TableLanded(TableResult("public.a", "bronze.bz_a", "landed", rows_read=20)))
        notify(TableFailed("public.<b>", Failure("SourceError", "No.", "")))
    pages = [one.data["text/html"] for one in shown.outputs]
    assert pages[0] == "Connecting and planning …"
    assert pages[1].startswith("Loading tables: 0 of 2 done")
    total, *lines = pages[-1].split("<br>")
    assert total.startswith("Loading tables: 2 of 2 done, 1 landed, 1 failed")
    assert lines == ["public.a: landed, 20 rows read", "public.&lt;b&gt;: failed: No."]


def test_no_progress_is_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Outside of a notebook a call shows nothing, and a caller's own function is called."""
    assert not progress.in_notebook()
    event = TableProgress("public.a", 10, 0.5)
    with progress.shown_in_notebook(None) as show:
        show.notify(event)
    events: list[object] = []
    with progress.shown_in_notebook(events.append) as show:
        show.notify(event)
    assert events == [event]
    assert capsys.readouterr() == ("", "")


def test_a_value_in_a_line_of_the_log_cannot_pass_for_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Values with a blank, an equals sign, a quote or a line break are quoted, with escapes for
    what is not printable; other values are not.
    """
    ambiguous = ["public.t x=1 rows=0", "a=b", "qu\"o'te", "one\ntwo", "a\tb", "x\u2028y", "\x85"]
    plain = ["public.t", "é", "2024-01-01T00:00:00", "\x1b[31m"]
    for value in ambiguous:
        LOG.error("failed", error=value, rows=5, table="public.t")
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        quoted = re.fullmatch(r".*Z error failed table=public.t error=(.*) rows=5\n", line)
        assert quoted is not None
        assert quoted[1] != value
        assert ast.literal_eval(quoted[1]) == value
    for value in plain:
        LOG.info("landed", table=value)
        assert f" table={value}\n".replace("\x1b", "\\x1b") in capsys.readouterr().err
