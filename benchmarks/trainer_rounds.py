"""Rounds of training: our trainer's engine, and a bare torch + PEFT loop on the same batches.

`python trainer_rounds.py MODEL DTYPE THREADS ROUNDS LENGTH…`, run by the trainer's own environment
with the payloads on PYTHONPATH (see tinker_trainer.py). After a round that warms up, each prints
JSON lines of `figure`, `length` in tokens, and the seconds of `ours` and `theirs`, which take
turns: one user's batch of four sequences against the bare loop, and four users' sequences in one
call against four calls. Each is a forward_backward and an optim_step.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from trainer.data import AdamStep, Datum, LoraSpec, LossRequest
from trainer.engine import Engine
from trainer.errors import RequestError
from transformers import AutoModelForCausalLM

RANK = 32  # as the SDK's LoraConfig
USERS = ("a", "b", "c", "d")
LARGEST = 1000  # token ids
Batch = NDArray[np.int64]  # (sequences, tokens + 1)


class Ours:
    """The engine, with an adapter for each user."""

    def __init__(self, model: Path, dtype: str) -> None:
        self._engine = Engine.open(model, base_model="model", device="cpu", dtype=dtype)
        for user in USERS:
            self._engine.create(user, LoraSpec(rank=RANK, seed=1))

    def alone(self, batch: Batch) -> None:
        """All sequences are one user's."""
        self._step([_request(USERS[0], batch)])

    def together(self, batch: Batch) -> None:
        """Each sequence is another user's; one call."""
        self._step([_request(user, batch[at : at + 1]) for at, user in enumerate(USERS)])

    def in_sequence(self, batch: Batch) -> None:
        """Each sequence is another user's; a call for each."""
        for at, user in enumerate(USERS):
            self._step([_request(user, batch[at : at + 1])])

    def _step(self, requests: list[LossRequest]) -> None:
        for result in self._engine.compute(requests):
            if isinstance(result, RequestError):
                raise result
        for request in requests:
            self._engine.optim_step(request.model_id, AdamStep())


def _request(user: str, batch: Batch) -> LossRequest:
    data = [
        Datum(
            tokens=row[:-1].astype(np.int32),
            inputs={"target_tokens": row[1:], "weights": np.ones(len(row) - 1, np.float32)},
        )
        for row in batch
    ]
    return LossRequest(model_id=user, loss="cross_entropy", data=tuple(data))


class Bare:
    """What a user would write: PEFT's model, cross-entropy, torch's AdamW."""

    def __init__(self, model: Path, dtype: str) -> None:
        module = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = LoraConfig(r=RANK, lora_alpha=32, target_modules=[*projections, "lm_head"])
        self._model = get_peft_model(module, config)
        trained = [weight for weight in self._model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, batch: Batch) -> None:
        """One batch of sequences of the same length."""
        ids = torch.from_numpy(batch)
        logits = self._model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        loss = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        loss.item()


def main(model: Path, dtype: str, threads: int, rounds: int, lengths: list[int]) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    ours, bare = Ours(model, dtype), Bare(model, dtype)
    pairs = {"bare": (ours.alone, bare.step), "batched": (ours.together, ours.in_sequence)}
    rng = np.random.default_rng(0)
    for number in range(rounds + 1):
        for length in lengths:
            batch = rng.integers(0, LARGEST, (len(USERS), length + 1))
            for figure, (one, other) in pairs.items():
                steps = (one, other) if number % 2 else (other, one)
                taken = {step: _seconds(step, batch) for step in steps}
                line = {"figure": figure, "length": length}
                line |= {"ours": taken[one], "theirs": taken[other]}
                if number:
                    print(json.dumps(line), flush=True)


def _seconds(step: Callable[[Batch], None], batch: Batch) -> float:
    began = time.perf_counter()
    step(batch)
    return time.perf_counter() - began


if __name__ == "__main__":
    words = sys.argv[1:]
    main(Path(words[0]), words[1], int(words[2]), int(words[3]), [int(word) for word in words[4:]])
