"""Which sources can be reached, by what the service knows, or else by the last runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bronze.config.settings import Settings
from bronze.operate.facts.table_history import SOURCE_KINDS, SourceHistory
from bronze.operate.history import History
from bronze.operate.view import Live, SourceView, TableLike

_UNREACHABLE = "cannot be reached"


def source_views(
    settings: Settings, tables: Sequence[TableLike], history: History | None, live: Live | None
) -> tuple[SourceView, ...]:
    """All sources of the config and of the tables; ``live`` is None where no service lives."""
    counts = Counter(table.source for table in tables)
    known = history.sources if history else {}
    return tuple(
        _source_view(source, counts[source], known.get(source, SourceHistory()), live)
        for source in dict.fromkeys([*settings.source, *counts])
    )


def _source_view(source: str, tables: int, known: SourceHistory, live: Live | None) -> SourceView:
    failure = known.failure
    kind = failure.error_kind if failure else ""
    since = known.since
    breaker = live.breakers.get(f"source:{source}") if live else None
    stream = live.streams.get(source) if live else None
    if live:
        # The service probes a source that failed: its breaker knows more than the last run.
        is_failing = breaker is not None and breaker.failures > 0
        if source in live.source_errors:
            is_failing, kind = True, live.source_errors[source].kind
        elif stream and stream.error and stream.error_kind in SOURCE_KINDS:
            is_failing, kind = True, stream.error_kind
        if not is_failing:
            return SourceView(source, tables, breaker=breaker)
        if since is None:
            since = breaker.failed_at if breaker else live.at
    elif failure is None:
        return SourceView(source, tables)
    error = SOURCE_KINDS.get(kind, _UNREACHABLE)
    return SourceView(source, tables, error, kind or "SourceUnreachable", since, breaker)
