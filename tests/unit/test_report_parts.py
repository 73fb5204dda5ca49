"""The report's colours, script and data: what can be known of them without a store or a browser."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from made_up import make_probe
from made_up_store import made_up_capture

from cliffstore.publish.report import scale
from cliffstore.publish.report.bundle import bundle, check_joined
from cliffstore.publish.report.figures import _summary
from cliffstore.publish.report.page import number, plain, size, store_name
from cliffstore.publish.report.payload import to_payload
from cliffstore.publish.report.quality import remarks_on
from cliffstore.publish.report.scale import THEMES, Theme, colours, contrast, limit_of, luminance
from cliffstore.publish.report.tokens import digits_of

ANOMALIES = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""What linear colours become without one kind of cone (Machado, Oliveira and Fernandes 2009, severity 1)."""


def lab(colour: str, anomaly: str) -> np.ndarray:
    """Return a colour in CIELAB as it is seen."""
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(ANOMALIES[anomaly]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", THEMES)
def test_text_can_be_read_on_every_colour(theme: Theme) -> None:
    assert len(colours(theme)) == 2 * scale.STEPS + 1
    assert min(contrast(colour, scale.INK[theme]) for colour in colours(theme)) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("anomaly", ANOMALIES)
def test_both_sides_are_told_apart_by_every_kind_of_colour_vision(theme: Theme, anomaly: str) -> None:
    apart = [
        float(np.linalg.norm(lab(below, anomaly) - lab(above, anomaly)))
        for below, above in zip(scale.BELOW[theme], scale.ABOVE[theme], strict=True)
    ]
    # A difference of 2.3 is just noticeable (Mahy, Van Eycken and Oosterlinck 1994).
    assert min(apart) >= 2 * 2.3
    assert apart[-1] >= 10 * 2.3


@pytest.mark.parametrize("theme", THEMES)
def test_steps_go_one_way_from_the_middle(theme: Theme) -> None:
    for side in (scale.BELOW[theme], scale.ABOVE[theme]):
        steps = [luminance(colour) for colour in (scale.MIDDLE[theme], *side)]
        falls = [first - second for first, second in pairwise(steps)]
        assert all(fall > 0 for fall in falls) or all(fall < 0 for fall in falls)


def test_text_of_the_page_can_be_read_in_both_themes() -> None:
    style = (files("cliffstore.publish.report") / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r"color-scheme: (light|dark);([^}]*?)\{\{", style)
    assert len(blocks) == 4
    for theme, block in blocks:
        named = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for ground in ("ground", "raised"):
            for ink in ("ink", "quiet", "accent"):
                assert contrast(named[ink], named[ground]) >= 4.5, (theme, ink, ground)
        assert contrast(named["ink"], named.get("warn", named["ground"])) >= 4.5
        if "accent-ink" in named:
            assert contrast(named["accent-ink"], named["accent"]) >= 4.5
        if theme == "dark" or "hover" in named:
            assert named["ground"] == scale.MIDDLE[theme]


@pytest.mark.parametrize(
    ("scores", "limit"),
    [([], 1.0), ([0.0, 0.0], 1.0), ([float("nan"), -0.3], 0.3), ([4.9, -5.0], 5.0), ([3.2], 4.0), ([950.0], 1000.0)],
)
def test_colours_end_at_a_round_number(scores: list[float], limit: float) -> None:
    assert limit_of(np.array(scores, dtype=np.float32)) == pytest.approx(limit)


def test_one_loud_score_does_not_take_the_colours() -> None:
    assert limit_of(np.array([*np.linspace(-2, 2, 400), 300.0], dtype=np.float32)) == pytest.approx(2.0)


@pytest.mark.parametrize(("limit", "digits"), [(1000.0, 3), (5.0, 3), (1.0, 3), (0.6, 4), (0.06, 5), (0.005, 6)])
def test_scores_have_a_thousand_steps_at_least(limit: float, digits: int) -> None:
    assert digits_of(limit) == digits
    assert limit * 10**digits >= 1_000


def test_script_is_one_module_with_every_file_in_it_once() -> None:
    text = bundle()
    scripts = [one.name for one in (files("cliffstore.publish.report") / "scripts").iterdir()]
    assert sorted(re.findall(r"^// (\w+\.js)$", text, re.MULTILINE)) == sorted(scripts)
    assert not re.search(r"^(import|export)\b", text, re.MULTILINE)
    assert text.index("// text.js") < text.index("// table.js") < text.index("// main.js")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("const a = 1;\nfunction a() {}\n", "same names: a"),
        ('import * as x from "./x.js";\n', "not joined"),
        ("export default 1;\n", "not joined"),
        ('const a = "</script>";\n', "could end its element"),
    ],
)
def test_scripts_that_cannot_be_joined_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_joined(text)


def test_data_survive_and_their_source_hides_nothing() -> None:
    value = [
        "</script>",
        "<!--",
        "\u2028\u2029\u202e\ufeff\x00\x7f\x9b\ufffe",
        "é 漢 \U0001f600",
        {"a": [1, None, 0.1]},
    ]
    text = to_payload(value)
    assert json.loads(text) == value
    assert not re.search(r"[<>&\x00-\x1f\x7f-\x9f\u2028-\u202e\ufeff]", text)
    assert "漢" in text
    with pytest.raises(ValueError, match="JSON"):
        to_payload(float("nan"))


def remarks(low: float = 0.7, high: float = 0.9, **changes: object) -> list[str]:
    """The first words of what is said of a probe whose AUROC is 0.8."""
    document, _ = make_probe(made_up_capture("c", 1), "p")
    (cell,) = document.cells
    of_cell = {name: changes.pop(name) for name in ("test_auroc",) if name in changes}
    cell = cell.model_copy(update={"auroc": 0.8, "auroc_low": low, "auroc_high": high, "test_auroc": 0.75, **of_cell})
    told = remarks_on(document.model_copy(update={"cells": [cell], **changes}))
    return [" ".join(one.split()[:3]) for one in told]


def test_what_is_said_of_a_probe_is_what_its_intervals_say() -> None:
    assert remarks() == []
    assert remarks(low=0.5) == ["Its interval holds"]
    assert remarks(low=0.51) == []
    assert remarks(bag_auroc=0.7) == ["A bag of"]
    assert remarks(bag_auroc=0.69) == []
    assert remarks(shuffled_auroc=0.61) == remarks(shuffled_auroc=0.39) == ["Shuffled labels give"]
    assert remarks(shuffled_auroc=0.59) == []
    assert remarks(test_auroc=None) == ["It was not"]
    assert remarks(test_auroc=0.69) == ["On the unseen"]
    assert remarks(cells=[]) == ["It was imported"]


def test_cliffs_are_summed_up_by_group_and_over_all() -> None:
    table = pa.table(
        {
            "group": ["b", "a", "a", None, "a", "b"],
            "cliff": [1.0, -2.0, 4.0, float("nan"), 7.0, None],
            "selected": [False, False, True, True, False, False],
        }
    )
    assert _summary(table) == [
        ["a", 3, 3, 3.0, 4.0, -2.0, 7.0, 2 / 3, 1],
        ["b", 2, 1, 1.0, 1.0, 1.0, 1.0, 1.0, 0],
        ["no value", 1, 0, None, None, None, None, None, 1],
        ["all", 6, 4, 2.5, 2.5, -2.0, 7.0, 0.75, 2],
    ]


def test_numbers_as_they_are_read() -> None:
    assert number(None) == "–"
    assert number(-1234.5678) == "\u22121,234.568"
    assert [plain(value) for value in (None, True, -3, 0.25, -0.0123456, 0.0)] == [
        "–", "yes", "\u22123", "0.250", "\u22120.0123", "0.000",
    ]  # fmt: skip
    assert [size(value) for value in (0, 999, 1_000, 730_805_760)] == ["0 B", "999 B", "1.0 kB", "730.8 MB"]
    assert [store_name(url) for url in ("./acts", "s3://bucket/acts/", "/tmp/a/b")] == ["acts", "bucket/acts", "a/b"]
