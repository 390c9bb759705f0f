"""Notices that the config file has changed, and says what a new config changes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from bronze.config import fingerprint
from bronze.config.settings import Settings
from bronze.errors import ConfigError

_MOST_NAMED = 8


@dataclass
class ConfigFile:
    """The file that a config was read from, and its content at the last look."""

    settings: Settings
    error: str = ""
    _seen: str = ""
    _stat: object = field(default=None)

    def __post_init__(self) -> None:
        self._stat, self._seen = self._state(), self._content()

    def changed(self, *, always: bool = False) -> Settings | None:
        """The config of the file if that has changed since the last look, or ``always``.

        None if it has not changed, or is wrong: then ``error`` says why.
        """
        if not self.settings.path:
            return None
        state = self._state()
        if state == self._stat and not always:
            return None
        self._stat, content = state, self._content()
        if content == self._seen and not always:
            return None
        self._seen = content
        try:
            changed = Settings.from_file(self.settings.path)
        except ConfigError as error:
            self.error = error.message
            return None
        self.error = ""
        changed = changed.model_copy(update={"added": self.settings.added})
        if (changed.lake.root, changed.lake.schema_) != (
            self.settings.lake.root,
            self.settings.lake.schema_,
        ):
            self.error = "[lake] cannot change while the service runs: start it again."
            return None
        self.settings = changed
        return changed

    def _state(self) -> object:
        try:
            found = Path(self.settings.path).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _content(self) -> str:
        try:
            return hashlib.sha256(Path(self.settings.path).read_bytes()).hexdigest()
        except OSError:
            return ""


def differences(before: Settings, after: Settings) -> tuple[str, ...]:
    """The keys of the config that are new, gone or have another value, without their values."""
    old, new = fingerprint.imprint(before), fingerprint.imprint(after)
    keys = {key for key in old | new if old.get(key) != new.get(key)}
    sections = {key.partition(".")[0] for key in keys}
    for section in ("source", "lake"):
        # The imprint does not have the passwords that stand in the config.
        if section not in sections and getattr(before, section) != getattr(after, section):
            keys.add(f"{section} (a password)")
    return tuple(sorted(keys))


def sentence(keys: tuple[str, ...]) -> str:
    """What a new config changes."""
    if not keys:
        return "nothing has changed"
    more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
    return f"changed: {', '.join(keys[:_MOST_NAMED])}{more}"
