"""From what an operator chose to a trainer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from enginehouse.runtime.context import Context
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.trainers.base import Trainer
from enginehouse.tinker.trainers.hf import HfTrainer, prepare_trainer


@asynccontextmanager
async def open_trainer(config: TinkerConfig, context: Context) -> AsyncIterator[Trainer]:
    """The trainer that was chosen, started, for the length of the block.

    Raises ConfigurationError, ProvisioningError, ModelError and StartError.
    """
    assert config.base_model is not None  # checked by the configuration
    program = await prepare_trainer(
        config.base_model, context=context, variant=config.device, dtype=config.dtype
    )
    trainer = HfTrainer(program, context=context)
    try:
        await trainer.start()
        yield trainer
    finally:
        await trainer.close()
