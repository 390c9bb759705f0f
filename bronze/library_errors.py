"""Messages of errors of other libraries, as one sentence.

Libraries written in Rust add debug output of their values, backtraces and colours.
"""

from __future__ import annotations

import re

_MAX_LENGTH = 300

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FRAME = re.compile(r"^\s*(\d+: \S.*|at \S+:\d+(:\d+)?)$")
_ARROW = re.compile(r"\s*(?:↳|->)\s*")
# The start of the debug output of a value, which goes to the end: Generic { store: "S3", source: …
_DEBUG = re.compile(
    r"\s*(?:Debug source:.*|\b[A-Z]\w*\s*\{\s*\w+:\s.*|\b[A-Z]\w*\(\s*[A-Z]\w*\s*[({].*)$"
)
# The message in debug output, if it has one.
_MESSAGE = re.compile(r'\b(?:message|error|reason|body|kind|status): (?:"([^"]+)"|(\w+))')
# The names of the layers that the error passed through.
_LAYERS = re.compile(
    r"^(?:(?:Kernel|Arrow|Parquet|External|Json|Object store|Object at location|ObjectStore"
    r"|Generic(?: [\w ]+?)?|Delta transaction failed)(?: error)?:\s+)+",
    re.IGNORECASE,
)


def error_text(error: BaseException) -> str:
    """The message of an error, in one line without a full stop at its end."""
    text = _COLOURS.sub("", str(error)).partition("\n\nDebug source:")[0]
    lines = [line for line in text.splitlines() if not _FRAME.match(line)]
    joined = _ARROW.sub(": ", " ".join(" ".join(lines).split()))
    message = _LAYERS.sub("", _DEBUG.sub("", joined).rstrip(" :.,({") + " ").strip()
    if message != joined and (inner := _MESSAGE.search(joined, len(message))):
        message = f"{message}: {inner[1] or inner[2]}"
    return message[:_MAX_LENGTH].rstrip(" :.,") or type(error).__name__
