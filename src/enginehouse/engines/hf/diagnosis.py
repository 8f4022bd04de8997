"""How the hf server's log is read, and the rules for what only it says.

One process, and one traceback at its end: what a step failed of before is survived. The texts are
the server's own; those of torch, transformers and aiohttp are shared by all engines.
"""

from __future__ import annotations

import re
from pathlib import Path

from enginehouse.diagnosis import KERNEL, LogProfile, RuleFiles, Surroundings

_LESS = "a smaller model, --max-model-len, --max-num-seqs or --max-num-batched-tokens"


RULES = RuleFiles(Path(__file__).with_name("failures.yaml"))

PROFILE = LogProfile(
    name="hf",
    title="transformers",
    marks=re.compile(r"hf_server|transformers [\d.]{3,12}, torch |listening on http://"),
    faint_marks=re.compile(
        r"\btransformers[/\\. ]|AutoModel|/accelerate/|AutoTokenizer"
        r"|text_generation_(?:launcher|server)"
    ),
    rules=RULES,
    ready=re.compile(r"listening on http://"),
    stopped=re.compile(r"^stopping$|Terminating webserver"),
    pointer=re.compile(
        r"the generating thread ended|a step failed$|generation failed$|ShardCannotStart"
        r"|Webserver ?(?:Crashed|Failed)|Error: (?:Shard|Download)\w{0,20}(?:\(|$)"
        r"|(?:Shard|Download) (?:complete standard error|process was signaled"
        r"|encountered an error|\d{1,4} (?:failed|crashed))"
    ),
    fatal=re.compile(r"generation failed"),
    survived=re.compile(r"a step failed"),
    killed_fix=f"{KERNEL}; if so, use {_LESS}",
    words=Surroundings(
        rebuild="`enginehouse envs remove KEY`, then `enginehouse install hf`",
        less_gpu_memory=f"check with `nvidia-smi` what else uses it; otherwise use {_LESS}, or a "
        "smaller --gpu-memory-utilization, which leaves more outside the KV cache",
    ),
)
