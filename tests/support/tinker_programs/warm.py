"""Samples at a temperature, beside what the trainer makes of the same tokens.

The trainer gives the log-probability of every token of the vocabulary, so that those of the
distribution which was sampled from can be computed here.
"""

from __future__ import annotations

import numpy as np
from lessons import answer, arguments, encode, lessons, step, tensor

import tinker
from tinker import types

PIECE = 8  # tokens of which all log-probabilities are asked at a time

given = arguments()
prompt = encode(given["model"], "Once upon a time")
sampled, raw, scaled = [], [], []
with tinker.ServiceClient() as service:
    client = service.create_lora_training_client(base_model=given["model"], rank=8, seed=3).result()
    step(client, lessons(given["model"]))
    sampler = client.save_weights_and_get_sampling_client().result()
    response = sampler.sample(
        prompt=types.ModelInput.from_ints(prompt),
        num_samples=given["samples"],
        sampling_params=types.SamplingParams(
            max_tokens=given["max_tokens"], temperature=given["temperature"], seed=4, stop=[]
        ),
    ).result()
    for sequence in response.sequences:
        made = list(sequence.tokens)
        sampled.extend(sequence.logprobs)
        for begin in range(0, len(made), PIECE):
            context, wanted = [*prompt, *made[:begin]], made[begin : begin + PIECE]
            tokens = [*context, *wanted[:-1]]
            targets = np.zeros((len(tokens), given["vocabulary"]), np.int64)
            targets[-len(wanted) :] = np.arange(given["vocabulary"])
            datum = types.Datum(
                model_input=types.ModelInput.from_ints(tokens),
                loss_fn_inputs={
                    "target_tokens": targets,
                    "weights": np.zeros(targets.shape, np.float32),
                },
            )
            output = client.forward([datum], loss_fn="cross_entropy").result()
            rows = tensor(output.loss_fn_outputs[0]["logprobs"])[-len(wanted) :].astype(float)
            raw.extend(rows[np.arange(len(wanted)), wanted].tolist())
            cooled = rows / given["temperature"]
            cooled -= np.logaddexp.reduce(cooled, axis=1, keepdims=True)
            scaled.extend(cooled[np.arange(len(wanted)), wanted].tolist())


def distance(expected: list[float]) -> float:
    """The mean difference from what the samples came with."""
    return float(np.abs(np.array(sampled) - np.array(expected)).mean())


answer(tokens=len(sampled), raw=distance(raw), scaled=distance(scaled))
