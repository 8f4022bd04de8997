"""Whether an engine applies an adapter of the output layer (lm_head), found out by trying one.

vLLM 0.32 does so for some architectures (Llama, Qwen3) and refuses such an adapter for others
(Qwen2); see docs/decisions/0011. An effect alone would prove nothing: the probe changes the logit
of token v by s·pattern(v), with an unknown s for each position, and exactly that must be seen.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from enginehouse.core import messages
from enginehouse.core.errors import AdapterError
from enginehouse.core.sampler import Sampler, SampleRequest, TokenLogprob
from enginehouse.core.sampling import SamplingParameters
from enginehouse.tinker.sampling import requests
from enginehouse.weights.peft_folder import CONFIG, TENSORS, checkpoint_shapes
from enginehouse.weights.pool import AdapterPool

_ALIAS = "output-layer-probe"
_PROMPTS = 4
_LENGTH = 12
_CANDIDATES = 20
_MAGNITUDES = (1.0, 0.1)  # the states that reach an output layer differ in size between models
_LEAST = 0.05  # nats that the probe must change
_EXPLAINED = 0.95  # of the variance; rounding of logits in bfloat16 takes some

Candidates = Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class OutputLayer:
    """Whether adapters of it act on answers, and on the log-probabilities of prompts.

    `why` says what was found.
    """

    answers: bool
    prompts: bool
    why: str


async def probe_output_layer(
    pool: AdapterPool, sampler: Sampler, *, base_model: str, checkpoint: Path
) -> OutputLayer:
    """Load an adapter of the output layer and see what it does. Raises WireError.

    `checkpoint` is the folder of the base model. Asks for log-probabilities of a prompt, so no
    request should be in flight.
    """
    shapes = await asyncio.to_thread(checkpoint_shapes, checkpoint)
    heads = ("lm_head.weight", "embed_tokens.weight")
    shape = next((shape for name, shape in shapes.items() if name.endswith(heads)), None)
    if shape is None:
        return _not_served(
            f"no such adapter could be tested: {checkpoint} is not a checkpoint on this machine"
        )
    layer = _not_served("an adapter of it changed nothing")
    for magnitude in _MAGNITUDES:
        with tempfile.TemporaryDirectory(prefix="enginehouse-probe-") as folder:
            probe = Path(folder)
            _write_probe(probe, vocabulary=shape[0], size=shape[1], magnitude=magnitude)
            try:
                await pool.load(_ALIAS, probe)
            except AdapterError as error:
                return _not_served(error.why or error.message)
            try:
                async with pool.held(_ALIAS) as model:
                    layer = await _observe(sampler, model, base_model, vocabulary=shape[0])
            finally:
                await pool.unload(_ALIAS)
        if layer.answers:
            break
    return layer


def _not_served(why: str) -> OutputLayer:
    return OutputLayer(answers=False, prompts=False, why=why)


def _pattern(token: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the probe adds to the logits: between -1 and 1, and unlike for neighbours."""
    return (token * 7919 % 1009) / 504.0 - 1.0


def _write_probe(folder: Path, *, vocabulary: int, size: int, magnitude: float) -> None:
    down = np.random.default_rng(0).normal(size=(1, size)) * magnitude / np.sqrt(size)
    up = _pattern(np.arange(vocabulary))[:, None]
    prefix = "base_model.model.lm_head"
    save_file(
        {
            f"{prefix}.lora_A.weight": down.astype(np.float32),
            f"{prefix}.lora_B.weight": up.astype(np.float32),
        },
        folder / TENSORS,
    )
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["lm_head"]}
    (folder / CONFIG).write_text(json.dumps(config))


async def _observe(
    sampler: Sampler, model: str, base_model: str, *, vocabulary: int
) -> OutputLayer:
    prompts = [
        [int(token) for token in (np.arange(1, _LENGTH + 1) * (97 + at)) % vocabulary]
        for at in range(_PROMPTS)
    ]
    answers = [
        [await _next(sampler, prompt, name) for prompt in prompts] for name in (base_model, model)
    ]
    scored = [await _scored(sampler, prompts[0], name) for name in (base_model, model)]
    acts_on_answers, acts_on_prompts = _is_pattern(*answers), _is_pattern(*scored)
    if acts_on_answers and acts_on_prompts:
        why = "an adapter of it changed the log-probabilities exactly as it should"
    elif acts_on_answers:
        why = (
            "an adapter of it changed the log-probabilities of answers as it "
            "should, but not those of prompts"
        )
    else:
        why = "an adapter of it was loaded, but did not change the log-probabilities as it should"
    return OutputLayer(answers=acts_on_answers, prompts=acts_on_prompts, why=why)


async def _next(sampler: Sampler, prompt: Sequence[int], model: str) -> Candidates:
    """The most likely tokens after a prompt."""
    parameters = SamplingParameters(
        max_tokens=1, logprobs=_CANDIDATES, extra={"return_tokens_as_token_ids": True}
    )
    response = await sampler.sample(_request(prompt, parameters, model))
    (token,) = response.completions[0].logprobs or ()
    return _by_id(token)


async def _scored(sampler: Sampler, prompt: Sequence[int], model: str) -> list[Candidates]:
    """The most likely tokens at each position of a prompt but the first."""
    parameters = SamplingParameters(max_tokens=1, prompt_logprobs=_CANDIDATES)
    response = await sampler.sample(_request(prompt, parameters, model))
    return [_by_id(token) for token in (response.prompt_logprobs or ())[1:] if token is not None]


def _request(prompt: Sequence[int], parameters: SamplingParameters, model: str) -> SampleRequest:
    return SampleRequest(
        prompt=messages.TokenPrompt(tuple(prompt)), parameters=parameters, model=model
    )


def _by_id(token: TokenLogprob) -> Candidates:
    return {requests.id_of(candidate): candidate.logprob for candidate in token.top}


def _is_pattern(before: Sequence[Candidates], after: Sequence[Candidates]) -> bool:
    """Whether the differences are s·pattern + c, with an s and a c of each position's own.

    c is what a softmax takes away again.
    """
    total = residual = 0.0
    count = 0
    for base, probed in zip(before, after, strict=True):
        tokens = np.array(sorted(base.keys() & probed.keys()), np.int64)
        if len(tokens) < 5:
            continue
        changes = np.array([probed[token] - base[token] for token in tokens.tolist()])
        slope = np.stack([_pattern(tokens), np.ones(len(tokens))], axis=1)
        fit, *_ = np.linalg.lstsq(slope, changes, rcond=None)
        total += float(((changes - changes.mean()) ** 2).sum())
        residual += float(((changes - slope @ fit) ** 2).sum())
        count += len(tokens)
    if not count or (total / count) ** 0.5 < _LEAST:
        return False
    return 1 - residual / total > _EXPLAINED
