"""Checks side by side, each with a limit of time, and their findings.

A check is a chain of steps, each of which yields one `Verdict`: what comes later needs what comes
before. A check that does not end in time is left behind in its thread, and its step is a problem.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from bronze.errors import BronzeError
from bronze.operate.alerts import deadline

State = Literal["ok", "warning", "problem", "unknown"]

LIMIT = 4.0
"""Seconds for each check: below the 5 s that a notice waits for its cause, and with the start of a
process below 6 s.
"""
_BUG = "This is a bug in bronze: run again with BRONZE_DEBUG=1 and report what it prints."


@dataclass(frozen=True)
class Finding:
    """What a step of a check found out: a sentence, and a hint that says what to do."""

    check: str
    state: State
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Verdict:
    """A finding whose check is known by its place in the chain."""

    state: State
    message: str
    hint: str = ""


def ok(message: str) -> Verdict:
    """All is well."""
    return Verdict("ok", message)


def warning(message: str, hint: str = "") -> Verdict:
    """Something works that may not for long."""
    return Verdict("warning", message, hint)


def problem(message: str, hint: str = "") -> Verdict:
    """Something does not work."""
    return Verdict("problem", message, hint)


def unknown(message: str, hint: str = "") -> Verdict:
    """It cannot be found out."""
    return Verdict("unknown", message, hint)


@dataclass(frozen=True)
class Check:
    """One check.

    ``examine`` yields a verdict for each of the ``steps`` in their order; it ends, or raises, where
    later ones make no sense. ``subject`` is the source, the channel or the secret that it is about,
    "" if there is only one; ``what`` is its name in a sentence, ``hint`` what to do if it hangs.
    """

    group: str
    examine: Callable[[], Iterator[Verdict]]
    what: str
    hint: str = ""
    subject: str = ""
    steps: tuple[str, ...] = ("",)

    def name(self, step: str) -> str:
        """The name of a step's finding."""
        return ".".join(filter(None, (self.group, self.subject, step)))

    def selectors(self, step: str) -> set[str]:
        """The names that select a step: of the group, the subject, the step."""
        parts = ((), (self.subject,), (step,), (self.subject, step))
        return {".".join(filter(None, (self.group, *more))) for more in parts}


def examine(checks: Sequence[Check], limit: float = LIMIT) -> tuple[Finding, ...]:
    """The findings of checks, which run side by side, after ``limit`` seconds at most."""
    until = time.monotonic() + limit
    started = [(check, *_start(check)) for check in checks]
    findings: list[Finding] = []
    for check, verdicts, work in started:
        try:
            work.result(max(until - time.monotonic(), 0))
            hangs = False
        except TimeoutError:
            hangs = True
        findings += _findings(check, list(verdicts), limit if hangs else None)
    return tuple(findings)


def _start(check: Check) -> tuple[list[Verdict], Future[None]]:
    verdicts: list[Verdict] = []

    def work() -> None:
        try:
            for verdict in check.examine():
                verdicts.append(verdict)  # noqa: PERF402 - what came before a step that hangs stays
        except BronzeError as error:
            verdicts.append(problem(error.message, error.hint))
        except Exception as error:
            # The message of an unknown error may have anything in it.
            verdicts.append(unknown(f"{check.what}: {type(error).__name__} in the check.", _BUG))

    return verdicts, deadline.start(work, "bronze-doctor")


def _findings(check: Check, verdicts: list[Verdict], hung: float | None) -> Iterator[Finding]:
    """The findings of a check; ``hung`` are the seconds after which it was left behind."""
    if hung is not None and len(verdicts) < len(check.steps):
        message = f"{check.what} did not answer within {hung:g} s."
        verdicts.append(problem(message, check.hint))
    last = check.steps[len(verdicts) - 1] if verdicts else ""
    rest = unknown(f"Not checked, because of {check.name(last)}.")
    for number, step in enumerate(check.steps):
        verdict = verdicts[number] if number < len(verdicts) else rest
        yield Finding(check.name(step), verdict.state, verdict.message, verdict.hint)
