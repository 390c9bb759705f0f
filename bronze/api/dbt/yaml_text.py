"""YAML as dbt reads it: texts of documents with remarks at their beginning, and their reading."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from bronze.errors import ConfigError
from bronze.printable import visible

_WIDTH = 98


def _library() -> ModuleType:
    """PyYAML.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise ConfigError(
            "Files of dbt need the package PyYAML.", hint="pip install 'bronze[dbt]'"
        ) from None
    module: ModuleType = yaml
    return module


def document(content: Mapping[str, Any], remarks: Sequence[str] = ()) -> str:
    """The YAML of a document; ``remarks`` are comments at its beginning."""
    yaml = _library()

    class Dumper(yaml.SafeDumper):  # type: ignore[misc, name-defined]
        def ignore_aliases(self, data: Any) -> bool:
            # Anchors save letters, and nobody reads them with pleasure.
            return True

    text: str = yaml.dump(
        content, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10**6, indent=2
    )
    return "".join(comment(remark) for remark in remarks) + text


def comment(text: str) -> str:
    """A comment in lines of at most a hundred letters, as TOML has it, too."""
    lines = textwrap.wrap(
        visible(" ".join(text.split())),
        _WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
        subsequent_indent="  ",
    )
    return "".join(f"# {line}\n" for line in lines)


def plain(text: str) -> str:
    """A text that is not Jinja: dbt would evaluate what is in double braces."""
    return text.replace("{{", "{ {").replace("{%", "{ %").replace("{#", "{ #").replace("}}", "} }")


def read(path: Path) -> Mapping[str, Any]:
    """The content of a YAML file.

    Raises:
        ConfigError: it cannot be read, or is not a mapping.
    """
    yaml = _library()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise ConfigError(f"{path} is not valid YAML{line}.") from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} is no schema file of dbt.", hint="One begins with sources or models."
        )
    return content
