"""Whether the servers of the channels of alerts can be reached. Nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator

from bronze.config.sections.alerts import Channel
from bronze.config.settings import Settings
from bronze.operate.alerts.channels import http
from bronze.operate.alerts.channels.failure import ChannelError
from bronze.operate.alerts.channels.reach import reach
from bronze.operate.doctor.examination import Check, Verdict, ok, problem

_TIMEOUT = 3.0
_HINT = "Check the channel in [[alerts.channels]] and the network; then `bronze alerts test`."


def checks(settings: Settings) -> list[Check]:
    """A check of each channel, and of the heartbeat."""
    found = [_check(settings, channel) for channel in settings.alerts.channels]
    return [*(found or [_none()]), *_heartbeat(settings.alerts.heartbeat)]


def _none() -> Check:
    def examine() -> Iterator[Verdict]:
        yield ok("The config has no [[alerts.channels]]: alerts are only listed, nobody is told.")

    return Check("channels", examine, "The channels")


def _check(settings: Settings, channel: Channel) -> Check:
    def examine() -> Iterator[Verdict]:
        try:
            server = reach(settings, channel, _TIMEOUT)
        except ChannelError as error:
            yield problem(f"Channel {channel.name} cannot send: {error}.".replace("..", "."), _HINT)
        else:
            yield ok(f"Channel {channel.name} ({channel.kind}) reaches {server}.")

    return Check("channels", examine, f"Channel {channel.name}", _HINT, channel.name)


def _heartbeat(url: str) -> list[Check]:
    def examine() -> Iterator[Verdict]:
        try:
            yield ok(f"The heartbeat reaches {http.reach(url, _TIMEOUT)}.")
        except ChannelError as error:
            yield problem(f"The heartbeat fails: {error}.", "Check [alerts] heartbeat.")

    return [Check("heartbeat", examine, "The heartbeat's address")] if url else []
