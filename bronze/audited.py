"""What was done with protected data is told: never a value, only what was asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from bronze.config import Settings

_log = logging.getLogger("bronze.audit")


def audited(
    settings: Settings, action: str, subject: str, result: str, details: Mapping[str, str]
) -> None:
    """Tells of one action.

    Args:
        settings: the config.
        action: what was done: ``reveal``, ``forget``, ``rotate``, ``rewrap``.
        subject: the table that it was done to.
        result: how it ended.
        details: what else there is to know.
    """
    _log.warning("%s %s: %s %s", action, subject, result, dict(details))
