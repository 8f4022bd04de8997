"""How an SGLang's log is read, and the rules for what only SGLang says.

As the sources of 0.5.23 have it, and as it was seen where a CPU can provoke it: a time and the
process in brackets, no level; an exception that ends a process follows "… hit an exception:" as a
bare traceback, and the main process then ends everything, itself included, with SIGKILL.
"""

from __future__ import annotations

import re

from enginehouse.diagnosis import FailureKind, LogProfile, Rule, Surroundings

K = FailureKind
_LESS_STATIC = (
    "a smaller --gpu-memory-utilization (SGLang's --mem-fraction-static: weights and KV cache "
    "only; what a step computes needs the rest), --max-num-seqs or --max-num-batched-tokens"
)
RULES = (
    Rule(
        K.PORT_TAKEN,
        r"(?P<name>\w{1,60}) at (?P<port>\d+) is not available in \d+ seconds",
        "another program listens on a port that the server needs for {name}: {port}",
        "leave --port out, so that free ones are leased, or end that program: `ss -ltnp` names it",
    ),
    Rule(
        K.NO_CACHE_MEMORY,
        r"Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static="
        r"(?P<is>[\d.]{1,9})\. Raise --mem-fraction-static above (?P<least>[\d.]{1,9})",
        "the weights alone need more of the GPU than the share of {is} that they and the KV cache "
        "may take",
        "--gpu-memory-utilization above {least}; where that is near 1, a larger GPU, more of them "
        "(--tensor-parallel-size), or a smaller or quantized model",
    ),
    Rule(
        K.NO_CACHE_MEMORY,
        r"Not enought? memory\. Please try to increase --mem-fraction-static"
        r"(?:\.\s{1,4}Current value: mem_fraction_static=(?P<is>[\d.]{0,9}\d))?",
        "beside the weights no memory is left for the KV cache {is}",
        "a larger --gpu-memory-utilization (SGLang's --mem-fraction-static), a larger GPU or more "
        "of them (--tensor-parallel-size), or a smaller model",
    ),
    Rule(
        K.NO_CACHE_MEMORY,
        r"max_running_requests? is zero|max_total_num_tokens[^\n]{0,20}(?:<=? ?0|is (?:zero|neg"
        r"|not pos))"
        r"|(?:KV cache|[Mm]emory) pool (?:size )?is too small|not enough memory for (?:the )?KV",
        "beside the weights no memory is left for the KV cache",
        "a larger --gpu-memory-utilization (SGLang's --mem-fraction-static), a larger GPU or more "
        "of them (--tensor-parallel-size), or a smaller model",
    ),
    Rule(
        K.MEMORY_TAKEN,
        r"[Tt]he memory capacity is unbalanced\.",
        "one of the GPUs has much less free memory than the others: another program is on it",
        "`nvidia-smi` names it; end it, or choose other GPUs with CUDA_VISIBLE_DEVICES",
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"Capture (?:prefill CUDA|cuda) graph failed: [^\n]{0,60}out of memory",
        "capturing CUDA graphs needs more GPU memory than weights and KV cache left free",
        _LESS_STATIC + "; or --enforce-eager, which is much slower",
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"(?:Prefill|Decode) out of memory\. Try to lower",
        "the GPU's memory ran out",
        _LESS_STATIC + "; `nvidia-smi` shows whether another program takes some",
        late=True,
    ),
    Rule(
        K.ENGINE_DIED,
        r"alloc_req_slots runs out of memory|Out of request slots",
        "more requests were computed at once than SGLang had set places aside for",
        "let clients send fewer requests at once, or set another --max-num-seqs (SGLang's "
        "--max-running-requests); if it comes back, take another version",
        late=True,
    ),
    Rule(
        K.CONTEXT_TOO_LONG,
        r"context_length \((?P<wanted>\d+)\) is greater than the derived context_length "
        r"\((?P<most>\d+)\)",
        "the model was made for at most {most} tokens, and --max-model-len says {wanted}",
        "--max-model-len {most}, or leave it out; --env SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1"
        " insists, at the price of wrong answers",
    ),
    Rule(
        K.WRONG_VALUE,
        r"you need to specify both --max-lora-rank and --lora-target-modules",
        "SGLang must know the adapters' largest rank and modules before it has seen one",
        "set max_lora_rank, and --lora-target-modules all in extra_args",
    ),
    Rule(
        K.WRONG_VALUE,
        r"LoRA adapter (?P<name>\S{1,120}) with rank (?P<rank>\d+) is incompatible with the "
        r"current",
        "the adapter {name} has rank {rank}, more than --max-lora-rank, or other modules than "
        "--lora-target-modules",
        "--max-lora-rank {rank} (at least), and --lora-target-modules all in extra_args",
    ),
    Rule(
        K.WEIGHTS_MISMATCH,
        r"LoRA buffer shape [^\n]{0,80}does not match",
        "the shapes of a LoRA adapter's weights are not those of the model",
        "use an adapter that was trained for this very model",
    ),
    Rule(
        K.WRONG_VALUE,
        r"LoRA target modules? [^\n]{0,120}not supported",
        "SGLang cannot apply LoRA to one of the modules in --lora-target-modules",
        "--lora-target-modules all in extra_args, or only modules that the line does not name",
    ),
    Rule(
        K.WRONG_VALUE,
        r"think_end_token '[^']{0,40}' must encode to exactly one token",
        "the reasoning parser does not fit the model: its tokenizer has no token that ends a "
        "thought",
        "another --reasoning-parser in extra_args, or none",
    ),
    Rule(
        K.WRONG_VALUE,
        r"(?:Unsupported|Unknown|[Ii]nvalid) (?P<what>tool[_-]call[_-]parser|reasoning[_-]parser|"
        r"model type|chat template|grammar backend)[:= ]{1,3}(?P<name>[\w.\-/]{1,80})",
        "this SGLang has no {what} called {name}",
        "correct the name, or leave it out; the engine's own --help lists what there is",
    ),
    Rule(
        K.COMMUNICATION,
        r"(?:res=|AssertionError: )<Response \[50\d\]>|warmup error: [^\n]{0,200}(?:ProxyError"
        r"|Connection refused)|requests\.exceptions\.JSONDecodeError",
        "SGLang's first request to itself was answered by something else, most likely a proxy",
        "set no_proxy=127.0.0.1,localhost,0.0.0.0 (or unset http_proxy); if there is no proxy, the "
        "scheduler's own error is above",
        vague=True,
    ),
    Rule(
        K.TOO_SLOW,
        r"[Ww]atchdog timeout \(self\.watchdog_timeout=(?P<seconds>[\d.]{1,12})(?:, "
        r"self\.soft=False"
        r"|\))",
        "one step took longer than {seconds} s, and SGLang's watchdog ended it: a hang between "
        "GPUs, or kernels that were compiled",
        "start it again; if it comes back, --watchdog-timeout SECONDS in extra_args, and look for "
        "the stacks that the log has before this line",
        late=True,
    ),
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
    error_lines=re.compile(
        r"Initialization failed\. |Subprocess \S+ \(pid=\d+\) crashed|Received sigquit"
        r"|SIGQUIT received|(?:\w{1,40} )?[Ww]atchdog timeout \(self\.watchdog_timeout=[\d.]{1,12}"
        r"(?:, self\.soft=False|\))"
    ),
    words=Surroundings(
        rebuild="`enginehouse envs remove KEY`, then `enginehouse install sglang`",
        without_gpu="--engine vllm or hf",
        less_gpu_memory=f"{_LESS_STATIC}; `nvidia-smi` shows whether another program takes some",
    ),
)
