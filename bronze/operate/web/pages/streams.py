"""Streams: how far each is behind, what its server keeps for it, and for how long it can."""

from __future__ import annotations

from bronze.operate.view import StreamFacts
from bronze.operate.web.markup import charts, words
from bronze.operate.web.markup.layout import Page, badge, facts_list, table_link
from bronze.operate.web.markup.tags import Safe, join, tag
from bronze.operate.web.site import Visit

_TABLES = 50


def page(visit: Visit) -> Page:
    """The page."""
    live = visit.view.live
    streams = sorted(live.streams.values(), key=lambda stream: stream.source) if live else []
    parts = [_stream(visit, stream) for stream in streams]
    none = None if parts else tag("p", "No table is streamed.", class_="muted")
    content = tag("div", parts, none, id="streams", data_live=True)
    return Page("Streams", join([tag("h1", "Streams"), content]), refresh=15)


def _stream(visit: Visit, stream: StreamFacts) -> Safe:
    state = badge("down") if stream.error else badge("connected")
    retry = None
    if stream.error and stream.retry_at:
        retry = tag("span", " It is tried again ", words.age(stream.retry_at, visit.now), ".")
    tables = [tag("li", table_link(table)) for table in stream.tables[:_TABLES]]
    more = len(stream.tables) - _TABLES
    return tag(
        "section",
        tag("h2", stream.source, " ", state),
        tag("p", stream.error, retry, class_="error") if stream.error else None,
        _kept(stream),
        facts_list(_facts(visit, stream)),
        tag("ul", tables, tag("li", f"and {more} more") if more > 0 else None, class_="names"),
        class_="card",
    )


def _facts(visit: Visit, stream: StreamFacts) -> list[tuple[str, object]]:
    now, zone = visit.now, visit.zone
    return [
        ("As of", words.age(stream.as_of, now, "nothing yet")),
        ("Behind", f"{words.span(stream.lag_seconds)}, {words.size(stream.lag_bytes)}"),
        ("Changes", f"{stream.changes_per_second:,.0f} a second, {stream.changes:,} in all"),
        ("Server heard", words.age(stream.heard, now, "never")),
        ("Connected", None if stream.error else ["since ", words.time(stream.began, zone, now)]),
        ("Slot", tag("code", stream.slot) if stream.slot else None),
    ]


def _kept(stream: StreamFacts) -> Safe | None:
    """How much log the server keeps for the slot, and when it is lost."""
    if stream.retained is None:
        return None
    kept = f"The server keeps {words.size(stream.retained)} of its log for the slot"
    if stream.left is None:
        return tag("p", f"{kept}, without a limit.")
    share = stream.retained / max(stream.retained + stream.left, 1)
    tone = "bad" if share > 0.8 else "warn" if share > 0.5 else "good"
    rest = f"; {words.size(stream.left)} are left"
    if stream.lost_in is not None:
        rest += f": at the present rate the slot is lost in about {words.span(stream.lost_in)}"
    return tag("div", charts.meter(share, tone), tag("p", f"{kept}{rest}."), class_="kept")
