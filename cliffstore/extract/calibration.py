"""Which kind and size of forward pass to use, for one model, one corpus and one machine.

Candidates are timed on passes of the corpus's own shape (lengths and shared prefixes; the tokens are random). The time
that this takes is held to a small part of the expected work: a small job is decided by counting tokens instead. The
choice is recorded in the capture, so a resumed run makes the same passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cliffstore.errors import ExtractionError
from cliffstore.extract.memory import free_memory, is_out_of_memory
from cliffstore.extract.passes import PaddedPasses, Pass, TreePasses, first_owners
from cliffstore.extract.tree import UnitExample, build_tree
from cliffstore.extract.trial import make_examples, time_passes
from cliffstore.schema import PassSettings

if TYPE_CHECKING:
    from cliffstore.model.capture import SiteCapture

Kind = Literal["tree", "padded"]

SIZES: dict[str, dict[Kind, tuple[int, ...]]] = {
    "cpu": {"tree": (256, 512), "padded": (512, 1_024)},
    "accelerator": {"tree": (4_096, 16_384), "padded": (16_384, 65_536)},
}
"""Tokens of a pass that are tried; the last is the one that is used untried."""

_SHARE_OF_WORK = 0.03
_PROBE_TOKENS = {"cpu": 128, "accelerator": 4_096}
_TREE_COST = 1.1
"""Untried, a node of a tree is taken to cost this many padded tokens, for its masks and its path."""


@dataclass(frozen=True, slots=True)
class CorpusShape:
    """How long the examples of a plan are, and what they share: a sample, and totals.

    Attributes
    ----------
    lengths, shared : of consecutive examples of one unit, as `make_examples` takes them
    n_nodes : nodes of all units that are to be computed
    n_padded : tokens of the same in padded passes, without padding
    longest : tokens of the longest example
    """

    lengths: tuple[int, ...]
    shared: tuple[int, ...]
    n_nodes: int
    n_padded: int
    longest: int = 0


@dataclass(frozen=True, slots=True)
class PassWish:
    """What the user asks of passes; None leaves it to the calibration."""

    kind: Kind | None = None
    tokens: int | None = None
    held: PassSettings | None = None


@dataclass(frozen=True, slots=True)
class Timed:
    """One way to make passes, and the seconds that the whole job would take with it; None where memory ran out."""

    kind: Kind
    tokens: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """What calibration chose and why; `seconds` is the expected compute time of the job on this one worker."""

    kind: Kind
    tokens: int
    seconds: float
    tried: tuple[Timed, ...]

    def describe(self, shape: CorpusShape) -> str:
        """Return one line for the user."""
        words = {"tree": "nodes of the prefix tree", "padded": "padded tokens"}
        chosen = f"passes of {self.tokens:,} {words[self.kind]}"
        if not self.tried:
            return f"{chosen} ({shape.n_nodes:,} nodes against {shape.n_padded:,} tokens side by side; not timed)"
        timed = ", ".join(f"{one.kind} {one.tokens:,}: {_in_words(one.seconds)}" for one in self.tried)
        return f"{chosen} (expected time of the job: {timed})"


def _in_words(seconds: float | None) -> str:
    return "out of memory" if seconds is None else f"{seconds:,.1f} s"


def calibrate(capture: SiteCapture, wish: PassWish, shape: CorpusShape) -> Calibration:
    """Choose passes for a job.

    Parameters
    ----------
    capture : with its matrix products chosen, checked for passes over trees
    wish : what is not None is not chosen

    Raises
    ------
    ExtractionError
        Not even one token fits into the device's memory.
    """
    place = "cpu" if capture.device.type == "cpu" else "accelerator"
    vocabulary = int(capture.model.config.get_text_config().vocab_size)
    examples = make_examples(shape.lengths, shape.shared, vocabulary, n_choices=len(capture.choices))
    rate = _token_rate(capture, examples, _PROBE_TOKENS[place])
    candidates = list(_candidates(capture, wish, place))
    if len(candidates) > 1:
        cost = sum(2 * tokens for _, tokens in candidates) / rate
        if cost <= _SHARE_OF_WORK * shape.n_nodes / rate:
            tried = [
                Timed(kind, tokens, _job_seconds(capture, examples, kind, tokens, shape)) for kind, tokens in candidates
            ]
            fitting = [(one.seconds, one) for one in tried if one.seconds is not None]
            if fitting:
                seconds, best = min(fitting, key=lambda pair: pair[0])
                return Calibration(best.kind, best.tokens, seconds, tuple(tried))
    kind = _by_counting([kind for kind, _ in candidates], shape)
    tokens = [tokens for one, tokens in candidates if one == kind][-1]
    return Calibration(kind, tokens, (shape.n_nodes if kind == "tree" else shape.n_padded) / rate, ())


def _candidates(capture: SiteCapture, wish: PassWish, place: str) -> Iterator[tuple[Kind, int]]:
    for kind, sizes in SIZES[place].items():
        if (kind == "tree" and not capture.over_trees) or (wish.kind is not None and wish.kind != kind):
            continue
        for tokens in sizes if wish.tokens is None else (wish.tokens,):
            yield kind, tokens


def _by_counting(kinds: Sequence[Kind], shape: CorpusShape) -> Kind:
    costs: dict[Kind, float] = {"tree": shape.n_nodes * _TREE_COST, "padded": float(shape.n_padded)}
    return min(kinds, key=lambda kind: costs[kind])


def _token_rate(capture: SiteCapture, examples: Sequence[UnitExample], tokens: int) -> float:
    """Return tokens a second of one small padded pass, the second of two; a smaller one where memory runs out."""
    some: list[UnitExample] = []
    for example in examples:
        if sum(len(one.token_ids) for one in some) < tokens:
            some.append(example.up_to(tokens))
    passes = list(PaddedPasses(some, len(some) * tokens))
    if _seconds(capture, passes) is not None and (seconds := _seconds(capture, passes)) is not None:
        return passes[0].input_ids_BT.size / seconds
    if tokens == 1:
        raise ExtractionError(f"a forward pass of one token does not fit into the memory of {capture.device}")
    return _token_rate(capture, examples, tokens // 2)


def _seconds(capture: SiteCapture, passes: Sequence[Pass]) -> float | None:
    """Return the seconds that passes take, None where memory runs out."""
    try:
        return time_passes(capture, passes)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory(capture.device.type)
    return None


def _job_seconds(
    capture: SiteCapture, examples: Sequence[UnitExample], kind: Kind, tokens: int, shape: CorpusShape
) -> float | None:
    """Time a pass from the middle of the sample, and scale it to the job by the positions that are computed.

    None where it does not fit into memory.
    """
    if kind == "tree":
        passes = list(TreePasses(build_tree(examples), tokens))[:2]
        if _seconds(capture, passes[:-1]) is None:  # the last continues the path of the one before
            return None
        timed = passes[-1]
    else:
        passes = list(PaddedPasses(first_owners(examples), tokens))
        timed = passes[len(passes) // 2]
    seconds = _seconds(capture, [timed])
    if seconds is None:
        return None
    computed = sum(one.input_ids_BT.size for one in passes)
    return seconds / timed.input_ids_BT.size * computed / max(sum(len(one.rows_N) for one in passes), 1) * shape.n_nodes
