"""The trainer over transformers itself, on a checkpoint of a few thousand weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginehouse.core.errors import ModelError, ServerGoneError, StartError
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.runtime.context import Context
from enginehouse.testing.check_trainer import check_trainer
from enginehouse.testing.trainer_cases.base import STEP, Subject
from enginehouse.tinker.data import LoraSpec
from enginehouse.tinker.trainers.hf import HfTrainer, prepare_trainer

pytestmark = pytest.mark.engine


async def started(model: Path | str, **settings: Any) -> HfTrainer:
    """A trainer of that model, started."""
    context = Context(notify=print)
    trainer = HfTrainer(
        await prepare_trainer(str(model), context=context, **settings), context=context
    )
    await trainer.start()
    return trainer


async def test_it_passes_the_suite(tiny):
    """In float32, as the numbers of the cases are compared closely."""
    trainer = await started(tiny, dtype="float32")
    try:
        info = trainer.info
        assert (info.architecture, info.vocabulary_size) == ("LlamaForCausalLM", 300)
        assert (info.dtype, info.device, info.base_model) == ("float32", "cpu", str(tiny))
        assert await check_trainer(trainer, kill=lambda: os.kill(trainer.pid, signal.SIGKILL)) == []
    finally:
        await trainer.close()


async def test_killed_it_starts_and_continues(tiny, tmp_path):
    """Start, compute, kill -9: an error that says so; start, load: the same numbers."""
    trainer = await started(tiny, dtype="float32", threads=1)
    try:
        subject = Subject(trainer=trainer, kill=lambda: None, folder=tmp_path, prefix="test")
        model = await subject.model()
        await subject.train(model, steps=3)
        await subject.compute(model)
        await trainer.save(model, tmp_path / "saved", state=True)
        expected = [await subject.logprobs(model)]
        await trainer.optim_step(model, STEP)
        expected.append(await subject.logprobs(model))
        os.kill(trainer.pid, signal.SIGKILL)
        with pytest.raises(ServerGoneError, match="SIGKILL"):
            await subject.compute(model)
        await trainer.start()
        spec = await trainer.load(model, tmp_path / "saved", optimizer=True, gradients=True)
        assert spec == LoraSpec(rank=4, seed=1)
        continued = [await subject.logprobs(model)]
        await trainer.optim_step(model, STEP)
        continued.append(await subject.logprobs(model))
        np.testing.assert_array_equal(expected, continued)
    finally:
        await trainer.close()


async def test_bundled_model_trains(smollm2: ResolvedModel, tmp_path):
    """SmolLM2 by its name, in the type that suits the CPU: the loss of a sequence falls."""
    trainer = await started("smollm2")
    try:
        assert trainer.info.base_model == "smollm2"
        subject = Subject(trainer=trainer, kill=lambda: None, folder=tmp_path, prefix="test")
        model = await subject.model()
        before = await subject.logprobs(model)
        await subject.train(model, steps=3)
        assert (await subject.logprobs(model)).sum() > before.sum()
    finally:
        await trainer.close()


async def test_unknown_architecture_is_explained(tiny, tmp_path):
    """The start fails with the cause from the log, and leaves no process."""
    foreign = tmp_path / "foreign"
    shutil.copytree(tiny, foreign)
    config = json.loads((foreign / "config.json").read_text()) | {"model_type": "nosuch"}
    (foreign / "config.json").write_text(json.dumps(config))
    with pytest.raises(StartError, match="trainer") as raised:
        await started(foreign)
    assert raised.value.kind == "unsupported_model"
    assert "nosuch" in raised.value.why


async def test_broken_checkpoint_is_refused_before_anything_starts(tiny, tmp_path):
    """Weights that are none."""
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError):
        await prepare_trainer(str(broken), context=Context())


async def test_missing_model_is_refused_before_anything_starts(tmp_path):
    """By the same words as for a server."""
    with pytest.raises(ModelError, match=re.escape(str(tmp_path / "missing"))):
        await prepare_trainer(str(tmp_path / "missing"), context=Context())
