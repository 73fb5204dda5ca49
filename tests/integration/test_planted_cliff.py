"""The hand-built model under interventions: without its suppressors there is no cliff, without decoys there is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from commands import ok, run_cli
from quick import quick_runs

from cliffstore.model.planted.model import CORPUS, PROBE, PlantedTruth, PlantSettings, plant
from cliffstore.run.heads.results import read_heads
from cliffstore.run.interventions.steps import suppressors
from cliffstore.store.objects import ObjectStore
from cliffstore.store.probes import read_probe

PROBED = "planted"


@dataclass(frozen=True)
class Case:
    """A planted model in a folder, and a store with its activations and scores."""

    folder: Path
    store: Path
    truth: PlantedTruth

    def scores(self, probe: str) -> list[dict[str, object]]:
        """Return kind, distance from the decision, score and tokens of every stored token."""
        return ok(
            "sql", self.store, "SELECT e.kind, e.id, s.position, s.to_decision, s.segment, s.score, t.token_id "
            "FROM scores s JOIN tokens t USING (example, position) JOIN examples e USING (example) "
            f"WHERE s.probe = '{probe}' ORDER BY e.id, s.position", "--json",
        ).json  # fmt: skip

    def cliffs(self, probe: str) -> dict[str, list[float]]:
        """Return the cliffs of the examples of each kind."""
        ok("cliff", self.store, "--probe", probe)
        found: dict[str, list[float]] = {}
        for row in ok(
            "sql", self.store, f"SELECT kind, cliff, final FROM cliffs JOIN examples USING (example) "
            f"WHERE probe = '{probe}'", "--json",
        ).json:  # fmt: skip
            found.setdefault(str(row["kind"]), []).append(float(row["cliff"]))
        return found


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("planted")
    planted = plant(PlantSettings(seed=3, suppressors=3))
    planted.save(folder / "model", examples=24)
    case = Case(folder, folder / "store", planted.truth)
    with quick_runs():
        ok("extract", folder / "model" / CORPUS, "--model", folder / "model", "--store", case.store)
        ok(
            "probe", "import", case.store, folder / "model" / PROBE, "--name", PROBED, "--layer",
            str(planted.truth.layer),
        )  # fmt: skip
        ok("score", case.store, "--probe", PROBED)
        yield case


def switch_off(case: Case, alias: str, heads: tuple[tuple[int, int], ...], positions: str, passes: str) -> str:
    """Score under interventions; return the name of the scores."""
    file = case.folder / f"{alias}.json"
    step = {"kind": "scale_heads", "heads": heads, "factor": 0, "positions": positions}
    file.write_text(json.dumps({"steps": [step]}))
    ok(
        "extract", "--model", case.folder / "model", "--store", case.store, "--probe", PROBED, "--intervene", file,
        "--model-alias", alias, "--passes", passes,
    )  # fmt: skip
    return f"{PROBED}.{alias}"


@pytest.mark.parametrize(("positions", "passes"), [("all", "tree"), ("template", "padded"), ("think_close", "tree")])
def test_without_its_suppressors_the_score_stays_on_the_plateau(case: Case, positions: str, passes: str) -> None:
    """They act at the closing mark and behind it, so it is enough to switch them off there."""
    plain = case.cliffs(PROBED)
    assert min(plain["jailbroken"]) > 1
    alias = f"off-{positions}".replace("_", "-")
    probe = switch_off(case, alias, case.truth.suppressors, positions, passes)
    left = case.cliffs(probe)
    print(f"{positions}: cliffs of jailbroken prompts {min(plain['jailbroken']):.2f} or more, then "
          f"{max(map(abs, left['jailbroken'])):.1e} at most")  # fmt: skip
    assert max(map(abs, left["jailbroken"])) < 0.05 * min(plain["jailbroken"])
    at_decision = [row for row in case.scores(probe) if row["to_decision"] == 0]
    assert {(row["kind"] == "benign", row["score"] > 0) for row in at_decision} == {(True, False), (False, True)}
    if positions == "all":
        assert worst_from_closed_form(case, probe, case.truth.suppressors) <= 1e-4


def worst_from_closed_form(case: Case, probe: str, off: tuple[tuple[int, int], ...]) -> float:
    """Return the largest difference from the closed form at tokens up to the decision, with some heads switched off."""
    by_example: dict[str, list[dict[str, object]]] = {}
    for row in case.scores(probe):
        by_example.setdefault(str(row["id"]), []).append(row)
    worst = 0.0
    for rows in by_example.values():
        expected = case.truth.scores([int(row["token_id"]) for row in rows], dict.fromkeys(off, 0.0))
        found = np.array([row["score"] for row in rows])
        worst = max(worst, float(np.abs(found - expected)[: _decision(rows) + 1].max()))
    print(f"{probe}: largest difference from the closed form {worst:.1e}")
    return worst


def _decision(rows: list[dict[str, object]]) -> int:
    return next(place for place, row in enumerate(rows) if row["to_decision"] == 0)


def test_heads_of_a_table_are_those_that_were_traced(case: Case) -> None:
    """`table` and `top` in the place of a list: the suppressors, by knock-out and by direct attribution."""
    heads = case.truth.suppressors
    ok("heads", "trace", case.store, "--probe", PROBED, "--name", "traced", "--model", case.folder / "model",
       "--where", "kind = 'jailbroken'")  # fmt: skip
    objects = ObjectStore(str(case.store))
    assert sorted(suppressors(*read_heads(objects, "traced"), len(heads))) == sorted(heads)
    file = case.folder / "table.yaml"
    file.write_text(f"steps:\n- {{kind: scale_heads, table: traced, top: {len(heads)}, positions: template}}\n")
    ok("extract", "--model", case.folder / "model", "--store", case.store, "--probe", PROBED, "--intervene", file,
       "--model-alias", "by-table")  # fmt: skip
    document, _ = read_probe(objects, f"{PROBED}.by-table")
    (step,) = document.interventions.steps
    assert [(one.layer, one.head, one.factors) for one in step.heads] == [(*head, [0.0]) for head in sorted(heads)]
    assert max(map(abs, case.cliffs(f"{PROBED}.by-table")["jailbroken"])) < 0.05 * min(
        case.cliffs(PROBED)["jailbroken"]
    )


def test_heads_of_other_roles(case: Case) -> None:
    """Without decoys the cliff is still there; without the gate, which writes nothing on the direction, it is not."""
    plain = min(case.cliffs(PROBED)["jailbroken"])
    decoys = switch_off(case, "without-decoys", case.truth.decoys, "all", "tree")
    assert worst_from_closed_form(case, decoys, case.truth.decoys) <= 1e-4
    assert min(case.cliffs(decoys)["jailbroken"]) > 0.5 * plain
    gate = switch_off(case, "without-gate", case.truth.gates, "all", "padded")
    assert worst_from_closed_form(case, gate, case.truth.gates) <= 1e-4
    assert max(map(abs, case.cliffs(gate)["jailbroken"])) < 0.05 * plain
    assert run_cli("verify", case.store).code == 0
