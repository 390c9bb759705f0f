"""A lake's folder on this machine that is not created again if it disappears."""

from __future__ import annotations

from pathlib import Path

from bronze.errors import LakeUnreachable
from bronze.model import object_store
from bronze.model.locations import Place

_EXPECTED: set[Path] = set()


def expect(root: Place) -> None:
    """From now on the local folder of a lake is not created again if it disappears.

    It may have been renamed, or its disk is not mounted: a new folder in its place would look like
    a lake in which nothing was ever loaded. Until `expect_no_more`, whatever is read from or
    written to a table in it is an error as long as the folder is not there.
    """
    if not object_store.REMOTE.match(root.url):
        _EXPECTED.add(_path(root))


def expect_no_more(root: Place) -> None:
    """The opposite of `expect`."""
    _EXPECTED.discard(_path(root))


def check(place: Place) -> None:
    """Checks that the folder of the lake that a table is in is there, if it is expected.

    Raises:
        LakeUnreachable: it is not.
    """
    path = _path(place)
    for root in _EXPECTED.copy():
        if path.is_relative_to(root) and path != root and not root.is_dir():
            raise LakeUnreachable(
                f"The lake at {root} cannot be reached: there is no such folder.",
                hint="Put it back, or start again to begin a new lake.",
            )


def _path(place: Place) -> Path:
    return Path(place.url).absolute()
