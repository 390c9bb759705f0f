"""The page of the requirement names only what exists: files, tests, commands, keys, figures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from pydantic import BaseModel

from bronze.cli.main import app
from bronze.config.sections.source import SourceSettings
from bronze.config.sections.tables import TableSettings
from bronze.config.settings import Settings
from bronze.operate import runbook

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reference" / "requirement.md").read_text(encoding="utf-8")
TO_COME = "*(to come)*"
HERE = "\n".join(line for line in TEXT.splitlines() if TO_COME not in line)
"""Without the lines about what is being built elsewhere."""
CODE = re.findall(r"`([^`]+)`", HERE)
_KEY = re.compile(r"^\[([a-z]+)(?:\.NAME)?\](?: (\w+))?$")
_BUILTIN = re.compile(r"^python -m (benchmarks\.\w+)")


def test_files_and_tests_exist() -> None:
    """Each path is in the repository, and each test in its file."""
    paths = [code for code in CODE if re.match(r"(bronze|tests|benchmarks|docs)/\S", code)]
    assert len(paths) > 60
    for code in paths:
        path, _, test = code.partition("::")
        assert (ROOT / path).exists(), code
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), code
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / "docs" / "reference" / link).exists(), link
    for module in filter(None, map(_BUILTIN.match, CODE)):
        assert (ROOT / f"{module[1].replace('.', '/')}.py").exists(), module[1]


def test_figures_are_those_that_were_measured() -> None:
    """A measured figure is stated once, and repeated here."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    measured = "".join(page.read_text("utf-8") for page in pages if page.name != "requirement.md")
    figures = re.findall(r"\d[\d,]*\.\d+ s\b|\d[\d,]* (?:ms|MB)\b|\d+\.\d+ % of a core", HERE)
    assert len(figures) > 15
    for figure in figures:
        assert figure in measured, figure


def test_commands_exist() -> None:
    """Each command, with its subcommands and options."""
    root = typer.main.get_command(app)
    known: dict[str, Any] = root.commands  # type: ignore[attr-defined]
    checked = 0
    for code in re.findall(r"`bronze ([^`]+)`", HERE):
        name, *words = code.split()
        assert name in known, code
        checked += 1
        options = {option for one in known[name].params for option in one.opts}
        for word in words:
            if word.startswith("--"):
                assert word in options, code
            elif sub := getattr(known[name], "commands", None):
                assert word in sub, code
            elif name == "runbook":
                assert runbook.text(word)
    assert checked > 40


@pytest.mark.parametrize("code", sorted({code for code in CODE if _KEY.match(code)}))
def test_keys_of_the_config_exist(code: str) -> None:
    """Each section and key is one that bronze.toml may have."""
    match = _KEY.match(code)
    assert match is not None
    section, key = match[1], match[2]
    if section == "tables":
        model: type[BaseModel] = TableSettings
    elif section == "source":
        model = SourceSettings
    else:
        assert section in set(_names(Settings)), code
        annotation = Settings.model_fields[section].annotation
        # Several sources and catalogs are sections of one.
        model = annotation if isinstance(annotation, type) else get_args(annotation)[-1]
    if key:
        assert key in set(_names(model)), code


def _names(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield field.alias or name
