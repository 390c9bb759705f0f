"""Sends a notice by a channel of the config, with its secrets as they are now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

from bronze import errors, secrets
from bronze.config.fields import SecretName
from bronze.config.sections.alerts import (
    AppriseChannel,
    Channel,
    EmailChannel,
    PagerDutyChannel,
    SlackChannel,
    WebhookChannel,
)
from bronze.config.settings import Settings
from bronze.errors import ConfigError
from bronze.operate.alerts.channels import apprise, email, pagerduty, slack, webhook
from bronze.operate.alerts.channels.email import Mailbox
from bronze.operate.alerts.channels.failure import ChannelError
from bronze.operate.alerts.notices import Notice

Send = Callable[[Notice, float], str]
"""Sends a notice within a time for each read, in seconds; returns what was answered. Raises
ChannelError.
"""


def sender(settings: Settings, channel: Channel) -> Send:
    """How notices are sent by a channel. Secrets are resolved for each notice, so that one that was
    changed is used at once; errors do not have them.
    """

    def send(notice: Notice, timeout: float) -> str:
        with secrets_hidden(settings) as resolve:
            return _send(channel, notice, resolve, timeout)

    return send


@contextmanager
def secrets_hidden(settings: Settings) -> Iterator[Callable[[SecretName], str]]:
    """A function that resolves secrets; errors of the block are those of a channel without them."""
    known: list[str] = []

    def resolve(name: SecretName) -> str:
        known.append(secrets.resolve(settings.secret(name)))
        return known[-1]

    try:
        yield resolve
    except errors.BronzeError as error:
        raise ChannelError(error.message, retry=True) from None
    except ChannelError as error:
        raise error.without([part for secret in known for part in _parts(secret)]) from None


def _parts(secret: str) -> list[str]:
    """A secret, and if it is an address the path of it, as an answer may repeat them."""
    try:
        path = urlsplit(secret).path if "://" in secret else ""
    except ValueError:
        path = ""
    return [secret, *([path, unquote(path)] if len(path) > 1 else [])]


def _send(
    channel: Channel, notice: Notice, resolve: Callable[[SecretName], str], timeout: float
) -> str:
    match channel:
        case EmailChannel():
            password = resolve(channel.password) if channel.password else None
            return email.send(notice, mailbox(channel), password, timeout)
        case SlackChannel(webhook=SecretName() as address):
            return slack.send_by_webhook(notice, resolve(address), timeout)
        case SlackChannel(token=SecretName() as token):
            words = (channel.url, resolve(token), channel.channel)
            return slack.send_by_token(notice, *words, timeout)
        case PagerDutyChannel():
            return pagerduty.send(notice, channel.url, resolve(channel.key), timeout)
        case WebhookChannel():
            url = channel.url if isinstance(channel.url, str) else resolve(channel.url)
            secret = resolve(channel.secret) if channel.secret else None
            return webhook.send(notice, url, secret, datetime.now(UTC), timeout)
        case AppriseChannel():
            return apprise.send(notice, resolve(channel.url), timeout)
    raise ConfigError(f"The channel {channel.name} has nowhere to send to.")


def mailbox(channel: EmailChannel) -> Mailbox:
    """Where the mails of a channel go through, and from whom to whom."""
    host, _, port = channel.server.rpartition(":")
    return Mailbox(
        host.strip("[]"), int(port), channel.tls, channel.sender, channel.to, channel.user
    )
