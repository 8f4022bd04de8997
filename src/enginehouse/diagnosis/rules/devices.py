"""Containers that do not get the GPU, and accelerators other than NVIDIA's."""

from __future__ import annotations

from enginehouse.diagnosis.kinds import FailureKind
from enginehouse.diagnosis.rule import Rule

K = FailureKind


RULES = (
    Rule(
        K.CUDA_MISMATCH,
        r"nvidia-container-cli: requirement error: unsatisfied condition: (?P<needs>[^\s,]{1,40})",
        "this image needs a newer driver of NVIDIA's than the machine has ({needs})",
        "update the driver, or take an image for an older CUDA",
        spoken=True,
    ),
    Rule(
        K.NO_GPU,
        r"could not select device driver|unknown or invalid runtime name: nvidia"
        r"|unresolvable CDI devices|nvidia-container-cli: (?:initialization|mount|device) error"
        r"|nvidia-container-(?:cli|runtime)[^\n]{0,40}(?:not found|no such file)",
        "the container engine cannot hand the GPU to a container: NVIDIA's container toolkit is "
        "not installed or not configured, or the driver does not work",
        "see that `nvidia-smi` works outside; install nvidia-container-toolkit, run `nvidia-ctk "
        "runtime configure --runtime=docker`, and restart docker",
        spoken=True,
    ),
    Rule(
        K.PORT_TAKEN,
        r"Bind for [\d.:\[\]]{1,60} failed: port is already allocated"
        r"|failed to bind host port[^\n]{0,80}address already in use"
        r"|ports are not available: exposing port",
        "another program, or another container, listens on the port that the container is to have",
        "publish another one, or end what has it: `docker ps`, `ss -ltnp`",
        spoken=True,
    ),
    Rule(
        K.WRONG_BUILD,
        r"exec format error|[Cc]annot execute binary file",
        "the program was built for another kind of processor",
        "take the image or the build for this one (x86-64 or Arm)",
        spoken=True,
    ),
    Rule(
        K.WRONG_LIBRARY,
        r"\b(?P<name>vllm|sglang|llama-server|python3?): (?:command )?not found"
        r"|exec: \"(?P<exec>[\w.\-]{1,40})\": executable file not found",
        "there is no program called {name}{exec} here",
        "install it, or name it by its full path; in a container see what the entry point is",
        spoken=True,
        vague=True,
    ),
    Rule(
        K.OUT_OF_MEMORY,
        r"UR_RESULT_ERROR_OUT_OF_(?:DEVICE_MEMORY|RESOURCES)|UR error: 39|PI_ERROR_OUT_OF_RESOURCES"
        r"|HSA_STATUS_ERROR_OUT_OF_RESOURCES|hipErrorOutOfMemory|RESOURCE_EXHAUSTED"
        r"|Neuron[^\n]{0,80}(?:out of memory|Failed to allocate)",
        "the accelerator's memory ran out",
        "a smaller model, --max-model-len or --max-num-seqs, or more devices",
        late=True,
    ),
    Rule(
        K.CUDA_MISMATCH,
        r"TensileLibrary[^\n]{0,40}|rocBLAS error: Cannot read"
        r"|vk::[\w:]{1,60}: Error(?:ExtensionNotPresent|FeatureNotPresent|IncompatibleDriver"
        r"|InitializationFailed)",
        "this build has no code for this GPU, or the GPU's driver does not fit it",
        "update the driver, or take a build for this GPU; for AMD's see HSA_OVERRIDE_GFX_VERSION",
        spoken=True,
    ),
    Rule(
        K.NO_GPU,
        r"[Cc]an't get ascend_hal device count|dcmi m\w{1,8} initialize failed"
        r"|No (?:XPU|NPU|HPU|MPS|TPU|Neuron) devices? (?:are|is|were)? ?(?:available|found)"
        r"|not (?:built|compiled) with (?:XPU|NPU|HIP|ROCm|MPS)|hipErrorNoDevice"
        r"|NPU function error: acl(?:Init|rtSetDevice)\w{0,10}|AmdSmi(?:Library)?Exception"
        r"|Unable to get GPU device count"
        r"|no accelerator is available|[Cc]annot access accelerator device when none is"
        r"|(?:open|access)[^\n]{0,20} /dev/(?:kfd|davinci\w{0,10}|dri)[^\n]{0,40}"
        r"(?:denied|No such)",
        "this build of {engine} needs an accelerator, and none can be used",
        "see whether the device's own tool shows it (rocm-smi, npu-smi, xpu-smi), that a container "
        "gets its devices (/dev/kfd, /dev/dri, /dev/davinci0), and that this user may open them",
        spoken=True,
        vague=True,
    ),
    Rule(
        K.COMMUNICATION,
        r"\bE[IJ]\d{4}: |HCCL_E_\w{1,40}|hcom\w{1,40} failed|RCCL[^\n]{0,60}(?:error|fail)",
        "the accelerators or nodes could not talk to each other",
        "see that all processes run and have a device each; on Ascend that HCCL_IF_IP and "
        "HCCL_SOCKET_IFNAME name the right network, and HCCL_CONNECT_TIMEOUT is long enough",
        vague=True,
        late=True,
    ),
    Rule(
        K.CRASHED,
        r"HIP error: (?P<what>[^\n]{1,120})|(?:PTA|AICPU|NPU) [^\n]{0,60}(?:failed|error code is)"
        r"|ERR\d{5} |aclnn\w{1,60}[^\n]{0,60}fail|UR_RESULT_ERROR_\w{1,40}"
        r"|level_zero backend failed|hipErrorLaunchFailure",
        "native code of {engine}, or the accelerator, gave up {what}",
        "start it again; if it happens again, leave out what is special (--enforce-eager, no "
        "quantization), and report it to {engine} with the log",
        vague=True,
        late=True,
    ),
)
