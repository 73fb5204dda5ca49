"""Many runs in one process, without what each would do again: a suite of them then takes a third of the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cliffstore.model.identity import ModelSource


@contextmanager
def quick_runs() -> Iterator[None]:
    """Read and digest each tokenizer once, and plan in this process.

    Not for tests that change a tokenizer in its folder.
    """
    from cliffstore.run import planning, rendering, tokenizers

    loaded: dict[tuple[str, str | None], PreTrainedTokenizerBase] = {}
    load = rendering.load_tokenizer

    def load_once(source: ModelSource) -> PreTrainedTokenizerBase:
        key = (str(source.location), source.revision)
        if key not in loaded:
            loaded[key] = load(source)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "load_tokenizer", load_once)
        patch.setattr(tokenizers, "tokenizer_digest", lru_cache(tokenizers.tokenizer_digest))
        patch.setattr(planning, "available_cpus", lambda: 1)
        yield
