"""What the rows of a table are given on their way in, by the config, the source and the lake."""

from __future__ import annotations

from bronze import anomalies, keys
from bronze.drift import Settled
from bronze.model import Enrichment
from bronze.table.log import State
from bronze.units import Assignment


def enrichment(
    given: Assignment, settled: Settled, key: tuple[str, ...], state: State | None
) -> Enrichment:
    """What all units of a table's run give its rows.

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
    protect = given.target.settings.protect
    return Enrichment(
        protection=keys.protection(given.settings, given.target, settled),
        watch=anomalies.watch(given, settled, key, state, protect),
    )
