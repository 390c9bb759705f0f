"""The dashboard and the alert rules that `bronze deploy grafana` writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from bronze.deploy import writer
from bronze.operate.web import exposition
from tests.support import views
from tests.unit.deploy.configs import settings

_NAME = re.compile(r"\bbronze_\w+")
_WORDS = {"sum", "max", "by", "on", "topk", "vector", "absent", "up", "or", "predict_linear"}
_LABELS = re.compile(r"\{([^}]*)\}")


def expressions() -> Iterator[str]:
    """All queries of the dashboard and the rules."""
    files = writer.render(settings(), "grafana")
    for panel in json.loads(files["bronze-dashboard.json"])["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))
    for group in yaml.safe_load(files["bronze-alerts.yml"])["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def labels() -> dict[str, set[str]]:
    """The labels of each metric that the service exposes."""
    return {
        family.name: {label for sample in family.samples for label in sample.labels}
        for family in exposition.families(views.night())
    }


def test_queries_name_metrics_and_labels_that_the_service_exposes() -> None:
    """A metric that is renamed would leave panels empty, and alerts silent."""
    known = labels()
    named = {name for expression in expressions() for name in _NAME.findall(expression)}
    assert named <= set(known) | {"bronze_drill_passed"}
    assert len(named) > len(known) / 2
    for expression in expressions():
        for name, condition in re.findall(r"\b(bronze_\w+)\{([^}]*)\}", expression):
            used = {part.split("=")[0].strip(" !~") for part in condition.split(",")} - {"job"}
            assert used <= known[name], expression


def test_queries_are_whole() -> None:
    """Brackets are closed, and every word outside of braces is a function, a metric or a label."""
    for expression in expressions():
        for pair in ("()", "{}", "[]"):
            assert expression.count(pair[0]) == expression.count(pair[1]), expression
        plain = _LABELS.sub("", expression)
        words = set(re.findall(r"[a-z_]\w*", re.sub(r"\[\w+\]|\b\d\w*", "", plain)))
        unknown = {word for word in words if not word.startswith("bronze_")} - _WORDS
        assert unknown <= {"job", "instance", "name", "table", "source"}, expression


def test_panels_have_titles_units_and_places_of_their_own() -> None:
    """No panel hides another one, and each has its data source from the dashboard's variable."""
    board: dict[str, Any] = json.loads(
        writer.render(settings(), "grafana")["bronze-dashboard.json"]
    )
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["fieldConfig"]["defaults"]["unit"]
    assert {"datasource", "job"} == {one["name"] for one in board["templating"]["list"]}


def test_rules_say_what_happened_how_bad_it_is_and_what_to_do() -> None:
    """The commands that they name are bronze's."""
    files = writer.render(settings(), "grafana")
    (group,) = yaml.safe_load(files["bronze-alerts.yml"])["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(set(names)) == len(names) > 10
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
    (job,) = yaml.safe_load(files["prometheus-scrape.yml"])["scrape_configs"]
    assert job["job_name"] == "bronze"
    assert job["static_configs"] == [{"targets": ["localhost:8080"]}]
