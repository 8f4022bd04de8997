"""What an engine does with the probe, told from what it should do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tests.support.token_sampler import TokenSampler

from enginehouse.core.errors import AdapterError
from enginehouse.tinker.sampling.output_layer import OutputLayer, probe_output_layer

SIZE = 400


class Pool:
    """Takes the probe, and tells the sampler's model of it."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.up = np.zeros(SIZE)
        self.unloaded = 0

    async def load(self, alias: str, folder: Path) -> None:
        """Read the tensors, as an engine would."""
        if self.refuses:
            raise AdapterError("refused", why="expected target modules in q_proj")
        made = load_file(folder / "adapter_model.safetensors")
        self.up = made["base_model.model.lm_head.lora_B.weight"][:, 0].astype(np.float64)

    @asynccontextmanager
    async def held(self, alias: str) -> AsyncIterator[str]:
        """The model that stands for it."""
        yield "probe"

    async def unload(self, alias: str) -> None:
        """Forget it."""
        self.unloaded += 1


async def _applied(tmp_path: Path, change, *, refuses: bool = False) -> OutputLayer:
    """What is found where a loaded probe changes log-probabilities so."""
    embeddings = np.zeros((SIZE, 8), np.float32)
    save_file({"model.embed_tokens.weight": embeddings}, tmp_path / "m.safetensors")
    pool = Pool(refuses=refuses)
    sampler = TokenSampler(
        size=SIZE, changes={"probe": lambda values, prompt: change(values, prompt, pool.up)}
    )
    layer = await probe_output_layer(pool, sampler, base_model="base", checkpoint=tmp_path)
    assert refuses or pool.unloaded
    return layer


async def test_one_that_is_applied(tmp_path):
    """To each token what its row says, times something that depends on the position."""
    layer = await _applied(tmp_path, lambda values, _, up: values + values[7] * 0.5 * up)
    assert (layer.answers, layer.prompts) == (True, True)


async def test_one_that_is_ignored(tmp_path):
    """It changes nothing."""
    layer = await _applied(tmp_path, lambda values, _, up: values)
    assert (layer.answers, layer.prompts) == (False, False)
    assert "did not change" in layer.why


async def test_one_that_acts_on_answers_only(tmp_path):
    """Then prompts are for another engine."""
    layer = await _applied(tmp_path, lambda values, prompt, up: values if prompt else values + up)
    assert (layer.answers, layer.prompts) == (True, False)


async def test_rows_of_other_tokens_are_no_proof(tmp_path):
    """An effect alone says nothing: here each token gets its neighbour's."""
    layer = await _applied(tmp_path, lambda values, _, up: values + np.roll(up, 1))
    assert not layer.answers


async def test_rounding_is_forgiven(tmp_path):
    """As that of logits in bfloat16."""
    noise = np.random.default_rng(1)
    layer = await _applied(
        tmp_path, lambda values, _, up: values + up + noise.normal(scale=0.05, size=SIZE)
    )
    assert layer.answers


async def test_one_that_is_refused(tmp_path):
    """The engine's own reason is reported."""
    layer = await _applied(tmp_path, lambda values, *_: values, refuses=True)
    assert not layer.answers
    assert layer.why == "expected target modules in q_proj"


async def test_a_checkpoint_that_is_elsewhere(tmp_path):
    """Nothing can be tried, so another engine answers."""
    layer = await probe_output_layer(
        Pool(), TokenSampler(), base_model="base", checkpoint=tmp_path / "none"
    )
    assert not layer.answers
    assert "not a checkpoint on this machine" in layer.why
