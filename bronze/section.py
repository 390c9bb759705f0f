"""What the sections of bronze.toml are made of."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_DURATION = re.compile(r"^\s*(\d+)\s*(s|m|h|d|)\s*$", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(value: object) -> object:
    """A time in seconds, where it is given as "30s", "5m" or "2h"."""
    if isinstance(value, str):
        match = _DURATION.match(value)
        if not match:
            raise ValueError('a time looks like "30s", "5m" or "2h"')
        return int(match[1]) * _SECONDS[match[2].lower()]
    return value


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Seconds = Annotated[int, Field(ge=0), BeforeValidator(duration)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Section(BaseModel):
    """A section: it has no keys that are not known, and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
