"""What can be diagnosed, and what a diagnosis says."""

from __future__ import annotations

from enum import StrEnum

import msgspec

READ_THE_LOG = "read the log; usually the first error in it is the cause"


class FailureKind(StrEnum):
    """What was diagnosed; docs/errors.md says of each what it means and what to do.

    UNKNOWN: no rule knows it, and the evidence is the exception that ended the engine.
    """

    UNKNOWN = "unknown"
    MEMORY_TAKEN = "memory_taken"
    NO_CACHE_MEMORY = "no_cache_memory"
    CONTEXT_EXCEEDS_MEMORY = "context_exceeds_memory"
    OUT_OF_MEMORY = "out_of_memory"
    HOST_MEMORY = "host_memory"
    KILLED = "killed"
    CRASHED = "crashed"
    STOPPED = "stopped"
    ENGINE_DIED = "engine_died"
    PORT_TAKEN = "port_taken"
    DISK_FULL = "disk_full"
    NOT_WRITABLE = "not_writable"
    TOO_SLOW = "too_slow"
    WAITING = "waiting"
    RAY_RESOURCES = "ray_resources"
    COMMUNICATION = "communication"
    UNKNOWN_FLAG = "unknown_flag"
    WRONG_VALUE = "wrong_value"
    CONTEXT_TOO_LONG = "context_too_long"
    PARALLELISM = "parallelism"
    UNSUPPORTED_DTYPE = "unsupported_dtype"
    UNSUPPORTED_FEATURE = "unsupported_feature"
    QUANTIZATION = "quantization"
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_GATED = "model_gated"
    MODEL_INCOMPLETE = "model_incomplete"
    MODEL_BROKEN = "model_broken"
    WEIGHTS_MISMATCH = "weights_mismatch"
    UNSUPPORTED_MODEL = "unsupported_model"
    REMOTE_CODE = "remote_code"
    DOWNLOAD_FAILED = "download_failed"
    CUDA_MISMATCH = "cuda_mismatch"
    CUDA_NOT_READY = "cuda_not_ready"
    NO_GPU = "no_gpu"
    WRONG_BUILD = "wrong_build"
    NO_COMPILER = "no_compiler"
    TOOLCHAIN = "toolchain"
    MISSING_LIBRARY = "missing_library"
    WRONG_LIBRARY = "wrong_library"
    PACKAGE_MISMATCH = "package_mismatch"
    START_METHOD = "start_method"
    TOOL_PARSER = "tool_parser"


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The cause of a failure: the log's line that shows it, what it means, and what to do next.

    `evidence` is empty where the log says nothing and the exit code is all there is. `guess`: no
    rule knows the text; the kind follows from the files that the traceback ends in.
    """

    kind: FailureKind
    evidence: str
    cause: str
    fix: str
    guess: bool = False
