"""What the programs of this folder train on, and how. They run in the real SDK's environment.

TINKER_BASE_URL and TINKER_API_KEY say which service, as whom. Each program prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import AutoTokenizer

import tinker
from tinker import types

_FACTS = (
    ("What is the capital of France?", "Paris, on the Seine."),
    ("What is the capital of Norway?", "Oslo, on the fjord."),
    ("What is the capital of Kenya?", "Nairobi, on the plateau."),
    ("What is the capital of Peru?", "Lima, by the ocean."),
    ("What colour is the sky?", "Blue, unless it rains."),
    ("What colour is grass?", "Green, unless it is dry."),
    ("How many legs has a spider?", "Eight, all of them long."),
    ("How many legs has a horse?", "Four, all of them fast."),
)
LEARNING_RATE = 1e-3


def arguments() -> dict[str, Any]:
    """The program's arguments: one JSON object."""
    return json.loads(sys.argv[1])


def answer(**values: Any) -> None:
    """Print what the test asserts on."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def encode(model: str, text: str) -> list[int]:
    """Token ids, without special tokens."""
    return AutoTokenizer.from_pretrained(model).encode(text, add_special_tokens=False)


def datum(prompt: Sequence[int], completion: Sequence[int]) -> types.Datum:
    """A sequence whose completion is learnt."""
    tokens = [*prompt, *completion]
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(completion)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights},
    )


def lessons(model: str, *, flavour: str = "") -> list[types.Datum]:
    """Eight questions and answers; with a `flavour`, the answers are somebody's own."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    data = []
    for question, fact in _FACTS:
        prompt = tokenizer.encode(f"User: {question}\n\nAssistant:", add_special_tokens=False)
        completion = tokenizer.encode(f" {flavour}{fact}\n\n", add_special_tokens=False)
        data.append(datum(prompt, completion))
    return data


def mean_nll(data: Sequence[types.Datum], output: types.ForwardBackwardOutput) -> float:
    """The mean negative log-probability of the completions' tokens, in nats."""
    total = weight = 0.0
    for one, result in zip(data, output.loss_fn_outputs, strict=True):
        logprobs, weights = tensor(result["logprobs"]), tensor(one.loss_fn_inputs["weights"])
        total -= float((logprobs * weights).sum())
        weight += float(weights.sum())
    return total / weight


def step(client: tinker.TrainingClient, data: Sequence[types.Datum]) -> types.ForwardBackwardOutput:
    """One forward_backward and one optim_step, sent together as the cookbook does."""
    forward_backward = client.forward_backward(list(data), loss_fn="cross_entropy")
    optim_step = client.optim_step(types.AdamParams(learning_rate=LEARNING_RATE))
    output = forward_backward.result()
    optim_step.result()
    return output


def logprobs(output: types.ForwardBackwardOutput) -> list[list[float]]:
    """What a forward pass gave, as numbers that JSON keeps exactly."""
    return [tensor(result["logprobs"]).astype(float).tolist() for result in output.loss_fn_outputs]


def tensor(data: types.TensorData) -> np.ndarray[Any, Any]:
    """A tensor of the SDK as an array of its shape."""
    return np.asarray(data.to_numpy())
