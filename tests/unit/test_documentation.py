"""README.md is short, and the links of it and of the other pages at the top lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_readme_is_a_page() -> None:
    """It has at most 200 lines, and its two commands are on the first screen."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    first = [line for line in lines[:24] if line.startswith("    python3 -m venv .venv")]
    assert [line.rpartition(" ")[2] for line in first] == ["demo", "tests"]


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(page: str) -> None:
    """Links below docs/ are checked as the site is built; these pages are not in it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        assert link.startswith("https://") or (ROOT / link).exists(), link
