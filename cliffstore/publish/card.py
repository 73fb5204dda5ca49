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
    chosen = next(metrics for metrics in facts.probe.layers if metrics.layer == facts.probe.layer)
    test = "not measured" if chosen.test_auroc is None else f"{chosen.test_auroc:.4f} on {facts.probe.n_test} examples"
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
| probe | {facts.probe.site}, layer {facts.probe.layer}, label `{facts.probe.label}` = `{facts.probe.positive}` |
| probe, validation AUROC | {chosen.auroc:.4f} on {facts.probe.n_validation} examples |
| probe, unseen test AUROC | {test} |
| probe, shuffled labels | {facts.probe.shuffled_auroc:.3f} |
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


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
