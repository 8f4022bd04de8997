"""Real engines keep a SamplingEngine's promises.

vLLM with SmolLM2, hf with a tiny model, and both where vLLM does not apply all of an adapter.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from tests.support import SUPPORT
from tests.support.command_line import SMALL_VLLM
from tokenizers import Tokenizer

from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.testing.sampling_cases import BASE, CASES, Subject
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.sampling.base import LogprobScale, SamplingEngine, TokenPrompt, Weights
from enginehouse.tinker.sampling.opening import open_sampling

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

CHAT = "<|im_start|>user\nSay hi<|im_end|>\n<|im_start|>assistant\nHello! How can I help you?"
END = 2  # SmolLM2's <|im_end|>


@dataclass(frozen=True)
class Opened:
    """An engine, what it told, and the folder that make_unembedding.py made."""

    engine: SamplingEngine
    told: list[str]
    folder: Path
    model: Path
    logprobs: LogprobScale

    def weights(self, name: str) -> Weights:
        """One of the adapters."""
        unembed = name in {"whole", "head"}
        return Weights(key=f"tinker://{name}", folder=self.folder / name, unembed=unembed)

    def subject(self) -> Subject:
        """What the cases are tried on."""
        tokenizer = Tokenizer.from_file(str(self.model / "tokenizer.json"))
        return Subject(
            engine=self.engine,
            tokens=np.array(tokenizer.encode("Once upon a time, there was a").ids, np.int32),
            ending=np.array(tokenizer.encode(CHAT).ids, np.int32),
            end=END,
            text="Once upon a time",
            text_of=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
            adapters=(self.weights("whole"), self.weights("body")),
            logprobs=self.logprobs,
        )


def _make(python: Path, source: Path, folder: Path, *words: str) -> None:
    program = SUPPORT / "make_unembedding.py"
    done = [str(python), str(program), str(source), str(folder), *words]
    subprocess.run(done, check=True, timeout=300, capture_output=True)


async def _open(
    folder: Path, model: Path, *, logprobs: LogprobScale, sampler: str
) -> AsyncIterator[Opened]:
    told: list[str] = []
    layout = Layout(
        cache=Layout.from_environment().cache, state=folder / "state", config=folder / "config"
    )
    config = TinkerConfig.model_validate(
        {
            "base_model": str(model),
            "sampler": sampler,
            "dtype": "float32",
            "max_model_len": 192,
            "max_loras": 3,
            "max_lora_rank": 8,
            "logprobs": logprobs,
        }
    )
    context = Context(layout=layout, notify=told.append)
    async with open_sampling(config, context) as engine:
        yield Opened(engine, told, folder, model, logprobs)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def vllm(
    smollm2: ResolvedModel,
    hf_environment: EngineEnvironment,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Opened]:
    """SmolLM2 on vLLM in float32, with raw log-probabilities."""
    folder = tmp_path_factory.mktemp("vllm-sampling")
    _make(hf_environment.executable, Path(smollm2.path), folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL_VLLM.items():
            patch.setenv(name, value)
        async for opened in _open(folder, Path(smollm2.path), logprobs="raw", sampler="vllm"):
            yield opened


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def hf(
    smollm2: ResolvedModel,
    hf_environment: EngineEnvironment,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Opened]:
    """A tiny model on the hf engine, with scaled log-probabilities."""
    folder = tmp_path_factory.mktemp("hf-sampling")
    _make(hf_environment.executable, Path(smollm2.path), folder, "llama")
    async for opened in _open(folder, folder / "tiny", logprobs="scaled", sampler="hf"):
        yield opened


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def both(
    smollm2: ResolvedModel,
    hf_environment: EngineEnvironment,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Opened]:
    """A tiny Qwen2, for which vLLM 0.32 refuses adapters of the output layer."""
    folder = tmp_path_factory.mktemp("paired-sampling")
    _make(hf_environment.executable, Path(smollm2.path), folder, "qwen2")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL_VLLM.items():
            patch.setenv(name, value)
        async for opened in _open(folder, folder / "tiny", logprobs="raw", sampler="vllm"):
            yield opened


async def _agree_with_peft(opened: Opened) -> None:
    known = json.loads((opened.folder / "scores.json").read_text())
    tokens = np.array(known["tokens"], np.int32)
    for name in ("whole", "head", "body"):
        prompt = TokenPrompt(tokens=tokens, max_tokens=1, prompt_logprobs_from=1)
        given = (await opened.engine.sample(opened.weights(name), prompt)).prompt_logprobs
        assert given is not None
        np.testing.assert_allclose(given[1:], known["scores"][name], atol=2e-4)
        assert np.abs(given[1:] - known["scores"]["base"]).max() > 0.05


@pytest.mark.parametrize("name", CASES)
async def test_vllm(name: str, vllm: Opened) -> None:
    """Every case, with three places for adapters."""
    await CASES[name](vllm.subject())


async def test_named_tokens_do_not_spoil_candidates_beside_them(vllm: Opened) -> None:
    """In one batch, vLLM's sampler would gather the named tokens for everybody."""
    tokens = vllm.subject().tokens
    targets = np.full((len(tokens) - 1, 2), 7, np.int64)
    targets[:, 1] = 11
    asked = [TokenPrompt(tokens=tokens, max_tokens=1, targets=targets)]
    asked += [TokenPrompt(tokens=tokens[:n], max_tokens=4, sample_top_k=5) for n in (2, 3, 4, 5)]
    found = await asyncio.gather(*(vllm.engine.sample(BASE, prompt) for prompt in asked * 3))
    for sampled in found:
        for sequence in sampled.sequences:
            if sequence.top is not None:
                assert (sequence.top.logprobs > -100).all()
                assert all(len(set(row)) == 5 for row in sequence.top.token_ids.tolist())


async def test_vllm_gives_pefts_values(vllm: Opened) -> None:
    """Also of adapters of the output layer, which SmolLM2 shares with its embeddings."""
    await _agree_with_peft(vllm)
    unembedding = vllm.engine.description["unembedding"]
    assert unembedding["answered_by"] == "vllm"
    assert "exactly as it should" in unembedding["why"]


async def test_vllm_takes_adapters_whose_effect_is_lost_in_rounding(vllm: Opened) -> None:
    """One that was never trained, and one that was trained for so little that nothing shows."""
    for name, said in (("untrained", "has not been trained"), ("faint", "less than rounding")):
        prompt = TokenPrompt(tokens=np.array([1, 45, 210], np.int32), max_tokens=2)
        sampled = await vllm.engine.sample(vllm.weights(name), prompt)
        assert len(sampled.sequences[0].tokens) == 2
        assert any(said in line for line in vllm.told), (name, vllm.told)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"own_end"}))
async def test_hf(name: str, hf: Opened) -> None:
    """Every case but the model's own end, which random weights do not reach."""
    await CASES[name](hf.subject())


async def test_hf_gives_pefts_values(hf: Opened) -> None:
    """Also of adapters of an output layer that is shared with the embeddings."""
    await _agree_with_peft(hf)


async def test_the_base_is_asked_beside_adapters(vllm: Opened) -> None:
    """More adapters than places: each comes in when it is asked for, and the idle one goes."""
    prompt = TokenPrompt(tokens=np.array([1, 45, 210], np.int32), max_tokens=2, temperature=0.0)
    names = ("whole", "head", "body", "untrained")
    for weights in (*(vllm.weights(name) for name in names), BASE, vllm.weights("whole")):
        assert (await vllm.engine.sample(weights, prompt)).sequences
    described = vllm.engine.description
    assert len(described["resident"]) <= 3
    assert set(described["resident"]) < set(described["adapters"])


async def test_hf_answers_what_vllm_does_not_apply(both: Opened) -> None:
    """Truthfully, and so it is said; adapters without an output layer stay with vLLM."""
    await _agree_with_peft(both)
    described = both.engine.description
    assert described["engine"] == "vllm"
    assert described["unembedding"]["answered_by"] == "a second engine"
    assert described["second"]["engine"] == "hf"
    assert any("starting a second engine" in line for line in both.told)
    assert [key for key in described["adapters"] if "body" in key]
    assert not [key for key in described["adapters"] if "whole" in key or "head" in key]
    prompt = TokenPrompt(tokens=np.array([1, 45, 210], np.int32), max_tokens=4, temperature=0.0)
    (sequence,) = (await both.engine.sample(both.weights("whole"), prompt)).sequences
    assert len(sequence.tokens) == 4
