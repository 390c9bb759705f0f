"""The Markdown of runbooks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bronze.operate.web.markup.markdown import render
from tests.support.browsing import problems_of

_TEXT = """# Outage

Answer within **10 minutes**; `bronze doctor` says
why.

## table_failed

1. Look:

   ```
   bronze status <table>
   ```
2. Wait
   - a *little*
   - more, see [quality](quality.md#failed-records) or [there](https://evil.example)

| Kind | Level |
|------|-------|
| `a`  | b < c |
"""


def test_the_runbooks_parts_are_rendered() -> None:
    """Headings with the anchors of alerts, lists in lists, code, tables, links within."""
    page = render(_TEXT)
    for part in (
        "<h1",
        '<h2 id="table-failed">table_failed</h2>',
        "<strong>10 minutes</strong>",
        "<code>bronze doctor</code> says why.</p>",
        "<pre><code>bronze status &lt;table&gt;\n</code></pre>",
        "<ol><li>Look:<pre>",
        "<li>Wait<ul><li>a <em>little</em></li>",
        '<a href="/runbooks?name=quality#failed-records">quality</a>',
        "there (<code>https://evil.example</code>)",
        "<td>b &lt; c</td>",
    ):
        assert part in page
    assert problems_of(page) == []


@given(st.text(alphabet="#*`-1.| \n[]()<a>&\"'xy", max_size=200))
def test_any_text_is_safe_html(text: str) -> None:
    """Whatever it is: tags are closed, and those of the text are text."""
    page = render(text)
    assert not [problem for problem in problems_of(page) if "twice" not in problem]
    assert "<a>" not in page
    assert "<x" not in page
