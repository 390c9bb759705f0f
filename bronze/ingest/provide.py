"""What the rows of a table are given on their way in, by the config, the source and the lake."""

from __future__ import annotations

from dataclasses import replace

from bronze.anomaly import models
from bronze.delta.log import State
from bronze.model.columns import RowKey
from bronze.model.protection import Protection
from bronze.model.units import Enrichment
from bronze.quality import set_rules
from bronze.tables.context import TableContext
from bronze.tables.evolution import ColumnContract


def enrichment_of(
    context: TableContext,
    contract: ColumnContract,
    key: RowKey,
    state: State | None,
    protection: Protection | None,
    *,
    reading: bool = True,
) -> Enrichment:
    """What all units of a table's run give its rows.

    Args:
        context: the table.
        contract: its columns.
        key: what tells its rows apart.
        state: the Bronze table as it was found.
        protection: how it is protected.
        reading: whether rows are read of the snapshot; else they come by a stream.

    Raises:
        TableRefused: the table cannot be taken as the config says.
        LakeError: what the lake holds for this cannot be read.
    """
    hidden = {n for n, how in context.target.settings.protect.items() if how.method != "clear"}
    return Enrichment(
        protection=protection,
        watch=models.watch(context, contract, key.names, state, hidden),
        quality=set_rules.quality(context, contract, key, asking=reading, protected=hidden),
    )


def enrichment_of_changes(copied: Enrichment) -> Enrichment:
    """What the rows that a stream brings are given, by what those of the copy were."""
    quality = replace(copied.quality, criteria=set_rules.followed(copied.quality.criteria))
    return replace(copied, quality=quality)
