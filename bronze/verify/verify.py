"""`bronze verify`: compares Bronze with the source or checks it at rest, and repairs it if asked.

After a repair the tables are verified again, in the same snapshot of the source.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import replace
from threading import Event

import uuid_utils

from bronze import failpoint, stopping
from bronze.config.settings import Settings
from bronze.errors import BronzeError, TableRefused
from bronze.governance.run_log import RunTable
from bronze.ingest.pipeline import Notify
from bronze.verify import at_rest as rest
from bronze.verify import inventory
from bronze.verify import repair as repairs
from bronze.verify.claim import Claim, claims_of_bronze, claims_of_source
from bronze.verify.comparison import Comparison, Options, compare_tables
from bronze.verify.repair import RepairResult
from bronze.verify.results import VerifiedTable, VerifyResult

Planned = Callable[[Sequence[RunTable]], None]


def verify(
    settings: Settings,
    tables: Sequence[str] = (),
    *,
    repair: bool = False,
    at_rest: bool = False,
    trust_hashes: bool = False,
    pool: Executor | None = None,
    notify: Notify = lambda _: None,
    planned: Planned = lambda _: None,
    stop: Event | None = None,
) -> VerifyResult:
    """Compares Bronze tables with the source, or with ``at_rest`` checks them without it.

    Args:
        settings: the config.
        tables: the names (``table`` or ``schema.table``) of the tables to verify; if none, all of
            the config, with ``at_rest`` all in the lake.
        repair: whether to reload what differs, and verify again.
        at_rest: whether to check files, hashes and metadata columns only, without the source.
        trust_hashes: whether to trust the ``row_hash`` of Bronze rows instead of computing it from
            their values.
        pool: where to do the work instead of the config's engine.
        notify: is called with progress, in this thread.
        planned: is called with the tables before they are verified.
        stop: ends the verification when it is set, from any thread: what is read is canceled, and
            the tables that were not verified before are stopped.

    Raises:
        ConfigError, SourceError, LakeError: nothing could be verified.
        Stopped: before the tables were known.
    """
    began = time.monotonic()
    with stopping.scope(stop):
        results = (
            _verify_at_rest(settings, tables, repair, pool, notify, planned)
            if at_rest
            else _compare(settings, tables, Options(repair, trust_hashes), pool, notify, planned)
        )
    return VerifyResult(at_rest, time.monotonic() - began, tuple(results))


def _verify_at_rest(
    settings: Settings,
    tables: Sequence[str],
    repair: bool,
    pool: Executor | None,
    notify: Notify,
    planned: Planned,
) -> Sequence[VerifiedTable]:
    expected = inventory.expected_tables(settings, tables)
    planned([RunTable(table.source, table.label, table.target) for table in expected])
    results = rest.verify_at_rest(settings, expected, pool, notify)
    if repair and not stopping.is_requested():
        results = _repair_at_rest(settings, results, pool, notify)
    return results


def _compare(
    settings: Settings,
    tables: Sequence[str],
    options: Options,
    pool: Executor | None,
    notify: Notify,
    planned: Planned,
) -> Sequence[VerifiedTable]:
    with ExitStack() as stack:
        batch_id = str(uuid_utils.uuid7())
        claims = claims_of_source(settings, tables, batch_id, stack)
        planned([claim.run_table for claim in claims])
        failpoint.reach("planned")
        comparisons = compare_tables(settings, claims, options, pool, notify)
        results = [comparison.result for comparison in comparisons]
        if options.repair and not stopping.is_requested():
            damaged = {result.target for result in results if result.status == "differs"}
            results = _repair_and_compare(settings, claims, comparisons, damaged, pool, notify)
        return results


def _repair_and_compare(
    settings: Settings,
    claims: Sequence[Claim],
    comparisons: Sequence[Comparison],
    targets: Collection[str],
    pool: Executor | None,
    notify: Notify,
) -> list[VerifiedTable]:
    """Repairs some tables, and compares them again in the same snapshot.

    Rows that still differ, because the load of the repair could not see it by their hashes, are
    removed and loaded again by a second repair.
    """
    results = {comparison.result.target: comparison.result for comparison in comparisons}
    pairs = zip(claims, comparisons, strict=True)
    damaged = [(claim, found.damage) for claim, found in pairs if claim.target in targets]
    options = comparisons[0].options if comparisons else Options(True, False)
    for is_last in (False, True):
        repaired = repairs.repair_tables(settings, damaged, pool, notify)
        refreshed = [claim.with_current_table() for claim, _ in damaged]
        options = replace(options, repair=not is_last)
        after = compare_tables(settings, refreshed, options, pool, notify)
        for comparison in after:
            target = comparison.result.target
            results[target] = repairs.with_repair(comparison.result, repaired, results[target])
        damaged = [
            (claim, comparison.damage.with_different_removed())
            for claim, comparison in zip(refreshed, after, strict=True)
            if _needs_removal(comparison, repaired)
        ]
        if not damaged:
            break
    return [results[comparison.result.target] for comparison in comparisons]


def _needs_removal(comparison: Comparison, repaired: Mapping[str, RepairResult]) -> bool:
    """Whether rows still differ after a repair without errors."""
    repair = repaired[comparison.result.target]
    is_different = comparison.result.status == "differs" and bool(comparison.damage.different)
    return is_different and repair.error is None


def _repair_at_rest(
    settings: Settings,
    results: Sequence[VerifiedTable],
    pool: Executor | None,
    notify: Notify,
) -> list[VerifiedTable]:
    """Repairs the tables with faults at rest from the source, and checks them again."""
    damaged = {result.target for result in results if result.status == "differs"}
    if not damaged:
        return list(results)
    try:
        repaired = _repair_from_source(settings, damaged, pool, notify)
    except BronzeError as error:
        # The faults stay true, though nothing could be repaired.
        return [
            replace(result, error=error.failure()) if result.target in damaged else result
            for result in results
        ]
    names = [target.removeprefix(f"{settings.lake.schema_}.") for target in repaired]
    try:
        expected = inventory.expected_tables(settings, names) if names else []
        checked = rest.verify_at_rest(settings, expected, pool, notify)
    except BronzeError as error:
        checked = [replace(r, error=error.failure()) for r in results if r.target in repaired]
    after = {result.target: result for result in checked}
    final = []
    for result in results:
        if result.target in repaired:
            final.append(_after_repair(after[result.target], repaired[result.target]))
        else:
            final.append(_not_repairable(result) if result.target in damaged else result)
    return final


def _repair_from_source(
    settings: Settings, targets: Collection[str], pool: Executor | None, notify: Notify
) -> dict[str, VerifiedTable]:
    """Compares and repairs the Bronze tables that a table of the source is loaded into; the results
    are by the name of the Bronze table (``schema.table``).
    """
    with ExitStack() as stack:
        claims = claims_of_bronze(settings, targets, str(uuid_utils.uuid7()), stack)
        options = Options(repair=True, trust_hashes=False)
        # An error of the comparison is an error of the repair, too.
        comparisons = compare_tables(settings, claims, options, pool, notify)
        results = _repair_and_compare(settings, claims, comparisons, targets, pool, notify)
    return {result.target: result for result in results}


def _not_repairable(result: VerifiedTable) -> VerifiedTable:
    """The result of a table that has no table of the source to be repaired from."""
    error = TableRefused(
        f"The Bronze table {result.target} was not repaired: by the config no table of the source"
        " is loaded into it, or more than one.",
        hint="`bronze check` lists the tables of the config, and what becomes of them.",
        table=result.table,
    )
    return replace(result, error=error.failure())


def _after_repair(after: VerifiedTable, repaired: VerifiedTable) -> VerifiedTable:
    """The result at rest of a repaired table, with what the repair did."""
    return replace(
        after,
        status="failed" if repaired.error and after.status == "equal" else after.status,
        repaired=repaired.repaired,
        notes=tuple(dict.fromkeys((*repaired.notes, *after.notes))),
        error=after.error or repaired.error,
    )
