"""From what an operator chose to a trainer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from enginehouse.runtime.context import Context
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.trainers.base import Trainer
from enginehouse.tinker.trainers.hf import HfTrainer, prepare_trainer
from enginehouse.tinker.trainers.megatron import MegatronTrainer


@asynccontextmanager
async def open_trainer(config: TinkerConfig, context: Context) -> AsyncIterator[Trainer]:
    """The trainer that was chosen, started, for the length of the block.

    Raises ConfigurationError, ProvisioningError, ModelError and StartError.
    """
    trainer = await _make(config, context)
    try:
        await trainer.start()
        yield trainer
    finally:
        await trainer.close()


async def _make(config: TinkerConfig, context: Context) -> Trainer:
    assert config.base_model is not None  # checked by the configuration
    if config.trainer == "megatron":
        assert config.megatron_url is not None  # likewise
        return MegatronTrainer(config.megatron_url, base_model=config.base_model)
    program = await prepare_trainer(
        config.base_model, context=context, variant=config.device, dtype=config.dtype
    )
    return HfTrainer(program, context=context)
