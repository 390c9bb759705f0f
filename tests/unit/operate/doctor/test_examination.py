"""Checks side by side: what hangs, fails or ends early is shown in its place."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from bronze.errors import SourceRefused
from bronze.operate.doctor.examination import Check, Finding, Verdict, examine, ok, problem

STEPS = ("one", "two", "three")


def test_a_check_that_hangs_is_left_behind_at_its_limit() -> None:
    """Its step is a problem, the ones before stay, the later ones are unknown. Ten that hang take
    no longer than one.
    """
    release = threading.Event()

    def hang() -> Iterator[Verdict]:
        yield ok("fine")
        release.wait()
        yield ok("too late")

    began = time.monotonic()
    checks = [Check("source", hang, "Source a", "Look.", str(n), STEPS) for n in range(10)]
    findings = examine(checks, 0.3)
    release.set()
    assert time.monotonic() - began < 2
    assert len(findings) == 30
    assert findings[:3] == (
        Finding("source.0.one", "ok", "fine"),
        Finding("source.0.two", "problem", "Source a did not answer within 0.3 s.", "Look."),
        Finding("source.0.three", "unknown", "Not checked, because of source.0.two."),
    )


def test_errors_are_findings_of_their_step() -> None:
    """Those of bronze with message and hint; of others only the class, as the message may have
    anything in it.
    """

    def refused() -> Iterator[Verdict]:
        yield ok("fine")
        raise SourceRefused("no", hint="do this")

    def broken() -> Iterator[Verdict]:
        yield ok("fine")
        raise ZeroDivisionError("a secret")

    def ended() -> Iterator[Verdict]:
        yield problem("ends here")

    first, second, third = (
        [(found.state, found.message, found.hint) for found in examine([check], 5)][:2]
        for check in (Check("x", work, "X", steps=STEPS) for work in (refused, broken, ended))
    )
    assert first[1] == ("problem", "no", "do this")
    assert second[1][:2] == ("unknown", "X: ZeroDivisionError in the check.")
    assert third[1] == ("unknown", "Not checked, because of x.one.", "")


def test_a_step_is_selected_by_its_group_its_subject_and_its_name() -> None:
    """A check without subject or steps has only its group."""
    check = Check("source", lambda: iter(()), "S", subject="shop", steps=("login", "slot"))
    assert check.name("login") == "source.shop.login"
    assert check.selectors("login") == {
        "source",
        "source.shop",
        "source.login",
        "source.shop.login",
    }
    assert Check("memory", lambda: iter(()), "M").selectors("") == {"memory"}
