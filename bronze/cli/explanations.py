"""What each kind of error means, and what to do; the texts are in ``explanations.toml``."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from bronze import errors
from bronze.errors import BronzeError, ConfigError

BUG = "Bug"
"""The kind of errors that are none of bronze's classes."""


@dataclass(frozen=True)
class FrequentMessage:
    """A part of a message, in which an ellipsis stands for a name, and what to do about it."""

    text: str
    remedy: str


@dataclass(frozen=True)
class Explanation:
    """What a kind of error means.

    ``name`` is the word for the command, ``kind`` the name in results and documents. ``retry`` says
    whether it helps to try again. ``runbooks`` are kinds of alerts that the service may raise.
    """

    name: str
    kind: str
    exit_code: int
    meaning: str
    causes: tuple[str, ...]
    steps: tuple[str, ...]
    retry: str
    messages: tuple[FrequentMessage, ...]
    runbooks: tuple[str, ...]

    @property
    def words(self) -> str:
        """The whole text in lower case, to be searched."""
        parts = (self.name, self.meaning, *self.causes, *(m.text for m in self.messages))
        return " ".join(parts).lower()

    @property
    def summary(self) -> str:
        """The first sentence of the meaning."""
        return self.meaning.partition(". ")[0].removesuffix(".") + "."


@cache
def explanations() -> Mapping[str, Explanation]:
    """All of them by their names, in the order in which a newcomer meets them."""
    content = (resources.files("bronze.cli") / "explanations.toml").read_text(encoding="utf-8")
    made = {}
    for kind, text in tomllib.loads(content).items():
        error = getattr(errors, kind, None)
        name = name_of(kind)
        made[name] = Explanation(
            name=name,
            kind=kind,
            exit_code=error("").exit_code if error else text["exit_code"],
            meaning=text["meaning"],
            causes=tuple(text["causes"]),
            steps=tuple(text["steps"]),
            retry=text["retry"],
            messages=tuple(FrequentMessage(*message) for message in text["messages"]),
            runbooks=tuple(text["see"]),
        )
    return made


def explain(name: str) -> Explanation:
    """The explanation of a kind, by its name or its class: ``source_busy`` or ``SourceBusy``.

    Raises:
        ConfigError: there is no such kind.
    """
    known = explanations()
    wanted = name_of(name)
    if wanted in known:
        return known[wanted]
    near = (
        difflib.get_close_matches(wanted, known, 3, 0.6)
        or [one for one, text in known.items() if wanted.replace("_", " ") in text.words][:3]
    )
    suggestion = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise ConfigError(
        f"There is no kind of error {name!r}{suggestion}.",
        hint="`bronze explain` lists all of them.",
    )


def name_of(kind: str) -> str:
    """The word of a kind for the command; any other class is a bug."""
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.strip()).lower().replace("-", "_")
    return word.replace(" ", "_")


def command_for(kind: str) -> str:
    """The command that explains a kind of error, as a result or an exception names it."""
    error = getattr(errors, kind, None)
    is_known = kind == "Interrupted" or (isinstance(error, type) and issubclass(error, BronzeError))
    return f"bronze explain {name_of(kind if is_known else BUG)}"
