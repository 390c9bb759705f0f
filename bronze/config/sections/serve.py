"""The sections [serve], [breaker] and [web] of bronze.toml: the service. Times are in seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from bronze.config.fields import Seconds, SecretName, Section, to_seconds
from bronze.model.schedule import Schedule, Window, parse_hours, parse_schedule
from bronze.model.stamp import IngestionMethod

Positive = Annotated[int, Field(ge=1), BeforeValidator(to_seconds)]
_LISTEN = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):\d{1,5}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


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


def _check_continuous(text: str) -> str:
    if not parse_schedule(text).is_continuous:
        raise ValueError(
            f'a stream is "continuous", not {text!r}; pattern = "micro_batch" loads at due times'
        )
    return text


ContinuousText = Annotated[str, AfterValidator(_check_continuous)]


def to_none(value: object) -> object:
    """None for a text that is empty."""
    return None if value == "" else value


NeverText = Annotated[DueText | None, BeforeValidator(to_none)]


class ScheduleSettings(Section):
    """[serve.schedule]: when tables are due, by their pattern; and the whole lake's maintenance and
    verification, "" for never.
    """

    streaming: ContinuousText = "continuous"
    micro_batch: DueText = "hourly"
    batch: DueText = "daily 02:00"
    full_refresh: DueText = "daily 03:00"
    maintain: NeverText = "daily 04:30"
    verify: NeverText = "weekly Sun 05:00"

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
            raise ValueError(
                f"workers = {list(self.workers)}: the least comes first, and then the most"
            )
        if self.when:
            parse_hours(self.when)
        return self


class ServeSettings(Section):
    """[serve]: what the service runs, and when."""

    timezone: str = "UTC"
    runs: PositiveInt = 2
    grace: Seconds = 30
    timeout: Positive = 6 * 3600
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


class WebTokens(Section):
    """``tokens`` of [web]: the secrets of those who may act, and of those who may only look."""

    operator: SecretName | None = None
    viewer: SecretName | None = None


class WebSettings(Section):
    """[web]: the dashboard, at ``listen``; "" is none.

    ``certificate`` and ``key`` are files for TLS. ``behind_proxy`` says that a proxy on the way has
    TLS. ``host`` is the name in the browser's address bar, if it is not that of ``listen``.
    """

    listen: str = "127.0.0.1:8080"
    host: str = ""
    read_only: bool = False
    behind_proxy: bool = False
    certificate: str = ""
    key: str = ""
    tokens: WebTokens = WebTokens()

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port of ``listen``."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.address[0] in _LOOPBACK

    @model_validator(mode="after")
    def _check(self) -> WebSettings:
        if not self.listen:
            return self
        if not _LISTEN.fullmatch(self.listen) or not 0 < self.address[1] < 2**16:
            raise ValueError('listen is host:port, such as "127.0.0.1:8080", or "" for none')
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key are set together, or neither")
        if self.is_local and not self.behind_proxy:
            return self
        if not self.certificate and not self.behind_proxy:
            raise ValueError(
                f"listen = {self.listen!r} is reached from other machines, and tokens would cross"
                " the network in clear: set certificate and key, or behind_proxy = true if a proxy"
                " before it has TLS"
            )
        if self.tokens.operator is None and self.tokens.viewer is None:
            way = " by the proxy" if self.behind_proxy else ""
            raise ValueError(
                f"listen = {self.listen!r} is reached from other machines{way}: set tokens.viewer,"
                " tokens.operator, or both"
            )
        return self


def section_of(top: str, path: Sequence[str]) -> type[Section]:
    """The section that a key is wrong in, by the section of the file and the path below it."""
    if top == "serve" and path:
        return WindowSettings if path[1:] else ScheduleSettings
    if top == "web" and path:
        return SecretName if path[1:] else WebTokens
    sections: Mapping[str, type[Section]] = {
        "serve": ServeSettings,
        "breaker": BreakerSettings,
        "web": WebSettings,
    }
    return sections[top]
