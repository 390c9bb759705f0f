"""Whether a channel could send now: its secrets and its server, without sending anything."""

from __future__ import annotations

from bronze.config.fields import SecretName
from bronze.config.sections.alerts import (
    Channel,
    EmailChannel,
    PagerDutyChannel,
    SlackChannel,
    WebhookChannel,
)
from bronze.config.settings import Settings
from bronze.operate.alerts.channels import email, http
from bronze.operate.alerts.channels.sender import mailbox, secrets_hidden


def reach(settings: Settings, channel: Channel, timeout: float) -> str:
    """Resolves the secrets of a channel and connects to its server.

    Args:
        settings: the config.
        channel: one of its channels.
        timeout: the seconds for each read.

    Returns:
        The host and port that were reached.

    Raises:
        ChannelError: a message could not be sent now. It has no secret.
    """
    with secrets_hidden(settings) as resolve:
        for name in _secret_names(channel):
            resolve(name)
        match channel:
            case EmailChannel():
                return email.reach(mailbox(channel), timeout)
            case SlackChannel():
                address = channel.webhook or channel.url
            case PagerDutyChannel() | WebhookChannel():
                address = channel.url
            case _:
                return "its secrets; only a message can try its service"
        url = resolve(address) if isinstance(address, SecretName) else address
        return http.reach(url, timeout)


def _secret_names(channel: Channel) -> list[SecretName]:
    values = (getattr(channel, name) for name in type(channel).model_fields)
    return [value for value in values if isinstance(value, SecretName)]
