"""From what an operator chose to a sampling engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import get_args

from enginehouse.core.errors import ProvisioningError
from enginehouse.deployment.base import Deployment
from enginehouse.deployment.configuration import AskConfig, ServeConfig
from enginehouse.deployment.opening import open_deployment
from enginehouse.engines.base import ServedEngine, SupportsAdapters, this_machine
from enginehouse.engines.options import DType, ServerOptions
from enginehouse.engines.registry import load_engine, load_served_engine
from enginehouse.runtime.context import Context
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.sampling.base import SamplingEngine
from enginehouse.tinker.sampling.deployed import DeployedSampling, deployed_sampling
from enginehouse.tinker.sampling.megatron import megatron_sampling
from enginehouse.tinker.sampling.output_layer import OutputLayer, probe_output_layer
from enginehouse.tinker.sampling.paired import paired_sampling
from enginehouse.tinker.sampling.requests import MOST_CANDIDATES
from enginehouse.tinker.sampling.scale import MODES, require_scale
from enginehouse.weights.served_models import served_models

_MAIN, _PLAIN = "vllm", "hf"


@asynccontextmanager
async def open_sampling(config: TinkerConfig, context: Context) -> AsyncIterator[SamplingEngine]:
    """The sampling engine that was chosen, ready to answer, for the length of the block.

    With vLLM, adapters that it does not apply wholly are answered by the hf engine, and so is
    everything where vLLM cannot run; `context.notify` is told. Raises what `open_deployment` does.
    """
    openings: Mapping[str, _Opening] = {
        _MAIN: _open_main,
        _PLAIN: _open_plain,
        "megatron": megatron_sampling,
    }
    async with openings[config.sampler or _MAIN](config, context) as engine:
        yield engine


_Opening = Callable[[TinkerConfig, Context], AbstractAsyncContextManager[SamplingEngine]]


@asynccontextmanager
async def _open_main(config: TinkerConfig, context: Context) -> AsyncIterator[SamplingEngine]:
    async with AsyncExitStack() as stack:
        try:
            deployment = await stack.enter_async_context(_main_deployment(config, context))
        except ProvisioningError as error:
            context.notify(f"{_MAIN} cannot run here ({error.message}): {_PLAIN} samples instead")
            yield await stack.enter_async_context(_open_plain(config, context))
            return
        main = await stack.enter_async_context(_sampling(deployment, config, context))
        if config.vllm_url is not None:
            await require_scale(deployment.sampler, config.logprobs)
        layer = await _output_layer(main, config)
        context.notify(f"adapters of the output layer: {layer.why}")
        dtype = deployment.provenance.dtype
        plain = partial(_open_plain, config, context, dtype=dtype)
        yield await stack.enter_async_context(
            paired_sampling(main, plain, second=_PLAIN, output_layer=layer, notify=context.notify)
        )


@asynccontextmanager
async def _main_deployment(config: TinkerConfig, context: Context) -> AsyncIterator[Deployment]:
    """A vLLM: somebody else's, or our own. Raises ProvisioningError if it cannot run here."""
    if config.vllm_url is not None:
        plan: ServeConfig = AskConfig(url=config.vllm_url, engine=_MAIN)
    else:
        if problem := load_served_engine(_MAIN).unsuited(this_machine()):
            raise ProvisioningError(f"{_MAIN} {problem}")
        plan = _plan(config, _MAIN, gpu_memory_utilization=config.gpu_memory_utilization)
    async with open_deployment(plan, context) as deployment:
        yield deployment


@asynccontextmanager
async def _open_plain(
    config: TinkerConfig, context: Context, *, dtype: str | None = None
) -> AsyncIterator[SamplingEngine]:
    """The hf engine, which computes in `dtype` if the configuration leaves it open."""
    chosen = config.dtype or (dtype if dtype in get_args(DType) else None)
    plan = _plan(config, _PLAIN, dtype=chosen)
    async with (
        open_deployment(plan, context) as deployment,
        _sampling(deployment, config, context) as engine,
    ):
        yield engine


def _sampling(
    deployment: Deployment, config: TinkerConfig, context: Context
) -> AbstractAsyncContextManager[DeployedSampling]:
    return deployed_sampling(
        deployment,
        logprobs=config.logprobs,
        max_loras=config.max_loras,
        at_once=min(config.max_samples, config.samples_in_flight),
        notify=context.notify,
    )


def _plan(config: TinkerConfig, name: str, **options: object) -> ServeConfig:
    """A server of our own, for the adapters of the service."""
    engine = load_engine(name)
    assert isinstance(engine, SupportsAdapters), f"{name} loads adapters"
    server = {
        "enable_lora": True,
        "max_loras": config.max_loras,
        "max_lora_rank": engine.lora.rank_for(config.max_lora_rank),
        "max_model_len": config.max_model_len,
        "dtype": config.dtype,
        "extra_args": [
            *("--max-logprobs", str(MOST_CANDIDATES)),
            *("--logprobs-mode", MODES[config.logprobs]),
        ],
    }
    return ServeConfig(
        model=config.base_model, engine=name, server=ServerOptions.model_validate(server | options)
    )


async def _output_layer(main: DeployedSampling, config: TinkerConfig) -> OutputLayer:
    deployment = main.deployment
    if not config.train_unembed:
        why = "none is trained (--no-train-unembed), so none was tried"  # older ones may be there
        return OutputLayer(answers=False, prompts=False, why=why)
    engine = deployment.engine
    assert isinstance(engine, ServedEngine), "it loads adapters"
    own, *_ = await served_models(deployment.server, engine)
    checkpoint = deployment.model.path if deployment.model else own.root
    return await probe_output_layer(
        main.pool,
        deployment.sampler,
        base_model=deployment.sampler.model,
        checkpoint=Path(checkpoint or own.id),
    )
