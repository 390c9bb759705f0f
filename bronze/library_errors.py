"""What the libraries beneath say of an error, as a sentence.

Those written in Rust add the debug text of their own values, a backtrace of theirs, and colours.
"""

from __future__ import annotations

import re

_LONGEST = 300

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FRAME = re.compile(r"^\s*(\d+: \S.*|at \S+:\d+(:\d+)?)$")
_ARROW = re.compile(r"\s*(?:↳|->)\s*")
# From here on it is the debug text of a value: Generic { store: "S3", source: …
_DEBUG = re.compile(
    r"\s*(?:Debug source:.*|\b[A-Z]\w*\s*\{\s*\w+:\s.*|\b[A-Z]\w*\(\s*[A-Z]\w*\s*[({].*)$"
)
# What such a text says in words, if anything.
_WORDS = re.compile(r'\b(?:message|error|reason|body|kind|status): (?:"([^"]+)"|(\w+))')
# Whose error it was says nothing to anybody.
_WHOSE = re.compile(
    r"^(?:(?:Kernel|Arrow|Parquet|External|Json|Object store|Object at location|ObjectStore"
    r"|Generic(?: [\w ]+?)?|Delta transaction failed)(?: error)?:\s+)+",
    re.IGNORECASE,
)


def plain(error: BaseException) -> str:
    """What an error says, in one line without a full stop at its end."""
    text = _COLOURS.sub("", str(error)).partition("\n\nDebug source:")[0]
    lines = [line for line in text.splitlines() if not _FRAME.match(line)]
    joined = _ARROW.sub(": ", " ".join(" ".join(lines).split()))
    said = _WHOSE.sub("", _DEBUG.sub("", joined).rstrip(" :.,({") + " ").strip()
    if said != joined and (words := _WORDS.search(joined, len(said))):
        said = f"{said}: {words[1] or words[2]}"
    return said[:_LONGEST].rstrip(" :.,") or type(error).__name__
