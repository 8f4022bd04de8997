"""A training loop that survives whatever happens to the service, and says how far it is.

With "sampled_every", it also samples from a snapshot. Prints a JSON object per step, and at the end
the log-probabilities of the last weights. These are downloaded into the file "download", from the
checkpoint "path".
"""

from __future__ import annotations

import urllib.request
from pathlib import Path

from lessons import answer, arguments, encode, lessons, logprobs, mean_nll, step

import tinker
from tinker import types

given = arguments()
data = lessons(given["model"])
with tinker.ServiceClient() as service:
    client = service.create_lora_training_client(base_model=given["model"], seed=5, rank=8).result()
    answer(step=-1, nll=None)
    for number in range(given["steps"]):
        half = data[:4] if number % 2 else data[4:]
        answer(step=number, nll=mean_nll(half, step(client, half)))
        if given["sampled_every"] and number % given["sampled_every"] == 0:
            sampler = client.save_weights_and_get_sampling_client().result()
            sampled = sampler.sample(
                prompt=types.ModelInput.from_ints(encode(given["model"], "User: What")),
                num_samples=1,
                sampling_params=types.SamplingParams(max_tokens=8, temperature=0.0),
            ).result()
            answer(step=number, sampled=list(sampled.sequences[0].tokens))
    last = logprobs(client.forward(data, loss_fn="cross_entropy").result())
    path = None
    if "download" in given:
        path = client.save_weights_external("last").result().path
        signed = tinker.RestClient().get_external_weights_urls(path).result()
        with urllib.request.urlopen(signed.urls["adapter_model.safetensors"]) as weights:
            Path(given["download"]).write_bytes(weights.read())
answer(last=last, path=path)
