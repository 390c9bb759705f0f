"""A process of bronze that looks sooner than bronze does: ``python -m tests.soak.checker.driver``.

It imports all that it needs, and waits for a line of JSON on stdin: the ``arguments`` of the
command line, and a ``failpoint`` to die at ("": none). Only times are other ones than bronze's:
what is seen within a minute there has to be seen within a second here.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

SOONER: dict[str, dict[str, Any]] = {
    "bronze.cdc.apply_loop": {
        "_SLOT_INTERVAL": 0.3,
        "_CATALOG_INTERVAL": 0.6,
        "_FIGURES_INTERVAL": 5.0,
        "_LINEAGE_INTERVAL": 20.0,
        "_LONGEST_PAUSE": 1.0,
    },
    "bronze.cdc.resync": {"_FIRST_PAUSE": 0.5, "_LONGEST_PAUSE": 1.0},
    "bronze.cdc.stream": {"_LONGEST_PAUSE": 1.0, "_LEAVING": 3.0},
    "bronze.maintenance.background": {"_INTERVAL": 0.5},
    "bronze.delta.layout.file_groups": {"_MANY": 4, "_FEWEST": 2},
}
"""The constants that are set, by module."""


def hurry(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Sets the constants, by ``put``.

    Raises:
        AttributeError: there is no such constant any more.
    """
    for name, constants in SOONER.items():
        module = importlib.import_module(name)
        for constant, value in constants.items():
            getattr(module, constant)
            put(module, constant, value)


def main() -> None:
    """Waits for its order, and is the command line then."""
    from bronze import failpoint
    from bronze.cli import main as cli

    hurry()
    order = json.loads(sys.stdin.readline() or "{}")
    if not order:
        return
    point, _, times = order["failpoint"].partition(":")
    if point:
        failpoint._remaining[point] = int(times or 1)
    sys.argv = ["bronze", *order["arguments"]]
    cli.main()


if __name__ == "__main__":
    main()
