"""A supervised loop with the SDK's defaults but for the rank; then resumed by another client.

With "alias", the last weights are also saved for sampling, under that name.
"""

from __future__ import annotations

from lessons import answer, arguments, lessons, logprobs, mean_nll, step

import tinker

given = arguments()
data = lessons(given["model"])
losses, whole, resumed = [], [], []
with tinker.ServiceClient() as service:
    client = service.create_lora_training_client(base_model=given["model"], rank=8, seed=7).result()
    for number in range(given["steps"]):
        if number == given["saved_after"]:
            path = client.save_state("middle").result().path
        output = step(client, data)
        losses.append(mean_nll(data, output))
        whole.append(logprobs(output))
    if "alias" in given:
        named = {"alias": given["alias"]}
        client.save_weights_for_sampler(given["alias"], user_metadata=named).result()

with tinker.ServiceClient() as service:
    client = service.create_training_client_from_state_with_optimizer(path).result()
    resumed.extend(logprobs(step(client, data)) for _ in whole[given["saved_after"] :])
answer(path=path, losses=losses, whole=whole[given["saved_after"] :], resumed=resumed)
