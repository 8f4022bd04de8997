"""Save while the trainer's disk is full; then, once there is room, save again and resume."""

from __future__ import annotations

import time

from lessons import answer, arguments, lessons, mean_nll, step

import tinker

given = arguments()
data = lessons(given["model"])
with tinker.ServiceClient() as service:
    client = service.create_lora_training_client(base_model=given["model"], rank=8, seed=4).result()
    step(client, data)
    try:
        client.save_state("refused").result()
    except tinker.TinkerError as error:
        answer(failed=True, error=str(error))
    while True:
        try:
            path = client.save_state("taken").result().path
        except tinker.TinkerError:
            time.sleep(0.2)
        else:
            break
    expected = mean_nll(data, step(client, data))
    client = service.create_training_client_from_state_with_optimizer(path).result()
    answer(expected=expected, resumed=mean_nll(data, step(client, data)))
