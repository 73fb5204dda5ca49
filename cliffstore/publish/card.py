"""The dataset card that goes with an export: what is in it, how it was chosen, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cliffstore.schema import TRAINING_SET, ProbeDocument


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Everything that the card says."""

    selection: str
    strategy: str
    rows: int
    without_target: int
    labels: Mapping[str, int]
    sources: Mapping[str, int]
    probe: ProbeDocument
    plans: tuple[str, ...]
    store: str
    target: str
    digest: str
    data_file: str
    version: str


def dataset_card(facts: CardFacts) -> str:
    """Return the card as Markdown with the YAML header that dataset hubs read."""
    chosen = facts.probe.chosen
    validation, test, bag = "not measured", "not measured", "not measured"
    if chosen is not None:
        validation = (
            f"{_interval(chosen.auroc, chosen.auroc_low, chosen.auroc_high)} on {facts.probe.n_validation} samples"
        )
    if chosen is not None and chosen.test_auroc is not None:
        found = _interval(chosen.test_auroc, chosen.test_auroc_low, chosen.test_auroc_high)
        test = f"{found} on {facts.probe.n_test} samples"
    if facts.probe.bag_auroc is not None:
        bag = f"{facts.probe.bag_auroc:.4f}"
    shuffled = "not measured" if facts.probe.shuffled_auroc is None else f"{facts.probe.shuffled_auroc:.3f}"
    columns = "\n".join(f"| `{field.name}` | {field.type} |" for field in TRAINING_SET)
    left_out = (
        f"{facts.without_target} selected examples had no target and are left out." if facts.without_target else ""
    )
    return f"""---
configs:
- config_name: default
  data_files: {facts.data_file}
---
# Training set `{facts.selection}`

{facts.rows} examples, chosen by strategy `{facts.strategy}` with probe `{facts.probe.name}`; the answer to learn is
{facts.target}. {left_out}

| what | value |
|---|---|
| labels | {_listed(facts.labels)} |
| sources | {_listed(facts.sources)} |
| probe | {_probe(facts.probe)} |
| probe, validation AUROC | {validation} |
| probe, unseen test AUROC | {test} |
| probe, shuffled labels | {shuffled} |
| bag of tokens, validation AUROC | {bag} |
| probe digest | `{facts.probe.digest}` |
| capture | `{facts.probe.capture}` (model alias `{facts.probe.alias}`) |
| plan | {", ".join(f"`{plan}`" for plan in facts.plans)} |
| store | `{facts.store}` |
| sha256 of `{facts.data_file}` | `{facts.digest}` |
| cliffstore | {facts.version} |

```python
from datasets import load_dataset

train = load_dataset("parquet", data_files="{facts.data_file}", split="train")
```

`messages` is what a chat trainer takes. The other columns lead each row back to its evidence: `SELECT * FROM cliffs
JOIN examples USING (example) WHERE example = ...` in the store.

| column | type |
|---|---|
{columns}
"""


def _probe(probe: ProbeDocument) -> str:
    label = "no label" if probe.label is None else f"label `{probe.label}` = `{probe.positive}`"
    return f"{probe.kind}, {probe.site}, layer {probe.layer}, position {probe.positions}, {label}"


def _interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} [{low:.3f}, {high:.3f}]"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
