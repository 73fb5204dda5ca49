"""Where the models and corpora of a store are, of which the store itself keeps names and digests only.

What is found is believed only where its digests are those that the store holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cliffstore.config import ExtractConfig
from cliffstore.errors import ConfigError, CorpusError, ModelError, StoreError
from cliffstore.model.identity import ModelSource, find_model
from cliffstore.model.sites import arrays_of, parse_layers
from cliffstore.records import FINAL_NORM
from cliffstore.run.captures import draft_capture
from cliffstore.run.planned import Planned
from cliffstore.run.planning import plan_corpus
from cliffstore.run.progress import Reporter
from cliffstore.run.shipped_model import is_shipped, shipped_model
from cliffstore.schema import CaptureDocument, ModelIdentity, PlanDocument, ProbeDocument, model_key
from cliffstore.store.objects import ObjectStore
from cliffstore.store.reader import StoreReader, compact_ranges


@dataclass(frozen=True, slots=True)
class Origins:
    """What the user says of where things are, and how to compute.

    Attributes
    ----------
    models, adapters : where to look before the names that the store keeps
    corpus : files in the place of those that a plan was made of
    """

    models: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    corpus: tuple[str, ...] = ()
    executor: str = "auto"
    device: str = "auto"
    allow_nonfinite: bool = False


@dataclass(frozen=True, slots=True)
class _Found:
    model: str
    adapter: str | None
    source: ModelSource


def extraction_of(
    objects: ObjectStore, capture: CaptureDocument, origins: Origins, reporter: Reporter
) -> ExtractConfig:
    """Return the configuration that extracts units of a capture, over the plans of the store.

    Raises
    ------
    ModelError
        Its model is not found.
    """
    found = _find(capture.model, capture.dtype, f"capture {capture.capture}", origins, reporter)
    layers = sorted({array.layer for array in capture.arrays if array.site != FINAL_NORM})
    config = _config(objects, found, origins, capture.dtype, capture.alias).model_copy(
        update={
            "layers": compact_ranges(layers) if layers else "all",
            "sites": tuple(dict.fromkeys(array.site for array in capture.arrays)),
        }
    )
    identity = found.source.identity
    arrays = arrays_of(identity, config.sites, parse_layers(config.layers, identity.n_layers))
    draft = draft_capture(config, found.source, arrays, capture.interventions)
    if draft.name != capture.capture:
        raise StoreError(f"capture {capture.capture} was made by a cliffstore that names captures in another way")
    return config


def scoring_of(objects: ObjectStore, probe: ProbeDocument, origins: Origins, reporter: Reporter) -> ExtractConfig:
    """Return the configuration that scores units with a probe while the model runs. Errors as `extraction_of`."""
    found = _find(probe.model, probe.dtype, f"probe {probe.name}", origins, reporter)
    return _config(objects, found, origins, probe.dtype, probe.alias).model_copy(update={"probe": (probe.name,)})


def source_of(capture: CaptureDocument, origins: Origins, reporter: Reporter) -> ModelSource:
    """Return the model of a capture. Raises `ModelError` where it is not found."""
    return _find(capture.model, capture.dtype, f"capture {capture.capture}", origins, reporter).source


def source_of_probe(probe: ProbeDocument, origins: Origins, reporter: Reporter) -> ModelSource:
    """Return the model that a probe is of. Errors as `extraction_of`."""
    return _find(probe.model, probe.dtype, f"probe {probe.name}", origins, reporter).source


def tables_again(reader: StoreReader, plan: PlanDocument, origins: Origins, reporter: Reporter) -> Planned:
    """Make the tables of a plan a second time, in a local folder, from the corpus that it was made of.

    Raises
    ------
    CorpusError
        The corpus is not there, or no longer what it was.
    ModelError
        No model is found whose tokenizer and template are those of the store.
    """
    recipe, tokenizer = plan.corpus, reader.manifest.tokenizer
    failures: list[str] = []
    for name, source in _tokenizers(reader, origins, reporter, failures):
        max_tokens = plan.settings.get("max_tokens")
        config = ExtractConfig(
            corpus=origins.corpus or tuple(recipe.inputs),
            model=name,
            store=reader.url,
            map=recipe.map,
            where=recipe.where,
            limit=recipe.limit,
            positions=str(plan.settings["positions"]),
            max_tokens=max_tokens if isinstance(max_tokens, int) else None,
            think_open=tokenizer.think_open,
            think_close=tokenizer.think_close,
            template_date=tokenizer.template_date,
            append=True,
            storage_options=reader.objects.storage_options,  # type: ignore[arg-type]  # as they were validated
        )
        try:
            return plan_corpus(config, source, reader, 1, reporter, again=plan.plan)
        except StoreError as error:
            failures.append(f"{name}: {error}")
        except (CorpusError, ConfigError) as error:
            raise CorpusError(f"{error}; say where the corpus is with --corpus") from None
    raise ModelError(f"no model with the tokenizer of the store ({'; '.join(failures)}): say where it is with --model")


def _tokenizers(
    reader: StoreReader, origins: Origins, reporter: Reporter, failures: list[str]
) -> Iterator[tuple[str, ModelSource]]:
    """Yield models that may have the tokenizer of a store."""
    named = [place for one in reader.captures() for place in places_named(one.model.name, one.model.revision)]
    named += places_named(reader.manifest.tokenizer.name, None)
    for name in dict.fromkeys([*origins.models, *named]):
        try:
            yield name, find_model(name, None, reporter.notice)
        except ModelError as error:
            failures.append(str(error))


def _find(model: ModelIdentity, dtype: str, whose: str, origins: Origins, reporter: Reporter) -> _Found:
    """Look for a model by its identity. Raises `ModelError` where none of those that are named is it."""
    wanted = model_key(model, dtype)
    failures: list[str] = []
    adapters: list[str | None] = [None]
    if model.adapter:
        adapters = [*origins.adapters, *places_named(model.adapter.name, None)]
    for name in dict.fromkeys([*origins.models, *places_named(model.name, model.revision)]):
        for adapter in dict.fromkeys(adapters):
            try:
                source = find_model(name, model.revision, reporter.notice, adapter)
            except ModelError as error:
                failures.append(str(error))
                continue
            if model_key(source.identity, dtype) == wanted:
                return _Found(name, adapter, source)
            failures.append(f"model {name}{f' with {adapter}' if adapter else ''} is another one")
    tried = f" ({'; '.join(failures)})" if failures else ""
    over = " and its adapter with --adapter" if model.adapter else ""
    raise ModelError(
        f"{whose} needs the model {model.name!r}, which is not found{tried}: say where it is with --model{over}"
    )


def places_named(name: str, revision: str | None) -> list[str]:
    """Return where something is by the name that a store keeps.

    That is a name on the hub, a folder that is there, or the model that is installed; but not the last part of a path
    somewhere else.
    """
    if revision is not None or "/" in name or Path(name).expanduser().exists():
        return [name]
    return [str(shipped_model())] if is_shipped(name) else []


def _config(objects: ObjectStore, found: _Found, origins: Origins, dtype: str, alias: str) -> ExtractConfig:
    return ExtractConfig.model_validate(
        {
            "model": found.model,
            "adapter": found.adapter,
            "revision": found.source.revision,
            "store": objects.url,
            "dtype": dtype,
            "model_alias": alias,
            "executor": origins.executor,
            "device": origins.device,
            "allow_nonfinite": origins.allow_nonfinite,
            "yes": True,
            "storage_options": objects.storage_options,
        }
    )
