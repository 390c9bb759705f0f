"""The error of a channel."""

from __future__ import annotations


class ChannelError(Exception):
    """A message could not be sent: one sentence, without secrets.

    ``retry`` says whether trying again can help, ``after`` in how many seconds the other side
    wants that to be.
    """

    def __init__(self, message: str, *, retry: bool, after: float | None = None) -> None:
        super().__init__(message)
        self.retry = retry
        self.after = after
