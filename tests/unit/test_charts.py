"""Charts: their numbers are those they were given, what is not drawn is told, and each can be drawn."""

from __future__ import annotations

import html
import io
import json
import re
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise

import altair
import pyarrow as pa
import pytest
from made_up import make_probe
from made_up_store import made_up_capture

from cliffstore.errors import ConfigError, ProbeError
from cliffstore.publish.charts import theme as looks
from cliffstore.publish.charts.cliffs import MOST_TICKS, cliff_chart
from cliffstore.publish.charts.curves import curve_chart
from cliffstore.publish.charts.experiment import experiment_chart
from cliffstore.publish.charts.heads import head_chart
from cliffstore.publish.charts.layers import layer_chart, layer_heat_map
from cliffstore.publish.charts.pictures import VEGA_LITE, kind_of, picture
from cliffstore.publish.charts.series import MOST_SERIES, labels_of
from cliffstore.publish.charts.theme import Chart, Size, config, themed
from cliffstore.publish.charts.tokens import MOST_TOKENS, token_chart, tokens_of
from cliffstore.schema import CellMetrics, ProbeDocument
from cliffstore.text import printable

HOSTILE = "</script><b>\x1b[31m\x00\u202etxt\n"


def curves_of(*groups: str | None, n: int = 10, fall: float = 4.0, gap: int | None = None) -> pa.Table:
    rows = []
    for group in groups:
        for at in range(-8, 3):
            mean = 3.0 - (fall if at >= -1 else 0.0) + 0.01 * at
            row = {"probe": "refusal", "group": group, "to_decision": at, "n": n, "mean": mean}
            rows += [] if at == gap else [{**row, "low": mean - 0.1, "high": mean + 0.1}]
    return pa.Table.from_pylist(rows)


def cell(positions: str, layer: int, *, tested: bool = True) -> CellMetrics:
    auroc = 0.5 + layer / 10
    test = {"n_test": 9, "test_auroc": auroc - 0.1, "test_auroc_low": auroc - 0.2, "test_auroc_high": auroc}
    return CellMetrics(
        positions=positions, layer=layer, n_train=9, n_validation=9, auroc=auroc, auroc_low=auroc - 0.05,
        auroc_high=auroc + 0.05, accuracy=1, recall_at_1_fpr=1, calibration_error=0, log_loss=0,
        **(test if tested else {}),
    )  # fmt: skip


def sweep(*cells: CellMetrics) -> ProbeDocument:
    document, _ = make_probe(made_up_capture("c", 4), "refusal")
    chosen = {"positions": cells[-1].positions, "layer": cells[-1].layer} if cells else {}
    controls = {"shuffled_auroc": 0.51, "bag_auroc": 0.62}
    return document.model_copy(update={"cells": list(cells), **chosen, **controls})


def token_table(*tokens: tuple[str, str, float | None], decision: int = 0) -> pa.Table:
    rows = [
        {"position": at, "to_decision": at - decision, "segment": segment, "token": token, "score": score}
        for at, (token, segment, score) in enumerate(tokens)
    ]
    return pa.Table.from_pylist(rows)


def every_chart() -> dict[str, Chart]:
    cliffs = [
        {"probe": "p", "group": HOSTILE, "id": HOSTILE, "cliff": value, "selected": value > 1}
        for value in (0.0, 1.5, 2.0)
    ]
    heads = [{"layer": 0, "head": head, "value": float(head - 1), "note": HOSTILE} for head in range(3)]
    return {
        "curve": curve_chart(curves_of("0", HOSTILE, None), group_title=HOSTILE),
        "cliffs": cliff_chart(pa.Table.from_pylist(cliffs), group_title=HOSTILE),
        "layers": layer_chart(sweep(*(cell("decision", layer) for layer in range(4)))),
        "heat map": layer_heat_map(sweep(*(cell(place, layer) for place in ("-1", "decision") for layer in range(3)))),
        "heads": head_chart(pa.Table.from_pylist(heads), "value", HOSTILE, marked=[(0, 1)], details=["note"]),
        "tokens": token_chart(tokens_of(token_table((HOSTILE, "user", 1.0), ("漢字", "think", -1.0))), with_text=True),
    }


@pytest.fixture(scope="module")
def charts() -> dict[str, Chart]:
    return every_chart()


def numbers(png: bytes) -> tuple[int, int]:
    """Return width and height, from the header."""
    assert png.startswith(b"\x89PNG\r\n")
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


@pytest.mark.parametrize("kind", ["curve", "cliffs", "layers", "heat map", "heads", "tokens"])
def test_every_chart_is_drawn_with_hostile_text(charts: dict[str, Chart], kind: str) -> None:
    spec = themed(charts[kind], "dark", title=HOSTILE)
    once, twice = (numbers(picture(spec, "png", scale=scale)) for scale in (1.0, 2.0))
    assert twice == pytest.approx([2 * side for side in once], abs=2)
    svg = picture(spec, "svg").decode()
    assert picture(spec, "svg").decode() == svg  # Vega counts clips through all that a process draws
    declared = re.findall(r'\bid="([^"]+)"', svg)
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(declared)
    assert len(set(declared)) == len(declared)
    assert "<script" not in svg
    assert "<b>" not in svg
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800-\udfff]", svg)
    assert "\\x1b[31m\\x00\\u202etxt\\n" in svg
    altair.Chart.from_dict(json.loads(picture(spec, "json")))  # it validates against Vega-Lite's schema
    assert spec["$schema"].endswith(f"/v{VEGA_LITE}.1.json")


@pytest.mark.parametrize("kind", ["curve", "cliffs", "layers", "heads"])
def test_a_specification_is_the_same_on_light_and_dark(charts: dict[str, Chart], kind: str) -> None:
    light, dark = (themed(charts[kind], theme) for theme in ("light", "dark"))
    assert {**light, "config": None} == {**dark, "config": None}
    assert light["config"]["background"] == looks.GROUND["light"] != dark["config"]["background"]
    assert picture(light, "svg") != picture(dark, "svg")


@pytest.mark.parametrize(
    "title", ["\\", 'id="clip1"', 'a\\"+alert(1)+\\"b', "'", "${x}", "\\x41", "regexp_matches(prompt, '\\d')"]
)
def test_a_title_stays_a_title(title: str) -> None:
    """Vega-Lite puts titles into expressions, where a backslash would begin an escape, or end the text."""
    heads = pa.table({"layer": [0], "head": [0], "value": [1.0], title: ["x"]})
    for chart in (curve_chart(curves_of("0"), group_title=title), head_chart(heads, "value", title, details=[title])):
        svg = picture(themed(chart, "light"), "svg").decode()
        assert title.replace("\\", "∖") in html.unescape(svg)


def luminance(colour: str) -> float:
    """WCAG 2.1, relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_ground(theme: looks.Theme) -> None:
    def contrast(colour: str) -> float:
        two = sorted((luminance(colour), luminance(looks.GROUND[theme])))
        return (two[1] + 0.05) / (two[0] + 0.05)

    shown = config(theme)
    assert contrast(shown["axis"]["titleColor"]) >= 7
    assert contrast(shown["axis"]["labelColor"]) >= 4.5
    assert min(map(contrast, looks.CATEGORIES[theme])) >= 2
    assert len(set(looks.CATEGORIES[theme])) == 8


def test_curves_are_the_numbers_given() -> None:
    table = curves_of("0", "1")
    drawn = curve_chart(table, group_title="label").spec["datasets"]["curves"]
    fields = ("to_decision", "n", "mean", "low", "high")
    assert [tuple(point[field] for field in fields) for point in drawn] == [
        tuple(row[field] for field in fields) for row in table.to_pylist()
    ]
    assert Counter(point["series"] for point in drawn) == {"0": 11, "1": 11}


def test_a_line_is_broken_where_there_is_nothing_and_a_lone_point_is_seen() -> None:
    rows = [row for row in curves_of("0").to_pylist() if row["to_decision"] not in (-7, -5)]
    data = curve_chart(pa.Table.from_pylist(rows)).spec["datasets"]
    assert [point["to_decision"] for point in data["curves"] if point["mean"] is None] == [-7, -5]
    assert [point["to_decision"] for point in data["lone"]] == [-8, -6]


def test_what_is_no_number_is_told() -> None:
    rows = curves_of("0").to_pylist()
    rows[3] |= {"mean": float("nan")}
    chart = curve_chart(pa.Table.from_pylist(rows))
    assert chart.notes == ("1 of 11 means are no numbers and are not drawn.",)
    assert chart.spec["datasets"]["curves"][3]["mean"] is None
    assert "not drawn" in json.dumps(themed(chart, "light")["title"])
    json.dumps(chart.spec, allow_nan=False)


@pytest.mark.parametrize(
    ("table", "ends"),
    [
        (curves_of("0"), [-2, -1]),
        (curves_of("0", fall=0.05), []),  # bands overlap
        (curves_of("0", fall=-4), []),  # it rises
    ],
)
def test_steepest_fall_is_marked_if_it_is_certain(table: pa.Table, ends: list[int]) -> None:
    assert [point["to_decision"] for point in curve_chart(table).spec["datasets"]["falls"]] == ends


def test_a_fall_of_few_examples_is_not_the_groups() -> None:
    rows = curves_of("0").to_pylist()
    rows[0] |= {"mean": 99.0, "low": 98.0, "high": 99.5, "n": 2}
    falls = curve_chart(pa.Table.from_pylist(rows)).spec["datasets"]["falls"]
    assert [point["to_decision"] for point in falls] == [-2, -1]


def test_too_many_lines_are_refused() -> None:
    curve_chart(curves_of(*map(str, range(MOST_SERIES))))
    with pytest.raises(ConfigError, match="41 lines are too many"):
        curve_chart(curves_of(*map(str, range(MOST_SERIES + 1))))
    with pytest.raises(ConfigError, match="no curves"):
        curve_chart(curves_of())


def test_no_two_lines_look_alike() -> None:
    spec = curve_chart(curves_of(*map(str, range(MOST_SERIES)))).spec
    line = next(layer for layer in spec["layer"] if "strokeDash" in layer["encoding"])["encoding"]
    dashes = line["strokeDash"]["scale"]["range"]
    looks_of = [(number % len(looks.CATEGORIES["light"]), tuple(dash)) for number, dash in enumerate(dashes)]
    assert len(set(looks_of)) == MOST_SERIES


def test_names_stay_apart() -> None:
    assert labels_of(["a", "\x1b", "\\x1b", "x" * 99, "x" * 98, "a (2)", "a"]) == [
        "a", "\\x1b", "\\x1b (2)", "x" * 59 + "…", "x" * 59 + "… (2)", "a (2)", "a (3)",
    ]  # fmt: skip


def cliffs_of(*values: float | None, selected: int = 0) -> pa.Table:
    n = len(values)
    columns = {
        "probe": pa.repeat("p", n),
        "group": pa.nulls(n, pa.string()),
        "id": pa.array([f"e{at}" for at in range(n)], pa.string()),
        "cliff": pa.array(values, pa.float64()),
        "selected": pa.array([at < selected for at in range(n)]),
    }
    return pa.table(columns)


def test_every_cliff_is_counted_once() -> None:
    values = [at / 10 for at in range(100)]
    chart = cliff_chart(cliffs_of(*values, None, float("nan"), float("inf"), selected=7), bins=10)
    data = chart.spec["datasets"]
    assert [bar["n"] for bar in data["counts"]] == [10] * 10
    assert sum(bar["selected"] for bar in data["counts"]) == 7
    assert [(tick["id"], tick["cliff"]) for tick in data["ticks"]] == [(f"e{at}", values[at]) for at in range(7)]
    assert chart.notes == ("3 of 103 examples have no cliff and are not drawn.",)
    assert max(point["n"] for point in data["steps"]) == 10


def test_a_selection_of_many_has_no_ticks_and_says_so() -> None:
    n = MOST_TICKS + 1
    chart = cliff_chart(cliffs_of(*range(n), selected=n))
    assert chart.spec["datasets"]["ticks"] == []
    assert chart.captions == (f"Filled: {n} selected examples.",)


def test_selected_examples_without_a_cliff_are_told() -> None:
    assert "1 selected examples are among them." in cliff_chart(cliffs_of(None, 1.0, 2.0, selected=2)).notes


def test_equal_cliffs_are_drawn_and_none_are_refused() -> None:
    assert [bar["n"] for bar in cliff_chart(cliffs_of(2.0, 2.0)).spec["datasets"]["counts"]] == [2]
    with pytest.raises(ConfigError, match="none of 2 examples"):
        cliff_chart(cliffs_of(None, None))


def test_layers_show_test_set_intervals_and_controls() -> None:
    data = layer_chart(sweep(*(cell("decision", layer) for layer in range(4)))).spec["datasets"]
    found = {
        (point["series"], point["layer"]): (point["low"], point["auroc"], point["high"]) for point in data["layers"]
    }
    assert found["validation", 2] == pytest.approx((0.65, 0.7, 0.75))
    assert found["unseen test set", 2] == pytest.approx((0.5, 0.6, 0.7))
    assert [(row["control"], row["auroc"]) for row in data["controls"]] == [
        ("chance", 0.5), ("shuffled labels", 0.51), ("words alone", 0.62),
    ]  # fmt: skip
    places = [row["at"] for row in data["controls"]]
    assert min(after - before for before, after in pairwise(places)) > 0.02
    assert {point["layer"] for point in data["chosen"]} == {3}


def test_several_positions_are_a_heat_map_and_one_of_them_lines() -> None:
    document = sweep(
        *(cell(place, layer) for place in ("-1", "decision") for layer in range(3) if (place, layer) != ("-1", 1))
    )
    chart = layer_chart(document)
    assert {(row["positions"], row["layer"]) for row in chart.spec["datasets"]["cells"]} == {
        (one.positions, one.layer) for one in document.cells
    }
    assert chart.notes == ("1 cells have no figures.",)
    lines = layer_chart(document, positions="-1")
    assert [point["layer"] for point in lines.spec["datasets"]["layers"] if point["series"] == "validation"] == [0, 2]
    assert "own position, decision" in lines.notes[0]
    with pytest.raises(ProbeError, match="not tried at 'think'"):
        layer_chart(document, positions="think")
    with pytest.raises(ProbeError, match="no figures"):
        layer_chart(sweep())


def experiment_rows(*rows: tuple[str, float | None, int | None, float]) -> pa.Table:
    """Condition, share, random set and score of harmful examples."""
    same = {"thinking": "fixed", "part": "harmful", "measure": "score", "n": 4, "n_heads": 2}
    return pa.Table.from_pylist(
        [
            {**same, "condition": condition, "share": share, "set": number, "value": value, "low": value - 1,
             "high": value + 2}
            for condition, share, number, value in rows
        ]
    )  # fmt: skip


def test_an_experiment_shows_its_heads_beside_random_ones_with_the_intervals_that_were_asked_for() -> None:
    table = experiment_rows(
        ("unchanged", None, None, -1.0), ("chosen", 10.0, None, 5.0), ("random", 10.0, 0, 0.5),
        ("random", 10.0, 1, -2.0),
    )  # fmt: skip
    chart = experiment_chart(table, level=0.9)
    data = chart.spec["datasets"]
    chosen = [(point["share"], point["value"], point["low"], point["high"]) for point in data["harmful_score_chosen"]]
    assert chosen == [(0.0, -1.0, -2.0, 1.0), (10.0, 5.0, 4.0, 7.0)]
    random = [(one["share"], one["low"], one["mean"], one["high"], one["sets"]) for one in data["harmful_score_random"]]
    assert random == [(0.0, -1.0, -1.0, -1.0, 0), (10.0, -2.0, -0.75, 0.5, 2)]
    assert "with 90 % intervals" in chart.captions[0]
    assert "up to 2 random sets" in chart.captions[1]
    assert "90 % interval from" in json.dumps(chart.spec)
    with pytest.raises(ConfigError, match="no figures"):
        experiment_chart(table.slice(0, 0), level=0.95)


def test_heads_have_zero_in_the_middle() -> None:
    rows = [
        {"layer": at // 2, "head": at % 2, "value": value} for at, value in enumerate([-3.0, 1.0, None, float("nan")])
    ]
    chart = head_chart(pa.Table.from_pylist(rows), "value", "contribution (logits)", marked=[(0, 1)])
    drawn = next(layer for layer in chart.spec["layer"] if layer["encoding"].get("color"))["encoding"]
    assert drawn["color"]["scale"]["domain"] == [-3.0, 3.0]
    assert chart.notes == ("2 of 4 heads have no value and are grey.",)
    assert chart.spec["datasets"]["marked"] == [{"layer": 0, "head": 1, "value": 1.0}]
    with pytest.raises(ConfigError, match="several lines"):
        head_chart(pa.Table.from_pylist([*rows, rows[0]]), "value", "x")


def test_tokens_keep_order_segments_and_scores() -> None:
    given = [("a", "user", 1.0), (" b", "think", -2.0), ("\n", "think", None), ("c", "think_close", 0.5)]
    chart = token_chart(tokens_of(token_table(*given, decision=3)), with_text=True)
    data = chart.spec["datasets"]
    assert [(point["token"], point["score"]) for point in data["tokens"]] == [
        ("a", 1.0),
        (" b", -2.0),
        ("\\n", None),
        ("c", 0.5),
    ]
    assert [(band["segment"], band["from"], band["to"]) for band in data["segments"]] == [
        ("user", -0.5, 0.5), ("think", 0.5, 2.5), ("think_close", 2.5, 3.5),
    ]  # fmt: skip
    assert data["decision"] == [{"position": 3}]
    assert [(word["line"], word["from"]) for word in data["words"]] == [(0, 0), (0, 1), (0, 3), (1, 0)]
    assert chart.notes == ("1 of 4 tokens have no score: gaps in the curve.",)
    with pytest.raises(ConfigError, match="none of 1 tokens"):
        token_chart(tokens_of(token_table(("a", "user", None))))


def test_text_of_a_long_example_is_that_before_its_decision_and_says_so() -> None:
    n = MOST_TOKENS + 1_000
    table = token_table(*(("w", "think", 1.0) for _ in range(n)), decision=n - 200)
    chart = token_chart(tokens_of(table), with_text=True)
    words = chart.spec["datasets"]["words"]
    assert len(words) == MOST_TOKENS
    assert words[-1]["position"] == n - 1
    assert len(chart.spec["datasets"]["tokens"]) == n
    assert f"{MOST_TOKENS:,} of {n:,} tokens" in chart.notes[0]


def test_width_may_be_that_of_the_page() -> None:
    assert curve_chart(curves_of("0"), size=Size("container", 200)).spec["width"] == "container"


def test_kinds_of_files() -> None:
    assert [kind_of(name) for name in ("a.PNG", "s3://b/c.svg", "x.json")] == ["png", "svg", "json"]
    with pytest.raises(ConfigError, match="end in"):
        kind_of("a.pdf")


def test_a_picture_reads_nothing_from_elsewhere() -> None:
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/x.json"
        spec = {"data": {"url": url}, "mark": "point", "encoding": {}}
        with suppress(ValueError):
            picture(spec, "svg")
        server.shutdown()
        thread.join()
    assert asked == []


def test_printable() -> None:
    assert printable("a\tb\x1b\u200b\U000e0041é漢") == "a\\tb\\x1b\\u200b\\U000e0041é漢"
    assert printable("x" * 9, 4) == "xxx…"
    assert printable("\ud800") == "\\ud800"
    assert io.StringIO(printable("\r\n\u2028")).readlines() == ["\\r\\n\\u2028"]
