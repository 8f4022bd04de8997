"""`vllm serve`, as launch files and images have it (`vllm serve --help` of 0.32.0)."""

from __future__ import annotations

import re

from enginehouse.engines.own_command import OwnCommand
from enginehouse.engines.vllm.history import REMOVED_FLAGS

OWN_COMMAND = OwnCommand(
    program=("vllm", "serve"),
    start=re.compile(r"\A\s*(?:vllm\s+serve|(?:\S*python3?\s+-m\s+)vllm\.entrypoints\S*)\s"),
    flags={
        "host": "--host",
        "port": "--port",
        "served_model_name": "--served-model-name",
        "tensor_parallel_size": "--tensor-parallel-size",
        "pipeline_parallel_size": "--pipeline-parallel-size",
        "data_parallel_size": "--data-parallel-size",
        "data_parallel_size_local": "--data-parallel-size-local",
        "distributed_executor_backend": "--distributed-executor-backend",
        "gpu_memory_utilization": "--gpu-memory-utilization",
    },
    spellings={
        "-tp": "tensor_parallel_size",
        "-pp": "pipeline_parallel_size",
        "-dp": "data_parallel_size",
        "-dpl": "data_parallel_size_local",
    },
    removed_flags=REMOVED_FLAGS,
    variables=("VLLM_",),
)
