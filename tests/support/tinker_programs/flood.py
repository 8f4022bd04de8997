"""Many samples and many large bodies at once, while several sessions keep their heartbeats.

Each body is one datum whose [N, K] targets make it large, so that it costs little to compute. Of
the heartbeats, it prints how many of each session were answered, how late the latest answer was,
and what went wrong with any.
"""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.request

import numpy as np
from lessons import answer, arguments, encode

import tinker
from tinker import types

ROWS, CANDIDATES = 24, 10_400  # 24 * 10,400 * (8 + 4) bytes are 3 MB

over = threading.Event()


class Heart(threading.Thread):
    """Sends a session's heartbeat every second, where the SDK does every ten, until all is over."""

    def __init__(self, session_id: str) -> None:
        super().__init__(daemon=True)
        self._session_id = session_id
        self.delays: list[float] = []
        self.errors: list[str] = []

    def run(self) -> None:
        """Note how long each answer takes; a heartbeat that fails does not end it."""
        while not over.wait(1.0):
            sent = time.monotonic()
            try:
                self._beat()
            except Exception as error:  # noqa: BLE001 (the test shows whatever it was)
                self.errors.append(repr(error))
            else:
                self.delays.append(time.monotonic() - sent)

    def _beat(self) -> None:
        request = urllib.request.Request(
            f"{os.environ['TINKER_BASE_URL']}/api/v1/session_heartbeat",
            data=json.dumps({"session_id": self._session_id, "type": "session_heartbeat"}).encode(),
            headers={
                "X-API-Key": os.environ["TINKER_API_KEY"],
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            assert reply.status == 200


given = arguments()
tokens = (encode(given["model"], "One day a small bird flew over the hills and ") * 4)[:ROWS]
targets = np.arange(ROWS * CANDIDATES, dtype=np.int64).reshape(ROWS, CANDIDATES) % 40_000
large = types.Datum(
    model_input=types.ModelInput.from_ints(tokens),
    loss_fn_inputs={
        "target_tokens": targets,
        "weights": np.full((ROWS, CANDIDATES), 1e-4, dtype=np.float32),
    },
)
services = [tinker.ServiceClient() for _ in range(given["sessions"])]
clients = [
    service.create_lora_training_client(base_model=given["model"], rank=4, seed=1).result()
    for service in services
]
sampler = services[0].create_sampling_client(base_model=given["model"]).result()
prompt = types.ModelInput.from_ints(encode(given["model"], "Count with me: one, two,"))
hearts = [Heart(service.holder.get_session_id()) for service in services]
for heart in hearts:
    heart.start()
started = time.monotonic()
samples = [
    sampler.sample(
        prompt=prompt,
        num_samples=1,
        sampling_params=types.SamplingParams(max_tokens=4, seed=number),
    )
    for number in range(given["samples"])
]
each = given["bodies"] // len(clients)
bodies = [client.forward([large] * each, loss_fn="cross_entropy") for client in clients]
sampled = [future.result() for future in samples]
after_samples = time.monotonic() - started
outputs = [future.result() for future in bodies]
elapsed = time.monotonic() - started
answer(phase="over")
# each session still works
still = [
    client.forward([large], loss_fn="cross_entropy").result().metrics["loss:sum"]
    for client in clients
]
over.set()
for heart in hearts:
    heart.join()
answer(
    samples=sum(len(response.sequences[0].tokens) for response in sampled),
    bodies=sum(len(output.loss_fn_outputs) for output in outputs),
    largest=max(np.prod(o.loss_fn_outputs[0]["logprobs"].shape) for o in outputs).item(),
    heartbeats=[len(heart.delays) for heart in hearts],
    slowest_heartbeat=max(delay for heart in hearts for delay in heart.delays),
    failed_heartbeats=[error for heart in hearts for error in heart.errors],
    sessions=[service.holder.get_session_id() for service in services],
    still=still,
    seconds=[after_samples, elapsed],
)
for service in services:
    service.close("success").result()
