"""The load of this machine's servers and GPUs."""

from __future__ import annotations

import msgspec


class GpuReading(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU now; `load` is the fraction of the last moment (up to 1 s) in which a kernel ran.

    What the driver does not report is None: memory that is the machine's own, load under MIG.
    `index` is the driver's, which CUDA's may differ from; `uuid` names the GPU for both.
    `capability` is the compute capability, such as 9.0.
    """

    index: int
    uuid: str
    name: str
    used_bytes: int | None
    total_bytes: int | None
    load: float | None
    capability: float | None = None


class ServerActivity(msgspec.Struct, frozen=True, kw_only=True):
    """One server now. Rates, `cpu` and `prefix_cache_hits` are since the last look at it.

    None is unknown, as is everything about the processes of an external server (`name` None).
    `problem` says what is wrong with it, or why its queue is not known. `prefix_cache_hits` is the
    share of the prompts' tokens, `cpu` is in cores; `rss_bytes` counts memory that processes share
    once for each of them, `gpu_bytes` is over all GPUs.
    """

    name: str | None
    url: str
    state: str
    problem: str | None = None
    running: int | None = None
    waiting: int | None = None
    kv_cache_usage: float | None = None
    prompt_tokens_per_second: float | None = None
    output_tokens_per_second: float | None = None
    preemptions: int | None = None
    prefix_cache_hits: float | None = None
    processes: int | None = None
    cpu: float | None = None
    rss_bytes: int | None = None
    gpu_bytes: int | None = None


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """All servers and GPUs of a machine; `at` in seconds since the epoch. No NVML: no `gpus`."""

    at: float
    servers: tuple[ServerActivity, ...]
    gpus: tuple[GpuReading, ...]
