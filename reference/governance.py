"""docs/reference/governance.md: the columns of every governance table."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from bronze.governance import tables as package
from reference.markdown import code, document, plain, table

_INTRODUCTION = """\
The lake has tables about its own tables: `<root>/governance/<name>`. They are Delta tables like
all others, appended to by every command. Times are UTC. A Bronze table is named as
`schema.bz_table`."""


def modules() -> Iterator[Any]:
    """The modules with the schema of a governance table, by the tables' names."""
    names = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    found = [importlib.import_module(name.name) for name in names]
    yield from sorted((one for one in found if hasattr(one, "NAME")), key=lambda one: str(one.NAME))


def page() -> str:
    """The page."""
    parts = []
    for module in modules():
        about = plain(module.__doc__).partition(": ")[2]
        rows = (
            (code(name), str(kind).replace("<", "&lt;"), module.MEANINGS[name])
            for name, kind in module.COLUMNS
        )
        parts += [
            f"## governance.{module.NAME}",
            about[:1].upper() + about[1:],
            table(("column", "type", "meaning"), rows),
        ]
    return document("Governance tables", _INTRODUCTION, *parts)
