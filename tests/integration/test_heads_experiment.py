"""`cliffstore heads experiment` on models whose mechanism is known: what is traced on one half decides on the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from commands import ok, run_cli
from integration.conftest import Built
from quick import quick_runs
from told import Told
from transformers import AutoTokenizer

from cliffstore import Store
from cliffstore.cli.heads_experiment import _cell
from cliffstore.errors import ConfigError, ExtractionError
from cliffstore.model.forced import ForcedFigures
from cliffstore.model.planted.model import Planted, PlantSettings, plant
from cliffstore.run.experiment import model as experiment_model
from cliffstore.run.experiment.conditions import negative_heads
from cliffstore.run.experiment.examples import read_lines, with_text
from cliffstore.run.experiment.settings import ExperimentReport
from cliffstore.run.heads.results import write_heads
from cliffstore.run.stages import extract
from cliffstore.store.objects import ObjectStore

SETTINGS = (
    PlantSettings(seed=0, layers=4, heads=6, suppressors=2),
    PlantSettings(seed=1, layers=3, heads=8, suppressors=1),
    PlantSettings(seed=2, layers=5, heads=6, suppressors=4),
)
EXAMPLES = 24
JAILBROKEN = "kind = 'jailbroken'"


@dataclass(frozen=True)
class Case:
    """A planted model, and a store of its corpus with the probe."""

    planted: Planted
    folder: Path
    store: Path

    @property
    def share(self) -> float:
        """The planted suppressors in percent of all heads."""
        settings = self.planted.settings
        return 100 * settings.suppressors / (settings.layers * settings.heads)

    def run(self, **settings: object) -> ExperimentReport:
        given: dict[str, object] = {
            "shares": (self.share,), "random": 4, "random_generate": 1, "harmful_where": JAILBROKEN, "resamples": 200,
            "new_tokens": 16, "thinking_tokens": 48, "thinking": "fixed", "model": str(self.folder),
        }  # fmt: skip
        with Store(str(self.store), reporter=Told()) as opened:
            return opened.experiment_heads("refusal", **given | settings)


def _make(settings: PlantSettings, place: Path) -> Case:
    planted, folder, store = plant(settings), place / "model", place / "store"
    planted.save(folder, examples=EXAMPLES)
    extract(str(folder / "corpus.jsonl"), model=str(folder), store=str(store), passes="tree", pass_tokens=256, yes=True)
    with Store(str(store), reporter=Told()) as opened:
        truth = planted.truth
        opened.import_probe("refusal", truth.w_D, layer=truth.layer, bias=float(truth.b))
    return Case(planted, folder, store)


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The first one, to be copied where something is written to it."""
    return _make(SETTINGS[0], tmp_path_factory.mktemp("first"))


def _figures(report: ExperimentReport, thinking: str, condition: str, part: str, measure: str) -> list[dict]:
    wanted = {"thinking": thinking, "condition": condition, "part": part, "measure": measure}
    return [row for row in report.rows if all(row[name] == value for name, value in wanted.items())]


def _value(report: ExperimentReport, thinking: str, condition: str, part: str, measure: str) -> float:
    (row,) = _figures(report, thinking, condition, part, measure)
    return row["value"]


def _holds(report: ExperimentReport, planted: Planted, thinking: str) -> None:
    """Check that the planted heads, and no others, are what holds refusals of jailbroken prompts down."""
    (heads,) = report.document["heads"].values()
    assert sorted(heads) == sorted(f"{layer}:{head}" for layer, head in planted.truth.suppressors)
    assert _value(report, thinking, "unchanged", "harmful", "refused") == 0
    assert _value(report, thinking, "chosen", "harmful", "refused") == 1
    for condition in ("unchanged", "chosen"):
        assert _value(report, thinking, condition, "benign", "refused") == 0
    (score,) = _figures(report, thinking, "chosen", "harmful", "score")
    assert score["change_low"] > 1
    assert score["value"] > 0 > score["value"] - score["change"]
    assert _value(report, thinking, "unchanged", "harmful", "logit_difference") < 0
    assert _value(report, thinking, "chosen", "harmful", "logit_difference") > 0
    (perplexity,) = _figures(report, thinking, "chosen", "benign", "perplexity")
    assert abs(perplexity["change"]) < 1e-3
    random = _figures(report, thinking, "random", "harmful", "score")
    assert max(row["change"] for row in random) < 0.1 * score["change"]
    assert all(row["value"] == 0 for part in ("harmful", "benign")
               for row in _figures(report, thinking, "random", part, "refused"))  # fmt: skip
    changes = _figures(report, thinking, "random", "benign", "perplexity")
    assert all(abs(row["change"]) < 1e-3 for row in changes)


@pytest.mark.parametrize("settings", SETTINGS[1:], ids=lambda one: f"seed{one.seed}-k{one.suppressors}")
def test_planted_heads_off_turn_compliance_into_refusal(settings: PlantSettings, tmp_path: Path) -> None:
    made = _make(settings, tmp_path)
    report = made.run()
    _holds(report, made.planted, "fixed")
    assert len(_figures(report, "fixed", "random", "harmful", "score")) == 4
    assert len(_figures(report, "fixed", "random", "harmful", "refused")) == 1
    assert report.document["traced"] + report.document["harmful"] == EXAMPLES // 3


def test_a_run_that_was_cut_off_goes_on_and_ends_alike(case: Case, tmp_path: Path, monkeypatch) -> None:
    """Both kinds of thinking; the second condition fails, the same command again computes what is missing only."""
    place = Case(case.planted, case.folder, Path(shutil.copytree(case.store, tmp_path / "store")))
    measure, calls = experiment_model.ExperimentModel.measure, []

    def failing(*given: object, **more: object) -> object:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*given, **more)

    monkeypatch.setattr(experiment_model.ExperimentModel, "measure", failing)
    with pytest.raises(KeyboardInterrupt):
        place.run(thinking="both")
    found = run_cli("verify", place.store)
    assert (found.code, "has not ended" in found.text + found.stderr) == (1, True)
    report = place.run(thinking="both")
    assert (report.conditions, report.computed) == (9, 7)  # unchanged, chosen, four random; with thinking anew one
    for thinking in ("fixed", "regenerated"):
        _holds(report, place.planted, thinking)
    assert ok("verify", place.store).code == 0
    table = (place.store / "experiments" / "refusal-experiment.parquet").read_bytes()
    assert place.run(thinking="both").computed == 0
    # a further random set costs no more than itself, and what was there is what an undisturbed run finds
    assert place.run(thinking="both", random=5, replace=True).computed == 1
    shutil.rmtree(place.store / "experiments")
    shutil.rmtree(place.store / "copies" / "experiments")
    assert place.run(thinking="both").computed == 9
    assert (place.store / "experiments" / "refusal-experiment.parquet").read_bytes() == table


def test_answers_that_thinking_has_cut_short_are_not_judged(case: Case, tmp_path: Path) -> None:
    """Twelve tokens are eleven of thinking and the first one of the answer."""
    place = Case(case.planted, case.folder, Path(shutil.copytree(case.store, tmp_path / "store")))
    report = place.run(thinking="regenerated", new_tokens=3, thinking_tokens=9, random=0)
    measured = {(row["part"], row["measure"]) for row in report.rows}
    assert ("harmful", "score") in measured
    assert not {("harmful", "refused"), ("benign", "refused")} & measured


def test_nan_names_the_example(case: Case, tmp_path: Path, monkeypatch) -> None:
    place = Case(case.planted, case.folder, Path(shutil.copytree(case.store, tmp_path / "store")))
    nothing = ForcedFigures(float("nan"), 0.0, 0.0, 0)
    monkeypatch.setattr(experiment_model.ForcedPasses, "figures", lambda _self, lines, *_more: [nothing] * len(lines))
    with pytest.raises(ExtractionError, match="NaN or Inf before the answer in example 'planted-"):
        place.run(random=0)


def test_heads_of_a_wrong_trace_change_nothing(case: Case, tmp_path: Path) -> None:
    """What `_holds` asserts fails where other heads than the planted ones are switched off."""
    place = Case(case.planted, case.folder, Path(shutil.copytree(case.store, tmp_path / "store")))
    with Store(str(place.store), reporter=Told()) as opened:
        right = opened.trace_heads("refusal", where=JAILBROKEN, model=place.folder.as_posix(), resamples=0)
        document, table = opened.heads(right.name)
    decoys = [head for head in place.planted.truth.decoys if head[0] <= place.planted.truth.layer]
    rows = [row | {"mean": -9.0 if (row["layer"], row["head"]) in decoys else 0.0} for row in table.to_pylist()]
    facts = document.model_dump(exclude={"digest"}) | {"name": "wrong"}
    write_heads(ObjectStore(str(place.store)), rows, facts)
    report = place.run(trace="wrong", random=1)
    assert _value(report, "fixed", "chosen", "harmful", "refused") == 0
    with pytest.raises(AssertionError):
        _holds(report, place.planted, "fixed")


def test_the_command_prints_a_table_and_writes_files(case: Case, tmp_path: Path) -> None:
    store = shutil.copytree(case.store, tmp_path / "store")
    command = ["heads", "experiment", store, "--probe", "refusal", "--model", case.folder,
               "--harmful-where", JAILBROKEN, "--shares", f"{case.share}", "--random", "2", "--random-generate", "0",
               "--new-tokens", "16", "--thinking", "fixed", "--positions", "template,response",
               "--limit", "4"]  # fmt: skip
    shown = ok(*command, "-o", tmp_path / "out")
    assert "100.0%" in shown.text
    assert "2 random" in shown.text
    assert "first tokens of refusals (I) less that of answers (Sure)" in shown.text
    assert "0 do" in shown.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"experiment.parquet", "experiment.csv", "experiment.svg", "experiment.png", "experiment.json",
                     "texts.parquet"}  # fmt: skip
    again = ok(*command, "--json").json
    assert again["computed"] == 0
    assert again["n_heads"] == 24
    counted = ok("sql", store, "SELECT count(*) AS n FROM experiments WHERE measure = 'refused'", "--json").json
    assert counted == [{"n": 4}]
    other = run_cli(*command, "--seed", "1")
    assert (other.code, "--replace" in other.stderr) == (2, True)
    piece = next((Path(store) / "experiments" / "refusal-experiment").iterdir())
    piece.write_bytes(piece.read_bytes()[:-9] + b"x" * 9)
    assert run_cli("verify", store).code == 1


def test_figures_of_some_examples_say_of_how_many() -> None:
    row = {"condition": "chosen", "measure": "refused", "value": 0.5, "low": 0.2, "high": 0.8, "n": 6, "change": None}
    assert _cell([row], ".0%", 6) == "50% [20%, 80%]"
    assert _cell([row], ".0%", 8) == "50% [20%, 80%], n = 6"
    random = [row | {"condition": "random", "n": n} for n in (8, 5)]
    assert _cell(random, ".0%", 8) == "50% (50% to 50%), n = 5 to 8"


def test_mistakes_are_one_line_and_nothing_is_written(case: Case) -> None:
    for arguments, message in (
        (["--shares", "few"], "write percentages"),
        (["--harmful-where", "kind = 'none'"], "0 prompts are left"),
        (["--benign-where", "true"], "harmful and benign at once"),
        (["--thinking", "loud"], "choose fixed, regenerated or both"),
        (["--scale", "3"], "give a factor from 0 to 2"),
        (["--benign-text", "nothing"], "no column 'nothing'"),
        (["--compliance-opener", "I cannot"], "begin with the same token"),
        (["--trace", "none"], "has no figures of heads 'none'"),
        (["--positions", "near"], "near"),
    ):
        given = ["--probe", "refusal", "--model", case.folder, "--name", "wrong", *arguments]
        result = run_cli("heads", "experiment", case.store, *given)
        assert (result.code, message in result.stderr) == (2, True), (arguments, result.stderr)
        errors = [line for line in result.stderr.strip().splitlines() if line.startswith("error")]
        assert len(errors) <= 1
    assert not ObjectStore(str(case.store)).list("experiments")


def test_lines_are_the_tokens_of_the_plan_and_texts_those_of_a_column(built: Built) -> None:
    """The end of a turn behind an answer is no part of its text."""
    tokenizer = AutoTokenizer.from_pretrained(built.model)
    with Store(str(built.store), reporter=Told()) as opened:
        some = (
            "SELECT unnest([min(example), max(example)]) AS example FROM examples GROUP BY thinking IS NULL ORDER BY 1"
        )
        lines = list(read_lines(opened.catalog, [example for (example,) in opened.sql(some).fetchall()]))
        for line in lines:
            ids = "SELECT token_id FROM tokens WHERE example = $1 AND {} ORDER BY position"
            prompt, answer = (
                [token for (token,) in opened.sql(ids.format(which), [line.example]).fetchall()]
                for which in ("to_decision <= 0", "segment = 'response'")
            )
            assert (line.prompt.token_ids_T.tolist(), line.answer_N.tolist()) == (prompt, answer)
            assert len(line.prompt.token_ids_T) == line.prompt.decision + 1
        texts = with_text(opened.catalog, lines, "topic", tokenizer)
        topics = opened.sql(f"SELECT topic FROM examples WHERE example IN ({some}) ORDER BY example").fetchall()
    assert [tokenizer.decode(line.answer_N) for line in texts] == [topic for (topic,) in topics]
    assert [line.has_thinking for line in lines] == [bool(len(line.answer_N)) for line in lines]
    assert {line.has_thinking for line in lines} == {True, False}


def test_heads_are_those_of_a_trace_at_the_decision() -> None:
    """Not at its last distance, which may lie in the answer."""
    columns = {
        "layer": [0, 1, 0, 1, 0],
        "head": [0, 0, 0, 0, 0],
        "n": [2, 2, 2, 2, 4],
        "mean": [-1.0, 2.0, 3.0, -4.0, 0.4],
    }
    table = pa.table({**columns, "to_decision": [0, 0, 1, 1, 0]})
    assert negative_heads("named", table) == ((0, 0),)
    with pytest.raises(ConfigError, match="'named' has no figures at the decision"):
        negative_heads("named", table.slice(2, 2))


def test_a_model_that_does_not_think_regenerates_nothing(built: Built, tmp_path: Path) -> None:
    store = shutil.copytree(built.store, tmp_path / "store")
    command = ["heads", "experiment", store, "--probe", "refusal", "--model", built.model, "--shares", "6,7",
               "--random", "1", "--random-generate", "0", "--new-tokens", "2", "--limit", "3"]  # fmt: skip
    refused = run_cli(*command, "--thinking", "regenerated")
    assert (refused.code, "no thinking markers" in refused.stderr) == (2, True)
    made = ok(*command, "--json")
    assert "thinking is not regenerated" in made.stderr
    assert "7 % is measured with 6 %: both are 1 heads of 16" in made.stderr
    assert {row["share"] for row in made.json["figures"]} == {None, 6.0}
    assert made.json["thinking"] == ["fixed"]
    measured = {(row["part"], row["measure"]) for row in made.json["figures"]}
    assert {("harmful", "score"), ("harmful", "refused"), ("benign", "logit_difference")} <= measured
