"""An on-policy loop with importance sampling; how far sampled and trained log-probabilities differ.

Each round samples from a snapshot of the weights and trains on those samples, so that in float32
the ratio of both is 1 up to rounding.
"""

from __future__ import annotations

import numpy as np
from lessons import LEARNING_RATE, answer, arguments, encode, tensor

import tinker
from tinker import types

QUESTIONS = (
    "Once upon a time",
    "The best way to learn is",
    "In the morning, the",
    "My favourite food is",
    "The ship sailed to",
    "Mathematics is the study of",
    "When the rain stopped,",
    "A good friend always",
)

given = arguments()
random = np.random.default_rng(3)
prompts = [encode(given["model"], question) for question in QUESTIONS]
differences, metrics = [], []
with tinker.ServiceClient() as service:
    client = service.create_lora_training_client(
        base_model=given["model"], rank=8, seed=11
    ).result()
    for number in range(given["rounds"]):
        sampler = client.save_weights_and_get_sampling_client().result()
        parameters = types.SamplingParams(
            max_tokens=given["max_tokens"],
            temperature=given.get("temperature", 1.0),
            seed=100 + number,
            stop=[],
        )
        futures = [
            sampler.sample(
                prompt=types.ModelInput.from_ints(prompt),
                num_samples=given["samples"],
                sampling_params=parameters,
            )
            for prompt in prompts
        ]
        data = []
        for prompt, future in zip(prompts, futures, strict=True):
            for sequence in future.result().sequences:
                tokens = [*prompt, *sequence.tokens]
                masked = [0.0] * (len(prompt) - 1)
                advantage = float(random.normal())
                data.append(
                    types.Datum(
                        model_input=types.ModelInput.from_ints(tokens[:-1]),
                        loss_fn_inputs={
                            "target_tokens": tokens[1:],
                            "logprobs": [*masked, *sequence.logprobs],
                            "advantages": [*masked, *([advantage] * len(sequence.tokens))],
                        },
                    )
                )
        trained = client.forward_backward(data, loss_fn="importance_sampling")
        stepped = client.optim_step(types.AdamParams(learning_rate=LEARNING_RATE))
        output = trained.result()
        stepped.result()
        metrics.append(dict(output.metrics))
        for datum, result in zip(data, output.loss_fn_outputs, strict=True):
            asked = tensor(datum.loss_fn_inputs["advantages"]) != 0
            sampled = tensor(datum.loss_fn_inputs["logprobs"])[asked]
            differences.extend((sampled - tensor(result["logprobs"])[asked]).tolist())

array = np.array(differences)
answer(
    tokens=len(array),
    v1=float(array.mean()),
    v2=float(0.5 * np.square(array).mean()),
    mean_difference=float(np.abs(array).mean()),
    largest_difference=float(np.abs(array).max()),
    metrics=metrics,
)
