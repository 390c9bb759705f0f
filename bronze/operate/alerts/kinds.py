"""The kinds of alerts: how bad each is, whose it is, and what bronze does about it by itself.

The runbook of a kind is the section of its name in the file of its scenario.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from bronze.config.sections.alerts import AlertSettings
from bronze.operate.alerts.life import Key, Level, Path

Scenario = Literal["quality", "performance", "security", "outage"]

CHANNEL, TEST = "channel", "test"


@dataclass(frozen=True)
class Kind:
    """One kind: ``by_itself`` is the sentence that says what bronze does without anybody."""

    name: str
    level: Level
    scenario: Scenario
    by_itself: str

    @property
    def anchor(self) -> str:
        """Its section in the runbook, as the heading's link."""
        return self.name.replace("_", "-")


_AGAIN = "the next run that is due tries again"
_NOBODY = "nothing; somebody has to act"

_KINDS = (
    # The five metrics; the config has their levels.
    Kind("freshness", "critical", "performance", "the table runs as soon as it can"),
    Kind("quality", "warning", "quality", "rows below the threshold are marked as QUARANTINED"),
    Kind("duration", "warning", "performance", "the run goes on until its time is over"),
    Kind("failed_records", "critical", "quality", "the values are kept in governance"),
    Kind("resources", "warning", "performance", "runs of low priority wait"),
    Kind("will_be_late", "warning", "performance", "the table runs before those with more time"),
    # Tables.
    Kind("table_failed", "critical", "outage", _AGAIN),
    Kind("table_quarantined", "critical", "outage", "the table is tried alone after a rest"),
    Kind("schema_refused", "critical", "quality", _AGAIN),
    Kind("verify_differs", "critical", "quality", "nothing; `bronze verify --repair` reloads rows"),
    # Streams.
    Kind("stream_down", "critical", "outage", "the stream connects again, after longer pauses"),
    Kind("slot_retains", "critical", "outage", "the stream catches up as fast as it can"),
    Kind("slot_lost", "critical", "outage", "all tables of the stream are compared again"),
    # Both ends.
    Kind("source_unreachable", "critical", "outage", "it is tried again; then due tables run once"),
    Kind("lake_unreachable", "critical", "outage", "it is tried again; then due tables run once"),
    Kind("lake_slow", "warning", "performance", "runs go on, and take longer"),
    Kind("lake_full", "critical", "outage", "no run of low priority begins"),
    Kind("backup_failed", "critical", "outage", "the copy is tried again, and continued"),
    Kind("drill_failed", "critical", "outage", _NOBODY),
    # Trust.
    Kind("audit_broken", "critical", "security", _NOBODY),
    Kind("keys_missing", "critical", "security", "tables that need the keys are not loaded"),
    Kind("personal_data", "critical", "security", _NOBODY),
    # The service itself.
    Kind("process_crashed", "critical", "outage", "what was in flight is done again"),
    Kind("clock_jumped", "warning", "outage", "nothing runs twice for the same due time"),
    Kind(CHANNEL, "critical", "outage", "its messages are tried again for 24 hours"),
    Kind("config_invalid", "warning", "outage", "the config from before stays in force"),
    Kind(TEST, "warning", "outage", "it is resolved at once"),
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _KINDS}
"""All kinds by their names."""

_METRICS = {
    "freshness": "freshness",
    "quality": "quality",
    "duration": "duration",
    "failed_records": "failed",
    "resources": "resources",
}


def level(settings: AlertSettings, kind: str) -> Level:
    """How bad a kind is: for the five metrics as the config says."""
    if kind in _METRICS:
        of_config: Level = getattr(settings, _METRICS[kind]).level
        return of_config
    return KINDS[kind].level


def paths(settings: AlertSettings) -> dict[Key, Path]:
    """Who is told of alerts, by kind, from [alerts.scenarios]; without a path all channels at once.

    All channels are told of a test, and all others of a channel that fails.
    """
    names = tuple(channel.name for channel in settings.channels)
    found: dict[Key, Path] = {}
    for kind in KINDS.values():
        scenario = getattr(settings.scenarios, kind.scenario)
        steps = tuple((name,) for name in scenario.path) or ((names,) if names else ())
        found[kind.name, ""] = Path(steps, timedelta(seconds=scenario.respond))
    found[TEST, ""] = Path((names,) if names else ())
    for name in names:
        others = tuple(other for other in names if other != name)
        found[CHANNEL, name] = Path((others,) if others else ())
    return found
