"""The site of the documentation: its links lead somewhere, and it asks no other host."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOADED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?(https?://[^\"' >]+)")

pytestmark = pytest.mark.docs


def test_the_site_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """No script, font, picture or style of its pages; links to other places are allowed."""
    pytest.importorskip("material")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    pages = [*tmp_path.rglob("*.html")]
    assert len(pages) > 30
    for page in pages:
        assert not LOADED.findall(page.read_text(encoding="utf-8")), page
