"""The generated pages of docs/: they are as the code says now, and whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bronze.cli.explanations import explanations
from bronze.model.results import EXIT_CODES
from reference import errors, governance, index, types
from reference.pages import pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = pages(ROOT)
INDEX = "docs/llms.txt"
LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")


@pytest.mark.parametrize("name", sorted({*PAGES} - {INDEX}))
def test_a_page_is_current(name: str) -> None:
    """It is what ``python -m reference`` would write."""
    written = (ROOT / name).read_text("utf-8") if (ROOT / name).exists() else ""
    assert written == PAGES[name], "run python -m reference"


def test_the_index_has_every_page_and_no_dead_link() -> None:
    """What it says of each may be older than the page."""
    written = (ROOT / INDEX).read_text("utf-8")
    assert sorted(LINK.findall(written)) == sorted(LINK.findall(PAGES[INDEX])), (
        "run python -m reference"
    )
    assert all((DOCS / link).exists() for link in LINK.findall(written))


@pytest.mark.parametrize("name", sorted({*PAGES} - {INDEX}))
def test_links_of_generated_pages_lead_somewhere(name: str) -> None:
    """To a file, and in it to a heading."""
    for link in LINK.findall(PAGES[name]):
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert f"\n## {anchor}\n" in target.read_text("utf-8"), link


def test_every_column_of_a_governance_table_has_a_meaning() -> None:
    """Of all tables, in the order of the columns."""
    found = [*governance.modules()]
    assert len(found) == 13
    for module in found:
        assert [*module.MEANINGS] == [name for name, _ in module.COLUMNS], module.NAME
        assert all(text.endswith((".", "…")) for text in module.MEANINGS.values()), module.NAME


def test_every_exit_code_has_a_meaning() -> None:
    """Those of errors, and those of commands."""
    codes = {one.exit_code for one in explanations().values()} | {*EXIT_CODES.values()}
    assert codes <= {*errors.EXIT_CODES}


def test_the_page_of_types_says_what_is_rejected() -> None:
    """Of the types that Delta holds in part."""
    rows = {line.split("|")[1].strip(): line for line in types.page().splitlines() if "|" in line}
    assert "NaN" in rows["`numeric(12,2)`"]
    assert "infinite" in rows["`timestamptz`"]
    assert rows["`int4`"].split("|")[4].strip() == ""


def test_the_first_sentence_of_a_page() -> None:
    """Of its first paragraph that is text, without links."""
    text = "# A\n\n    code: x\n\n```toml\na = 1\n```\n\nIt has [links](b.md). And more.\n"
    assert index.first_sentence(text) == "It has links."
    assert index.first_sentence("# A\n") == ""
