"""What the service knows about itself, in the lake: one small object that it overwrites.

``bronze status`` and others read it, so that they need no connection to the service.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bronze.config.settings import GOVERNANCE, Settings
from bronze.delta import store
from bronze.errors import FileDamaged
from bronze.model.locations import Place
from bronze.operate.view import Live

ALIVE = timedelta(seconds=60)
"""How old the object is at most while the service lives."""
_FOLDER, _PATH = "_service", "live.json"
_LIVE: TypeAdapter[Live] = TypeAdapter(Live)


def place(settings: Settings) -> Place:
    """The folder of the object, which is not a Delta table."""
    return settings.place(GOVERNANCE, _FOLDER)


def write(settings: Settings, live: Live) -> None:
    """Writes it.

    Raises:
        LakeError, LakeUnreachable: the lake cannot be written.
    """
    text = json.dumps(asdict(live), ensure_ascii=False, default=_text)
    store.put(place(settings), _PATH, text.encode())


def read(settings: Settings) -> Live | None:
    """What the last service wrote; None if there was none, or if it is of another version.

    Raises:
        LakeError, LakeUnreachable: the lake cannot be read.
    """
    folder = place(settings)
    if store.is_missing(folder):
        return None
    try:
        with store.reader(folder, _PATH) as file:
            data = file.read()
    except FileDamaged:
        return None
    try:
        return _LIVE.validate_json(bytes(data))
    except ValidationError:
        return None


def _text(moment: Any) -> str:
    text: str = moment.isoformat() if isinstance(moment, datetime) else str(moment)
    return text
