"""`sglang.launch_server`, as launch files and images have it (its server_args.py in 0.5.23)."""

from __future__ import annotations

import re

from enginehouse.engines.own_command import OwnCommand
from enginehouse.engines.sglang.history import REMOVED_FLAGS

OWN_COMMAND = OwnCommand(
    program=("python3", "-m", "sglang.launch_server", "--model-path"),
    start=re.compile(r"\A\s*(?:sglang\s+serve|(?:\S*python3?\s+-m\s+)sglang\.launch_server)\s"),
    flags={
        "host": "--host",
        "port": "--port",
        "served_model_name": "--served-model-name",
        "tensor_parallel_size": "--tp-size",
        "pipeline_parallel_size": "--pp-size",
        "data_parallel_size": "--dp-size",
        "gpu_memory_utilization": "--mem-fraction-static",
    },
    spellings={
        "--tensor-parallel-size": "tensor_parallel_size",
        "--tp": "tensor_parallel_size",
        "--pipeline-parallel-size": "pipeline_parallel_size",
        "--pp": "pipeline_parallel_size",
        "--data-parallel-size": "data_parallel_size",
        "--dp": "data_parallel_size",
    },
    removed_flags=REMOVED_FLAGS,
    variables=("SGLANG_", "SGL_"),
)
