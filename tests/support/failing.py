"""A file whose reads fail, as those of a bad disk or network do."""

from __future__ import annotations

import io
from pathlib import Path


class Failing(io.RawIOBase):
    """A file whose reads fail from some one on."""

    def __init__(self, path: Path, error: BaseException, reads: int) -> None:
        self._file, self._error, self._left = path.open("rb"), error, reads

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read anywhere."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Fails after some reads."""
        self._left -= 1
        if self._left < 0:
            raise self._error
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place."""
        return self._file.tell()
