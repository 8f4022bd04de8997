"""Times a user's saves for sampling, each until its first token: MODEL RANK TOKENS.

Run by a Python with the real SDK; TINKER_BASE_URL and TINKER_API_KEY name the service. Every line
on standard input is one measurement: after a step of training, which is not timed, the weights are
saved, and one token is sampled from them after a prompt of TOKENS tokens. Each is answered with a
line, the seconds that it took.
"""

from __future__ import annotations

import sys
import time

import tinker
from tinker import types


def main() -> None:
    """Make an adapter, then measure as often as asked."""
    model, rank, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    service = tinker.ServiceClient()
    client = service.create_lora_training_client(base_model=model, rank=rank).result()
    tokens = list(range(100, 101 + length))
    lesson = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [1.0] * length},
    )
    prompt = types.ModelInput.from_ints(tokens[:-1])
    print("ready", flush=True)
    for _ in sys.stdin:
        client.forward_backward([lesson], "cross_entropy").result()
        client.optim_step(types.AdamParams(learning_rate=1e-3)).result()
        began = time.perf_counter()
        sampler = client.save_weights_and_get_sampling_client().result()
        one = types.SamplingParams(max_tokens=1)
        sampler.sample(prompt=prompt, num_samples=1, sampling_params=one).result()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
