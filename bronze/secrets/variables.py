"""Environment variables in texts of bronze.toml: ``${NAME}``; ``$${NAME}`` is the text itself."""

from __future__ import annotations

import os
import re

_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def expand(text: str) -> str:
    """A text with the values of the variables that it names.

    Raises:
        KeyError: one of them is not set; its argument is the name.
    """

    def value_of(found: re.Match[str]) -> str:
        return f"${{{found[2]}}}" if found[1] else os.environ[found[2]]

    return _VARIABLE.sub(value_of, text)
