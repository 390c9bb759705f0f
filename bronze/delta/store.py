"""The object store of the lake: local folders, S3, Azure or Google Cloud, by one interface."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PermissionDeniedError
from obstore.store import LocalStore, from_url

from bronze import secrets
from bronze.errors import BronzeError, FileDamaged, LakeError, LakeUnreachable
from bronze.library_errors import error_text
from bronze.model.locations import Place, Secret

_CLIENT = (
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "pool_idle_timeout",
    "proxy_url",
    "timeout",
    "user_agent",
)
_REMOTE = re.compile(r"^[a-z][a-z0-9+]*://", re.IGNORECASE)
_EXPECTED: set[Path] = set()


def options(place: Place) -> dict[str, str]:
    """The options of the object store, with secrets resolved; deltalake takes the same ones."""
    return {
        name: secrets.resolve(value) if isinstance(value, Secret) else value
        for name, value in place.options
    }


def is_local(place: Place) -> bool:
    """Whether the table lies in a folder of this machine."""
    return not _REMOTE.match(place.url)


def expect(root: Place) -> None:
    """From now on the local folder of a lake is not created again if it disappears.

    It may have been renamed, or its disk is not mounted: a new folder in its place would look like
    a lake in which nothing was ever loaded. Until `expect_no_more`, whatever is read from or
    written to a table in it is an error as long as the folder is not there.
    """
    if is_local(root):
        _EXPECTED.add(_path(root))


def expect_no_more(root: Place) -> None:
    """The opposite of `expect`."""
    _EXPECTED.discard(_path(root))


def _path(place: Place) -> Path:
    return Path(place.url).absolute()


def _check_root(place: Place) -> None:
    path = _path(place)
    for root in _EXPECTED.copy():
        if path.is_relative_to(root) and path != root and not root.is_dir():
            raise LakeUnreachable(
                f"The lake at {root} cannot be reached: there is no such folder.",
                hint="Put it back, or start again to begin a new lake.",
            )


def is_missing(place: Place, under: str = "") -> bool:
    """Whether a local folder does not exist; only writing creates one.

    Raises:
        LakeUnreachable: the lake's own folder has disappeared; see `expect`.
    """
    if not is_local(place) or (Path(place.url) / under).is_dir():
        return False
    _check_root(place)
    return True


def open_store(place: Place) -> Any:
    """The store whose root is the table's folder."""
    try:
        if is_local(place):
            _check_root(place)
            return LocalStore(prefix=Path(place.url).absolute(), mkdir=True)
        given = options(place)
        # obstore takes some options of deltalake as options of the connection.
        client = {name: given.pop(name) for name in _CLIENT if name in given}
        return from_url(place.url, config=given, client_options=client)  # type: ignore[call-overload]
    except (KeyboardInterrupt, SystemExit, BronzeError):
        raise
    except BaseException as error:  # an option that it does not know makes obstore panic
        raise store_error(place, "opened", error) from None


@contextmanager
def writer(place: Place, path: str) -> Iterator[IO[bytes] | io.RawIOBase]:
    """A file to write one object with, in bounded memory.

    If the context ends with an error, the object does not exist or is incomplete.

    Raises:
        LakeError, LakeUnreachable: it cannot be written.
    """
    try:
        if is_local(place):
            _check_root(place)
            local = Path(place.url) / path
            local.parent.mkdir(parents=True, exist_ok=True)
            try:
                with local.open("xb") as file:
                    yield file
            except BaseException:
                local.unlink(missing_ok=True)
                raise
        else:
            upload = _Upload(obstore.open_writer(open_store(place), path))
            yield upload
            upload.finish()
    except (BaseError, OSError, pa.ArrowException) as error:
        raise store_error(place, "written", error) from None


class _Upload(io.RawIOBase):
    """An obstore upload as a file. It is abandoned unless it is finished."""

    def __init__(self, upload: Any) -> None:
        self._upload = upload
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._upload.write(bytes(data))
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def finish(self) -> None:
        self._upload.close()


class _Download(io.RawIOBase):
    """An object of obstore as a file."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return bytes(self._source.read(None if size < 0 else size))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._source.seek(offset, whence))

    def tell(self) -> int:
        return int(self._source.tell())


def reader(place: Place, path: str) -> IO[bytes] | Any:
    """An object to read, from any offset.

    Raises:
        FileDamaged: there is no such object.
        LakeError, LakeUnreachable: it cannot be read.
    """
    try:
        if is_local(place):
            return pa.OSFile(str(Path(place.url) / path))
        return _Download(obstore.open_reader(open_store(place), path))
    except (BaseError, OSError) as error:
        raise read_error(place, path, error) from None


def read_error(place: Place, path: str, error: BaseException) -> BronzeError:
    """The error for a file of a table that could not be read. Only a missing one is `damage_error`:
    after any other error the next attempt may succeed.
    """
    if isinstance(error, (FileNotFoundError, NotFoundError)):
        # If the whole lake is missing, the error is not of a single file.
        if is_missing(place):
            return store_error(place, "read", FileNotFoundError("no such file or directory"))
        return damage_error(place, path, "is missing")
    if isinstance(error, (PermissionError, PermissionDeniedError)):
        return LakeUnreachable(
            f"The file {path} of the table at {place.url} cannot be read: permission denied.",
            hint="Check the owner and the permissions of the file.",
        )
    known = store_error(place, "read", error)
    if isinstance(known, LakeUnreachable):
        return known
    return LakeUnreachable(
        f"The file {path} of the table at {place.url} could not be read: {error_text(error)}.",
        hint="Check the disk, or the network and the object store; then try again.",
    )


def damage_error(place: Place, path: str, what: str) -> FileDamaged:
    """The error for a file of a table that is missing or damaged; ``what`` completes "The file"."""
    return FileDamaged(
        f"The file {path} of the table at {place.url} {what}.",
        hint="`bronze verify --at-rest` lists all damaged files; `bronze verify --repair` reads"
        " lost rows from the source.",
    )


def put(place: Place, path: str, data: bytes) -> None:
    """Writes one object atomically.

    Raises:
        LakeUnreachable: it cannot be written.
    """
    try:
        obstore.put(open_store(place), path, data)
    except (BaseError, OSError) as error:
        raise store_error(place, "written", error) from None


def prove_writable(place: Place) -> None:
    """Checks that the lake can be written, by writing and deleting an object.

    Raises:
        LakeError, LakeUnreachable
    """
    path = f"_bronze_{uuid4().hex}"
    put(place, path, b"")
    delete(place, [path])


def prove_exclusive(place: Place) -> None:
    """Checks that the lake can be written, and that of two writers of one object the second one is
    refused, on which commits rely; by writing and deleting an object.

    Raises:
        LakeError, LakeUnreachable
    """
    path, opened = f"_bronze_{uuid4().hex}", open_store(place)
    try:
        obstore.put(opened, path, b"", mode="create")
        try:
            obstore.put(opened, path, b"again", mode="create")
        except AlreadyExistsError:
            return
        finally:
            delete(place, [path])
    except (BaseError, OSError) as error:
        raise store_error(place, "written", error) from None
    raise LakeError(
        f"The lake at {place.url} lets a second writer replace an object that was to be new: two"
        " commits could overwrite each other.",
        hint="Use an object store with conditional writes (put-if-absent).",
    )


def delete(place: Place, paths: list[str]) -> None:
    """Deletes objects; a missing one is not an error."""
    if not paths or is_missing(place):
        return
    try:
        obstore.delete(open_store(place), paths)
    except FileNotFoundError:
        return
    except (BaseError, OSError) as error:
        raise store_error(place, "cleaned", error) from None


def listing(place: Place, under: str = "") -> list[str]:
    """The paths of all objects in the table's folder, or in one of its folders."""
    if is_missing(place):
        return []
    try:
        found = obstore.list(open_store(place), under or None, chunk_size=1000)
        return [meta["path"] for chunk in found for meta in chunk]
    except FileNotFoundError:
        return []
    except (BaseError, OSError) as error:
        raise store_error(place, "listed", error) from None


def folders(place: Place) -> list[str]:
    """The names of the folders right under a place."""
    if is_missing(place):
        return []
    try:
        found = obstore.list_with_delimiter(open_store(place))["common_prefixes"]
    except (BaseError, OSError) as error:
        raise store_error(place, "listed", error) from None
    return sorted(path.rstrip("/").rpartition("/")[2] for path in found)


def store_error(place: Place, what: str, error: BaseException) -> BronzeError:
    """The error of bronze for an error of the store; ``what`` was being done, such as "read"."""
    text = " ".join(str(error).split())
    low = text.lower()
    for sign, reason, hint in _SIGNS:
        if sign in low:
            return LakeUnreachable(
                f"The lake at {place.url} could not be {what}: {reason}.", hint=hint
            )
    return LakeError(f"The lake at {place.url} could not be {what}: {error_text(error)}.")


_SIGNS = (
    ("no space left", "no space left on the device", "Free some space, and run again."),
    ("file too large", "no space left for the file", "Free some space, and run again."),
    ("quota", "the disk quota is used up", "Free some space, and run again."),
    ("permission denied", "permission denied", "Check who owns the folder of [lake] root."),
    ("read-only file system", "the file system is read-only", "Choose another [lake] root."),
    ("no such file", "there is no such folder", "Choose another [lake] root."),
    ("not a directory", "a part of its path is a file", "Choose another [lake] root."),
    ("unauthorized", "the credentials are refused", "Check [lake.options] and the environment."),
    ("forbidden", "the credentials do not allow it", "Check the role's rights on the container."),
    ("403", "the credentials do not allow it", "Check the role's rights on the container."),
    ("401", "the credentials are refused", "Check [lake.options] and the environment."),
    ("connect", "it cannot be reached", "Check the URL of [lake] root and the network."),
    ("dns", "its name cannot be resolved", "Check the URL of [lake] root."),
)
