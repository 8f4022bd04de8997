"""Several users, each with an adapter and data of its own: all at once, or one after the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lessons import answer, arguments, lessons, logprobs, step

import tinker

given = arguments()


def train(user: dict[str, Any]) -> list[list[list[float]]]:
    """The log-probabilities of every step."""
    data = lessons(given["model"], flavour=user["flavour"])
    with tinker.ServiceClient(api_key=user["key"]) as service:
        client = service.create_lora_training_client(
            base_model=given["model"], seed=user["seed"], **user["lora"]
        ).result()
        return [logprobs(step(client, data)) for _ in range(given["steps"])]


if given["together"]:
    with ThreadPoolExecutor(len(given["users"])) as threads:
        results = list(threads.map(train, given["users"]))
else:
    results = [train(user) for user in given["users"]]
answer(logprobs=results)
