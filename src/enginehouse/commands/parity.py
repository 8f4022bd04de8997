"""`enginehouse parity`: whether the engine computes what transformers computes.

A trainer's importance ratios are only as good as the agreement of the two programs. A wrong
template, adapter, dtype or kernel shows here first.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from enginehouse.commands.configuration import ParityConfig
from enginehouse.core.sampler import Capability
from enginehouse.deployment.preparation import Prepared, choose_engine, prepare
from enginehouse.deployment.reference_scores import (
    TEXTS,
    compare_scores,
    computing_type,
    own_type,
    score_prompt,
    score_with_transformers,
)
from enginehouse.deployment.served import served_deployment
from enginehouse.dialects.base import require
from enginehouse.engines.base import SupportsDTypes
from enginehouse.results.parity import ParityReport
from enginehouse.runtime.context import Context


async def run_parity(config: ParityConfig, context: Context) -> ParityReport:
    """Serve the model, score the texts, stop, and score the same tokens with transformers.

    Both compute in the configured type; by default, in the one that a server on this CPU gets, or
    that the engine chooses for the checkpoint.
    Raises UnsupportedError for an engine without prompt log-probabilities, ModelError where
    transformers cannot score the model or either side's values are not finite, and what
    `open_deployment` does.
    """
    plan = config.plan
    engine = choose_engine(plan.engine)
    require(engine.capabilities(None), Capability.PROMPT_LOGPROBS, "parity")
    require(engine.capabilities(None), Capability.TOKENIZE, "parity")
    prepared = await prepare(plan, context)
    checkpoint = Path(prepared.model.path)
    prepared = await asyncio.to_thread(_with_type, prepared)
    async with served_deployment(prepared, context, concurrency=None) as deployment:
        server = deployment.server
        sequences = [await deployment.sampler.tokenize(text) for text in TEXTS]
        ours = [await score_prompt(deployment.sampler, tokens) for tokens in sequences]
    dtype = await asyncio.to_thread(computing_type, server, checkpoint)
    context.notify(f"scoring the same tokens with transformers in {dtype}")
    reference = await score_with_transformers(
        checkpoint,
        sequences,
        dtype=dtype,
        device="auto",
        adapter=deployment.default.adapter,
        context=context,
    )
    parity = compare_scores(ours, reference.logprobs, engine=engine.name)
    return ParityReport(
        model=plan.model or prepared.model.name,
        adapter=str(plan.adapter) if plan.adapter else None,
        engine=server.engine or engine.name,
        engine_version=server.version,
        engine_dtype=dtype,
        reference_dtype=reference.dtype,
        threshold=config.settings.threshold,
        agrees=parity.mean <= config.settings.threshold,
        parity=parity,
    )


def _with_type(prepared: Prepared) -> Prepared:
    """The server with the type in which it would compute, spelled out. Blocking."""
    engine, options = prepared.engine, prepared.options
    named = isinstance(engine, SupportsDTypes) and engine.dtypes.flag in str(options.extra_args)
    if options.dtype not in (None, "auto") or named:
        return prepared
    dtype = own_type(Path(prepared.model.path), engine.name)
    return replace(prepared, options=options.model_copy(update={"dtype": dtype}))
