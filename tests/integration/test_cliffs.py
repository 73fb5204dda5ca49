"""Cliffs and curves of a store whose scores are planted: what comes out is what was put in, to the last bit."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import ok, run_cli
from score_store import ScoreStore
from whole_store import Silent

from cliffstore.analyze import curves
from cliffstore.analyze.aligned import Distances, align
from cliffstore.cli.plots import Line, draw_lines
from cliffstore.errors import ConfigError, DamagedStoreError, ProbeError, QueryError
from cliffstore.ranks import spearman
from cliffstore.run.origins import Origins
from cliffstore.run.repair import repair_store
from cliffstore.run.store import Store
from cliffstore.store import layout
from cliffstore.store.objects import ObjectStore

PROBE = "planted"
MADE = ScoreStore(n_units=6)


@pytest.fixture
def url(tmp_path: Path) -> str:
    MADE.make(ObjectStore(str(tmp_path / "store")), PROBE)
    return str(tmp_path / "store")


@pytest.fixture
def reporter() -> Silent:
    return Silent()


@pytest.fixture
def store(url: str, reporter: Silent) -> Iterator[Store]:
    with Store(url, reporter=reporter) as opened:
        yield opened


Example = tuple[int, list[tuple[int, float]]]
"""Ordinal, and distance and score of the tokens from the first thinking token on; none without thinking."""


def planted_curves() -> list[Example]:
    found = []
    for unit in range(MADE.n_units):
        planted = MADE.planted(unit)
        for number in range(planted.n_examples):
            own = planted.example_N == number
            thinks = planted.n_think_E[number] > 0
            tokens = zip(planted.to_decision_N[own], planted.segment_N[own], planted.score_N[own], strict=True)
            curve = [(int(at), float(score)) for at, segment, score in tokens if thinks and segment > 0]
            found.append((planted.first_example + number, curve))
    return found


def test_planted_cliffs_come_out(store: Store, reporter: Silent) -> None:
    report = store.cliff(PROBE)
    found = store.catalog.arrow("SELECT * FROM cliffs ORDER BY example").to_pylist()
    without = 0
    for unit in range(MADE.n_units):
        planted = MADE.planted(unit)
        for number in range(planted.n_examples):
            row = found[planted.first_example + number]
            plateau, drop = float(planted.plateau_E[number]), float(planted.drop_E[number])
            assert row["example"] == planted.first_example + number
            assert row["n_think"] == planted.n_think_E[number]
            if not row["n_think"]:
                without += 1
                assert (row["plateau"], row["cliff"], row["steepest_position"], row["n_steep"]) == (None,) * 4
                continue
            assert (row["plateau"], row["final"], row["cliff"]) == (plateau, plateau - drop, drop)
            assert (row["n_steep"] is None) == (drop <= 0)
            if drop > 20:  # steeper than the thinking swings
                assert 3 <= row["n_steep"] <= 4
                assert row["steepest_position"] > planted.decision_E[number] - 3
    assert without == report.without_thinking > 0
    assert report.examples == len(found) == MADE.n_units * MADE.examples_per_unit
    assert any(f"{without} of {len(found)} examples have no stored thinking" in text for text in reporter.told)


def test_planted_curves_come_out(store: Store, reporter: Silent) -> None:
    table = store.curves(PROBE, group_by="CAST(label AS INT) * 2", positions="-24..6").to_pylist()
    scores: dict[tuple[str, int], list[float]] = defaultdict(list)
    for example, curve in planted_curves():
        for at, score in curve:
            scores[str(example % 2 * 2), at].append(score)
    expected = {key: (len(found), float(np.mean(found))) for key, found in scores.items() if -24 <= key[1] <= 6}
    assert {(row["group"], row["to_decision"]): (row["n"], row["mean"]) for row in table} == expected
    assert [(row["group"], row["to_decision"]) for row in table] == sorted(expected, key=lambda key: (key[0], key[1]))
    assert all(row["low"] <= row["mean"] <= row["high"] for row in table if row["n"] > 3)
    assert any("no stored thinking and are in no curve" in text for text in reporter.told)
    whole = store.curves(PROBE, positions="-3..0", all_tokens=True).to_pylist()
    assert {row["n"] for row in whole} == {MADE.n_units * MADE.examples_per_unit}


def test_zero_padding_would_fail(store: Store) -> None:
    """Curves of unequal length that are padded with zeros sink towards the beginning, and plateaus with them."""
    curves = [dict(curve) for _, curve in planted_curves() if curve]
    row_of = {row["to_decision"]: row for row in store.curves(PROBE, positions="-24..0").to_pylist()}
    far, near = -20, -4
    for at in (far, near):
        there = [curve[at] for curve in curves if at in curve]
        padded = [curve.get(at, 0.0) for curve in curves]
        assert len(there) < len(curves)
        assert row_of[at]["mean"] == np.mean(there)
        assert row_of[at]["mean"] != pytest.approx(np.mean(padded), rel=0.02)
        assert row_of[at]["n"] == len(there)
    assert np.mean([curve.get(far, 0.0) for curve in curves]) < row_of[far]["mean"] / 2
    store.cliff(PROBE)
    plateaus = store.catalog.arrow("SELECT plateau FROM cliffs WHERE cliff IS NOT NULL ORDER BY example")["plateau"]
    longest = max(len([at for at in curve if at < -2]) for curve in curves)
    padded = [sum(score for at, score in curve.items() if at <= -3) / longest for curve in curves]
    assert np.median(padded) < np.median(plateaus.to_numpy()) * 0.8


def test_bands_are_seeded_and_narrow_with_their_level(store: Store) -> None:
    def bands(**settings: object) -> np.ndarray:
        table = store.curves(PROBE, positions="-8..0", **settings)
        return np.stack([table["low"].to_numpy(), table["high"].to_numpy()])

    first = bands()
    assert np.array_equal(first, bands())
    assert not np.array_equal(first, bands(seed=1))
    inner = bands(level=0.5)
    assert (inner[0] > first[0]).all()
    assert (inner[1] < first[1]).all()
    assert store.curves(PROBE, positions="-8..0", resamples=0)["low"].null_count == 9


def test_bands_are_those_of_a_bootstrap_over_examples(store: Store) -> None:
    """Against the textbook, example by example; both are random, and near each other with many draws."""
    curves = [dict(curve) for _, curve in planted_curves() if curve]
    table = store.curves(PROBE, positions="-12..0", resamples=4_000).to_pylist()
    generator = np.random.default_rng(7)
    draws = [generator.integers(len(curves), size=len(curves)) for _ in range(4_000)]
    for at in (-12, 0):
        means = []
        for drawn in draws:
            there = [curves[number][at] for number in drawn if at in curves[number]]
            if there:
                means.append(np.mean(there))
        row = next(row for row in table if row["to_decision"] == at)
        low, high = np.quantile(means, [0.025, 0.975])
        width = high - low
        assert abs(row["low"] - low) < 0.05 * width
        assert abs(row["high"] - high) < 0.05 * width


def test_bands_do_not_depend_on_the_size_of_products(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = store.curves(PROBE, positions="-8..0", resamples=300)
    monkeypatch.setattr(curves, "_LINES", 7)
    monkeypatch.setattr(curves, "_DRAWS", 70)
    parts = store.curves(PROBE, positions="-8..0", resamples=300)
    for edge in ("low", "high"):
        np.testing.assert_allclose(parts[edge].to_numpy(), whole[edge].to_numpy(), rtol=1e-12)


def test_groups_are_in_the_order_of_their_names_and_none_is_last(store: Store) -> None:
    """Not in that of their first examples: `z` comes first in the store."""
    by = "CASE example % 3 WHEN 0 THEN 'z' WHEN 1 THEN NULL ELSE 'a' END"
    found = store.curves(PROBE, positions="0..0", group_by=by, all_tokens=True)
    assert found["group"].to_pylist() == ["a", "z", None]
    for name, rest in (("a", 2), ("z", 0), (None, 1)):
        one = store.curves(PROBE, positions="0..0", where=f"example % 3 = {rest}", all_tokens=True)
        assert found["mean"].to_pylist()[["a", "z", None].index(name)] == one["mean"][0].as_py()


def test_curves_of_chosen_examples(store: Store) -> None:
    every = store.curves(PROBE, positions="0..0", group_by="source")
    one = store.curves(PROBE, positions="0..0", where="source = 'third'")
    assert every["group"].to_pylist() == ["even", "third"]
    assert one["mean"].to_pylist() == every["mean"].to_pylist()[1:]
    assert one["group"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"positions": "5..1"}, ConfigError, "-64..0"),
        ({"positions": "think"}, ConfigError, "-64..0"),
        ({"level": 1.0}, ConfigError, "level"),
        ({"group_by": "nothing"}, QueryError, "nothing"),
        ({"where": "false"}, ProbeError, "none of 0 examples"),
        ({"positions": "500..600"}, ProbeError, "500 to 600"),
    ],
)
def test_curves_that_cannot_be_are_refused(store: Store, settings: dict, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        store.curves(PROBE, **settings)


def test_more_scores_than_can_be_held_are_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="--positions"):
        align(store.reader, PROBE, np.arange(200), Distances(-999_999, 999_999))


def test_other_plateau_is_ranked_anew_and_kept(store: Store, url: str, reporter: Silent) -> None:
    store.cliff(PROBE)
    table = Path(url) / layout.cliffs_table(PROBE)
    first, written = table.read_bytes(), table.stat().st_mtime_ns
    assert store.cliff(PROBE).replaced is None
    assert table.stat().st_mtime_ns == written
    report = store.cliff(PROBE, plateau="q0.90", window="last:5")
    assert (report.plateau, report.window) == ("q0.9", "last:5")
    assert "the cliffs of planted by the mean over all thinking tokens are replaced" in reporter.told
    assert table.read_bytes() != first
    document = json.loads((Path(url) / layout.cliffs_document(PROBE)).read_text())
    assert (document["plateau"], document["window"]) == ("q0.9", "last:5")
    assert pq.read_schema(table).metadata[b"cliffstore.plateau"] == b"q0.9"
    store.cliff(PROBE)
    assert table.read_bytes() == first


def test_repair_ranks_by_the_rule_that_was_asked_for(store: Store, url: str, reporter: Silent) -> None:
    store.cliff(PROBE, plateau="max")
    table = Path(url) / layout.cliffs_table(PROBE)
    content = table.read_bytes()
    table.write_bytes(content[:-9])
    repair_store(ObjectStore(url), Origins(), reporter)
    assert table.read_bytes() == content


def test_cliffs_are_seen_if_their_document_is_there(store: Store, url: str) -> None:
    store.cliff(PROBE)
    (Path(url) / layout.cliffs_document(PROBE)).unlink()
    with Store(url) as opened:
        assert opened.sql("SELECT count(*) FROM cliffs").fetchall() == [(0,)]
        opened.cliff(PROBE)
    with Store(url) as opened:
        assert opened.sql("SELECT count(*) > 0 FROM cliffs").fetchall() == [(True,)]


def test_cliffs_are_not_made_of_damaged_scores(store: Store, url: str) -> None:
    scores = Path(url) / layout.scores_table(PROBE, 3)
    content = bytearray(scores.read_bytes())
    content[len(content) // 2] ^= 1
    scores.write_bytes(content)
    with pytest.raises(DamagedStoreError, match="unit-000003"):
        store.cliff(PROBE)
    scores.unlink()
    with pytest.raises(DamagedStoreError, match="is missing"):
        store.cliff(PROBE)
    assert not (Path(url) / layout.cliffs_table(PROBE)).exists()


def test_several_probes_are_compared(url: str) -> None:
    objects = ObjectStore(url)
    MADE.add_probe(objects, "double", scale=2.0, seed=1)
    MADE.add_probe(objects, "turned", scale=-1.0, seed=2)
    probes = [word for name in (PROBE, "double", "turned") for word in ("--probe", name)]
    shown = ok("cliff", url, *probes, "--top", "3").text
    assert "by double  by turned" in shown
    assert "spearman" in shown
    found = ok("cliff", url, *probes, "--top", "3", "--json").json
    assert [one["probe"] for one in found["probes"]] == [PROBE, "double", "turned"]
    assert found["probe"] == PROBE
    assert [one["spearman"] for one in found["compared"]] == pytest.approx([1.0, 1.0, -1.0])
    same, double, turned = found["compared"]
    assert double["effect"] == pytest.approx(same["effect"])
    assert turned["share_positive"] < 0.5 < same["share_positive"]
    for row in found["top"]:
        assert row["cliffs"] == {"double": 2 * row["cliff"], "turned": -row["cliff"]}
    with Store(url) as opened:
        assert [one.probe for one in opened.compare_cliffs("double")] == ["double"]
        with pytest.raises(ProbeError, match="nope"):
            opened.compare_cliffs([PROBE, "nope"])


@np.errstate(over="ignore", invalid="ignore")
def test_scores_that_are_no_numbers_spoil_no_comparison(url: str) -> None:
    MADE.add_probe(ObjectStore(url), "overflowing", scale=1e38, seed=3)
    found = ok("cliff", url, "--probe", PROBE, "--probe", "overflowing", "--top", "1000", "--json").json
    finite = [row for row in found["top"] if row["cliffs"]["overflowing"] is not None]
    usual, other = found["compared"]
    assert 0 < other["examples"] == len(finite) < usual["examples"] == len(found["top"])
    assert other["mean"] == pytest.approx(np.mean([row["cliffs"]["overflowing"] for row in finite]))
    assert other["spearman"] == pytest.approx(1.0)
    shown = ok("cliff", url, "--probe", "overflowing", "--top", "1000")
    assert len(shown.text.splitlines()) == len(found["top"]) + 1


def test_rank_correlation_shares_ranks_of_equal_values() -> None:
    assert spearman(np.array([1.0, 2.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.9486832980505138)
    assert spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])) is None
    assert spearman(np.array([1.0]), np.array([1.0])) is None


def test_table_of_cliffs_has_sparklines(url: str) -> None:
    result = ok("cliff", url, "--probe", PROBE, "--top", "5", "--plateau", "median")
    header, *lines = result.text.splitlines()[:6]
    at = header.index("curve")
    for line in lines:
        spark = line[at : at + 24]
        assert set(spark) <= set(" ▁▂▃▄▅▆▇█")
        assert spark[-1] in "▁▂▃▄▅"  # the decision, after a large fall
        assert spark.strip()
    assert "have no stored thinking" in result.stderr


HOSTILE = "\x1b[2J<script>\u202etxt\x00\x9b31m"


def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    ScoreStore(n_units=1, prompt=HOSTILE + "x" * 10_000).make(ObjectStore(url), PROBE)
    group = "CASE label WHEN '0' THEN prompt[:14] ELSE chr(27) || '[31m' || chr(10) END"
    for arguments in (
        ["cliff", url, "--probe", PROBE],
        ["curve", url, "--probe", PROBE, "--group-by", group, "--positions", "-9..0"],
        ["curve", url, "--probe", PROBE, "--group-by", group, "--positions", "-9..0", "--format", "table"],
    ):
        text = ok(*arguments).text
        assert not {"\x1b", "\u202e", "\x00", "\x9b"} & set(text), arguments
        assert "\\x1b[" in text
        assert all(len(line) < 400 for line in text.splitlines())


def test_curves_are_drawn_and_written(url: str, tmp_path: Path) -> None:
    drawn = ok("curve", url, "--probe", PROBE, "--group-by", "label", "--positions", "-12..0")
    assert "(to_decision)" in drawn.text
    assert "planted, 1" in drawn.text
    assert "n at last" in drawn.text
    at = ["curve", url, "--probe", PROBE, "--positions", "-12..0"]
    rows = ok(*at, "--json").json
    assert [row["to_decision"] for row in rows] == list(range(-12, 1))
    assert ok(*at, "--format", "csv").text.splitlines()[0] == '"probe","group","to_decision","n","mean","low","high"'
    ok(*at, "-o", tmp_path / "curve.parquet")
    assert pq.read_table(tmp_path / "curve.parquet").to_pylist() == rows
    many = ok(*at, "--group-by", "example")
    assert "more lines are not drawn" in many.text


def test_lines_of_a_drawing_have_numbers_of_their_own() -> None:
    for scale in (1e-4, 0.2, 5.0, 4_000.0):
        drawn = draw_lines([Line("line", [-2, -1, 0], [-0.4 * scale, 0.1 * scale, 0.6 * scale])], "x", "y")
        ticks = [line.partition("|")[0].strip() for line in drawn.splitlines() if line[11:12] == "|"][:15]
        assert len({float(tick) for tick in ticks}) == 15, (scale, ticks)


@pytest.mark.parametrize(("other", "told"), [("nope", "no probe 'nope'"), (f"{PROBE}-random-0-0", "has no scores yet")])
def test_what_another_probe_lacks_is_found_before_cliffs_are_replaced(url: str, other: str, told: str) -> None:
    ok("probe", "random", url, "--like", PROBE, "--n", "1")
    ok("cliff", url, "--probe", PROBE)
    before = (Path(url) / "cliffs" / f"{PROBE}.json").read_bytes()
    result = run_cli("cliff", url, "--probe", PROBE, "--probe", other, "--plateau", "max")
    assert (result.code, told in result.stderr, "replaced" in result.stderr) == (2, True, False)
    assert (Path(url) / "cliffs" / f"{PROBE}.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["cliff", "--plateau", "mode"], ("mode", "median")),
        (["cliff", "--window", "last:0"], ("last:0", "last:32")),
        (["cliff", "--probe", "nope"], ("nope",)),
        (["curve", "--positions", "now"], ("now", "-64..0")),
        (["curve", "--format", "xml"], ("xml", "csv")),
        (["curve", "-o", "nowhere/curve.svg"], ("nowhere/curve.svg", "plot curve")),
        (["curve", "--group-by", "no_such_column"], ("no_such_column",)),
        (["curve", "--level", "2"], ("level",)),
    ],
)
def test_mistakes_are_one_line(url: str, arguments: list[str], told: tuple[str, ...]) -> None:
    command, *rest = arguments
    result = run_cli(command, url, "--probe", PROBE, *rest)
    assert result.code == 2
    error = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert all(word in error[0] for word in told)


def test_random_directions_have_site_layer_and_norm_of_their_probe(store: Store, url: str) -> None:
    first = store.random_probes(PROBE, 3, seed=4)
    assert [one.name for one in first] == [f"{PROBE}-random-4-{number}" for number in range(3)]
    assert {(one.kind, one.site, one.layer, one.positions) for one in first} == {
        ("imported", "resid_post", 0, "decision")
    }
    norms = store.sql(
        "SELECT array_inner_product(probe_weight(p), probe_weight(p)) FROM "
        "(VALUES ('planted'), ('planted-random-4-0'), ('planted-random-4-2')) t(p)"
    ).fetchall()
    assert [norm for (norm,) in norms] == pytest.approx([norms[0][0]] * 3, rel=1e-6)
    assert len({one.digest for one in first}) == 3
    assert [one.digest for one in store.random_probes(PROBE, 2, seed=4)] == [one.digest for one in first[:2]]
    result = ok("probe", "random", url, "--like", PROBE, "--n", "2", "--seed", "4")
    assert result.text.splitlines()[0] == "probe planted-random-4-0: random, resid_post layer 0"
    assert run_cli("probe", "random", url, "--like", "nope").code == 2
