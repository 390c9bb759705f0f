"""Any service that the library apprise knows: Teams, Telegram, ntfy and more (``bronze[apprise]``).

The library tells errors in its log alone; what it logs is the message of the error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from bronze.operate.alerts.channels.failure import ChannelError
from bronze.operate.alerts.notices import Notice

_LOGGER = "apprise"
_TYPES = {"open": "failure", "acknowledge": "info", "resolve": "success"}


def send(notice: Notice, url: str, timeout: float) -> str:
    """Sends a notice to the service of one of apprise's addresses, within a time for each read.

    Raises:
        ChannelError: apprise is not installed, does not know the address, or could not send.
    """
    try:
        import apprise
    except ImportError:
        raise ChannelError(
            "The package apprise is not installed: pip install 'bronze[apprise]'", retry=True
        ) from None
    seconds = f"{max(1.0, timeout):g}"
    joint = "&" if "?" in url else "?"
    target = apprise.Apprise()
    with _log() as messages:
        if not target.add(f"{url}{joint}cto={seconds}&rto={seconds}"):
            raise ChannelError(
                "apprise does not know such an address: https://github.com/caronc/apprise has them",
                retry=False,
            )
        kind = _TYPES[notice.act]
        is_sent = target.notify(title=notice.title, body="\n".join(notice.lines), notify_type=kind)
    if not is_sent:
        raise ChannelError(" ".join(messages) or "apprise could not send it", retry=True)
    return "sent"


@contextmanager
def _log() -> Iterator[list[str]]:
    """The warnings and errors that apprise logs in the block; nothing of them goes elsewhere."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger(_LOGGER), Handler(logging.WARNING)
    was_propagating, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = was_propagating
