"""Reads and validates bronze.toml.

`load` reads a file, `parse` a mapping. Every error names its place in the config, and for an
unknown key the nearest known one.
"""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bronze.config import document
from bronze.config.document import Document
from bronze.config.fields import SecretName
from bronze.config.sections import alerts, catalog, serve
from bronze.config.sections.alerts import AlertSettings
from bronze.config.sections.audit import AuditSettings, LineageSettings
from bronze.config.sections.backup import BackupSettings
from bronze.config.sections.lake import LakeSettings
from bronze.config.sections.protection import ColumnProtection, ProtectionSettings
from bronze.config.sections.quality import RULE_SECTIONS, QualitySettings, RuleSettings
from bronze.config.sections.run import MaintainSettings, RunSettings, StreamSettings
from bronze.config.sections.secrets import SecretSettings
from bronze.config.sections.source import CommandAuth, Pool, SourceSettings
from bronze.config.sections.tables import AnomalySettings, TableSettings
from bronze.config.settings import Settings
from bronze.errors import ConfigError


def load(path: str | Path) -> Settings:
    """The settings in a TOML file. Relative paths in it are relative to the file.

    Raises:
        ConfigError: the file cannot be read or is not valid; it lists all errors.
    """
    file = Path(path).absolute()
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"There is no config file {path}.",
            hint="Write one with `bronze init --dsn …`, or name another file with -c.",
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"The config file {path} cannot be read: {error}.") from None
    return parse_file(content, file, str(path))


def parse_file(content: bytes, file: Path, name: str) -> Settings:
    """The settings in the content of a TOML file.

    Args:
        content: the content.
        file: where the file is: relative paths are relative to it.
        name: the name of the file in errors.

    Raises:
        ConfigError: the content is not valid; it lists all errors.
    """
    try:
        text = content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
        read = document.read(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The config file {name} is not valid TOML: {error}.") from None
    except ValueError as error:
        raise ConfigError(f"The config file {name} cannot be read: {error}.") from None
    digest = hashlib.sha256(content).hexdigest()
    settings = _settings_of(read, name).model_copy(update={"path": str(file), "digest": digest})
    lake, secrets, lineage = settings.lake, settings.secrets, settings.lineage
    if "://" not in lake.root:
        lake = lake.model_copy(update={"root": _beside(file, lake.root)})
    if secrets.folder:
        secrets = secrets.model_copy(update={"folder": _beside(file, secrets.folder)})
    if lineage.file:
        lineage = lineage.model_copy(update={"file": _beside(file, lineage.file)})
    audit, backup = settings.audit, settings.backup
    if audit.escrow and "://" not in audit.escrow:
        audit = audit.model_copy(update={"escrow": _beside(file, audit.escrow)})
    for key in ("root", "scratch"):
        root = getattr(backup, key)
        if root and "://" not in root:
            backup = backup.model_copy(update={key: _beside(file, root)})
    maintain = settings.maintain
    if maintain.queries:
        maintain = maintain.model_copy(update={"queries": _beside(file, maintain.queries)})
    sections = {
        "lake": lake,
        "secrets": secrets,
        "lineage": lineage,
        "audit": audit,
        "backup": backup,
        "maintain": maintain,
    }
    return settings.model_copy(update=sections)


def _beside(file: Path, path: str) -> str:
    """A path of the config, relative to its file."""
    return str(file.parent / Path(path).expanduser())


def parse(values: Mapping[str, Any], name: str = "the config") -> Settings:
    """The settings in a mapping with the structure of bronze.toml.

    Raises:
        ConfigError: the config is not valid; it lists all errors.
    """
    return _settings_of(Document(values), name)


def _settings_of(given: Document, name: str) -> Settings:
    if nul := next(_nul_places(given.values), None):
        raise ConfigError(
            f"{name}: {nul} contains a NUL character, which no name, path or password can have.",
            hint="Remove the character from the config.",
        )
    if hidden := [key for key in _HIDDEN if key in given.values]:
        raise ConfigError(
            f"{name}: unknown key {hidden[0]}{_suggestion(hidden[0], Settings)}.",
            hint="`bronze init` writes a valid config with comments.",
        )
    normalised = dict(given.values)
    source = normalised.get("source")
    single = isinstance(source, Mapping) and _is_single_source(source)
    if isinstance(source, Mapping) and single:
        normalised["source"] = {str(source.get("name", "source")): dict(source)}
    catalogs = normalised.get("catalog")
    if isinstance(catalogs, Mapping) and _is_single_catalog(catalogs):
        normalised["catalog"] = {"": dict(catalogs)}
    try:
        return Settings.model_validate(normalised | {"alone": single})
    except ValidationError as error:
        raise ConfigError(
            _error_message(error, name, single, given),
            hint="`bronze init` writes a valid config with comments.",
        ) from None


def _nul_places(value: object, path: str = "") -> Iterator[str]:
    """The places of texts, and the names of keys, that contain a NUL character."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            key_path = f"{path}.{key}" if path else str(key)
            if "\0" in str(key):
                yield f"the name of the key {key_path}"
            yield from _nul_places(inner, key_path)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _nul_places(inner, path)
    elif isinstance(value, str) and "\0" in value:
        yield path


def _is_single_source(source: Mapping[str, Any]) -> bool:
    """Whether [source] is one source, not a table of several."""
    return "dsn" in source or not all(isinstance(value, Mapping) for value in source.values())


def _is_single_catalog(catalogs: Mapping[str, Any]) -> bool:
    """Whether [catalog] is one catalog, not a table of several."""
    return (
        not catalogs
        or "host" in catalogs
        or not all(isinstance(value, Mapping) for value in catalogs.values())
    )


def _error_message(error: ValidationError, name: str, single: bool, given: Document) -> str:
    """All errors in one sentence, each with its place. With ``single``, the config does not name
    its only source.
    """
    messages = []
    for problem in error.errors(include_input=False, include_url=False):
        path = [str(part) for part in problem["loc"] if not _is_type_name(part)]
        if path[:2] == ["catalog", ""]:
            del path[1]
        channel = ""
        if path[:2] == ["alerts", "channels"] and len(path) > 3:
            # Behind the number of a channel pydantic names its kind.
            channel = path.pop(3)
        if single and path[:1] == ["source"] and len(path) > 1:
            del path[1]
        where = given.place_of(path)
        prefix = f"{where}: " if where else ""
        messages.append(prefix + _sentence(problem, path, channel))
    return f"{name}: " + "; ".join(dict.fromkeys(messages)) + "."


def _sentence(problem: Mapping[str, Any], path: list[str], channel: str) -> str:
    """What is wrong with a key."""
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggestion(path[-1], _section_of(path, channel))}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    if problem["type"] == "union_tag_invalid":
        kinds = problem["ctx"]["expected_tags"].replace("'", "")
        return f"{key}.kind is one of {kinds}, not {problem['ctx']['tag']!r}"
    if problem["type"] == "union_tag_not_found":
        return f"{key}.kind is missing"
    if problem["type"] in ("dict_type", "model_type", "model_attributes_type", "dataclass_type"):
        message = "input should be a table of keys, as in { key = … }"
    else:
        message = str(problem["msg"])
    message = message.removeprefix("Value error, ")
    text = f"{message[:1].lower()}{message[1:]}"
    if str(problem["type"]).startswith("model_") and path[-1] in _SECRET_KEYS:
        text = (
            "a secret is not written here, but named, where it is kept:"
            f' {path[-1]} = {{ secret = "NAME" }}; see [secrets]'
        )
    return f"{key}: {text}" if key else text


# What bronze itself notes beside the sections.
_HIDDEN = tuple(name for name, field in Settings.model_fields.items() if field.exclude)

_SECRET_KEYS = ("password", "key", "api_key", "token", "operator", "viewer")


def _is_type_name(part: object) -> bool:
    """Whether a part of an error's location is one of pydantic's names of types, not a key."""
    return part in ("str", "SecretName", "CommandAuth", "CatalogAuth") or str(part).startswith(
        ("function-", "constrained-", "literal[")
    )


_TABLE_SECTIONS: Mapping[str, type[BaseModel]] = {
    "rules": RuleSettings,
    "quality": QualitySettings,
}


def _section_of(path: list[str], channel: str) -> type[BaseModel]:
    """The section of the config that the key at a path belongs to; ``channel`` is the kind of the
    channel of alerts that it belongs to, if any.
    """
    if channel:
        return SecretName if path[4:] else alerts.CHANNELS[channel]
    top, rest = path[0], path[1:-1]
    if not path[1:]:
        return Settings
    if top == "lake":
        return SecretName if rest else LakeSettings
    if top == "backup":
        return SecretName if rest else BackupSettings
    if top in ("audit", "lineage") and rest:
        return SecretName
    if top == "tables" and len(rest) > 1 and rest[1] in _TABLE_SECTIONS:
        return RULE_SECTIONS.get(rest[-1], _TABLE_SECTIONS[rest[1]])
    of_source: dict[str, type[BaseModel]] = {
        "dsn": SecretName,
        "password": SecretName,
        "auth": CommandAuth,
        "pool": Pool,
    }
    if top == "source" and rest and rest[-1] in of_source:
        return of_source[rest[-1]]
    if top == "protection" and rest:
        return SecretName
    if top == "alerts" and rest:
        return alerts.section_of(rest)
    if top == "catalog":
        return catalog.section_of(rest)
    if top in ("serve", "breaker", "web"):
        return serve.section_of(top, rest)
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
        "alerts": AlertSettings,
        "tables": TableSettings,
    }
    return sections.get(top, Settings)


def _suggestion(key: str, section: type[BaseModel]) -> str:
    """The nearest known key of the section, or all of them where none is near."""
    fields = section.model_fields.items()
    known = [field.alias or name for name, field in fields if not field.exclude]
    close = difflib.get_close_matches(key, known, 1, 0.5)
    if close:
        return f" (did you mean {close[0]}?)"
    return f" (known keys: {', '.join(known)})"
