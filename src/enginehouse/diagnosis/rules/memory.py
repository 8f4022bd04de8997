"""Memory of GPUs and of the machine."""

from __future__ import annotations

import re
from collections.abc import Mapping

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule, Surroundings, groups

K = FailureKind
_SIZE = r"[\d.]{1,12} [KMGT]?i?B(?:ytes)?"


def _cuda_memory(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    # In a container the engine itself may be listed as such a process, by its number outside.
    said = found.string[found.start() :]
    others = re.search(rf"Process \d+ has {_SIZE}", said) and "this process has" in said
    free = re.search(rf"total capacity of ({_SIZE}) of which ({_SIZE}) is free", said)
    wanted = found["wanted"]
    return dict(groups(found, around)) | {
        "wanted": f": {wanted} more was wanted" if wanted else "",
        "free": f", and {free[2]} of {free[1]} was free" if free else "",
        "fix": "another process holds memory of that GPU: `nvidia-smi` lists it; end it, or choose "
        "another GPU with CUDA_VISIBLE_DEVICES"
        if others
        else around.less_gpu_memory,
    }


def _host_memory(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    wanted = found["wanted"]
    return {"wanted": f" when {int(wanted) / 2**30:.1f} GiB more was wanted" if wanted else ""}


RULES = (
    Rule(
        K.OUT_OF_MEMORY,
        rf"(?:CUDA|HIP|XPU|NPU|MPS(?: backend)?) out of memory\.?(?: Tried to allocate "
        rf"(?P<wanted>{_SIZE}))?",
        "the GPU's memory ran out{wanted}{free}",
        "{fix}",
        _cuda_memory,
        late=True,
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|NCCL[^\n]{0,200}out of memory"
        r"|(?:Cuda|HIP) failure:? (?:2 )?'out of memory'|CUDA_ERROR_OUT_OF_MEMORY"
        r"|cudaErrorMemoryAllocation"
        r"|cudaMalloc[^\n]{0,40}failed: out of memory|CUDNN_STATUS_ALLOC_FAILED"
        r"|Triton Error \[CUDA\]: out of memory|HIP error: out of memory"
        r"|torch\.(?:cuda\.)?OutOfMemoryError|would exceed allowed memory"
        r"|PT_DEVMEM Allocation failed|modules are dispatched on the CPU or the disk",
        "the GPU's memory ran out outside torch's own pool",
        "see with `nvidia-smi` who uses it; a smaller --gpu-memory-utilization leaves more for "
        "CUDA itself",
        spoken=True,
        late=True,
    ),
    Rule(
        K.HOST_MEMORY,
        r"DefaultCPUAllocator: (?:can't allocate|not enough) memory"
        r"(?:: you tried to allocate (?P<wanted>\d{1,18}) bytes)?|std::bad_alloc|\bMemoryError\b"
        r"|Cannot allocate memory|Failed to allocate memory|Unable to allocate [^\n]{0,80} for an "
        r"array|\[Errno 12\]|failed to (?:map|pin|lock) [^\n]{0,40}memory"
        r"|cudaHostAlloc[^\n]{0,40}fail"
        r"|paging file is too small|WinError 1455"
        r"|running low on memory|more system memory \([\d.]{1,9} \w{1,4}\) than is available"
        r"|Too large swap space|not enough (?:CPU|host|system) memory",
        "this machine's own memory (not the GPU's) ran out{wanted}, or a limit on it was met "
        "(`ulimit -v`, a container's or a batch job's)",
        "see `free -g` and `ulimit -v`; give the job more memory, or load less: a smaller model, "
        "and on a CPU a smaller KV cache (--env VLLM_CPU_KVCACHE_SPACE=GIB for vLLM)",
        _host_memory,
        late=True,
    ),
    Rule(
        K.HOST_MEMORY,
        r"oom[-_ ]kill(?:er)? event|Out of memory: Killed process|Memory cgroup out of memory"
        r"|OOMKilled|oom_reaper|Exceeded (?:job|step) memory limit"
        r"|std::bad_alloc|ray\.exceptions\.OutOfMemoryError",
        "this machine's own memory (not the GPU's), or what a container or a batch job may use of "
        "it, ran out, and the kernel killed a process",
        "see `free -g`; give the job more memory, or load less: a smaller model, fewer processes",
        spoken=True,
        late=True,
    ),
)
