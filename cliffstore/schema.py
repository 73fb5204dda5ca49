"""The published contracts: JSON documents (pydantic) and tables (Arrow) of store format 1.

`run.contracts` writes them in a readable form to `schemas/`; what may change within a format version is said in
`schemas/compatibility.md`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from cliffstore.errors import DamagedStoreError

FORMAT_VERSION = 1
TRAINING_SET_VERSION = 1
SEAL = "seal"

Dtype = Literal["bfloat16", "float16", "float32"]


class Part(BaseModel):
    """Base of everything in a JSON document: frozen; what a later version has added is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Document(Part):
    """Base of every JSON document in a store. As bytes it carries a seal, by which damage is told from content."""

    def to_bytes(self) -> bytes:
        """Return canonical JSON, sealed: equal documents are equal bytes."""
        body = self.model_dump(mode="json")
        return canonical({**body, SEAL: seal_of(body)})

    @classmethod
    def from_bytes(cls, content: bytes, key: str) -> Self:
        """Read a document that lies under `key`.

        Raises
        ------
        DamagedStoreError
            It is not JSON, not such a document, or its seal does not fit.
        """
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            raise damaged(key, "is not JSON") from None
        if not isinstance(body, dict) or body.pop(SEAL, None) != seal_of(body):
            raise damaged(key, "has another seal than its content")
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise damaged(key, f"is no {cls.__name__} of this version: {error.errors()[0]['msg']}") from None


def canonical(body: Mapping[str, object]) -> bytes:
    """Return JSON as every document is written: sorted keys, one space of indent, ASCII, a line break at the end."""
    return (json.dumps(body, sort_keys=True, indent=1) + "\n").encode()


def seal_of(body: Mapping[str, object]) -> str:
    """Return the sha256 over a document's canonical JSON without its seal."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def damaged(key: str, problem: str) -> DamagedStoreError:
    """Return the error for an object that cannot be believed."""
    error = DamagedStoreError(f"{key} {problem}: run `cliffstore verify` on the store")
    error.problem = problem
    return error


class Chunking(Part):
    chunk_rows: int = Field(description="rows of one inner chunk")
    unit_rows: int = Field(description="rows of one unit, hence of one shard object")


class TokenizerIdentity(Part):
    name: str
    digest: str
    template_digest: str = Field(description="sha256 over chat template, thinking markers and template date")
    think_open: str
    think_close: str
    template_date: str


class Manifest(Document):
    """`manifest.json`: what every plan and capture of a store shares. Create-only, never changed."""

    kind: Literal["cliffstore"] = "cliffstore"
    format_version: int = FORMAT_VERSION
    cliffstore_version: str
    created: str = Field(description="ISO 8601, UTC")
    tokenizer: TokenizerIdentity
    chunking: Chunking


class PlanCounts(Part):
    examples: int
    tokens: int
    rows: int
    units: int
    skipped: int


class CorpusRecipe(Part):
    """What a plan's corpus was read from, so that it can be read again and compared by digest."""

    inputs: list[str] = Field(description="files, folders or URLs, as they were given")
    map: dict[str, str] = Field(description="known column -> column of the corpus")
    where: str | None
    limit: int | None


class PlanPlace(Document):
    """`plans/order/<n>.json`: reserves unit numbers and ordinals for a plan, before its tables are written."""

    number: int
    plan: str
    first_unit: int
    n_units: int
    first_example: int
    n_examples: int
    base: list[str] = Field(description="plans whose examples this one leaves out")


class PlanDocument(Document):
    """`plans/<plan>/plan.json`: written last; the plan exists once this does."""

    plan: str
    digest: str = Field(description="sha256 over all examples, their tokens and segments, and the settings")
    counts: PlanCounts
    settings: dict[str, str | int | None]
    sources: list[str] = Field(description="values of the column source")
    corpus: CorpusRecipe
    place: int = Field(description="number of its place among the plans")
    tables: dict[str, str] = Field(description="sha256 of every table of the plan, by its path below the plan's folder")
    cliffstore_version: str


class AdapterIdentity(Part):
    name: str
    kind: str = Field(description="PEFT's name of the method, such as LORA")
    digest: str = Field(description="sha256 over the adapter's configuration and weights")


class ModelIdentity(Part):
    name: str
    revision: str | None
    config_digest: str
    weights_digest: str | None = Field(description="sha256 over a sample of each tensor; null for hub revisions")
    model_type: str
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    adapter: AdapterIdentity | None = None


def model_key(model: ModelIdentity, dtype: str) -> tuple[str | None, ...]:
    """Return what makes two models the same one."""
    adapter = model.adapter.digest if model.adapter else None
    return (model.config_digest, model.weights_digest, model.revision, adapter, dtype)


class PassSettings(Part):
    """How forward passes are made; part of what makes a resumed run equal an undisturbed one."""

    kind: Literal["tree", "padded"] = Field(
        description="tree: every node of the prefix tree once; padded: one line an example, padded on the right"
    )
    tokens: int = Field(description="nodes or padded tokens of one forward pass")
    products: Literal["native", "float32"] = Field(
        description="how matrix products of bfloat16 are computed: by the device, or in float32 and rounded"
    )


class ArrayIdentity(Part):
    site: str
    layer: int
    shape: list[int] = Field(description="shape of one row")


class HeadFactors(Part):
    layer: int
    head: int
    factors: list[float] = Field(description="one for the whole head, or one for each of its channels")


class HeadScaling(Part):
    """Multiplies what heads give to the output projection."""

    kind: Literal["scale_heads"] = "scale_heads"
    heads: list[HeadFactors]
    positions: str = Field(default="all", description="where in an example it acts")
    keep_norm: bool = Field(default=False, description="whether each token's heads of a layer keep their joint norm")


class DirectionAblation(Part):
    """Takes a direction out of vectors: h - (h·d)d, where d has length 1."""

    kind: Literal["ablate"] = "ablate"
    vector: str = Field(description="float32, little endian, base64; any length but zero")
    sites: list[str]
    layers: list[int]
    positions: str = "all"
    keep_norm: bool = Field(default=False, description="whether each vector keeps its norm")
    origin: str | None = Field(default=None, description="where the vector is from; says nothing of what is computed")


class Steering(Part):
    """Adds a vector: h + factor·v."""

    kind: Literal["steer"] = "steer"
    vector: str = Field(description="float32, little endian, base64")
    sites: list[str]
    layers: list[int]
    factor: float = 1.0
    positions: str = "all"
    keep_norm: bool = Field(default=False, description="whether each vector keeps its norm")
    origin: str | None = Field(default=None, description="where the vector is from; says nothing of what is computed")


Step = Annotated[HeadScaling | DirectionAblation | Steering, Field(discriminator="kind")]


class Interventions(Part):
    """What is changed while a model runs; steps that meet at one place act in their order."""

    digest: str = Field(description="sha256 over the steps without their origins")
    steps: list[Step]

    @classmethod
    def of(cls, steps: Sequence[HeadScaling | DirectionAblation | Steering]) -> Self:
        """Return steps with their digest."""
        content = [step.model_dump(mode="json", exclude={"origin"}) for step in steps]
        return cls(digest=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(), steps=list(steps))

    @property
    def choices(self) -> tuple[str, ...]:
        """The positions that steps act at, each once, sorted; `all` needs no mask and is left out."""
        return tuple(sorted({step.positions for step in self.steps} - {"all"}))


def vector_text(vector_D: npt.NDArray[np.float32]) -> str:
    """Return a vector as it stands in a document."""
    return base64.b64encode(np.ascontiguousarray(vector_D, dtype="<f4").tobytes()).decode("ascii")


def vector_of(text: str) -> npt.NDArray[np.float32]:
    """Return float32 [D], the vector of a document."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)


class ChangedDocument(Document):
    """Base of documents about what a model computed, changed or not; without changes their bytes do not speak of it."""

    interventions: Interventions | None = Field(default=None, description="what was changed while the model ran")

    @model_serializer(mode="wrap")
    def _only_changes(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        body: dict[str, object] = serialize(self)
        if body.get("interventions") is None:
            body.pop("interventions", None)
        return body

    @property
    def changes(self) -> str | None:
        """The digest of the interventions, None without any."""
        return self.interventions.digest if self.interventions is not None else None


class CaptureDocument(ChangedDocument):
    """`captures/<model>/<capture>.json`: which vectors are computed, by which model."""

    capture: str
    alias: str
    model: ModelIdentity
    arrays: list[ArrayIdentity]
    dtype: Dtype
    passes: PassSettings
    cliffstore_version: str


class Receipt(Document):
    """`receipts/<capture>/unit-<n>.json`: its existence commits the unit."""

    capture: str
    plan: str
    unit: int
    row_start: int
    n_rows: int
    n_examples: int
    n_tokens: int
    digests: dict[str, str] = Field(description="sha256 of the rows of each array, by '<site>/<layer>'")
    bytes: int = Field(description="bytes of vectors before compression")
    attempt: int
    worker: str
    seconds: float
    cliffstore_version: str


class UnitError(Document):
    """`receipts/<capture>/unit-<n>.error.json`: why a unit is not extracted, or has no scores."""

    capture: str = Field(description="`scores` where a model ran for scores alone, `scores/<probe>` behind extraction")
    unit: int
    attempt: int
    worker: str
    error: str


class ScoreReceipt(Document):
    """`scores/<probe>/unit-<n>.json`: commits the scores of one unit."""

    probe: str
    probe_digest: str
    unit: int
    n_tokens: int
    digest: str = Field(description="sha256 of the table's bytes")
    attempt: int
    worker: str
    seconds: float
    cliffstore_version: str


class CellMetrics(Part):
    """How a probe of one position and layer fares. Everything but `cv_` and `test_` is on validation examples."""

    positions: str = Field(description="the place: decision, a distance from it such as -1, or a segment")
    layer: int
    c: float | None = Field(default=None, description="inverse strength of the L2 penalty of a logistic regression")
    shrinkage: float | None = Field(default=None, description="share of the diagonal in the covariance of an LDA")
    cv_auroc: float | None = Field(default=None, description="mean AUROC over folds of the training part")
    cv_auroc_sd: float | None = Field(default=None, description="standard deviation over these folds")
    n_train: int = Field(description="samples: examples, or their tokens where the place is a segment")
    n_validation: int
    auroc: float
    auroc_low: float = Field(description="lower end of the 95 % interval: bootstrap over prompts")
    auroc_high: float
    accuracy: float = Field(description="of score > 0")
    recall_at_1_fpr: float = Field(description="largest recall at a false positive rate of at most 1 %")
    calibration_error: float = Field(description="ECE over 10 bins of equal mass, classes weighted as in the fit")
    log_loss: float = Field(description="classes weighted as in the fit")
    n_test: int = 0
    test_auroc: float | None = None
    test_auroc_low: float | None = None
    test_auroc_high: float | None = None
    test_accuracy: float | None = None
    test_recall_at_1_fpr: float | None = None
    test_calibration_error: float | None = None
    test_log_loss: float | None = None


class ProbeDocument(ChangedDocument):
    """`probes/<name>/probe.json`, beside `probe.safetensors` with `w` float32 [d_model] and `b` float32 [1]."""

    name: str
    kind: Literal["logistic", "mean_difference", "lda", "imported"]
    alias: str
    capture: str
    model: ModelIdentity
    dtype: Dtype
    site: str
    layer: int
    positions: str = Field(description="the place that was chosen: decision, a distance such as -1, or a segment")
    label: str | None
    positive: str | None
    where: str | None
    test_where: str | None
    test_store: str | None = None
    class_weight: Literal["balanced", "none"] = "balanced"
    seed: int
    c: float | None
    shrinkage: float | None = None
    n_train: int
    n_validation: int
    n_test: int
    shuffled_auroc: float | None = Field(
        description="mean validation AUROC over fits on shuffled labels; .5 is expected"
    )
    bag_auroc: float | None = Field(
        default=None, description="validation AUROC of logistic regression on the counts of the tokens up to there"
    )
    bag_test_auroc: float | None = None
    cells: list[CellMetrics] = Field(description="every position and layer that was tried; none where imported as is")
    digest: str = Field(description="sha256 of w and b")
    inputs: str = Field(description="sha256 over settings, captures, and rows and labels of all examples used")
    file_digest: str = Field(description="sha256 of the bytes of probe.safetensors")
    cliffstore_version: str

    @property
    def chosen(self) -> CellMetrics | None:
        """The figures of the probe's own position and layer; None where it was imported as it is."""
        wanted = (self.positions, self.layer)
        return next((cell for cell in self.cells if (cell.positions, cell.layer) == wanted), None)


class CliffsDocument(Document):
    """`cliffs/<probe>.json`, beside `cliffs/<probe>.parquet`."""

    probe: str
    probe_digest: str
    capture: str
    scores: str = Field(description="sha256 over the digests of the scores that they were made from")
    plateau: str = Field(default="mean", description="statistic over the thinking: mean, median, max or q0.9")
    window: str = Field(default="all", description="which thinking tokens it is over: all, last:32 or first:50%")
    examples: int
    partial_thinking: int = Field(description="examples whose plateau is that of a part of their thinking")
    digest: str = Field(description="sha256 of the table's bytes")
    cliffstore_version: str


class SelectionDocument(Document):
    """`selections/<name>.json`, beside `selections/<name>.parquet`: what it takes to choose again."""

    name: str
    strategy: str
    top: str
    ascending: bool = False
    seed: int = Field(default=0, description="of the strategies random and rules")
    where: str | None
    phrases: list[str] | None = Field(default=None, description="what refusals begin with; null for the built-in ones")
    min_plateau: float | None = Field(default=None, description="a logit")
    quotas: list[str] = Field(default_factory=list, description="such as source=50% or label:1=500")
    dedupe: list[str] = Field(default_factory=list, description="such as prompt:0.8 or activation:0.98")
    probe: str | None = Field(description="null where neither cliffs nor activations were asked for")
    probe_digest: str | None
    capture: str | None
    cliffs_digest: str | None = Field(default=None, description="of the table of cliffs, where any may have been read")
    candidates: int
    examples: int = Field(description="fewer than `top` means where quotas and near-duplicates leave fewer")
    left_out: dict[str, int] = Field(
        default_factory=dict,
        description="how many examples were no candidates (without_value, without_response, refusal, "
        "below_min_plateau, without_vector), or were passed over before the last that was chosen (over_quota, "
        "near_duplicate_prompt, near_duplicate_activation)",
    )
    digest: str = Field(description="sha256 of the table's bytes")
    cliffstore_version: str


class GenerationDocument(Document):
    """`generation.json`, in a folder beside the output: what is generated, and how. Create-only, never changed."""

    output: str = Field(description="name of the file")
    settings: dict[str, str | int | float | bool | None] = Field(description="everything that bears on the texts")
    work: str = Field(description="digest of ids and prompts, in their order")
    inputs: list[str]
    model: ModelIdentity | None = Field(description="null where an endpoint is asked")
    examples: int
    units: int = Field(description="batches, each of which becomes one piece")
    cliffstore_version: str


class GenerationReceipt(Document):
    """`complete.json`: the output is whole, and its pieces are gone."""

    output: str
    digest: str = Field(description="sha256 of the output's bytes")
    rows: int
    tokens: int = Field(description="tokens that were generated for them")
    with_thinking: int
    finish: dict[str, int] = Field(description="rows by how they ended: stop, length, thinking")


class HeadsDocument(Document):
    """`heads/<name>.json`, beside `heads/<name>.parquet`: what was measured of heads, on what, and how."""

    name: str
    kind: Literal["direct", "knockout"]
    probe: str
    probe_digest: str
    capture: str = Field(description="of the probe")
    site: str = Field(description="what the probe reads")
    layer: int
    source: Literal["z", "model"] = Field(description="stored z, or the model itself")
    where: str | None
    group_by: str | None = None
    positions: str = Field(description="direct: distances from the decision; knockout: template, all or decision")
    ablation: Literal["zero", "mean"] | None = Field(default=None, description="what replaces z; null for direct")
    frozen: list[str] = Field(default_factory=list, description="norms frozen at the token's own scale")
    heads: list[str] | None = Field(default=None, description="layer:head of a shortlist; null for all heads")
    controls: int = Field(default=0, description="random sets, layer-matched, beside the shortlist as a set")
    resamples: int
    level: float
    seed: int
    examples: int
    score: float = Field(description="mean score at the decision, or over all positions measured")
    digest: str = Field(description="sha256 of the table's bytes")
    cliffstore_version: str


class ExperimentDocument(Document):
    """`experiments/<name>.json`, beside `experiments/<name>.parquet`: which heads were switched off, on what, how."""

    name: str
    inputs: str = Field(description="sha256 over everything that bears on the figures")
    probe: str
    probe_digest: str
    model: ModelIdentity
    dtype: str
    trace: str = Field(description="figures of heads by which they were chosen")
    trace_digest: str
    harmful_where: str
    benign_where: str
    traced: int = Field(description="harmful examples for tracing; none of their prompts is among the others")
    harmful: int = Field(description="harmful examples that were measured")
    benign: int
    thinking: list[str] = Field(description="fixed, regenerated")
    positions: str = Field(description="where heads are off")
    scale: float = Field(description="what their z is multiplied by")
    keep_norm: bool
    heads: dict[str, list[str]] = Field(description="share in percent -> layer:head, the most negative ones first")
    n_heads: int = Field(description="heads of the model: what shares are of")
    random: int = Field(description="layer-matched random sets for each share")
    random_generated: int = Field(description="of which so many have generated text, too")
    refusal_openers: dict[str, int] = Field(description="text -> its first token")
    compliance_openers: dict[str, int]
    benign_text: str | None = Field(description="column whose text perplexity is of; null where there is none")
    new_tokens: int
    thinking_tokens: int
    resamples: int
    level: float
    seed: int
    pieces: dict[str, str] = Field(description="what was found of examples, by condition: name -> sha256 of its bytes")
    digest: str = Field(description="sha256 of the table's bytes")
    cliffstore_version: str


DOCUMENTS: dict[str, type[Document]] = {
    "manifest": Manifest,
    "place": PlanPlace,
    "plan": PlanDocument,
    "capture": CaptureDocument,
    "receipt": Receipt,
    "unit_error": UnitError,
    "score_receipt": ScoreReceipt,
    "probe": ProbeDocument,
    "cliffs": CliffsDocument,
    "selection": SelectionDocument,
    "generation": GenerationDocument,
    "generation_receipt": GenerationReceipt,
    "heads": HeadsDocument,
    "experiment": ExperimentDocument,
}

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
