"""How a vLLM's log is read; what its lines mean is in failures.yaml.

The engine's processes (EngineCore, Worker…) know the cause; the API server's closing traceback only
says that the engine failed. The shape of the log was read in the sources of 0.32.0, seen on its CPU
build, and compared with what users of older versions report.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from enginehouse.diagnosis import (
    Diagnosis,
    FailureKind,
    LogProfile,
    RuleFiles,
    Surroundings,
    TwoBuilds,
    groups,
)
from enginehouse.engines.vllm.history import REMOVED_FLAGS

_REBUILD = "`enginehouse envs remove KEY`, then `enginehouse install vllm`"


def _flag(match: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    flag = match["flag"].partition("=")[0]
    fix = REMOVED_FLAGS.get(flag, "correct or remove it; the engine's --help=all lists its flags")
    return {"flag": flag, "fix": fix}


def _taken(match: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    free, total = float(match["free"]), float(match["total"])
    share = math.floor(100 * free / total - 2) / 100
    fix = (
        f"or lower --gpu-memory-utilization to {share:g}, if the model fits"
        if share > 0
        else "or choose another GPU with CUDA_VISIBLE_DEVICES"
    )
    if around.on_cpu:
        fix = "or set the size of the KV cache in GiB: --env VLLM_CPU_KVCACHE_SPACE=1"
    look = "`ps aux --sort=-rss`" if around.on_cpu else "`nvidia-smi`"
    where = "this machine" if around.on_cpu else "the GPU"
    return match.groupdict() | {"fix": f"stop what else uses {where} ({look} lists it), {fix}"}


def _cpu_cache(match: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    details = dict(groups(match, around))
    if float(match["wanted"]) <= 0:
        return details | {
            "cause": f"--gpu-memory-utilization leaves nothing for the KV cache: the engine "
            f"itself used more than its {match['share']} GiB",
            "fix": "raise --gpu-memory-utilization, or omit it",
        }
    return details | {
        "cause": "the KV cache was set to {wanted} GiB, and {free} GiB of this machine's memory "
        "are free".format_map(details),
        "fix": "lower --env VLLM_CPU_KVCACHE_SPACE=GIB (or --kv-cache-memory-bytes), or stop what "
        "else uses this machine",
    }


def _more_cache(match: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    said = dict(groups(match, around))
    needed = math.ceil(float(said.get("needed") or 1))
    more = (
        f"give the KV cache more memory: --env VLLM_CPU_KVCACHE_SPACE={max(needed, 2)} (GiB)"
        if around.on_cpu
        else "raise --gpu-memory-utilization (default 0.92) as far as others on the GPU allow, or "
        "use more GPUs (--tensor-parallel-size)"
    )
    longest = said.get("longest")
    return said | {
        "more": more,
        "shorten": f"use --max-model-len {longest}" if longest else "use a smaller --max-model-len",
    }


RULES = RuleFiles(
    Path(__file__).with_name("failures.yaml"),
    details={"taken": _taken, "cpu_cache": _cpu_cache, "more_cache": _more_cache, "flag": _flag},
)

PROFILE = LogProfile(
    name="vllm",
    title="vLLM",
    marks=re.compile(
        r"\bvllm\b|\bvLLM\b|vllm_\w|EngineCore|APIServer pid=|VllmWorker|MQLLMEngine"
        r"|\b(?:api_server|core|core_client|ray_utils|multiproc_\w+|gpu_model_runner|llm_engine"
        r"|worker_base)\.py:\d+\]|Automatically detected platform"
    ),
    rules=RULES,
    ready=re.compile(r"Application startup complete"),
    stopped=re.compile(r"\[shutdown\] API server: shutdown triggered"),
    pointer=re.compile(
        r"^RuntimeError: cancelled$|EngineCore encountered an issue|EngineDeadError"
        r"|EngineGenerateError|Executor failed\.$|Worker \S{1,60} pid \d+ died|Failed core proc"
        r"|^ChildProcessError: worker died"
        r"|Engine loop (?:has died|is not running)|Engine process failed to start"
        r"|Background loop (?:is not running|has errored)"
        r"|WorkerProc initialization failed|failed to be inspected"
        r"|Engine core initialization failed|MQEngineDeadError|Error in inspecting model arch"
        r"|Worker proc \S+ died|EngineCore failed to start\.$|EngineCore encountered a fatal error"
        r"|MQLLMEngine is already dead|terminating server process"
        r"|WorkerProc (?:failed to start|hit an exception)\.$|AsyncLLM output_handler failed"
    ),
    fatal=re.compile(
        r"EngineCore (?:failed to start|hit an exception|encountered a fatal)|WorkerProc (?:failed"
        r"|hit)"
        r"|Engine background task failed|Error executing method|Exception in worker"
    ),
    faint_marks=re.compile(r"(?:INFO|WARNING|ERROR) \d\d-\d\d \d\d:\d\d:\d\d \[?\w"),
    survived=re.compile(
        r"Invocation of \S+ method failed|Unexpected error pre-processing request|Dumping "
        r"|Engine Exception caught|Error in (?:preprocessing|inspecting)|Failed to import from"
    ),
    serves=re.compile(r"(?:^| )A[Pp][Ii]_?[Ss]erver"),
    works=re.compile(r"Engine|Worker|Ray"),
    lost=re.compile(r"Worker proc \S{1,80} died unexpectedly"),
    dead=re.compile(
        r"\b(?:Async|MQ)?EngineDeadError\b|already dead, terminating server process"
        r"|Engine loop has died|Background loop has errored already"
    ),
    meeting=re.compile(
        r"is using nccl==[\d.]{1,12}$|generating GPU P2P access cache|Started a local Ray instance"
    ),
    on_cpu=re.compile(r"cpu(?:_\w+)?\.py:"),
    two_builds=TwoBuilds(
        distributions=("vllm", "vllm_cpu"),
        diagnosis=Diagnosis(
            kind=FailureKind.WRONG_BUILD,
            evidence="",
            cause="the CUDA and the CPU build of vLLM are both installed in this environment, one "
            "over the other",
            fix=f"rebuild the environment: {_REBUILD}; do not install packages that depend on vllm",
        ),
    ),
    words=Surroundings(rebuild=_REBUILD, without_gpu="--variant cpu"),
)
