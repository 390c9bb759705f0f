"""The service itself: what it takes, its workers, its breakers, its versions."""

from __future__ import annotations

import platform

from bronze.operate.breaker import Breaker
from bronze.operate.view import Live, PermitFacts, Resources
from bronze.operate.web.markup import charts, words
from bronze.operate.web.markup.layout import Page, badge, facts_list, grid, section
from bronze.operate.web.markup.tags import Safe, join, tag
from bronze.operate.web.site import Visit
from bronze.printable import count


def page(visit: Visit) -> Page:
    """The page."""
    live = visit.view.live
    none = tag("p", "No service has run yet.", class_="muted")
    main = join(
        [
            tag("h1", "System"),
            section("Service", _service(visit, live) if live else none, id_="service"),
            section(
                "Resources", _resources(visit, live.resources if live else None), id_="resources"
            ),
            section("Workers", _permits(live.permits if live else None), id_="permits"),
            section("Breakers", _breakers(visit, live), id_="breakers"),
            section("Versions", _versions(visit), id_="versions", live=False),
        ]
    )
    return Page("System", main, refresh=15)


def _service(visit: Visit, live: Live) -> Safe:
    now, zone = visit.now, visit.zone
    return facts_list(
        [
            ("Host", f"{live.host}, process {live.pid}"),
            ("Began", words.time(live.began, zone, now)),
            ("Heard", words.age(live.at, now)),
            ("Runs", count(len(live.running), "table") if live.running else "nothing"),
            ("Waits", count(len(live.waiting), "table") if live.waiting else "nothing"),
            ("Lake", visit.site.settings.lake.root),
            ("Config", visit.site.settings.path or "of a program"),
        ]
    )


def _resources(visit: Visit, resources: Resources | None) -> Safe:
    if resources is None:
        return tag("p", "Unknown.", class_="muted")
    limit = visit.site.settings.alerts.resources.more_than
    memory = resources.memory / max(resources.memory_limit, 1)
    parts = [
        _level("CPU", resources.cpu, words.share(resources.cpu), limit),
        _level(
            "Memory",
            memory,
            f"{words.size(resources.memory)} of {words.size(resources.memory_limit)}",
            limit,
        ),
    ]
    if resources.disk_free is not None and resources.disk_total:
        used = 1 - resources.disk_free / resources.disk_total
        free = f"{words.size(resources.disk_free)} of {words.size(resources.disk_total)} free"
        parts.append(_level("Disk", used, free, 0.9))
    return tag("ul", parts, class_="levels")


def _level(name: str, share: float, says: str, limit: float) -> Safe:
    tone = "bad" if share > max(limit, 0.95) else "warn" if share > limit else "good"
    return tag("li", tag("strong", name), " ", says, charts.meter(share, tone))


def _permits(permits: PermitFacts | None) -> Safe:
    if permits is None:
        return tag("p", "Unknown.", class_="muted")
    return facts_list(
        [
            ("At work", words.number(permits.in_use)),
            ("Allowed", words.number(permits.limit)),
            ("Wanted", words.number(permits.wanted)),
            ("Capped by", permits.cap or "nothing"),
            ("Window", permits.window or "none"),
        ]
    )


def _breakers(visit: Visit, live: Live | None) -> Safe:
    found: dict[str, Breaker] = dict(live.breakers) if live else {}
    for table in visit.view.tables:
        if table.breaker and table.breaker.failures:
            found.setdefault(table.key, table.breaker)
    known = [(name, one) for name, one in found.items() if one.failures or one.until]
    if not known:
        return tag("p", "All are closed.", class_="muted")
    known.sort(key=lambda pair: (pair[1].until is None, pair[0]))
    heads = ("Of", "State", "Failures in a row", "Last failure", "Tried again")
    return grid("Breakers", heads, [_breaker(visit, name, one) for name, one in known])


def _breaker(visit: Visit, name: str, breaker: Breaker) -> list[object]:
    return [
        name,
        badge(breaker.state(visit.now)),
        words.number(breaker.failures),
        words.age(breaker.failed_at, visit.now, "–"),
        words.age(breaker.until, visit.now, "–"),
    ]


def _versions(visit: Visit) -> Safe:
    import deltalake
    import polars
    import psycopg
    import pyarrow

    from bronze.version import VERSION

    live = visit.view.live
    return facts_list(
        [
            ("bronze", live.version if live else VERSION),
            ("Python", platform.python_version()),
            ("deltalake", deltalake.__version__),
            ("polars", polars.__version__),
            ("pyarrow", pyarrow.__version__),
            ("psycopg", psycopg.__version__),
        ]
    )
