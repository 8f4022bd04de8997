"""A loop that trains a real model: CHECKPOINT, FOLDER, how to evaluate as JSON, and lora or full.

With null instead of settings it never evaluates. Prints {state, losses, draws, evaluations}.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from enginehouse.training import CheckpointEvaluator, Evaluation

STEPS = 2
RATES = {"lora": 3e-2, "full": 1e-3}  # so large that each step's answers differ
TEXTS = [
    "VOTE: BLACK because cooperation wins.",
    "The engine house stands beside the mine, and its chimney can be seen from the sea.",
    "To be kept running, an engine needs water, coal and somebody who listens to it.",
]


def main() -> None:
    """Train, and evaluate after each step if that is wanted."""
    checkpoint, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)  # the order of sums must not depend on what else is running
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    if sys.argv[4] == "lora":
        config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
        model = get_peft_model(model, config)
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATES[sys.argv[4]])
    asks = CheckpointEvaluator(folder=folder, notify=say, **settings) if settings else None
    losses: list[str] = []
    evaluations: list[Evaluation] = []
    for step in range(1, STEPS + 1):
        first = random.randrange(3) + int(np.random.randint(3))  # noqa: NPY002
        tokens = tokenizer(TEXTS[first % 3], return_tensors="pt").input_ids
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item().hex())
        if asks is not None:
            evaluations.append(
                asks.evaluate(step, model=model, tokenizer=tokenizer, optimizer=optimizer)
            )
    draws = [random.random(), float(np.random.random()), torch.rand(3).tolist()]  # noqa: NPY002
    done = {
        "state": digest([*model.parameters(), *model.buffers(), *moments(optimizer)]),
        "losses": losses,
        "draws": draws,
        "evaluations": msgspec.to_builtins(evaluations),
    }
    sys.stdout.write(json.dumps(done) + "\n")


def moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The optimizer's state."""
    states: list[dict[str, Any]] = list(optimizer.state.values())
    return [value for state in states for _, value in sorted(state.items())]


def digest(tensors: list[torch.Tensor]) -> str:
    """Of every bit."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def say(line: str) -> None:
    """On standard error, as a trainer's log would be."""
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    main()
