"""What the rows of a table are given on their way in, by the config, the source and the lake."""

from __future__ import annotations

from dataclasses import replace

from bronze import keys, spanning
from bronze.drift import Settled
from bronze.model import Enrichment
from bronze.table.log import State
from bronze.units import Assignment


def enrichment(
    given: Assignment, settled: Settled, key: tuple[str, ...], state: State | None
) -> Enrichment:
    """What all units of a table's run give its rows, but for their scores.

    Args:
        given: the table.
        settled: its columns.
        key: the key's target names.
        state: the Bronze table as it was found.

    Raises:
        ConfigError: columns are to be protected, and there is no master key.
        TableRefused: the table cannot be taken as the config says.
        LakeError: what the lake holds for this cannot be read.
    """
    return Enrichment(protection=keys.protection(given.settings, given.target, settled))


def scored(
    before: Enrichment, given: Assignment, settled: Settled, key: tuple[str, ...], *, reading: bool
) -> Enrichment:
    """The same with scores.

    Args:
        before: what the rows are given beside.
        given: the table.
        settled: its columns.
        key: the key's target names.
        reading: whether rows are read of the snapshot; else they come by a stream.

    Raises:
        TableRefused: a rule cannot be used on this table.
    """
    hidden = tuple(given.target.settings.protect)
    quality = spanning.quality(given, settled, key, asking=reading, protected=hidden)
    return replace(before, quality=quality)


def streamed(copied: Enrichment) -> Enrichment:
    """What the rows that a stream brings are given, by what those of the copy were."""
    quality = replace(copied.quality, criteria=spanning.followed(copied.quality.criteria))
    return replace(copied, quality=quality)
