"""How the hf server's log is read, and the rules for what only it says.

One process, and one traceback at its end: what a step failed of before is survived. The texts are
the server's own; those of torch, transformers and aiohttp are shared by all engines.
"""

from __future__ import annotations

import re

from enginehouse.diagnosis import FailureKind, LogProfile, Rule, Surroundings

K = FailureKind
_LESS = "a smaller model, --max-model-len, --max-num-seqs or --max-num-batched-tokens"
_RULES = (
    Rule(
        K.CONTEXT_TOO_LONG,
        r"max_model_len \((?P<wanted>\d+)\) is greater than the model's own \((?P<most>\d+)\)",
        "the model was made for at most {most} tokens, and --max-model-len says {wanted}",
        "--max-model-len {most}, or leave it out",
    ),
    Rule(
        K.CONTEXT_EXCEEDS_MEMORY,
        r"max_model_len \((?P<wanted>\d+)\) is greater than what the KV cache can hold "
        r"\((?P<most>\d+) tokens\)",
        "one request of {wanted} tokens does not fit into the KV cache, which holds {most}",
        "--max-model-len {most}, or leave it out; --kv-cache-memory-bytes in extra_args gives the "
        "cache more memory",
    ),
    Rule(
        K.NO_CACHE_MEMORY,
        r"No available memory for the KV cache",
        "weights and activations fill what the engine may take: nothing is left for the KV cache",
        "raise --gpu-memory-utilization, take a smaller model, or a smaller --dtype",
    ),
    Rule(
        K.NO_GPU,
        r"--device cuda: torch finds no CUDA GPU",
        "a CUDA GPU was wanted, and torch sees none",
        "leave --device out; or see whether `nvidia-smi` works here, CUDA_VISIBLE_DEVICES is "
        "right, and the environment is the cuda variant",
    ),
)

PROFILE = LogProfile(
    name="hf",
    title="transformers",
    marks=re.compile(r"hf_server|transformers [\d.]{3,12}, torch |listening on http://"),
    faint_marks=re.compile(
        r"\btransformers[/. ]|AutoModel|/accelerate/|AutoTokenizer"
        r"|text_generation_(?:launcher|server)"
    ),
    rules=_RULES,
    ready=re.compile(r"listening on http://"),
    stopped=re.compile(r"^stopping$"),
    pointer=re.compile(
        r"the generating thread ended|a step failed$|generation failed$|ShardCannotStart"
        r"|Shard (?:complete standard error|process was signaled|\d{1,4} failed)"
    ),
    fatal=re.compile(r"generation failed"),
    survived=re.compile(r"a step failed"),
    killed_fix="ask the kernel whether it was for memory: `dmesg -T | grep -i 'killed process'` "
    f"(in a container: oom_kill in /sys/fs/cgroup/memory.events); if so, {_LESS}",
    words=Surroundings(
        rebuild="`enginehouse envs remove KEY`, then `enginehouse install hf`",
        less_gpu_memory=f"see with `nvidia-smi` who else uses it; else {_LESS}, or a smaller "
        "--gpu-memory-utilization, which leaves more beside the KV cache",
    ),
)
