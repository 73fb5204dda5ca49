"""Linear probes: logistic regression on stored vectors, layer by layer, the layer chosen on validation alone.

Standardisation is folded into w and b, so that score = w·h + b works on a stored vector as it is. Every fit comes
with two controls: AUROC on shuffled labels, and, where asked for, on a second set of examples that took no part in
fitting or in choosing the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from cliffstore import __version__
from cliffstore.analyze.split import Split, grouped_split
from cliffstore.config import parse_ranges
from cliffstore.errors import ProbeError
from cliffstore.schema import LayerMetrics, ProbeDocument
from cliffstore.store.catalog import Catalog
from cliffstore.store.probes import ProbeWeights
from cliffstore.store.reader import StoreReader, compact_ranges
from cliffstore.store.writer import capture_specs

SHUFFLES = 10
_MAX_ITERATIONS = 2_000
_TRUE_FALSE = ({"0", "1"}, {"false", "true"})

Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """What to fit. `label` is a column or SQL expression over `examples`; `where` and `test_where` are conditions."""

    name: str
    label: str = "label"
    positive: str | None = None
    site: str = "resid_post"
    layers: str = "all"
    model: str | None = None
    where: str | None = None
    test_where: str | None = None
    c: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Examples at their decision position: row int64 [N], y 0 or 1 [N], the prompt of each."""

    rows_N: npt.NDArray[np.int64]
    y_N: npt.NDArray[np.int64]
    prompts: tuple[str, ...]


def fit_probe(catalog: Catalog, settings: ProbeSettings, notice: Notice) -> tuple[ProbeDocument, ProbeWeights]:
    """Fit a probe for each layer and keep the layer with the best validation AUROC (equal AUROC: the lower log loss).

    Raises
    ------
    ProbeError
        One class only, too few examples, an unknown label.
    StoreError
        A layer or site is not captured.
    """
    reader = catalog.reader
    alias = settings.model or reader.default_alias()
    layers = captured_layers(reader, settings.site, alias, settings.layers)
    labels, positive = _read_labels(catalog, settings, settings.where, notice)
    split = grouped_split(labels.y_N, labels.prompts, settings.seed)
    test = _test_rows(catalog, settings, labels, positive, notice)
    fits: list[tuple[LayerMetrics, ProbeWeights]] = []
    for layer in layers:
        vectors_ND = reader.vectors(settings.site, layer, labels.rows_N, alias)
        weights = fit_logistic(vectors_ND[split.train], labels.y_N[split.train], settings.c)
        held_out = (vectors_ND[split.validation], labels.y_N[split.validation])
        unseen = (reader.vectors(settings.site, layer, test.rows_N, alias), test.y_N) if test else None
        fits.append((_metrics(layer, weights, held_out, unseen), weights))
    best, weights = max(fits, key=lambda fit: (fit[0].auroc, -fit[0].log_loss, -fit[0].layer))
    capture, _ = reader.find_array(settings.site, best.layer, alias)
    vectors_ND = reader.vectors(settings.site, best.layer, labels.rows_N, alias)
    document = ProbeDocument(
        name=settings.name,
        kind="logistic",
        alias=alias,
        capture=capture.capture,
        model=capture.model,
        dtype=capture.dtype,
        site=settings.site,
        layer=best.layer,
        positions="decision",
        label=settings.label,
        positive=positive,
        where=settings.where,
        test_where=settings.test_where,
        seed=settings.seed,
        c=settings.c,
        n_train=len(split.train),
        n_validation=len(split.validation),
        n_test=len(test.rows_N) if test else 0,
        shuffled_auroc=shuffled_auroc(vectors_ND, labels.y_N, split, settings.c, settings.seed),
        layers=[metrics for metrics, _ in fits],
        digest=weights.digest,
        file_digest=weights.file_digest,
        cliffstore_version=__version__,
    )
    return document, weights


def fit_logistic(h_ND: npt.NDArray[np.float32], y_N: npt.NDArray[np.int64], c: float) -> ProbeWeights:
    """Fit L2 logistic regression on standardised vectors, both classes weighted equally.

    With z = (h - mean) / std and logit v·z + a, the returned w = v / std and b = a - w·mean give the same logit on h.
    """
    scaler = StandardScaler().fit(h_ND.astype(np.float64))
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=_MAX_ITERATIONS)
    model.fit(scaler.transform(h_ND.astype(np.float64)), y_N)
    w_D = model.coef_[0] / scaler.scale_
    b = float(model.intercept_[0] - w_D @ scaler.mean_)
    return ProbeWeights(w_D.astype(np.float32), b)


def shuffled_auroc(
    h_ND: npt.NDArray[np.float32], y_N: npt.NDArray[np.int64], split: Split, c: float, seed: int
) -> float:
    """Return the mean validation AUROC of probes fitted on shuffled labels: .5 unless the split leaks."""
    found = []
    for shuffle in range(SHUFFLES):
        shuffled_N = np.random.default_rng([seed, shuffle]).permutation(y_N)
        train, validation = shuffled_N[split.train], shuffled_N[split.validation]
        if len(set(train.tolist())) == 2 and len(set(validation.tolist())) == 2:
            scores = fit_logistic(h_ND[split.train], train, c).scores(h_ND[split.validation])
            found.append(float(roc_auc_score(validation, scores)))
    return float(np.mean(found)) if found else 0.5


def captured_layers(reader: StoreReader, site: str, alias: str, text: str) -> list[int]:
    """Return the layers that `text` (`all`, `0-29`, `8,16`) names among those captured.

    Raises
    ------
    ProbeError
        A layer is not captured, or nothing of the site is.
    """
    held = sorted(
        spec.layer
        for capture in reader.captures()
        for spec in capture_specs(capture)
        if (spec.alias, spec.site) == (alias, site)
    )
    if not held:
        reader.find_array(site, -1, alias)  # raises, and says what is captured
    if text.strip() == "all":
        return held
    ranges = parse_ranges(text)
    absent = [layer for one in ranges for layer in (one.start, one.stop - 1) if layer not in held]
    if absent:
        raise ProbeError(f"layer {absent[0]} of {site} is not in the store; it has: {compact_ranges(held)}")
    return [layer for layer in held if any(layer in one for one in ranges)]


def _read_labels(
    catalog: Catalog, settings: ProbeSettings, where: str | None, notice: Notice
) -> tuple[LabelledRows, str]:
    table = _stored_only(_select(catalog, settings, where), where, notice)
    unlabelled = table["label"].null_count
    if unlabelled:
        notice(f"{unlabelled} examples have no {settings.label} and are left out")
    values = sorted({str(value) for value in table["label"].to_pylist() if value is not None})
    positive = _positive(settings, values)
    rows_N = table["row"].to_numpy()
    stored_N = _extracted(catalog.reader, settings, rows_N)
    if not stored_N.all():
        notice(f"{int((~stored_N).sum())} examples are not extracted yet and are left out")
    keep = stored_N & np.array([value is not None for value in table["label"].to_pylist()], dtype=bool)
    y_N = np.array([int(value == positive) for value in table["label"].to_pylist()], dtype=np.int64)
    prompts = np.array(table["prompt"].to_pylist(), dtype=object)
    if len(set(y_N[keep].tolist())) < 2:
        raise ProbeError(_one_class(settings, where, values, int(keep.sum())))
    return LabelledRows(rows_N[keep], y_N[keep], tuple(prompts[keep].tolist())), positive


def _select(catalog: Catalog, settings: ProbeSettings, where: str | None) -> pa.Table:
    condition = f"WHERE ({where})" if where else ""
    return catalog.arrow(
        f"SELECT e.id, e.prompt, CAST(e._label AS VARCHAR) AS label, t.row FROM "
        f"(SELECT *, ({settings.label}) AS _label FROM examples {condition}) e "
        "JOIN tokens t USING (example) WHERE t.to_decision = 0 ORDER BY e.id"
    )


def _stored_only(table: pa.Table, where: str | None, notice: Notice) -> pa.Table:
    """Leave out examples whose decision position is not among the stored ones (`extract --positions`)."""
    unstored = table["row"].null_count
    if unstored and unstored == table.num_rows:
        chosen = f" where {where}" if where else ""
        raise ProbeError(
            f"no example{chosen} has a vector at its decision position, on which a probe is fitted: "
            "extract with `decision` among the --positions, into another --store"
        )
    if unstored:
        notice(f"{unstored} examples have no vector at their decision position and are left out")
    return table.filter(table["row"].is_valid())


def _extracted(reader: StoreReader, settings: ProbeSettings, rows_N: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    alias = settings.model or reader.default_alias()
    layer = captured_layers(reader, settings.site, alias, settings.layers)[0]
    capture, _ = reader.find_array(settings.site, layer, alias)
    return reader.extracted(capture.capture, rows_N)


def _positive(settings: ProbeSettings, values: Sequence[str]) -> str:
    if settings.positive is not None:
        if settings.positive not in values:
            raise ProbeError(f"--positive {settings.positive!r} is not a value of {settings.label}: {_shown(values)}")
        return settings.positive
    for pair in _TRUE_FALSE:
        if set(values) <= pair:
            return max(pair)
    raise ProbeError(f"{settings.label} has the values {_shown(values)}: say which one is the class with --positive")


def _shown(values: Sequence[str]) -> str:
    listed = ", ".join(repr(value) for value in values[:8])
    return f"{listed}, ... ({len(values)} in all)" if len(values) > 8 else listed or "none"


def _one_class(settings: ProbeSettings, where: str | None, values: Sequence[str], n: int) -> str:
    chosen = f" where {where}" if where else ""
    if not n:
        return f"no extracted example{chosen} has a {settings.label}"
    return f"{settings.label} has one class only{chosen} ({_shown(values)}, {n} examples): a probe needs two"


def _test_rows(
    catalog: Catalog, settings: ProbeSettings, labels: LabelledRows, positive: str, notice: Notice
) -> LabelledRows | None:
    if settings.test_where is None:
        return None
    test, _ = _read_labels(catalog, replace(settings, positive=positive), settings.test_where, notice)
    known = set(labels.prompts)
    unseen = np.array([prompt not in known for prompt in test.prompts], dtype=bool)
    if not unseen.all():
        notice(f"{int((~unseen).sum())} test examples have a prompt that the probe was fitted with and are left out")
    kept = LabelledRows(test.rows_N[unseen], test.y_N[unseen], tuple(p for p in test.prompts if p not in known))
    if len(set(kept.y_N.tolist())) < 2:
        raise ProbeError("--test-where leaves one class only: a test needs two")
    return kept


def _metrics(
    layer: int,
    weights: ProbeWeights,
    validation: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]],
    test: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None,
) -> LayerMetrics:
    """Measure a probe on vectors [N, D] and labels [N] that it was not fitted on."""
    scores_N, y_N = weights.scores(validation[0]).astype(np.float64), validation[1]
    tested = (weights.scores(test[0]), test[1]) if test else None
    return LayerMetrics(
        layer=layer,
        auroc=float(roc_auc_score(y_N, scores_N)),
        accuracy=float(np.mean((scores_N > 0) == y_N)),
        log_loss=float(np.mean(np.logaddexp(0, np.where(y_N == 1, -scores_N, scores_N)))),
        test_auroc=float(roc_auc_score(tested[1], tested[0])) if tested else None,
        test_accuracy=float(np.mean((tested[0] > 0) == tested[1])) if tested else None,
    )
