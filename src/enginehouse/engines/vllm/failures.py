"""What a line of vLLM's log means, and what to do about it: one rule per known failure.

Those about memory are in vllm_memory.py; what torch, CUDA, the hub and others say is in the rules
shared by all engines. The texts are those of vLLM 0.32.0 and of older versions, as users report
them. Those that a CPU can provoke were provoked (tests/engines/logs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from enginehouse.diagnosis import FailureKind, Rule, Surroundings
from enginehouse.engines.vllm.history import REMOVED_FLAGS


def _flag(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    flag = found["flag"].partition("=")[0]
    fix = REMOVED_FLAGS.get(flag, "correct it or leave it out; `--help=all` of the engine lists it")
    return {"flag": flag, "fix": fix}


K = FailureKind
RULES = (
    Rule(
        K.TOO_SLOW,
        r"Timed out waiting for engine core.{0,120}?Waited (?P<seconds>\d+)s",
        "vLLM gave the engine {seconds} s to start, and loading takes longer",
        "a larger --start-timeout, which is handed on to vLLM; or put the weights on a faster disk",
    ),
    Rule(
        K.TOO_SLOW,
        r"RPC call to (?P<what>\w{1,60}) timed out|Engine iteration timed out",
        "a worker did not answer in time: a hang between GPUs, a step that compiles, or a worker "
        "that "
        "is gone",
        "look for an error of the workers themselves; start it again, with --enforce-eager or "
        "NCCL_DEBUG=WARN if it comes back; VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS gives it more time",
        vague=True,
        late=True,
    ),
    Rule(
        K.UNKNOWN_FLAG,
        r"error: unrecognized arguments: .{0,300}?(?P<flag>--?[A-Za-z]\S{0,80})",
        "this version of vLLM has no {flag} (any more)",
        "{fix}",
        _flag,
    ),
    Rule(
        K.UNKNOWN_FLAG,
        r"provide the model as a positional argument[^\n]{0,60}`--model`",
        "`vllm serve` takes the model as its first argument, not as --model",
        "write `vllm serve MODEL`, without --model",
    ),
    Rule(
        K.WRONG_VALUE,
        r"invalid tool call parser: (?P<name>[^\s(]{1,60})"
        r"|[Tt]ool parser '?(?P<other>[\w.\-]{1,60})'?"
        r"(?: is)? not (?:found|registered|supported)",
        "this vLLM has no tool parser called {name}{other}",
        "--tool-call-parser with one of those that the line lists, or that `vllm serve --help` "
        "does",
    ),
    Rule(
        K.WRONG_VALUE,
        r"invalid reasoning parser: (?P<name>[^\s(]{1,60})|reasoning parser could not locate think"
        r"|[Rr]easoning parser '?"
        r"(?P<other>[\w.\-]{1,60})'?(?: is)? not (?:found|registered|supported)",
        "this vLLM has no reasoning parser called {name}{other}, or it does not fit the model",
        "--reasoning-parser with one of those that the line lists",
    ),
    Rule(
        K.WRONG_VALUE,
        r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank (?P<most>\d+)",
        "the adapter has rank {rank}, and --max-lora-rank is {most}",
        "--max-lora-rank with the next of 8, 16, 32, 64, 128, 256, 320 and 512 that is not below "
        "{rank}",
    ),
    Rule(
        K.WRONG_VALUE,
        r"max_lora_rank \((?P<rank>\d+)\) must be",
        "vLLM does not take {rank} as the largest rank of an adapter",
        "--max-lora-rank with one of 8, 16, 32, 64, 128, 256, 320 and 512",
    ),
    Rule(
        K.WEIGHTS_MISMATCH,
        r"expected target modules in .{1,300}? but received|unsupported LoRA weight"
        r"|LoRA adapter .{1,120}? (?:is not|not) compatible",
        "the LoRA adapter has weights for modules that vLLM cannot adapt in this model",
        "train the adapter for modules that vLLM knows (q_proj, k_proj, v_proj, o_proj, gate_proj, "
        "up_proj, down_proj), or merge it into the weights",
    ),
    Rule(
        K.WRONG_VALUE,
        r"(?:Unknown|Unsupported) (?:kv )?connector(?: type)?: (?P<name>[\w.]{1,60})"
        r"|[Cc]hat template (?:string|file|path)[^\n]{0,120}|Invalid chat template",
        "a name or a file that was given is refused: {name}",
        "correct it; the line says what was expected",
    ),
    Rule(
        K.WRONG_VALUE,
        r"max_num_batched_tokens \((?P<tokens>\d+)\) is smaller than max_model_len "
        r"\((?P<length>\d+)\)",
        "without chunked prefill one step must take a whole prompt: --max-num-batched-tokens "
        "{tokens} is less than the longest one, {length}",
        "--max-num-batched-tokens {length}, a smaller --max-model-len, or chunked prefill",
    ),
    Rule(
        K.WRONG_VALUE,
        r"max_num_batched_tokens \((?P<tokens>\d+)\) must be greater than or equal to max_num_seqs "
        r"\((?P<sequences>\d+)\)",
        "one step must take a token of each sequence: --max-num-batched-tokens {tokens} is less "
        "than --max-num-seqs {sequences}",
        "raise --max-num-batched-tokens, or lower --max-num-seqs",
    ),
    Rule(
        K.WRONG_VALUE,
        r"(?P<field>\w{1,60})\n  (?P<problem>(?:Input should be|Extra inputs are not permitted"
        r"|Unexpected keyword argument|Field required)[^\[\n]{0,200})",
        "vLLM refuses {field}: {problem}",
        "correct the option, or leave it out",
    ),
    Rule(
        K.CONTEXT_TOO_LONG,
        r"max_model_len \((?P<wanted>\d+)\) is greater than the derived max_model_len "
        r"\((?:[\w.]{1,60}=)?(?P<most>\d+)",
        "the model was made for at most {most} tokens, and --max-model-len says {wanted}",
        "--max-model-len {most}, or leave it out; longer needs RoPE scaling, which --hf-overrides "
        "can set",
    ),
    Rule(
        K.PARALLELISM,
        r"(?:World size|[Tt]ensor parallel size) \((?P<wanted>\d+)\) (?:is"
        r"|cannot be) larger than the "
        r"number of available GPUs \((?P<there>\d+)\)",
        "tensor and pipeline parallelism need {wanted} GPUs together, and {there} can be seen",
        "--tensor-parallel-size {there}, or show more GPUs (CUDA_VISIBLE_DEVICES)",
    ),
    Rule(
        K.PARALLELISM,
        r"please set tensor_parallel_size \((?P<wanted>\d+)\) to less than max local gpu count "
        r"\((?P<there>\d+)\)",
        "--tensor-parallel-size is {wanted}, and this machine has {there} GPUs",
        "--tensor-parallel-size {there}, or more machines with Ray",
    ),
    Rule(
        K.PARALLELISM,
        r"attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size "
        r"\((?P<size>\d+)\)",
        "the model's {heads} attention heads cannot be shared out among {size}",
        "a --tensor-parallel-size that divides {heads}; --pipeline-parallel-size has no such rule",
    ),
    Rule(
        K.UNSUPPORTED_DTYPE,
        r"Bfloat16 is only supported on GPUs with compute capability of at least 8\.0\."
        r" Your (?P<gpu>.{1,80}?) GPU has compute capability (?P<has>[\d.]{0,4}\d)",
        "this GPU ({gpu}, compute capability {has}) cannot compute in bfloat16: that takes 8.0",
        "--dtype float16",
    ),
    Rule(
        K.UNSUPPORTED_FEATURE,
        r"UVA is not available",
        "this vLLM's model runner needs memory that CPU and GPU share (pinned memory, UVA), and "
        "that is turned off under WSL",
        "--env VLLM_WSL2_ENABLE_PIN_MEMORY=1 under WSL, or --env VLLM_USE_V2_MODEL_RUNNER=0",
    ),
    Rule(
        K.RAY_RESOURCES,
        r"Not enough (?:resources to allocate|total available nodes)|is not included in a "
        r"placement group|Ray workers have not started|No nodes with resources found in Ray"
        r"|Nodes are not homogeneous",
        "the Ray cluster has not as many GPUs free, or not where the engine wants them",
        "`ray status` shows what there is and who holds it: start the missing nodes, end what "
        "holds the GPUs, or lower the parallelism",
    ),
    Rule(
        K.QUANTIZATION,
        r"Cannot find the config file for (?P<method>\w+)"
        r"|quantization is currently not supported"
        r"|_C::\w{0,40}quant\w{0,40}\(\) expected at most 0 argument",
        "this checkpoint is not quantized in the way that --quantization says, or this build of "
        "vLLM cannot compute with it",
        "leave --quantization out: it is read from the checkpoint; on a CPU use unquantized "
        "weights",
    ),
    Rule(
        K.ENGINE_DIED,
        r"Engine process \(pid (?P<pid>\d{1,9})\) died",
        "the engine's process ({pid}) ended while it was in use, and wrote no error",
        "ask the kernel whether it was for memory: `dmesg -T | grep -i 'killed process'`; "
        "otherwise native code crashed: start it again, with --enforce-eager if it comes back",
        vague=True,
        late=True,
    ),
    Rule(
        K.ENGINE_DIED,
        r"CPU Generator does not use offset",
        "a request with a seed whose prompt was computed in pieces (chunked prefill) kills vLLM's "
        "CPU engine",
        "leave out --no-avoid-quirks and --enable-chunked-prefill (Enginehouse avoids this by "
        "itself), or send no seeds",
        late=True,
    ),
    Rule(
        K.ENGINE_DIED,
        r"einsum\(\): subscript \w has size",
        "several requests for prompt log-probabilities in one batch, with --enable-lora on a CPU, "
        "kill vLLM's engine",
        "leave out --no-avoid-quirks (Enginehouse sends them by themselves), serve such tasks "
        "without --enable-lora, or with --concurrency 1",
        late=True,
    ),
)
