"""The config as values."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from bronze.config import fingerprint, loading
from bronze.config.settings import Settings

DOCUMENT: dict[str, Any] = {
    "source": {"dsn": "postgresql://me@localhost/db"},
    "lake": {"root": "lake"},
}


@pytest.mark.parametrize("run", [{}, {"memory": "2GB", "workers": 3}])
def test_a_share_of_the_memory_is_no_other_config(run: dict[str, Any]) -> None:
    """A work with a share, however small, has all else of the config, and its fingerprint; so has
    a share of the same config later, and a copy in another process.
    """
    settings = loading.parse({**DOCUMENT, "run": run})
    first = settings.with_memory(310 * 10**6, 4)
    for share in (first, settings.with_memory(9, 9).with_memory(310 * 10**6, 4)):
        for version in (share, copy.deepcopy(share), pickle.loads(pickle.dumps(share))):  # noqa: S301
            assert (version.run.memory, version.memory_parts) == (310 * 10**6, 4)
            assert version.run.workers == settings.run.workers
            assert version.whole == settings
            assert fingerprint.imprint(version) == fingerprint.imprint(settings)
    assert (settings.whole, settings.memory_parts) == (settings, 1)


def test_a_derived_config_keeps_its_share() -> None:
    """Changing something else does not give a work the memory of the process."""
    share = loading.parse(DOCUMENT).with_memory(310 * 10**6, 4)
    derived: Settings = share.model_copy(update={"path": "elsewhere"})
    assert (derived.run.memory, derived.memory_parts) == (310 * 10**6, 4)


@pytest.mark.parametrize("name", ["_whole", "_parts", "whole", "memory_parts"])
def test_no_config_file_sets_a_share(name: str) -> None:
    """They are no keys of a config."""
    with pytest.raises(Exception, match=f"unknown key|{name}"):
        loading.parse({**DOCUMENT, name: 1})
