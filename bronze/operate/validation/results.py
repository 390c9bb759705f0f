"""The results of a validation: for each check its value, its limit and whether it is met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from bronze.errors import BronzeError
from bronze.model.results import Failure, Shown

Group = Literal["quality", "schema", "performance", "security"]
CheckState = Literal["pass", "fail", "unknown"]
Demand = Literal["below", "at most", "at least"]


@dataclass(frozen=True)
class CheckResult:
    """One check of one ``subject``: a Bronze table, a source, the config or the lake.

    ``value`` is compared with ``limit`` as ``demand`` says. Both are in ``unit``: "share" (0 to 1),
    "seconds", "score" (0 to 100) or "faults". ``value`` is None where nothing could be measured;
    then the check is ``unknown``, and ``text`` says why.
    """

    group: Group
    name: str
    subject: str
    state: CheckState
    value: float | None
    demand: Demand
    limit: float
    unit: str
    text: str
    hint: str = ""


def figure(value: float, unit: str) -> str:
    """A value of a check for people: "1.25%", "2.0 s", "3"."""
    if unit == "share":
        return f"{value:.2%}"
    if unit == "faults":
        return f"{value:,.0f}"
    return f"{value:,.1f} s" if unit == "seconds" else f"{value:.1f}"


@dataclass(frozen=True)
class Measure:
    """What a check measures: its limit is the same for every value."""

    group: Group
    name: str
    unit: str
    demand: Demand
    limit: float

    def result(self, subject: str, value: float, text: str, hint: str = "") -> CheckResult:
        """The result for a value that was measured; a hint is for those that fail."""
        # Nothing at all meets every limit, also "below 0 %".
        met = {
            "below": value < self.limit or value == 0,
            "at most": value <= self.limit,
            "at least": value >= self.limit,
        }[self.demand]
        return self._result(subject, "pass" if met else "fail", value, text, "" if met else hint)

    def allowed(self, subject: str, value: float, text: str) -> CheckResult:
        """The result for a value that the config allows whatever the limit is."""
        return self._result(subject, "pass", value, text, "")

    def unknown(self, subject: str, reason: str | BronzeError) -> CheckResult:
        """The result where the value could not be measured."""
        if isinstance(reason, BronzeError):
            return self._result(subject, "unknown", None, reason.message, reason.hint)
        return self._result(subject, "unknown", None, reason, "")

    def _result(
        self, subject: str, state: CheckState, value: float | None, text: str, hint: str
    ) -> CheckResult:
        return CheckResult(
            self.group,
            self.name,
            subject,
            state,
            value,
            self.demand,
            self.limit,
            self.unit,
            text,
            hint,
        )


def faults(
    group: Group, name: str, subject: str, found: Iterable[str], well: str, hint: str = ""
) -> CheckResult:
    """The result of a check that counts faults, of which there may be none."""
    texts = list(found)
    measure = Measure(group, name, "faults", "at most", 0)
    return measure.result(subject, len(texts), "; ".join(texts) or well, hint)


@dataclass(frozen=True, repr=False)
class ValidationResult(Shown):
    """The checks of a validation. ``unrecorded`` is why the audit log has no record of it."""

    _items: ClassVar[str] = "checks"

    lake: str
    seconds: float
    checks: tuple[CheckResult, ...]
    unrecorded: Failure | None = None

    def count(self, state: CheckState) -> int:
        """How many checks are in a state."""
        return sum(check.state == state for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0: every check that could be measured is met. 1: one is not, or it is not recorded, or
        nothing of the quality of any table could be measured.
        """
        measured = any(c.group == "quality" and c.state != "unknown" for c in self.checks)
        return 0 if measured and not self.count("fail") and not self.unrecorded else 1

    def _row(self, item: CheckResult) -> Mapping[str, Any]:
        value = "" if item.value is None else figure(item.value, item.unit)
        limit = f"{item.demand} {figure(item.limit, item.unit)}"
        cells = {**asdict(item), "value": value, "limit": limit}
        del cells["demand"], cells["unit"]
        return cells

    def _summary(self) -> Iterable[str]:
        states: tuple[CheckState, ...] = ("pass", "fail", "unknown")
        return [f"{self.count(state)} {state}" for state in states]
