"""A Dask cluster as an executor.

Nothing but a task and its argument is sent to a worker: no secret, no config. The cluster is
checked before any work, and a worker that joins later is checked by its first task:

- scheduler, workers and this process have the same versions of what tasks depend on (`PACKAGES`);
- a worker has room for as many tasks at once as it has threads.

What many tasks have in common, such as the list of a table's files, is sent once, as a task of its
own, which Dask computes again where it is lost.

The scheduler and each worker need `bronze` installed; the scheduler never unpickles an argument.
"""

from __future__ import annotations

import logging
import platform
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib import metadata
from typing import Any

from bronze.errors import BronzeError, ConfigError, EngineLost, SecretsUnreachable
from bronze.execution import budget, shared_builds
from bronze.execution.parcel import Packing, Parcel, forget_parts, unpack
from bronze.library_errors import error_text
from bronze.printable import count

PACKAGES = ("bronze", "deltalake", "distributed", "numpy", "polars", "pyarrow")
"""The packages of which driver and workers need the same versions."""

Versions = Mapping[str, str | None]

# Seconds for which a cluster may be without a worker: one that is started again takes a few.
_WITHOUT_WORKERS = 60.0
_LOOK = 0.5
# Dask pauses a worker at this part of its limit of memory.
_PAUSE = 0.8
_CLOSE_SECONDS = 5


@contextmanager
def connected(address: str, memory: int) -> Iterator[Executor]:
    """The cluster of a scheduler.

    Args:
        address: ``host:port`` of the scheduler.
        memory: what each process may take, in bytes: see `bronze.execution.budget`.

    Raises:
        ConfigError: Dask is not installed, the scheduler does not answer or has no workers, or the
            cluster does not fit (see the module).
    """
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError(
            "The engine dask:// needs the package distributed.",
            hint="pip install 'bronze[dask]', here and on the workers.",
        ) from None
    # What happens is said by errors, not by tracebacks on standard error.
    levels = {name: logging.getLogger(name).level for name in ("distributed", "distributed.client")}
    _set_levels(dict.fromkeys(levels, logging.CRITICAL + 1))
    try:
        client: Any = Client(f"tcp://{address}", timeout="10s", set_as_default=False)  # type: ignore[no-untyped-call]
    except OSError as error:
        _set_levels(levels)
        raise ConfigError(
            f"The Dask scheduler at {address} does not answer: {error_text(error)}.",
            hint="Check [run] engine.",
        ) from None
    cluster = Cluster(client, address)
    try:
        cluster.check(memory)
        yield cluster
    finally:
        is_lost = cluster.is_lost
        cluster.shutdown()
        # A client that has lost its connection goes on complaining in a thread of its own.
        if not is_lost:
            _set_levels(levels)


def _set_levels(levels: Mapping[str, int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class Cluster(Executor):
    """The workers of a Dask scheduler. No method raises because the cluster is lost: the futures
    have the error.
    """

    def __init__(self, client: Any, address: str) -> None:
        from distributed.cfexecutor import ClientExecutor

        self._client = client
        self._address = address
        self._inner: Any = ClientExecutor(client)  # type: ignore[no-untyped-call]
        self._packing = Packing(self._share)
        self._pending: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._lost: BronzeError | None = None
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="bronze dask", daemon=True)
        self._watcher.start()

    @property
    def is_lost(self) -> bool:
        """Whether the scheduler, or all workers, were lost."""
        return self._lost is not None or self._client.status != "running"

    def check(self, memory: int) -> None:
        """Checks that the cluster can work.

        Raises:
            ConfigError: it cannot.
            EngineLost: the scheduler does not answer any more.
        """
        try:
            self._client.wait_for_workers(1, timeout=_WITHOUT_WORKERS)
            found = self._client.get_versions(packages=list(PACKAGES))
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
        except TimeoutError:
            raise ConfigError(
                f"The Dask scheduler at {self._address} has no workers.",
                hint=f"Start some: dask worker {self._address} --nthreads 1",
            ) from None
        except Exception as error:
            raise self._error(f"did not answer: {type(error).__name__}") from None
        scheduler = found["scheduler"]["packages"]
        _check_versions(f"scheduler at {self._address}", scheduler, versions(), ("bronze",))
        for name, worker in sorted(found["workers"].items()):
            _check_versions(f"worker at {name}", worker["packages"], versions(), PACKAGES)
        for name, worker in sorted(workers.items()):
            _check_room(name, worker["nthreads"], worker["memory_limit"], memory)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Sends a task; `bronze.execution.parcel.Parcel` is sent as what is in it."""
        result: Future[Any] = Future()
        with self._lock:
            self._pending.add(result)
        result.add_done_callback(self._forget)
        if self._lost:
            self._fail(result, self._lost)
            return result
        try:
            given = [arg.content if isinstance(arg, Parcel) else arg for arg in args]
            parcels = [isinstance(arg, Parcel) for arg in args]
            data, shared = self._packing.pack((fn, given, parcels, kwargs))
            sent = self._inner.submit(perform, self._client.id, dict(versions()), data, *shared)
        except Exception as error:
            if self._client.status == "running":
                raise
            self._fail(result, self._error(f"was lost: {type(error).__name__}"))
            return result
        sent.add_done_callback(partial(self._pass_on, result))
        result.add_done_callback(lambda ended: sent.cancel() if ended.cancelled() else None)
        return result

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Closes the connection; what still runs on workers is left alone."""
        self._closed.set()
        with self._lock:
            pending = list(self._pending)
        for future in pending:
            future.cancel()
        # One that was lost does not answer.
        with suppress(Exception):
            self._client.close(timeout=0 if self._lost else _CLOSE_SECONDS)
        self._watcher.join()

    def _share(self, data: bytes) -> Any:
        """A task that has a value, packed, for other tasks."""
        return self._client.submit(bytes, data, pure=False)

    def _pass_on(self, result: Future[Any], sent: Future[Any]) -> None:
        """Gives the outcome of a task to the future that the caller has."""
        if result.done():
            return
        if sent.cancelled():
            # Dask cancels all tasks of a client that loses its connection.
            self._fail(result, self._error("was lost during the work"))
            return
        error = sent.exception()
        if error is None:
            with suppress(Exception):
                result.set_result(sent.result())
        else:
            self._fail(result, self._explained(error))

    def _explained(self, error: BaseException) -> BaseException:
        """The error of a task, in words of ours where Dask or a worker made it."""
        kind = type(error).__name__
        if kind == "KilledWorker":
            worker = getattr(error, "last_worker", None)
            return EngineLost(
                f"The Dask workers that had the same task died one after the other, the last one at"
                f" {getattr(worker, 'address', 'an unknown address')}.",
                hint="Most often they had too little memory: look into the logs of the workers.",
            )
        if isinstance(error, ImportError) or "deserialization" in str(error):
            return ConfigError(
                f"A Dask worker cannot import what a task needs: {kind} of"
                f" {getattr(error, 'name', None) or 'a module'}.",
                hint="Install the same packages on the scheduler, on all workers and here.",
            )
        return error

    def _error(self, what: str) -> EngineLost:
        return EngineLost(
            f"The Dask scheduler at {self._address} {what}.",
            hint="What had landed before stays, nothing half-written is visible; run again once the"
            " scheduler and its workers are there.",
        )

    def _fail(self, future: Future[Any], error: BaseException) -> None:
        # It may have been cancelled or failed meanwhile.
        with suppress(Exception):
            future.set_exception(error)

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._pending.discard(future)

    def _watch(self) -> None:
        """Fails all tasks once the scheduler, or all workers, are lost: Dask would wait on."""
        without = 0.0
        while not self._closed.wait(_LOOK):
            if self._client.status != "running":
                self._lost = self._error("was lost during the work")
            elif not self._pending or self._client.scheduler_info()["workers"]:
                without = 0.0
            else:
                without += _LOOK
                if without >= _WITHOUT_WORKERS:
                    self._lost = self._error(f"has had no worker for {_WITHOUT_WORKERS:.0f} s")
            if self._lost:
                with self._lock:
                    pending = list(self._pending)
                for future in pending:
                    self._fail(future, self._lost)
                return


@cache
def versions() -> Versions:
    """The versions of Python and of `PACKAGES` in this process; None where one is missing."""
    found: dict[str, str | None] = {"python": _minor(platform.python_version())}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def perform(session: str, expected: Versions, data: bytes, *shared: bytes) -> Any:
    """Performs a task, on a worker.

    Args:
        session: the id of the driver's connection.
        expected: the versions of the driver.
        data: the task, packed.
        shared: values that it has in common with other tasks, packed.

    Raises:
        ConfigError: the worker has other versions, or lacks a secret.
    """
    here = _worker_name()
    _check_versions(f"worker at {here}", versions(), expected, PACKAGES)
    fn, given, parcels, kwargs = unpack(data, shared)
    args = [
        Parcel(arg) if is_parcel else arg for arg, is_parcel in zip(given, parcels, strict=True)
    ]
    try:
        with _in_session(session):
            return fn(*args, **kwargs)
    except (ConfigError, SecretsUnreachable) as error:
        # The driver has what it needs: the message would mislead.
        error.message = f"On the Dask worker at {here}: {error.message}"
        error.args = (error.message,)
        raise


_sessions: Counter[str] = Counter()
_sessions_lock = threading.Lock()
_last_session = ""


@contextmanager
def _in_session(session: str) -> Iterator[None]:
    """Frees what earlier drivers have left in this process, unless their tasks go on: a worker
    outlives them, and nobody tells it when one ends.
    """
    global _last_session
    with _sessions_lock:
        if session != _last_session and not _sessions:
            shared_builds.drop_all()
            forget_parts()
        _last_session = session
        _sessions[session] += 1
    try:
        yield
    finally:
        with _sessions_lock:
            _sessions[session] -= 1
            if not _sessions[session]:
                del _sessions[session]


def _worker_name() -> str:
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:
        return "an unknown address"


def _check_versions(
    where: str, found: Versions, expected: Versions, packages: Sequence[str]
) -> None:
    """Checks the versions that a process of the cluster has.

    Raises:
        ConfigError: they differ from the expected ones.
    """
    # Dask says Python's version as 3.11.7.final.0.
    pairs: list[tuple[str, str | None, str | None]]
    pairs = [("python", _minor(found.get("python") or ""), expected["python"])]
    pairs += [(package, found.get(package), expected[package]) for package in packages]
    differing = [
        f"{name} {has or 'not installed'} instead of {wants or 'none'}"
        for name, has, wants in pairs
        if has != wants
    ]
    if differing:
        raise ConfigError(
            f"The Dask {where} has other versions than this process: {', '.join(differing)}.",
            hint="Install the same versions on the scheduler, on all workers and here; best is one"
            " image for all.",
        )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _check_room(name: str, threads: int, limit: int, memory: int) -> None:
    """Checks that a worker has room for its tasks; ``limit`` is Dask's, 0 if there is none.

    Raises:
        ConfigError: it has not.
    """
    most = budget.most_readers(memory)
    if threads > most:
        raise ConfigError(
            f"The Dask worker at {name} has {count(threads, 'thread')}, and [run] memory ="
            f" {memory // 10**6}MB is enough for {most} in one process.",
            hint=f"Start workers with --nthreads {most}, or raise [run] memory: it is for each"
            " process.",
        )
    needed = budget.worker_memory(memory, threads)
    if limit and limit * _PAUSE < needed:
        raise ConfigError(
            f"The Dask worker at {name} may take {limit // 10**6} MB, and with {threads}"
            f" thread{'s' if threads > 1 else ''} and [run] memory = {memory // 10**6}MB bronze"
            f" takes up to {needed // 10**6} MB in it.",
            hint=f'Start workers with --memory-limit "{int(needed / _PAUSE / 10**6) + 1} MB", or'
            " with fewer threads, or lower [run] memory.",
        )
