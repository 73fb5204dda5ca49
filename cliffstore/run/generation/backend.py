"""What generates: a model that runs here, with its renderer, or an endpoint; found and checked before any work."""

from __future__ import annotations

from dataclasses import dataclass

from cliffstore.corpus.template import Renderer, tokenizer_digest
from cliffstore.errors import ConfigError
from cliffstore.model.identity import ModelSource, find_model
from cliffstore.model.loader import load_tokenizer
from cliffstore.model.steps import ModelShape, check_fit
from cliffstore.publish.completions import Endpoint
from cliffstore.run.captures import choose_dtype
from cliffstore.run.executor import Executor, LocalExecutor
from cliffstore.run.generation.config import GenerateConfig
from cliffstore.run.generation.job import EndpointSpec, GenerationJob, ModelSpec
from cliffstore.run.interventions.files import read_interventions
from cliffstore.run.interventions.steps import resolve
from cliffstore.run.placement import check_placement, choose_executor
from cliffstore.run.progress import Reporter
from cliffstore.schema import Interventions

_SHAPES_TEXT = (
    "max_new_tokens", "temperature", "top_p", "top_k", "seed", "samples", "stop_at_thinking", "regenerate_thinking",
    "endpoint", "batch_size", "think_open", "think_close",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Backend:
    """What generates: a model here, with its renderer, or an endpoint."""

    source: ModelSource | None
    renderer: Renderer | None
    endpoint: Endpoint | None
    context: int | None
    interventions: Interventions | None = None

    @classmethod
    def of(cls, config: GenerateConfig, reporter: Reporter, interventions: Interventions | None) -> Backend:
        """Find the model. Raises `UserError` where something of it, or of the interventions, is wrong."""
        if config.endpoint is not None:
            if interventions is not None:
                raise ConfigError("interventions need a model that runs here, not an endpoint")
            return cls(None, None, Endpoint.check(config.endpoint, config.model, timeout=config.timeout), None)
        check_placement(config)
        source = find_model(config.model, config.revision, reporter.notice, config.adapter)
        longest = None if source.context is None else source.context - 1  # room for one token
        given = [most for most in (config.max_tokens, longest) if most is not None]
        renderer = Renderer(
            load_tokenizer(source),
            markers=config.markers,
            template_date=config.template_date,
            max_tokens=min(given, default=None),
            to_answer=True,
        )
        if config.intervene is not None:
            if interventions is not None:
                raise ConfigError("intervene and interventions both say what to change: leave one out")
            interventions = _read_interventions(config.intervene, config, source, reporter)
        elif interventions is not None:
            check_fit(interventions, _shape(source))
        return cls(source, renderer, None, source.context, interventions)

    def settings(self, config: GenerateConfig) -> dict[str, str | int | float | bool | None]:
        """Return what bears on the texts beside the prompts."""
        found = {name: getattr(config, name) for name in _SHAPES_TEXT}
        if self.endpoint is not None:
            return {**found, "endpoint": self.endpoint.url, "model": self.endpoint.model}
        assert self.source is not None
        assert self.renderer is not None
        identity = self.source.identity
        return {
            **found,
            "model": identity.name,
            "weights": identity.weights_digest or identity.revision,
            "configuration": identity.config_digest,
            "adapter": identity.adapter.digest if identity.adapter is not None else None,
            "dtype": choose_dtype(config, self.source),
            "tokenizer": tokenizer_digest(self.renderer.tokenizer),
            "template": self.renderer.digest,
            "interventions": self.interventions.digest if self.interventions is not None else None,
        }

    def executor(self, config: GenerateConfig) -> Executor[GenerationJob]:
        return LocalExecutor() if self.endpoint is not None else choose_executor(config)

    def spec(self, config: GenerateConfig) -> ModelSpec | EndpointSpec:
        if self.endpoint is not None:
            return EndpointSpec(self.endpoint, config.concurrency)
        assert self.source is not None
        dtype = choose_dtype(config, self.source)
        return ModelSpec(self.source, dtype, config.device, config.gpus_per_actor, interventions=self.interventions)


def _read_interventions(path: str, config: GenerateConfig, source: ModelSource, reporter: Reporter) -> Interventions:
    """Return what a file of interventions asks for. Probes and figures of heads are named with their store."""
    wish = read_interventions(path)
    dtype = choose_dtype(config, source)
    return resolve(wish, source.identity, dtype, "", config.storage_options, reporter.notice)


def _shape(source: ModelSource) -> ModelShape:
    identity = source.identity
    return ModelShape(identity.n_layers, identity.d_model, identity.n_heads, identity.d_head)
