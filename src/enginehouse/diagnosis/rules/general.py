"""What many failures look like: crashes, missing packages, what an engine cannot do; asked last."""

from __future__ import annotations

import re
from collections.abc import Mapping

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule, Surroundings

K = FailureKind


def _missing_package(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:
    name = found["name"] or found["bare"]
    return {"name": name, "package": name.partition(".")[0], "rebuild": around.rebuild}


RULES = (
    Rule(
        K.CRASHED,
        r"CUDA error: (?:an illegal memory access|device-side assert|unspecified launch failure|an "
        r"illegal instruction|misaligned address|invalid program counter|uncorrectable)"
        r"|illegal memory access was encountered|device-side assert triggered|uncorrectable ECC"
        r"|CUBLAS_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED)|CUDNN_STATUS_\w{1,40}"
        r"|HSA_STATUS_ERROR|Memory access fault by GPU|GPU has fallen off the bus|NVRM: Xid",
        "native code of {engine}, or the GPU, crashed",
        "start it again; if it happens again, leave out what is special (--enforce-eager, no "
        "quantization), see `dmesg -T | grep -i xid` for faults of the GPU, and report it to "
        "{engine}",
        late=True,
    ),
    Rule(
        K.CRASHED,
        r"Fatal Python error: |!+ *Segfault encountered|^Segmentation fault|^Illegal instruction"
        r"|GGML_ASSERT|Assertion [`'][^\n]{1,400}' failed|ggml_abort"
        r"|\.(?:cuh?|[ch]pp|cc?|h|mm?):\d{1,6}: fatal error|^Abort was called at \d{1,6} line"
        r"|code=(?:dumped|killed), (?:status=\d{1,3}/|signal=)(?:SEGV|ABRT|BUS|ILL|FPE)"
        r"|double free or corruption|corrupted size vs|(?:free|munmap_chunk)\(\): invalid"
        r"|\b0xc0000(?:005|01d|374|409)\b|\b(?:3221225477|3221226505)\b"
        r"|\*\*\* SIG(?:SEGV|ABRT|BUS|ILL|FPE) received",
        "native code of {engine}, or the GPU, crashed",
        "start it again; if it happens again, leave out what is special (--enforce-eager, no "
        "quantization), see `dmesg -T | grep -i xid` for faults of the GPU, and report it to "
        "{engine} with the log",
        vague=True,
        spoken=True,
        late=True,
    ),
    Rule(
        K.CRASHED,
        r"^Bus error",
        "the shared memory or the disk ran full while it was being written (SIGBUS)",
        "look at `df -h /dev/shm /tmp`; in a container, start it with a larger --shm-size",
        vague=True,
        spoken=True,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"(?:ModuleNotFoundError: )?No module named '(?P<name>(?!vllm\._)[^']{1,120})'"
        r"|python[\d.]{0,5}: No module named (?P<bare>[\w.]{1,120})",
        "the environment lacks a Python package that is imported: {name}",
        "install what provides {package} into the environment that --python names, or build the "
        "environment again: {rebuild}",
        _missing_package,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"(?:[Pp]lease (?:pip )?install|You need to install|pip install) (?:-U |the )?[`'\"]?"
        r"(?P<name>[a-zA-Z][\w.\-\[\]]{1,60})|compressed-tensors requires (?P<sixth>vllm)"
        r"|requires the (?P<other>[\w.\-]{2,60}) (?:library"
        r"|package)"
        r"|(?:package|library|module) [`'](?P<third>[\w.\-]{2,60})[`'] (?:is not installed"
        r"|was not found)"
        r"|ImportError: (?P<fourth>[\w.\- ]{2,40}) is not installed"
        r"|the package (?P<fifth>[\w.\-]{2,40}) seems to be not installed"
        r"|PackageNotFoundError: (?:No package metadata was found for )?'?(?P<meta>[\w.\-]{1,60})",
        "the environment lacks a Python package: {name}{other}{third}{fourth}{fifth}{sixth}{meta}",
        "install it into that environment, or build the environment again: {rebuild}",
    ),
    Rule(
        K.WRONG_BUILD,
        r"'_OpNamespace' '\w{1,40}' object has no attribute"
        r"|Could not run '\w{1,40}::\w{1,80}'"
        r"|No module named 'vllm\._C"
        r"|name 'vllm_\w{1,40}' is not defined",
        "the compiled part of {engine} (or torchvision) does not fit the torch in this "
        "environment: a CUDA build and a CPU build were mixed",
        "make the environment again: {rebuild} (`enginehouse envs` names it); install nothing into "
        "it that brings a torch of its own",
        vague=True,
    ),
    Rule(
        K.PACKAGE_MISMATCH,
        r"'?\w{1,60}(?:Config|Tokenizer|TokenizerFast|Processor"
        r"|ImageProcessor)'?(?: object)? has no "
        r"attribute '?(?P<what>\w{1,80})|module '(?P<module>[\w.]{1,80})' has no attribute "
        r"'(?P<attribute>\w{1,80})'|^ImportError: (?P<import>[^\n]{1,200})"
        r"|__init__\(\) (?:got an unexpected keyword|missing \d required)[^\n]{0,60}"
        r"|^NameError: name '(?P<name>\w{1,80})' is not defined",
        "two packages of the environment do not fit each other, most likely transformers and "
        "{engine}, or the model's own code and transformers: {what}{module} {attribute}{import}"
        "{name}",
        "install the versions that {engine} asks for, or build the environment again: {rebuild}",
        vague=True,
    ),
    Rule(
        K.UNSUPPORTED_FEATURE,
        r"No valid (?:attention )?backend\w*|[Ff]ailed to find a suitable attention backend"
        r"|[Ss]elected backend [^\n]{0,80}is not valid"
        r"|FlashAttention[^\n]{0,80}only supports? (?:Ampere|Hopper|SM)"
        r"|No available kernel\. Aborting"
        r"|make_empty_intermediate_tensors|[Pp]lease use \w{1,30} backend for"
        r"|FlashAttention-?\d? [^\n]{0,60}(?:not supported|requires)|Unsupported FA version"
        r"|(?:Sinks|sinks|MLA|fp8 kv cache|FP8 KV cache|[Ss]liding window)[^\n]{0,80}not supported"
        r"|[Hh]ead[ _]?(?:size|dim)\w{0,10} [^\n]{0,20}not supported|[Uu]nsupported "
        r"head[ _]?(?:size|dim)|does not support head[ _]?(?:size|dim)"
        r"|[Oo]nly SM ?\d[^\n]{0,40}supported|out of resource: shared memory"
        r"|requires GPUs with sm\d"
        r"|FlashAttention on [^\n]{0,40}only supports"
        r"|Hybrid KV cache manager is disabled but|does not support multicast"
        r"|No suitable kernel\. h_in"
        r"|does not support (?P<feature>LoRA|pipeline parallel\w*|data parallel\w*"
        r"|tensor parallel\w*"
        r"|[^\n]{1,80}) yet|(?P<on>\w[\w \-]{1,60} (?:is not supported on (?:this"
        r"|the current) (?:device|GPU|platform)"
        r"|requires (?:Hopper|Ampere|Blackwell|SM ?\d))[^\n]{0,60})"
        r"|does not yet support (?P<yet>[^\n]{1,80})"
        r"|(?P<with>\w[\w \-]{1,60} is not "
        r"supported (?:yet|with|together|in V1|on V1|by V1)[^\n]{0,80})"
        r"|[Cc]ompute capability[^\n]{0,60}"
        r"(?:required|at least|>=)"
        r"|(?P<only>[\w`][\w` \-]{1,60} (?:is|are) only supported (?:in|on|with|for"
        r"|by) [^\n]{1,80})",
        "{engine} cannot do that with this model or on this GPU: {feature}{on}{yet}{with}{only}",
        "leave the option out, choose another backend, a newer {engine}, or a GPU that has it",
    ),
    Rule(
        K.UNSUPPORTED_FEATURE,
        r"^(?:\w+\.){0,8}NotImplementedError: (?P<what>[^\n]{1,200})",
        "{engine} cannot do that with this model or on this GPU: {what}",
        "leave the option out, choose another backend, a newer {engine}, or a GPU that has it",
        vague=True,
    ),
    Rule(
        K.TOOLCHAIN,
        r"No such file or directory: '[^']{1,200}(?:torch_compile_cache|torchinductor)[^']{0,200}'",
        "a cache of compiled code is broken, or was removed while it was used",
        "remove it (~/.cache/vllm/torch_compile_cache, /tmp/torchinductor_*) and start again; "
        "VLLM_DISABLE_COMPILE_CACHE=1 does without",
        vague=True,
    ),
    Rule(
        K.TOOLCHAIN,
        r"torch\._(?:inductor\.exc\.\w{1,60}|dynamo\.exc\.(?:BackendCompilerFailed|Unsupported"
        r"|UncapturedHigherOrderOpError))(?:: (?P<what>[^\n]{1,200}))?",
        "torch.compile could not compile the model: {what}",
        "--enforce-eager does without it; a newer {engine} may know the model better",
        vague=True,
    ),
    Rule(
        K.DOWNLOAD_FAILED,
        r"(?<!gaierror: \[Errno -3\] )Temporary failure in name resolution|NameResolutionError"
        r"|(?<!gaierror: \[Errno -2\] )Name or service not known"
        r"|ConnectTimeout|ReadTimeoutError|Network is unreachable|CERTIFICATE_VERIFY_FAILED"
        r"|ProxyError",
        "something could not be fetched from the network",
        "see what the line names, and the network, the proxy and its certificate; what is on this "
        "machine already is found with HF_HUB_OFFLINE=1 or by a path",
        vague=True,
    ),
    Rule(
        K.CRASHED,
        r"terminate called|CUDA (?:driver )?error: (?P<what>[^\n]{1,120})"
        r"|Triton Error \[\w{2,6}\]: (?P<triton>[^\n]{1,120})",
        "native code of {engine}, or the GPU, gave up {what}{triton}",
        "start it again; if it happens again, leave out what is special (--enforce-eager, no "
        "quantization), and report it to {engine} with the log",
        vague=True,
        late=True,
    ),
)
