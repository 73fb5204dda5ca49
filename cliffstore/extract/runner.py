"""How a worker makes forward passes: chosen or adopted once, then run for one unit after the other.

Passes over trees are used only where they agree with the model as it was loaded. A pass that does not fit into memory
is divided, and smaller ones are made from then on.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from cliffstore.errors import ExtractionError, InterruptedRunError
from cliffstore.extract.calibration import CorpusShape, PassWish, calibrate
from cliffstore.extract.job import Prepared, WorkerSpec
from cliffstore.extract.memory import free_memory, is_out_of_memory
from cliffstore.extract.passes import Pass, Passes, plan_passes
from cliffstore.extract.sinks import NonFiniteError, UnitSink
from cliffstore.extract.tree import UnitExample
from cliffstore.extract.trial import as_tensors, disagreement
from cliffstore.model.capture import SiteCapture
from cliffstore.model.loader import load_model
from cliffstore.model.products import Products, choose_products, use_float32_products
from cliffstore.model.traits import length_dependent_above
from cliffstore.schema import PassSettings


class PassRunner:
    """Runs passes on a model. Loads the model when it is made.

    Parameters
    ----------
    name : of the worker, for notices
    """

    def __init__(self, spec: WorkerSpec, name: str) -> None:
        import torch

        self._spec, self._name = spec, name
        self._stop = threading.Event()
        self._notices: list[str] = []
        self._model = load_model(spec.source, spec.dtype, spec.device, gpus=spec.gpus)
        identity = spec.source.identity
        flex = all(parameter.is_cuda for parameter in self._model.parameters())
        with torch.inference_mode():
            self._capture = SiteCapture(
                self._model,
                spec.arrays,
                identity.n_layers,
                identity.n_heads,
                flex=flex,
                interventions=spec.interventions,
            )
        self._whole_above = length_dependent_above(self._model.config)
        self._products: Products = "native"
        self._disagreement: str | None = None
        self._checked = False
        self._most_tokens: int | None = None

    @property
    def capture(self) -> SiteCapture:
        """The model that passes run on."""
        return self._capture

    def stop(self) -> None:
        """Make running and later calls of `run` end at the next pass."""
        self._stop.set()

    def prepare(self, wish: PassWish, shape: CorpusShape) -> Prepared:
        """Choose how to make passes for a job of this shape; what is held by a capture already is not chosen again."""
        held = wish.held
        if held is not None:
            if wish.kind not in (None, held.kind) or wish.tokens not in (None, held.tokens):
                self._notices.append(
                    f"the capture was begun with --passes {held.kind} --pass-tokens {held.tokens} and goes on with them"
                )
            self.adopt(held)
            kind = held.kind if self._capture.over_trees else "padded"
            wish = replace(wish, kind=kind, tokens=held.tokens)
        else:
            self._use_products(choose_products(self._model))
            self._check()
            if wish.kind == "tree" and self._disagreement is not None:
                wish = replace(wish, kind="padded")
        self._warn_of_length(shape)
        found = calibrate(self._capture, wish, shape)
        passes = held or PassSettings(kind=found.kind, tokens=found.tokens, products=self._products)
        return Prepared(passes, found.seconds, found.describe(shape), self.drain_notices())

    def adopt(self, passes: PassSettings) -> None:
        """Make passes as a capture says; where this machine cannot, say so and use padded ones."""
        self._use_products(passes.products)
        self._check()  # padded passes are made with the same attention, where a model can be given it

    def run(self, examples: Sequence[UnitExample], passes: PassSettings, sink: UnitSink) -> NonFiniteError | None:
        """Run the passes of a unit; return where NaN or Inf was found, in the end."""
        found = self._run_all(examples, passes, sink, isolate=False)
        if found is not None and self._capture.over_trees:
            found = self._run_all(examples, passes, sink, isolate=True)  # only now it is known which tokens have it
        return found

    def drain_notices(self) -> tuple[str, ...]:
        """Return what the user must know, and forget it."""
        found, self._notices = tuple(self._notices), []
        return found

    def _run_all(
        self, examples: Sequence[UnitExample], passes: PassSettings, sink: UnitSink, *, isolate: bool
    ) -> NonFiniteError | None:
        for group in self._plan(examples, passes):
            for one in group:
                self._run_pass(group, one, sink, isolate)
        try:
            sink.check()
        except NonFiniteError as error:
            return error
        return None

    def _plan(self, examples: Sequence[UnitExample], passes: PassSettings) -> list[Passes]:
        return plan_passes(
            examples,
            passes.kind if self._capture.over_trees else "padded",
            min(passes.tokens, self._most_tokens or passes.tokens),
            chunk=self._capture.over_trees,
            whole_above=self._whole_above,
        )

    def _run_pass(self, passes: Passes, one: Pass, sink: UnitSink, isolate: bool) -> None:
        """Run one pass; where the device has too little memory, in parts, and smaller ones from then on."""
        if self._stop.is_set():
            raise InterruptedRunError("stopped")
        tokens = one.input_ids_BT.size
        parts = divide(passes, one) if self._most_tokens is not None and tokens > self._most_tokens else None
        if parts is None:  # else it was planned before memory ran out
            sink.begin(one)
            try:
                self._capture.run(as_tensors(one), sink.take, isolate=isolate)
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            parts = divide(passes, one)
            free_memory(self._capture.device.type)
            if parts is None:
                raise ExtractionError("a forward pass of one example or token does not fit into the device's memory")
            self._remember(tokens // 2)
        finer, ones = parts
        for part in ones:
            self._run_pass(finer, part, sink, isolate)

    def _remember(self, tokens: int) -> None:
        self._most_tokens = max(tokens, 1)
        self._notices.append(
            f"{self._name}: out of memory on {self._capture.device}: passes of at most {self._most_tokens:,} tokens "
            "from here on (--pass-tokens sets them)"
        )

    def _check(self) -> None:
        if self._checked:
            return
        self._checked = True
        self._disagreement = disagreement(self._capture, self._spec.dtype)
        if self._disagreement is not None:
            self._capture.leave_trees()
            self._notices.append(
                f"passes over prefix trees are off, padded ones are used, which are slower: {self._disagreement}"
            )

    def _use_products(self, products: Products) -> None:
        if products == self._products:
            return
        if products == "native":
            raise ExtractionError("a worker's matrix products cannot go back to native ones; start a new run")
        use_float32_products(self._model)
        self._products = products

    def _warn_of_length(self, shape: CorpusShape) -> None:
        if self._whole_above is not None and shape.longest > self._whole_above:
            self._notices.append(
                f"the corpus has examples of up to {shape.longest:,} tokens, and above {self._whole_above:,} this "
                "model's position encoding depends on the length of the whole example: a row that such an example "
                "shares with others holds what the model computes in the first of them"
            )


def divide(passes: Passes, one: Pass) -> tuple[Passes, Sequence[Pass]] | None:
    """Return smaller passes that do what `one` does, with what divides them further; None where there are none."""
    halves = passes.halve(one)
    if halves is not None:
        return passes, halves
    pieces = passes.in_pieces(one)
    return (pieces, list(pieces)) if pieces is not None else None
