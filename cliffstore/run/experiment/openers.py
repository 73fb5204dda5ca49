"""First tokens of the words that refusals and answers begin with: what logit differences at the decision are of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cliffstore.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def first_tokens(tokenizer: PreTrainedTokenizerBase, openers: Sequence[str]) -> dict[str, int]:
    """Return opener -> its first token, as it stands at the beginning of an answer; unknown ones are left out.

    Raises
    ------
    ConfigError
        The tokenizer knows none of them.
    """
    found: dict[str, int] = {}
    for opener in openers:
        ids = tokenizer(opener, add_special_tokens=False)["input_ids"]
        if ids and ids[0] != tokenizer.unk_token_id:
            found[opener] = int(ids[0])
    if not found:
        raise ConfigError(f"the tokenizer has no token for any of the openers {', '.join(openers)}: give others")
    return found


def check_apart(refusing: dict[str, int], complying: dict[str, int]) -> None:
    """Raise `ConfigError` where refusals and answers have a first token in common: its logit would say nothing."""
    for opener, token in refusing.items():
        same = next((other for other, one in complying.items() if one == token), None)
        if same is not None:
            raise ConfigError(f"openers {opener!r} and {same!r} begin with the same token: leave one out")
