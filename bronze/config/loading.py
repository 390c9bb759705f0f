"""bronze.toml: read and checked.

`load` reads a file, `parse` a mapping. Whatever is wrong is said with its place in the file, and
an unknown key with the nearest known one.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bronze.config.protection import ColumnProtection
from bronze.config.quality import PARTS, QualitySettings, RuleSettings
from bronze.config.settings import (
    AnomalySettings,
    AuditSettings,
    LakeSettings,
    LineageSettings,
    MaintainSettings,
    Pool,
    ProtectionSettings,
    RunSettings,
    SecretName,
    SecretSettings,
    Settings,
    SourceSettings,
    StreamSettings,
    TableSettings,
)
from bronze.errors import ConfigError


def load(path: str | Path) -> Settings:
    """The settings in a TOML file. Relative paths in it are relative to the file.

    Raises:
        ConfigError: with all that is wrong in it.
    """
    file = Path(path).absolute()
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"There is no config file {path}.",
            hint="Write one with `bronze init --dsn …`, or name another with -c.",
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, tomllib.TOMLDecodeError):
            raise ConfigError(f"The config file {path} is not valid TOML: {error}.") from None
        raise ConfigError(f"The config file {path} cannot be read: {error}.") from None
    settings = parse(document, str(path)).model_copy(update={"path": str(file)})
    root = settings.lake.root
    if "://" not in root:
        root = str(file.parent / Path(root).expanduser())
    lake = settings.lake.model_copy(update={"root": root})
    return settings.model_copy(update={"lake": lake})


def parse(document: Mapping[str, Any], name: str = "the config") -> Settings:
    """The settings in a mapping of the shape of bronze.toml.

    Raises:
        ConfigError: with all that is wrong in it.
    """
    if nul := next(_with_nul(document), None):
        raise ConfigError(
            f"{name}: {nul} has the character NUL, which no name, path or password can have.",
            hint="Take it out of the config.",
        )
    checked = dict(document)
    source = checked.get("source")
    alone = isinstance(source, Mapping) and _is_one(source)
    if isinstance(source, Mapping) and alone:
        checked["source"] = {str(source.get("name", "source")): dict(source)}
    try:
        return Settings.model_validate(checked | {"alone": alone})
    except ValidationError as error:
        raise ConfigError(_explained(error, name, alone), hint="See `bronze init`.") from None


def _with_nul(value: object, where: str = "") -> Iterator[str]:
    """The places of texts, and names of keys, that have a NUL."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            place = f"{where}.{key}" if where else str(key)
            if "\0" in str(key):
                yield f"the name of the key {place}"
            yield from _with_nul(one, place)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _with_nul(one, where)
    elif isinstance(value, str) and "\0" in value:
        yield where


def _is_one(source: Mapping[str, Any]) -> bool:
    """Whether [source] is a source itself, and not a table of them."""
    return "dsn" in source or not all(isinstance(value, Mapping) for value in source.values())


def _explained(error: ValidationError, name: str, alone: bool) -> str:
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        where = [str(part) for part in problem["loc"] if not _is_type(part)]
        if alone and where[:1] == ["source"] and len(where) > 1:
            del where[1]
        key = ".".join(where)
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {key}{_nearest(where)}")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{key}: {said[:1].lower()}{said[1:]}")
    return f"{name}: " + "; ".join(dict.fromkeys(lines)) + "."


def _is_type(part: object) -> bool:
    return part in ("str", "SecretName") or str(part).startswith(
        ("function-", "constrained-", "literal[")
    )


_OF_TABLES: Mapping[str, type[BaseModel]] = {"rules": RuleSettings, "quality": QualitySettings}


def _section(where: list[str]) -> type[BaseModel]:
    """The section of the config that a key at this place belongs to."""
    top, rest = where[0], where[1:-1]
    if not where[1:]:
        return Settings
    if top == "lake":
        return SecretName if rest else LakeSettings
    if top in ("audit", "lineage") and rest:
        return SecretName
    if top == "tables" and len(rest) > 1 and rest[1] in _OF_TABLES:
        return PARTS.get(rest[-1], _OF_TABLES[rest[1]])
    if top == "source" and rest and rest[-1] in ("dsn", "password", "pool"):
        return Pool if rest[-1] == "pool" else SecretName
    if top == "protection" and rest:
        return SecretName
    if top == "tables" and "protect" in rest:
        return ColumnProtection
    if top == "tables" and rest[-1:] == ["anomalies"]:
        return AnomalySettings
    sections: dict[str, type[BaseModel]] = {
        "source": SourceSettings,
        "run": RunSettings,
        "stream": StreamSettings,
        "maintain": MaintainSettings,
        "quality": QualitySettings,
        "secrets": SecretSettings,
        "protection": ProtectionSettings,
        "audit": AuditSettings,
        "lineage": LineageSettings,
        "tables": TableSettings,
    }
    return sections.get(top, Settings)


def _nearest(where: list[str]) -> str:
    fields = _section(where).model_fields.items()
    known = [field.alias or name for name, field in fields if not field.exclude]
    close = difflib.get_close_matches(where[-1], known, 1, 0.5)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (known are {', '.join(known)})"
