"""The table of kinds: what each has, and who is told of it."""

from __future__ import annotations

from datetime import timedelta

from bronze.config.sections.alerts import AlertSettings, Scenarios
from bronze.operate.alerts import kinds
from bronze.operate.alerts.kinds import KINDS

CHANNELS = [
    {"kind": "webhook", "name": name, "url": "https://example.com"} for name in ("a", "b", "c")
]


def settings(**scenarios: object) -> AlertSettings:
    """A config with three channels."""
    return AlertSettings.model_validate({"channels": CHANNELS, "scenarios": scenarios})


def test_each_kind_has_a_scenario_and_a_sentence() -> None:
    """Names and anchors are unique; the scenarios are those of the config."""
    assert {kind.scenario for kind in KINDS.values()} == set(Scenarios.model_fields)
    assert all(kind.by_itself for kind in KINDS.values())
    assert len({kind.anchor for kind in KINDS.values()}) == len(KINDS) >= 22
    assert all(":" not in name and "*" not in name for name in KINDS)


def test_paths_are_those_of_the_scenario() -> None:
    """Without a path all are told at once; all others are told of a channel that fails."""
    paths = kinds.paths(settings(outage={"respond": "10m", "path": ["a", "b"]}))
    assert paths["stream_down", ""].steps == (("a",), ("b",))
    assert paths["stream_down", ""].respond == timedelta(minutes=10)
    assert paths["quality", ""].steps == (("a", "b", "c"),)
    assert paths["channel", "a"].steps == (("b", "c"),)
    assert paths["test", ""].steps == (("a", "b", "c"),)
    assert {path.steps for path in kinds.paths(AlertSettings()).values()} == {()}


def test_levels_of_the_metrics_are_those_of_the_config() -> None:
    """The others have their own."""
    given = AlertSettings.model_validate({"failed": {"more_than": 0.1, "level": "warning"}})
    assert kinds.level(given, "failed_records") == "warning"
    assert kinds.level(AlertSettings(), "failed_records") == "critical"
    assert kinds.level(given, "slot_lost") == "critical"
