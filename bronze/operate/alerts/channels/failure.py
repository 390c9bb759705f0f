"""The error of a channel."""

from __future__ import annotations

from collections.abc import Iterable

_HIDDEN = "[secret]"


class ChannelError(Exception):
    """A message could not be sent: one sentence, without secrets.

    ``retry`` says whether trying again soon can help, ``after`` in how many seconds the other side
    wants that to be. ``uncertain`` says that the message may have arrived all the same, as the
    answer is what is missing.
    """

    def __init__(
        self, message: str, *, retry: bool, after: float | None = None, uncertain: bool = False
    ) -> None:
        super().__init__(message)
        self.retry = retry
        self.after = after
        self.uncertain = uncertain

    def without(self, secrets: Iterable[str]) -> ChannelError:
        """The error without these texts, which an answer may have repeated."""
        message = str(self)
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            message = message.replace(secret, _HIDDEN)
        return ChannelError(message, retry=self.retry, after=self.after, uncertain=self.uncertain)
