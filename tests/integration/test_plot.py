"""`cliffstore plot`: what is in a file is what the store holds, and a mistake is one line and no file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ok, run_cli
from score_store import ScoreStore
from told import Told

from cliffstore.errors import ConfigError
from cliffstore.run.store import Store
from cliffstore.store.objects import ObjectStore

MADE = ScoreStore(n_units=3, examples_per_unit=16)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("plots") / "store")
    MADE.make(ObjectStore(path), "planted")
    MADE.add_probe(ObjectStore(path), "half", scale=0.5, seed=1)
    MADE.add_probe(ObjectStore(path), "unranked", seed=2)
    with Store(path, reporter=Told()) as store:
        store.cliff("planted")
        store.cliff("half")
        store.select("worst", top="5", probe="planted")
    return path


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def store(url: str, told: Told) -> Iterator[Store]:
    with Store(url, reporter=told) as opened:
        yield opened


@pytest.mark.parametrize("kind", ["curve", "cliffs"])
def test_conditions_may_end_in_a_comment(store: Store, kind: str) -> None:
    plain = store.plot(kind, probe="planted", group_by="label", where="source = 'even'")
    told = store.plot(kind, probe="planted", group_by="label -- of a row", where="source = 'even' -- not third")
    numbers = [one.spec["datasets"]["curves" if kind == "curve" else "steps"] for one in (plain, told)]
    assert numbers[0] == numbers[1]


def test_curves_are_those_of_the_store(url: str, store: Store, tmp_path: Path) -> None:
    output = tmp_path / "curve.json"
    ok(
        "plot",
        "curve",
        url,
        "--probe",
        "planted",
        "--probe",
        "half",
        "--group-by",
        "label",
        "--positions=-8..0",
        "-o",
        output,
    )
    spec = json.loads(output.read_text())
    points = {(point["series"], point["to_decision"]): point for point in spec["datasets"]["curves"]}
    curves = store.curves(["planted", "half"], group_by="label", positions="-8..0").to_pylist()
    assert len(points) == len(curves) == 36
    for row in curves:
        point = points[f"{row['probe']}, {row['group']}", row["to_decision"]]
        assert all(point[name] == row[name] for name in ("n", "mean", "low", "high"))
    assert spec["title"]["text"] == "Mean score before the answer: planted, half, 95% bootstrap bands"
    wide = store.plot("curve", probe="planted", positions="-1..0", level=0.999, resamples=10)
    assert wide.spec["title"]["text"].endswith("planted, 99.9% bootstrap bands")


def test_every_option_of_curves_reaches_them(store: Store) -> None:
    for more in ({"all_tokens": True}, {"seed": 3}, {"level": 0.5}, {"resamples": 0}, {"where": "source = 'even'"}):
        given = {"positions": "-4..0", "resamples": 50, **more}
        points = store.plot("curve", probe="planted", **given).spec["datasets"]["curves"]
        expected = store.curves("planted", **given).to_pylist()
        names = ("to_decision", "n", "mean", "low", "high")
        assert [[one[name] for name in names] for one in points] == [[one[name] for name in names] for one in expected]
        plain = store.curves("planted", positions="-4..0", resamples=50).to_pylist()
        assert [one["low"] for one in expected] != [one["low"] for one in plain], more


def test_cliffs_are_those_of_the_store_and_selected_ones_are_marked(url: str, store: Store, tmp_path: Path) -> None:
    output = tmp_path / "cliffs.json"
    where = "label = '1'"
    shown = ok(
        "plot", "cliffs", url, "--probe", "planted", "--selection", "worst", "-o", output, "--where", where, "--json"
    ).json
    of_label = "FROM cliffs c JOIN examples e USING (example) WHERE c.probe = 'planted' AND e.label = '1'"
    n, n_cliffs = store.sql(f"SELECT count(*), count(c.cliff) {of_label}").fetchall()[0]
    spec = json.loads(output.read_text())
    assert sum(bar["n"] for bar in spec["datasets"]["counts"]) == n_cliffs < n
    selected = f"SELECT e.id, c.cliff {of_label} AND example IN (SELECT example FROM selections) ORDER BY 1"
    ticks = [(tick["id"], tick["cliff"]) for tick in spec["datasets"]["ticks"]]
    assert sorted(ticks) == store.sql(selected).fetchall()
    assert ticks
    note = f"{n - n_cliffs} of {n} examples have no cliff and are not drawn."
    assert shown == {"kind": "cliffs", "output": str(output), "bytes": output.stat().st_size, "notes": [note]}
    assert note in spec["title"]["subtitle"]


def test_tokens_are_those_of_the_example(url: str, store: Store, tmp_path: Path) -> None:
    for example in ("e7", "#7"):
        output = tmp_path / "tokens.json"
        ok("plot", "tokens", url, "--probe", "half", "--example", example, "--positions=-6..2", "-o", output)
        words = json.loads(output.read_text())["datasets"]["words"]
        found = store.sql(
            "SELECT t.position, t.token, s.score FROM tokens t JOIN scores s USING (example, position) "
            "WHERE example = 7 AND s.probe = 'half' AND t.to_decision BETWEEN -6 AND 2 ORDER BY 1"
        ).fetchall()
        assert [(word["position"], word["token"], word["score"]) for word in words] == found
        assert found


def test_a_probe_is_drawn_by_layer(url: str, tmp_path: Path) -> None:
    ok("plot", "layers", url, "--probe", "planted", "-o", tmp_path / "layers.png", "--scale", "1")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_python_gives_the_plot_and_writes_nothing(store: Store, told: Told) -> None:
    plot = store.plot("curve", probe="planted", theme="dark", title="<b>", width=300, height=120, resamples=0)
    assert (plot.output, plot.size) == (None, None)
    assert (plot.spec["width"], plot.spec["height"]) == (300, 120)
    assert plot.picture("svg").startswith(b"<svg")
    assert "&lt;b&gt;" in plot._repr_svg_()
    assert any("no stored thinking" in notice for notice in told.notices)
    ground = plot.spec["config"]["background"]
    assert store.plot("curve", probe="planted", theme="dark", transparent=True).spec["config"]["background"] != ground


def test_a_picture_takes_the_place_of_what_was_there_in_one_piece(url: str, tmp_path: Path) -> None:
    output = tmp_path / "a.svg"
    output.write_text("before")
    ok("plot", "curve", url, "--probe", "planted", "-o", output, "--theme", "dark")
    assert output.read_text().startswith("<svg")
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["curve", "--probe", "planted", "-o", "x.pdf"], "let it end in .png, .svg or .json"),
        (["curve", "--probe", "nix", "-o", "x.png"], "nix"),
        (["curve", "-o", "x.png"], "say --probe"),
        (["curve", "--probe", "planted"], "--output"),
        (["curve", "--probe", "planted", "--positions", "think", "-o", "x.png"], "-64..0"),
        (["curve", "--probe", "planted", "--theme", "blue", "-o", "x.png"], "'light' or 'dark'"),
        (["curve", "--probe", "planted", "--where", "nix = 1", "-o", "x.png"], "nix"),
        (["curve", "--probe", "planted", "--group-by", "prompt", "-o", "x.png"], "too many to tell apart"),
        (["curve", "--probe", "planted", "-o", "nowhere/x.png"], "cannot write"),
        (["cliffs", "--probe", "unranked", "-o", "x.png"], "run `cliffstore cliff"),
        (["cliffs", "--probe", "planted", "--where", "false", "-o", "x.png"], "no cliffs of such examples"),
        (["cliffs", "--probe", "planted", "--selection", "nix", "-o", "x.png"], "no selection 'nix'"),
        (["layers", "--probe", "planted", "--positions", "think", "-o", "x.png"], "not tried at 'think'"),
        (["tokens", "--probe", "planted", "-o", "x.png"], "say --example"),
        (["tokens", "--probe", "planted", "--example", "nix", "-o", "x.png"], "'nix' is not in the store"),
        (["tokens", "--probe", "planted", "--example", "e1", "--positions", "900..901", "-o", "x.png"], "no scores"),
    ],
)
def test_a_mistake_is_one_line_and_no_file(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_cli("plot", arguments[0], url, *arguments[1:])
    assert result.code == 2
    assert problem in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_options_of_another_kind_are_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="example is of plot tokens: curve has none"):
        store.plot("curve", probe="planted", example="e1")
    with pytest.raises(ConfigError, match="of one probe, and 2 are given"):
        store.plot("layers", probe=("planted", "half"))
