"""The dataset card that goes with an export: what is in it, how it was chosen, how to load it, where it leads back."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cliffstore.publish.shards import DataFile
from cliffstore.publish.snippets import Snippets
from cliffstore.schema import PlanDocument, ProbeDocument, SelectionDocument, TokenizerIdentity

HEADING = "# Training set "
"""What every card says; so it is told from a file of somebody's own."""
_MOST_LISTED = 20
_LONGEST = 200
_TO_ESCAPE = re.compile(r"([\\`*_\[\]<>|#~&$])")
_ELSEWHERE = {"name", "strategy", "probe", "probe_digest", "capture", "digest", "cliffstore_version"}
"""Fields of a selection that the card says in its own words."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows there are of what; `labels` and `sources` by part."""

    rows: int
    mixed: int
    validation: int
    thinking: int
    without_target: int
    labels: Mapping[str, Mapping[str, int]]
    sources: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Everything that the card says.

    Attributes
    ----------
    target, mixed_target : what selected and mixed-in examples teach
    settings : how the export was asked for, as far as it shapes the rows
    other_cliffs : whether cliffs were ranked anew since the selection was made
    """

    selection: SelectionDocument
    counts: Counts
    format: str
    thinking: str
    target: str
    mixed_target: str
    settings: Mapping[str, object]
    files: Sequence[DataFile]
    schema: pa.Schema
    snippets: Snippets
    probe: ProbeDocument | None
    plans: Sequence[PlanDocument]
    tokenizer: TokenizerIdentity
    store: str
    version: str
    other_cliffs: bool = False


def dataset_card(facts: CardFacts) -> str:
    """Return the card as Markdown with the YAML header that dataset hubs read."""
    counts, probe = facts.counts, facts.probe
    strategy = _coded(facts.selection.strategy)
    by_probe = f" with probe `{probe.name}`" if probe is not None else ""
    mixed = f" {counts.mixed} more are mixed in and teach {_shown(facts.mixed_target)}." if counts.mixed else ""
    left_out = (
        f" {counts.without_target} selected examples had no target and are left out." if counts.without_target else ""
    )
    ranked_anew = (
        " Cliffs were ranked anew since the choice: `value` is what was chosen by; `plateau`, `final` and `cliff` are "
        "later figures."
        if facts.other_cliffs
        else ""
    )
    asked = json.dumps({name: value for name, value in facts.settings.items() if value is not None}, indent=2)
    chosen = facts.selection.model_dump(mode="json", exclude=_ELSEWHERE, exclude_none=True)
    columns = "\n".join(f"| {_shown(field.name)} | {_shown(str(field.type))} |" for field in facts.schema)
    return f"""---
configs:
- config_name: default
  data_files:
{_data_files(facts.files)}
---
{HEADING}`{facts.selection.name}`

{counts.rows - counts.mixed} examples, chosen by strategy {strategy}{by_probe}; the answer to learn is
{_shown(facts.target)}.{mixed}{left_out} Thinking: {_shown(facts.thinking)}.{ranked_anew}

| what | value |
|---|---|
{_table(facts)}

How the selection was made:

```json
{json.dumps(chosen, indent=2)}
```

How it was exported:

```json
{asked}
```

{_how_to_load(facts)}
## Where a row leads back

`example` is the example's number in the store, `example_digest` the digest of its tokens; `probe`, `probe_digest`,
`capture` and `plan` name what its scores were made with. `part` tells what was selected from what was mixed in. Run in
the folder of the files, this shows each row beside its example, cliff, and score before the answer:

```bash
{lineage_command(facts.store, [file.name for file in facts.files])}
```

| column | type |
|---|---|
{columns}
"""


def lineage_command(store: str, files: Sequence[str]) -> str:
    """Return the command of one statement that joins a training set to its store."""
    listed = ", ".join("'" + name.replace("'", "''") + "'" for name in files)
    statement = f"""
SELECT t.id, t.part, t.rank, e.prompt, c.plateau, c.final, c.cliff, s.score AS score_before_answer,
       e.digest = t.example_digest AS same_example, p.digest = t.probe_digest AS same_probe
FROM read_parquet([{listed}]) t
JOIN examples e ON e.example = t.example
LEFT JOIN probes p ON p.probe = t.probe
LEFT JOIN cliffs c ON c.probe = t.probe AND c.example = t.example
LEFT JOIN scores s ON s.probe = t.probe AND s.example = t.example AND s.to_decision = 0
ORDER BY t.rank NULLS LAST, t.id"""
    quoted = re.sub(r'([\\$"`])', r"\\\1", statement)
    return f'cliffstore sql {shlex.quote(store)} --allow-external "{quoted}"'


def _how_to_load(facts: CardFacts) -> str:
    snippets, name = facts.snippets, facts.format
    convert = snippets.messages()
    first = (
        f"Neither reads `{name}`: make files of `messages` first, or export with `--format messages`.\n\n"
        f"```python\n{convert}```\n\n"
        if convert
        else ""
    )
    loss = {
        "messages": "The loss is of the whole conversation; `SFTConfig(assistant_only_loss=True)` makes it that of the "
        "answer, where the model's chat template marks answers.",
        "prompt-completion": "The loss is of the completion alone.",
    }.get(name, "Rows become prompt and completion; the loss is of the completion alone.")
    alpaca = (
        "Axolotl's `alpaca` reads neither `system` nor `history`; LLaMA-Factory reads both, and learns the answers in "
        "`history` too.\n\n"
        if name == "alpaca"
        else ""
    )
    return f"""## Load it

```python
{snippets.load()}```

## Train on it

With [TRL](https://huggingface.co/docs/trl). {loss}

```python
{snippets.trl()}```

With [Axolotl](https://docs.axolotl.ai) or [LLaMA-Factory](https://llamafactory.readthedocs.io). {first}{alpaca}Axolotl:

```yaml
{snippets.axolotl()}```

LLaMA-Factory: `dataset_info.json`, and a configuration whose `template` is to be that of the model.

```json
{snippets.llama_factory_data()}```

```yaml
{snippets.llama_factory()}```
"""


def _table(facts: CardFacts) -> str:
    counts, tokenizer = facts.counts, facts.tokenizer
    lines: dict[str, str] = {
        "rows": f"{counts.rows}: {counts.rows - counts.mixed} selected, {counts.mixed} mixed in",
        "split": f"{counts.rows - counts.validation} train, {counts.validation} validate",
        "rows with thinking": f"{counts.thinking}",
    }
    for part, labels in counts.labels.items():
        lines[f"labels, {part}"] = _listed(labels)
    for part, sources in counts.sources.items():
        lines[f"sources, {part}"] = _listed(sources)
    lines |= _probe(facts.probe)
    lines |= {f"plan `{plan.plan}`": f"digest `{plan.digest}`" for plan in facts.plans}
    lines["tokenizer"] = (
        f"{_shown(tokenizer.name)}, digest `{tokenizer.digest}`, template `{tokenizer.template_digest}`"
    )
    lines["store"] = _shown(facts.store)
    lines["sha256 of the selection's table"] = f"`{facts.selection.digest}`"
    for file in facts.files:
        lines[f"sha256 of {_shown(file.name)} ({file.rows} rows)"] = f"`{file.digest}`"
    lines["cliffstore"] = facts.version
    return "\n".join(f"| {name} | {value} |" for name, value in lines.items())


def _probe(probe: ProbeDocument | None) -> dict[str, str]:
    if probe is None:
        return {"probe": "none: the selection was made without one"}
    chosen = probe.chosen
    lines = {"probe": _what_probe(probe), "probe, validation AUROC": "not measured"}
    if chosen is not None:
        found = _interval(chosen.auroc, chosen.auroc_low, chosen.auroc_high)
        lines["probe, validation AUROC"] = f"{found} on {probe.n_validation} samples"
    lines["probe, unseen test AUROC"] = "not measured"
    if chosen is not None and chosen.test_auroc is not None:
        found = _interval(chosen.test_auroc, chosen.test_auroc_low, chosen.test_auroc_high)
        lines["probe, unseen test AUROC"] = f"{found} on {probe.n_test} samples"
    shuffled, bag = probe.shuffled_auroc, probe.bag_auroc
    lines["probe, shuffled labels"] = "not measured" if shuffled is None else f"{shuffled:.3f}"
    lines["bag of tokens, validation AUROC"] = "not measured" if bag is None else f"{bag:.4f}"
    lines["probe digest"] = f"`{probe.digest}`"
    lines["capture"] = f"`{probe.capture}` (model alias `{probe.alias}`)"
    return lines


def _what_probe(probe: ProbeDocument) -> str:
    label = "no label" if probe.label is None else f"label {_shown(probe.label)} = {_shown(str(probe.positive))}"
    return f"`{probe.name}`: {probe.kind}, {probe.site}, layer {probe.layer}, position {probe.positions}, {label}"


def _data_files(files: Sequence[DataFile]) -> str:
    """Return the splits for the header. JSON strings are YAML strings."""
    splits = dict.fromkeys(file.split for file in files)
    lines = []
    for split in splits:
        lines += [f"  - split: {split}", "    path:"]
        lines += [f"    - {json.dumps(file.name, ensure_ascii=False)}" for file in files if file.split == split]
    return "\n".join(lines)


def _interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} [{low:.3f}, {high:.3f}]"


def _listed(counts: Mapping[str, int]) -> str:
    """Return counts, the most frequent first; of very many the rest is counted."""
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    rest = ordered[_MOST_LISTED:]
    more = [f"{len(rest)} others: {sum(count for _, count in rest)}"] if rest else []
    return ", ".join([*(f"{_shown(name)}: {count}" for name, count in ordered[:_MOST_LISTED]), *more])


def _coded(text: str) -> str:
    """Return any text as code within a line."""
    return "`" + _one_line(text).replace("`", "'") + "`"


def _shown(text: str) -> str:
    """Return any text as one short line that Markdown takes for text."""
    return _TO_ESCAPE.sub(r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:_LONGEST])
    return line + ("…" if len(text) > _LONGEST else "")
