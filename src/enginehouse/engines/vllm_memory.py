"""What vLLM's log says when memory does not suffice, and in which direction to change what.

The same word, memory, calls for opposite remedies: where less is free than the engine is to take,
lower what it takes; where nothing is left for its cache, raise it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from enginehouse.engines.diagnosis import FailureKind, Rule, Surroundings, groups


def _taken(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    free, total = float(found["free"]), float(found["total"])
    share = math.floor(100 * free / total - 2) / 100
    fix = (
        f"or lower --gpu-memory-utilization to {share:g}, if the model fits into that"
        if share > 0
        else "or choose another GPU with CUDA_VISIBLE_DEVICES"
    )
    if around.on_cpu:
        fix = "or say how many GiB its KV cache is to have: --env VLLM_CPU_KVCACHE_SPACE=1"
    look = "`ps aux --sort=-rss`" if around.on_cpu else "`nvidia-smi`"
    where = "this machine" if around.on_cpu else "the GPU"
    return found.groupdict() | {"fix": f"end what else uses {where} ({look} lists it), {fix}"}


def _cpu_cache(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    details = dict(groups(found, around))
    if float(found["wanted"]) <= 0:
        return details | {
            "cause": f"--gpu-memory-utilization leaves nothing for the KV cache: of its "
            f"{found['share']} GiB, the engine itself took more",
            "fix": "raise --gpu-memory-utilization, or leave it out",
        }
    return details | {
        "cause": "the KV cache was to have {wanted} GiB, and {free} GiB of this machine's memory "
        "are free".format_map(details),
        "fix": "lower --env VLLM_CPU_KVCACHE_SPACE=GIB (or --kv-cache-memory-bytes), or end what "
        "else uses this machine",
    }


def _more_cache(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    said = dict(groups(found, around))
    needed = math.ceil(float(said.get("needed") or 1))
    more = (
        f"give the KV cache more memory: --env VLLM_CPU_KVCACHE_SPACE={max(needed, 2)} (GiB)"
        if around.on_cpu
        else "raise --gpu-memory-utilization (0.92 unless given) as far as other users of the GPU "
        "allow, or take more GPUs (--tensor-parallel-size)"
    )
    longest = said.get("longest")
    return said | {
        "more": more,
        "shorten": f"--max-model-len {longest}" if longest else "a smaller --max-model-len",
    }


def _cuda_memory(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    # In a container the engine itself may be listed as such a process, by its number outside.
    others = found["others"] and "this process has" in found.string
    return dict(groups(found, around)) | {
        "wanted": f": {found['wanted']} more was wanted" if found["wanted"] else "",
        "free": f", and {found['free']} of {found['total']} was free" if found["free"] else "",
        "fix": "another process holds memory of that GPU: `nvidia-smi` lists it; end it, or choose "
        "another GPU with CUDA_VISIBLE_DEVICES"
        if others
        else "while it loads: more GPUs (--tensor-parallel-size), a smaller or quantized model; "
        "while it works: a smaller --max-num-seqs, --max-num-batched-tokens or "
        "--gpu-memory-utilization, which leaves more beside the KV cache",
    }


def _host_memory(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    wanted = found["wanted"]
    return {"wanted": f" when {int(wanted) / 2**30:.1f} GiB more was wanted" if wanted else ""}


K = FailureKind
_SIZE = r"[\d.]+ [KMGT]?i?B(?:ytes)?"
RULES = (
    Rule(
        K.MEMORY_TAKEN,
        r"(?:Free memory on device|Available memory on node) .*?\((?P<free>[\d.]+)/"
        r"(?P<total>[\d.]+) GiB\) on startup is less than .*?\([\d.]+, (?P<wanted>[\d.]+) GiB\)",
        "only {free} of {total} GiB are free, and the engine is to take {wanted} GiB",
        "{fix}",
        _taken,
    ),
    Rule(
        K.NO_CACHE_MEMORY,
        r"\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on kv cache allocation is less than requested "
        r"memory for kv \((?P<wanted>-?[\d.]+)(?:/(?P<share>[\d.]+))? GiB\)",
        "{cause}",
        "{fix}",
        _cpu_cache,
    ),
    Rule(
        K.NO_CACHE_MEMORY,
        r"No available memory for the cache blocks",
        "weights and activations fill what the engine may take: nothing is left for the KV cache",
        "{more}; lower would be wrong",
        _more_cache,
    ),
    Rule(
        K.CONTEXT_EXCEEDS_MEMORY,
        r"max seq len \((?P<wanted>\d+)\), \(?(?P<needed>[\d.]+) GiB KV cache is needed.*?memory "
        r"\((?P<free>[\d.]+) GiB\)(?:.*?maximum model length is (?P<longest>\d+))?",
        "one request of {wanted} tokens needs {needed} GiB of KV cache, and there are {free} GiB",
        "{shorten}; or {more}",
        _more_cache,
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"CUDA out of memory occurred when warming up \w+ with (?P<requests>\d+) dummy requests",
        "the GPU's memory does not suffice for {requests} sequences at once",
        "a smaller --max-num-seqs, or a smaller --gpu-memory-utilization, which leaves more beside "
        "the KV cache",
    ),
    Rule(
        K.OUT_OF_MEMORY,
        rf"CUDA out of memory\.(?: Tried to allocate (?P<wanted>{_SIZE}))?(?:.*?total capacity of "
        rf"(?P<total>{_SIZE}) of which (?P<free>{_SIZE}) is free)?"
        rf"(?:.*?(?P<others>Process \d+ has {_SIZE}))?",
        "the GPU's memory ran out{wanted}{free}",
        "{fix}",
        _cuda_memory,
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|NCCL.*out of memory",
        "the GPU's memory ran out outside torch's own pool",
        "see with `nvidia-smi` who uses it; a smaller --gpu-memory-utilization leaves more for "
        "CUDA itself",
    ),
    Rule(
        K.HOST_MEMORY,
        r"DefaultCPUAllocator: (?:can't allocate|not enough) memory"
        r"(?:: you tried to allocate (?P<wanted>\d+) bytes)?|std::bad_alloc|^MemoryError\b"
        r"|Cannot allocate memory|Failed to allocate memory|Unable to allocate .* for an array",
        "this machine's own memory (not the GPU's) ran out{wanted}, or a limit on it was met "
        "(`ulimit -v`, a container's or a batch job's)",
        "see `free -g` and `ulimit -v`; give the job more memory, or load less: a smaller model, "
        "and on a CPU a smaller --env VLLM_CPU_KVCACHE_SPACE=GIB",
        _host_memory,
    ),
)
