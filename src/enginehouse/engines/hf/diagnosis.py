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

# Text Generation Inference, whose launcher and router are written in Rust.
_TGI = (
    Rule(
        K.OUT_OF_MEMORY,
        r"Not enough memory to handle (?P<tokens>\d+) (?:prefill )?tokens|[Yy]ou need to decrease "
        r"`--max-batch-prefill-tokens`",
        "the GPU's memory does not suffice for one step of {tokens} tokens",
        "a smaller --max-batch-prefill-tokens, --max-input-tokens or --max-batch-size, or more "
        "GPUs",
    ),
    Rule(
        K.CONTEXT_EXCEEDS_MEMORY,
        r"Not enough memory to handle `?max_total_tokens|NotEnoughMemory\((?P<tokens>\d+)",
        "the KV cache cannot hold one request of the greatest length {tokens}",
        "a smaller --max-total-tokens, or more GPUs",
    ),
    Rule(
        K.NO_GPU,
        r"only found 0 CUDA devices",
        "the launcher finds no GPU",
        "see whether `nvidia-smi` works here, and that the container gets the GPUs (--gpus all)",
    ),
    Rule(
        K.PARALLELISM,
        r"NotEnoughCUDADevices|only found (?P<there>\d+) CUDA devices",
        "more shards are asked for than GPUs can be seen {there}",
        "a smaller --num-shard, or show more GPUs (CUDA_VISIBLE_DEVICES, --gpus all)",
    ),
    Rule(
        K.WRONG_VALUE,
        r"ArgumentValidation\(\"(?P<why>[^\"\n]{1,300})"
        r"|(?P<rule>`max_\w{1,40}` must be [^\n]{1,120})",
        "the launcher refuses its options: {why}{rule}",
        "correct the option that it names",
    ),
    Rule(
        K.WEIGHTS_MISMATCH,
        r"RuntimeError: weight (?P<name>\S{1,200}) does not exist",
        "the checkpoint lacks the weight {name}, which this architecture has",
        "see that config.json belongs to these weights, and how they were saved",
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
    rules=(*_RULES, *_TGI),
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
    killed_fix="ask the kernel whether it was for memory: `dmesg -T | grep -i 'killed process'` "
    f"(in a container: oom_kill in /sys/fs/cgroup/memory.events); if so, {_LESS}",
    words=Surroundings(
        rebuild="`enginehouse envs remove KEY`, then `enginehouse install hf`",
        less_gpu_memory=f"see with `nvidia-smi` who else uses it; else {_LESS}, or a smaller "
        "--gpu-memory-utilization, which leaves more beside the KV cache",
    ),
)
