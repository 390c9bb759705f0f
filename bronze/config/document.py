"""The document bronze.toml: its values, with those of the environment, and where each of them is.

A text may name environment variables (``${NAME}``), and a variable ``BRONZE_SECTION__KEY`` replaces
the value of a key.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bronze.config.fields import is_secret_option
from bronze.errors import ConfigError
from bronze.secrets import variables

Keys = tuple[str, ...]

_PREFIX = "BRONZE_"
_KEY = r"(?:[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')"
_KEYS = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_KEYS})\s*\]")
_PAIR = re.compile(rf"\s*({_KEYS})\s*=")
_PART = re.compile(_KEY)
# Keys whose values are secrets: what a variable has for them is read from it where it is used.
_SECRETS = {
    ("source", "dsn"),
    ("source", "password"),
    ("protection", "key"),
    ("audit", "key"),
    ("lineage", "api_key"),
    ("web", "operator"),
    ("web", "viewer"),
}


@dataclass(frozen=True)
class Document:
    """The values of a config, and the places that errors name: lines of its text, by their keys,
    and variables.
    """

    values: Mapping[str, Any]
    lines: Mapping[Keys, int] = field(default_factory=dict)
    variables: Mapping[Keys, str] = field(default_factory=dict)

    def place_of(self, path: Sequence[str]) -> str:
        """Where a key is, or else the section that it is in; "" if that is not known."""
        keys = tuple(path)
        for length in range(len(keys), 0, -1):
            part = keys[:length]
            if part in self.variables:
                return self.variables[part]
            if part in self.lines:
                return f"line {self.lines[part]}"
        return ""


def read(text: str) -> Document:
    """The document of a text, with what the environment says.

    Raises:
        tomllib.TOMLDecodeError: it is not TOML.
        ConfigError: it names a variable that is not set.
    """
    values = {key: _expanded(value, (key,)) for key, value in tomllib.loads(text).items()}
    named = {}
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and "__" in name:
            named[_replace(values, name)] = name
    return Document(values, _lines(text), named)


def _expanded(value: Any, path: Keys) -> Any:
    if isinstance(value, str):
        try:
            return variables.expand(value)
        except KeyError as error:
            raise ConfigError(
                f"{'.'.join(path)} names the environment variable {error.args[0]}, which is not"
                " set.",
                hint=f"Set it; `$${{{error.args[0]}}}` is the text itself.",
            ) from None
    if isinstance(value, dict):
        return {key: _expanded(inner, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expanded(inner, path) for inner in value]
    return value


def _replace(values: dict[str, Any], name: str) -> Keys:
    """Replaces the value of the key that a variable names, and returns the key's path."""
    section: dict[str, Any] = values
    path: list[str] = []
    *parents, last = name.removeprefix(_PREFIX).split("__")
    for part in parents:
        key = _spelling(section, part)
        inner = section.get(key)
        section[key] = dict(inner) if isinstance(inner, dict) else {}
        section = section[key]
        path.append(key)
    key = _spelling(section, last)
    path.append(key)
    section[key] = {"secret": name, "provider": "env"} if _is_secret(path) else _value_of(name)
    return tuple(path)


def _spelling(section: Mapping[str, Any], part: str) -> str:
    """The key of a section that a part of a variable's name means, whatever its case."""
    lower = part.lower()
    return next((key for key in section if key.lower() == lower), lower)


def _is_secret(path: Sequence[str]) -> bool:
    is_option = list(path[:2]) == ["lake", "options"] and is_secret_option(path[-1])
    return is_option or (path[0], path[-1]) in _SECRETS


def _value_of(name: str) -> Any:
    """The value of a variable, as TOML has it; another text is a string."""
    text = os.environ[name]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _lines(text: str) -> dict[Keys, int]:
    """The lines of sections and keys, as far as each begins a line of its own."""
    lines: dict[Keys, int] = {}
    section: Keys = ()
    counts: dict[Keys, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = _parts(header[2])
            if header[1] == "[[":
                counts[section] = counts.get(section, -1) + 1
                lines.setdefault(section, number)
                section = (*section, str(counts[section]))
            lines.setdefault(section, number)
        elif pair := _PAIR.match(line):
            lines.setdefault((*section, *_parts(pair[1])), number)
    return lines


def _parts(keys: str) -> Keys:
    return tuple(_unquoted(part) for part in _PART.findall(keys))


def _unquoted(part: str) -> str:
    return part[1:-1] if part[0] in "\"'" else part
