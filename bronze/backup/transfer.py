"""Copies objects from one store to another: hashed on the way, put if absent, at a limited rate.

Memory is bounded: an object is held whole only if it is small; a larger one is read and sent in
parts. What was copied is noted in lists under ``_backup/progress`` of the copy, so that a pass that
was killed is continued: what a list has is not read again.
"""

from __future__ import annotations

import contextvars
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import obstore
import polars as pl
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError

from bronze import failpoint
from bronze.backup import manifest
from bronze.delta import store
from bronze.delta.storage import client
from bronze.delta.storage.store_errors import store_error
from bronze.errors import BronzeError, FileDamaged, LakeError
from bronze.execution.throttle import Throttle
from bronze.model.locations import Place

PROGRESS = f"{manifest.FOLDER}/progress"
_SMALL = 4 * 2**20
_CHUNK, _LOCAL_CHUNK = 2 * 2**20, 2**20
# Stores take at most 10,000 parts, of at least 5 MiB.
_PART = 6 * 2**20
_MOST_PARTS = 9_000
_THREADS = 4
# Objects and seconds after which what was copied is noted.
_NOTED_OBJECTS = 500
_NOTED_SECONDS = 20.0
_PROGRESS: dict[str, Any] = {"table": pl.String, **manifest.OBJECTS}


class MissingError(Exception):
    """The lake does not have an object any more; the argument is its path."""


@dataclass
class Figures:
    """What was copied: objects and their bytes; and requests to both stores."""

    objects: int = 0
    bytes: int = 0
    requests: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, objects: int = 0, size: int = 0, requests: int = 0) -> None:
        """Adds to the figures; from any thread."""
        with self._lock:
            self.objects += objects
            self.bytes += size
            self.requests += requests


@dataclass(frozen=True)
class Copied:
    """An object of the copy."""

    path: str
    size: int
    sha256: str


class Transfer:
    """Copies objects of one lake to one copy. The context notes what was copied at its end, after
    an error too.
    """

    def __init__(
        self, lake: Place, copy: Place, rate: int, lock: Callable[[str], None] | None = None
    ) -> None:
        """Copies with so many bytes per second; ``lock`` locks an object of the copy."""
        self._lake, self._copy, self._lock = lake, copy, lock
        self._throttle = Throttle(rate)
        self.figures = Figures()
        self._noted: list[str] = []
        self._new: list[tuple[str, str, int, str]] = []
        self._noted_at = time.monotonic()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="bronze copy")
        self._continued: pl.DataFrame | None = None

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if kind is not None:
            with suppress(BronzeError):
                self._note()

    @property
    def continued(self) -> pl.DataFrame:
        """What passes that were killed have copied, with the name of the ``table``."""
        if self._continued is None:
            parts = [pl.DataFrame(schema=_PROGRESS)]
            self._noted = store.listing(self._copy, PROGRESS)
            for path in self._noted:
                # One that cannot be read costs only time.
                with suppress(FileNotFoundError, pl.exceptions.PolarsError, BronzeError):
                    parts.append(pl.read_parquet(io.BytesIO(manifest.content(self._copy, path))))
            self._continued = pl.concat(parts).unique(["table", "path"])
        return self._continued

    def finish(self) -> None:
        """Deletes the notes: the manifest has all."""
        store.delete(self._copy, self._noted)
        self._noted, self._new = [], []

    def copy_all(
        self, folder: str, paths: Sequence[str], *, optional: frozenset[str] = frozenset()
    ) -> Iterator[Copied]:
        """Copies objects, several at a time, in any order.

        Args:
            folder: the folder of the table, ``schema/name``.
            paths: their paths in it.
            optional: those that may be missing in the lake.

        Raises:
            MissingError: another one is missing.
            FileDamaged: another object has its path in the copy.
            LakeError, LakeUnreachable: they cannot be read or written.
            Stopped: the work is asked to stop.
        """
        waiting: set[Future[Copied | None]] = set()
        rest = iter(paths)
        try:
            while True:
                for path in rest:
                    context = contextvars.copy_context()
                    needed = path not in optional
                    waiting.add(
                        self._pool.submit(context.run, self._copy_if_there, folder, path, needed)
                    )
                    if len(waiting) >= 2 * _THREADS:
                        break
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from self._results(folder, done)
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)

    def copy_in_order(self, folder: str, paths: Iterable[str]) -> Iterator[Copied]:
        """Copies objects one after another. Raises as `copy_all` does."""
        for path in paths:
            copied = self._copy_one(folder, path)
            self._remember(folder, copied)
            yield copied

    def _results(self, folder: str, done: Iterable[Future[Copied | None]]) -> Iterator[Copied]:
        for future in done:
            copied = future.result()
            if copied is not None:
                self._remember(folder, copied)
                yield copied

    def _copy_if_there(self, folder: str, path: str, needed: bool) -> Copied | None:
        try:
            return self._copy_one(folder, path)
        except MissingError:
            if needed:
                raise
            return None

    def _remember(self, folder: str, copied: Copied) -> None:
        self._new.append((folder, copied.path, copied.size, copied.sha256))
        is_due = time.monotonic() - self._noted_at > _NOTED_SECONDS
        if is_due or len(self._new) >= _NOTED_OBJECTS:
            self._note()

    def _note(self) -> None:
        self._noted_at = time.monotonic()
        if not self._new:
            return
        stored = io.BytesIO()
        pl.DataFrame(self._new, schema=_PROGRESS, orient="row").write_parquet(stored)
        path = f"{PROGRESS}/{uuid4().hex}.parquet"
        with copy_errors():
            store.put(self._copy, path, stored.getvalue())
        self._noted.append(path)
        self._new = []

    # One object

    def _copy_one(self, folder: str, path: str) -> Copied:
        """Copies an object."""
        name = f"{folder}/{path}"
        with self._source(name) as reading:
            failpoint.reach("copying")
            copy = self._copy_small if reading.size <= _SMALL else self._copy_large
            copied, is_new = copy(name, path, reading)
        if is_new:
            failpoint.reach("copied")
        self.figures.add(objects=int(is_new), size=copied.size if is_new else 0, requests=2)
        copied = copied if is_new else self._checked(name, copied)
        if self._lock:
            # One that was there may be of a pass that was killed before it was locked.
            self._lock(name)
        return copied

    @contextmanager
    def _source(self, name: str) -> Iterator[Reading]:
        try:
            with opened(self._lake, name) as reading:
                yield reading
        except (FileNotFoundError, NotFoundError):
            raise MissingError(name) from None
        except (BaseError, OSError) as error:
            raise store_error(self._lake, "read", error) from None

    def _copy_small(self, name: str, path: str, reading: Reading) -> tuple[Copied, bool]:
        self._throttle.take(reading.size)
        data = b"".join(reading.chunks)
        copied = Copied(path, len(data), hashlib.sha256(data).hexdigest())
        with copy_errors():
            return copied, manifest.create(self._copy, name, data)

    def _copy_large(self, name: str, path: str, reading: Reading) -> tuple[Copied, bool]:
        # Stores have no put-if-absent for several parts; the names of such objects are unique.
        is_new = not self._exists(name)
        digest = hashlib.sha256()
        # An upload that is not closed does not become an object.
        sink = self._writer(name, reading.size) if is_new else None
        for chunk in reading.chunks:
            self._throttle.take(len(chunk))
            digest.update(chunk)
            if sink is not None:
                self._written(partial(sink.write, chunk))
        if sink is not None:
            self._written(sink.close)
        return Copied(path, reading.size, digest.hexdigest()), is_new

    def _exists(self, name: str) -> bool:
        place = client.path_in(self._copy, name)
        self.figures.add(requests=1)
        try:
            client.request(self._copy, lambda opened: obstore.head(opened, place))
        except (FileNotFoundError, NotFoundError):
            return False
        except (BaseError, OSError) as error:
            with copy_errors():
                raise store_error(self._copy, "read", error) from None
        return True

    def _writer(self, name: str, size: int) -> Any:
        place, part = client.path_in(self._copy, name), max(_PART, size // _MOST_PARTS)
        self.figures.add(requests=2 + size // part)
        return self._written(
            lambda: client.request(
                self._copy,
                lambda opened: obstore.open_writer(
                    opened, place, buffer_size=part, max_concurrency=2
                ),
            )
        )

    def _written(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except (BaseError, OSError) as error:
            with copy_errors():
                raise store_error(self._copy, "written", error) from None

    def _checked(self, name: str, copied: Copied) -> Copied:
        """An object that was there already.

        Raises:
            FileDamaged: it is another one.
        """
        with copy_errors():
            there = hash_of(self._copy, name, lambda _: None)
        self.figures.add(requests=1)
        if there == copied:
            return copied
        if there is not None and ".checkpoint." in name:
            # A checkpoint of the same version that was written again has other bytes.
            return Copied(copied.path, there.size, there.sha256)
        raise different_error(self._copy, name)


def hash_of(place: Place, name: str, take: Callable[[int], None]) -> Copied | None:
    """The size and hash of an object, None if it is missing; ``take`` is called with the bytes that
    were read. The path is that in the table's folder.

    Raises:
        LakeError, LakeUnreachable: it cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with opened(place, name) as reading:
            for chunk in reading.chunks:
                take(len(chunk))
                digest.update(chunk)
                size += len(chunk)
    except (FileNotFoundError, NotFoundError):
        return None
    except (BaseError, OSError) as error:
        raise store_error(place, "read", error) from None
    return Copied(name.split("/", 2)[2], size, digest.hexdigest())


@dataclass(frozen=True)
class Reading:
    """An object that is being read: its size, and its bytes in parts."""

    size: int
    chunks: Iterator[bytes]


@contextmanager
def opened(place: Place, name: str) -> Iterator[Reading]:
    """An object to read.

    Raises:
        FileNotFoundError, obstore.exceptions.NotFoundError: there is no such object.
        OSError, obstore.exceptions.BaseError: it cannot be read.
    """
    if client.is_local(place):
        # Measured: the client of stores takes several times as long to read local files.
        with Path(place.url, name).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            yield Reading(size, iter(partial(file.read, _LOCAL_CHUNK), b""))
        return
    path = client.path_in(place, name)
    found = client.request(place, lambda opened: obstore.get(opened, path))
    chunks = (bytes(chunk) for chunk in found.stream(min_chunk_size=_CHUNK))
    yield Reading(int(found.meta["size"]), chunks)


def different_error(copy: Place, name: str) -> FileDamaged:
    """The error for an object of the copy that is not the one of the lake."""
    return FileDamaged(
        f"The file {name} of the copy at {copy.url} is not the one of the lake: its hash is"
        " different.",
        hint="Another lake was copied there, the lake was restored to an earlier version, or the"
        " file was changed. `bronze backup --verify` checks the copy; or choose another [backup]"
        " root.",
    )


@contextmanager
def copy_errors() -> Iterator[None]:
    """Has errors of the copy's store say that they are of the copy."""
    try:
        yield
    except AlreadyExistsError:
        raise
    except LakeError as error:
        error.message = error.message.replace("The lake at", "The copy at", 1)
        error.hint = error.hint.replace("[lake", "[backup").replace("the lake", "the copy")
        error.args = (error.message,)
        raise
