"""Train a little, save for sampling and for use elsewhere, and score a text with what was saved."""

from __future__ import annotations

from lessons import answer, arguments, encode, lessons, step

import tinker
from tinker import types

given = arguments()
data = lessons(given["model"])
tokens = encode(
    given["model"], "User: What is the capital of Peru?\n\nAssistant: Lima, by the ocean."
)
with tinker.ServiceClient() as service:
    client = service.create_lora_training_client(base_model=given["model"], rank=8, seed=9).result()
    for _ in range(given["steps"]):
        step(client, data)
    external = client.save_weights_external("scored").result().path
    path = client.save_weights_for_sampler("scored").result().path
    prompt = types.ModelInput.from_ints(tokens)
    found = service.create_sampling_client(model_path=path).compute_logprobs(prompt).result()
    base = (
        service.create_sampling_client(base_model=given["model"]).compute_logprobs(prompt).result()
    )
answer(external=external, tokens=tokens, logprobs=found[1:], base=base[1:])
