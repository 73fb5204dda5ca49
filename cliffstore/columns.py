"""What every published table is, and what every column of it means: the words of `schemas/README.md`.

Types are in `schema`; a test holds the two together.
"""

from __future__ import annotations

TABLES: dict[str, str] = {
    "examples": "`plans/<plan>/examples/part-<n>.parquet`: one row an example, a row group a unit. Every further "
    "column of the corpus follows, under its own name.",
    "tokens": "`plans/<plan>/tokens/part-<n>.parquet`: one row a token of an example, a row group a unit, in the order "
    "of example and position.",
    "units": "`plans/<plan>/units.parquet`: one row a unit. In SQL the view `units` joins it with what receipts say.",
    "skipped": "`plans/<plan>/skipped.parquet`: one row a corpus row that is not in the store.",
    "scores": "`scores/<probe>/unit-<n>.parquet`, committed by the receipt beside it: one row a stored token. In SQL "
    "with the column `probe`.",
    "cliffs": "`cliffs/<probe>.parquet`: one row an example that has scores. In SQL with the column `probe`.",
    "heads": "`heads/<name>.parquet`: what attention heads have to do with the score of a probe.",
    "experiments": "`experiments/<name>.parquet`: what switching traced heads off changes, beside random heads. In SQL "
    "with the column `name`.",
    "selections": "`selections/<name>.parquet`: one row a chosen example. In SQL with the column `selection`.",
    "training_set_messages": "Exported with `--format messages`: one row an example, as a conversation.",
    "training_set_prompt_completion": "Exported with `--format prompt-completion`: what is given, and what is learnt.",
    "training_set_alpaca": "Exported with `--format alpaca`.",
    "training_set_raw": "Exported with `--format raw`: the columns of `examples`, then every further column of the "
    "corpus.",
}

_EXAMPLE = "ordinal of the example: dense over all plans, from 0; it never changes"
_TO_DECISION = "position minus the decision position: 0 there, negative before it"
_SCORE = "a logit: w·h + b"

_OF_EXAMPLE = {
    "id": "the corpus's id, or a digest of the row where it has none",
    "label": "the label, as text; null where the corpus has none",
    "source": "which data set it is of: the corpus's column, or the name of the file",
}

LINEAGE: dict[str, str] = {
    **_OF_EXAMPLE,
    "example": "ordinal of the example in the store",
    "part": "`selected`, or `mixed` for an example that was mixed in",
    "rank": "place in the selection, from 1; null where mixed in",
    "strategy": "how it was selected; null where mixed in",
    "value": "what it was ranked by; null where mixed in",
    "plateau": "of its cliff, a logit; null without a probe",
    "final": "score at the decision position, a logit; null without a probe",
    "cliff": "plateau minus final; null without a probe or without thinking",
    "selection": "name of the selection",
    "probe": "name of the probe; null without one",
    "probe_digest": "sha256 of the probe's w and b; null without one",
    "example_digest": "`digest` of the example in the store",
    "plan": "plan that the example is of",
    "capture": "capture that the probe reads; null without a probe",
    "store": "URL of the store, without credentials",
}

_TEXTS = {
    "prompt": "the last user message",
    "system": "the system message; null without one",
    "thinking": "what stands between the thinking markers; null without thinking",
    "response": "the answer behind the thinking; null where the corpus has none",
}

_EXAMPLES = {
    "example": _EXAMPLE,
    **_OF_EXAMPLE,
    "unit": "unit that its tokens and rows are of",
    "n_tokens": "tokens of the rendered example",
    "decision": "decision position: the last token before the answer, from 0",
    **_TEXTS,
    "digest": "sha256 over everything that the store keeps of it: texts, further columns, token ids, segments",
}

COLUMNS: dict[str, dict[str, str]] = {
    "examples": _EXAMPLES,
    "tokens": {
        "example": _EXAMPLE,
        "position": "place in the example, from 0",
        "token_id": "id in the tokenizer's vocabulary",
        "token": "its text, as the tokenizer decodes it alone",
        "segment": "role: system, user, header, think_open, think, think_close, response or end",
        "to_decision": _TO_DECISION,
        "row": "index on the first axis of every array; equal token prefixes of a unit share it; null where the "
        "position is not stored",
    },
    "units": {
        "unit": "number of the unit over all plans: its shard is chunk <unit> of every array",
        "plan": "the plan that it is of",
        "row_start": "first row of the arrays: unit times unit_rows",
        "n_rows": "rows that hold vectors, from row_start on; the rest of the shard is empty",
        "n_examples": "examples of the unit",
        "n_tokens": "tokens of its examples, stored or not",
        "n_nodes": "nodes of its prefix tree: what passes over trees compute",
        "n_padded": "tokens that padded passes compute, without padding",
        "longest": "most tokens to compute of one example",
        "part": "number of the part file with its examples and tokens",
        "row_group": "row group in these two files",
    },
    "skipped": {
        "id": "the corpus's id; null where it could not be read",
        "source": "as in examples; null where it could not be read",
        "location": "file:line or file:row; empty where the row is in the store already",
        "reason": "what is counted: `empty prompt`, `bad row`, `template refused`, `template altered the text`, "
        "`longer than the context`, `no position to store` or `in the store already`",
        "detail": "what is wrong with this row, in words; empty where the reason says it all",
    },
    "scores": {
        "example": _EXAMPLE,
        "position": "place in the example, from 0",
        "to_decision": _TO_DECISION,
        "segment": "role of the token, as in tokens",
        "score": _SCORE,
    },
    "cliffs": {
        "example": _EXAMPLE,
        "plateau": "the level of the score over the thinking, a logit; null without thinking that is scored",
        "final": "score at the decision position; null where that is not stored",
        "cliff": "plateau minus final; null where one of them is",
        "n_think": "thinking tokens that have a score",
        "steepest_position": "position where the largest fall from one token to the next ends; null without one",
        "n_steep": "tokens that the fall from 90 % to 10 % of the cliff takes; null without a fall",
    },
    "heads": {
        "probe": "name of the probe",
        "kind": "`direct`: what heads add to the score by themselves; `knockout`: how it changes without them",
        "layer": "block of the head, from 0; null where several are ablated together",
        "head": "number of the head in its block, from 0; null where several are ablated together",
        "heads": "layer:head, joined by commas where several are ablated together",
        "positions": "direct: distances from the decision; knockout: where heads are off: template, all or decision",
        "ablation": "what replaces z, zero or mean; null for direct",
        "to_decision": "distance of the token whose score it is from the decision position",
        "group": "value of --group-by; null for all examples together",
        "n": "examples that it is a mean of",
        "mean": "a logit; direct: what the head adds to the score; knockout: score without the heads minus score",
        "low": "lower end of its bootstrap interval over examples; null without one",
        "high": "upper end",
        "control_mean": "the same for random sets of as many heads of the same layers; null where none were measured",
        "control_low": "lower end over these sets",
        "control_high": "upper end over these sets",
        "n_controls": "how many sets; null without controls",
    },
    "experiments": {
        "probe": "name of the probe",
        "thinking": "`fixed`: as the example has it; `regenerated`: written by the model as it is changed",
        "condition": "`unchanged`, `chosen` (the most negative shares of the trace) or `random` (of the same layers)",
        "share": "percent of all heads that was asked for; null for unchanged",
        "set": "number of the random set, from 0; null for others",
        "n_heads": "heads that are scaled",
        "heads": "layer:head, joined by commas; null for unchanged",
        "part": "`harmful` or `benign` examples",
        "measure": "`score` and `logit_difference` (means at the decision), `refused` (a rate, of answers that "
        "thinking has not cut short) or `perplexity`",
        "n": "examples that have it",
        "value": "a logit, a logit, a share, or e to the mean surprise of a token",
        "low": "lower end of its interval over examples: bootstrap, for rates Wilson's; null without one",
        "high": "upper end",
        "change": "value minus that of the unchanged model, over examples that have both; null for unchanged",
        "change_low": "lower end of its paired bootstrap interval; null without one",
        "change_high": "upper end",
    },
    "selections": {
        "rank": "place in the selection, from 1",
        "example": _EXAMPLE,
        "id": _OF_EXAMPLE["id"],
        "strategy": "cliff, final, random, rules, column:NAME or sql:EXPRESSION",
        "probe": "probe whose cliffs were read; null without one",
        "value": "what the example was ranked by",
    },
    "training_set_messages": {
        "messages": "the conversation: role and content of each message, the answer to learn last",
        **LINEAGE,
    },
    "training_set_prompt_completion": {
        "prompt": "messages before the answer",
        "completion": "one message: the answer to learn, with its thinking",
        **LINEAGE,
    },
    "training_set_alpaca": {
        "instruction": "the last user message",
        "input": "always empty: the instruction has everything",
        "output": "the answer to learn, with its thinking",
        "system": "the system message; empty without one",
        "history": "earlier turns, as pairs of question and answer",
        **LINEAGE,
    },
    "training_set_raw": {
        **{name: meaning for name, meaning in _EXAMPLES.items() if name not in LINEAGE},
        "target": "the answer to learn, without thinking",
        "answer": "the answer to learn, with its thinking as the format renders it",
        **LINEAGE,
    },
}
