"""One user saves for sampling, again and again, while another one samples all the time.

Prints how many samples a second the other one asked for and got before and during the saves, and of
each save until its first token how long it took and how many samples that were.
"""

from __future__ import annotations

import threading
import time

from lessons import answer, arguments, encode, lessons, step

import tinker
from tinker import types

LOOPS = 2  # samples of the other user in flight

given = arguments()
data = lessons(given["model"])[:2]
prompt = types.ModelInput.from_ints(encode(given["model"], "Count with me: one, two,"))
sampled: list[tuple[float, float]] = []  # the begin and end of each sample of the other user
over = threading.Event()


def sample_on(sampler: tinker.SamplingClient, seed: int) -> None:
    """One sample after another."""
    parameters = types.SamplingParams(max_tokens=2, seed=seed, stop=[])
    while not over.is_set():
        began = time.monotonic()
        sampler.sample(prompt=prompt, num_samples=1, sampling_params=parameters).result()
        sampled.append((began, time.monotonic()))


def between(begin: float, end: float) -> int:
    """How many samples began and ended then."""
    return sum(begin <= began and ended < end for began, ended in sampled)


with tinker.ServiceClient() as service, tinker.ServiceClient(api_key=given["other"]) as other:
    client = service.create_lora_training_client(base_model=given["model"], rank=8, seed=2).result()
    sampler = other.create_sampling_client(base_model=given["model"]).result()
    threads = [threading.Thread(target=sample_on, args=(sampler, seed)) for seed in range(LOOPS)]
    for thread in threads:
        thread.start()
    while len(sampled) < 4 * LOOPS:  # it is warm
        time.sleep(0.05)
    began = time.monotonic()
    time.sleep(given["seconds"])
    before = between(began, time.monotonic()) / given["seconds"]
    windows = []
    for _ in range(given["saves"]):
        step(client, data)
        began = time.monotonic()
        saved = client.save_weights_and_get_sampling_client().result()
        saved.sample(
            prompt=prompt, num_samples=1, sampling_params=types.SamplingParams(max_tokens=1)
        ).result()
        windows.append((began, time.monotonic()))
    over.set()
    for thread in threads:
        thread.join()
seconds = [end - begin for begin, end in windows]
samples = [between(*window) for window in windows]
answer(before=before, during=sum(samples) / sum(seconds), seconds=seconds, samples=samples)
