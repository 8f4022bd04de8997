"""What the checks of the trainer share: tiny models, requests, and plain PEFT to compare with."""

# ruff: noqa: ANN003, D102, D103 (read by the checks alone)
from __future__ import annotations

import copy
import itertools
import json
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import PeftModel
from trainer.data import AdamStep, Datum, LoraSpec, LossRequest
from trainer.engine import Engine
from trainer.errors import RequestError
from trainer.losses import LOSSES

VOCABULARY = 96
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": transformers.LlamaConfig(**SMALL, tie_word_embeddings=False),
    "tied llama": transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=False),
    "sliding mistral": transformers.MistralConfig(**SMALL, sliding_window=4),
    "phi": transformers.PhiConfig(**SMALL),
}
CLOSE = 1e-4
ROOT = Path(tempfile.mkdtemp())
FOLDERS = itertools.count()
ADAM = AdamStep(learning_rate=1e-2, weight_decay=0.1, grad_clip_norm=0.5, eps=1e-8)


def new_folder() -> Path:
    return ROOT / str(next(FOLDERS))


def make_model(config) -> Path:
    """Write a checkpoint with larger weights than a fresh model's, whose answers would be alike."""
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config))
    for name, weight in module.named_parameters():
        if weight.ndim > 1 and "norm" not in name:
            weight.data.normal_(0, 0.2)
    folder = new_folder()
    module.save_pretrained(folder)
    return folder


LLAMA = make_model(MODELS["tied llama"])


def make_engine(folder: Path = LLAMA, *, dtype=torch.float32, **options) -> Engine:
    module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return Engine(module, base_model="tiny", **options)


def make_datum(loss: str, length: int, *, seed: int, targets: int = 0) -> Datum:
    """Numbers as a client sends them: a prompt without weight or advantage, then what counts."""
    rng = np.random.default_rng(seed)
    shape = (length, targets) if targets else (length,)
    counts = np.arange(length) >= length // 3
    inputs = {"target_tokens": rng.integers(0, VOCABULARY, shape)}
    for name in LOSSES[loss].inputs:
        if name == "sequence_ratio_mask":
            inputs[name] = counts.astype(np.float32)
            continue
        values = rng.normal(size=shape)
        if name == "logprobs":
            values = -4 + 0.5 * values
        elif not targets:
            values = values * counts
        inputs[name] = values.astype(np.float32)
    return Datum(
        tokens=rng.integers(0, VOCABULARY, length).astype(np.int32),
        inputs=inputs,
        sampled=counts & (np.arange(length) % 3 > 0) if LOSSES[loss].spans else None,
    )


def request(name: str, loss: str = "cross_entropy", *, lengths=(5, 9, 2), seed=0, **options):
    targets = options.pop("targets", 0)
    data = [make_datum(loss, n, seed=seed + i, targets=targets) for i, n in enumerate(lengths)]
    return LossRequest(model_id=name, loss=loss, data=tuple(data), **options)


def compute(engine: Engine, *requests: LossRequest):
    """The results, none of which is an error."""
    results = engine.compute(requests)
    for result in results:
        if isinstance(result, RequestError):
            raise result
    return results


def train(
    engine: Engine, name: str, *, steps: int = 2, seed: int = 100, adam: AdamStep = ADAM
) -> None:
    """A few steps, after which B is not zero."""
    for step in range(steps):
        compute(engine, request(name, seed=seed + 10 * step))
        engine.optim_step(name, adam)


def gradients(engine: Engine, name: str) -> dict:
    """By PEFT's names."""
    adapter = engine._adapters[name]
    assert adapter.gradient is not None
    return flat_views(adapter, adapter.gradient)


def weights(engine: Engine, name: str) -> dict:
    adapter = engine._adapters[name]
    return flat_views(adapter, adapter.weights)


def flat_views(adapter, flat) -> dict:
    return {
        f"base_model.model.{module}.lora_{side}": tensor.clone()
        for module, pair in adapter.views(flat).items()
        for side, tensor in zip("AB", pair, strict=True)
    }


def assert_close(ours, theirs, *, limit: float = CLOSE) -> None:
    """Within `limit` of the largest number there is."""
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    scale = max(1.0, float(theirs.abs().max()))
    difference = float((ours - theirs).abs().max())
    assert difference <= limit * scale, f"differs by {difference} at a scale of {scale}"


def assert_all_close(ours: dict, theirs: dict, *, limit: float = CLOSE) -> None:
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    for name, tensor in ours.items():
        assert_close(tensor, theirs[name], limit=limit)


def cross_entropy(lp, inputs, _):
    return -(inputs["weights"] * lp).sum()


def importance_sampling(lp, inputs, _):
    return -(torch.exp(lp - inputs["logprobs"]) * inputs["advantages"]).sum()


def ppo(lp, inputs, config):
    return pessimistic(torch.exp(lp - inputs["logprobs"]), inputs["advantages"], config)


def pessimistic(ratio, advantages, config):
    low, high = config.get("clip_low_threshold", 0.8), config.get("clip_high_threshold", 1.2)
    return -torch.min(ratio * advantages, ratio.clamp(low, high) * advantages).sum()


def cispo(lp, inputs, config):
    low, high = config.get("clip_low_threshold", 0.0), config.get("clip_high_threshold", 4.0)
    ratio = torch.exp(lp - inputs["logprobs"]).clamp(low, high).detach()
    return -(ratio * lp * inputs["advantages"]).sum()


def dro(lp, inputs, config):
    penalty = 0.5 * config.get("beta", 0.05) * (lp - inputs["logprobs"]) ** 2
    return -(lp * inputs["advantages"] - penalty).sum()


def gspo(lp, inputs, config):
    mask = inputs["sequence_ratio_mask"]
    sequence = torch.exp(((lp - inputs["logprobs"]) * mask).sum() / mask.sum())
    ratio = sequence.detach() * torch.exp(lp - lp.detach())
    return pessimistic(ratio, inputs["advantages"], config)


def stable_reinforce(lp, inputs, config):
    chosen = inputs["sampled"]
    lp, q, advantages = lp[chosen], inputs["logprobs"][chosen], inputs["advantages"][chosen]
    weight = torch.exp(lp - q).clamp(max=2.0).detach()
    penalty = 0.5 * config.get("kl_coeff", 0.0) * ((lp - q) ** 2).sum()
    return -(weight * advantages * lp).sum() + penalty


# One sequence's loss, as the documentation writes it.
PLAIN_LOSSES = {
    function.__name__: function
    for function in (
        cross_entropy,
        importance_sampling,
        ppo,
        cispo,
        dro,
        gspo,
        stable_reinforce,
    )
}


class Reference:
    """A plain PEFT model, one sequence at a time, with losses written out for one sequence."""

    def __init__(self, model: Path, adapter: Path, *, adam: AdamStep = ADAM) -> None:
        module = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.module = PeftModel.from_pretrained(module, adapter, is_trainable=True).eval()
        self.trained = {
            name.replace(".default.weight", ""): weight
            for name, weight in self.module.named_parameters()
            if weight.requires_grad
        }
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=adam.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.eps,
            weight_decay=adam.weight_decay,
        )
        self.clip = adam.grad_clip_norm

    def logprobs(self, datum: Datum):
        logits = self.module(torch.tensor(datum.tokens[None]).long()).logits[0].float()
        targets = torch.tensor(datum.inputs["target_tokens"]).reshape(len(datum.tokens), -1)
        chosen = logits.log_softmax(-1).gather(1, targets)
        return chosen.reshape(datum.inputs["target_tokens"].shape)

    def compute(self, asked: LossRequest):
        """Log-probabilities of each datum and the loss; gradients are added to the weights'."""
        found, total = [], 0.0
        for datum in asked.data:
            lp = self.logprobs(datum)
            inputs = {name: torch.tensor(array) for name, array in datum.inputs.items()}
            if datum.sampled is not None:
                inputs["sampled"] = torch.tensor(datum.sampled)
            loss = PLAIN_LOSSES[asked.loss](lp, inputs, asked.config)
            loss.backward()
            found.append(lp.detach())
            total += float(loss)
        return found, total

    @property
    def gradients(self) -> dict:
        return {name: weight.grad for name, weight in self.trained.items()}

    def take(self, values: dict) -> None:
        for name, tensor in values.items():
            self.trained[name].data.copy_(tensor)

    def step(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)


def compare_with_peft(
    folder: Path, spec: LoraSpec, *asked: LossRequest, steps: int = 2, adam: AdamStep = ADAM
) -> Engine:
    """Losses, log-probabilities, gradients, and steps, from an adapter that was trained a bit.

    A step is of each that is `asked`, one after the other. The next one begins with our weights in
    both, as Adam would amplify the rounding of the gradients before.
    """
    engine = make_engine(folder)
    engine.create("ours", spec)
    train(engine, "ours", steps=1, adam=adam)
    engine.save("ours", saved := new_folder(), state=False)
    engine.load("ours", saved, optimizer=False, gradients=False)
    reference = Reference(folder, saved, adam=adam)
    for one in asked * steps:
        (result,) = compute(engine, one)
        logprobs, total = reference.compute(one)
        assert_close(result.metrics["loss:sum"], total)
        for ours, theirs in zip(result.outputs, logprobs, strict=True):
            assert ours["logprobs"].dtype == np.float32
            assert_close(ours["logprobs"], theirs)
        assert_all_close(gradients(engine, "ours"), reference.gradients)
        norm = engine.optim_step("ours", adam)["grad_norm:mean"]
        assert_close(norm, reference.step())
        assert_all_close(weights(engine, "ours"), reference.trained)
        reference.take(weights(engine, "ours"))
    return engine


def assert_raises(kind: type[Exception], action, *words: str) -> None:
    """Of that kind, and with these words."""
    try:
        action()
    except kind as error:
        message = str(error)
    else:
        raise AssertionError(f"not raised: {words}")
    for word in words:
        assert word in message, message


def assert_refused(action, *words: str) -> None:
    assert_raises(RequestError, action, *words)


def run(*checks: Callable[[], None]) -> None:
    """Run them all; print what went wrong in each, "" if nothing, as JSON on the last line."""
    found = {}
    for function in checks:
        try:
            function()
        except Exception:  # noqa: BLE001 (a check may raise anything)
            found[function.__name__] = traceback.format_exc()
        else:
            found[function.__name__] = ""
    print(json.dumps(found))  # noqa: T201 (its output is its interface)
