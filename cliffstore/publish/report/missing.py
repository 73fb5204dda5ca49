"""What a store does not have yet, section by section, and the commands that make it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cliffstore.publish.report.chosen import ChosenFacts
from cliffstore.publish.report.heads import HeadFacts
from cliffstore.publish.report.quality import ProbeFacts


@dataclass(frozen=True, slots=True)
class Missing:
    """What is not there, and the commands that make it, in order; none where a command would not help."""

    what: str
    commands: Sequence[str] = ()


def find_missing(
    url: str,
    probes: Sequence[ProbeFacts],
    selections: Sequence[ChosenFacts],
    heads: Sequence[HeadFacts],
    *,
    has_clipped: bool,
) -> dict[str, Missing]:
    """Return what is missing, by section of the page."""
    probe = probes[0].name if probes else "refusal"
    is_scored = any(one.units_scored for one in probes)
    is_ranked = any(one.cliffs is not None for one in probes)
    fit = [] if probes else [f"cliffstore probe fit {url} --name refusal --label label"]
    score = f"cliffstore score {url} --probe {probe}"
    scored = [*fit] if is_scored else [*fit, score]
    ranked = scored if is_ranked else [*scored, f"cliffstore cliff {url} --probe {probe}"]
    clipped = [
        f"cliffstore clip make {url} -o clipped.jsonl",
        f"cliffstore extract clipped.jsonl --append --model MODEL --store {url} --positions think,decision",
        score,
    ]
    found = {
        "probes": (bool(probes), "This store has no probe.", fit),
        "curves": (is_scored, "No token of this store has a score.", scored),
        "cliffs": (is_ranked, "No cliffs are ranked.", ranked),
        "selections": (
            bool(selections),
            "No selection is made.",
            [*ranked, f"cliffstore select {url} --name worst --probe {probe} --top 1.7%"],
        ),
        "heads": (bool(heads), "No heads are traced.", [*fit, f"cliffstore heads trace {url} --probe {probe}"]),
        "clipping": (has_clipped, "This store has no clipped examples.", clipped),
    }
    return {section: Missing(what, commands) for section, (is_there, what, commands) in found.items() if not is_there}
