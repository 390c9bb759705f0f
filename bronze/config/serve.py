"""The sections [serve], [breaker] and [web] of bronze.toml: the service. Times are in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from bronze.config.fields import Seconds, SecretName, Section, to_seconds
from bronze.model.schedule import Schedule, Window, parse_hours, parse_schedule
from bronze.model.stamp import IngestionMethod

Positive = Annotated[int, Field(ge=1), BeforeValidator(to_seconds)]
_SHORTEST_TOKEN = 16


def check_schedule(text: str) -> str:
    """The text of a schedule; a ValueError says what is wrong with it."""
    parse_schedule(text)
    return text


ScheduleText = Annotated[str, AfterValidator(check_schedule)]


def _check_due(text: str) -> str:
    if parse_schedule(text).is_continuous:
        raise ValueError("only the pattern streaming is continuous")
    return text


DueText = Annotated[str, AfterValidator(_check_due)]


class ScheduleSettings(Section):
    """[serve.schedule]: when tables are due, by their pattern; and the whole lake's maintenance and
    verification, "" for never.
    """

    streaming: ScheduleText = "continuous"
    micro_batch: DueText = "hourly"
    batch: DueText = "daily 02:00"
    full_refresh: DueText = "daily 03:00"
    maintain: DueText | None = "daily 04:30"
    verify: DueText | None = "weekly Sun 05:00"

    def of(self, pattern: IngestionMethod) -> str:
        """The schedule of a pattern."""
        text: str = getattr(self, pattern)
        return text


class WindowSettings(Section):
    """[serve.windows]: the least and the most ``workers`` in hours of the week (``when``)."""

    when: str = ""
    workers: tuple[PositiveInt, PositiveInt]

    @model_validator(mode="after")
    def _check(self) -> WindowSettings:
        if self.workers[0] > self.workers[1]:
            raise ValueError(f"workers are the least and the most: {list(self.workers)} is not")
        if self.when:
            parse_hours(self.when)
        return self


class ServeSettings(Section):
    """[serve]: what the service runs, and when."""

    timezone: str = "UTC"
    runs: PositiveInt = 2
    grace: Seconds = 30
    timeout: Positive = 6 * 3600
    history: Annotated[int, Field(ge=86400), BeforeValidator(to_seconds)] = 90 * 86400
    schedule: ScheduleSettings = ScheduleSettings()
    windows: Mapping[str, WindowSettings] = {}

    @model_validator(mode="after")
    def _check(self) -> ServeSettings:
        try:
            ZoneInfo(self.timezone)
        except (OSError, ValueError, LookupError):
            raise ValueError(
                f'timezone {self.timezone!r} is not known; "Europe/Berlin" is'
            ) from None
        rest = [name for name, window in self.windows.items() if not window.when]
        if len(rest) > 1:
            raise ValueError(
                f"windows {' and '.join(rest)} have no hours: only one can have the rest"
            )
        return self

    def schedule_of(self, text: str) -> Schedule:
        """A schedule in the zone of the config."""
        return parse_schedule(text, self.timezone)

    def hours(self) -> tuple[Window, ...]:
        """The windows in the order of the config, the one without hours last."""
        ordered = sorted(self.windows.items(), key=lambda window: not window[1].when)
        return tuple(self._window(name, window) for name, window in ordered)

    def _window(self, name: str, window: WindowSettings) -> Window:
        least, most = window.workers
        if not window.when:
            return Window(name, least, most, self.timezone)
        days, begin, end = parse_hours(window.when)
        return Window(name, least, most, self.timezone, days, begin, end)


class BreakerSettings(Section):
    """[breaker]: how often something fails before it rests, and for how long."""

    enabled: bool = True
    threshold: PositiveInt = 5
    pause: Positive = 60
    longest: Positive = 3600

    @model_validator(mode="after")
    def _check(self) -> BreakerSettings:
        if self.longest < self.pause:
            raise ValueError("longest is at least pause")
        return self


class WebSettings(Section):
    """[web]: the dashboard. ``tokens`` name who may act, or view; ``listen`` is "" for none."""

    listen: str = Field(default="127.0.0.1:8080", pattern=r"^$|^\S*:\d{1,5}$")
    read_only: bool = False
    behind_proxy: bool = False
    certificate: str = ""
    key: str = ""
    tokens: Mapping[str, SecretName] = {}
