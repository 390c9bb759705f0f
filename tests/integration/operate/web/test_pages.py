"""The pages as a browser gets them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from bronze.governance.tables.quality import Figure
from bronze.operate.alerts.life import Alert, Condition
from bronze.operate.view import Pause
from tests.integration.operate.web.conftest import OPERATOR, TOKENS, Begin
from tests.support import views
from tests.support.browsing import problems_of
from tests.support.quality_figures import figures, record
from tests.support.views import Service

_ALL = (
    "/",
    "/table?name=tests.orders",
    "/table?name=tests.stock_levels",
    "/table?name=tests.suppliers",
    "/table?name=tests.warehouses",
    "/schedule",
    "/streams",
    "/alerts",
    "/system",
    "/runbooks",
    "/runbooks?name=outage",
    "/audit",
    "/login",
    "/nowhere",
)
_EVIL = "<script>alert(1)</script>"


def test_all_pages_are_valid(begin: Begin) -> None:
    """Tags are closed, ids are unique, fields have labels, pictures have names; for a visitor and
    for an operator.
    """
    browser, _ = begin(tokens={"operator": TOKENS["operator"]})
    for signed in (False, True):
        if signed:
            browser.sign_in(OPERATOR)
        for path in _ALL:
            answer = browser.get(path)
            assert answer.status == (404 if path == "/nowhere" else 200)
            assert problems_of(answer.text) == [], path
            assert answer.text.count("<h1") == 1, path


def test_the_first_page_says_it_all(begin: Begin) -> None:
    """The sentence, five metrics with word and threshold, open alerts, tables by their slack."""
    browser, service = begin()
    page = browser.get("/").text
    assert service.view.sentence in page
    for words in ("Critical above 30 min", "Warning below 85", "Warning above 2 h"):
        assert words in page
    assert "Critical above 2 %" in page
    assert "Warning above 80 %" in page
    assert page.count('class="chart spark"') == 5
    assert "Open alerts (3)" in page
    order = re.findall(
        r'href="/table\?name=PostgreSQL_DE\.tests\.(\w+)">tests', page.split('id="rows"')[1]
    )
    assert order == [table.table.removeprefix("tests.") for table in service.view.tables]
    assert "running 42 %" in page
    assert "36 min late" in page


def test_tables_are_filtered_by_name_and_state(begin: Begin) -> None:
    """A part of the name, in any case; one of the states; both; and nothing."""
    browser, _ = begin()

    def shown(query: str) -> list[str]:
        page = browser.get(f"/?{query}").text.split('id="rows"')[1]
        return re.findall(r'href="/table\?name=PostgreSQL_DE\.tests\.(\w+)">tests', page)

    assert sorted(shown("name=ORDER")) == ["order_details", "orders"]
    assert shown("state=paused") == ["suppliers"]
    assert shown("name=order&state=paused") == []
    assert len(shown("state=&name=")) == 10
    assert len(shown("page=99999999&unknown=x")) == 10


def test_pages_hold_for_no_table_one_and_a_thousand(begin: Begin) -> None:
    """The first page has 50 tables at most, and is below 100 kB."""
    for count in (0, 1, 1_000):
        browser, service = begin(Service(views.well(count=count)), tokens=TOKENS)
        browser.sign_in(OPERATOR)
        answer = browser.get("/")
        assert answer.status == 200
        assert len(answer.body) < 100_000
        rows = re.findall(r"<tr><th scope=.row.>", answer.text)
        assert len(rows) == min(count, 50)
        assert browser.get("/schedule").status == 200
        assert browser.get("/metrics").text.count("bronze_table_slack_seconds{") == count
        if count > 50:
            last = browser.get("/?page=20").text
            assert "951 to 1,000 of 1,000" in last
            assert service.view.tables[-1].table in last


def test_an_outage_of_a_thousand_alerts_is_a_short_page(begin: Begin) -> None:
    """The first page shows ten of them, and says how many more there are."""
    view = views.night()
    alerts = tuple(
        Alert(Condition("table_failed", f"t{n}", "critical", view.now, f"t{n} failed."), "open")
        for n in range(1_000)
    )
    browser, _ = begin(Service(replace(view, alerts=alerts)))
    page = browser.get("/")
    assert len(page.body) < 100_000
    assert "990 more" in page.text
    assert browser.get("/alerts").status == 200


def test_names_are_text_everywhere(begin: Begin) -> None:
    """A table, a source, an error, a reason and an alert that are HTML are shown as they are."""
    view = views.night()
    table = replace(
        view.tables[0],
        table=f"tests.{_EVIL}",
        key=f"tests.{_EVIL}",
        source=_EVIL,
        target=f"bronze.{_EVIL}",
        why=_EVIL,
        schedule="daily 02:00",
        pause=Pause(_EVIL, view.now, None, _EVIL),
    )
    alert = Alert(
        Condition("table_failed", table.table, "critical", view.now, _EVIL),
        "acknowledged",
        by='"><img src=x onerror=alert(1)>',
    )
    metric = replace(view.metrics[0], worst=table.table, why=_EVIL)
    assert view.live
    stream = replace(view.live.streams["PostgreSQL_DE"], source=_EVIL, error=_EVIL, tables=(_EVIL,))
    live = replace(view.live, streams={_EVIL: stream}, host=_EVIL, config_error=_EVIL)
    evil = replace(
        view, sentence=_EVIL, tables=(table,), alerts=(alert,), metrics=(metric,), live=live
    )
    browser, service = begin(Service(evil), tokens=TOKENS)
    browser.sign_in(OPERATOR)
    link = "/table?name=tests.%3Cscript%3Ealert%281%29%3C%2Fscript%3E"
    assert link in browser.get("/").text
    for path in (
        "/",
        link,
        "/schedule",
        "/streams",
        "/alerts",
        "/system",
        f"/table?name={_EVIL[:8]}",
    ):
        page = browser.get(path).text
        assert "<script>alert" not in page, path
        assert "<img" not in page, path
        assert problems_of(page) == [], path
    browser.act({"action": "now", "subject": table.table, "next": link})
    assert service.acted[0][1] == table.table
    assert "<script>alert" not in browser.get(link).text
    for path in ("/api/v1/status", "/api/v1/tables", "/api/v1/alerts"):
        assert browser.get(path).headers["content-type"] == "application/json"
    search = browser.get("/?name=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&state=%22%3Ex").text
    assert "<script>alert" not in search


def test_names_cannot_hide_what_is_beside_them(begin: Begin) -> None:
    """Control and bidirectional characters are shown as escapes."""
    view = views.night()
    table = replace(view.tables[0], table="tests.\u202egnp\x1b[31m", key="a", why="line\nbreak")
    browser, _ = begin(Service(replace(view, tables=(table,))))
    page = browser.get("/").text
    assert "\\u202egnp\\x1b[31m" in page
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_the_page_of_a_table_has_its_history_and_its_buttons(begin: Begin) -> None:
    """Deadline, four charts of 90 days, runs with stages, error and hint, and what can be done."""
    browser, service = begin(tokens=TOKENS)
    browser.sign_in(OPERATOR)
    page = browser.get("/table?name=tests.warehouses").text
    assert page.count('class="chart bars"') == 4
    for words in (
        "Late from",
        "The column opened has a value that is not a date. (22007)",
        "stages",
    ):
        assert words in page
    for button in ("Run now", "Pause", "Reset breaker"):
        assert f">{button}</button>" in page
    assert "Resume" not in page
    assert ">Resume</button>" in browser.get("/table?name=tests.suppliers").text
    assert "Run now" not in browser.get("/table?name=tests.orders").text
    assert browser.get("/table?name=nothing").status == 404
    assert browser.get("/table").status == 404
    assert service.acted == []


def test_the_page_of_a_table_has_the_rules_that_its_rows_fail(begin: Begin, tmp_path: Path) -> None:
    """With the share of the rows, and the keys of some as they are recorded."""
    browser, service = begin()
    settings = views.settings(tmp_path / "lake")
    orders, other, *_ = service.look().tables
    page = browser.get(f"/table?name={other.key}")
    assert "no quality of its rows is recorded yet" in page.text
    keys = ('{"id": 7}', f'{{"code": "{_EVIL}"}}')
    price = Figure("price > 0", "expression", "price", "error", "config", "rows", 200, 3)
    price = replace(price, measured=0.015, allowed=0.0, passed=False, examples=keys)
    record(settings, figures(orders.target, 0, 200, 98.0, price))
    page = browser.get(f"/table?name={orders.key}")
    assert problems_of(page.text) == []
    for words in ("price &gt; 0", "1.50 %", "{&quot;id&quot;: 7}", "expression of price, error"):
        assert words in page.text
    assert _EVIL not in page.text


def test_tables_of_the_same_name_are_told_apart(begin: Begin) -> None:
    """Each has its own page and buttons; the name alone is refused with the names of both."""
    view = views.night()
    german = next(table for table in view.tables if table.table == "tests.products")
    spanish = replace(german, source="ES", key="ES.tests.products", why="The other one.")
    service = Service(replace(view, tables=(*view.tables, spanish)))
    browser, _ = begin(service, tokens=TOKENS)
    browser.sign_in(OPERATOR)
    assert "The other one." in browser.get("/table?name=ES.tests.products").text
    assert "The other one." not in browser.get("/table?name=PostgreSQL_DE.tests.products").text
    answer = browser.get("/table?name=tests.products")
    assert answer.status == 409
    assert "PostgreSQL_DE.tests.products, ES.tests.products" in answer.text
    browser.act({"action": "now", "subject": "tests.products"})
    browser.act({"action": "now", "subject": "ES.tests.products"})
    assert [acted[1] for acted in service.acted] == ["ES.tests.products"]
    assert browser.get("/api/v1/runs?table=tests.products").status == 409


def test_a_service_that_is_not_heard_is_said(begin: Begin) -> None:
    """A stale view, a lake that is away, a wrong config, no service at all; /ready says no."""
    view = views.night()
    assert view.live
    for changed, words in (
        (replace(view, is_alive=False), "was last heard at"),
        (replace(view, live=None, is_alive=False), "No service has run yet."),
        (replace(view, live=replace(view.live, lake_error="It is full.")), "It is full."),
        (replace(view, live=replace(view.live, is_stopping=True)), "is stopping"),
    ):
        browser, _ = begin(Service(changed))
        assert words in browser.get("/").text
        assert browser.get("/ready").status == 503
        assert browser.get("/live").status == 200
        assert browser.get("/system").status == browser.get("/streams").status == 200
    browser, _ = begin(Service(replace(view, live=replace(view.live, config_error="A typo."))))
    assert "A typo." in browser.get("/").text
    assert browser.get("/ready").status == 200


def test_a_service_that_does_not_know_what_ran_before_is_not_ready(begin: Begin) -> None:
    """Nothing begins until then; /ready says why."""
    view = views.night()
    assert view.live
    browser, _ = begin(Service(replace(view, live=replace(view.live, unread="It is being read."))))
    answer = browser.get("/ready")
    assert (answer.status, answer.text) == (503, "It is being read.\n")


def test_metrics_are_those_of_the_view(begin: Begin) -> None:
    """Each has its type, and the values are right."""
    browser, _ = begin()
    text = browser.get("/metrics").text
    for line in (
        "bronze_up 1.0",
        'bronze_table_late{source="PostgreSQL_DE",table="tests.orders"} 1.0',
        'bronze_workers{state="running"} 6.0',
        'bronze_workers{state="allowed"} 8.0',
        'bronze_workers{state="wanted"} 14.0',
        'bronze_slot_left_bytes{source="PostgreSQL_DE"} 7.9e+09',
        'bronze_alerts_open{acknowledged="false",level="critical"} 1.0',
        'bronze_breaker_state{state="open",subject="PostgreSQL_DE.tests.warehouses"} 1.0',
        'bronze_stream_connected{source="PostgreSQL_DE"} 0.0',
    ):
        assert line in text.splitlines()
    assert "process_resident_memory_bytes" in text
    named = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    assert {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"} <= {
        *named,
        *(f"{name}_total" for name in named),
    }


def test_programs_get_json(begin: Begin) -> None:
    """The whole view, tables by state, alerts, runs; errors are JSON as well."""
    browser, service = begin()
    whole = json.loads(browser.get("/api/v1/status").body)
    assert whole["sentence"] == service.view.sentence
    assert whole["is_well"] is False
    late = json.loads(browser.get("/api/v1/tables?state=late").body)
    assert {table["table"] for table in late} == {"tests.orders", "tests.order_details"}
    alerts = json.loads(browser.get("/api/v1/alerts").body)
    assert alerts[0]["alert"] == "source_unreachable:PostgreSQL_DE"
    assert alerts[0]["told"] == ["on-call"]
    runs = json.loads(browser.get("/api/v1/runs?table=tests.products&limit=3").body)
    assert len(runs) == 3
    for path, status in (
        ("runs?table=no", 404),
        ("runs?table=tests.products&limit=x", 400),
        ("no", 404),
    ):
        answer = browser.get(f"/api/v1/{path}")
        assert answer.status == status
        assert json.loads(answer.body)["error"]


def test_runbooks_are_read(begin: Begin) -> None:
    """HTML in one is text; another name is not looked for."""
    browser, _ = begin()
    page = browser.get("/runbooks?name=outage").text
    assert '<h2 id="table-failed">table_failed</h2>' in page
    assert "Wait &lt;b&gt;here&lt;/b&gt;." in page
    for name in ("../../../etc/passwd", "README", "%00"):
        assert browser.get(f"/runbooks?name={name}").status == 404


def test_a_failing_page_is_a_sentence(begin: Begin, caplog: pytest.LogCaptureFixture) -> None:
    """The cause is in the log, not on the page; the server goes on."""

    class Broken(Service):
        def runs(self, table: str) -> list[object]:  # type: ignore[override]
            raise RuntimeError("a secret of the process")

    browser, _ = begin(Broken(views.night()))
    answer = browser.get("/table?name=tests.orders")
    assert answer.status == 500
    assert "The page could not be made." in answer.text
    assert "secret" not in answer.text
    assert browser.get("/").status == 200
    assert "a secret of the process" in caplog.text
