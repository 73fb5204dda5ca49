"""Which tokenizer and template a store was made with, and whether a run's are the same."""

from __future__ import annotations

from cliffstore.config import ExtractConfig
from cliffstore.corpus.template import Renderer, ThinkMarkers, tokenizer_digest
from cliffstore.errors import ConfigError, StoreError
from cliffstore.model.identity import ModelSource
from cliffstore.schema import Manifest, TokenizerIdentity


def tokenizer_identity(source: ModelSource, renderer: Renderer, template_date: str) -> TokenizerIdentity:
    """Return what a store keeps of tokenizer and template."""
    return TokenizerIdentity(
        name=source.identity.name,
        digest=tokenizer_digest(renderer.tokenizer),
        template_digest=renderer.digest,
        think_open=renderer.markers.open,
        think_close=renderer.markers.close,
        template_date=template_date,
    )


def check_tokenizer(url: str, manifest: Manifest, identity: TokenizerIdentity) -> None:
    """Raise `StoreError` unless the store was made with the same tokenizer and template."""
    held = manifest.tokenizer
    check_tokens(url, manifest, identity.digest, identity.name)
    if held.template_digest != identity.template_digest:
        raise StoreError(
            f"store {url} was made with another chat template, thinking markers or template date "
            f"(markers {held.think_open!r} {held.think_close!r}, date {held.template_date}): "
            "give the same, or another --store"
        )


def check_tokens(url: str, manifest: Manifest, digest: str, name: str) -> None:
    """Raise `StoreError` unless the store was made with this tokenizer, whatever the template."""
    if manifest.tokenizer.digest != digest:
        raise StoreError(
            f"store {url} was made with another tokenizer (that of {manifest.tokenizer.name}), not that of {name}: "
            "give another --store"
        )


def think_markers(config: ExtractConfig) -> ThinkMarkers | None:
    """Return the markers that the user gave, None where the template's own are to be found."""
    if config.think_open is None and config.think_close is None:
        return None
    if config.think_open is None or config.think_close is None:
        raise ConfigError("give --think-open and --think-close together")
    if not config.think_close.strip():
        raise ConfigError("think-close is white space alone: give the text that ends thinking, such as </think>")
    return ThinkMarkers(config.think_open, config.think_close)
