"""How an SGLang's log is read, and the rules for what only SGLang says.

As the sources of 0.5.23 have it, and as it was seen where a CPU can provoke it: a time and the
process in brackets, no level; an exception that ends a process follows "… hit an exception:" as a
bare traceback, and the main process then ends everything, itself included, with SIGKILL.
"""

from __future__ import annotations

import re
from pathlib import Path

from enginehouse.diagnosis import LogProfile, RuleFiles, Surroundings

_LESS_STATIC = (
    "use a smaller --gpu-memory-utilization (SGLang's --mem-fraction-static: weights and KV cache "
    "only; a step needs the rest), --max-num-seqs or --max-num-batched-tokens"
)


RULES = RuleFiles(
    Path(__file__).with_name("failures.yaml"), fragments={"LESS_STATIC": _LESS_STATIC}
)

PROFILE = LogProfile(
    name="sglang",
    title="SGLang",
    marks=re.compile(
        r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?: [A-Z]{2,4}\d{1,4})+\]"
        r"|sglang|mem-fraction-static|self\.watchdog_timeout|server_args=|sgl_kernel|sgl-kernel"
        r"|Scheduler hit an exception"
    ),
    rules=RULES,
    ready=re.compile(r"The server is fired up and ready to roll!"),
    stopped=re.compile(r"SIGTERM received\."),
    pointer=re.compile(
        r"Initialization failed\. (?:Please see|warmup error)|scheduler died during init"
        r"|Received sigquit from a child|SIGQUIT received|Subprocess \S+ \(pid=\d+\) crashed"
        r"|kill_process_tree called|scheduler is dead"
    ),
    fatal=re.compile(
        r"hit an exception|[Ww]atchdog timeout|Initialization failed|crashed |died during init"
    ),
    ends_itself=re.compile(r"Received sigquit|SIGQUIT received|kill_process_tree called"),
    works=re.compile(r"(?:^| )[A-Z]+\d"),
    meeting=re.compile(r"Init torch distributed begin"),
    error_lines=re.compile(
        r"Initialization failed\. |Subprocess \S+ \(pid=\d+\) crashed|Received sigquit"
        r"|SIGQUIT received|(?:\w{1,40} )?[Ww]atchdog timeout \(self\.watchdog_timeout=[\d.]{1,12}"
        r"(?:, self\.soft=False|\))"
    ),
    words=Surroundings(
        rebuild="`enginehouse envs remove KEY`, then `enginehouse install sglang`",
        without_gpu="--engine vllm or hf",
        less_gpu_memory=f"{_LESS_STATIC}; `nvidia-smi` shows whether another program uses some",
    ),
)
