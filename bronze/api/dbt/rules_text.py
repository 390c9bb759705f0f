"""The data tests in a schema file of dbt as rules of ``bronze.toml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bronze.api.config_text import toml_key, toml_string
from bronze.api.dbt import data_tests, yaml_text
from bronze.api.dbt.data_tests import Different
from bronze.config.sections.quality import RuleSettings
from bronze.config.settings import Settings
from bronze.errors import ConfigError

_GROUPS = ("models", "seeds", "snapshots")


def rules_text(path: Path, settings: Settings | None = None) -> str:
    """The rules as TOML; what bronze has no rule for is named in comments.

    Args:
        path: the schema file: its sources, models, seeds and snapshots with ``data_tests``.
        settings: the config that they are for, by which the sections of tables are named.

    Raises:
        ConfigError: the file cannot be read, or PyYAML is not installed.
    """
    content = yaml_text.read(path)
    try:
        tables = list(_tables(content))
        names = {table["name"]: _name_of(table) for table in tables}
        parts = [part for table in tables for part in _rules(table, names, settings)]
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no schema file of dbt: a part of it has another form ({error}).",
            hint="`dbt parse` says which.",
        ) from None
    if not parts:
        return yaml_text.comment(f"{path.name} has no data tests.")
    return "\n".join(parts)


def _tables(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for source in content.get("sources") or ():
        yield from source.get("tables") or ()
    for group in _GROUPS:
        yield from content.get(group) or ()


def _name_of(table: Mapping[str, Any]) -> str:
    """The name that the table has in PostgreSQL."""
    known = _meta(table).get("source_table")
    return str(known or table.get("identifier") or table["name"])


def _meta(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    meta: Mapping[str, Any] = {
        **(entry.get("meta") or {}),
        **((entry.get("config") or {}).get("meta") or {}),
    }
    return meta


def _rules(
    table: Mapping[str, Any], names: Mapping[str, str], settings: Settings | None
) -> Iterator[str]:
    section = _section(_name_of(table), settings)
    shown = ".".join(map(toml_key, ("tables", section, "rules")))
    for test in _tests(table):
        yield _remark(table["name"], *_named(test), "it is about no single column")
    for column in table.get("columns") or ():
        name = str(_meta(column).get("source_column") or column["name"])
        for test in _tests(column):
            kind, body = _named(test)
            try:
                rule = data_tests.rule_of(kind, body, name, names)
                RuleSettings.model_validate(rule)
            except Different as reason:
                yield _remark(f"{table['name']}.{column['name']}", kind, body, str(reason))
            except ValidationError:
                yield _remark(
                    f"{table['name']}.{column['name']}", kind, body, "bronze has no such values"
                )
            else:
                lines = (f"{key} = {_toml(rule[key])}\n" for key in rule)
                yield f"[[{shown}]]\n{''.join(lines)}"


def _tests(entry: Mapping[str, Any]) -> list[Any]:
    return [*(entry.get("data_tests") or ()), *(entry.get("tests") or ())]


def _named(test: Any) -> tuple[str, Mapping[str, Any]]:
    """The name of a test, and what is below it."""
    if isinstance(test, str):
        return test, {}
    if "test_name" in test:
        return str(test["test_name"]), test
    (name,) = [key for key in test if key not in ("name", "description", "config")] or [""]
    body = test[name] or {}
    return str(name), {**body, **{key: test[key] for key in test if key in ("config",)}}


def _remark(where: str, kind: str, body: Mapping[str, Any], reason: str) -> str:
    return yaml_text.comment(f"{where}: {kind} is left out: {reason}.")


def _section(name: str, settings: Settings | None) -> str:
    """The name of the table's section in a config, its own name where it has none."""
    short = name.rpartition(".")[2]
    sections = settings.tables if settings else {}
    known = [section for section in sections if section.endswith(f".{name}")]
    return next((one for one in (*known, name, short) if one in sections), short)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        parts = (f"{toml_key(name)} = {_toml(part)}" for name, part in value.items())
        return f"{{ {', '.join(parts)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, date):
        return value.isoformat()
    return toml_string(value) if isinstance(value, str) else str(value)
