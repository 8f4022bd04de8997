"""How a vLLM's log is read.

The engine's processes (EngineCore, Worker…) know the cause; the API server's closing traceback only
says that the engine failed. What the lines mean is in vllm_failures.py and vllm_memory.py. The
shape of the log was read in the sources of 0.32.0, seen on its CPU build, and compared with what
users of older versions report.
"""

from __future__ import annotations

import re

from enginehouse.diagnosis import Diagnosis, FailureKind, LogProfile, Surroundings
from enginehouse.engines.vllm import failures as vllm_failures
from enginehouse.engines.vllm import memory as vllm_memory

_REBUILD = "`enginehouse envs remove KEY`, then `enginehouse install vllm`"

PROFILE = LogProfile(
    name="vllm",
    title="vLLM",
    marks=re.compile(
        r"\bvllm\b|\bvLLM\b|vllm_\w|EngineCore|APIServer pid=|VllmWorker|MQLLMEngine"
        r"|\b(?:api_server|core|core_client|ray_utils|multiproc_\w+|gpu_model_runner|llm_engine"
        r"|worker_base)\.py:\d+\]|Automatically detected platform"
    ),
    rules=(*vllm_memory.RULES, *vllm_failures.RULES),
    ready=re.compile(r"Application startup complete"),
    stopped=re.compile(r"\[shutdown\] API server: shutdown triggered"),
    pointer=re.compile(
        r"EngineCore encountered an issue|WorkerProc initialization failed|failed to be inspected"
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
    on_cpu=re.compile(r"cpu(?:_\w+)?\.py:"),
    two_builds=Diagnosis(
        kind=FailureKind.WRONG_BUILD,
        evidence="",
        cause="the CUDA and the CPU build of vLLM are both installed in this environment, one over "
        "the other",
        fix=f"make the environment again: {_REBUILD}; install nothing into it that depends on vllm",
    ),
    words=Surroundings(rebuild=_REBUILD, without_gpu="--variant cpu"),
)
