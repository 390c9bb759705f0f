"""Maintenance beside a running stream."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from uuid_utils import uuid7

from bronze.config import loading
from bronze.config.sections.tables import TableSettings
from bronze.delta import commit, files, log
from bronze.delta.layout import vacuum
from bronze.maintenance import background
from bronze.maintenance.background import BackgroundMaintenance
from bronze.model.columns import DeltaType
from bronze.model.locations import Place
from tests.support.streams import until

SHAPE = commit.Shape((("id", DeltaType("long")), ("noise", DeltaType("long"))), ("id",))


def append(place: Place, rows: int) -> None:
    """Appends a file of about 8 bytes a row."""
    noise = np.random.default_rng(0).integers(0, 2**62, rows)
    frame = pl.DataFrame({"id": np.arange(rows), "noise": noise})
    state = log.read(place)
    file = files.write([frame], place, str(uuid7()), SHAPE.stats)
    assert file is not None
    change = commit.Change("WRITE", [file])
    commit.commit(place, state, change, {}, shape=None if state else SHAPE)


def sizes(place: Place) -> list[int]:
    """The rows of each file, ascending."""
    state = log.read(place)
    assert state is not None
    return sorted(file.rows for file in state.files)


@pytest.mark.parametrize("clustered", [False, True])
def test_little_is_rewritten_at_once_and_more_once_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clustered: bool
) -> None:
    """A batch waits for no more than a small rewrite: small files are joined within seconds, larger
    ones, which take longer, wait for the hour; then old files are deleted as well.
    """
    place, hour = Place(str(tmp_path / "lake/bronze/bz_t")), threading.Event()
    for rows in (*[30_000] * 8, *[500] * 8):
        append(place, rows)
    document = {"source": {"dsn": "postgresql://h/d"}, "lake": {"root": str(tmp_path / "lake")}}
    own = TableSettings(cluster_by=("noise",)) if clustered else TableSettings()
    monkeypatch.setattr(background, "_INTERVAL", 0.01)
    monkeypatch.setattr(background, "_SMALL_REWRITE", 200_000)
    vacuumed: list[Place] = []

    def expire(of: Place, *_: object) -> None:
        vacuumed.append(of)
        hour.set()

    monkeypatch.setattr(vacuum, "expire", expire)
    checkpoints = Place(str(tmp_path / "lake/governance/streams"))
    with (
        ThreadPoolExecutor(1) as pool,
        BackgroundMaintenance(loading.parse(document), pool, checkpoints) as maintenance,
    ):
        maintenance.add({place: own})
        until(lambda: sizes(place) == [4_000, *[30_000] * 8])
        maintenance.add({place: own})
        assert not vacuumed
        monkeypatch.setattr(background, "_LARGE_INTERVAL", 0.0)
        maintenance.add({place: own})
        assert hour.wait(30)
    assert vacuumed[0] == place
    assert sum(sizes(place)) == 244_000
    assert len(sizes(place)) <= 2
