"""The diagnosis of ``bronze doctor``: all checks of a config, or those that are named."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bronze.config import loading
from bronze.config.settings import Settings
from bronze.errors import BronzeError, ConfigError
from bronze.model.results import Shown
from bronze.operate.doctor import (
    channel_checks,
    lake_checks,
    machine_checks,
    secret_checks,
    source_checks,
)
from bronze.operate.doctor.examination import (
    LIMIT,
    Check,
    Finding,
    Verdict,
    examine,
    ok,
    unknown,
)
from bronze.printable import count

GROUPS = (
    "config",
    "secrets",
    "source",
    "lake",
    "governance",
    "audit",
    "channels",
    "heartbeat",
    "memory",
    "versions",
)
"""The groups of checks, in the order in which their findings are shown."""


@dataclass(frozen=True, repr=False)
class Diagnosis(Shown):
    """What the doctor found out."""

    _items: ClassVar[str] = "findings"

    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0: there is no problem; 1: there is one."""
        return 1 if any(finding.state == "problem" for finding in self.findings) else 0

    def _row(self, item: Finding) -> Mapping[str, Any]:
        return vars(item)


def diagnose(path: str | Path, names: Sequence[str] = (), limit: float = LIMIT) -> Diagnosis:
    """Checks everything that a config needs, side by side.

    Args:
        path: the config file.
        names: the checks: groups (`GROUPS`), or findings by their names; none selects all.
        limit: the seconds for each check.

    Raises:
        ConfigError: there is no such check.
    """
    try:
        settings = loading.load(path)
    except BronzeError as error:
        broken = Finding("config", "problem", error.message, error.hint)
        return Diagnosis((broken, *_without_config(names, limit)))
    return Diagnosis(findings(settings, select(checks(settings), names), names, limit))


def _without_config(names: Sequence[str], limit: float) -> Iterator[Finding]:
    """The findings that need no config; the others are unknown."""
    nothing = unknown("Not checked, because the config cannot be read.")
    for group in GROUPS[1:]:
        if names and not any(name.split(".")[0] == group for name in names):
            continue
        if group == "versions":
            yield from examine([machine_checks.versions()], limit)
        else:
            yield Finding(group, nothing.state, nothing.message)


def checks(settings: Settings) -> list[Check]:
    """All checks of a config, in the order of `GROUPS`."""
    return [
        _config(settings),
        *secret_checks.checks(settings),
        *(source_checks.check(settings, name) for name in settings.source),
        lake_checks.lake(settings),
        lake_checks.governance(settings),
        lake_checks.audit(settings),
        *channel_checks.checks(settings),
        machine_checks.memory(settings),
        machine_checks.versions(),
    ]


def select(available: Sequence[Check], names: Sequence[str]) -> list[Check]:
    """The checks that names select; all without a name.

    Raises:
        ConfigError: a name selects none.
    """
    known = {name for check in available for step in check.steps for name in check.selectors(step)}
    known |= set(GROUPS)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), 1)
            nearest = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(
                f"There is no check {name}{nearest}.",
                hint=f"There are {', '.join(GROUPS)}, and each line of `bronze doctor`.",
            )
    return [check for check in available if any(_selects(names, check, s) for s in check.steps)]


def findings(
    settings: Settings, selected: Sequence[Check], names: Sequence[str], limit: float
) -> tuple[Finding, ...]:
    """The findings of checks that names select."""
    wanted = {
        check.name(step)
        for check in selected
        for step in check.steps
        if _selects(names, check, step)
    }
    return tuple(finding for finding in examine(selected, limit) if finding.check in wanted)


def _selects(names: Sequence[str], check: Check, step: str) -> bool:
    return not names or not check.selectors(step).isdisjoint(names)


def _config(settings: Settings) -> Check:
    def examine_config() -> Iterator[Verdict]:
        if not settings.path:
            yield ok("The config is not from a file.")
            return
        loaded = loading.load(settings.path)
        sources = count(len(loaded.source), "source")
        yield ok(
            f"{settings.path} is valid: {sources}, {count(len(loaded.tables), 'table')} by name."
        )

    hint = "Check the disk or the network folder that it lies on."
    return Check("config", examine_config, f"The config file {settings.path}", hint)
