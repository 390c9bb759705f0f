"""What a worker of a Dask cluster does with a task, without a cluster."""

from __future__ import annotations

import pytest

from bronze.errors import BronzeError, ConfigError, SourceUnreachable
from bronze.execution import budget, cluster
from bronze.execution.parcel import Packing, Parcel
from bronze.execution.shared_builds import SharedBuilds


def _performed(session: str, fn: object, given: object) -> object:
    data, shared = Packing(lambda part: part).pack((fn, [given], [True], {}))
    return cluster.perform(session, cluster.versions(), data, *shared)


def _length(parcel: Parcel[str]) -> int:
    return len(parcel.content)


def _fail(parcel: Parcel[BronzeError]) -> None:
    raise parcel.content


def test_a_worker_unpacks_and_performs_a_task() -> None:
    """A parcel is one again on the worker."""
    assert _performed("a", _length, "abc") == 3


def test_other_versions_are_named() -> None:
    """The sentence has each package that differs, and which version is wanted."""
    expected = {**cluster.versions(), "polars": "0.1", "numpy": None}
    with pytest.raises(ConfigError) as caught:
        cluster.perform("a", expected, b"what is never unpacked")
    assert f"polars {cluster.versions()['polars']} instead of 0.1" in caught.value.message
    assert "instead of none" in caught.value.message
    assert "bronze" not in caught.value.message
    assert "image" in caught.value.hint


def test_an_error_of_a_workers_environment_names_the_worker() -> None:
    """The driver may have what the worker lacks; errors of the source are the same everywhere."""
    lacking = ConfigError("The variable X is not set.")
    with pytest.raises(ConfigError, match=r"^On the Dask worker at .*: The variable X is not set"):
        _performed("a", _fail, lacking)
    with pytest.raises(SourceUnreachable, match=r"^No answer"):
        _performed("a", _fail, SourceUnreachable("No answer."))


builds: SharedBuilds[str, str] = SharedBuilds(str.upper, 2)


def _kept(parcel: Parcel[str]) -> int:
    builds.get(parcel.content)
    return len(builds._kept)


def test_the_task_of_another_driver_frees_what_an_earlier_one_left() -> None:
    """A worker outlives drivers, and has not the memory for the indexes of them all."""
    assert [_performed("a", _kept, text) for text in ("x", "y")] == [1, 2]
    assert _performed("b", _kept, "z") == 1


def test_the_memory_of_a_worker_grows_with_its_threads() -> None:
    """With one thread it is less than what a whole process may take; with all of them, as much."""
    memory = 10**9
    most = budget.most_readers(memory)
    needed = [budget.worker_memory(memory, threads) for threads in range(1, most + 1)]
    assert needed == sorted(needed)
    assert needed[0] < memory
    assert needed[-1] == memory
    assert budget.readers(memory, 64, 64, "dask://scheduler:8786") == 64
    assert budget.readers(memory, 64, 64) == most
