"""What was found in activations: probes, cliffs, selections, heads, experiments; and generations beside corpora."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
)

from cliffstore.schema.document import Document, Dtype, Part
from cliffstore.schema.interventions import ChangedDocument
from cliffstore.schema.models import ModelIdentity


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
