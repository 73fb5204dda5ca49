"""The Grafana dashboard: its expressions name metrics and labels that there are."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from manifests import INFRA

DASHBOARD = INFRA / "grafana" / "dashboard.json"
FUNCTIONS = {"by", "increase", "label_values", "max", "rate", "sum"}
LABELS = {"store", "capture"}
SCHEMA = {
    # What Grafana's dashboard model wants of a dashboard, its panels and variables (schemaVersion 39).
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "panels", "templating", "time"],
    "properties": {
        "uid": {"type": "string", "maxLength": 40, "pattern": "^[A-Za-z0-9_-]+$"},
        "title": {"type": "string", "minLength": 1},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "time": {"type": "object", "required": ["from", "to"]},
        "templating": {
            "type": "object",
            "required": ["list"],
            "properties": {
                "list": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "type", "query"],
                        "properties": {"type": {"enum": ["datasource", "query"]}},
                    },
                }
            },
        },
        "panels": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["id", "type", "title", "gridPos", "targets", "datasource"],
                "properties": {
                    "id": {"type": "integer"},
                    "type": {"enum": ["stat", "timeseries"]},
                    "title": {"type": "string", "minLength": 1},
                    "gridPos": {
                        "type": "object",
                        "required": ["x", "y", "w", "h"],
                        "additionalProperties": {"type": "integer", "minimum": 0},
                    },
                    "targets": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "object", "required": ["refId", "expr"]},
                    },
                },
            },
        },
    },
}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


@pytest.fixture(scope="module")
def metrics() -> dict[str, tuple[str, ...]]:
    """The metrics that a run exports, with their labels: Ray puts `ray_` before a name."""
    from cliffstore.run import ray_metrics

    found: dict[str, tuple[str, ...]] = {}

    class Metric:
        def __init__(self, name: str, _what: str, tags: tuple[str, ...]) -> None:
            found[f"ray_{name}"] = tags

        def set_default_tags(self, tags: object) -> None:
            pass

        def set(self, value: float) -> None:
            pass

    class Job:
        store = receipts_name = "s"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_metrics, "Counter", Metric)
        patch.setattr(ray_metrics, "Gauge", Metric)
        ray_metrics.RunMetrics(Job(), 1)  # type: ignore[arg-type]
    return found


def expressions(dashboard: dict[str, Any]) -> list[str]:
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [*shown, *(one["query"] for one in dashboard["templating"]["list"] if one["type"] == "query")]


def test_dashboard_is_of_grafanas_model(dashboard: dict[str, Any]) -> None:
    jsonschema.validate(dashboard, SCHEMA)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie over one another"
    assert max(x for x, _ in cells) < 24


def test_expressions_name_metrics_and_labels_that_there_are(
    dashboard: dict[str, Any], metrics: dict[str, tuple[str, ...]]
) -> None:
    assert all(set(tags) == LABELS for tags in metrics.values())
    for expression in expressions(dashboard):
        outside = re.sub(r'"[^"]*"|\[[^\]]*\]', "", expression)
        words = set(re.findall(r"[a-z_]\w*", outside))
        named = {word for word in words if word.startswith("ray_")}
        assert named, expression
        assert named <= set(metrics), named - set(metrics)
        assert words - named <= FUNCTIONS | LABELS, words - named
        assert expression.count("(") == expression.count(")")
        assert expression.count("{") == expression.count("}")


def test_every_metric_is_shown(dashboard: dict[str, Any], metrics: dict[str, tuple[str, ...]]) -> None:
    text = " ".join(expressions(dashboard))
    assert {name for name in metrics if not re.search(rf"\b{name}\b", text)} == set()


def test_counters_are_shown_by_what_they_grow(dashboard: dict[str, Any]) -> None:
    """A job that is submitted again begins its counters at nought."""
    for expression in expressions(dashboard):
        for name in re.findall(r"ray_\w+_total", expression):
            assert re.search(rf"(?:rate|increase)\({name}\{{[^}}]*\}}\[", expression), expression


def test_variables_are_those_of_the_panels(dashboard: dict[str, Any]) -> None:
    defined = {one["name"] for one in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(dashboard["panels"]))) - {"__range"}
    assert used == defined == {"datasource", "store", "capture"}
