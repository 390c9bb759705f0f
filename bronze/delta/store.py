"""The object store of the lake: local folders, S3, Azure or Google Cloud, by one interface."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal
from uuid import uuid4

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PermissionDeniedError

from bronze.delta.storage import client, lake_folder
from bronze.delta.storage.client import is_local
from bronze.delta.storage.store_errors import is_bucket_missing, store_error
from bronze.errors import BronzeError, FileDamaged, LakeError, LakeUnreachable
from bronze.library_errors import error_text
from bronze.model.locations import Place

# Bytes of objects that are one request.
_PART = 10 * 2**20
# The most bytes of an object that are read before they are asked for.
_MOST_AHEAD = 4 * 2**20


def is_missing(place: Place, under: str = "") -> bool:
    """Whether a local folder does not exist; only writing creates one.

    Raises:
        LakeUnreachable: the lake's own folder has disappeared (`bronze.delta.storage.lake_folder`).
    """
    if not is_local(place) or (Path(place.url) / under).is_dir():
        return False
    lake_folder.check(place)
    return True


@contextmanager
def writer(place: Place, path: str) -> Iterator[IO[bytes] | io.RawIOBase]:
    """A file to write one object with, in bounded memory.

    If the context ends with an error, the object does not exist, or in a local folder is deleted.
    The parts of an upload that were sent are deleted as well, unless the store does not allow it.

    Raises:
        LakeError, LakeUnreachable: it cannot be written.
    """
    upload = None
    try:
        if is_local(place):
            lake_folder.check(place)
            local = Path(place.url) / path
            local.parent.mkdir(parents=True, exist_ok=True)
            try:
                with local.open("xb") as file:
                    yield file
            except BaseException:
                local.unlink(missing_ok=True)
                raise
        else:
            upload = _Upload(place, path)
            try:
                yield upload
                upload.finish()
            except BaseException as error:
                upload.abort(error)
                raise
    except (BaseError, OSError, pa.ArrowException) as error:
        failure = store_error(place, "written", error)
        if isinstance(failure, LakeUnreachable) and upload is not None:
            failure.is_key_renewed = upload.is_key_renewed(error)
        raise failure from None


class _Upload(io.RawIOBase):
    """An upload as a file. It is abandoned unless it is finished.

    A small one is a single request. Of a large one the parts are sent as they come.
    """

    def __init__(self, place: Place, path: str) -> None:
        self._place, self._path = place, path
        self._first = bytearray()
        self._upload: Any = None
        self._options: Mapping[str, str] = {}
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._size += len(data)
        if self._upload is not None:
            self._upload.write(bytes(data))
            return len(data)
        self._first += data
        if len(self._first) > _PART:
            first, self._first = bytes(self._first), bytearray()
            self._options = client.current_options(self._place)
            self._upload = client.request(self._place, lambda opened: self._begin(opened, first))
        return len(data)

    def _begin(self, opened: Any, first: bytes) -> Any:
        upload = obstore.open_writer(opened, client.path_in(self._place, self._path))
        upload.write(first)
        return upload

    def tell(self) -> int:
        return self._size

    def abort(self, error: BaseException) -> None:
        """Deletes the parts that were sent. A store that did not answer is not asked once more."""
        is_of_store = isinstance(error, (BaseError, OSError)) and not client.is_refusal(error)
        if self._upload is not None and not is_of_store:
            with suppress(BaseError, OSError):
                self._upload.__exit__(type(error), error, error.__traceback__)

    def is_key_renewed(self, error: BaseException) -> bool:
        """Whether the store refused the key of the upload, and there is another one now."""
        is_begun = self._upload is not None
        return (
            is_begun and client.is_refusal(error) and client.is_renewed(self._place, self._options)
        )

    def finish(self) -> None:
        if self._upload is not None:
            self._upload.close()
        else:
            _put(self._place, self._path, bytes(self._first))


class _Download(io.RawIOBase):
    """An object of the store as a file. A small one is read by a single request. Of a large one
    what is asked for is read, and, where reads follow each other, as much again as these have read:
    the columns of a row group are next to each other, and small.
    """

    def __init__(self, place: Place, path: str, size: int) -> None:
        self._place, self._path, self._at = place, path, 0
        self._small: bytes | None = None
        # Where the last read ended, how many bytes the reads before it have had in a row, and what
        # follows them.
        self._end = self._streak = 0
        self._ahead = b""
        self._size = client.request(place, lambda opened: self._open(opened, size))

    def _open(self, opened: Any, size: int) -> int:
        path = client.path_in(self._place, self._path)
        if size > _PART:
            return int(obstore.head(opened, path)["size"])
        whole = obstore.get(opened, path)
        if whole.meta["size"] <= _PART:
            self._small = bytes(whole.bytes())
        return int(whole.meta["size"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._at + size, self._size)
        data = b""
        if self._at < end:
            small = self._small
            data = self._large(self._at, end) if small is None else small[self._at : end]
        self._at += len(data)
        return data

    def _large(self, start: int, end: int) -> bytes:
        if start != self._end:
            self._streak, self._ahead = 0, b""
        known = start + len(self._ahead)
        if known < end:
            self._ahead += self._between(known, end + min(self._streak, _MOST_AHEAD))
        self._streak, self._end = self._streak + end - start, end
        data, self._ahead = self._ahead[: end - start], self._ahead[end - start :]
        return data

    def _between(self, start: int, end: int) -> bytes:
        path, end = client.path_in(self._place, self._path), min(end, self._size)
        return client.request(
            self._place,
            lambda opened: bytes(obstore.get_range(opened, path, start=start, end=end)),
        )

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def reader(place: Place, path: str, size: int = 0) -> IO[bytes] | Any:
    """An object to read, from any offset.

    Args:
        place: the folder of a table.
        path: the object in it.
        size: its bytes, if they are known: of a large one nothing is read before it is asked for.

    Raises:
        FileDamaged: there is no such object.
        LakeError, LakeUnreachable: it cannot be read.
    """
    try:
        if is_local(place):
            return pa.OSFile(str(Path(place.url) / path))
        return _Download(place, path, size)
    except (BaseError, OSError) as error:
        raise read_error(place, path, error) from None


def read_error(place: Place, path: str, error: BaseException) -> BronzeError:
    """The error for a file of a table that could not be read. Only a missing one is `damage_error`:
    after any other error the next attempt may succeed.
    """
    if is_bucket_missing(error):
        return store_error(place, "read", error)
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
        _put(place, path, data)
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
    path = f"_bronze_{uuid4().hex}"
    try:
        _put(place, path, b"", mode="create")
        try:
            _put(place, path, b"again", mode="create")
        except AlreadyExistsError:
            return
        finally:
            delete(place, [path])
    except NotImplementedError:
        # The client was told that the store has no conditional writes.
        pass
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
        named = [client.path_in(place, path) for path in paths]
        client.request(place, lambda opened: obstore.delete(opened, named))
    except FileNotFoundError:
        return
    except (BaseError, OSError) as error:
        raise store_error(place, "cleaned", error) from None


def listing(place: Place, under: str = "") -> list[str]:
    """The paths of all objects in the table's folder, or in one of its folders."""
    if is_missing(place):
        return []
    try:
        return [meta["path"] for meta in objects(place, under)]
    except FileNotFoundError:
        return []
    except (BaseError, OSError) as error:
        raise store_error(place, "listed", error) from None


def objects(place: Place, under: str = "", offset: str | None = None) -> list[Mapping[str, Any]]:
    """The objects in the table's folder, or in one of its folders, after an offset.

    Raises:
        FileNotFoundError, OSError, obstore.exceptions.BaseError: they cannot be listed.
        LakeError, LakeUnreachable: the store cannot be opened.
    """
    prefix = client.path_in(place, under)
    after = None if offset is None else client.path_in(place, offset)
    cut = len(client.path_in(place, "x")) - 1

    def listed(opened: Any) -> list[Mapping[str, Any]]:
        chunks = obstore.list(opened, prefix or None, offset=after, chunk_size=1000)
        return [{**meta, "path": meta["path"][cut:]} for chunk in chunks for meta in chunk]

    return client.request(place, listed)


def get(place: Place, path: str) -> bytes:
    """The content of an object.

    Raises:
        FileNotFoundError: there is no such object.
        OSError, obstore.exceptions.BaseError: it cannot be read.
        LakeError, LakeUnreachable: the store cannot be opened.
    """
    name = client.path_in(place, path)
    return client.request(place, lambda opened: bytes(obstore.get(opened, name).bytes()))


def create(place: Place, path: str, data: bytes) -> str | None:
    """Writes a new object, and returns its ETag if the store says it.

    Raises:
        AlreadyExistsError: it exists.
        OSError, obstore.exceptions.BaseError: it cannot be written.
        LakeError, LakeUnreachable: the store cannot be opened.
    """
    return _put(place, path, data, mode="create")


def _put(
    place: Place, path: str, data: bytes, mode: Literal["create", "overwrite"] = "overwrite"
) -> str | None:
    name = client.path_in(place, path)
    return client.request(place, lambda opened: obstore.put(opened, name, data, mode=mode)["e_tag"])


def folders(place: Place) -> list[str]:
    """The names of the folders right under a place."""
    if is_missing(place):
        return []
    try:
        prefix = client.path_in(place) or None
        found = client.request(
            place, lambda opened: obstore.list_with_delimiter(opened, prefix)["common_prefixes"]
        )
    except (BaseError, OSError) as error:
        raise store_error(place, "listed", error) from None
    return sorted(path.rstrip("/").rpartition("/")[2] for path in found)
