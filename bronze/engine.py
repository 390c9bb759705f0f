"""Where units of work run: on any `concurrent.futures.Executor`.

A unit holds all that it needs, so threads, processes and a Dask cluster do the same. Only the
number of units in flight is decided here: it never exceeds what the source allows, and shrinks
when the source has no connection left.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from typing import Any

from bronze.errors import BronzeError, ConfigError, SourceBusy
from bronze.model import Unit, Written

_log = logging.getLogger(__name__)

Outcome = Written | BronzeError

# How long to wait for a connection slot before a unit is tried again, and how often.
_BUSY_DELAY = 1.0
_BUSY_TRIES = 60
_PATIENCE = 0.5


@contextmanager
def executor(engine: str, workers: int) -> Iterator[Executor]:
    """The executor of a config's ``engine``: "threads", "processes" or "dask://host:port".

    Raises:
        ConfigError: Dask is not installed, or its scheduler does not answer.
    """
    if engine == "threads":
        with ThreadPoolExecutor(workers, thread_name_prefix="bronze") as pool:
            yield pool
    elif engine == "processes":
        # A forked child would inherit the locks of our libraries' threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as processes:
            yield processes
    else:
        with _dask(engine.removeprefix("dask://")) as cluster:
            yield cluster


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError(
            "The engine dask:// needs the package distributed.",
            hint="pip install 'bronze[dask]', here and on the workers.",
        ) from None
    try:
        client: Any = Client(f"tcp://{address}", timeout="10s", set_as_default=False)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ConfigError(
            f"The Dask scheduler at {address} does not answer: {error}.",
            hint="Check [run] engine.",
        ) from None
    with client, client.get_executor() as cluster:
        yield cluster


def dispatch(
    pool: Executor,
    work: Callable[[Unit], Written],
    units: Sequence[Unit],
    limit: int,
    wanted: Callable[[Unit], bool],
) -> Iterator[tuple[Unit, Outcome]]:
    """Runs units in their order, at most ``limit`` at once; yields each as it ends.

    A unit that finds no free connection is put back, and from then on one unit less runs at once.
    A unit that ``wanted`` says no to is left out.
    """
    waiting = deque(units)
    flying: dict[Future[Written], Unit] = {}
    refused = 0
    try:
        while waiting or flying:
            while waiting and len(flying) < limit:
                unit = waiting.popleft()
                if wanted(unit):
                    flying[pool.submit(work, unit)] = unit
            if not flying:
                continue
            # Without a time limit an interrupt would be seen only when a unit has ended.
            for future in wait(flying, _PATIENCE, FIRST_COMPLETED).done:
                unit = flying.pop(future)
                outcome = _outcome(future, unit)
                if isinstance(outcome, SourceBusy) and refused < _BUSY_TRIES:
                    refused += 1
                    limit = max(1, min(limit, len(flying)))
                    waiting.appendleft(unit)
                    if not flying:
                        time.sleep(_BUSY_DELAY)
                    continue
                yield unit, outcome
    finally:
        for future in flying:
            future.cancel()


def _outcome(future: Future[Written], unit: Unit) -> Outcome:
    try:
        return future.result()
    except BronzeError as error:
        return error
    except Exception as error:  # a fault of ours in one table must not stop the others
        _log.debug("a unit of table %s failed", unit.table, exc_info=error)
        return BronzeError(
            f"Table {unit.table} could not be taken: {type(error).__name__} inside bronze.",
            hint="This is a bug in it: run again with BRONZE_DEBUG=1 and report what it prints.",
            table=unit.table,
        )
