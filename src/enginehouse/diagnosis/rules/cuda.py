"""NVIDIA's driver, CUDA and the GPUs, before any memory is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule, Surroundings

K = FailureKind


def _driver(found: re.Match[str], around: Surroundings) -> Mapping[str, str]:  # noqa: ARG001
    version = int(found["found"] or 0)  # 12080 is 12.8
    return {"found": f" (CUDA {version // 1000}.{version % 1000 // 10})" if version else ""}


RULES = (
    Rule(
        K.CUDA_NOT_READY,
        r"\b802\b[^\n]{0,60}system not yet initialized|system not yet initialized"
        r"|CUDA_ERROR_SYSTEM_NOT_READY|cudaErrorSystemNotReady",
        "the GPUs are not ready (CUDA error 802): on machines with NVSwitch NVIDIA's fabric "
        "manager "
        "does not run, or is of another version than the driver",
        "`systemctl status nvidia-fabricmanager`; install it in the version of the driver, start "
        "it, and start again; on a rented machine this is for its provider to fix",
        spoken=True,
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"unsupported display driver ?/ ?cuda driver combination|\bError 803\b"
        r"|[Dd]river/library version mismatch|NVMLError_LibRmVersionMismatch",
        "the loaded kernel driver and libcuda are of different versions (CUDA error 803): the "
        "driver was updated without a restart, or a container brings a libcuda of its own",
        "restart the machine; in a container take the compat libcuda out of LD_LIBRARY_PATH "
        "(/usr/local/cuda/compat), so that the driver's own is used",
        spoken=True,
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"driver on your system is too old(?: \(found version (?P<found>\d{1,6})\))?"
        r"|(?P<none>driver version is insufficient|PTX was compiled with an unsupported toolchain"
        r"|forward compatibility was attempted|provided PTX was compiled with"
        r"|cudaErrorInsufficientDriver|cudaErrorUnsupportedPtxVersion)",
        "NVIDIA's driver{found} is too old for the CUDA that this build was made with, or was "
        "replaced while it was in use",
        "`nvidia-smi` shows the newest CUDA that the driver can do; update the driver (restart the "
        "machine after it), or use a build for that CUDA with --python PATH",
        _driver,
        spoken=True,
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"no kernel image is available|named symbol not found|hipErrorNoBinaryForGpu"
        r"|invalid device function|device kernel image is invalid"
        r"|\[sgl_kernel\] CRITICAL: Could not load any common_ops library",
        "this build of {engine} or torch has no code for this GPU, or was made for another CUDA: "
        "the GPU is older or newer than it",
        "use another GPU, or a build for this one with --python PATH; or make the environment "
        "again: {rebuild}",
        spoken=True,
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"CUDA capability sm_\d+ is not compatible",
        "this build of torch has no code for this GPU: the GPU is older or newer than it",
        "use another GPU, or a build for this one with --python PATH",
        spoken=True,
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"too old to be supported by the triton|compute capability below \d"
        r"|[Uu]nsupported (?:CUDA compute capability|GPU arch\w{0,10}|CUDA arch\w{0,10})"
        r"[^\n]{0,20}",
        "this GPU is older or newer than what the kernels here are written for",
        "use another GPU, or another version of {engine}; on an old GPU try --enforce-eager, and "
        "for a small model the engine llamacpp",
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"CUDA Setup failed despite (?:CUDA|GPU) being available",
        "bitsandbytes finds no CUDA libraries that it can use, though there is a GPU",
        "`python -m bitsandbytes` shows what it looked for; install a bitsandbytes made for this "
        "CUDA: {rebuild}",
    ),
    Rule(
        K.CUDA_NOT_READY,
        r"invalid literal for int\(\) with base 10: '(?P<device>(?:GPU|MIG)-[\w\-/]{1,80})'"
        r"|CUDA_VISIBLE_DEVICES[^\n]{0,80}(?P<uuid>(?:GPU|MIG)-[\w\-/]{1,80})[^\n]{0,80}not"
        r"|(?:Invalid|Unknown|unsupported) (?:GPU|device) (?:UUID|id)[^\n]{0,40}"
        r"(?P<other>(?:GPU|MIG)-[\w\-/]{1,80})",
        "CUDA_VISIBLE_DEVICES names the GPU by its UUID ({device}{uuid}{other}), and this {engine} "
        "wants a number",
        "use the numbers that `nvidia-smi -L` shows (CUDA_VISIBLE_DEVICES=0,1), or a version that "
        "takes UUIDs; for MIG give the process one slice only",
    ),
    Rule(
        K.CUDA_NOT_READY,
        r"CUDA-capable devices are busy or unavailable",
        "the GPU is held by another process alone (exclusive mode), or was left so by one that "
        "died",
        "`nvidia-smi` lists processes and the compute mode; end what holds it, or `nvidia-smi -c "
        "0`",
    ),
    Rule(
        K.CUDA_NOT_READY,
        r"CUDA unknown error|failed to initialize CUDA: (?:unknown|init)"
        r"|CUDA driver initialization failed|CUDA error: initialization error"
        r"|NVMLError_InvalidArgument",
        "CUDA cannot be initialised: the driver's modules are not loaded as they should be, a GPU "
        "is named that is not there, or the process was forked after it had used CUDA",
        "see that `nvidia-smi` works and CUDA_VISIBLE_DEVICES is right; `modprobe nvidia_uvm` or a "
        "restart often helps; in a container, --gpus all",
        vague=True,
        spoken=True,
    ),
    Rule(
        K.UNSUPPORTED_FEATURE,
        r"CUDA driver error: invalid device ordinal",
        "these GPUs cannot share symmetric memory",
        "--env VLLM_ALLREDUCE_USE_SYMM_MEM=0, or --disable-custom-all-reduce",
    ),
    Rule(
        K.PARALLELISM,
        r"invalid device ordinal|CUDA_ERROR_INVALID_DEVICE|Invalid device id|"
        r"device (?:index|ordinal) (?:out of range|\d+ is out of)",
        "more GPUs are asked for than can be seen, or one by a number that is not there",
        "lower tensor, pipeline or data parallelism, or show more GPUs (CUDA_VISIBLE_DEVICES)",
    ),
    Rule(
        K.START_METHOD,
        r"Cannot re-initialize CUDA in forked subprocess",
        "the process had used CUDA before it was forked, and CUDA does not survive that",
        "--env VLLM_WORKER_MULTIPROC_METHOD=spawn, and let nothing touch CUDA before the engine is "
        "made (torch.cuda.is_available() in your own program counts)",
    ),
    Rule(
        K.START_METHOD,
        r"attempt has been made to start a new process before the\s{1,12}current process has "
        r"finished|freeze_support\(\)|bootstrapping phase",
        "the program that makes the engine starts it at import: each new process would start it "
        "again",
        'put the code under `if __name__ == "__main__":`',
    ),
    Rule(
        K.NO_GPU,
        r"Found no NVIDIA driver|No CUDA GPUs are available|No CUDA devices found"
        r"|[Nn]o CUDA-capable "
        r"device|Failed to infer device type|NVML: Driver Not Loaded|NVMLError_DriverNotLoaded"
        r"|Torch not compiled with CUDA"
        r"|[Cc][Uu][Dd][Aa] driver can't be loaded|Device string must not be empty"
        r"|No accelerator \(CUDA, [^\n]{0,80}is available|NVMLError_LibraryNotFound"
        r"|NVML Shared Library Not Found|[Nn]o (?:ROCm|HIP)-capable device"
        r"|No HIP GPUs are available"
        r"|torch finds no CUDA GPU|could not select device driver|libnvidia-ml\.so\.1: cannot open"
        r"|GPU is required to (?:quantize|run)|No GPU found\. A GPU is needed"
        r"|CUDA is not available|[Ee]xpected a cuda device, but got"
        r"|on a CUDA device but torch\.cuda\."
        r"is_available\(\) is False|nvidia-container-cli: initialization error",
        "this build of {engine} needs an NVIDIA GPU and sees none",
        "see whether `nvidia-smi` works here and CUDA_VISIBLE_DEVICES is right (in a container: "
        "--gpus all); on a machine without a GPU: {without_gpu}",
        vague=True,
    ),
)
