"""HTML that cannot be left unescaped."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from bronze.operate.web.markup.tags import Safe, join, tag, text, url
from bronze.printable import visible


class _Parsed(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(), st.text())
def test_any_text_stays_text(content: str, value: str) -> None:
    """As content and as an attribute it is read back as it was, with escapes for what cannot be
    seen, and makes no tag.
    """
    parsed = _Parsed(tag("p", content, [tag("b", value)], title=value))
    assert parsed.tags == [("p", {"title": visible(value)}), ("b", {})]
    assert parsed.text == visible(content) + visible(value)


def test_tags_joined_to_texts_are_texts() -> None:
    """A string that was made from a tag by other means is escaped again: nothing is trusted by
    mistake.
    """
    assert tag("p", tag("b") + "<i>") == "<p>&lt;b&gt;&lt;/b&gt;&lt;i&gt;</p>"
    assert tag("p", f"{tag('b')}") == "<p>&lt;b&gt;&lt;/b&gt;</p>"
    assert isinstance(text("a"), Safe)


def test_nothing_is_written_for_nothing() -> None:
    """None and False are neither content nor attributes; True is an attribute alone; 0 is 0."""
    assert tag("p", None, False, 0, [None], class_=None, hidden=True, id=False) == "<p hidden>0</p>"
    assert tag("input", data_live="x", for_="y") == '<input data-live="x" for="y">'
    assert join(["a", None, "<"]) == "a&lt;"


@given(st.dictionaries(st.text(), st.text()))
def test_any_query_is_a_url(query: dict[str, str]) -> None:
    """Also one whose names are those of parameters."""
    assert url("/", **{**query, "path": "a b&c"}).startswith("/?")
    assert url("/", name="", page=None) == "/"
