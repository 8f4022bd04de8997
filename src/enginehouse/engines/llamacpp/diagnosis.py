"""How a llama-server's log is read, and the rules for what only llama.cpp says.

Its errors come in order, the cause before "failed to load model" and the like; a wrong command line
comes without time and level, and older builds write neither at all. Most patterns were seen in logs
of build 11434 on a CPU; those for GPUs were read in its sources and in what users report.
"""

from __future__ import annotations

import re
import signal

from enginehouse.diagnosis import FailureKind, LogProfile, Rule, Surroundings

K = FailureKind
_SMALLER = (
    "take a smaller quantisation of the model, a smaller --max-model-len, or fewer sequences "
)
_SMALLER += "with --max-num-seqs: every sequence's context is set aside when it starts"
_AGAIN = "download or copy the file again; a Git LFS pointer needs `git lfs pull`"
_NEWER = (
    "name a newer llama-server in ENGINEHOUSE_LLAMACPP_SERVER, or serve the model with --engine "
    "vllm or hf"
)
_RULES = (
    Rule(
        K.PORT_TAKEN,
        r"couldn't bind (?:HTTP server|to server) socket[,:] hostname[:=] "
        r"?(?P<host>[^\s,]{1,80}),? "
        r"port[:=] ?(?P<port>\d+)",
        "another program listens on port {port} of {host}, or the address is not this machine's",
        "leave the port out, so that a free one is leased, or end that program",
    ),
    Rule(
        K.UNKNOWN_FLAG,
        r"error: (?:invalid|unknown) argument: (?P<flag>\S+)",
        "this llama-server has no flag {flag}",
        "correct extra_args; `llama-server --help` lists its flags",
    ),
    Rule(
        K.WRONG_VALUE,
        r'error while handling argument "(?P<flag>[^"]+)": (?P<why>.*)'
        r"|invalid parameter for argument: (?P<old>\S{1,80})",
        "{flag}{old} does not take what it was given: {why}",
        "correct extra_args; the log shows what {flag}{old} takes",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"failed to open GGUF file '(?P<file>[^']*)'",
        "the model's file is not there, or may not be read: {file}",
        "check the path and its permissions",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"llama_adapter_lora_init: failed to open '(?P<file>[^']*)'",
        "the LoRA adapter's file is not there, or may not be read: {file}",
        "correct --lora in extra_args",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"(?:failed to open|unable to load model) '?(?P<file>[^'\n]{1,300}?)'?:? '?\(?No such file"
        r"|Model path does not exist: (?P<path>[^\n]{1,300})",
        "the model's file is not there: {file}{path}",
        "check the path; in a container, that the folder is mounted",
    ),
    Rule(
        K.WEIGHTS_MISMATCH,
        r"LoRA tensor '(?P<name>[^'\n]{1,120})' does not exist in base model",
        "the LoRA adapter has a tensor that the model lacks: {name}",
        "name an adapter that was trained for this very model",
    ),
    Rule(
        K.WRONG_VALUE,
        r"failed to apply lora adapter: (?P<why>.*)",
        "the file that --lora names is not a LoRA adapter for this model: {why}",
        "make it of the PEFT adapter of this very model with llama.cpp's convert_lora_to_gguf.py",
    ),
    Rule(
        K.UNSUPPORTED_MODEL,
        r"unknown model architecture: '(?P<name>[^']{0,80})'"
        r"|unknown pre-tokenizer type: '(?P<kind>[^']{0,80})'",
        "this build of llama.cpp does not know the architecture or tokenizer {name}{kind}",
        _NEWER,
    ),
    Rule(
        K.UNSUPPORTED_MODEL,
        r"this GGUF file is version (?P<version>\d+) but this software only supports",
        "the file has version {version} of the format, which this build of llama.cpp does not know",
        _NEWER,
    ),
    Rule(
        K.UNSUPPORTED_MODEL,
        r"has invalid ggml type (?P<type>\d+)",
        "the file has numbers in a format ({type}) that this build of llama.cpp does not know",
        _NEWER,
    ),
    Rule(
        K.WRONG_VALUE,
        r"V cache quantization requires flash_attn|quantized V cache was requested, but",
        "the V cache can be quantized only with flash attention",
        "add --flash-attn on to extra_args, or leave --cache-type-v out",
    ),
    Rule(
        K.WRONG_VALUE,
        r"clip_init: failed to load|mismatch between text model[^\n]{0,40} and mmproj",
        "the file of --mmproj does not belong to this model, or is newer than this build",
        "take the mmproj file that was published with the model",
    ),
    Rule(
        K.WRONG_VALUE,
        r"(?i:chat[ _]template)[^\n]{0,80}(?:not supported|unable|failed|parse)|try using --jinja"
        r"|invalid device: |model path is not set"
        r"|draft (?:model )?vocab[^\n]{0,60}(?:not compatible|must match)"
        r"|(?:requires|start (?:it|the server) with) `?--[a-z]|requested (?:context|n_ctx)[^\n]"
        r"{0,40}too large|unsupported cache type",
        "an option has a value that llama-server does not take, or needs another one beside it",
        "correct extra_args; the line says what it wants; `llama-server --help` lists all",
        vague=True,
    ),
    Rule(
        K.UNSUPPORTED_MODEL,
        r"unknown \(magic, version\)|too old, regenerate your model|invalid model file \(bad magic"
        r"|unsupported (?:model|file) (?:version|format|architecture)|unsupported op\b",
        "the file is of a format or an architecture that this build of llama.cpp does not know",
        _NEWER,
    ),
    Rule(
        K.MODEL_GATED,
        r"error from HF API[^\n]{0,40}\b40[13]\b|HTTP(?: error)?:? 40[13]\b[^\n]{0,40}"
        r"|http status code received: 40[13]\b",
        "the hub refuses: it wants a token, or another one",
        "set HF_TOKEN to a token of an account that may read the model",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"error from HF API|invalid repo name|failed to get (?:file|manifest|commit)",
        "the model was not found on the hub",
        "check the spelling: owner/name, with a quantization that the repository has",
        vague=True,
    ),
    Rule(
        K.UNSUPPORTED_FEATURE,
        r"HTTPS is not supported|built without (?:SSL|CURL|libcurl)|requires built with CURL",
        "this build of llama.cpp cannot download: it was built without TLS",
        "download the file and name its path, or use a build with TLS",
    ),
    Rule(
        K.UNSUPPORTED_FEATURE,
        r"device \S{1,40} does not support 16-bit storage",
        "this GPU lacks what llama.cpp's Vulkan kernels need",
        "keep the layers off the GPU with extra_args --gpu-layers 0, or take another GPU",
    ),
    Rule(
        K.NOT_WRITABLE,
        r"failed to open (?P<file>[^\n]{1,200}): Permission denied",
        "the model's file may not be read by the user that llama-server runs as: {file}",
        "give that user the right to read it",
    ),
    Rule(
        K.MODEL_NOT_FOUND,
        r"failed to get model from HF: 404|HF API, response code: 404|failed to get manifest[^\n]"
        r"{0,200}404|http status code received: 404",
        "the hub has no such model or file",
        "check the spelling of -hf, and that the repository holds GGUF files",
    ),
    Rule(
        K.DOWNLOAD_FAILED,
        r"curl_easy_perform\(\) failed|HEAD failed|Could not resolve hostname|failed to download",
        "the model could not be fetched from the hub",
        "see the network and the proxy; or download the file and name its path",
    ),
    Rule(
        K.MODEL_INCOMPLETE,
        r"(?:invalid|missing|illegal) split|failed to load GGUF split|loaded with the first split",
        "the model is split into several files, and some are missing or not the first was named",
        "put all parts into one folder and name the first (…-00001-of-…)",
    ),
    Rule(
        K.MODEL_BROKEN,
        r"data is not within the file bounds|unexpectedly reached end of file"
        r"|exceeds remaining file size|error loading model: read error"
        r"|failed to read (?:key-value pairs|tensor (?:info|data))",
        "the model's file is cut off",
        "download or copy it again, whole",
    ),
    Rule(
        K.MODEL_BROKEN,
        r"invalid magic (?:characters|number)|failed to read magic",
        "a file that it was to load, the model or an adapter, is no GGUF file",
        _AGAIN,
    ),
    Rule(
        K.WEIGHTS_MISMATCH,
        r"missing tensor '(?P<name>[^'\n]{0,200})'|wrong number of tensors|wrong shape; expected"
        r"|tensor '(?P<other>[^'\n]{0,200})' (?:not found|has wrong shape|is missing)",
        "the file's tensors are not those that this llama.cpp expects of the architecture that it "
        "names {name}{other}",
        "make or download it again, with a llama.cpp of the same age as this one; a newer one may "
        "know the variant",
    ),
    Rule(
        K.MODEL_BROKEN,
        r"key not found in model|cannot find tokenizer|unknown tokenizer:",
        "the file lacks what a model's file has to say of itself",
        "make or download it again, with a llama.cpp of the same age as this one",
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"cudaMalloc failed: out of memory|on device \d+[^\n]{0,20} failed: out of memory"
        r"|CUDA error: out of memory|unable to allocate (?:CUDA|ROCm|HIP)",
        "the GPU's memory does not hold the model and the context of every sequence",
        f"{_SMALLER}; or keep some layers off the GPU with extra_args --gpu-layers N",
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"ErrorOutOfDeviceMemory|exceeds device memory allocation limit"
        r"|ggml_vulkan: Device memory allocation of size (?P<size>\d+) failed"
        r"|failed to allocate (?:Vulkan|CUDA|ROCm|Metal|SYCL)\d? buffer|unable to allocate Vulkan"
        r"|ggml_backend_metal[^\n]{0,80}failed to allocate buffer|command buffer \d+ failed with "
        r"status 5",
        "one buffer was larger than the GPU's memory, or than its driver gives out at once",
        f"{_SMALLER}, a smaller --ubatch-size; or keep some layers off the GPU with extra_args "
        "--gpu-layers N; GGML_VK_FORCE_MAX_ALLOCATION_SIZE makes Vulkan ask for smaller pieces",
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"failed to allocate (?:buffer for kv cache|compute (?:pp )?buffers)|unable to allocate "
        r"backend buffer",
        "the memory does not hold the context of every sequence",
        _SMALLER,
        vague=True,
    ),
    Rule(
        K.HOST_MEMORY,
        r"failed to allocate buffer of size (?P<bytes>\d{1,18})"
        r"|insufficient memory \(attempted to allocate (?P<size>[\d.]+ MB)\)"
        r"|std::bad_alloc|Cannot allocate memory",
        "the memory does not hold the model and the context of every sequence ({size} at once)",
        _SMALLER,
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"CUDA driver version is insufficient|no kernel image is available",
        "this llama-server was built for another GPU or a newer driver",
        "build it here (`enginehouse install llamacpp --variant cuda`), or update the driver",
    ),
    Rule(
        K.MISSING_LIBRARY,
        r"error while loading shared libraries: (?P<name>[^:]+)|no backends are loaded",
        "llama.cpp does not find its libraries (libggml-*.so) {name}",
        "keep the program and its libraries in one folder, or set LD_LIBRARY_PATH",
    ),
    Rule(
        K.CRASHED,
        r"DEVICE_LOST|[Dd]evice lost\b|ErrorDeviceLost|DeviceLostError|Native API failed",
        "the GPU, or its driver, stopped answering: it hung, was reset, or a step took longer than "
        "the system lets a GPU work",
        "start it again with a smaller --ubatch-size and --batch-size in extra_args, or fewer "
        "layers on the GPU; a newer driver; `dmesg -T` shows a reset",
    ),
    Rule(
        K.CRASHED,
        r"GGML_ASSERT(?:\((?P<what>.*)\) failed|:)|Assertion [`'][^\n]{1,400}' failed"
        r"|ggml_abort|cannot run the operation|\.(?:cuh?|[ch]pp|cc?|h"
        r"|m):\d{1,6}: fatal error",
        "llama.cpp met something that it takes for impossible, and gave up",
        "start it again; if the same line comes back, report it to llama.cpp with the log",
    ),
)
_SIGNALS = {
    signal.SIGILL: (
        "the processor lacks instructions that this llama-server was compiled for",
        "build it on this machine: `enginehouse install llamacpp`",
    ),
    signal.SIGSEGV: (
        "native code of llama.cpp crashed (SIGSEGV)",
        (
            "start it again with extra_args --no-repack, which avoids a crash on processors with "
            "AMX, and report it with the log"
        ),
    ),
    signal.SIGABRT: (
        "native code of llama.cpp gave up (SIGABRT)",
        "read the last lines of the log: what gave up says why there",
    ),
    signal.SIGBUS: (
        "the model's file became shorter while it was being read, or the disk failed (SIGBUS)",
        _AGAIN,
    ),
}
_KILLED_FIX = (
    "ask the kernel whether it was for memory: `dmesg -T | grep -i 'killed process'` (in a "
    f"container: oom_kill in /sys/fs/cgroup/memory.events); if so, {_SMALLER}"
)

PROFILE = LogProfile(
    name="llamacpp",
    title="llama.cpp",
    marks=re.compile(
        r"\bllama_[a-z]\w+|\bggml_?\w*|gguf_|llama-(?:server|cli|bench)|llama\.cpp"
        r"|llama runner|^srv +\w"
    ),
    rules=_RULES,
    ready=re.compile(r"listening on http|HTTP server (?:is )?listening.{0,200}all slots are idle"),
    stopped=re.compile(r"cleaning up before exit"),
    pointer=re.compile(
        r"exiting due to|(?<!clip_init: )failed to (?:load model|create context|create_context"
        r"|load lora adapter"
        r"|apply lora adapter: failed to load|initialize the context: failed|read header)"
        r"|error loading model: llama_model_loader: failed|fit params to free device memory"
        r"|unable to load model(?! '[^'\n]{1,300}': No such)|[Ff]ailed to (?:load model from file"
        r"|create llama_context)|llama runner process (?:has terminated"
        r"|no longer running): (?:exit "
        r"status|signal|-?\d)|^Error: Failed to initialize"
    ),
    error_lines=re.compile(
        r"(?!.{0,40}(?i:warn))(?:error[: ]|bind: |.{0,300}?(?:\berror\b|CUDA error|ErrorOutOf"
        r"|failed\b|DEVICE_LOST|no backends are|couldn't bind|unable to |GGML_ASSERT|ggml_abort"
        r"|terminate called|invalid magic"
        r"|insufficient memory|cannot open|invalid ggml type|requires flash_attn"
        r"|Library not loaded|cannot download|Device lost|cannot run the operation|illegal split"
        r"|does not exist in"
        r"|invalid http status))"
    ),
    signals=_SIGNALS,
    killed_fix=_KILLED_FIX,
    words=Surroundings(
        rebuild="`enginehouse envs remove KEY`, then `enginehouse install llamacpp`",
        less_gpu_memory=f"{_SMALLER}; or keep some layers off the GPU with extra_args "
        "--gpu-layers N",
    ),
)
