"""The page of a report: complete in itself, escaped, accessible and bounded."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bronze.errors import ConfigError
from bronze.operate.report import page
from bronze.operate.view import View
from tests.support import reports, views

NOW = datetime(2026, 11, 28, 4, 0, tzinfo=UTC)
HOSTILE = "<script>alert(\"x\")</script>' onload='x\u202e"


class _Tags(HTMLParser):
    """Collects the tags of a page, and those that are open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs


def test_the_page_needs_nothing_but_itself() -> None:
    """It has no script, no style attribute, and no address but those of itself."""
    text = page.html(reports.material(views.night(NOW)))
    tags = _Tags(text)
    assert "script" not in tags.names
    for name, value in tags.attributes:
        assert not name.startswith("on")
        assert name != "style"
        if name in ("href", "src"):
            assert value is not None
            assert value.startswith(("#", "data:"))
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_names_from_outside_are_text() -> None:
    """A name with tags, quotes or characters that turn text around is shown, never obeyed."""
    night = views.night(NOW)
    tables = tuple(replace(table, table=HOSTILE, why=HOSTILE) for table in night.tables)
    view = replace(night, tables=tables, sentence=HOSTILE)
    more = {"figures": [("b", NOW, tables[0].target, HOSTILE, "expression", HOSTILE, "high", 9, 9,
                         1.0, 0.0, False)]}  # fmt: skip
    text = page.html(reports.material(view, more=more))
    tags = _Tags(text)
    assert "script" not in tags.names
    assert not any(name.startswith("on") for name, _ in tags.attributes)
    assert "\u202e" not in text
    assert "\\u202e" in text


def test_each_picture_has_a_text_and_a_table() -> None:
    """Each picture says what it shows, and each chart has its figures in a table below it."""
    text = page.html(reports.material(views.night(NOW)))
    for svg in re.findall(r"<svg[^>]*>", text):
        assert 'role="img" aria-label="' in svg or 'aria-hidden="true"' in svg
    for figure in re.findall(r"<figure.*?</figure>", text, re.DOTALL):
        assert "<table" in figure
    assert text.count("<h1") == 1


@pytest.mark.soak
def test_a_thousand_tables_fit_into_a_megabyte() -> None:
    """Of many tables those that matter are listed, and the page says how many are left out."""
    text = page.html(reports.material(views.well(NOW, count=1_000), days=2))
    assert len(text.encode()) < 1_000_000
    assert "Left out: 940 more tables, which have more time left." in text
    assert "Left out: 960 more tables" in text


def test_an_empty_lake_is_a_sentence() -> None:
    """Without tables and records each section is a sentence, and there is no chart."""
    view = View(NOW, "No service has run. No table is known.", (), (), (), None, False)
    text = page.html(reports.material(view))
    assert "<h1>No service has run. No table is known.</h1>" in text
    assert "No table has landed yet" in text
    assert "<svg" not in text


def test_one_batch_is_not_a_chart() -> None:
    """A chart of one column says nothing: the sentence has its figure."""
    view = View(NOW, "All is well.", (), (), (), None, False)
    one = {"landings": [("bronze.bz_t", NOW - timedelta(hours=1), "b", 5, 1, 0)]}
    text = page.html(reports.material(view, more=one))
    assert "6 rows landed in 1 batch: 5 inserted, 1 updated, 0 deleted." in text
    assert "<figure" not in text


def test_an_earlier_report_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    """So that a slip of -o costs no file; nothing else is left in the folder."""
    text = page.html(reports.material(views.night(NOW)))
    path = tmp_path / "report.html"
    page.write(path, text)
    page.write(path, text.replace("tests.orders", "tests.others"))
    assert "tests.others" in path.read_text()
    config = tmp_path / "bronze.toml"
    config.write_text("[source]")
    with pytest.raises(ConfigError, match="is not a report"):
        page.write(config, text)
    assert config.read_text() == "[source]"
    with pytest.raises(ConfigError, match="cannot be written"):
        page.write(tmp_path / "absent" / "report.html", text)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bronze.toml", "report.html"]
