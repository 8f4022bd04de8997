"""What vLLM's log says when memory does not suffice, and in which direction to change what.

The same word, memory, calls for opposite remedies: where less is free than the engine is to take,
lower what it takes; where nothing is left for its cache, raise it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from enginehouse.diagnosis import FailureKind, Rule, Surroundings, groups


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


K = FailureKind
RULES = (
    Rule(
        K.MEMORY_TAKEN,
        r"(?:Free memory on device|Available memory on node) .{0,40}?\((?P<free>[\d.]+)/"
        r"(?P<total>[\d.]+) GiB\) on startup is less than .{0,80}?\([\d.]+, (?P<wanted>[\d.]+) "
        r"GiB\)",
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
        K.NO_CACHE_MEMORY,
        r"Cannot auto-fit max_model_len|exceeds available Mamba cache blocks"
        r"|Available KV cache memory is negative"
        r"|[Nn]o (?:available|free) (?:GPU )?memory for (?:the )?(?:KV|kv|cache)",
        "weights and activations fill what the engine may take: nothing is left for the KV cache",
        "{more}, or a smaller --max-num-seqs",
        _more_cache,
    ),
    Rule(
        K.CONTEXT_EXCEEDS_MEMORY,
        r"max seq len \((?P<wanted>\d+)\), \(?(?P<needed>[\d.]+) GiB KV cache is "
        r"needed.{0,80}?memory "
        r"\((?P<free>[\d.]+) GiB\)(?:.{0,120}?maximum model length is (?P<longest>\d+))?",
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
        K.CONTEXT_EXCEEDS_MEMORY,
        r"max seq len \((?P<wanted>\d+)\) is larger than the maximum number of tokens that can be "
        r"stored in KV cache \((?P<longest>\d+)\)",
        "one request of {wanted} tokens does not fit into the KV cache, which holds {longest}",
        "{shorten}; or {more}",
        _more_cache,
    ),
    Rule(
        K.CONTEXT_EXCEEDS_MEMORY,
        r"KV cache is needed, which is larger than the available KV cache memory",
        "one request of the greatest length needs more KV cache than there is",
        "{shorten}; or {more}",
        _more_cache,
        vague=True,
    ),
    Rule(
        K.MEMORY_TAKEN,
        r"Error in memory profiling\.",
        "another process took or gave back memory of the GPU while {engine} measured how much it "
        "needs itself",
        "let one engine after the other start on a GPU, or end what else uses it (`nvidia-smi` "
        "lists it)",
    ),
)
