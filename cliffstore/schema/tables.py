"""Tables, as Arrow schemas: of plans, scores, cliffs, heads, experiments, selections and training sets."""

from __future__ import annotations

import pyarrow as pa

_DICTIONARY = pa.dictionary(pa.int32(), pa.string())


def _schema(*columns: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in columns])


TOKENS = _schema(
    ("example", pa.int64()),
    ("position", pa.int32()),
    ("token_id", pa.int32()),
    ("token", _DICTIONARY),
    ("segment", _DICTIONARY),
    ("to_decision", pa.int32()),
    ("row", pa.int64()),
)


EXAMPLES = _schema(
    ("example", pa.int64()),
    ("id", pa.string()),
    ("unit", pa.int32()),
    ("n_tokens", pa.int32()),
    ("decision", pa.int32()),
    ("prompt", pa.string()),
    ("system", pa.string()),
    ("thinking", pa.string()),
    ("response", pa.string()),
    ("label", pa.string()),
    ("source", pa.string()),
    ("digest", pa.string()),
)
"""Every further column of the corpus follows, under its own name."""


UNITS = _schema(
    ("unit", pa.int32()),
    ("plan", pa.string()),
    ("row_start", pa.int64()),
    ("n_rows", pa.int32()),
    ("n_examples", pa.int32()),
    ("n_tokens", pa.int64()),
    ("n_nodes", pa.int64()),
    ("n_padded", pa.int64()),
    ("longest", pa.int32()),
    ("part", pa.int32()),
    ("row_group", pa.int32()),
)


SKIPPED = _schema(
    ("id", pa.string()),
    ("source", pa.string()),
    ("location", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
)


SCORES = _schema(
    ("example", pa.int64()),
    ("position", pa.int32()),
    ("to_decision", pa.int32()),
    ("segment", _DICTIONARY),
    ("score", pa.float32()),
)


CLIFFS = _schema(
    ("example", pa.int64()),
    ("plateau", pa.float64()),
    ("final", pa.float64()),
    ("cliff", pa.float64()),
    ("n_think", pa.int32()),
    ("steepest_position", pa.int32()),
    ("n_steep", pa.int32()),
)


HEADS = _schema(
    ("probe", pa.string()),
    ("kind", pa.string()),
    ("layer", pa.int32()),
    ("head", pa.int32()),
    ("heads", pa.string()),
    ("positions", pa.string()),
    ("ablation", pa.string()),
    ("to_decision", pa.int32()),
    ("group", pa.string()),
    ("n", pa.int64()),
    ("mean", pa.float64()),
    ("low", pa.float64()),
    ("high", pa.float64()),
    ("control_mean", pa.float64()),
    ("control_low", pa.float64()),
    ("control_high", pa.float64()),
    ("n_controls", pa.int32()),
)
"""`kind` direct: `mean` is what the head adds to the score at `to_decision`. knockout: it is the score with `heads`
ablated less the score as it is, at the decision. Of several heads ablated together, layer and head are null. Controls
are layer-matched sets of as many heads: of one head, the others of its layer, where they were measured."""


EXPERIMENTS = _schema(
    ("probe", pa.string()),
    ("thinking", pa.string()),
    ("condition", pa.string()),
    ("share", pa.float64()),
    ("set", pa.int32()),
    ("n_heads", pa.int32()),
    ("heads", pa.string()),
    ("part", pa.string()),
    ("measure", pa.string()),
    ("n", pa.int64()),
    ("value", pa.float64()),
    ("low", pa.float64()),
    ("high", pa.float64()),
    ("change", pa.float64()),
    ("change_low", pa.float64()),
    ("change_high", pa.float64()),
)
"""`condition` is unchanged, chosen or random; `set` numbers random sets. `part` is harmful or benign; `measure` is
score or logit_difference (means at the decision), refused (a rate, with Wilson's interval) or perplexity. `change` is
against the unchanged model on the same examples, with a paired bootstrap interval; null where nothing is changed."""


SELECTIONS = _schema(
    ("rank", pa.int32()),
    ("example", pa.int64()),
    ("id", pa.string()),
    ("strategy", pa.string()),
    ("probe", pa.string()),
    ("value", pa.float64()),
)


MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))


LINEAGE = _schema(
    ("id", pa.string()),
    ("label", pa.string()),
    ("source", pa.string()),
    ("example", pa.int64()),
    ("part", pa.string()),
    ("rank", pa.int32()),
    ("strategy", pa.string()),
    ("value", pa.float64()),
    ("plateau", pa.float64()),
    ("final", pa.float64()),
    ("cliff", pa.float64()),
    ("selection", pa.string()),
    ("probe", pa.string()),
    ("probe_digest", pa.string()),
    ("example_digest", pa.string()),
    ("plan", pa.string()),
    ("capture", pa.string()),
    ("store", pa.string()),
)
"""What leads a row of a training set back. `part` is `selected`, or `mixed` for an example that was mixed in, which has
no rank, strategy and value. Without a probe, what a probe says is null."""


_LEARNT: dict[str, tuple[tuple[str, pa.DataType], ...]] = {
    "messages": (("messages", MESSAGES),),
    "prompt-completion": (("prompt", MESSAGES), ("completion", MESSAGES)),
    "alpaca": (
        ("instruction", pa.string()),
        ("input", pa.string()),
        ("output", pa.string()),
        ("system", pa.string()),
        ("history", pa.list_(pa.list_(pa.string()))),
    ),
    "raw": (
        *((field.name, field.type) for field in EXAMPLES if field.name not in LINEAGE.names),
        ("target", pa.string()),
        ("answer", pa.string()),
    ),
}


TRAINING_SETS: dict[str, pa.Schema] = {
    name: pa.schema([*_schema(*columns), *LINEAGE]) for name, columns in _LEARNT.items()
}
"""Format -> columns of a training set. Behind those of `raw` follows every further column of the corpus."""


TABLES: dict[str, pa.Schema] = {
    "examples": EXAMPLES,
    "tokens": TOKENS,
    "units": UNITS,
    "skipped": SKIPPED,
    "scores": SCORES,
    "cliffs": CLIFFS,
    "heads": HEADS,
    "experiments": EXPERIMENTS,
    "selections": SELECTIONS,
    **{f"training_set_{name.replace('-', '_')}": schema for name, schema in TRAINING_SETS.items()},
}
