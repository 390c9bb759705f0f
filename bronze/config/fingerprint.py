"""The imprint of a config: what it says, as hashes that tell what has changed and no secret; and
whether its file is committed in a git repository.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bronze.config.fields import is_secret_option
from bronze.config.settings import Settings
from bronze.dsn import parse_dsn

_DIGITS = 16
_GIT_SECONDS = 10
_HOST = re.compile(r"^(https?://)(?:[^/?#@]*@)?([^/?#]+)[/?#].*$", re.DOTALL)
_HIDDEN = ("password", "sslpassword")
_STORES = (("lake", "options"), ("audit", "escrow_options"), ("backup", "options"))
"""The sections and keys with options of object stores."""


def imprint(settings: Settings) -> dict[str, str]:
    """A short hash of each value that the config gives, by its place (``tables.orders.pattern``).

    Passwords that stand in the config are left out; of others the name is part of it. The share of
    memory that a work has is no part of it.
    """
    return {place: _hash(value)[:_DIGITS] for place, value in _placed(_document(settings))}


def _document(settings: Settings) -> dict[str, Any]:
    """What a config says, without passwords."""
    document = settings.whole.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for source in document["source"].values():
        if isinstance(source.get("dsn"), str):
            source["dsn"] = _without_password(source["dsn"])
    for section, key in _STORES:
        options = document.get(section, {}).get(key, {})
        for name in [name for name, value in options.items() if isinstance(value, str)]:
            if is_secret_option(name):
                options[name] = ""
    return document


def _placed(document: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The values of a config by their places, sorted."""
    return sorted(_leaves("", document), key=lambda leaf: leaf[0])


def readable(settings: Settings) -> dict[str, Any]:
    """The values that a config gives, by their places, for people: of secrets there are names only,
    and of addresses of the web the hosts only, as the rest of one may be a token.
    """
    return {place: _without_paths(value) for place, value in _placed(_document(settings))}


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        return _HOST.sub(r"\1\2/…", value)
    if isinstance(value, list):
        return [_without_paths(part) for part in value]
    if isinstance(value, Mapping):
        return {name: _without_paths(part) for name, part in value.items()}
    return value


def fingerprint_of(imprinted: Mapping[str, str]) -> str:
    """The hash of all of it, as 32 hexadecimal digits."""
    return _hash(imprinted)[:32]


FileState = Literal["", "committed", "changed", "untracked", "replaced", "unknown"]


@dataclass(frozen=True)
class FileVersion:
    """The version of a config's file in git.

    ``commit`` is the present one of the repository that the file is in, "" without a repository.
    ``state`` says whether the file is ``committed`` there as it is, was ``changed`` since, is
    ``untracked``; or was ``replaced`` on disk since it was read; ``unknown`` if git cannot say.
    """

    commit: str = ""
    state: FileState = ""


def file_version(settings: Settings) -> FileVersion:
    """The version in git of the file that a config was read from."""
    file = Path(settings.path)
    if not settings.path or not any((folder / ".git").exists() for folder in file.parents):
        return FileVersion()
    commit = git(file.parent, "rev-parse", "HEAD")
    status = git(file.parent, "status", "--porcelain", "--ignored", "--", file.name)
    if status is None:
        return FileVersion("", "unknown")
    state: FileState = "committed"
    if status:
        state = "untracked" if status[:2] in (b"??", b"!!") else "changed"
    if digest_of(file) != settings.digest:
        state = "replaced"
    return FileVersion((commit or b"").decode().strip(), state)


def digest_of(file: Path) -> str:
    """The SHA-256 of a file's content, "" if it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints in a folder; None if it is not installed, or fails."""
    # A hook of git would have it look at another repository, and a status would write its index.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *arguments],  # noqa: S607
            capture_output=True,
            env=environment,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def _without_password(dsn: str) -> Mapping[str, Any]:
    return {name: value for name, value in parse_dsn(dsn, "").items() if name not in _HIDDEN}


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        yield place, value
        return
    for name, inner in value.items():
        yield from _leaves(f"{place}.{name}" if place else str(name), inner)


def _hash(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


EMPTY_TEXT = _hash("")[:_DIGITS]
"""The hash of a value that is an empty text."""
