"""``python -m reference`` writes the generated pages; ``--check`` names those that are not current,
and exits with 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reference.pages import outdated, pages

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Writes or checks the pages."""
    if "--check" in sys.argv[1:]:
        names = outdated(ROOT)
        if names:
            print(f"Not current: {', '.join(names)}. `python -m reference` writes them.")
        return 1 if names else 0
    for name, text in pages(ROOT).items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"Wrote {name}")
    return 0


sys.exit(main())
