"""The trainer on a real model, compared with PEFT: `… MODEL OUT` writes an adapter to OUT.

As trainer_checks.py, but on a text: tokens that no model expects have large losses, whose rounding
is above what is allowed. Sequences are short: on a CPU, most time goes into reading the weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trainer.data import AdamStep, LoraSpec, LossRequest
from trainer.losses import LOSSES
from trainer_reference import (
    CLOSE,
    assert_close,
    compare_with_peft,
    compute,
    gradients,
    make_engine,
    run,
)
from trainer_reference import request as make_request
from transformers import AutoTokenizer

# Adam moves every weight by the learning rate, whatever its gradient's size: with a smaller eps, a
# gradient that is zero but for rounding would move one to either side.
ADAM = AdamStep(learning_rate=5e-4, weight_decay=0.1, grad_clip_norm=0.5, eps=1e-6)
MODEL, OUT = map(Path, sys.argv[1:3])
TEXT = (
    "The capital of France is Paris, a city on the river Seine. It is known for its museums, its "
    "food and its light, and millions of people visit it every year."
)
IDS = np.array(AutoTokenizer.from_pretrained(MODEL).encode(TEXT))
FLAGS = ("train_attn", "train_mlp", "train_unembed")


def request(name: str, loss: str, **options: Any) -> LossRequest:
    """As the tiny models' requests, on the beginning of the text."""
    asked = make_request(name, loss, **options)
    for datum in asked.data:
        length = len(datum.tokens)
        datum.tokens[:] = IDS[:length]
        targets = datum.inputs["target_tokens"]
        targets[:] = IDS[1 : length + 1].reshape(length, *(1,) * (targets.ndim - 1))
    return asked


def every_loss_agrees_with_peft():
    """A step of each, with all modules, the tied output layer among them; the adapter is saved."""
    asked = [request("ours", loss, lengths=(24, 9), seed=at) for at, loss in enumerate(LOSSES)]
    engine = compare_with_peft(MODEL, LoraSpec(rank=8, seed=1), *asked, steps=1, adam=ADAM)
    engine.save("ours", OUT, state=False)


def every_flag_agrees_with_peft():
    """Each by itself."""
    for chosen in FLAGS:
        spec = LoraSpec(rank=8, seed=1, **{flag: flag == chosen for flag in FLAGS})
        asked = request("ours", "importance_sampling", lengths=(9, 4))
        try:
            compare_with_peft(MODEL, spec, asked, steps=1, adam=ADAM)
        except AssertionError as error:
            raise AssertionError(chosen) from error


def a_mixed_batch_equals_each_alone():
    """Other ranks, modules, losses, lengths and targets in one batch."""
    engine = make_engine(MODEL)
    specs = {
        "four": LoraSpec(rank=4, seed=1),
        "eight": LoraSpec(rank=8, seed=2, train_unembed=False),
        "large": LoraSpec(rank=32, alpha=16, seed=3, train_mlp=False),
        "head": LoraSpec(rank=8, seed=4, train_attn=False, train_mlp=False),
    }
    asked = {
        "four": request("four", "ppo", lengths=(3, 17), seed=10),
        "eight": request("eight", "cross_entropy", lengths=(6, 1), targets=3, seed=20),
        "large": request("large", "gspo", lengths=(12,), seed=30),
        "head": request("head", "stable_reinforce", lengths=(9, 9), seed=40),
    }
    for name, spec in specs.items():
        engine.create(name, spec)
        compute(engine, request(name, "cross_entropy", lengths=(12,)))
        engine.optim_step(name, ADAM)
    together = compute(engine, *asked.values())
    added = {name: gradients(engine, name) for name in asked}
    for (name, one), result in zip(asked.items(), together, strict=True):
        engine._adapters[name].gradient = None
        (alone,) = compute(engine, one)
        assert_close(result.metrics["loss:sum"], alone.metrics["loss:sum"])
        for ours, theirs in zip(result.outputs, alone.outputs, strict=True):
            assert_close(ours["logprobs"], theirs["logprobs"])
        assert_near(added[name], gradients(engine, name))


def assert_near(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """As one vector: what rounds a module's gradient is the size of all that reaches it."""
    assert ours.keys() == theirs.keys()
    one, other = (torch.cat([t.double().flatten() for t in g.values()]) for g in (ours, theirs))
    difference = float((one - other).norm() / other.norm())
    assert difference <= CLOSE, difference


if __name__ == "__main__":
    run(
        every_loss_agrees_with_peft,
        every_flag_agrees_with_peft,
        a_mixed_batch_equals_each_alone,
    )
